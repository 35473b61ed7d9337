"""Facts about the log-mel: torch form against numpy form against librosa, and tones in the bins where they belong."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
import torch
from conftest import spoken_tones

from asr.features import LogMel
from asr.logmel import FeatureConfig, log_mel, mel_filters, normalise, num_frames

CONFIG = FeatureConfig()


def speech_like(duration_s: float = 3.0, seed: int = 0) -> np.ndarray:
    """Voiced and unvoiced stretches: a buzz of many harmonics and noise, loud and faint by turns, over a faint noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(duration_s * 16_000)) / 16_000
    buzz = sum(np.sin(2 * np.pi * 120 * k * t + 3 * np.sin(2 * np.pi * 2 * t)) / k for k in range(1, 40))
    voiced = np.sin(2 * np.pi * 1.5 * t) > 0
    signal = np.where(voiced, 0.2 * buzz, 0.05 * rng.standard_normal(len(t))) * (0.55 + 0.45 * np.sin(2 * np.pi * 0.7 * t))
    return (signal + 1e-3 * rng.standard_normal(len(t))).astype(np.float32)


def torch_log_mel(waveform: np.ndarray, config: FeatureConfig = CONFIG) -> np.ndarray:
    features, lengths = LogMel(config)(torch.from_numpy(waveform)[None], torch.tensor([len(waveform)]))
    assert lengths.tolist() == [features.shape[1]]
    return np.asarray(features[0])


@pytest.mark.parametrize("num_samples", [1, 2, 159, 160, 161, 399, 400, 401, 1600, 16_000, 48_003])
@pytest.mark.parametrize("config", [CONFIG, FeatureConfig(num_mels=40, window_length=320, hop_length=128, fft_length=512)])
def test_torch_and_numpy_agree_to_1e_4(num_samples: int, config: FeatureConfig) -> None:
    waveform = speech_like()[:num_samples]
    expected = log_mel(waveform, config)
    assert expected.shape == (num_frames(num_samples, config), config.num_mels)
    assert np.abs(torch_log_mel(waveform, config) - expected).max() < 1e-4


def test_numpy_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = log_mel(speech_like(), CONFIG)
    monkeypatch.setattr("asr.logmel.BLOCK_FRAMES", 7)
    assert np.abs(log_mel(speech_like(), CONFIG) - whole).max() < 1e-5


@pytest.mark.parametrize("waveform", [speech_like(), spoken_tones("go forward ten meters")])
def test_librosa_gives_the_same_to_1e_3_with_zeros_as_padding(waveform: np.ndarray) -> None:
    power = librosa.feature.melspectrogram(
        y=waveform, sr=16_000, n_fft=512, win_length=400, hop_length=160, n_mels=80, fmin=20, fmax=8000,
        center=True, pad_mode="constant", power=2.0, htk=True, norm=None,
    )  # fmt: skip
    logs = np.log(np.maximum(power.T, CONFIG.log_floor))  # (M, T) -> (T, M)
    expected = (logs - logs.mean(axis=0)) / np.maximum(logs.std(axis=0), CONFIG.min_std)
    assert np.abs(log_mel(waveform, CONFIG) - expected).max() < 1e-3
    assert np.abs(torch_log_mel(waveform) - expected).max() < 1e-3


def test_mel_filters_are_librosa_s() -> None:
    expected = librosa.filters.mel(sr=16_000, n_fft=512, n_mels=80, fmin=20, fmax=8000, htk=True, norm=None).T
    assert np.abs(mel_filters(CONFIG) - expected).max() < 1e-5


@pytest.mark.parametrize("frequency", [200.0, 440.0, 1000.0, 2500.0, 6000.0])
def test_a_tone_is_loudest_in_its_mel_bin(frequency: float) -> None:
    t = np.arange(16_000) / 16_000
    tone = np.where(t < 0.5, 0, np.sin(2 * np.pi * frequency * t)).astype(np.float32)  # silence first: the normalisation needs a contrast
    logs = log_mel(tone, FeatureConfig(min_std=1e6))  # no scaling: what is left is the logarithm less its mean
    mel = 2595 * np.log10(1 + frequency / 700)
    low, high = 2595 * np.log10(1 + 20 / 700), 2595 * np.log10(1 + 8000 / 700)
    expected = (mel - low) / (high - low) * 81 - 1
    assert abs(int(logs[75].argmax()) - expected) <= 1


def test_every_bin_has_mean_0_and_deviation_1() -> None:
    features = log_mel(speech_like(), CONFIG)
    assert np.abs(features.mean(axis=0)).max() < 1e-4
    assert np.abs(features.std(axis=0) - 1).max() < 1e-3


def test_silence_is_zero_and_finite() -> None:
    assert np.abs(log_mel(np.zeros(8000, np.float32), CONFIG)).max() < 1e-6
    assert np.abs(torch_log_mel(np.zeros(8000, np.float32))).max() < 1e-4
    assert np.array_equal(normalise(np.ones((3, 2)), CONFIG), np.zeros((3, 2)))


def test_padding_and_neighbours_do_not_change_an_utterance() -> None:
    rng = np.random.default_rng(0)
    lengths = [1, 159, 160, 161, 5000, 16_000]
    waveforms = [speech_like(seed=i)[:n] for i, n in enumerate(lengths)]
    batch = torch.from_numpy(rng.standard_normal((len(lengths), 20_000)).astype(np.float32))  # what stands beyond the lengths is noise
    for row, waveform in zip(batch, waveforms, strict=True):
        row[: len(waveform)] = torch.from_numpy(waveform)
    features, frames = LogMel(CONFIG)(batch, torch.tensor(lengths))
    assert frames.tolist() == [num_frames(n, CONFIG) for n in lengths]
    for row, count, waveform in zip(features, frames.tolist(), waveforms, strict=True):
        assert np.abs(np.asarray(row[:count]) - torch_log_mel(waveform)).max() < 1e-4
        assert not row[count:].any()


@pytest.mark.parametrize(
    "wrong",
    [
        {"hop_length": 0}, {"num_mels": -1}, {"window_length": 600}, {"max_frequency": 9000.0}, {"min_frequency": 8000.0},
        {"log_floor": 0.0}, {"min_std": float("nan")},
    ],
)  # fmt: skip
def test_settings_that_make_no_spectrogram_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FeatureConfig(**wrong)  # type: ignore[arg-type]
