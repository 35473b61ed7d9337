"""A transcript in each format, against what the format's own description says and what other libraries read in it."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from asr.formats import FORMATS, LINE_LENGTH, MAX_CUE_S, PAUSE_S, to_json, to_srt, to_textgrid, to_tsv, to_vtt, write
from asr.transcript import Segment, Transcript, Word

WORDS = (Word("good", 0.2, 0.5, 0.9), Word("day", 0.5, 0.9, 0.8))
TRANSCRIPT = Transcript(
    "good day say", 3.0, "m", (Segment(0, 0.0, 2.0, "good day", 0.85, WORDS), Segment(1, 2.0, 3.0, "say", 0.5, (Word("say", 2.1, 2.4, 0.5),)))
)
SILENCE = Transcript("", 1.5, "m", (Segment(0, 0.0, 1.5, "", 1.0, ()),))


def spoken(words: list[str], *, gaps: list[float], word_s: float = 0.3, start: float = 0.0, rest_s: float = 0.0) -> Transcript:
    """Return a transcript in one segment: each word lasts word_s, with gaps[i % len(gaps)] seconds after it."""
    spoken_words = []
    for i, word in enumerate(words):
        spoken_words.append(Word(word, round(start, 3), round(start + word_s, 3), 0.5))
        start += word_s + gaps[i % len(gaps)]
    end = round(start + rest_s, 3)
    return Transcript(" ".join(words), end, "m", (Segment(0, 0.0, end, " ".join(words), 0.5, tuple(spoken_words)),))


def long_transcript() -> Transcript:
    """Two thousand words of 1 to 14 letters without a pause that would end a cue, or with some."""
    rng = np.random.default_rng(0)
    words = ["abcdefghijklmn"[: rng.integers(1, 15)] for _ in range(2000)]
    return spoken(words, gaps=[0.05, 0.1, 0.02, 0.3, 0.05, 0.7, 0.1, 0.02])


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


def test_tsv_has_times_in_milliseconds() -> None:
    assert to_tsv(TRANSCRIPT) == "start\tend\ttext\n200\t900\tgood day\n2100\t2400\tsay\n"


def test_praatio_reads_the_textgrid_and_finds_no_gaps(tmp_path: Path) -> None:
    textgrid = pytest.importorskip("praatio.textgrid")
    (tmp_path / "a.TextGrid").write_text(to_textgrid(TRANSCRIPT))
    tier = textgrid.openTextgrid(str(tmp_path / "a.TextGrid"), includeEmptyIntervals=True).getTier("words")
    assert [entry.label for entry in tier.entries] == ["", "good", "day", "", "say", ""]
    assert tier.entries[0].start == 0 and tier.entries[-1].end == 3.0
    assert [entry.end for entry in tier.entries[:-1]] == [entry.start for entry in tier.entries[1:]]


def test_quotes_survive_in_a_textgrid(tmp_path: Path) -> None:
    textgrid = pytest.importorskip("praatio.textgrid")
    (tmp_path / "a.TextGrid").write_text(to_textgrid(spoken(['so "called"'], gaps=[0.1])))
    tier = textgrid.openTextgrid(str(tmp_path / "a.TextGrid"), includeEmptyIntervals=False).getTier("words")
    assert [entry.label.replace('""', '"') for entry in tier.entries] == ['so "called"']


def test_srt_reads_back_with_every_word_in_order() -> None:
    srt = pytest.importorskip("srt")
    transcript = long_transcript()
    cues = list(srt.parse(to_srt(transcript), ignore_errors=False))
    assert [cue.index for cue in cues] == list(range(1, len(cues) + 1))
    assert " ".join(cue.content for cue in cues).split() == transcript.text.split()
    for cue, following in pairwise(cues):
        assert cue.start < cue.end <= following.start
    for cue in cues:
        lines = cue.content.split("\n")
        assert len(lines) <= 2 and all(len(line) <= LINE_LENGTH for line in lines)
        assert (cue.end - cue.start).total_seconds() <= MAX_CUE_S


def test_vtt_reads_back_with_every_word_in_order(tmp_path: Path) -> None:
    webvtt = pytest.importorskip("webvtt")
    transcript = long_transcript()
    (tmp_path / "a.vtt").write_text(to_vtt(transcript))
    captions = list(webvtt.read(tmp_path / "a.vtt"))
    assert " ".join(caption.text for caption in captions).split() == transcript.text.split()
    assert captions[0].start == "00:00:00.000"


def test_markup_is_escaped_in_vtt() -> None:
    assert "r&amp;b &lt;b&gt;" in to_vtt(spoken(["r&b", "<b>"], gaps=[0.1]))


def test_times_beyond_an_hour() -> None:
    assert "25:00:01,500 --> 25:00:02,500" in to_srt(spoken(["late"], gaps=[5.0], start=25 * 3600 + 1.5))


def test_a_pause_ends_a_cue() -> None:
    srt = pytest.importorskip("srt")
    together, apart = (list(srt.parse(to_srt(spoken(["a", "b"], gaps=[gap])))) for gap in (PAUSE_S - 0.01, PAUSE_S + 0.01))
    assert (len(together), len(apart)) == (1, 2)


def test_a_cue_stays_long_enough_to_be_read_where_there_is_time() -> None:
    srt = pytest.importorskip("srt")
    hurried = ["abcdefgh"] * 8  # 71 characters in 0.8 s
    (cue,) = srt.parse(to_srt(spoken(hurried, gaps=[0.0], word_s=0.1, rest_s=10)))
    assert len(cue.content) / (cue.end - cue.start).total_seconds() == pytest.approx(17, abs=0.5)
    crowded = list(srt.parse(to_srt(spoken(hurried * 2, gaps=[0.0], word_s=0.1))))
    assert crowded[0].end == crowded[1].start and crowded[-1].end.total_seconds() <= 1.6


def test_two_lines_are_about_equally_long() -> None:
    lines = to_srt(spoken(["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "again"], gaps=[0.0])).splitlines()[2:4]
    assert lines == ["the quick brown fox jumps", "over the lazy dog again"]


def test_a_word_longer_than_a_line_is_broken() -> None:
    lines = to_srt(spoken(["a" * 60], gaps=[0.0])).splitlines()
    assert lines[2:4] == ["a" * 42, "a" * 18]


def test_silence_is_written_in_every_format() -> None:
    empty = {name for name in FORMATS if not write(SILENCE, name, name="a").strip()}
    assert empty == {"txt", "srt", "ctm"}


def test_a_notebook_shows_words_with_times_and_no_markup_of_theirs() -> None:
    shown = spoken(["<script>", "&"], gaps=[0.1])._repr_html_()
    assert "<script>" not in shown and "&lt;script&gt;" in shown and "&amp;" in shown
    assert 'title="0.00 to 0.30 s, 50%"' in shown


def test_a_notebook_says_how_many_words_it_leaves_out() -> None:
    shown = spoken(["word"] * 5003, gaps=[0.0])._repr_html_()
    assert shown.count("<span") == 5000 and "3 more words" in shown


def test_words_are_those_of_all_segments() -> None:
    assert [word.word for word in TRANSCRIPT.words] == ["good", "day", "say"]
