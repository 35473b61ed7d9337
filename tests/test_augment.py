"""Facts about augmentation. Oracles: lengths, powers and frequencies that can be computed; equality under the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from asr.augment import (
    AugmentConfig,
    add_noise,
    augment_waveform,
    change_speed,
    coloured_noise,
    narrow_band,
    reverberate,
    spec_augment,
    warp_frequencies,
    weigh_silence,
)
from asr.features import LogMel
from asr.logmel import FeatureConfig

TONE = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
NO_NOISE: list[np.ndarray] = []


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1, 1.5])
def test_speed_divides_the_length_and_multiplies_the_frequency(factor: float) -> None:
    faster = change_speed(TONE, factor)
    assert abs(len(faster) - 16_000 / factor) <= 1 and faster.dtype == np.float32
    spectrum = np.abs(np.fft.rfft(faster * np.hanning(len(faster))))
    assert spectrum.argmax() * 16_000 / len(faster) == pytest.approx(1000 * factor, abs=2)


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 10.0, 30.0])
def test_noise_has_the_power_that_the_ratio_says(snr_db: float) -> None:
    rng = np.random.default_rng(0)
    added = add_noise(TONE, rng.standard_normal(700).astype(np.float32), snr_db, rng=rng) - TONE
    assert 10 * np.log10(np.mean(TONE**2) / np.mean(added**2)) == pytest.approx(snr_db, abs=0.01)


def test_silence_and_silent_noise_stay_as_they_are() -> None:
    rng = np.random.default_rng(0)
    assert np.array_equal(add_noise(np.zeros(100, np.float32), TONE, 10, rng=rng), np.zeros(100, np.float32))
    assert np.array_equal(add_noise(TONE, np.zeros(100, np.float32), 10, rng=rng), TONE)


@pytest.mark.parametrize("direct_db", [-3.0, 10.0])
def test_a_click_in_a_room_decays_by_60_db_in_the_reverberation_time(direct_db: float) -> None:
    click = np.zeros(16_000, np.float32)
    click[0] = 1
    heard = reverberate(click, 0.5, direct_db, rng=np.random.default_rng(0))
    assert len(heard) == 16_000 and heard.dtype == np.float32 and heard[0] == pytest.approx(1, abs=1e-5)
    assert 10 * np.log10(np.sum(heard[1:].astype(float) ** 2)) == pytest.approx(-direct_db, abs=0.01)
    levels = 10 * np.log10([np.mean(heard[start : start + 1600].astype(float) ** 2) for start in (1, 4801)])
    assert levels[0] - levels[1] == pytest.approx(60 * 4800 / 8000, abs=2)
    assert np.abs(heard[8010:]).max() < 1e-6


def test_a_room_can_be_asked_for_and_changes_the_waveform() -> None:
    config = AugmentConfig(speeds=(1.0,), reverb_probability=1.0)
    heard = augment_waveform(TONE, config, noises=NO_NOISE, rng=np.random.default_rng(0))
    assert len(heard) == len(TONE) and not np.allclose(heard, TONE, atol=1e-3)


@pytest.mark.parametrize("highest_hz", [3500.3, 5000.0, 8000.0])
def test_a_narrow_band_keeps_what_is_below_and_loses_what_is_above(highest_hz: float) -> None:
    noise = np.random.default_rng(0).standard_normal(20_001).astype(np.float32)
    heard = narrow_band(noise, highest_hz)
    assert len(heard) == len(noise) and heard.dtype == np.float32
    frequencies, power = np.fft.rfftfreq(len(noise), 1 / 16_000), np.abs(np.fft.rfft(heard)) ** 2 / len(noise)
    assert power[frequencies < 0.8 * highest_hz].mean() == pytest.approx(1, abs=0.1)
    assert not (power[frequencies > 1.01 * highest_hz] > 0.05).any()
    config = AugmentConfig(speeds=(1.0,), band_probability=1.0, band_hz=(highest_hz, highest_hz))
    assert np.array_equal(augment_waveform(noise, config, noises=NO_NOISE, rng=np.random.default_rng(0)), heard)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_the_power_of_coloured_noise_falls_with_the_exponent(exponent: float) -> None:
    power = np.abs(np.fft.rfft(coloured_noise(2**16, exponent, rng=np.random.default_rng(0)))) ** 2
    low, high = power[100:200].mean(), power[10_000:20_000].mean()  # 100 times the frequency
    assert np.log(low / high) / np.log(100) == pytest.approx(exponent, abs=0.1)


def test_the_seed_alone_decides() -> None:
    config = AugmentConfig(noise_probability=0.5)
    draws = [augment_waveform(TONE, config, noises=[TONE[:100]], rng=np.random.default_rng(seed)) for seed in (1, 2, 3, 4, 1, 2, 3, 4)]
    assert all(np.array_equal(a, b) for a, b in zip(draws[:4], draws[4:], strict=True))
    assert len({draw.tobytes() for draw in draws[:4]}) > 1


def test_all_speeds_are_drawn_and_none_too_fast_for_the_text() -> None:
    rng = np.random.default_rng(0)
    lengths = {len(augment_waveform(TONE, AugmentConfig(), noises=NO_NOISE, rng=rng)) for _ in range(50)}
    assert len(lengths) == 3
    limited = {len(augment_waveform(TONE, AugmentConfig(), noises=NO_NOISE, rng=rng, fastest_speed=1.05)) for _ in range(50)}
    assert limited == {16_000, max(lengths)}


def test_short_waveforms_survive() -> None:
    config = AugmentConfig(noise_probability=1.0)
    for num_samples in (1, 2, 3, 10):
        for seed in range(10):
            waveform = augment_waveform(TONE[:num_samples] + 1, config, noises=NO_NOISE, rng=np.random.default_rng(seed))
            assert np.isfinite(waveform).all()


def masked(config: AugmentConfig, lengths: list[int], *, seed: int, scale: float = 1.0) -> np.ndarray:
    features = torch.ones(len(lengths), max(lengths), 80)
    return np.asarray(spec_augment(features, torch.tensor(lengths), config, rng=np.random.default_rng(seed), scale=scale))


def test_spec_augment_is_a_function_of_the_seed() -> None:
    assert np.array_equal(masked(AugmentConfig(), [300, 100], seed=1), masked(AugmentConfig(), [300, 100], seed=1))
    assert not np.array_equal(masked(AugmentConfig(), [300, 100], seed=1), masked(AugmentConfig(), [300, 100], seed=2))


@pytest.mark.parametrize("seed", range(20))
def test_masks_keep_within_their_shares(seed: int) -> None:
    config = AugmentConfig(freq_masks=2, freq_width=10, time_share=0.3)
    for row, length in zip(masked(config, [1000, 200, 3, 1], seed=seed), (1000, 200, 3, 1), strict=True):
        bins = (row[:length] == 0).all(axis=0)
        assert bins.sum() <= 20
        frames = (row == 0).all(axis=1)
        assert frames[:length].sum() <= 0.3 * length and not frames[length:].any()


def test_without_masks_nothing_changes() -> None:
    assert masked(AugmentConfig(freq_masks=0, time_masks_per_s=0), [50], seed=0).all()


def test_masks_are_whole_bands_and_whole_stretches() -> None:
    row = masked(AugmentConfig(), [400], seed=3)[0] == 0
    assert np.array_equal(row, row.all(axis=1)[:, None] | row.all(axis=0)[None, :])


def test_a_warp_moves_a_tone_to_the_bin_of_its_new_frequency() -> None:
    config = FeatureConfig()
    time_s = np.arange(16_000) / 16_000
    tones = torch.from_numpy(np.stack([np.sin(2 * np.pi * f * time_s) for f in (900.0, 1000.0, 1100.0)]).astype(np.float32))
    features, _ = LogMel(config)(tones, torch.full((3,), 16_000))
    power = LogMel(config).mel(tones).mean(dim=2)  # (3, M): bins are told apart before their normalisation
    moved = warp_frequencies(power[1].log().expand(3, 1, -1), np.array([1 / 0.9, 1.0, 1 / 1.1]), config)
    assert (moved[:, 0].argmax(dim=1) - power.argmax(dim=1)).abs().max() <= 1
    assert torch.allclose(warp_frequencies(features, np.ones(3), config), features, atol=1e-5)


def test_weighing_silence_is_like_cutting_it_off_or_adding_it() -> None:
    rng = np.random.default_rng(0)
    speech, silence = (torch.from_numpy(rng.normal(m, s, (1, n, 80)).astype(np.float32)) for m, s, n in ((0.5, 0.5, 200), (-1.0, 0.2, 100)))
    heard = torch.cat([speech, silence], dim=1)

    def normalise(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(dim=1, keepdim=True)) / x.std(dim=1, keepdim=True)

    closer, wider = normalise(speech), normalise(torch.cat([speech, silence, silence], dim=1))[:, :200]
    padded = F.pad(normalise(heard), (0, 0, 0, 50))
    less, same, more = (weigh_silence(padded, torch.tensor([300]), np.array([tilt])) for tilt in (0.5, 0.0, -0.5))
    assert torch.allclose(same, padded, atol=0.01) and not less[:, 300:].any()
    assert less[:, :200].mean() < same[:, :200].mean() < more[:, :200].mean()
    for like, tilted in ((closer, less), (wider, more)):
        assert (like - tilted[:, :200]).abs().mean() < (like - same[:, :200]).abs().mean()
    pair = weigh_silence(torch.cat([padded, padded]), torch.tensor([300, 200]), np.array([0.5, 0.5]))
    assert torch.equal(pair[0], less[0])


@pytest.mark.parametrize("wrong", [{"speeds": ()}, {"speeds": (0.1,)}, {"freq_warp": 0.6}, {"silence_tilt": 3.0}, {"noise_probability": 1.5}, {"reverb_probability": -0.1}, {"speech_probability": 2.0}, {"band_hz": (4000.0, 3000.0)}, {"band_hz": (4000.0, 9000.0)}, {"voice_change": -1.0}])
def test_absurd_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AugmentConfig(**wrong)  # type: ignore[arg-type]
