"""Many recordings: which are found, what is written when one is damaged or all is interrupted, and that processes change nothing."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from asr.audio import load_audio, write_wav
from asr.checkpoint import save_model_folder
from asr.jobs import JobError, Outcome, Output, check_names, find_tasks, run
from asr.logmel import FeatureConfig
from asr.model import AcousticModel, ModelConfig
from asr.text import ENGLISH
from asr.transcribe import Transcriber

EXAMPLE = Path(__file__).parent / "data" / "sense_and_sensibility.wav"


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> partial[Transcriber]:
    folder = tmp_path_factory.mktemp("models") / "random"
    network = AcousticModel(ModelConfig(num_layers=1, hidden_size=8, conv_channels=8))
    save_model_folder(folder, network, features=FeatureConfig(), vocabulary=ENGLISH, info={}, card="")
    return partial(Transcriber, folder, num_threads=1)


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    speech = load_audio(EXAMPLE)
    write_wav(tmp_path / "in" / "a.wav", speech)
    write_wav(tmp_path / "in" / "b" / "long.wav", np.tile(speech, 40))
    write_wav(tmp_path / "in" / "c" / "d" / "c.wav", speech)
    (tmp_path / "in" / "notes.txt").write_text("no audio")
    (tmp_path / "in" / "._a.wav").write_bytes(b"what macOS leaves behind")
    return tmp_path / "in"


@pytest.mark.parametrize(
    ("source", "names"),
    [
        (".", ["a", "b/long", "c/d/c"]),
        ("b", ["long"]),
        ("a.wav", ["a"]),
        ("gone.wav", ["gone"]),
        ("*.wav", ["a"]),
        ("**/*.wav", ["a", "b/long", "c/d/c"]),
        ("c/*/*.wav", ["d/c"]),
    ],
)
def test_folders_and_patterns_stand_for_the_audio_in_them(recordings: Path, monkeypatch: pytest.MonkeyPatch, source: str, names: list[str]) -> None:
    monkeypatch.chdir(recordings)
    for given in (source, str(recordings / source)):
        assert [task.name for task in find_tasks([given])] == names


@pytest.mark.parametrize("source", ["empty", "*.flac"])
def test_a_source_without_audio_is_an_error(tmp_path: Path, source: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(JobError, match=source[-5:].replace("*", r"\*")):
        find_tasks([str(tmp_path / source)])


@pytest.mark.parametrize("line", ["", "[]", "no json", '{"duration": 1}', '{"audio_filepath": 1}', '{"audio_filepath": "a.wav", "offset": "x"}'])
def test_a_bad_line_of_a_manifest_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "m.jsonl").write_text(f'{{"audio_filepath": "a.wav"}}\n{line}\n')
    with pytest.raises(JobError, match=r"m\.jsonl:2"):
        find_tasks([str(tmp_path / "m.jsonl")])


def test_parts_of_one_file_have_names_of_their_own(tmp_path: Path) -> None:
    rows = [{"audio_filepath": "a.wav", "duration": 1}, {"audio_filepath": "a.wav", "offset": 1.5}, {"audio_filepath": "a.wav", "offset": 2, "id": "x/y"}]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tasks = find_tasks([str(tmp_path / "m.jsonl")])
    assert [task.name for task in tasks] == ["a", "a_1.500", "x_y"]
    with pytest.raises(JobError, match="both"):
        check_names([*tasks, tasks[0]])


def test_an_interruption_keeps_what_is_recognised_and_a_second_run_goes_on(load: partial[Transcriber], recordings: Path, tmp_path: Path) -> None:
    tasks, output = find_tasks([str(recordings)]), Output(tmp_path / "out", ("json",))
    segments = 0

    def interrupt(seconds: float) -> None:
        nonlocal segments
        segments += 1
        if segments == 4:  # one of a.wav, three of long.wav
            raise KeyboardInterrupt

    outcomes: list[Outcome] = []
    with pytest.raises(KeyboardInterrupt):
        outcomes.extend(run(load, tasks, output, progress=interrupt))  # a list keeps what it got before the error
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.json"))
    assert written == ["a.json", "b/long.partial.json"]
    kept = json.loads((tmp_path / "out" / "b" / "long.partial.json").read_text())
    assert [outcome.error == "" for outcome in outcomes] == [True, False]
    assert len(kept["segments"]) == 3 and f"interrupted at {kept['duration']:.1f} s" in outcomes[1].error
    whole = list(run(load, tasks, output))
    assert [outcome.error for outcome in whole] == ["", "", ""]
    assert not list((tmp_path / "out").rglob("*partial*"))
    assert json.loads((tmp_path / "out" / "b" / "long.json").read_text())["segments"][:3] == kept["segments"]


def test_two_processes_give_what_one_gives(load: partial[Transcriber], recordings: Path, tmp_path: Path) -> None:
    (recordings / "b" / "bad.wav").write_bytes(b"no audio")
    tasks = find_tasks([str(recordings)])
    seconds: list[float] = []
    alone = list(run(load, tasks, None))
    together = list(run(load, tasks, Output(tmp_path / "out", ("txt",)), jobs=2, progress=seconds.append))
    assert together == alone and [bool(outcome.error) for outcome in alone] == [False, True, False, False]
    assert sum(seconds) == pytest.approx(sum(outcome.transcript.duration for outcome in alone if outcome.transcript), abs=0.01)
    assert (tmp_path / "out" / "b" / "long.txt").read_text() == str(alone[2].transcript) + "\n"


def test_a_process_that_dies_is_an_error(recordings: Path) -> None:
    with pytest.raises(JobError, match="a process died"):
        list(run(partial(os._exit, 1), find_tasks([str(recordings)]), None, jobs=2))
