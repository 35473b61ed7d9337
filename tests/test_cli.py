"""The commands as a user meets them: what they print, what they write, how they end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from asr.audio import write_wav
from asr.checkpoint import save_model_folder
from asr.cli import main, transcribe
from asr.logmel import FeatureConfig
from asr.manifest import Utterance, write_manifest
from asr.model import AcousticModel, ModelConfig
from asr.text import ENGLISH

EXAMPLE = Path(__file__).parent / "data" / "sense_and_sensibility.wav"
REFERENCE = "unless to be rather cold hearted and rather selfish is to be ill disposed"


def _run(*arguments: object, command: object = main) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])  # type: ignore[arg-type]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    network = AcousticModel(ModelConfig(num_layers=1, hidden_size=8, conv_channels=8))
    save_model_folder(tmp_path / "model", network, features=FeatureConfig(), vocabulary=ENGLISH, info={"seed": 3}, card="# A card\n")
    return tmp_path / "model"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    for name in "ab":
        write_wav(tmp_path / f"{name}.wav", np.random.default_rng(0).standard_normal(16_000).astype(np.float32) / 9)
    utterances = [Utterance(str(tmp_path / f"{name}.wav"), 1.0, f"word {name}", id=name) for name in "ab"]
    write_manifest(tmp_path / "m.jsonl", utterances)
    return tmp_path / "m.jsonl"


def test_the_shipped_model_writes_recognisable_words() -> None:
    result = _run(EXAMPLE, command=transcribe)
    assert result.exit_code == 0
    found = result.stdout.split()
    assert len(set(found) & set(REFERENCE.split())) >= 4, result.stdout


def test_json_has_words_within_their_segments() -> None:
    result = _run("transcribe", EXAMPLE, "--format", "json")
    transcript = json.loads(result.stdout)
    assert transcript["model"] == "english" and transcript["duration"] == 5.3
    (segment,) = transcript["segments"]
    assert segment["text"] == transcript["text"] == " ".join(word["word"] for word in segment["words"])
    times = [time for word in segment["words"] for time in (word["start"], word["end"])]
    assert times == sorted(times) and times[0] >= 0 and times[-1] <= 5.3
    assert all(0 < word["confidence"] <= 1 for word in segment["words"])


def test_a_bad_file_is_reported_and_the_others_are_done(model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    result = _run(tmp_path / "bad.wav", EXAMPLE, "--model", model, "--format", "json", command=transcribe)
    assert result.exit_code == 1
    assert "bad.wav" in result.stderr and "Traceback" not in result.stderr
    assert json.loads(result.stdout)["duration"] == 5.3


def test_output_dir_takes_a_file_an_input(model: Path, tmp_path: Path) -> None:
    result = _run(EXAMPLE, "--model", model, "--output-dir", tmp_path / "out", "--format", "json", command=transcribe)
    assert result.exit_code == 0 and result.stdout == ""
    assert json.loads((tmp_path / "out" / f"{EXAMPLE.stem}.json").read_text())["duration"] == 5.3


def test_two_inputs_never_overwrite_each_other(model: Path, tmp_path: Path) -> None:
    result = _run("x/a.wav", "y/a.flac", "--model", model, "--output-dir", tmp_path, command=transcribe)
    assert result.exit_code == 2 and "both" in result.stderr


def test_standard_input_is_a_file(model: Path) -> None:
    code = "from asr.cli import transcribe; transcribe()"
    done = subprocess.run(
        [sys.executable, "-c", code, "-", "--model", str(model), "--format", "json"], input=EXAMPLE.read_bytes(), capture_output=True, check=True
    )
    assert json.loads(done.stdout)["duration"] == 5.3


def test_evaluate_writes_an_object_a_manifest(model: Path, manifest: Path, tmp_path: Path) -> None:
    result = _run("evaluate", manifest, manifest, "--model", model, "--json", tmp_path / "out.json", "--worst", 1, "--confusions", 3)
    assert result.exit_code == 0, result.output
    assert "%WER" in result.stdout
    rows = json.loads((tmp_path / "out.json").read_text())
    assert len(rows) == 2
    keys = {"manifest", "wer", "cer", "num_utterances", "num_words", "substitutions", "deletions", "insertions", "wer_interval", "rtf"}
    assert keys <= set(rows[0])
    assert rows[0]["num_words"] == 4 and rows[0]["wer"] == (rows[0]["substitutions"] + rows[0]["deletions"] + rows[0]["insertions"]) / 4


def test_prepare_train_transcribe_from_a_folder_of_recordings(tmp_path: Path) -> None:
    for number, word in enumerate(["yes", "no", "yes", "no"]):
        tone = 0.3 * np.sin(2 * np.pi * (400 if word == "yes" else 900) * np.arange(16_000) / 16_000)
        write_wav(tmp_path / "in" / f"{number}.wav", tone.astype(np.float32))
        (tmp_path / "in" / f"{number}.txt").write_text(word.upper() + "!")
    prepared = _run("prepare", "folder", tmp_path / "in", tmp_path / "m", "--dev-fraction", "0.25", "--name", "mine")
    assert prepared.exit_code == 0, prepared.output
    train_manifest, dev_manifest = prepared.stdout.split()
    trained = _run(
        "train", "--train", train_manifest, "--dev", dev_manifest, "--out", tmp_path / "run", "--epochs", 2, "--hidden", 8,
        "--layers", 1, "--threads", 1, "--workers", 0, "--vocabulary", "data", "--consistency", 0.2, "--precision", "bfloat16",
    )  # fmt: skip
    assert trained.exit_code == 0, trained.output
    assert _run("info", tmp_path / "run" / "best").exit_code == 0
    assert _run(tmp_path / "in" / "0.wav", "--model", tmp_path / "run" / "best", command=transcribe).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["transcribe", "x.wav", "--model", "nothing"], "nothing"),
        (["evaluate", "missing.jsonl"], "missing.jsonl"),
        (["prepare", "folder", "nowhere", "out"], "nowhere"),
        (["train", "--train", "missing.jsonl", "--out", "run"], "missing.jsonl"),
        (["info", "nothing"], "nothing"),
        (["info", "missing.jsonl"], "missing.jsonl"),
    ],
)
def test_bad_input_ends_in_one_line_that_names_it(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = _run(*arguments)
    assert result.exit_code == 1
    assert message in result.stderr and result.stderr.count("Error:") == 1 and "Traceback" not in result.output


def test_info_describes_models_manifests_and_audio(model: Path, manifest: Path, tmp_path: Path) -> None:
    assert "A card" in _run("info", model).stdout
    assert "utterances\t2" in _run("info", manifest).stdout
    assert "5.300 s" in _run("info", EXAMPLE).stdout
    (tmp_path / "bad.jsonl").write_text(manifest.read_text() + '{"audio_filepath": "gone.wav", "duration": 1, "text": "a"}\n')
    broken = _run("info", tmp_path / "bad.jsonl")
    assert broken.exit_code == 1 and "bad.jsonl:3" in broken.stderr


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_has_help(command: str) -> None:
    result = _run(command, "--help")
    assert result.exit_code == 0 and "Usage" in result.stdout


def test_help_answers_at_once() -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "from asr.cli import transcribe; transcribe()", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.6  # 0.3 s on an idle machine, twice that on a busy one
