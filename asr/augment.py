"""Augmentation: speed, rooms, noise and narrow bands on waveforms (numpy), frequency warps, silence and SpecAugment on features (torch). All of it from an explicit seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from asr.audio import SAMPLE_RATE
from asr.features import inside
from asr.logmel import FeatureConfig, mel_edges

_SPEED_STEP = 100  # speed factors are whole hundredths: soxr wants a ratio of integers


@dataclass(frozen=True)
class AugmentConfig:
    """What training does to an utterance.

    speeds: factors drawn from uniformly (Ko et al. 2015). noise_probability: share of utterances that get noise, at a signal-to-noise
    ratio drawn from noise_snr_db. speech_probability: share in whose background one to four other utterances are heard, speech_snr_db
    weaker in all. reverb_probability: share that gets the reverberation of a made-up room, with a reverberation time drawn
    from reverb_rt60_s and direct sound reverb_direct_db stronger than what follows it. band_probability: share that loses what is above a
    frequency drawn from band_hz, as over a telephone. freq_warp: largest share by which frequencies are moved
    up or down, as if the vocal tract were shorter or longer (Jaitly & Hinton 2013). silence_tilt: how much less or more silent frames count in the
    means that features are normalised by, as if the recording were cut closer to the speech or less so, drawn from -silence_tilt to silence_tilt
    (see weigh_silence). voice_change: how much of the difference to another voice an utterance gets, drawn from 0 to voice_change (asr/voices.py).
    SpecAugment (Park et al. 2019): freq_masks masks of up to freq_width mel bins; time masks of up to
    time_width frames, time_masks_per_s of them a second (at least one), never more than time_share of the utterance in all.
    """

    speeds: tuple[float, ...] = (0.9, 1.0, 1.1)
    noise_probability: float = 0.0
    noise_snr_db: tuple[float, float] = (5.0, 30.0)
    speech_probability: float = 0.0
    speech_snr_db: tuple[float, float] = (8.0, 30.0)
    reverb_probability: float = 0.0
    reverb_rt60_s: tuple[float, float] = (0.1, 0.6)
    reverb_direct_db: tuple[float, float] = (-3.0, 15.0)
    band_probability: float = 0.0
    band_hz: tuple[float, float] = (3500.0, 7000.0)
    freq_warp: float = 0.0
    silence_tilt: float = 0.0
    voice_change: float = 0.0
    freq_masks: int = 2
    freq_width: int = 27
    time_masks_per_s: float = 0.4
    time_width: int = 40
    time_share: float = 0.3

    def __post_init__(self) -> None:
        if not self.speeds or not all(0.5 <= speed <= 2 for speed in self.speeds):
            raise ValueError(f"speeds: expected factors between 0.5 and 2, found {self.speeds!r}")
        for name in ("noise_probability", "speech_probability", "reverb_probability", "band_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected 0 to 1, found {getattr(self, name)!r}")
        if not 0 <= self.freq_warp <= 0.5:
            raise ValueError(f"freq_warp: expected 0 to 0.5, found {self.freq_warp!r}")
        if not 500 <= self.band_hz[0] <= self.band_hz[1] <= SAMPLE_RATE / 2:
            raise ValueError(f"band_hz: expected two frequencies between 500 and {SAMPLE_RATE // 2} Hz, the lower first, found {self.band_hz!r}")
        for name in ("silence_tilt", "voice_change"):
            if not 0 <= getattr(self, name) <= 2:
                raise ValueError(f"{name}: expected 0 to 2, found {getattr(self, name)!r}")


def change_speed(waveform: np.ndarray, factor: float) -> np.ndarray:
    """Return the waveform (N,) played `factor` times as fast, pitch included: (N / factor,)."""
    if factor == 1.0:
        return waveform
    import soxr

    faster: np.ndarray = soxr.resample(waveform, round(factor * _SPEED_STEP), _SPEED_STEP, quality="MQ")
    return faster


def narrow_band(waveform: np.ndarray, highest_hz: float) -> np.ndarray:
    """Return the waveform (N,) without what is above highest_hz, as from a recording with twice as many samples a second."""
    import soxr

    rate = round(2 * highest_hz)
    narrow: np.ndarray = soxr.resample(soxr.resample(waveform, SAMPLE_RATE, rate, quality="MQ"), rate, SAMPLE_RATE, quality="MQ")
    return np.pad(narrow[: len(waveform)], (0, max(len(waveform) - len(narrow), 0)))


def mix(waveforms: Sequence[np.ndarray], num_samples: int) -> np.ndarray:
    """Return what several waveforms, made equally loud, sound like at once (num_samples,), each cut or repeated."""
    mixed = np.zeros(num_samples, np.float32)
    for waveform in waveforms:
        mixed += np.resize(waveform, num_samples) / max(float(np.sqrt(np.mean(waveform**2))), 1e-6)
    return mixed


def add_noise(waveform: np.ndarray, noise: np.ndarray, snr_db: float, *, rng: np.random.Generator) -> np.ndarray:
    """Return the waveform (N,) with a random stretch of `noise`, repeated if short, at a signal-to-noise ratio of `snr_db`."""
    start = int(rng.integers(len(noise)))
    stretch = np.take(noise, np.arange(start, start + len(waveform)), mode="wrap")
    signal_power, noise_power = float(np.mean(waveform**2)), float(np.mean(stretch**2))
    if signal_power == 0 or noise_power == 0:
        return waveform
    gain = np.sqrt(signal_power / noise_power / 10 ** (snr_db / 10))
    return (waveform + np.float32(gain) * stretch).astype(np.float32)


def reverberate(waveform: np.ndarray, rt60_s: float, direct_db: float, *, rng: np.random.Generator) -> np.ndarray:
    """Return the waveform (N,) as it sounds in a room: followed by noise that decays by 60 dB in rt60_s seconds (Polack's model, 1988).

    direct_db: energy of the direct sound over that of the reverberation.
    """
    length = max(int(rt60_s * SAMPLE_RATE), 1)
    tail = rng.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
    response = np.concatenate([[1.0], tail * np.sqrt(10 ** (-direct_db / 10) / np.sum(tail**2))])
    size = 1 << (len(waveform) + len(response) - 1).bit_length()
    wet = np.fft.irfft(np.fft.rfft(waveform, size) * np.fft.rfft(response, size), size)
    return wet[: len(waveform)].astype(np.float32)


def coloured_noise(num_samples: int, exponent: float, *, rng: np.random.Generator) -> np.ndarray:
    """Return noise (N,) whose power falls as 1 / f^exponent: 0 white, 1 pink, 2 brown."""
    spectrum = rng.standard_normal(num_samples // 2 + 1) + 1j * rng.standard_normal(num_samples // 2 + 1)
    spectrum /= np.maximum(np.arange(len(spectrum)), 1) ** (exponent / 2)
    spectrum[0] = 0
    return np.fft.irfft(spectrum, num_samples).astype(np.float32)


def augment_waveform(
    waveform: np.ndarray,
    config: AugmentConfig,
    *,
    noises: list[np.ndarray],
    rng: np.random.Generator,
    fastest_speed: float = np.inf,
) -> np.ndarray:
    """Return the waveform (N,) at a drawn speed and, now and then, in a room, in noise (one of `noises`, or coloured noise made on the spot), without its
    high frequencies.

    A drawn speed above fastest_speed (and above 1) becomes 1.
    """
    speed = config.speeds[int(rng.integers(len(config.speeds)))]
    waveform = change_speed(waveform, speed if speed <= max(fastest_speed, 1.0) else 1.0)
    if config.reverb_probability and rng.random() < config.reverb_probability:
        waveform = reverberate(waveform, rng.uniform(*config.reverb_rt60_s), rng.uniform(*config.reverb_direct_db), rng=rng)
    if rng.random() < config.noise_probability:
        kind = int(rng.integers(len(noises) + 1))
        noise = noises[kind] if kind < len(noises) else coloured_noise(max(len(waveform), 2), rng.uniform(0, 2), rng=rng)
        waveform = add_noise(waveform, noise, rng.uniform(*config.noise_snr_db), rng=rng)
    if config.band_probability and rng.random() < config.band_probability:
        waveform = narrow_band(waveform, rng.uniform(*config.band_hz))
    return waveform


def warp_frequencies(features: Tensor, factors: np.ndarray, config: FeatureConfig) -> Tensor:
    """Return features (B, T, M) whose bin at f Hz is what was at f times the utterance's factor, of `factors` (B,), between bins a straight line."""
    centres = mel_edges(config)[1:-1]
    places = np.interp(factors[:, None] * centres, centres, np.arange(config.num_mels))  # (B, M) in bins
    weights = np.maximum(0, 1 - np.abs(places[:, None, :] - np.arange(config.num_mels)[:, None]))  # (B, M of before, M)
    return features @ torch.from_numpy(weights).to(features)


def weigh_silence(features: Tensor, lengths: Tensor, tilts: np.ndarray) -> Tensor:
    """Return normalised features (B, T, M) normalised anew, a frame counting exp(tilt e) times, for tilts (B,) of either sign.

    lengths: (B,) in frames. e: the frame's mean over the bins, itself with a mean of 0 and a variance of 1. A tilt of 0.3 does about what cutting off a
    second of silence does, one of -0.3 what adding it does.
    """
    within = inside(lengths, features.shape[1])  # (B, T)
    count = lengths[:, None]
    loudness = features.mean(dim=2)  # (B, T)
    loudness = (loudness - (loudness * within).sum(dim=1, keepdim=True) / count) * within
    loudness = loudness / (loudness.square().sum(dim=1, keepdim=True) / count).sqrt().clamp(min=1e-3)
    weights = (torch.from_numpy(tilts).to(features)[:, None] * loudness).exp() * within
    weights = (weights / weights.sum(dim=1, keepdim=True))[..., None]
    centred = features - (weights * features).sum(dim=1, keepdim=True)
    std = (weights * centred.square()).sum(dim=1, keepdim=True).sqrt()
    return centred / std.clamp(min=0.1) * within[..., None]


def spec_augment(
    features: Tensor, lengths: Tensor, config: AugmentConfig, *, rng: np.random.Generator, frames_per_s: float = 100.0, scale: float = 1.0
) -> Tensor:
    """Return features (B, T, M) with bands of mel bins and stretches of time set to 0, the mean after normalisation.

    lengths: (B,) in frames. scale: multiplies the number of time masks and their share (CR-CTC wants 2.5, Yao et al. 2024).
    """
    batch, num_frames, num_mels = features.shape
    keep = np.ones((batch, num_frames, num_mels), bool)
    for b, length in enumerate(lengths.tolist()):
        for _ in range(config.freq_masks):
            width = int(rng.integers(min(config.freq_width, num_mels) + 1))
            first = int(rng.integers(num_mels - width + 1))
            keep[b, :, first : first + width] = False
        left = int(min(config.time_share * scale, 0.7) * length)
        for _ in range(max(1, round(config.time_masks_per_s * scale * length / frames_per_s)) if config.time_masks_per_s else 0):
            width = int(rng.integers(min(config.time_width, left) + 1))
            first = int(rng.integers(length - width + 1))
            keep[b, first : first + width] = False
            left -= width
    return features * torch.from_numpy(keep).to(features.device)
