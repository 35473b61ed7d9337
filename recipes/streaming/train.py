"""Train a one-directional English model for live recognition, from packs of openly licensed speech (see README.md)."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
from pathlib import Path

from asr.augment import AugmentConfig
from asr.checkpoint import copy_decoder, load_model_folder, load_network, save_model_folder
from asr.corpora.pack import prepare_english
from asr.logmel import FeatureConfig
from asr.model import AcousticModel, ModelConfig
from asr.train import TrainConfig, train

FEATURES = FeatureConfig(normalisation="running")


def forward_half(model: str | os.PathLike[str], path: Path) -> tuple[ModelConfig, tuple[str, ...]]:
    """Write what a bidirectional model computes forward in time as a model folder to start from; return its shape and its sounds."""
    folder = load_model_folder(model)
    whole = load_network(folder)
    config = dataclasses.replace(whole.config, bidirectional=False)
    network = AcousticModel(config)
    weights = whole.state_dict()
    for name, tensor in network.state_dict().items():  # of what the backward cells say, and of the inputs for it, nothing is left
        tensor.copy_(weights[name][tuple(slice(size) for size in tensor.shape)])
    card = f"The forward half of {folder.name}.\n"
    save_model_folder(path, network, features=FEATURES, vocabulary=folder.vocabulary, sounds=folder.sounds, info={}, card=card)
    copy_decoder(folder, path)
    return config, folder.sounds.tokens if folder.sounds else ()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpora", type=Path, required=True, help="folder of the packs, NAME.tar and NAME.jsonl each")
    parser.add_argument("--data", type=Path, default=Path("data/packs"), help="where audio is unpacked to (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/streaming"), help="run folder (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=14, help="passes over the data (default: %(default)s)")
    parser.add_argument("--batch-seconds", type=float, default=100.0, help="seconds of audio a step (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="the peak (default: %(default)s)")
    parser.add_argument("--forward-half-of", default="", metavar="MODEL", help="start from a bidirectional model (default: from scratch)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0: all cores (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the run folder's last state")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    train_manifest, dev_manifests = prepare_english(arguments.corpora, arguments.data)
    init, shape, sounds = "", ModelConfig(bidirectional=False), ()
    if arguments.forward_half_of:
        init = str(arguments.out / "init")
        shape, sounds = forward_half(arguments.forward_half_of, Path(init))
    config = TrainConfig(
        train_manifests=(str(train_manifest),),
        dev_manifests=tuple(map(str, dev_manifests)),
        noise_dir=str(arguments.data / "noise"),
        init=init,
        sounds=sounds,
        features=FEATURES,
        model=dataclasses.replace(shape, dropout=0.1),
        augment=AugmentConfig(speeds=(1.0,), noise_probability=0.1, freq_masks=1, freq_width=10, time_masks_per_s=0),
        epochs=arguments.epochs,
        batch_s=arguments.batch_seconds,
        learning_rate=arguments.learning_rate,
        warmup_epochs=0.2,
        ema_decay=0.999,
        precision="auto",
        device=arguments.device,
        num_threads=arguments.threads,
    )
    result = train(config, arguments.out, resume=arguments.resume)
    print(f"dev WER {100 * result.dev_wer:.2f} % after {result.epochs} epochs, {result.hours:.2f} h: {result.model_dir}")


if __name__ == "__main__":
    main()
