"""What the tests share: one thread, and utterances made on the spot, in which every letter is a tone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from asr.audio import SAMPLE_RATE, write_wav
from asr.manifest import Utterance, write_manifest
from asr.text import ENGLISH

torch.set_num_threads(1)

SENTENCES = ("go forward", "ten meters", "stop", "turn left", "a b c", "see you", "yes", "no noon")


def spoken_tones(text: str, *, letter_s: float = 0.09, seed: int = 0) -> np.ndarray:
    """Return a waveform (N,) that 'speaks' `text`: a tone a letter, silence for a space, a faint noise under all of it."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(letter_s * SAMPLE_RATE)) / SAMPLE_RATE
    fade = np.minimum(1.0, np.minimum(t, t[::-1]) / 0.01)
    pieces = [np.zeros(len(t))]
    for letter in text:
        frequency = 0.0 if letter == " " else 200.0 * 1.12 ** ENGLISH.tokens.index(letter)
        pieces.append(0.3 * fade * np.sin(2 * np.pi * frequency * t))
    pieces.append(np.zeros(len(t)))
    waveform = np.concatenate(pieces)
    return (waveform + 0.003 * rng.standard_normal(len(waveform))).astype(np.float32)


def write_tones(folder: Path, texts: Sequence[str], *, name: str = "train", repeat: int = 1) -> Path:
    """Write a wav file a text and the manifest FOLDER/NAME.jsonl, in which every utterance stands `repeat` times; return its path."""
    utterances = []
    for index, text in enumerate(texts):
        waveform = spoken_tones(text, seed=index)
        path = folder / f"{name}{index}.wav"
        write_wav(path, waveform)
        utterances.append(Utterance(str(path), len(waveform) / SAMPLE_RATE, text, id=f"{name}{index}"))
    write_manifest(folder / f"{name}.jsonl", utterances * repeat)
    return folder / f"{name}.jsonl"


@pytest.fixture
def tones(tmp_path: Path) -> Callable[..., Path]:
    """Write utterances of tones to tmp_path; call it with texts, name and repeat."""

    def write(texts: Sequence[str] = SENTENCES, *, name: str = "train", repeat: int = 1) -> Path:
        return write_tones(tmp_path, texts, name=name, repeat=repeat)

    return write
