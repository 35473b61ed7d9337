"""Facts about pictures: they are written, in their format, from what is there, and the log is read as it was meant."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.axes import Axes
from matplotlib.image import imread

from asr.audio import SAMPLE_RATE
from asr.checkpoint import save_model_folder
from asr.cli import main
from asr.decoder import DecoderConfig
from asr.logmel import FeatureConfig
from asr.model import AcousticModel, ModelConfig
from asr.plot import PlotError, plot_recording, plot_run, read_log
from asr.text import ENGLISH
from asr.transcribe import Transcriber

EXAMPLE = Path(__file__).parent / "data" / "sense_and_sensibility.wav"
TEXT = "unless to be rather cold hearted and rather selfish is to be ill disposed"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m"
    network = AcousticModel(ModelConfig(num_layers=1, hidden_size=8, conv_channels=8))
    save_model_folder(path, network, features=FeatureConfig(), vocabulary=ENGLISH, info={}, card="")
    return path


def write_log(folder: Path, rows: list[dict[str, Any]], *, end: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + end)
    return folder


def step(number: int, loss: float | None) -> dict[str, Any]:
    return {"step": number, "loss": loss, "grad_norm": loss, "learning_rate": 1e-3, "epoch": number / 10}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is drawn: curves by the title or label of their axes, texts, pictures."""
    seen: dict[str, Any] = {"curves": [], "texts": [], "images": []}
    for method, key in (("plot", "curves"), ("text", "texts"), ("imshow", "images")):
        original = getattr(Axes, method)

        def recording(self: Axes, *arguments: Any, _original: Any = original, _key: str = key, **named: Any) -> Any:
            seen[_key].append(arguments)
            return _original(self, *arguments, **named)

        monkeypatch.setattr(Axes, method, recording)
    return seen


def test_a_log_is_read_by_step_with_the_last_of_repeated_ones(tmp_path: Path) -> None:
    rows = [step(1, 3.0), step(2, 2.0), {"step": 2, "dev_wer": 0.9}, step(3, 9.0), step(3, 1.5), {"step": 3, "dev_wer": 0.8}]
    steps, validations = read_log(write_log(tmp_path / "run", rows, end='{"step": 4, "lo') / "log.jsonl")
    assert [(row["step"], row["loss"]) for row in steps] == [(1, 3.0), (2, 2.0), (3, 1.5)]
    assert [(row["step"], row["dev_wer"]) for row in validations] == [(2, 0.9), (3, 0.8)]


@pytest.mark.parametrize(("rows", "end", "message"), [([step(1, 1.0)], "x\n{}\n", "log.jsonl:2"), ([], "", "no step"), ([], '{"step": 1, "dev_wer": 1}\n', "no step")])
def test_a_log_that_is_none_is_refused(rows: list[dict[str, Any]], end: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(PlotError, match=message):
        plot_run(write_log(tmp_path / "run", rows, end=end), tmp_path / "a.png")


def test_curves_show_every_finite_value(tmp_path: Path, drawn: dict[str, Any]) -> None:
    rows = [step(k, None if k == 5 else 10.0 / k) for k in range(1, 151)]
    rows += [{"step": 50, "dev_wer": 0.7, "dev_wer/a": 0.8, "dev_wer/b": 0.6}, {"step": 100, "dev_wer": 0.5, "dev_wer/a": 0.6, "dev_wer/b": None}]
    plot_run(write_log(tmp_path / "run", rows), tmp_path / "a.png")
    height, width, _ = imread(tmp_path / "a.png").shape
    assert width > height > 500
    loss, median = drawn["curves"][:2]
    assert len(loss[0]) == 149 and 5 not in loss[0] and loss[1][0] == 10.0
    assert median[1][-1] == pytest.approx(np.median([10 / 149, 10 / 150]))  # of a fiftieth of the steps
    a, b = drawn["curves"][-2:]
    assert a[1] == pytest.approx([80.0, 60.0]) and b[1][0] == pytest.approx(60.0) and math.isnan(b[1][1])


@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_name_s_end_chooses_the_format(suffix: str, magic: bytes, tmp_path: Path) -> None:
    run = write_log(tmp_path / "run", [step(1, 1.0)])
    result = CliRunner().invoke(main, ["plot", str(run), "--out", str(tmp_path / f"a.{suffix}")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / f"a.{suffix}").read_bytes().startswith(magic)


def test_a_recording_is_drawn_with_the_words_of_the_text(model: Path, tmp_path: Path, drawn: dict[str, Any]) -> None:
    result = CliRunner().invoke(main, ["plot", str(EXAMPLE), "--model", str(model), "--text", TEXT, "--out", str(tmp_path / "a.png")])
    assert result.exit_code == 0, result.output
    assert [arguments[2] for arguments in drawn["texts"]] == TEXT.split()
    log_mels, posteriors = (arguments[0] for arguments in drawn["images"])
    assert log_mels.shape == (80, 531) and posteriors.shape == (28, 133)  # blank apart
    assert posteriors.min() >= 0 and posteriors.sum(axis=0).max() <= 1.0001


def test_a_part_is_drawn_with_the_file_s_times(model: Path, tmp_path: Path, drawn: dict[str, Any]) -> None:
    arguments = ["plot", str(EXAMPLE), "--model", str(model), "--offset", "2", "--duration", "1", "--out", str(tmp_path / "a.png")]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert drawn["images"][0][0].shape == (80, 101)
    assert all(2.0 <= x <= 3.0 for x, *_ in drawn["texts"])


@pytest.mark.parametrize(("seconds", "name", "message"), [(31, "a.png", "--duration"), (1, "a.jpeg", "png")])
def test_what_cannot_be_drawn_is_refused(seconds: int, name: str, message: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(PlotError, match=message):
        plot_recording(Transcriber(model, decoder=DecoderConfig()), np.zeros(seconds * SAMPLE_RATE, np.float32), tmp_path / name)
    assert not (tmp_path / name).exists()
