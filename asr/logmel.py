"""The log-mel spectrogram in numpy, and its settings: what recognition needs when torch is not there.

`asr.features.LogMel` is the same thing for training, batched and on any device; a test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

BLOCK_FRAMES = 128  # frames transformed at once: they stay in a core's cache
PRODUCT_FRAMES = 8  # multiplied by the filters at once: so few that BLAS does not wake its threads, which cost more than they bring
NORMALISATIONS = ("utterance", "running")


@dataclass(frozen=True)
class FeatureConfig:
    """Settings of the log-mel front-end. Times in samples, frequencies in Hz.

    Frame t is centred on sample t * hop_length; the waveform is taken to be zero outside itself (librosa's default padding).
    log_floor: smallest mel power, before the logarithm. min_std: smallest standard deviation divided by in the normalisation.
    normalisation: over the whole "utterance", or "running", over the frames so far, for live recognition. The running one starts as if
    prior_frames frames with a mean of prior_mean and a standard deviation of prior_std, which are speech's, had come before.
    Raises ValueError for settings that make no spectrogram.
    """

    sample_rate: int = 16_000
    num_mels: int = 80
    window_length: int = 400
    hop_length: int = 160
    fft_length: int = 512
    min_frequency: float = 20.0
    max_frequency: float = 8_000.0
    log_floor: float = 1e-5
    min_std: float = 1e-2
    normalisation: str = "utterance"
    prior_mean: float = -6.0
    prior_std: float = 4.0
    prior_frames: int = 100

    def __post_init__(self) -> None:
        for name in ("sample_rate", "num_mels", "window_length", "hop_length", "fft_length"):
            if not 1 <= getattr(self, name) <= 1_000_000:
                raise ValueError(f"{name}: expected 1 to 1000000, found {getattr(self, name)!r}")
        if self.window_length > self.fft_length:
            raise ValueError(f"window_length: expected at most the fft_length of {self.fft_length}, found {self.window_length!r}")
        if not 0 <= self.min_frequency < self.max_frequency <= self.sample_rate / 2:
            raise ValueError(
                f"min_frequency, max_frequency: expected 0 <= min < max <= {self.sample_rate / 2:g} Hz, found "
                f"{self.min_frequency!r} and {self.max_frequency!r}"
            )
        if self.normalisation not in NORMALISATIONS:
            raise ValueError(f"normalisation: expected one of {', '.join(NORMALISATIONS)}, found {self.normalisation!r}")
        if not 1 <= self.prior_frames <= 1_000_000 or not -1e3 < self.prior_mean < 1e3:
            raise ValueError(f"prior_frames, prior_mean: expected 1 to 1000000 and -1000 to 1000, found {self.prior_frames!r} and {self.prior_mean!r}")
        for name in ("log_floor", "min_std", "prior_std"):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"{name}: expected more than 0, found {getattr(self, name)!r}")


def num_frames(num_samples: int, config: FeatureConfig) -> int:
    """Return the number of feature frames of `num_samples` samples: one a hop, the first centred on sample 0; also on tensors."""
    return num_samples // config.hop_length + 1


def mel_edges(config: FeatureConfig) -> np.ndarray:
    """Return frequencies (M + 2,) in Hz, equally spaced on the HTK mel scale; bin m rises from edge m to m + 1 and falls from there to m + 2."""
    mel_low, mel_high = (2595 * np.log10(1 + f / 700) for f in (config.min_frequency, config.max_frequency))
    edges: np.ndarray = 700 * (10 ** (np.linspace(mel_low, mel_high, config.num_mels + 2) / 2595) - 1)
    return edges


def mel_filters(config: FeatureConfig) -> np.ndarray:
    """Return triangular filters (F, M), F = fft_length / 2 + 1, with the edges of mel_edges and peaks of height 1."""
    frequencies = np.linspace(0, config.sample_rate / 2, config.fft_length // 2 + 1)
    edges = mel_edges(config)
    rising = (frequencies[:, None] - edges[None, :-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[None, 2:] - frequencies[:, None]) / (edges[2:] - edges[1:-1])
    filters: np.ndarray = np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)
    return filters


def log_mel(waveform: np.ndarray, config: FeatureConfig) -> np.ndarray:
    """Return normalised log-mel features (T, M) float32 of a waveform (N,) float32, T = num_frames(N)."""
    if config.normalisation == "running":
        return LogMelStream(config).push(waveform, last=True)
    return normalise(_log_mel_windows(np.pad(waveform, config.fft_length // 2), config), config)


class LogMelStream:
    """log_mel of a waveform that comes piece by piece: the frames of all pieces, put together, are those of the whole.

    Raises ValueError for settings whose normalisation is not "running".
    """

    def __init__(self, config: FeatureConfig) -> None:
        if config.normalisation != "running":
            raise ValueError(f"expected features of running normalisation in a stream, found {config.normalisation!r}")
        self.config = config
        self._held = np.zeros(config.fft_length // 2, np.float32)  # from the first sample of the next frame's window on
        self._count = float(config.prior_frames)
        self._sum = np.zeros(config.num_mels)  # of the differences from prior_mean, over _count frames
        self._square_sum = np.full(config.num_mels, config.prior_frames * config.prior_std**2)

    def push(self, samples: np.ndarray, *, last: bool = False) -> np.ndarray:
        """Return the features (t, M) of the frames that `samples` (n,) complete, 16 ms after their centre; `last`: also of those at the end."""
        padding = np.zeros(self.config.fft_length // 2 if last else 0, np.float32)
        self._held = np.concatenate([self._held, samples, padding])
        logs = _log_mel_windows(self._held, self.config)
        self._held = self._held[len(logs) * self.config.hop_length :]
        return self._normalise(logs)

    def _normalise(self, logs: np.ndarray) -> np.ndarray:
        """Normalise each of the next frames (t, M) over those up to it, itself and the prior's included."""
        differences = logs.astype(np.float64) - self.config.prior_mean
        counts = self._count + np.arange(1, len(logs) + 1)[:, None]  # (t, 1)
        sums = self._sum + differences.cumsum(axis=0)
        square_sums = self._square_sum + (differences**2).cumsum(axis=0)
        if len(logs):
            self._count, self._sum, self._square_sum = float(counts[-1, 0]), sums[-1], square_sums[-1]
        means = sums / counts
        stds = np.sqrt(np.maximum(square_sums / counts - means**2, self.config.min_std**2))
        normalised: np.ndarray = ((differences - means) / stds).astype(np.float32)
        return normalised


def _log_mel_windows(padded: np.ndarray, config: FeatureConfig) -> np.ndarray:
    """Return the log-mel (T, M) of all the whole windows of fft_length in `padded` (N,), a hop apart."""
    if len(padded) < config.fft_length:
        return np.zeros((0, config.num_mels), np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(padded, config.fft_length)[:: config.hop_length]  # (T, fft)
    num = len(windows)
    window, filters = _window(config), _filters(config)
    mel = np.empty((num, config.num_mels), np.float32)
    power = np.zeros((-(-BLOCK_FRAMES // PRODUCT_FRAMES), PRODUCT_FRAMES, len(filters)), np.float32)
    for first in range(0, num, BLOCK_FRAMES):
        spectrum = np.fft.rfft(windows[first : first + BLOCK_FRAMES] * window)  # (t, F)
        power.reshape(-1, len(filters))[: len(spectrum)] = spectrum.real**2 + spectrum.imag**2
        mel[first : first + BLOCK_FRAMES] = (power @ filters).reshape(-1, config.num_mels)[: len(spectrum)]
    logs: np.ndarray = np.log(np.maximum(mel, config.log_floor))
    return logs


def normalise(features: np.ndarray, config: FeatureConfig) -> np.ndarray:
    """Return features (T, M) with every mel bin shifted to mean 0 and scaled to standard deviation 1 over the utterance."""
    mean, std = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    normalised: np.ndarray = ((features - mean) / np.maximum(std, config.min_std)).astype(np.float32)
    return normalised


@lru_cache(maxsize=4)
def _filters(config: FeatureConfig) -> np.ndarray:
    return mel_filters(config)


@lru_cache(maxsize=4)
def _window(config: FeatureConfig) -> np.ndarray:
    """A periodic Hann window of window_length in the middle of fft_length."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(config.window_length) / config.window_length)
    left = (config.fft_length - config.window_length) // 2
    return np.pad(hann, (left, config.fft_length - config.window_length - left)).astype(np.float32)
