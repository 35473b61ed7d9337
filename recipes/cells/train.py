"""Train a tanh RNN, a ReLU RNN, an LSTM and a GRU on AN4: same audio, steps and number of weights; print the WER of each."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from asr.augment import AugmentConfig
from asr.corpora.an4 import download_an4, prepare_an4
from asr.corpora.pack import prepare_pack
from asr.evaluate import evaluate_manifest, results_table
from asr.model import ModelConfig
from asr.train import TrainConfig, TrainingError, train
from asr.transcribe import Transcriber

HIDDEN_SIZES = {"rnn_tanh": 320, "rnn_relu": 320, "lstm": 152, "gru": 176}  # as many weights each: an LSTM has four gates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpora", type=Path, help="folder with the pack an4.tar, an4.jsonl (default: download the corpus)")
    parser.add_argument("--data", type=Path, default=Path("data/an4"), help="corpus and manifests (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/cells"), help="a run folder a cell goes here (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=12, help="passes over the data (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0: all cores (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the run folders' last states")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    if arguments.corpora:
        manifests = prepare_pack(arguments.corpora, arguments.data, name="an4")
    else:
        manifests = prepare_an4(download_an4(arguments.data), arguments.data)
    for cell, hidden_size in HIDDEN_SIZES.items():
        config = TrainConfig(
            train_manifests=(str(manifests["train"]),),
            model=ModelConfig(cell=cell, bidirectional=False, num_layers=2, hidden_size=hidden_size, conv_channels=128, dropout=0.1),
            augment=AugmentConfig(speeds=(1.0,), freq_width=15, time_masks_per_s=0.2, time_width=20, time_share=0.15),
            epochs=arguments.epochs,
            batch_s=40.0,
            optimiser="adamw",  # the plain rule, so that the gradients' sizes can be seen
            learning_rate=1e-3,
            warmup_epochs=2.0,
            ema_decay=0.99,
            seed=arguments.seed,
            num_threads=arguments.threads,
        )
        resume = arguments.resume and any((arguments.out / cell).glob("state-*.pt"))
        try:
            result = train(config, arguments.out / cell, resume=resume)
        except TrainingError as error:  # a cell whose gradient explodes is a finding; the others go on
            print(f"{cell}: {error}")
            continue
        print(f"{cell}: {result.epochs} epochs, {result.steps} steps, {60 * result.hours:.1f} minutes, seed {arguments.seed}")
        print(results_table([evaluate_manifest(Transcriber(result.model_dir), manifests["test"])]), flush=True)


if __name__ == "__main__":
    main()
