"""Facts about a teacher's frames: each utterance gets its own, at its speed, and a network learns to foretell them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from test_train import small_config, train_until, weights_hash

from asr.checkpoint import load_training_state
from asr.manifest import Utterance, read_manifest
from asr.model import AcousticModel, ModelConfig
from asr.teacher import FRAMES_NAME, Student, TeacherError, TeacherFrames, teacher_loss, write_index
from asr.train import TrainConfig, TrainingError, train

Tones = Callable[..., Path]
RATE = 25.0


@pytest.fixture
def counted(tmp_path: Path) -> Path:
    """A folder whose frames are their own numbers: 100 of a.wav from 0 s on, 50 of it from 5 s on."""
    pieces = [(Utterance(str(tmp_path / "a.wav"), 4.0, "a"), 0), (Utterance(str(tmp_path / "a.wav"), 2.0, "b", offset=5.0), 100)]
    np.save(tmp_path / FRAMES_NAME, np.arange(150, dtype=np.float16)[:, None])
    write_index(tmp_path, pieces, RATE)
    return tmp_path


def test_an_utterance_gets_the_frames_of_its_time_at_its_speed(counted: Path) -> None:
    teacher = TeacherFrames(counted)
    whole = Utterance(str(counted / "a.wav"), 4.0, "a")
    assert teacher.size == 1 and teacher.rate == RATE
    assert teacher.read(whole)[:, 0].tolist() == list(range(100))
    assert teacher.read(whole, 2.0)[:, 0].tolist() == list(range(0, 100, 2))
    assert teacher.read(whole, 0.5)[:6, 0].tolist() == [0, 0, 1, 1, 2, 2]
    part = dataclasses.replace(whole, offset=5.4, duration=0.4)
    assert teacher.read(part)[:, 0].tolist() == list(range(110, 120))


@pytest.mark.parametrize(("name", "offset", "duration"), [("b.wav", 0.0, 1.0), ("a.wav", 3.5, 1.0), ("a.wav", 4.9, 1.0)])
def test_speech_that_the_teacher_has_not_heard_is_named(counted: Path, name: str, offset: float, duration: float) -> None:
    with pytest.raises(TeacherError, match=f"'u7'.*{name}"):
        TeacherFrames(counted).read(Utterance(str(counted / name), duration, "a", offset=offset, id="u7"))


@pytest.mark.parametrize("text", ["", "{}", '{"frames_per_s": 25, "pieces": [1]}'])
def test_a_folder_without_frames_is_refused(counted: Path, text: str) -> None:
    (counted / "index.json").write_text(text)
    with pytest.raises(TeacherError, match=r"teacher\.py"):
        TeacherFrames(counted)


def test_the_loss_is_the_squared_error_within_the_lengths() -> None:
    estimate, frames = torch.randn(2, 7, 3), torch.randn(2, 5, 3)
    expected = sum(float(((estimate[b, :n] - frames[b, :n]) ** 2).mean(dim=-1).sum()) for b, n in ((0, 5), (1, 2)))
    assert float(teacher_loss(estimate, frames, torch.tensor([5, 2]))) == pytest.approx(expected, rel=1e-5)


def test_a_frame_can_be_foretold_late() -> None:
    estimate, frames = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    expected = float(((estimate[0, 3:] - frames[0, :2]) ** 2).mean(dim=-1).sum())  # of the second, shorter than the delay, there is none
    assert float(teacher_loss(estimate, frames, torch.tensor([5, 2]), delay=3)) == pytest.approx(expected, rel=1e-5)


def test_each_output_frame_of_a_network_has_its_foretold_one() -> None:
    config = ModelConfig(num_layers=1, hidden_size=8, conv_channels=8, subsampling=8, outputs_per_frame=2)
    student = Student(AcousticModel(config), 5)
    torch.nn.init.normal_(student.foretelling.bias)
    log_probs, lengths, foretold = student(torch.randn(2, 24, 80), torch.tensor([24, 16]))
    assert log_probs.shape == (2, 6, 29) and lengths.tolist() == [6, 4]
    assert torch.allclose(foretold, student.foretelling.bias.view(1, 2, 5).repeat(2, 3, 1))


def taught(manifest: Path, folder: Path, rate: float = RATE, **changes: object) -> TrainConfig:
    """A run with a teacher whose frames are four random numbers, the same throughout an utterance."""
    utterances = read_manifest(manifest)
    starts = np.cumsum([0] + [int(u.duration * RATE) + 1 for u in utterances])
    rng = np.random.default_rng(0)
    folder.mkdir()
    np.save(folder / FRAMES_NAME, np.concatenate([np.full((b - a, 4), rng.standard_normal(4)) for a, b in pairwise(starts)]))
    write_index(folder, zip(utterances, starts.tolist(), strict=False), rate)
    return small_config(manifest, teacher=str(folder), save_minutes=1e-9, **changes)


def test_a_network_learns_to_foretell_the_frames(tones: Tones, tmp_path: Path) -> None:
    config = taught(tones(), tmp_path / "teacher", epochs=20, teacher_weight=5.0)
    result = train(config, tmp_path / "run")
    losses = [row["loss"] for row in map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines()) if "loss" in row]
    train(dataclasses.replace(config, teacher=""), tmp_path / "alone")
    alone = [row["loss"] for row in map(json.loads, (tmp_path / "alone" / "log.jsonl").read_text().splitlines()) if "loss" in row]
    frames_per_token = (losses[0] - alone[0]) / 5.0  # the frames' variance is about 1, and all are foretold as 0 at first
    assert losses[-1] - alone[-1] < 0.5 * 5.0 * frames_per_token
    assert not any("foretelling" in name for name in (result.model_dir / "model.safetensors").read_bytes()[:4096].decode("latin1").split('"'))


def test_a_taught_run_resumed_ends_with_the_same_weights(tones: Tones, tmp_path: Path) -> None:
    config = taught(tones(), tmp_path / "teacher")
    train(config, tmp_path / "whole")
    train_until(3, config, tmp_path / "stopped")
    train(config, tmp_path / "stopped", resume=True)
    assert weights_hash(tmp_path / "stopped") == weights_hash(tmp_path / "whole")
    whole, stopped = (load_training_state(tmp_path / name)["foretelling"] for name in ("whole", "stopped"))
    assert whole["weight"].abs().sum() > 0 and torch.equal(whole["weight"], stopped["weight"])


def test_frames_at_another_rate_are_refused(tones: Tones, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="50 frames a second, the network 25"):
        train(taught(tones(), tmp_path / "teacher", rate=50.0), tmp_path / "run")
