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
    # Where the numbers of old units stand among the new ones, in layers' outputs and in gates.
    states = torch.cat([torch.arange(old) + new * direction for direction in range(2 if source.config.bidirectional else 1)])
    rows = torch.cat([torch.arange(old) + new * gate for gate in range(3)])
    scale = math.sqrt(old / new)
    for name, parameter in network.named_parameters():
        weight = weights[name]
        if parameter.shape == weight.shape:
            parameter.copy_(weight)
        elif name.startswith("norms."):
            if name.endswith("weight"):
                weight = scale * weight
            parameter.fill_(weight.mean() if name.endswith("weight") else 0.0)
            parameter[states] = weight
        elif name.startswith("output."):
            parameter[:, states] = weight
        elif "bias" in name:
            parameter[2 * new + old :] = 0  # the candidate of the new units
            parameter[rows] = weight
        else:
            columns = torch.arange(old) if "weight_hh" in name else states if parameter.shape[1] != weight.shape[1] else torch.arange(weight.shape[1])
            parameter[2 * new + old :, : old if "weight_hh" in name else None] = 0
            parameter[rows[:, None], columns] = weight


if __name__ == "__main__":
    main()
