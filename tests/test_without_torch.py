"""Facts about the light install: everything but training runs without torch, and training says what to install."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SPEECH = Path(__file__).parent / "data" / "sense_and_sensibility.wav"
TRAINING_ONLY = ("torch", "torchaudio", "scipy", "sklearn", "librosa", "matplotlib", "onnx", "onnxruntime")
RUN = f"""
import sys
sys.modules.update(dict.fromkeys({TRAINING_ONLY}))  # importing one of them raises ModuleNotFoundError
from asr.cli import main
for line in sys.stdin.read().splitlines():
    try:
        main.main(line.split("|"), standalone_mode=False)
    except Exception as error:
        print(type(error).__name__, error)
"""


def _run(folder: Path, *commands: tuple[str, ...]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", RUN], input="\n".join("|".join(command) for command in commands), capture_output=True, text=True, cwd=folder,
        check=True, env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder)},
    )  # fmt: skip
    return done.stdout


def test_all_but_training_runs_without_torch(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("he must be rather cold hearted\nhe must be rather selfish\n")
    (tmp_path / "dev.jsonl").write_text(f'{{"audio_filepath": "{SPEECH}", "duration": 5.3, "text": "he must be rather cold hearted"}}\n')
    out = _run(
        tmp_path,
        ("transcribe", str(SPEECH)),
        ("align", str(SPEECH), "text.txt", "--format", "ctm"),
        ("evaluate", "dev.jsonl", "--worst", "1"),
        ("info", "english"),
        ("lm", "train", "text.txt", "--out", "lm.safetensors", "--order", "2"),
        ("lm", "score", "--model", "lm.safetensors", "text.txt"),
        ("prepare", "table", str(tmp_path), "manifests"),
    )
    assert "ModuleNotFoundError" not in out and "this command needs" not in out, out
    assert "rather cold hearted and rather selfish" in out
    assert "sense_and_sensibility" in out
    assert (tmp_path / "lm.safetensors").exists()


def test_training_without_torch_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(f'{{"audio_filepath": "{SPEECH}", "duration": 5.3, "text": "he must be"}}\n')
    out = _run(tmp_path, ("train", "--train", "train.jsonl", "--out", "run"))
    assert out == "ClickException this command needs torch; install the extra: pip install 'asr[train]'\n"


@pytest.mark.slow
def test_a_plain_install_has_no_torch_and_transcribes(tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    bin_dir = tmp_path / "env" / "bin"
    subprocess.run([bin_dir / "pip", "install", "--quiet", str(ROOT)], check=True)
    assert subprocess.run([bin_dir / "python", "-c", "import torch"], cwd=tmp_path, capture_output=True).returncode == 1
    done = subprocess.run([bin_dir / "transcribe", str(SPEECH)], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "must be rather" in done.stdout
