"""Train on LibriSpeech, from 3.7 hours in packs to the whole 960, and score what was not trained on (see README.md)."""

from __future__ import annotations

import argparse
import logging
import os
from functools import partial
from pathlib import Path

from asr.corpora.librispeech import download_librispeech, prepare_librispeech
from asr.corpora.pack import prepare_pack
from asr.evaluate import evaluate_manifest, results_table
from asr.model import ModelConfig
from asr.train import TrainConfig, train
from asr.transcribe import Transcriber

DEV, TEST = ("dev-clean", "dev-other"), ("test-clean", "test-other")
PARTS = {  # preset -> what it trains on, chooses the best epoch by, and is scored on
    "pack": (("librispeech_train", "librispeech_recovered_train"), (), ("librispeech_dev",)),
    "5h": (("dev-clean",), ("dev-other",), TEST),
    "100h": (("train-clean-100",), DEV, TEST),
    "960h": (("train-clean-100", "train-clean-360", "train-other-500"), DEV, TEST),
}
SMALL = ModelConfig(dropout=0.2)
MIDDLE = ModelConfig(num_layers=5, hidden_size=512, dropout=0.2)
LARGE = ModelConfig(num_layers=5, hidden_size=1024, conv_channels=512, dropout=0.1)
CONFIGS = {
    "pack": partial(TrainConfig, model=SMALL, epochs=20, batch_s=60.0, warmup_epochs=2.0, ema_decay=0.995),
    "5h": partial(TrainConfig, model=SMALL, epochs=60, batch_s=80.0, warmup_epochs=2.0, consistency=0.2),
    "100h": partial(TrainConfig, model=MIDDLE, epochs=50, batch_s=400.0, learning_rate=1e-3, consistency=0.2, num_workers=8),
    "960h": partial(TrainConfig, model=LARGE, epochs=30, batch_s=1600.0, learning_rate=8e-4, warmup_epochs=1.0, num_workers=12),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PARTS, default="pack", help="default: %(default)s; the others download their parts")
    parser.add_argument("--corpora", type=Path, help="folder of the packs librispeech and librispeech_recovered, for the preset pack")
    parser.add_argument("--data", type=Path, default=Path("data/librispeech"), help="corpus and manifests (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="run folder (default: runs/librispeech-PRESET)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--epochs", type=int, help="passes over the data (default: the preset's)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0: all cores (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the run folder's last state")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    trained_on, dev, test = PARTS[arguments.preset]
    if arguments.preset == "pack":
        if arguments.corpora is None:
            parser.error("--preset pack needs --corpora, the folder of the packs; the other presets download")
        packs = [prepare_pack(arguments.corpora, arguments.data, name=name) for name in ("librispeech", "librispeech_recovered")]
        manifests = {path.stem: path for pack in packs for path in pack.values()}
    else:
        parts = (*trained_on, *dev, *test)
        manifests = prepare_librispeech(download_librispeech(arguments.data, parts), arguments.data, parts=parts)
    config = CONFIGS[arguments.preset](
        train_manifests=tuple(str(manifests[part]) for part in trained_on),
        dev_manifests=tuple(str(manifests[part]) for part in dev),
        precision="auto",
        device=arguments.device,
        seed=arguments.seed,
        num_threads=arguments.threads,
        **({"epochs": arguments.epochs} if arguments.epochs else {}),
    )
    result = train(config, arguments.out or Path(f"runs/librispeech-{arguments.preset}"), resume=arguments.resume)
    if os.environ.get("RANK", "0") != "0":
        return  # under torchrun one process scores
    transcriber = Transcriber(result.model_dir)
    print(results_table([evaluate_manifest(transcriber, manifests[part]) for part in test]))
    print(f"preset {arguments.preset}, seed {arguments.seed}, {result.epochs} epochs, {result.hours:.2f} hours of training")


if __name__ == "__main__":
    main()
