"""Facts about voices: an utterance gets another's, keeps its own content, and a run with them resumes as it went on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_teacher import taught
from test_train import train_until, weights_hash
from torch.nn import functional as F

from asr.train import TrainConfig, TrainingError, train
from asr.voices import Voices, VoicesError, at_rate, load

Tones = Callable[..., Path]
HOP = 4
FRAMES = 200


def made_up(num_mels: int = 40, size: int = 4) -> Voices:
    """Voices of two numbers, of a teacher's frames of `size` numbers."""
    torch.manual_seed(0)
    return Voices(torch.randn(size), torch.randn(size, 3), torch.randn(4, num_mels), torch.randn(2, 4, num_mels))


def with_voices(config: TrainConfig, path: Path) -> TrainConfig:
    return dataclasses.replace(config, voices=str(path), augment=dataclasses.replace(config.augment, voice_change=1.0))


def said(voices: Voices, frames: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Return what voices of `numbers` (B, 2) make of a teacher's frames (B, T', 4), at the features' rate."""
    content = voices.content(frames)
    slow = content @ voices.common + torch.einsum("br,btc,rcm->btm", numbers, content, voices.basis)
    return F.interpolate(slow.transpose(1, 2), scale_factor=HOP, mode="linear").transpose(1, 2)


def test_an_utterance_is_said_in_another_ones_voice() -> None:
    voices, numbers = made_up(), torch.tensor([[1.0, -0.5], [-1.0, 2.0]])
    frames = torch.randn(2, FRAMES // 8, 4).repeat_interleave(8, dim=1)
    features, swapped = said(voices, frames, numbers), said(voices, frames, numbers.flip(0))
    lengths, frame_lengths, others = torch.tensor([FRAMES * HOP] * 2), torch.tensor([FRAMES] * 2), torch.tensor([1, 0])
    options = {"hop": HOP, "others": others}
    heard = voices(features, lengths, frames, frame_lengths, strengths=torch.ones(2), **options)
    assert (heard - swapped).square().mean() < 0.01 * (features - swapped).square().mean()
    assert torch.equal(voices(features, lengths, frames, frame_lengths, strengths=torch.zeros(2), **options), features)
    numbers_heard, _ = voices.estimate(at_rate(heard, HOP), voices.content(frames))
    assert torch.allclose(numbers_heard, numbers.flip(0), atol=0.1)


def test_what_follows_an_utterance_is_left_alone_and_does_not_matter() -> None:
    voices = made_up()
    frames, features = torch.randn(2, FRAMES, 4), torch.randn(2, FRAMES * HOP + 3, 40)
    lengths, frame_lengths = torch.tensor([500, 803]), torch.tensor([124, 200])
    options = {"hop": HOP, "others": torch.tensor([1, 0]), "strengths": torch.tensor([1.0, 1.0])}
    heard = voices(features, lengths, frames, frame_lengths, **options)
    assert torch.equal(heard[0, 500:], features[0, 500:])
    assert not torch.allclose(heard[0, :500], features[0, :500], atol=0.1)
    features[0, 500:], frames[0, 124:] = 7.0, 7.0
    assert torch.allclose(voices(features, lengths, frames, frame_lengths, **options)[:, :496], heard[:, :496], atol=1e-4)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    save_file({"mean": torch.zeros(3)}, tmp_path / "v.safetensors")
    for name in ("v.safetensors", "gone.safetensors"):
        with pytest.raises(VoicesError, match=rf"{name}.*voices\.py"):
            load(tmp_path / name)


def test_a_run_with_voices_differs_and_resumed_ends_with_the_same_weights(tones: Tones, tmp_path: Path) -> None:
    save_file(made_up().state_dict(), tmp_path / "v.safetensors")
    alone = taught(tones(), tmp_path / "teacher")
    config = with_voices(alone, tmp_path / "v.safetensors")
    train(alone, tmp_path / "alone")
    train(config, tmp_path / "whole")
    train_until(3, config, tmp_path / "stopped")
    train(config, tmp_path / "stopped", resume=True)
    assert weights_hash(tmp_path / "stopped") == weights_hash(tmp_path / "whole") != weights_hash(tmp_path / "alone")


def test_voices_of_other_frames_are_refused(tones: Tones, tmp_path: Path) -> None:
    save_file(made_up(80, size=5).state_dict(), tmp_path / "v.safetensors")
    config = with_voices(taught(tones(), tmp_path / "teacher"), tmp_path / "v.safetensors")
    with pytest.raises(TrainingError, match="5 numbers of a teacher and 80 mel bins, the teacher's here have 4"):
        train(config, tmp_path / "run")
    with pytest.raises(TrainingError, match="have 0"):
        train(dataclasses.replace(config, teacher=""), tmp_path / "run")
    with pytest.raises(TrainingError, match="found '' for 1"):
        dataclasses.replace(config, voices="")
