"""Train on LJSpeech, one woman's voice: from a pack with a part of it, or on the whole corpus (see README.md)."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from asr.corpora.ljspeech import download_ljspeech, prepare_ljspeech
from asr.corpora.pack import prepare_pack
from asr.evaluate import evaluate_manifest, results_table
from asr.model import ModelConfig
from asr.train import TrainConfig, train
from asr.transcribe import Transcriber


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpora", type=Path, help="folder with the pack ljspeech.tar, ljspeech.jsonl (default: download the corpus)")
    parser.add_argument("--data", type=Path, default=Path("data/ljspeech"), help="corpus and manifests (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/ljspeech"), help="run folder (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=40, help="passes over the data (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0: all cores (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the run folder's last state")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    if arguments.corpora:
        manifests = prepare_pack(arguments.corpora, arguments.data, name="ljspeech")
    else:
        manifests = prepare_ljspeech(download_ljspeech(arguments.data), arguments.data)
    config = TrainConfig(
        train_manifests=(str(manifests["train"]),),  # the last weights of a fixed schedule are the model: nothing is chosen on dev
        model=ModelConfig(dropout=0.3),
        epochs=arguments.epochs,
        batch_s=40.0,
        learning_rate=2e-3,
        warmup_epochs=2.0,
        ema_decay=0.995,
        precision="auto",
        device=arguments.device,
        seed=arguments.seed,
        num_threads=arguments.threads,
    )
    result = train(config, arguments.out, resume=arguments.resume)
    transcriber = Transcriber(result.model_dir)
    print(results_table([evaluate_manifest(transcriber, manifests[split]) for split in ("dev", "test") if split in manifests]))
    print(f"seed {arguments.seed}, {result.epochs} epochs, {60 * result.hours:.0f} minutes of training")


if __name__ == "__main__":
    main()
