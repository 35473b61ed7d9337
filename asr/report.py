"""An HTML page about an evaluation: error rates by corpus and speaker, confusions, calibration, the worst utterances with their audio.

Made from what `asr evaluate --json` wrote. The page is one file that loads nothing from elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from asr.audio import SAMPLE_RATE, AudioError, load_audio
from asr.wer import (
    ErrorCounts,
    align_words,
    bootstrap_interval,
    expected_calibration_error,
    find_confusions,
    reliability,
)

MAX_SPEAKERS = 40
MAX_CONFUSIONS = 12
PLOT = 260  # side of the reliability diagram, in pixels

STYLE = """
:root{color-scheme:light dark;--ink:#1f2933;--soft:#64707d;--line:#dde3ea;--card:#fff;--page:#f6f8fa;--blue:#1f6feb;--red:#c92a2a;--rose:#ffe3e3;--sky:#e3eefd}
@media(prefers-color-scheme:dark){:root{--ink:#e4e8ec;--soft:#98a4b0;--line:#333c46;--card:#1b2128;--page:#12161b;--blue:#6ea8fe;--red:#ff8787;--rose:#4a2326;--sky:#1d3350}}
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:66rem;margin:0 auto;padding:1.5rem 1rem 4rem}h1{font-size:1.5rem;margin:.5rem 0}h2{font-size:1.1rem;margin:2.2rem 0 .6rem}
p{margin:.3rem 0}.soft{color:var(--soft)}.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.8rem 1rem;margin:.7rem 0;overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}th{text-align:left;font-weight:600;color:var(--soft)}th,td{padding:.18rem .9rem .18rem 0;white-space:nowrap}
.n{text-align:right}.row{display:flex;flex-wrap:wrap;gap:1rem}.row>.card{flex:1 1 15rem;margin:0}.words{line-height:1.25}
.words table{display:inline-table;margin:.15rem .1rem;vertical-align:top}.words td{padding:0 .2rem;text-align:center}
.words .wrong{background:var(--rose);color:var(--red);border-radius:4px}.words button{all:unset;cursor:pointer}.words button:hover{text-decoration:underline}
.words button:focus-visible{outline:2px solid var(--blue)}audio{width:100%;height:2.2rem;margin:.4rem 0}
svg text{fill:var(--soft);font:11px system-ui,sans-serif}summary{cursor:pointer}
"""
SCRIPT = """
document.addEventListener('click',function(event){var word=event.target.closest('[data-start]');if(!word)return;
var audio=word.closest('.card').querySelector('audio');if(audio){audio.currentTime=Math.max(0,word.dataset.start-0.15);audio.play();}});
"""


class ReportError(ValueError):
    """Results that no report can be made of; the message names the file."""


def read_results(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the objects that `asr evaluate --json` wrote, one a manifest. Raises ReportError."""
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ReportError(f"{os.fspath(path)}: cannot be read as JSON ({error}); expected what `asr evaluate --json` wrote") from error
    if not isinstance(results, list) or not results or not all(isinstance(r, dict) and isinstance(r.get("utterances"), list) for r in results):
        raise ReportError(f"{os.fspath(path)}: not a list of results; expected what `asr evaluate --json` wrote")
    return results


def make_report(results: Sequence[dict[str, Any]], *, num_worst: int = 20) -> str:
    """Return the page. num_worst: utterances with most errors to show, each with its audio. Raises ReportError for results with missing keys."""
    try:
        utterances = [utterance for result in results for utterance in result["utterances"]]
        body = [
            f"<h1>Evaluation of {escape(str(results[0]['model']))}</h1>",
            f"<p class=soft>{escape(_settings(results[0]['decoder_settings']))}</p>",
            _corpora(results),
            _speakers(results),
            _confusions(utterances),
            _calibration(utterances),
            _worst(utterances, num_worst),
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ReportError(f"not results of this version of `asr evaluate --json` ({error!r}); evaluate again") from error
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; media-src data:; script-src 'sha256-{digest}'"
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
    head += '<meta name="viewport" content="width=device-width,initial-scale=1"><title>Evaluation</title>'
    return f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}</style></head><body><main>{"".join(body)}</main><script>{SCRIPT}</script></body></html>\n'


def _settings(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())


def _corpora(results: Sequence[dict[str, Any]]) -> str:
    scale = max(0.01, *(float(result["wer_interval"][1]) for result in results))
    rows = []
    for result in results:
        rows.append(
            [escape(Path(result["manifest"]).stem), len(result["utterances"]), f"{result['num_words']:,}", _percent(result["wer"]),
             _interval(result["wer_interval"]), _bar(result["wer"], result["wer_interval"], scale), _percent(result["cer"]),
             result["substitutions"], result["deletions"], result["insertions"], f"{result['rtf']:.4f}"]
        )  # fmt: skip
    header = ["corpus", "utterances", "words", "WER %", "95 %", "", "CER %", "sub", "del", "ins", "RTF"]
    over = escape(str(results[0]["interval_over"]))
    return f"<h2>Error rates</h2><div class=card>{_table(header, rows)}</div><p class=soft>Intervals by bootstrap over {over}.</p>"


def _speakers(results: Sequence[dict[str, Any]]) -> str:
    """A table a corpus, where there are several speakers."""
    parts = []
    for result in results:
        counts: defaultdict[str, list[ErrorCounts]] = defaultdict(list)
        for utterance in result["utterances"]:
            counts[utterance["speaker"]].append(_counts(utterance))
        counts.pop("", None)
        if len(counts) < 2:
            continue
        totals = {speaker: sum(parts_of, ErrorCounts()) for speaker, parts_of in counts.items()}
        worst = sorted(counts, key=lambda speaker: (-totals[speaker].rate, speaker))[:MAX_SPEAKERS]
        intervals = {speaker: bootstrap_interval(counts[speaker]) for speaker in worst}
        scale = max(0.01, *(max(interval[1], totals[speaker].rate) for speaker, interval in intervals.items()))
        rows = [
            [escape(speaker), len(counts[speaker]), f"{totals[speaker].reference_length:,}", _percent(totals[speaker].rate),
             _interval(intervals[speaker]) if len(counts[speaker]) > 1 else "", _bar(totals[speaker].rate, intervals[speaker], scale)]
            for speaker in worst
        ]  # fmt: skip
        shown = f"{len(counts)} speakers" if len(counts) <= MAX_SPEAKERS else f"the {MAX_SPEAKERS} of {len(counts)} speakers with the highest WER"
        table = _table(["speaker", "utterances", "words", "WER %", "95 %", ""], rows)
        parts.append(f"<details class=card><summary>{escape(Path(result['manifest']).stem)}: {shown}</summary>{table}</details>")
    return "<h2>Speakers</h2>" + "".join(parts) if parts else ""


def _confusions(utterances: Sequence[dict[str, Any]]) -> str:
    found = find_confusions(align_words(utterance["reference"], utterance["hypothesis"]) for utterance in utterances)
    substitutions = [(f"{escape(left)} → {escape(right)}", times) for (left, right), times in found.substitutions]
    columns = {
        "substitutions": substitutions,
        "deletions": [(escape(word), times) for word, times in found.deletions],
        "insertions": [(escape(word), times) for word, times in found.insertions],
    }
    cards = []
    for title, entries in columns.items():
        rows = [[what, times] for what, times in entries[:MAX_CONFUSIONS]]
        cards.append(f"<div class=card>{_table([f'{title}: {sum(times for _, times in entries):,}', ''], rows)}</div>")
    return f"<h2>Confusions</h2><div class=row>{''.join(cards)}</div>"


def _calibration(utterances: Sequence[dict[str, Any]]) -> str:
    pairs = [(word["confidence"], word["correct"]) for utterance in utterances for word in utterance["words"]]
    if not pairs:
        return "<h2>Confidence</h2><p class=soft>The words have none.</p>"
    confidences, correct = np.array(pairs, np.float64).T
    counts, means, shares = reliability(confidences, correct)
    error = expected_calibration_error(confidences, correct)
    note = (
        f"<p>{counts.sum():,} words. Expected calibration error {error:.3f}.</p><p class=soft>Of words with confidence 0.8, eight in ten should be right:"
        " dots on the diagonal. The larger a dot, the more words it stands for.</p>"
    )
    svg = _reliability_svg(counts, means, shares)
    return f'<h2>Confidence</h2><div class="card row"><div>{svg}</div><div style="flex:1 1 15rem">{note}</div></div>'


def _reliability_svg(counts: np.ndarray, confidences: np.ndarray, correct: np.ndarray) -> str:
    left, bottom = 34, 30
    marks = [f'<line x1="{left}" y1="{PLOT}" x2="{left + PLOT}" y2="0" stroke="var(--soft)" stroke-dasharray="4 4"/>']
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = left + tick * PLOT, PLOT - tick * PLOT
        marks.append(f'<line x1="{left}" y1="{y}" x2="{left + PLOT}" y2="{y}" stroke="var(--line)"/>')
        marks.append(f'<text x="{left - 5}" y="{y + 4}" text-anchor="end">{tick:g}</text><text x="{x}" y="{PLOT + 14}" text-anchor="middle">{tick:g}</text>')
    for count, confidence, share in zip(counts, confidences, correct, strict=True):
        if count:
            x, y, radius = left + confidence * PLOT, PLOT - share * PLOT, 3 + 11 * np.sqrt(count / counts.max())
            title = f"<title>{count} words: confidence {confidence:.2f}, {100 * share:.0f} % right</title>"
            marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="var(--blue)" fill-opacity="0.7">{title}</circle>')
    marks.append(f'<text x="{left + PLOT / 2}" y="{PLOT + 30}" text-anchor="middle">mean confidence</text>')
    marks.append(f'<text transform="translate(-8 {PLOT / 2}) rotate(-90)" text-anchor="middle">share that is right</text>')
    size = f"-20 -16 {left + PLOT + 36} {PLOT + bottom + 20}"
    return f'<svg viewBox="{size}" width="{left + PLOT + 36}" role="img" aria-label="reliability diagram">{"".join(marks)}</svg>'


def _worst(utterances: Sequence[dict[str, Any]], num_worst: int) -> str:
    wrong = sorted((u for u in utterances if u["errors"]), key=lambda u: (-u["errors"], -_counts(u).rate))[:num_worst]
    if not wrong:
        return ""
    note = "Above what was said, below what was recognised; a click on a recognised word plays it."
    return f"<h2>Utterances with most errors</h2><p class=soft>{note}</p>{''.join(map(_utterance, wrong))}"


def _utterance(utterance: dict[str, Any]) -> str:
    pairs = align_words(utterance["reference"], utterance["hypothesis"])
    recognised = iter(utterance["words"])
    cells = []
    for reference, hypothesis in pairs:
        heard = next(recognised, None) if hypothesis is not None else None
        below = escape(hypothesis or "") or "&nbsp;"
        if heard is not None:
            tooltip = f"{heard['start']:.2f} s, confidence {heard['confidence']:.2f}"
            below = f'<button data-start="{heard["start"]:.3f}" title="{tooltip}">{below}</button>'
        kind = "" if reference == hypothesis else " class=wrong"
        cells.append(f"<table{kind}><tr><td>{escape(reference or '') or '&nbsp;'}</td></tr><tr><td>{below}</td></tr></table>")
    speaker = f", speaker {escape(utterance['speaker'])}" if utterance["speaker"] else ""
    title = f"<b>{escape(utterance['id'])}</b>{speaker}, {utterance['duration']:.1f} s, {utterance['errors']} errors in {utterance['num_words']} words"
    return f"<div class=card><p>{title}</p>{_player(utterance)}<div class=words>{''.join(cells)}</div></div>"


def _player(utterance: dict[str, Any]) -> str:
    """Return a player with the audio in it as mp3 or, where it cannot be read, the reason."""
    import soundfile

    try:
        waveform = load_audio(utterance["audio_filepath"], offset_s=utterance["offset"], duration_s=utterance["duration"])
    except AudioError as error:
        return f"<p class=soft>No audio: {escape(str(error))}</p>"
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(waveform, -1, 1), SAMPLE_RATE, format="MP3", subtype="MPEG_LAYER_III")
    return f'<audio controls preload="none" src="data:audio/mpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"></audio>'


def _counts(utterance: dict[str, Any]) -> ErrorCounts:
    hits = utterance["num_words"] - utterance["substitutions"] - utterance["deletions"]
    return ErrorCounts(utterance["substitutions"], utterance["deletions"], utterance["insertions"], hits)


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table of cells that are HTML already; but in the first column, numbers and what begins like one stand to the right."""
    right = [i > 0 and any(str(row[i])[:1].isdigit() for row in rows) for i in range(len(header))]
    lines = [("th", header), *(("td", row) for row in rows)]
    cells = ["".join(f"<{tag}{' class=n' if right[i] else ''}>{cell}</{tag}>" for i, cell in enumerate(row)) for tag, row in lines]
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _bar(rate: float, interval: Sequence[float], scale: float) -> str:
    """Return the rate as a dot and its interval as a line, on a scale from 0 to `scale`."""
    low, high, x = (6 + 148 * value / scale for value in (*interval, rate))
    return (
        '<svg width="160" height="16" aria-hidden="true"><line x1="6" x2="154" y1="8" y2="8" stroke="var(--line)"/>'
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="8" y2="8" stroke="var(--blue)" stroke-width="3"/><circle cx="{x:.1f}" cy="8" r="4" fill="var(--blue)"/></svg>'
    )


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f}"


def _interval(interval: Sequence[float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"
