"""Write a model as one with wider layers whose outputs are almost the same at first, for train.py's --init."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path

import torch

from asr.checkpoint import load_model_folder, load_network, save_model_folder
from asr.model import AcousticModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="model folder of a GRU, or the name of a model")
    parser.add_argument("--hidden-size", type=int, required=True, help="units of a layer in each direction, more than the model has")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    arguments = parser.parse_args()
    folder = load_model_folder(arguments.model)
    source = load_network(folder)
    if source.config.cell != "gru" or source.config.hidden_size >= arguments.hidden_size:
        raise SystemExit(f"{folder.path}: expected a GRU of fewer than {arguments.hidden_size} units, found {source.config}")
    torch.manual_seed(0)
    network = AcousticModel(dataclasses.replace(source.config, hidden_size=arguments.hidden_size))
    widen(source, network)
    save_model_folder(arguments.out, network, features=folder.features, vocabulary=folder.vocabulary, sounds=folder.sounds, info={}, card="")


@torch.no_grad()
def widen(source: AcousticModel, network: AcousticModel) -> None:
    """Give `network` the weights of `source`, a GRU like it with fewer units (the aim of Chen et al. 2016, "Net2Net").

    The states of the new units are 0 until their weights change; the weights with which others read them stay as `network` has them, so
    that there is a gradient. Layer norms are scaled for the zeros that they see, which is exact where the states' mean is 0.
    """
    old, new = source.config.hidden_size, network.config.hidden_size
    weights = source.state_dict()
    for name, parameter in network.named_parameters():
        weight = weights[name]
        places = [torch.arange(size) for size in weight.shape]  # of the old numbers among the new ones
        if name.startswith("layers."):
            size = len(parameter) // 3
            candidate = parameter[2 * size + old :]  # of the new units
            candidate[..., : old if "weight_hh" in name else None] = 0
            places[0] = torch.cat([torch.arange(old) + new * gate for gate in range(3)])
        wide = -1 if parameter.shape[-1] != weight.shape[-1] else None
        if wide is not None and "weight_hh" not in name and not (name.startswith("layers.") and "bias" in name):
            places[-1] = torch.cat([torch.arange(old) + new * d for d in range(weight.shape[-1] // old)])
        if wide is not None and name.startswith("norms."):
            scale = math.sqrt(old / new) if "weight" in name else 1.0
            parameter.fill_(scale * weight.mean() if "weight" in name else 0.0)
            weight = scale * weight
        parameter[torch.meshgrid(*places, indexing="ij")] = weight


if __name__ == "__main__":
    main()
