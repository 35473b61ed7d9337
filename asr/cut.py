"""Cut long training utterances at their pauses, so that a step holds more of them side by side: shorter ones train faster and align sooner.

Where the words of a known transcript were said is found by forced alignment, and a cut goes through a stretch between two words that is quiet too.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from asr.audio import SAMPLE_RATE
from asr.manifest import Utterance, read_manifest, read_utterance, write_manifest
from asr.transcribe import Transcriber
from asr.transcript import Word

WINDOW_S = 0.1  # a cut goes through the middle of the quietest window this long between two words
QUIET_DB = 20.0  # at least so far below the utterance's mean level
SHORTEST_S = 1.0  # no piece is made shorter


def cut_manifest(manifest: str | os.PathLike[str], target: str | os.PathLike[str], transcriber: Transcriber, *, longest_s: float) -> int:
    """Write `manifest` to `target` with utterances longer than longest_s seconds cut where that is possible; return how many were.

    Pieces have the same audio file with an offset, and -1, -2, ... after the utterance's id. Raises ManifestError, AudioError, CTCError.
    """
    pieces: list[Utterance] = []
    num_cut = 0
    for utterance in read_manifest(manifest):
        found = list(cut_utterance(utterance, transcriber, longest_s=longest_s)) if utterance.duration > longest_s else [utterance]
        pieces += found
        num_cut += len(found) > 1
    write_manifest(Path(target), pieces)
    return num_cut


def cut_utterance(utterance: Utterance, transcriber: Transcriber, *, longest_s: float) -> Iterator[Utterance]:
    """Yield the pieces of an utterance, all of its audio and words in their order; it stays whole where no pause is found."""
    waveform = read_utterance(utterance)
    words = [word for segment in transcriber.align(waveform, utterance.text).segments for word in segment.words]
    texts = utterance.text.split()
    if len(words) != len(texts):
        yield utterance
        return
    cuts = choose_cuts(pauses(waveform, words), utterance.duration, longest_s)
    bounds = [(0, 0.0), *cuts, (len(words), utterance.duration)]
    for number, ((first, start), (last, end)) in enumerate(pairwise(bounds), start=1):
        yield dataclasses.replace(
            utterance,
            offset=round(utterance.offset + start, 4),
            duration=round(end - start, 4),
            text=" ".join(texts[first:last]),
            id=f"{utterance.id}-{number}" if cuts else utterance.id,
        )


def pauses(waveform: np.ndarray, words: Sequence[Word]) -> list[tuple[int, float]]:
    """Return (number of words before it, seconds) of each place between two words that is quiet enough for a cut."""
    hop = int(WINDOW_S * SAMPLE_RATE) // 4
    power = np.add.reduceat(waveform.astype(np.float64) ** 2, np.arange(0, max(len(waveform) - hop, 0) + 1, hop)) / hop  # (K,) a quarter window each
    found = []
    for number, (before, after) in enumerate(pairwise(words), start=1):
        first, last = int(np.ceil(before.end * SAMPLE_RATE / hop)), int(after.start * SAMPLE_RATE / hop)
        if last - first < 4:
            continue
        level = np.convolve(power[first:last], np.full(4, 0.25), mode="valid")
        if level.size and level.min() < power.mean() * 10 ** (-QUIET_DB / 10):
            found.append((number, (first + int(level.argmin()) + 2) * hop / SAMPLE_RATE))
    return found


def choose_cuts(places: Sequence[tuple[int, float]], duration_s: float, longest_s: float) -> list[tuple[int, float]]:
    """Return those of `places` that leave no piece longer than longest_s where that can be: halve at the place nearest the middle, and so on."""

    def halve(start: float, end: float) -> list[tuple[int, float]]:
        inside = [place for place in places if start + SHORTEST_S <= place[1] <= end - SHORTEST_S]
        if end - start <= longest_s or not inside:
            return []
        middle = min(inside, key=lambda place: abs(place[1] - (start + end) / 2))
        return [*halve(start, middle[1]), middle, *halve(middle[1], end)]

    return halve(0.0, duration_s)
