"""Put a trained English model into the package: score it on dev manifests, write its card, copy the folder to asr/models/english."""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path

from asr.checkpoint import MODELS_DIR, load_model_folder, load_network, save_model_folder
from asr.evaluate import evaluate_manifest, results_table
from asr.transcribe import Transcriber

CARD = """# english

Writes down English speech: lower-case words, no punctuation, numbers spelled out. A stacked bidirectional GRU with {layers} layers of {hidden} units a
direction on 80 log-mel bins, {parameters:,} parameters, trained with CTC on {hours} hours of openly licensed speech by `recipes/english/train.py`
({epochs} epochs, {steps} steps, seed {seed}).

## Error rates

Greedy decoding, no language model; these sets chose the weights among the run's epochs, and no utterance or speaker of them was trained on, except
ljspeech's one voice. Measured by `scripts/ship_model.py` on {machine}.

{table}

## Data and attribution

| data | licence |
|---|---|
| LibriSpeech (Panayotov et al. 2015), 7 speakers of train-clean-100 and one utterance each of 228 others, some texts recovered by recognisers | CC BY 4.0 |
| Mozilla Common Voice 6.1 and 13.0, English, part of the texts recovered by recognisers | CC0 |
| LJSpeech, Keith Ito, LibriVox: 328 clips | public domain |
| LJSpeech sentences read by Philipp Matthes | Apache-2.0 |
| CMU ARCTIC (bdl, slt), Carnegie Mellon University | free use |
| kathleen, Rhasspy | CC0 |
| Asterisk core sounds, Allison Smith | CC BY-SA 3.0 |
| background noises of Google Speech Commands, mixed in | CC BY 4.0 |

## What it is bad at

It has heard few hours and knows no words, only letters: names and rare words are spelled by ear. Expect many more errors with noise, distance, several
speakers at once, strong accents, children and spontaneous speech. Letters spelled one by one and languages other than English are beyond it.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="model folder, such as runs/english/best")
    parser.add_argument("manifests", type=Path, nargs="+", help="dev manifests")
    parser.add_argument("--out", type=Path, default=MODELS_DIR / "english", help="default: %(default)s")
    arguments = parser.parse_args()

    folder = load_model_folder(arguments.model)
    transcriber = Transcriber(arguments.model)
    table = results_table([evaluate_manifest(transcriber, path) for path in arguments.manifests])
    for path in arguments.manifests:
        table = table.replace(str(path), path.stem)
    card = CARD.format(
        layers=folder.network["num_layers"],
        hidden=folder.network["hidden_size"],
        parameters=folder.info["parameters"],
        hours=folder.info["training_hours"],
        epochs=folder.info["epochs"],
        steps=folder.info["steps"],
        seed=folder.info["seed"],
        machine=f"{os.cpu_count()} {platform.machine()} cores",
        table=table,
    )
    network = load_network(folder)
    save_model_folder(arguments.out, network, features=folder.features, vocabulary=folder.vocabulary, info=folder.info, card=card)
    print(table)


if __name__ == "__main__":
    main()
