"""Write what is said in three adventure games, which everyone may pass on, as wav files with a manifest to train on (see README.md).

Each line has its text in the game. Left out are noises and invented languages (most words not in a model's lexicon, letters said too slowly or too fast),
texts with digits and signs, and lines that the model hears very differently.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from formats.drascula import read_drascula
from formats.queen import read_queen
from formats.sky import read_sky

from asr.audio import SAMPLE_RATE, as_waveform, write_wav
from asr.checkpoint import load_model_folder
from asr.decoder import DecoderConfig
from asr.manifest import Utterance, write_manifest
from asr.text import normalise
from asr.transcribe import Transcriber, folder_lexicon
from asr.wer import count_character_errors

GAMES = (  # a file of each that its reader's folder has
    ("sky.dsk", read_sky, 0.75),
    ("queen.1c", read_queen, 0.75),
    ("drascula.dat", read_drascula, 0.6),
)
SHORTEST_S = 0.4
LETTERS_PER_S = (5, 24)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("games", type=Path, help="folder that the games' packages are unpacked into")
    parser.add_argument("--out", type=Path, default=Path("data/games"), help="default: %(default)s")
    parser.add_argument("--check", default="english", help="model folder that lines are checked with (default: %(default)s)")
    arguments = parser.parse_args()
    transcriber = Transcriber(arguments.check, decoder=DecoderConfig())
    lexicon = folder_lexicon(load_model_folder(arguments.check))
    known = set(lexicon.words) if lexicon else set()
    kept: list[Utterance] = []
    for name, read, most_errors in GAMES:
        folder = next((path.parent for path in arguments.games.rglob(name)), None)
        if folder is None:
            parser.error(f"{arguments.games}: no {name}; unpack the game's package there (recipes/games/README.md names it)")
        before, num_lines = len(kept), 0
        for key, raw, samples, rate in read(folder):
            num_lines += 1
            text = normalise(re.sub(r"\.+", " ", raw))
            waveform = as_waveform(samples, rate)
            waveform -= waveform.mean()
            duration = len(waveform) / SAMPLE_RATE
            words = text.split()
            if (
                not re.fullmatch("[a-z' ]+", text)
                or re.search(r"[][()<>{}#@|~=+$&%]", raw)
                or duration < SHORTEST_S
                or not LETTERS_PER_S[0] <= len(text) / duration <= LETTERS_PER_S[1]
                or 2 * sum(word not in known for word in words) >= len(words)
                or count_character_errors(text, transcriber.transcribe(waveform).text).rate > most_errors
            ):
                continue
            path = arguments.out / "audio" / f"{key}.wav"
            write_wav(path, waveform)
            kept.append(Utterance(audio_filepath=str(path.resolve()), duration=duration, text=text, id=key))
        print(f"{name}: {num_lines:,} lines, {len(kept) - before:,} kept, {sum(u.duration for u in kept[before:]) / 3600:.2f} h")
    manifest = arguments.out / "games_train.jsonl"
    write_manifest(manifest, kept)
    print(f"{manifest}: {len(kept):,} utterances, {sum(u.duration for u in kept) / 3600:.2f} h")


if __name__ == "__main__":
    main()
