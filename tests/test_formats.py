"""A transcript in each format, against what the format's own description says."""

from __future__ import annotations

import json
import re

from asr.formats import FORMATS, to_json, to_textgrid, write
from asr.transcript import Segment, Transcript, Word

WORDS = (Word("good", 0.2, 0.5, 0.9), Word("day", 0.5, 0.9, 0.8))
TRANSCRIPT = Transcript(
    "good day say", 3.0, "m", (Segment(0, 0.0, 2.0, "good day", 0.85, WORDS), Segment(1, 2.0, 3.0, "say", 0.5, (Word("say", 2.1, 2.4, 0.5),)))
)
SILENCE = Transcript("", 1.5, "m", (Segment(0, 0.0, 1.5, "", 1.0, ()),))


def test_text_is_one_line() -> None:
    assert write(TRANSCRIPT, "txt", name="a") == "good day say\n"


def test_json_has_the_documented_keys() -> None:
    found = json.loads(to_json(TRANSCRIPT))
    assert list(found) == ["text", "duration", "model", "segments"]
    assert list(found["segments"][0]) == ["id", "start", "end", "text", "confidence", "words"]
    assert found["segments"][0]["words"][1] == {"word": "day", "start": 0.5, "end": 0.9, "confidence": 0.8}


def test_ctm_has_a_line_a_word_with_its_duration() -> None:
    lines = write(TRANSCRIPT, "ctm", name="my file").splitlines()
    assert lines == ["my_file 1 0.200 0.300 good 0.9000", "my_file 1 0.500 0.400 day 0.8000", "my_file 1 2.100 0.300 say 0.5000"]


def test_textgrid_intervals_cover_the_recording_without_gaps() -> None:
    text = to_textgrid(TRANSCRIPT)
    times = [float(t) for t in re.findall(r"^            x(?:min|max) = (\S+)$", text, re.MULTILINE)]
    assert times[0] == 0 and times[-1] == 3.0
    assert times[1:-1:2] == times[2::2]  # each interval begins where the one before ends
    assert re.findall(r'text = "(.*)"', text) == ["", "good", "day", "", "say", ""]
    assert f"intervals: size = {len(times) // 2}" in text


def test_silence_is_written_in_every_format() -> None:
    assert {name: bool(write(SILENCE, name, name="a").strip()) for name in FORMATS} == {"txt": False, "json": True, "ctm": False, "textgrid": True}
