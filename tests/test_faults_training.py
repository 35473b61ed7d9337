"""What training survives: bad numbers anywhere, absurd settings, kills, full disks, loader processes that die, files that vanish.

The oracle for what is lost is the run that nothing happened to: a resumed one ends with the same bits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import SENTENCES
from test_train import Stop, free_port, random_config, small_config, start_child, stop_at_step, train_until

import asr.data
import asr.train
from asr.audio import AudioError
from asr.checkpoint import load_model_folder, load_network, load_training_state
from asr.cli import main
from asr.manifest import Utterance
from asr.train import TrainConfig, TrainingError, train

Tones = Callable[..., Path]


@pytest.fixture(autouse=True)
def log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="asr.train")


def weights_hash(run_dir: Path) -> str:
    """Return a hash of all tensors in the newest state: weights, their average, the optimisers' moments."""
    digest = hashlib.sha256()
    values: list[Any] = [load_training_state(run_dir)]
    while values:
        value = values.pop()
        if isinstance(value, torch.Tensor):
            digest.update(value.numpy().tobytes())
        elif isinstance(value, dict | list | tuple):
            values += value.values() if isinstance(value, dict) else value
    return digest.hexdigest()


# --- bad numbers ------------------------------------------------------------------------------------------------------------------


class Poison:
    """Runs one step of training again and again, with a NaN or an infinity put somewhere into it."""

    def __init__(self, manifest: Path, run_dir: Path) -> None:
        def take(run: asr.train.Run, pieces: Any, **named: Any) -> dict[str, float]:
            self.run, self.pieces, self.named = run, pieces, named
            raise Stop

        with pytest.MonkeyPatch.context() as monkeypatch:
            self.step = asr.train._step
            monkeypatch.setattr(asr.train, "_step", take)
            with pytest.raises(Stop):
                train(small_config(manifest, num_workers=0, batch_s=6.0), run_dir)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the weights, their average, and the optimiser's moments."""
        found = {f"network.{name}": tensor for name, tensor in self.run.network.state_dict().items()}
        found |= {f"average.{name}": tensor for name, tensor in self.run.average.state_dict().items()}
        for index, optimiser in enumerate(self.run.optimisers):
            for number, moments in optimiser.state_dict()["state"].items():
                found |= {f"{index}.{number}.{name}": tensor for name, tensor in moments.items() if isinstance(tensor, torch.Tensor)}
        return found

    def step_with(self, site: str, value: float, rng: np.random.Generator) -> None:
        """Take one step with one element of a random tensor of the site replaced by the value."""
        hooks: list[Any] = []

        def spoilt(tensor: torch.Tensor) -> torch.Tensor:
            copy = tensor.clone()
            copy.view(-1)[int(rng.integers(copy.numel()))] = value
            return copy

        pieces = list(self.pieces)
        if site == "input":
            waveforms = pieces[0].waveforms.clone()
            waveforms[0, int(rng.integers(1000))] = value
            pieces[0] = dataclasses.replace(pieces[0], waveforms=waveforms)
        elif site == "logits":
            hooks.append(self.run.network.output.register_forward_hook(lambda module, inputs, output: spoilt_first(output, rng, value)))
        elif site == "gradient":
            parameters = list(self.run.network.parameters())
            hooks.append(parameters[int(rng.integers(len(parameters)))].register_hook(spoilt))
        try:
            self.step(self.run, pieces, **self.named)
        finally:
            for hook in hooks:
                hook.remove()


def spoilt_first(output: torch.Tensor, rng: np.random.Generator, value: float) -> torch.Tensor:
    """Spoil a logit of the first frames of the first utterance, which are not padding."""
    copy = output.clone()
    first = copy[:, 0] if output.shape[0] > output.shape[1] else copy[0]
    first[int(rng.integers(5)), int(rng.integers(output.shape[-1]))] = value
    return copy


def inject(manifest: Path, run_dir: Path, num_sites: int, caplog: pytest.LogCaptureFixture) -> None:
    poison, rng = Poison(manifest, run_dir), np.random.default_rng(0)
    poison.step_with("none", 0.0, rng)
    for number in range(num_sites):
        site, value = ("input", "logits", "gradient")[number % 3], (math.nan, math.inf, -math.inf)[number // 3 % 3]
        before = {name: tensor.clone() for name, tensor in poison.tensors().items()}
        caplog.clear()
        poison.step_with(site, value, rng)
        if site == "logits" and value == -math.inf and poison.run.progress.bad_steps == 0:
            continue  # the probability 0 of a token that need not stand there is no fault
        assert poison.run.progress.bad_steps == 1 and "skipped" in caplog.text, (number, site, value)
        assert all(torch.equal(tensor, before[name]) for name, tensor in poison.tensors().items()), (number, site, value)
        poison.step_with("none", 0.0, rng)  # and training goes on
        assert poison.run.progress.bad_steps == 0
        assert all(tensor.isfinite().all() for tensor in poison.tensors().values())


def test_nan_and_infinity_anywhere_in_a_step_leave_all_weights_as_they_were(tones: Tones, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    inject(tones(), tmp_path / "run", 18, caplog)


@pytest.mark.slow
def test_nan_and_infinity_at_two_hundred_sites(tones: Tones, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    inject(tones(), tmp_path / "run", 200, caplog)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("save_minutes", [60.0, 1e-9])
def test_a_spoilt_weight_ends_training_with_its_states_sound(
    tones: Tones, tmp_path: Path, value: float, save_minutes: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, spoilt_at = asr.train._step, 6

    def spoiling(run: asr.train.Run, *arguments: Any, **named: Any) -> dict[str, float]:
        if run.progress.step == spoilt_at:
            next(run.network.parameters()).data.view(-1)[0] = value
        return step(run, *arguments, **named)

    monkeypatch.setattr(asr.train, "_step", spoiling)
    with pytest.raises(TrainingError, match="not finite"):
        train(small_config(tones(repeat=6), epochs=50, save_minutes=save_minutes, batch_s=0.5 if save_minutes > 1 else 3.0), tmp_path / "run")
    if save_minutes < 1:  # else ten steps in a row come before the first save
        state = load_training_state(tmp_path / "run")
        assert state["progress"]["step"] == spoilt_at
        assert all(t.isfinite().all() for part in ("network", "average") for t in state[part].values())


def test_a_learning_rate_ten_thousand_times_too_high_ends_in_a_clear_message(tones: Tones, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asr.train, "learning_rate", lambda config, epochs_done: config.learning_rate if epochs_done >= 1 else 3e-3)
    manifest, dev = tones(), tones(SENTENCES[:2], name="dev")
    config = small_config(manifest, dev_manifests=(str(dev),), epochs=9, learning_rate=30.0)
    with pytest.raises(TrainingError, match=r"diverged.*learning rate may be too high \(now 30\.0\)"):
        train(config, tmp_path / "run")
    network = load_network(load_model_folder(tmp_path / "run" / "best"))  # of the first epoch
    assert all(tensor.isfinite().all() for tensor in network.state_dict().values())
    assert load_training_state(tmp_path / "run")["progress"]["epoch"] >= 1


# --- kills and full disks ---------------------------------------------------------------------------------------------------------


def train_in_child(config: TrainConfig, run_dir: Path, file_limit: int = 0) -> None:
    torch.set_num_threads(1)
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    train(config, run_dir, resume=any(run_dir.glob("state-*.pt")))


def test_a_kill_inside_a_save_loses_nothing_and_its_leftover_is_removed(tones: Tones, tmp_path: Path) -> None:
    config = random_config(tones(), epochs=2, num_workers=0)
    train(config, tmp_path / "whole")
    run_dir = tmp_path / "killed"
    with pytest.MonkeyPatch.context() as monkeypatch:
        sync, calls = os.fsync, []

        def kill(descriptor: int) -> None:
            calls.append(descriptor)
            if len(calls) == 9:  # the file is written, not yet synced and renamed
                os.kill(os.getpid(), signal.SIGKILL)
            sync(descriptor)

        monkeypatch.setattr(os, "fsync", kill)
        child = start_child(train_in_child, config, run_dir)
        child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert [path for path in run_dir.glob(".state-*.tmp")] and load_training_state(run_dir)["progress"]["step"] >= 1
    train(config, run_dir, resume=True)
    assert weights_hash(run_dir) == weights_hash(tmp_path / "whole")
    assert not list(run_dir.rglob("*.tmp"))


def test_sigterm_loses_only_the_steps_since_the_last_save(tones: Tones, tmp_path: Path) -> None:
    config = random_config(tones(), epochs=3)
    train(config, tmp_path / "whole")
    run_dir = tmp_path / "stopped"
    child = start_child(train_in_child, config, run_dir)
    deadline = time.monotonic() + 60
    while not any(run_dir.glob("state-*.pt")) and time.monotonic() < deadline:
        time.sleep(0.02)
    child.terminate()
    child.join(30)
    assert child.exitcode in (-signal.SIGTERM, 0)
    train(config, run_dir, resume=True)
    assert weights_hash(run_dir) == weights_hash(tmp_path / "whole")


def stop_after_two_steps(config: TrainConfig, run_dir: Path) -> str:
    """Leave a run with a state; return the hash of its weights."""
    train_until(2, config, run_dir)
    return weights_hash(run_dir)


def test_a_full_disk_ends_training_with_the_states_sound(tones: Tones, tmp_path: Path) -> None:
    config = random_config(tones(), epochs=2, num_workers=0)
    train(config, tmp_path / "whole")
    run_dir = tmp_path / "full"
    before = stop_after_two_steps(config, run_dir)
    size = max(path.stat().st_size for path in run_dir.glob("state-*.pt"))
    child = start_child(train_in_child, config, run_dir, size // 2)  # a write beyond it fails, as on a full disk
    child.join(60)
    assert child.exitcode == 1 and weights_hash(run_dir) == before and not list(run_dir.rglob("*.tmp"))
    train(config, run_dir, resume=True)
    assert weights_hash(run_dir) == weights_hash(tmp_path / "whole")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB, where this process may mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(path)], capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a file system")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_a_disk_that_is_really_full_ends_training_with_the_states_sound(tones: Tones, tmp_path: Path, small_disk: Path) -> None:
    config = random_config(tones(), epochs=2, num_workers=0)
    train(config, tmp_path / "whole")
    run_dir = small_disk / "run"
    before = stop_after_two_steps(config, run_dir)
    with open(small_disk / "ballast", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    with pytest.raises(OSError, match="No space left"):
        train(config, run_dir, resume=True)
    assert weights_hash(run_dir) == before and not list(run_dir.rglob("*.tmp"))
    (small_disk / "ballast").unlink()
    train(config, run_dir, resume=True)
    assert weights_hash(run_dir) == weights_hash(tmp_path / "whole")


def test_the_log_of_a_resumed_run_names_each_step_once(tones: Tones, tmp_path: Path) -> None:
    dev = tones(SENTENCES[:2], name="dev")
    config = random_config(tones(), dev_manifests=(str(dev),), epochs=3, save_minutes=60.0, num_workers=0)
    train(config, tmp_path / "whole")
    for last in (2, 5, 8):
        train_until(last, config, tmp_path / "stopped", resume=any((tmp_path / "stopped").glob("state-*.pt")))
        with open(tmp_path / "stopped" / "log.jsonl", "a") as file:
            file.write('{"step": 7, "lo')  # a kill in the middle of a line
    train(config, tmp_path / "stopped", resume=any((tmp_path / "stopped").glob("state-*.pt")))
    lines = {name: (tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "stopped")}
    rows = {name: [json.loads(line) for line in part] for name, part in lines.items()}
    kept = {name: [(row["step"], row.get("loss"), row.get("dev_wer")) for row in part] for name, part in rows.items()}
    assert kept["whole"] == kept["stopped"]


def test_a_resumed_run_does_not_need_the_model_that_it_began_with(tones: Tones, tmp_path: Path) -> None:
    manifest = tones()
    first = train(small_config(manifest, epochs=1), tmp_path / "first")
    config = small_config(manifest, epochs=2, init=str(first.model_dir))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(asr.train, "logger", logging.getLogger("quiet"))
        stop_at_step(monkeypatch, 5)
        with pytest.raises(Stop):
            train(config, tmp_path / "second")
    for path in first.model_dir.iterdir():
        path.unlink()
    assert train(config, tmp_path / "second", resume=True).epochs == 2


def test_resuming_on_the_command_line_does_not_need_it_either(tones: Tones, tmp_path: Path) -> None:
    manifest = tones()
    first = train(small_config(manifest, epochs=1), tmp_path / "first")
    options = ["train", "--train", str(manifest), "--out", str(tmp_path / "run"), "--init", str(first.model_dir)]
    options += ["--epochs", "1", "--dropout", "0", "--workers", "0"]
    assert CliRunner().invoke(main, options).exit_code == 0
    shutil.rmtree(first.model_dir)
    assert CliRunner().invoke(main, [*options, "--resume"]).exit_code == 0
    (tmp_path / "run" / "config.json").write_text("{")
    result = CliRunner().invoke(main, [*options, "--resume"])
    assert result.exit_code == 1 and "config.json: not the config of a run" in result.stderr


@pytest.mark.parametrize("folder", ["/proc/run", "/dev/null/run"])
def test_a_folder_that_cannot_be_written_is_one_line(tones: Tones, folder: str) -> None:
    result = CliRunner().invoke(main, ["train", "--train", str(tones()), "--out", folder, "--hidden", "4", "--layers", "1", "--workers", "0"])
    assert result.exit_code == 1 and not result.stdout
    assert result.stderr.strip().splitlines()[-1].startswith("Error: [Errno")


# --- loaders ----------------------------------------------------------------------------------------------------------------------


def test_the_weights_do_not_depend_on_the_number_of_loader_processes(tones: Tones, tmp_path: Path) -> None:
    manifest = tones()
    for num_workers in (0, 1, 2):
        train(random_config(manifest, epochs=1, save_minutes=60.0, num_workers=num_workers), tmp_path / str(num_workers))
    assert len({weights_hash(tmp_path / str(num_workers)) for num_workers in (0, 1, 2)}) == 1


@pytest.mark.parametrize("num_workers", [0, 1])
def test_missing_audio_is_named_before_the_first_step(tones: Tones, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int) -> None:
    manifest, dev = tones(), tones(name="dev")
    (tmp_path / "dev3.wav").unlink()
    stop_at_step(monkeypatch, 0)
    with pytest.raises(TrainingError, match=r"1 audio files.*dev3\.wav"):
        train(small_config(manifest, dev_manifests=(str(dev),), num_workers=num_workers), tmp_path / "run")


def during_epoch(monkeypatch: pytest.MonkeyPatch, harm: Callable[[], None]) -> None:
    """Do something after the audio files have been looked for."""
    start = asr.train._start

    def starting(*arguments: Any, **named: Any) -> asr.train.Run:
        run = start(*arguments, **named)
        harm()
        return run

    monkeypatch.setattr(asr.train, "_start", starting)


@pytest.mark.parametrize(
    ("harm", "num_workers"), [("endless", 0), ("damaged", 0), ("truncated", 0), ("vanished", 0), ("vanished", 1)]
)
def test_audio_that_goes_bad_during_an_epoch_is_one_line_that_names_the_utterance(
    tones: Tones, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int, harm: str
) -> None:
    manifest, path = tones(), tmp_path / "train5.wav"
    data = path.read_bytes()

    def do() -> None:
        path.unlink()
        if harm == "endless":
            os.mkfifo(path)
        elif harm != "vanished":
            path.write_bytes(bytes(100) if harm == "damaged" else data[: len(data) // 2])

    during_epoch(monkeypatch, do)
    started = time.monotonic()
    with pytest.raises(AudioError) as error:
        train(small_config(manifest, num_workers=num_workers), tmp_path / "run")
    assert time.monotonic() - started < 30
    assert str(error.value).startswith("utterance 'train5': ") and "\n" not in str(error.value)


def die(utterance: Utterance) -> np.ndarray:
    os.kill(os.getpid(), signal.SIGKILL)
    return np.zeros(0)


def sleep(utterance: Utterance) -> np.ndarray:
    time.sleep(600)
    return np.zeros(0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch, where it clears the dead process away
@pytest.mark.parametrize(("harm", "reason"), [(die, "killed by signal|exited unexpectedly|onnection"), (sleep, "timed out")])
def test_a_loader_process_that_dies_or_hangs_ends_training_and_names_the_utterances(
    tones: Tones, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: Callable[[Utterance], np.ndarray], reason: str
) -> None:
    read = asr.data.read_utterance
    monkeypatch.setattr(asr.data, "read_utterance", lambda utterance: (harm if utterance.id == "train5" else read)(utterance))
    monkeypatch.setattr(asr.train, "LOADER_TIMEOUT_S", 3.0 if harm is sleep else 60.0)
    with pytest.raises(TrainingError, match=rf"while reading train5 \(.*({reason})") as error:
        train(small_config(tones(), num_workers=1, batch_s=1.0), tmp_path / "run")
    assert "\n" not in str(error.value)


# --- processes --------------------------------------------------------------------------------------------------------------------

KILLED_RANK = """
import os, signal, sys
import torch
torch.set_num_threads(1)
import asr.train
sys.path.insert(0, {tests!r})
from test_train import small_config
from pathlib import Path
step = asr.train._step
def killed(run, *arguments, **named):
    if run.rank == 1 and run.progress.step == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(run, *arguments, **named)
asr.train._step = killed
asr.train.train(small_config(Path({manifest!r}), epochs=50), {run_dir!r})
"""


@pytest.mark.slow
def test_a_killed_rank_ends_the_job_within_a_minute(tones: Tones, tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED_RANK.format(tests=str(Path(__file__).parent), manifest=str(tones()), run_dir=str(tmp_path / "run")))
    command = [sys.executable, "-m", "torch.distributed.run", f"--master-port={free_port()}", "--nproc-per-node=2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(asr.train.__file__).parents[1])}
    started = time.monotonic()
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    seconds = time.monotonic() - started
    assert result.returncode != 0 and "SIGKILL" in result.stderr
    assert seconds < 60, seconds
    print(f"ended after {seconds:.0f} s, start included")
