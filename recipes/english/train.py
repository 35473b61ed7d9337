"""Train the English model that ships with the package, from packs of openly licensed speech (see README.md)."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path

from asr.augment import AugmentConfig
from asr.corpora.pack import english_manifests, prepare_english
from asr.cut import cut_manifest
from asr.decoder import DecoderConfig
from asr.lexicon import read_lexicon
from asr.logmel import FeatureConfig
from asr.model import ModelConfig
from asr.train import TrainConfig, train
from asr.transcribe import Transcriber

AUGMENT = AugmentConfig(
    speeds=(0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2),
    noise_probability=0.3,
    speech_probability=0.2,
    reverb_probability=0.2,
    band_probability=0.2,
    freq_warp=0.12,
    silence_tilt=0.6,
    freq_width=24,
    time_masks_per_s=0.5,
    time_width=30,
    time_share=0.3,
)
VOICE_CHANGE = 2.0  # with --voices


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpora", type=Path, help="folder of the packs, NAME.tar and NAME.jsonl each (default: they are unpacked already)")
    parser.add_argument("--also", type=Path, nargs="+", default=[], metavar="MANIFEST", help="more speech to train on, such as that of recipes/games")
    parser.add_argument("--data", type=Path, default=Path("data/packs"), help="where audio is unpacked to (default: %(default)s)")
    parser.add_argument("--lexicon", type=Path, default=Path("runs/lexicon.txt"), help="written by lexicon.py (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/english"), help="run folder (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=6, help="passes over the data (default: %(default)s)")
    parser.add_argument("--batch-seconds", type=float, default=240.0, help="seconds of audio a step (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="the peak (default: %(default)s)")
    parser.add_argument("--consistency", type=float, default=0.0, help="weight of the consistency loss, 0: one view of each utterance (default: %(default)s)")
    parser.add_argument("--dropout", type=float, default=0.1, help="between layers (default: %(default)s)")
    parser.add_argument("--teacher", default="", help="folder of a teacher's frames of all this speech, written by teacher.py (default: none)")
    parser.add_argument("--teacher-weight", type=float, default=4.0, help="weight of their squared error (default: %(default)s)")
    parser.add_argument("--teacher-delay", type=int, default=0, help="frames of 40 ms by which they are foretold later than they are heard (default: %(default)s)")
    parser.add_argument("--voices", default="", help="voices that utterances are given besides their own, written by voices.py (default: none)")
    parser.add_argument("--live", action="store_true", help="one-directional, features normalised by what was heard so far (see recipes/streaming)")
    parser.add_argument("--layers", type=int, default=7, help="recurrent layers, of which all after the third add to what they read (default: %(default)s)")
    parser.add_argument("--hidden-size", type=int, default=384, help="units of a layer in each direction (default: %(default)s)")
    parser.add_argument("--init", default="", help="model folder to start from, its layers as many or fewer (default: from scratch)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the speech and of all that is drawn at random (default: %(default)s)")
    parser.add_argument("--cut-with", default="", help="model folder that finds the pauses at which longer utterances are cut (default: leave them whole)")
    parser.add_argument("--validate-epochs", type=int, default=1, help="epochs from one validation to the next (default: %(default)s)")
    parser.add_argument("--mmi", type=float, default=0.8, help="weight of the MMI loss (default: %(default)s)")
    parser.add_argument("--precision", default="auto", help="of the products: auto, float32, bfloat16 or float16 (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes that read and augment speech (default: %(default)s)")
    parser.add_argument("--ema-decay", type=float, default=0.997, help="of the running mean of the weights, a step (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0: all cores (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the run folder's last state")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    if arguments.corpora:
        prepare_english(arguments.corpora, arguments.data)
    train_manifest, dev_manifests = english_manifests(arguments.data)
    if arguments.cut_with:
        whole, train_manifest = train_manifest, arguments.data / "english_train_cut.jsonl"
        if not train_manifest.exists():
            cut_manifest(whole, train_manifest, Transcriber(arguments.cut_with, decoder=DecoderConfig()), longest_s=6.0)
    sounds = read_lexicon(arguments.lexicon).sounds.tokens
    augment = replace(AUGMENT, voice_change=VOICE_CHANGE if arguments.voices else 0.0)
    if arguments.live:
        augment = replace(augment, silence_tilt=0.0)  # it normalises over the whole utterance
    config = TrainConfig(
        train_manifests=(str(train_manifest), *map(str, arguments.also)),
        dev_manifests=tuple(map(str, dev_manifests)),
        noise_dir=str(arguments.data / "noise"),
        init=arguments.init,
        seed=arguments.seed,
        sounds=sounds,
        lexicon=str(arguments.lexicon),
        features=FeatureConfig(normalisation="running" if arguments.live else "utterance"),
        model=ModelConfig(
            dropout=arguments.dropout,
            bidirectional=not arguments.live,
            num_sounds=len(sounds),
            num_layers=arguments.layers,
            residual_layers=max(arguments.layers - 3, 0),
            hidden_size=arguments.hidden_size,
        ),
        augment=augment,
        epochs=arguments.epochs,
        batch_s=arguments.batch_seconds,
        learning_rate=arguments.learning_rate,
        warmup_epochs=0.1,
        validate_epochs=arguments.validate_epochs,
        ema_decay=arguments.ema_decay,
        consistency=arguments.consistency,
        spelling=0.3,
        teacher=arguments.teacher,
        teacher_weight=arguments.teacher_weight,
        teacher_delay=arguments.teacher_delay,
        voices=arguments.voices,
        precision=arguments.precision,
        mmi=arguments.mmi,
        num_workers=arguments.workers,
        device=arguments.device,
        num_threads=arguments.threads,
    )
    result = train(config, arguments.out, resume=arguments.resume)
    print(f"dev WER {100 * result.dev_wer:.2f} % after {result.epochs} epochs, {result.hours:.2f} h: {result.model_dir}")


if __name__ == "__main__":
    main()
