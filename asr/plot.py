"""Pictures: what a model makes of a recording, and how a training run went. Needs matplotlib; knows no screen."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asr.audio import SAMPLE_RATE
from asr.logmel import log_mel
from asr.storage import write_atomically
from asr.transcribe import MAX_PIECE_S, Transcriber
from asr.transcript import Word

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, LINE, PALE = "#1f2933", "#1f6feb", "#c9d8ee"
COLOURS = ("#1f6feb", "#d9480f", "#2b8a3e", "#9c36b5", "#b8860b")  # of dev sets
INCHES_A_SECOND, NARROWEST, WIDEST = 1.6, 7.0, 32.0
WAVEFORM_COLUMNS = 2000
MEL_TICKS_HZ = (250, 500, 1000, 2000, 4000)


class PlotError(ValueError):
    """What cannot be drawn; the message says which file, and why."""


def plot_recording(transcriber: Transcriber, waveform: np.ndarray, out: str | os.PathLike[str], *, text: str | None = None, start_s: float = 0.0) -> None:
    """Draw a waveform (N,) at 16 kHz, its log-mel, the posteriors of the tokens and the words below one another.

    text: what is said, to be aligned; None: what the model recognises. start_s: where the waveform begins in its file. out: png, svg or
    pdf. Raises PlotError for more than MAX_PIECE_S, TextError and CTCError.
    """
    duration_s = len(waveform) / SAMPLE_RATE
    if duration_s > MAX_PIECE_S:
        raise PlotError(f"{duration_s:.1f} s of audio: a picture holds {MAX_PIECE_S:g} s; choose a part with --offset and --duration")
    transcript = transcriber.transcribe(waveform) if text is None else transcriber.align(waveform, text)
    features, log_probs = log_mel(waveform, transcriber.features), transcriber.log_probs([waveform])[0]
    width = min(max(INCHES_A_SECOND * duration_s, NARROWEST), WIDEST)
    figure = _figure(width, 8.5)
    axes = figure.subplots(4, 1, sharex=True, height_ratios=(1.2, 2.4, 4.0, 0.6))
    _draw_waveform(axes[0], waveform, start_s)
    hop_s = transcriber.features.hop_length / transcriber.features.sample_rate
    _draw_image(axes[1], features, start_s, hop_s, cmap="magma", vmin=-2.0, vmax=3.0)
    _label_mels(axes[1], transcriber)
    _draw_image(axes[2], np.exp(log_probs[:, 1 : len(transcriber.vocabulary)]), start_s, transcriber.frame_s, cmap="Blues", vmin=0.0, vmax=1.0)
    names = [token if token != " " else "space" for token in transcriber.vocabulary.tokens[1:]]
    axes[2].set_yticks(range(len(names)), names, fontsize=7)
    axes[2].set_ylabel("probability of tokens")
    blank = axes[2].twinx()  # the row of the blank would outshine the others
    blank.plot(start_s + transcriber.frame_s * (np.arange(len(log_probs)) + 0.5), np.exp(log_probs[:, 0]), color="0.7", linewidth=0.8)
    blank.set(ylim=(0, 1), ylabel="of the blank (grey line)", yticks=(0, 0.5, 1))
    _draw_words(axes[3], [word for segment in transcript.segments for word in segment.words], start_s, known=text is not None)
    axes[3].set(xlabel="seconds", xlim=(start_s, start_s + duration_s))
    _save(figure, out)


def plot_run(run_dir: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Draw the curves in a run folder's log.jsonl: loss, dev WER, norm of the gradient, learning rate. Raises PlotError.

    Steps that were done again after a resume count once, as they were done last.
    """
    steps, validations = read_log(Path(run_dir) / "log.jsonl")
    figure = _figure(11, 6.5)
    figure.suptitle(f"{Path(run_dir).resolve().name}: {len(steps):,} steps" + (f", {steps[-1]['epoch']:.1f} epochs" if steps else ""), color=INK)
    loss, wer, norm, rate = figure.subplots(2, 2, sharex=True).flat
    _draw_curve(loss, steps, "loss", smooth=True)
    loss.set(title="training loss, nats a token", ylim=_without_outliers(steps, "loss"))
    _draw_curve(norm, steps, "grad_norm", smooth=True)
    norm.set(title="norm of the gradient before clipping", yscale="log", xlabel="step")
    _draw_curve(rate, steps, "learning_rate", smooth=False)
    rate.set(title="learning rate", xlabel="step", ylim=(0, None))
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    names = sorted({key for row in validations for key in row if key.startswith("dev_wer/")})
    for name, colour in zip(names or ["dev_wer"], COLOURS * (1 + len(names)), strict=False):
        x, y = [row["step"] for row in validations], [100 * _number(row.get(name)) for row in validations]
        wer.plot(x, y, color=colour, linewidth=1.8, marker="o", markersize=3.5, label=name.removeprefix("dev_wer/"))
    wer.set(title="dev WER, %")
    if validations:
        wer.legend(frameon=False)
    else:
        wer.text(0.5, 0.5, "no validation yet", transform=wer.transAxes, ha="center", color="0.5")
        wer.set_yticks([])
    _save(figure, out)


def read_log(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return (steps, validations) of a log.jsonl, each by step. Raises PlotError for a line that is none of it, unless it is a half one at the end."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PlotError(f"{path}: cannot be read ({error}); expected a run folder of `asr train`") from error
    steps: dict[int, dict[str, Any]] = {}
    validations: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            (validations if "dev_wer" in row else steps)[row["step"]] = row
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                break  # the run was killed while it wrote
            raise PlotError(f"{path}:{number}: not a line of a training log ({error!r})") from error
    if not steps:
        raise PlotError(f"{path}: no step in it yet")
    return [steps[step] for step in sorted(steps)], [validations[step] for step in sorted(validations)]


def _draw_waveform(axes: Axes, waveform: np.ndarray, start_s: float) -> None:
    """Draw the extremes of as many stretches as can be told apart."""
    size = math.ceil(len(waveform) / WAVEFORM_COLUMNS)
    stretches = np.pad(waveform, (0, -len(waveform) % size)).reshape(-1, size)
    times = start_s + np.arange(len(stretches)) * size / SAMPLE_RATE
    axes.fill_between(times, stretches.min(axis=1), stretches.max(axis=1), color=LINE, linewidth=0.4)
    peak = max(float(np.abs(waveform).max()), 1e-3)
    axes.set(ylabel="waveform", ylim=(-1.05 * peak, 1.05 * peak))


def _draw_image(axes: Axes, values: np.ndarray, start_s: float, frame_s: float, **colours: Any) -> None:
    """Draw values (T, rows) with time to the right and row 0 at the bottom."""
    extent = (start_s, start_s + len(values) * frame_s, -0.5, values.shape[1] - 0.5)
    axes.imshow(values.T, aspect="auto", origin="lower", extent=extent, interpolation="nearest", **colours)


def _label_mels(axes: Axes, transcriber: Transcriber) -> None:
    config = transcriber.features
    low, high = (2595 * math.log10(1 + f / 700) for f in (config.min_frequency, config.max_frequency))
    shown = [f for f in MEL_TICKS_HZ if config.min_frequency < f < config.max_frequency]
    rows = [(2595 * math.log10(1 + f / 700) - low) / (high - low) * (config.num_mels + 1) - 1 for f in shown]
    axes.set_yticks(rows, [f"{f} Hz" if f < 1000 else f"{f // 1000} kHz" for f in shown])
    axes.set_ylabel("log-mel, normalised")


def _draw_words(axes: Axes, words: Sequence[Word], start_s: float, *, known: bool) -> None:
    """Draw a box a word, the paler the less sure the model is of it."""
    for word in words:
        axes.axvspan(start_s + word.start, start_s + word.end, color=LINE, alpha=0.15 + 0.5 * word.confidence, linewidth=0)
        axes.text(start_s + (word.start + word.end) / 2, 0.5, word.word, ha="center", va="center", fontsize=8, color=INK, clip_on=True)
    axes.set(ylim=(0, 1), yticks=(), ylabel="text" if known else "words")


def _draw_curve(axes: Axes, rows: Sequence[dict[str, Any]], key: str, *, smooth: bool) -> None:
    """Draw a value by step; `smooth`: pale, with the running median over a fiftieth of the steps on top. What is not finite is left out."""
    points = [(row["step"], value) for row in rows if math.isfinite(value := _number(row.get(key)))]
    x, y = np.array(points).reshape(-1, 2).T
    axes.plot(x, y, color=PALE if smooth else LINE, linewidth=0.8 if smooth else 1.8)
    if smooth:
        window = max(1, len(y) // 50)
        axes.plot(x, [np.median(y[max(0, i + 1 - window) : i + 1]) for i in range(len(y))], color=LINE, linewidth=1.8)


def _without_outliers(rows: Sequence[dict[str, Any]], key: str) -> tuple[float, float]:
    """Return limits that hold 99 % of the values."""
    values = [value for row in rows if math.isfinite(value := _number(row.get(key)))] or [1.0]
    return 0.0, 1.1 * float(np.quantile(values, 0.99)) or 1.0


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, out: str | os.PathLike[str]) -> None:
    """Write a picture in the format that its name ends with."""
    suffix = Path(out).suffix.lower().removeprefix(".")
    if suffix not in ("png", "svg", "pdf"):
        raise PlotError(f"{os.fspath(out)}: expected a name that ends with .png, .svg or .pdf")
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix, dpi=120)
    write_atomically(out, buffer.getvalue())
