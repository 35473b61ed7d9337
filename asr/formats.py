"""Transcripts as files: plain text, JSON, NIST's CTM and Praat's TextGrid."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

from asr.transcript import Transcript


def to_text(transcript: Transcript) -> str:
    """Return the words on one line."""
    return transcript.text + "\n"


def to_json(transcript: Transcript) -> str:
    """Return one line of JSON: {"text", "duration", "model", "segments": [{"id", "start", "end", "text", "confidence", "words": [...]}]}."""
    return json.dumps(dataclasses.asdict(transcript), ensure_ascii=False, allow_nan=False) + "\n"


def to_ctm(transcript: Transcript, name: str = "audio") -> str:
    """Return a line a word: NAME 1 START DURATION WORD CONFIDENCE, times in seconds (NIST's CTM; spaces in the name become _)."""
    name = "_".join(name.split()) or "audio"
    words = [word for segment in transcript.segments for word in segment.words]
    return "".join(f"{name} 1 {w.start:.3f} {w.end - w.start:.3f} {w.word} {w.confidence:.4f}\n" for w in words)


def to_textgrid(transcript: Transcript) -> str:
    """Return Praat's long text format: one interval tier `words`, the silences between them as empty intervals."""
    intervals: list[tuple[float, float, str]] = []
    end = 0.0
    for word in (word for segment in transcript.segments for word in segment.words):
        start = max(word.start, end)
        if start > end:
            intervals.append((end, start, ""))
        end = max(word.end, start)
        if end > start:
            intervals.append((start, end, word.word))
    if transcript.duration > end:
        intervals.append((end, transcript.duration, ""))
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {transcript.duration}", "tiers? <exists>"]
    lines += ["size = 1", "item []:", "    item [1]:", '        class = "IntervalTier"', '        name = "words"', "        xmin = 0"]
    lines += [f"        xmax = {transcript.duration}", f"        intervals: size = {len(intervals)}"]
    for number, (start, end, text) in enumerate(intervals, start=1):
        quoted = text.replace('"', '""')
        lines += [f"        intervals [{number}]:", f"            xmin = {start}", f"            xmax = {end}", f'            text = "{quoted}"']
    return "\n".join(lines) + "\n"


def write(transcript: Transcript, format_: str, *, name: str) -> str:
    """Return a transcript in one of FORMATS. name: what the recording is called, where the format says so."""
    return to_ctm(transcript, name) if format_ == "ctm" else FORMATS[format_](transcript)


FORMATS: dict[str, Callable[[Transcript], str]] = {"txt": to_text, "json": to_json, "ctm": to_ctm, "textgrid": to_textgrid}
