"""Kill a small training with SIGKILL at random moments, resume it each time, and compare the final weights with an uninterrupted run's.

Everything that draws random numbers is on: augmentation, dropout, consistency, loader workers. Exit code 1 when the weights differ or a
state cannot be read.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import random
import subprocess
import sys
import tempfile
import time
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
    parser.add_argument("--kills", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills (default: %(default)s)")
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "NAME"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run_training(Path(arguments.child[0]), arguments.child[1])
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return kill_and_resume(Path(folder), num_kills=arguments.kills, rng=random.Random(arguments.seed))


def kill_and_resume(folder: Path, *, num_kills: int, rng: random.Random) -> int:
    """Train once in peace and once with kills, both in processes of their own; return 0 if the weights are the same."""
    write_data(folder)
    started = time.monotonic()
    start_training(folder, "whole").wait()
    duration_s = time.monotonic() - started
    expected = weights_hash(folder / "whole")
    print(f"uninterrupted: {duration_s:.0f} s, weights {expected}")
    kills, finished = 0, False
    while not finished:
        process = start_training(folder, "killed")
        # A kill soon after the start would only show that nothing happens, a late one that the end is reached: spread them over both.
        wait_s = rng.uniform(0.1, 0.8) * duration_s if kills < num_kills else None
        try:
            if process.wait(wait_s):
                print(f"the resumed training failed with exit code {process.returncode}")
                return 1
            finished = kills >= num_kills
            if not finished:
                print("finished before the kill: starting over")
                (folder / "killed").rename(folder / f"finished-{time.monotonic_ns()}")
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            print(f"kill {kills} after {wait_s:.1f} s: {position(folder / 'killed')}", flush=True)
    found = weights_hash(folder / "killed")
    ends = [found, *(weights_hash(path) for path in folder.glob("finished-*"))]
    print(f"killed {kills} times: weights {found}, {'the same' if set(ends) == {expected} else 'NOT the same'}")
    return int(set(ends) != {expected})


def start_training(folder: Path, name: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, __file__, "--child", str(folder), name])


def run_training(folder: Path, name: str) -> None:
    logging.basicConfig(level=logging.WARNING)
    config = TrainConfig(
        train_manifests=(str(folder / "train.jsonl"),),
        dev_manifests=(str(folder / "dev.jsonl"),),
        features=FeatureConfig(num_mels=40),
        model=ModelConfig(num_mels=40, num_layers=1, hidden_size=64, conv_channels=64, dropout=0.2),
        augment=AugmentConfig(noise_probability=0.3),
        epochs=8,
        batch_s=12.0,
        warmup_epochs=1.0,
        consistency=0.2,
        precision="bfloat16",
        num_threads=1,
        save_minutes=0.01,
    )
    run_dir = folder / name
    train(config, run_dir, resume=any(run_dir.glob("state-*.pt")))


def write_data(folder: Path) -> None:
    """Write 60 utterances of noise with letters as texts: what is learnt does not matter, only that it is the same."""
    rng = np.random.default_rng(0)
    utterances = []
    for index in range(60):
        waveform = 0.1 * rng.standard_normal(int(rng.integers(16_000, 48_000)))
        path = folder / f"{index}.wav"
        write_wav(path, waveform.astype(np.float32))
        text = "".join(rng.choice(list("abcde "), 8)).strip() or "a"
        utterances.append(Utterance(str(path), len(waveform) / SAMPLE_RATE, text, id=str(index)))
    write_manifest(folder / "train.jsonl", utterances[:50])
    write_manifest(folder / "dev.jsonl", utterances[50:])


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
