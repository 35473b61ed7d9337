"""Measure the word error rate of models on a manifest as it was recorded and under worse conditions, made from it, and print a Markdown table."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from asr.audio import SAMPLE_RATE
from asr.augment import add_noise, mix, narrow_band, reverberate
from asr.evaluate import evaluate_manifest
from asr.manifest import Utterance, read_manifest, read_utterance
from asr.transcribe import Transcriber
from asr.transcript import Transcript
from asr.wer import ErrorCounts

Condition = Callable[[np.ndarray, np.random.Generator], np.ndarray]
SILENCE_S = 1.0  # added on either side
FRAME = 160  # samples in which silence is looked for
EDGE_S = 0.15  # of silence left around speech
LOUD_DB = 35.0  # below the loudest frames speech may be


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifests", type=Path, nargs="+", help="whose utterances are transcribed, their errors counted together")
    parser.add_argument("--models", nargs="+", default=["english"], help="names or folders (default: english)")
    parser.add_argument("--speech", type=Path, nargs="+", required=True, help="manifests of what others say in the background")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores (default: %(default)s)")
    arguments = parser.parse_args()
    background = [u for path in arguments.speech for u in read_manifest(path)]
    models = [Transcriber(model, num_threads=arguments.threads) for model in arguments.models]
    print("| recording | " + " | ".join(f"{model} WER %" for model in arguments.models) + " |\n|---|" + "---:|" * len(models))
    for name, condition in conditions(background).items():
        words = [sum((evaluate_manifest(Changed(model, condition), path).words for path in arguments.manifests), ErrorCounts()) for model in models]
        print(f"| {name} | " + " | ".join(f"{100 * errors.rate:.1f}" for errors in words) + " |", flush=True)


def conditions(background: Sequence[Utterance]) -> dict[str, Condition]:
    """Return what is done to a waveform (N,), by the name of its row."""

    def talkers(rng: np.random.Generator, number: int) -> np.ndarray:
        voices = [read_utterance(background[int(i)]) for i in rng.integers(len(background), size=number)]
        return mix(voices, max(len(voice) for voice in voices))

    return {
        "as it is": lambda x, rng: x,
        "nothing above 4 kHz, as over a telephone": lambda x, rng: narrow_band(x, 4000),
        "a second of silence added on both sides": add_silence,
        f"silence around the speech cut off but for {EDGE_S:g} s": cut_silence,
        "someone else talking, 15 dB weaker": lambda x, rng: add_noise(x, talkers(rng, 1), 15, rng=rng),
        "four others talking, 10 dB weaker together": lambda x, rng: add_noise(x, talkers(rng, 4), 10, rng=rng),
        "white noise, 15 dB weaker": lambda x, rng: add_noise(x, rng.standard_normal(len(x)).astype(np.float32), 15, rng=rng),
        "hum of 50 Hz and its multiples, as loud as the speech": lambda x, rng: add_noise(x, hum(len(x)), 0, rng=rng),
        "a room with 0.5 s of reverberation, as loud as the direct sound": lambda x, rng: reverberate(x, 0.5, 0, rng=rng),
        "too loud: 3 % of the samples clipped": lambda x, rng: np.clip(x, -np.quantile(abs(x), 0.97), np.quantile(abs(x), 0.97)),
    }


def hum(num_samples: int) -> np.ndarray:
    """Return what mains electricity sounds like (N,)."""
    phases = 2 * np.pi * 50 * np.arange(num_samples) / SAMPLE_RATE
    waveform: np.ndarray = np.sum([np.sin(n * phases) / n for n in range(1, 6)], axis=0)
    return waveform.astype(np.float32)


def add_silence(waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the waveform (N,) between repetitions of its quietest 0.2 s, forwards and backwards."""
    length = SAMPLE_RATE // 5
    powers = [float(np.mean(waveform[i : i + length] ** 2)) for i in range(0, max(len(waveform) - length, 1), FRAME)]
    quiet = waveform[(start := int(np.argmin(powers)) * FRAME) : start + length]
    silence = np.resize(np.concatenate([quiet, quiet[::-1]]), int(SILENCE_S * SAMPLE_RATE))
    return np.concatenate([silence, waveform, silence])


def cut_silence(waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the waveform (N,) without what is quieter than its speech at its ends."""
    num_frames = len(waveform) // FRAME
    levels = 10 * np.log10(np.mean(waveform[: num_frames * FRAME].reshape(num_frames, FRAME) ** 2, axis=1) + 1e-10)
    loud = np.flatnonzero(levels > max(np.percentile(levels, 95) - LOUD_DB, np.percentile(levels, 5) + 6))
    if not len(loud):
        return waveform
    edge = int(EDGE_S * SAMPLE_RATE)
    return waveform[max(loud[0] * FRAME - edge, 0) : (loud[-1] + 1) * FRAME + edge]


class Changed:
    """A transcriber that hears each waveform under a condition, whose chances depend on the waveform's length alone."""

    def __init__(self, transcriber: Transcriber, condition: Condition) -> None:
        self.transcriber, self.condition, self.name = transcriber, condition, transcriber.name

    def transcribe_batch(self, waveforms: Sequence[np.ndarray]) -> list[Transcript]:
        changed = [self.condition(waveform, np.random.default_rng(len(waveform))) for waveform in waveforms]
        return self.transcriber.transcribe_batch([waveform.astype(np.float32) for waveform in changed])


if __name__ == "__main__":
    main()
