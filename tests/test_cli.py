"""The commands as a user meets them: what they print, what they write, how they end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result

from asr import cli, formats, jobs
from asr.audio import load_audio, write_wav
from asr.checkpoint import save_model_folder
from asr.cli import main, transcribe
from asr.lm import load as load_lm
from asr.lm import train as train_lm
from asr.logmel import FeatureConfig
from asr.manifest import Utterance, write_manifest
from asr.model import AcousticModel, ModelConfig
from asr.text import ENGLISH
from asr.transcribe import Transcriber
from asr.transcript import Transcript

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


def test_models_are_averaged(model: Path, tmp_path: Path) -> None:
    result = _run("average", model, model, "--weight", 1, "--weight", 2, "--out", tmp_path / "mean")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'mean'}\n")
    assert "average_of" in _run("info", tmp_path / "mean").stdout
    for wrong in (("--weight", 1), ("--weight", 0, "--weight", 0)):
        failed = _run("average", model, model, *wrong, "--out", tmp_path / "none")
        assert failed.exit_code == 1 and "expected 2 weights" in failed.stderr and "Traceback" not in failed.stderr


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
    assert _run(EXAMPLE, "--model", model, "--output-dir", "-", "--format", "json", command=transcribe).stdout.count("\n") == 1


def test_two_inputs_never_overwrite_each_other(model: Path, tmp_path: Path) -> None:
    result = _run("x/a.wav", "y/a.flac", "--model", model, "--output-dir", tmp_path / "out", command=transcribe)
    assert result.exit_code == 1 and "both" in result.stderr and not (tmp_path / "out").exists()


def test_all_formats_are_written_and_only_what_is_missing_is_done_again(model: Path, tmp_path: Path) -> None:
    for name in ("in/a.wav", "in/deep/b.wav"):
        write_wav(tmp_path / name, load_audio(EXAMPLE))
    (tmp_path / "in" / "notes.txt").write_text("no audio")
    arguments = (tmp_path / "in", "--model", model, "--output-dir", tmp_path / "out", "--format", "all")
    assert _run(*arguments, command=transcribe).exit_code == 0
    suffixes = ("txt", "json", "srt", "vtt", "tsv", "ctm", "TextGrid")
    files = sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.*"))
    assert files == sorted(Path(f"{name}.{suffix}") for name in ("a", "deep/b") for suffix in suffixes)
    (tmp_path / "out" / "a.txt").write_text("kept")
    (tmp_path / "out" / "deep" / "b.srt").unlink()
    again = _run(*arguments, command=transcribe)
    assert again.exit_code == 0 and "1 already done, 1 to do" in again.stderr
    assert (tmp_path / "out" / "deep" / "b.srt").exists() and (tmp_path / "out" / "a.txt").read_text() == "kept"
    assert _run(*arguments, "--overwrite", command=transcribe).exit_code == 0
    assert (tmp_path / "out" / "a.txt").read_text() != "kept"


def test_one_bad_file_among_many_in_two_processes(model: Path, tmp_path: Path) -> None:
    for name in "abcd":
        write_wav(tmp_path / "in" / f"{name}.wav", load_audio(EXAMPLE))
    (tmp_path / "in" / "b.wav").write_bytes(b"no audio")
    arguments = (tmp_path / "in" / "*.wav", "--model", model, "--format", "json")
    result = _run(*arguments, "--jobs", 2, command=transcribe)
    assert result.exit_code == 1 and result.stderr.count("Error") == 1 and "b.wav" in result.stderr
    assert len(result.stdout.splitlines()) == 3
    assert result.stdout == _run(*arguments, command=transcribe).stdout


def test_a_manifest_comes_back_with_texts(model: Path, tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", load_audio(EXAMPLE))
    rows = [
        {"audio_filepath": "a.wav", "text": "unless to be", "duration": 1.5, "topic": "virtue"},
        {"audio_filepath": "a.wav", "offset": 2.0, "duration": 1.0},
        {"audio_filepath": "a.wav", "offset": 3.0},
        {"audio_filepath": "gone.wav", "duration": 1.0},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = (tmp_path / "in.jsonl", "--model", model, "--manifest-out", tmp_path / "out.jsonl")
    result = _run(*arguments, command=transcribe)
    assert result.exit_code == 1 and "gone.wav" in result.stderr and result.stdout == ""
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row.get("offset", 0) for row in found] == [0, 2.0, 3.0]
    assert [row["duration"] for row in found] == [1.5, 1.0, pytest.approx(2.3)]
    assert found[0]["topic"] == "virtue" and all(row["audio_filepath"] == str(tmp_path / "a.wav") for row in found)
    waveform = load_audio(EXAMPLE)
    alone = Transcriber(model).transcribe_batch([waveform[:24_000], waveform[32_000:48_000], waveform[48_000:]])
    assert [row["pred_text"] for row in found] == [transcript.text for transcript in alone]
    again = _run(*arguments, command=transcribe)
    assert "3 already done, 1 to do" in again.stderr
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == found


def test_a_manifest_of_something_else_is_not_overwritten(model: Path, manifest: Path) -> None:
    before = manifest.read_bytes()
    for extra in ((), ("--overwrite",)):
        result = _run(EXAMPLE, "--model", model, "--manifest-out", manifest, *extra, command=transcribe)
        assert result.exit_code == 1 and "pred_text" in result.stderr and manifest.read_bytes() == before


def test_ctrl_c_says_how_to_go_on(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(load: object, tasks: list[jobs.Task], output: object, **options: object) -> Iterator[jobs.Outcome]:
        yield jobs.Outcome(tasks[0], Transcript("so far", 3.0, "m", ()), "long.wav: interrupted at 3.0 s")
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "run", interrupted)
    result = _run("long.wav", "--model", model, "--output-dir", tmp_path / "out", command=transcribe)
    assert result.exit_code == 130 and "run it again to go on" in result.stderr
    assert f"interrupted at 3.0 s (recognised so far: {tmp_path / 'out' / 'long.partial.txt'})" in result.stderr
    assert _run("long.wav", "--model", model, command=transcribe).stdout == "so far\n"


@pytest.mark.slow
@pytest.mark.parametrize("num_jobs", [1, 2])
def test_a_real_ctrl_c_keeps_what_is_done(model: Path, tmp_path: Path, num_jobs: int) -> None:
    speech = np.tile(load_audio(EXAMPLE), 15)
    for name in ("1.wav", "2.wav"):
        write_wav(tmp_path / name, speech)
    with soundfile.SoundFile(tmp_path / "long.wav", "w", 16_000, 1) as file:
        for _ in range(200):
            file.write(speech)  # 4.4 hours
    code = "from asr.cli import transcribe; transcribe()"
    arguments = [tmp_path / "1.wav", tmp_path / "long.wav", tmp_path / "2.wav", "--model", model, "--output-dir", tmp_path / "out", "--format", "json"]
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments), "--jobs", str(num_jobs)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "1.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "Interrupted" in errors and "Traceback" not in errors
    partial = json.loads((tmp_path / "out" / "long.partial.json").read_text())
    assert 0 < partial["duration"] < 200 * 79.5 and partial["segments"][-1]["end"] == partial["duration"]
    assert not (tmp_path / "out" / "long.json").exists() and "long.partial.json" in errors


def test_the_formats_offered_are_those_there_are() -> None:
    assert set(cli.FORMATS) == set(formats.FORMATS)


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


def test_a_language_model_is_trained_on_manifests_too_each_text_once(tmp_path: Path) -> None:
    (tmp_path / "books.txt").write_text("a cat sat\n")
    write_manifest(tmp_path / "said.jsonl", [Utterance(f"/{i}.wav", 1.0, text, id=str(i)) for i, text in enumerate(["a dog", "a dog", "the dog sat"])])
    texts = [tmp_path / "books.txt", tmp_path / "said.jsonl"]
    done = _run("lm", "train", *texts, "--out", tmp_path / "m.lm", "--order", 2)
    assert done.exit_code == 0, done.output
    expected = train_lm(["a cat sat", "a dog", "the dog sat"], order=2)
    found = load_lm(tmp_path / "m.lm")
    assert set(found.words) == set(expected.words) and found.num_ngrams == expected.num_ngrams
    done = _run("lm", "score", tmp_path / "m.lm", texts[1])
    assert "words 5\tunknown 0\tsentences 2" in done.output


def test_language_models_are_put_into_a_model_folder_and_tuned(tmp_path: Path, model: Path, manifest: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("word a\nword b\n")
    assert _run("lm", "train", text, "--out", tmp_path / "m.lm", "--order", 2).exit_code == 0
    assert _run("lm", "train-recurrent", text, "--out", tmp_path / "m.rnnlm", "--hidden", 4, "--embedding", 2).exit_code == 0
    done = _run("lm", "tune", manifest, "--model", model, "--lm", tmp_path / "m.lm", "--rnnlm", tmp_path / "m.rnnlm", "--trials", 2, "--beam-size", 4)
    assert done.exit_code == 0, done.output
    assert done.output.count("recurrent") == 3 and "recurrent 0.00" in done.output  # greedy decoding's
    settings = json.loads((model / "decoder.json").read_text())
    transcriber = Transcriber(model)
    assert transcriber.decoder.rescore_weight == settings["rescore_weight"]
    assert (transcriber.rescorer is not None) == (settings["rescore_weight"] > 0)
    done = _run("lm", "tune", manifest, "--model", model, "--rnnlm", tmp_path / "m.lm", "--trials", 1)
    assert done.exit_code == 1 and "m.lm" in done.output and "recurrent" in done.output
