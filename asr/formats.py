"""Transcripts as files: plain text, JSON, subtitles (SubRip's srt, WebVTT), whisper's tsv, NIST's CTM and Praat's TextGrid."""

from __future__ import annotations

import dataclasses
import html
import json
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from asr.transcript import Segment, Transcript, Word

LINE_LENGTH, NUM_LINES = 42, 2  # of a subtitle, in characters and lines: what broadcasters ask for
MAX_CUE_S = 7.0
MIN_CUE_S = 1.0  # where the next cue leaves so much time
CHARACTERS_A_SECOND = 17.0  # reading speed; a cue stays longer for it, again where there is time
PAUSE_S = 0.6  # a pause that always ends a cue
BALANCE_S = 0.4  # what a pause at the very edge of a cue must be longer than one in its middle, to be where the cue is split


@dataclass(frozen=True)
class Cue:
    """A subtitle of one or two lines, shown from start to end, in seconds. words_end: when its last word ends."""

    start: float
    end: float
    lines: tuple[str, ...]
    words_end: float


def to_text(transcript: Transcript) -> str:
    """Return the words on one line."""
    return transcript.text + "\n"


def to_json(transcript: Transcript) -> str:
    """Return one line of JSON: {"text", "duration", "model", "segments": [{"id", "start", "end", "text", "confidence", "words": [...]}]}."""
    return json.dumps(dataclasses.asdict(transcript), ensure_ascii=False, allow_nan=False) + "\n"


def to_srt(transcript: Transcript) -> str:
    """Return SubRip subtitles: numbered cues with times as HH:MM:SS,mmm."""
    cues = enumerate(subtitles(transcript), start=1)
    return "".join(f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n" + "\n".join(cue.lines) + "\n\n" for number, cue in cues)


def to_vtt(transcript: Transcript) -> str:
    """Return WebVTT subtitles: cues with times as HH:MM:SS.mmm; &, < and > are escaped."""
    cues = (f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n" + html.escape("\n".join(cue.lines), quote=False) for cue in subtitles(transcript))
    return "\n\n".join(["WEBVTT", *cues]) + "\n"


def to_tsv(transcript: Transcript) -> str:
    """Return a header and a line a cue: when its words start and end in milliseconds, and the text (whisper's tsv)."""
    rows = (f"{round(1000 * cue.start)}\t{round(1000 * cue.words_end)}\t{' '.join(cue.lines)}\n" for cue in subtitles(transcript))
    return "start\tend\ttext\n" + "".join(rows)


def to_ctm(transcript: Transcript, name: str = "audio") -> str:
    """Return a line a word: NAME 1 START DURATION WORD CONFIDENCE, times in seconds (NIST's CTM; spaces in the name become _)."""
    name = "_".join(name.split()) or "audio"
    return "".join(f"{name} 1 {w.start:.3f} {w.end - w.start:.3f} {w.word} {w.confidence:.4f}\n" for w in transcript.words)


def to_textgrid(transcript: Transcript) -> str:
    """Return Praat's long text format: one interval tier `words`, the silences between them as empty intervals."""
    intervals: list[tuple[float, float, str]] = []
    end = 0.0
    for word in transcript.words:
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


def subtitles(transcript: Transcript) -> list[Cue]:
    """Return the words as cues of at most NUM_LINES lines and, if its words allow, MAX_CUE_S, in order and without overlap.

    A cue ends at every pause of PAUSE_S and where a segment ends. It stays until it can be read, or the next begins.
    """
    groups = [words for segment in transcript.segments for words in _cues_of(segment)]
    next_starts = [words[0].start for words in groups[1:]] + [transcript.duration]
    cues = []
    for words, next_start in zip(groups, next_starts, strict=False):
        start, end = words[0].start, words[-1].end
        lines = tuple(_lines(_text(words)))
        read_by = start + max(MIN_CUE_S, sum(map(len, lines)) / CHARACTERS_A_SECOND)
        cues.append(Cue(start, round(min(max(end, read_by), max(next_start, end)), 3), lines, end))
    return cues


def _cues_of(segment: Segment) -> Iterator[Sequence[Word]]:
    """Yield the words of each cue."""
    words, first = segment.words, 0
    for i in range(1, len(words) + 1):
        if i == len(words) or words[i].start - words[i - 1].end >= PAUSE_S:
            yield from _split(words[first:i])
            first = i


def _split(words: Sequence[Word]) -> Iterator[Sequence[Word]]:
    """Halve words that are too many for a cue, at a long pause near the middle, until they fit."""
    if len(words) < 2 or (len(_wrap(_text(words))) <= NUM_LINES and words[-1].end - words[0].start <= MAX_CUE_S):
        yield words
        return

    def merit(i: int) -> float:
        return words[i].start - words[i - 1].end - BALANCE_S * abs(2 * i / len(words) - 1)

    cut = max(range(1, len(words)), key=merit)
    yield from _split(words[:cut])
    yield from _split(words[cut:])


def _text(words: Sequence[Word]) -> str:
    return " ".join(word.word for word in words)


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, LINE_LENGTH, break_on_hyphens=False)


def _lines(text: str) -> list[str]:
    """Return text on as few lines of LINE_LENGTH as hold it, two of them about equally long."""
    lines = _wrap(text)
    spaces = [i for i, character in enumerate(text) if character == " "]
    if len(lines) != 2 or not spaces:
        return lines
    cut = min(spaces, key=lambda i: max(i, len(text) - i - 1))
    balanced = [text[:cut], text[cut + 1 :]]
    return balanced if max(map(len, balanced)) <= LINE_LENGTH else lines


def _clock(seconds: float, point: str) -> str:
    """Return HH:MM:SS.mmm with another decimal point."""
    milliseconds = round(1000 * seconds)
    hours, minutes, whole = milliseconds // 3_600_000, milliseconds // 60_000 % 60, milliseconds // 1000 % 60
    return f"{hours:02}:{minutes:02}:{whole:02}{point}{milliseconds % 1000:03}"


FORMATS: dict[str, Callable[[Transcript], str]] = {
    "txt": to_text,
    "json": to_json,
    "srt": to_srt,
    "vtt": to_vtt,
    "tsv": to_tsv,
    "ctm": to_ctm,
    "textgrid": to_textgrid,
}
SUFFIXES = {name: name for name in FORMATS} | {"textgrid": "TextGrid"}  # of files
