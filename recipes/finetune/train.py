"""Fine-tune the shipped English model on one voice and score it before and after: LJSpeech, or manifests of your own (see README.md)."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path

from asr.augment import AugmentConfig
from asr.checkpoint import load_model_folder
from asr.corpora.ljspeech import download_ljspeech, prepare_ljspeech
from asr.corpora.pack import prepare_pack
from asr.decoder import DecoderConfig
from asr.evaluate import evaluate_manifest, results_table
from asr.model import ModelConfig
from asr.train import TrainConfig, train
from asr.transcribe import Transcriber


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=Path, help="manifest to learn from, with --dev; `asr prepare folder` makes both (default: LJSpeech)")
    parser.add_argument("--dev", type=Path, help="manifest to score before and after")
    parser.add_argument("--corpora", type=Path, help="folder with the pack ljspeech.tar, ljspeech.jsonl (default: download the corpus)")
    parser.add_argument("--data", type=Path, default=Path("data/ljspeech"), help="corpus and manifests (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/finetune"), help="run folder (default: %(default)s)")
    parser.add_argument("--init", default="english", help="model to start from, a folder or the name of a shipped one (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the data (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=5e-4, help="the peak (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0: all cores (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the run folder's last state")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if bool(arguments.train) != bool(arguments.dev):
        parser.error("--train and --dev go together")

    if arguments.train:
        manifests = {"train": arguments.train, "dev": arguments.dev}
    elif arguments.corpora:
        manifests = prepare_pack(arguments.corpora, arguments.data, name="ljspeech")
    else:
        manifests = prepare_ljspeech(download_ljspeech(arguments.data), arguments.data)
    folder = load_model_folder(arguments.init)
    config = TrainConfig(
        train_manifests=(str(manifests["train"]),),  # the last weights of a fixed schedule are the model: nothing is chosen on dev
        vocabulary=folder.vocabulary.tokens,
        sounds=folder.sounds.tokens if folder.sounds else (),
        features=folder.features,
        init=arguments.init,
        model=replace(ModelConfig(**folder.network), dropout=0.2),
        augment=AugmentConfig(freq_width=15, time_width=25, time_share=0.2),
        epochs=arguments.epochs,
        batch_s=60.0,
        learning_rate=arguments.learning_rate,
        warmup_epochs=1.0,
        ema_decay=0.99,
        precision="auto",
        seed=arguments.seed,
        num_threads=arguments.threads,
    )
    result = train(config, arguments.out, resume=arguments.resume)
    decoders = {"greedy": DecoderConfig()} | ({"by default": None} if folder.decoder else {})
    for name, decoder in decoders.items():
        for model in (arguments.init, str(result.model_dir)):
            print(f"{model}, {name}:\n{results_table([evaluate_manifest(Transcriber(model, decoder=decoder), manifests['dev'])])}")
    print(f"seed {arguments.seed}, {result.epochs} epochs, {60 * result.hours:.1f} minutes of training")


if __name__ == "__main__":
    main()
