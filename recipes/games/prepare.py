"""Write what is said in three adventure games, which everyone may pass on, as wav files with a manifest to train on (see README.md).

Each line has its text in the game. Left out are noises and invented languages (most words not in a model's lexicon, letters said too slowly or too fast),
texts with digits and signs, and lines that the model hears very differently.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Container
from itertools import islice
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
BATCH = 64  # lines that the model hears at once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("games", type=Path, help="folder that the games' packages are unpacked into")
    parser.add_argument("--out", type=Path, default=Path("data/games"), help="default: %(default)s")
    parser.add_argument("--check", default="english", help="model folder that lines are checked with (default: %(default)s)")
    arguments = parser.parse_args()
    folder = load_model_folder(arguments.check)
    transcriber, lexicon = Transcriber(folder.path, decoder=DecoderConfig()), folder_lexicon(folder)
    known = set(lexicon.words) if lexicon else set()
    kept: list[Utterance] = []
    for name, read, most_errors in GAMES:
        game = next((path.parent for path in arguments.games.rglob(name)), None)
        if game is None:
            parser.error(f"{arguments.games}: no {name}; unpack the game's package there (recipes/games/README.md names it)")
        before, num_lines, lines = len(kept), 0, iter(read(game))
        while part := list(islice(lines, BATCH)):
            num_lines += len(part)
            waveforms = [(key, raw, as_waveform(samples, rate)) for key, raw, samples, rate in part]
            spoken = [(key, text, waveform - waveform.mean()) for key, raw, waveform in waveforms if (text := spoken_text(raw, len(waveform) / SAMPLE_RATE, known))]
            for (key, text, waveform), heard in zip(spoken, transcriber.transcribe_batch([waveform for _, _, waveform in spoken]), strict=True):
                if count_character_errors(text, heard.text).rate > most_errors:
                    continue
                path = arguments.out / "audio" / f"{key}.wav"
                write_wav(path, waveform)
                kept.append(Utterance(audio_filepath=str(path.resolve()), duration=len(waveform) / SAMPLE_RATE, text=text, id=key))
        print(f"{name}: {num_lines:,} lines, {len(kept) - before:,} kept, {sum(u.duration for u in kept[before:]) / 3600:.2f} h")
    manifest = arguments.out / "games_train.jsonl"
    write_manifest(manifest, kept)
    print(f"{manifest}: {len(kept):,} utterances, {sum(u.duration for u in kept) / 3600:.2f} h")


def spoken_text(raw: str, duration: float, known: Container[str]) -> str:
    """Return the words of a line, or nothing where it is too short, has digits or signs, is said too slowly or too fast, or most words are not known."""
    text = normalise(re.sub(r"\.+", " ", raw))
    words = text.split()
    if not re.fullmatch("[a-z' ]+", text) or re.search(r"[][()<>{}#@|~=+$&%]", raw) or duration < SHORTEST_S:
        return ""
    slow, fast = LETTERS_PER_S
    return text if slow <= len(text) / duration <= fast and 2 * sum(word not in known for word in words) < len(words) else ""


if __name__ == "__main__":
    main()
