"""Facts about the report: it says what the results say, escapes what it quotes, and needs no network."""

from __future__ import annotations

import base64
import io
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from asr.audio import write_wav
from asr.cli import main
from asr.evaluate import evaluate_manifest
from asr.manifest import Utterance, write_manifest
from asr.report import ReportError, make_report, read_results
from asr.transcript import Segment, Transcript, Word
from asr.wer import reliability

EVIL = "<script>alert(1)</script>&\"'"


class Listener:
    """Recognises `texts` in their turn, the k-th word with confidence k / 10."""

    name = EVIL
    decoder_settings = {"method": EVIL}  # noqa: RUF012

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def transcribe_batch(self, waveforms: list[np.ndarray], /) -> list[Transcript]:
        transcripts = []
        for text in self.texts:
            words = tuple(Word(word, 0.1 * k, 0.1 * k + 0.1, k / 10) for k, word in enumerate(text.split(), start=1))
            transcripts.append(Transcript(text, 1.0, self.name, (Segment(0, 0.0, 1.0, text, 1.0, words),)))
        return transcripts


class Page(HTMLParser):
    """Collects tags with their attributes, and checks that they close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture
def results(tmp_path: Path) -> list[dict[str, Any]]:
    """Three utterances of two speakers: one word wrong, one right, one deleted and one inserted."""
    write_wav(tmp_path / "a.wav", np.sin(np.arange(48_000) / 10).astype(np.float32) / 2)
    texts, speakers = ["the cat sat", "yes", "a big dog"], ["s<1>", "s<1>", "s2"]
    utterances = [
        Utterance(str(tmp_path / "a.wav"), 1.0 - 0.1 * k, text, offset=float(k), speaker=speaker, id=f"u{k}<b>")
        for k, (text, speaker) in enumerate(zip(texts, speakers, strict=True))
    ]
    write_manifest(tmp_path / "test.jsonl", utterances)
    result = evaluate_manifest(Listener(["the cap sat", "yes", "a dog uh"]), tmp_path / "test.jsonl").to_json()
    return [json.loads(json.dumps(result, allow_nan=False))]


def test_results_say_of_each_word_whether_it_is_right(results: list[dict[str, Any]]) -> None:
    words = [[(word["word"], word["confidence"], word["correct"]) for word in utterance["words"]] for utterance in results[0]["utterances"]]
    assert words[0] == [("the", 0.1, True), ("cap", 0.2, False), ("sat", 0.3, True)]
    assert words[1] == [("yes", 0.1, True)]
    assert [correct for *_, correct in words[2]] in ([True, True, False], [True, False, False])
    assert results[0]["utterances"][2]["offset"] == 2.0


def test_reliability_counts_words_by_confidence() -> None:
    rows = [(0.0, False), (0.05, True), (0.81, True), (0.83, True), (0.88, False), (1.0, True)]
    counts, confidences, correct = reliability(*np.array(rows, float).T)
    assert counts.tolist() == [2, 0, 0, 0, 0, 0, 0, 0, 3, 1]
    assert confidences[[0, 8, 9]] == pytest.approx([0.025, 0.84, 1.0]) and correct[[0, 8, 9]] == pytest.approx([0.5, 2 / 3, 1.0])
    assert all(math.isnan(x) for x in correct[1:8])


def test_the_page_has_the_figures(results: list[dict[str, Any]]) -> None:
    page = Page(make_report(results))
    assert f"{100 * 3 / 7:.1f}" in page.words  # three errors in seven words
    assert "cat → cap" in page.words
    assert "s<1>2425.0" in page.words  # cells of a row: two utterances, four words, 25.0 %
    assert page.words.index("u2<b>") < page.words.index("u0<b>") and "u1<b>" not in page.words  # most errors first, the right ones not at all


def test_what_is_quoted_is_escaped(results: list[dict[str, Any]]) -> None:
    results[0]["utterances"][0] |= {"reference": f"the {EVIL}", "id": EVIL, "speaker": EVIL, "audio_filepath": f"/{EVIL}"}
    results[0]["manifest"] = f"/x/{EVIL}.jsonl"
    page = Page(make_report(results))
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert "alert(1)" in page.words and not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_the_page_loads_nothing(results: list[dict[str, Any]]) -> None:
    page = Page(make_report(results))
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert links and all(str(link).startswith("data:audio/mpeg;base64,") for link in links)
    (policy,) = [a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv")]
    assert str(policy).startswith("default-src 'none'")


def test_players_hold_the_utterance_s_part_of_the_file(results: list[dict[str, Any]]) -> None:
    players = [a for tag, a in Page(make_report(results, num_worst=1)).tags if tag == "audio"]
    data = base64.b64decode(str(players[0]["src"]).partition(",")[2])
    assert len(players) == 1
    assert soundfile.info(io.BytesIO(data)).duration == pytest.approx(0.8, abs=0.15)  # mp3 pads its frames


def test_missing_audio_is_named_in_the_page(results: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "a.wav").unlink()
    assert Page(make_report(results)).words.count("a.wav: no such file") == 2


@pytest.mark.parametrize("text", ["", "{}", "[]", "[1]", '[{"utterances": []}]', '[{"utterances": [{"id": "a"}], "model": 1, "decoder_settings": {}}]'])
def test_other_files_are_refused_by_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(text)
    result = CliRunner().invoke(main, ["report", str(tmp_path / "r.json"), "--out", str(tmp_path / "r.html")])
    assert result.exit_code == 1 and "evaluate" in result.stderr and "Traceback" not in result.output
    assert not (tmp_path / "r.html").exists()


def test_results_without_errors_or_confidences_have_a_page(results: list[dict[str, Any]]) -> None:
    for utterance in results[0]["utterances"]:
        utterance |= {"words": [], "errors": 0}
    assert "The words have none" in Page(make_report(results)).words


def test_the_command_writes_the_page(results: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(results))
    result = CliRunner().invoke(main, ["report", str(tmp_path / "r.json"), "--out", str(tmp_path / "r.html"), "--worst", "1"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "r.html").read_text() == make_report(read_results(tmp_path / "r.json"), num_worst=1)


def test_read_results_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"gone\.json"):
        read_results(tmp_path / "gone.json")
