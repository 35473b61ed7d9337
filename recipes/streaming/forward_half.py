"""Write what a bidirectional model computes forward in time as a one-directional model, for recipes/english/train.py's --init."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from asr.checkpoint import copy_decoder, load_model_folder, load_network, save_model_folder
from asr.logmel import FeatureConfig
from asr.model import AcousticModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="model folder of a bidirectional model, or the name of a model")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    arguments = parser.parse_args()
    folder = load_model_folder(arguments.model)
    whole = load_network(folder)
    if not whole.config.bidirectional:
        raise SystemExit(f"{folder.path}: expected a bidirectional model, found {whole.config}")
    network = AcousticModel(dataclasses.replace(whole.config, bidirectional=False))
    weights = whole.state_dict()
    for name, tensor in network.state_dict().items():  # of what the backward cells say, and of the inputs for it, nothing is left
        tensor.copy_(weights[name][tuple(slice(size) for size in tensor.shape)])
    features = FeatureConfig(normalisation="running")
    save_model_folder(arguments.out, network, features=features, vocabulary=folder.vocabulary, sounds=folder.sounds, info={}, card="")
    copy_decoder(folder, arguments.out)


if __name__ == "__main__":
    main()
