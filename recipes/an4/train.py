"""Train on AN4's official training part and score its test part, greedily and without a language model (see README.md)."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from asr.augment import AugmentConfig
from asr.corpora.an4 import download_an4, prepare_an4
from asr.corpora.pack import prepare_pack
from asr.evaluate import evaluate_manifest, results_table
from asr.model import ModelConfig
from asr.train import TrainConfig, train
from asr.transcribe import Transcriber
from asr.wer import kaldi_line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpora", type=Path, help="folder with the pack an4.tar, an4.jsonl (default: download the corpus)")
    parser.add_argument("--data", type=Path, default=Path("data/an4"), help="corpus and manifests (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/an4"), help="run folder (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=40, help="passes over the data (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0: all cores (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the run folder's last state")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    if arguments.corpora:
        manifests = prepare_pack(arguments.corpora, arguments.data, name="an4")
    else:
        manifests = prepare_an4(download_an4(arguments.data), arguments.data)
    config = TrainConfig(
        train_manifests=(str(manifests["train"]),),  # no dev part: the last weights of a fixed schedule are the model
        model=ModelConfig(dropout=0.3),
        augment=AugmentConfig(freq_width=15, time_width=25, time_share=0.2),
        epochs=arguments.epochs,
        batch_s=60.0,
        learning_rate=1.5e-3,
        ema_decay=0.998,
        precision="auto",
        seed=arguments.seed,
        num_threads=arguments.threads,
    )
    result = train(config, arguments.out, resume=arguments.resume)
    evaluation = evaluate_manifest(Transcriber(result.model_dir), manifests["test"])
    print(results_table([evaluation]), kaldi_line(evaluation.words, "WER"), sep="\n")
    print(f"seed {arguments.seed}, {result.epochs} epochs, {60 * result.hours:.0f} minutes of training")


if __name__ == "__main__":
    main()
