"""Manifests, texts and error counts from hostile hands. Oracles: hypothesis' rows, NIST's sclite, hand-made Unicode."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asr.manifest import ManifestError, read_manifest, write_manifest
from asr.text import ENGLISH, TextError, Vocabulary, normalise
from asr.wer import count_character_errors, count_word_errors

GOOD = {"audio_filepath": "a.wav", "duration": 1.5, "text": "hello"}
HOSTILE = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.lists(st.integers(), max_size=3), st.just(10**400), st.just("x" * 5000),
    st.just("\0"), st.just("\ud800"), st.just("../../../etc/passwd"), st.just("~nobody/a.wav"), st.just("\u202eabc"), st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
)  # fmt: skip
ROW = st.dictionaries(st.sampled_from(["audio_filepath", "duration", "text", "offset", "speaker", "id", "extra"]), HOSTILE, max_size=7)
LINE = st.one_of(
    ROW.map(lambda changes: json.dumps(GOOD | changes).encode()),
    ROW.map(lambda row: json.dumps(row, ensure_ascii=True).encode()),
    st.binary(max_size=60),
    st.sampled_from([b"", b" ", b"\t", b"{}", b"[]", b"null", b"NaN", b"{" * 2000, b"[" * 100_000, b"\xef\xbb\xbf{}", b"\xff\xfe{\0}\0", b'{"a": 1}, {"b": 2}', b"\0" * 50]),
    st.just(json.dumps(GOOD | {"text": "a" * 1_000_000}).encode()),
)  # fmt: skip


def read_hostile(path: Path, lines: list[bytes], ending: bytes, mark: bytes) -> None:
    path.write_bytes(mark + ending.join(lines))
    try:
        utterances = read_manifest(path)
    except ManifestError as error:
        found = re.match(rf"{re.escape(str(path))}:(\d+): ", str(error))
        assert found or "is empty" in str(error), error
        assert len(str(error)) < 1000 and "\n" not in str(error)
        if found:  # the line named is the first that cannot be read alone
            number = int(found[1])
            for index, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")[:number], start=1):
                alone = path.with_name("alone.jsonl")
                alone.write_bytes(line + b"\n")
                if index == number or not line.strip():
                    with pytest.raises(ManifestError):
                        read_manifest(alone)
                else:
                    assert len(read_manifest(alone)) == 1
        return
    for utterance in utterances:
        assert Path(utterance.audio_filepath).is_absolute() and ".." not in Path(utterance.audio_filepath).parts
        assert 0 < utterance.duration < np.inf and 0 <= utterance.offset < np.inf
        assert all(isinstance(value, str) for value in (utterance.text, utterance.speaker, utterance.id))
    write_manifest(path.with_name("again.jsonl"), utterances)
    again = read_manifest(path.with_name("again.jsonl"))
    assert [(u.text, u.id, u.audio_filepath) for u in again] == [(u.text, u.id, u.audio_filepath) for u in utterances]


HOSTILE_MANIFEST = given(st.lists(LINE, min_size=1, max_size=4), st.sampled_from([b"\n", b"\r\n"]), st.sampled_from([b"", b"\xef\xbb\xbf"]))
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


@settings(max_examples=60, deadline=None, suppress_health_check=QUIET, derandomize=True)
@HOSTILE_MANIFEST
def test_a_hostile_manifest_is_read_or_its_line_is_named(tmp_path: Path, lines: list[bytes], ending: bytes, mark: bytes) -> None:
    read_hostile(tmp_path / "m.jsonl", lines, ending, mark)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, suppress_health_check=QUIET)
@HOSTILE_MANIFEST
def test_two_thousand_hostile_manifests_are_read_or_their_lines_are_named(tmp_path: Path, lines: list[bytes], ending: bytes, mark: bytes) -> None:
    read_hostile(tmp_path / "m.jsonl", lines, ending, mark)


def test_paths_that_climb_out_of_the_folder_are_read_and_written_as_what_they_mean(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text(json.dumps(GOOD | {"audio_filepath": "x/../../elsewhere/a.wav"}))
    (utterance,) = read_manifest(tmp_path / "m.jsonl")
    assert utterance.audio_filepath == str(tmp_path.parent / "elsewhere" / "a.wav")


@pytest.mark.parametrize("text", ["\ud800", "a\0b", "\u202ea", "é" * 100_000])
def test_texts_that_cannot_be_written_down_are_refused_in_a_line_that_can(text: str) -> None:
    with pytest.raises(TextError) as error:
        ENGLISH.encode(text)
    assert len(str(error.value).encode()) < 1000  # encodes: no lone surrogates


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_normalising_twice_is_normalising_once_and_the_vocabulary_of_a_text_spells_it(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once and once.strip() == once and "  " not in once
    vocabulary = Vocabulary.from_texts([once])
    assert vocabulary.decode(vocabulary.encode(once)) == once


def test_the_same_word_in_other_unicode_is_no_error_once_normalised() -> None:
    for one, other in (("café", "cafe\u0301"), ("ﬁne", "fine"), ("ＡＢＣ", "abc"), ("don’t", "don't"), ("Ω", "ω"), ("Å", "å")):
        assert count_word_errors(normalise(one), normalise(other)).errors == 0, (one, other)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [("", "", (0, 0, 0, 0)), ("", "a b", (0, 0, 2, 0)), ("a b", "", (0, 2, 0, 0)), (" \t\n", "\u00a0", (0, 0, 0, 0)), ("a\u3000b", "a b", (0, 0, 0, 2))],
)
def test_empty_sides_and_odd_spaces(reference: str, hypothesis: str, expected: tuple[int, int, int, int]) -> None:
    counts = count_word_errors(reference, hypothesis)
    assert (counts.substitutions, counts.deletions, counts.insertions, counts.hits) == expected
    assert np.isfinite(count_character_errors(reference, hypothesis).rate)


# --- sclite -----------------------------------------------------------------------------------------------------------------------

SCLITE = shutil.which("sclite") or shutil.which("sclite", path="/usr/lib/sctk/bin")


def mistaken(words: list[str], rate: float, rng: np.random.Generator) -> list[str]:
    """Return the words with some of them replaced, left out or followed by another, as a recogniser does."""
    heard: list[str] = []
    for word in words:
        kind = rng.choice(["right", "other", "lost", "more"], p=[1 - rate, rate / 2, rate / 4, rate / 4])
        heard += {"right": [word], "other": [str(rng.choice(LEXICON))], "lost": [], "more": [word, str(rng.choice(LEXICON))]}[str(kind)]
    return heard


LEXICON = [f"{a}{b}" for a in "bdgkmnprst" for b in ("a", "e", "i", "o", "u")]


def sclite_counts(folder: Path, pairs: list[tuple[list[str], list[str]]]) -> list[tuple[int, int, int, int]]:
    """Return (hits, substitutions, deletions, insertions) of each pair as sclite counts them."""
    for name, side in (("ref", 0), ("hyp", 1)):
        (folder / name).write_text("".join(f"{' '.join(pair[side])} (s-{i:04d})\n" for i, pair in enumerate(pairs)))
    command = [str(SCLITE), "-r", "ref", "trn", "-h", "hyp", "trn", "-i", "wsj", "-o", "pralign", "-f", "0", "-O", "."]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    text = (folder / "hyp.pra").read_text(errors="replace")
    found: dict[int, Any] = {}
    for utterance, scores in re.findall(r"id: \(s-(\d+)\)\s*\nScores: \(#C #S #D #I\) ([\d ]+)", text):
        found[int(utterance)] = tuple(int(number) for number in scores.split())
    return [found[i] for i in range(len(pairs))]


@pytest.mark.skipif(SCLITE is None, reason="needs sclite, Debian's package sctk")
def test_the_totals_are_sclite_s_on_a_thousand_pairs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(1000):
        words = [str(word) for word in rng.choice(LEXICON, int(rng.integers(1, 25)))]
        pairs.append((words, mistaken(words, float(rng.uniform(0, 0.4)), rng)))
    for (reference, hypothesis), (hits, substitutions, deletions, insertions) in zip(pairs, sclite_counts(tmp_path, pairs), strict=True):
        counts = count_word_errors(" ".join(reference), " ".join(hypothesis))
        assert counts.reference_length == hits + substitutions + deletions
        assert counts.errors == substitutions + deletions + insertions, (reference, hypothesis)


@pytest.mark.skipif(SCLITE is None, reason="needs sclite, Debian's package sctk")
def test_on_pairs_that_have_little_in_common_sclite_never_finds_fewer_errors(tmp_path: Path) -> None:
    """Its costs are 4 for a substitution and 3 for the others: four substitutions it may exchange for five of the others."""
    rng = np.random.default_rng(1)
    pairs = [([str(w) for w in rng.choice(LEXICON[:4], 15)], [str(w) for w in rng.choice(LEXICON[:4], int(rng.integers(1, 30)))]) for _ in range(300)]
    more = 0
    for (reference, hypothesis), (_, substitutions, deletions, insertions) in zip(pairs, sclite_counts(tmp_path, pairs), strict=True):
        counts = count_word_errors(" ".join(reference), " ".join(hypothesis))
        assert counts.errors <= substitutions + deletions + insertions
        assert 4 * substitutions + 3 * (deletions + insertions) <= 4 * counts.substitutions + 3 * (counts.deletions + counts.insertions)
        more += counts.errors < substitutions + deletions + insertions
    assert more < 15
