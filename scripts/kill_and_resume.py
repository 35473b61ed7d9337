"""Kill a small training at random moments, resume it each time, and compare the final weights with an uninterrupted run's.

Every fifth kill waits for the moment in which a state is being written, every seventh is SIGTERM, the others SIGKILL. Everything that draws
random numbers is on: augmentation, dropout, consistency, loader workers. Exit code 1 when the weights differ, a state cannot be read, the
log names a step twice, or something is left over.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from asr.audio import SAMPLE_RATE, write_wav
from asr.augment import AugmentConfig
from asr.checkpoint import CheckpointError, load_training_state
from asr.logmel import FeatureConfig
from asr.manifest import Utterance, write_manifest
from asr.model import ModelConfig
from asr.train import TrainConfig, train


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills (default: %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return kill_and_resume(Path(folder), num_kills=arguments.kills, rng=random.Random(arguments.seed))


def kill_and_resume(folder: Path, *, num_kills: int, rng: random.Random) -> int:
    """Train once in peace and once with kills, both in processes of their own; return 0 if the weights are the same."""
    write_data(folder)
    started = time.monotonic()
    start_training(folder, "whole").join()
    duration_s = time.monotonic() - started
    expected = weights_hash(folder / "whole")
    print(f"uninterrupted: {duration_s:.0f} s, weights {expected}")
    kills = in_saves = 0
    ends = []
    run_dir = folder / "killed"
    while kills < num_kills:
        process = start_training(folder, "killed")
        # A kill soon after the start would only show that nothing happens, a late one that the end is reached: spread them over both.
        wait_s = rng.uniform(0.1, 0.8) * duration_s
        if not wait_for_kill(process, run_dir, wait_s, in_save=kills % 5 == 4):
            if process.exitcode:
                print(f"the resumed training failed with exit code {process.exitcode}")
                return 1
            print("finished before the kill: starting over")
            ends.append(faults(run_dir, expected))
            run_dir.rename(folder / f"finished-{time.monotonic_ns()}")
            continue
        os.kill(process.pid or 0, signal.SIGTERM if kills % 7 == 6 else signal.SIGKILL)
        process.join()
        kills += 1
        half_written = bool(list(run_dir.glob(f".state-*.{process.pid}-*.tmp")))
        in_saves += half_written
        print(f"kill {kills} after {wait_s:.1f} s{', inside a save' if half_written else ''}: {position(run_dir)}", flush=True)
    process = start_training(folder, "killed")
    process.join()
    if process.exitcode:
        return 1
    ends.append(faults(run_dir, expected))
    print(f"killed {kills} times, {in_saves} of them inside a save; {len(ends)} runs to the end: {'; '.join(filter(None, ends)) or 'the same weights'}")
    return int(any(ends))


def wait_for_kill(process: BaseProcess, run_dir: Path, wait_s: float, *, in_save: bool) -> bool:
    """Wait, then, for a kill in a save, until a temporary file is seen; return whether the process still runs."""
    process.join(wait_s)
    while in_save and process.is_alive() and not any(run_dir.glob(".state-*.tmp")):
        pass
    return process.is_alive()


def faults(run_dir: Path, expected: str) -> str:
    """Return what is wrong with a finished run, nothing if all is well."""
    found = weights_hash(run_dir)
    rows = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "loss" in row]
    problems = [f"weights {found}"] if found != expected else []
    problems += ["a step logged twice or left out"] if steps != list(range(1, len(steps) + 1)) else []
    return ", ".join(problems + [f"{path.name} left over" for path in run_dir.rglob("*.tmp")])


def start_training(folder: Path, name: str) -> BaseProcess:
    """Start a process by fork: it need not import torch again."""
    process = multiprocessing.get_context("fork").Process(target=run_training, args=(folder, name))
    process.start()
    return process


def run_training(folder: Path, name: str) -> None:
    logging.basicConfig(level=logging.WARNING)
    config = TrainConfig(
        train_manifests=(str(folder / "train.jsonl"),),
        dev_manifests=(str(folder / "dev.jsonl"),),
        features=FeatureConfig(num_mels=40),
        model=ModelConfig(num_mels=40, num_layers=1, hidden_size=64, conv_channels=64, dropout=0.2),
        augment=AugmentConfig(noise_probability=0.3),
        epochs=4,
        batch_s=12.0,
        warmup_epochs=1.0,
        consistency=0.2,
        precision="auto",
        num_threads=1,
        save_minutes=0.01,
    )
    run_dir = folder / name
    train(config, run_dir, resume=any(run_dir.glob("state-*.pt")))


def write_data(folder: Path) -> None:
    """Write 50 utterances of noise with letters as texts: what is learnt does not matter, only that it is the same."""
    rng = np.random.default_rng(0)
    utterances = []
    for index in range(50):
        waveform = 0.1 * rng.standard_normal(int(rng.integers(16_000, 48_000)))
        path = folder / f"{index}.wav"
        write_wav(path, waveform.astype(np.float32))
        text = "".join(rng.choice(list("abcde "), 8)).strip() or "a"
        utterances.append(Utterance(str(path), len(waveform) / SAMPLE_RATE, text, id=str(index)))
    write_manifest(folder / "train.jsonl", utterances[:42])
    write_manifest(folder / "dev.jsonl", utterances[42:])


def weights_hash(run_dir: Path) -> str:
    state = load_training_state(run_dir)
    digest = hashlib.sha256()
    for part in ("network", "average"):
        for name, tensor in state[part].items():
            digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()[:16]


def position(run_dir: Path) -> str:
    if not any(run_dir.glob("state-*.pt")):
        return "no state yet"
    try:
        progress = load_training_state(run_dir)["progress"]
    except CheckpointError as error:
        return f"UNREADABLE: {error}"
    return f"state at epoch {progress['epoch']}, batch {progress['batch']}, step {progress['step']}"


if __name__ == "__main__":
    sys.exit(main())
