"""Facts about error rates; oracles: counts by hand, an exhaustive edit distance, sclite, the binomial distribution."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.wer import (
    Confusions,
    ErrorCounts,
    align_words,
    alignment_report,
    bootstrap_interval,
    confusions_report,
    count_character_errors,
    count_word_errors,
    find_confusions,
    kaldi_line,
)

SCLITE = shutil.which("sclite") or shutil.which("/usr/lib/sctk/bin/sclite")


@pytest.mark.parametrize(
    ("reference", "hypothesis", "counts"),
    [
        ("the cat sat", "the cat sat", ErrorCounts(0, 0, 0, 3)),
        ("the cat sat", "the cap sat", ErrorCounts(1, 0, 0, 2)),
        ("the cat sat", "the sat", ErrorCounts(0, 1, 0, 2)),
        ("the cat sat", "the big cat sat", ErrorCounts(0, 0, 1, 3)),
        ("a b c d e", "x b d e f", ErrorCounts(1, 1, 1, 3)),
        ("a b", "", ErrorCounts(0, 2, 0, 0)),
        ("", "a b", ErrorCounts(0, 0, 2, 0)),
        ("", "", ErrorCounts(0, 0, 0, 0)),
        ("  a \t b\nc ", "a b  c", ErrorCounts(0, 0, 0, 3)),
        ("naïve Ärger", "naïve ärger", ErrorCounts(1, 0, 0, 1)),
    ],
)
def test_word_errors_counted_by_hand(reference: str, hypothesis: str, counts: ErrorCounts) -> None:
    assert count_word_errors(reference, hypothesis) == counts


@pytest.mark.parametrize(
    ("reference", "hypothesis", "counts"),
    [
        ("cat", "cap", ErrorCounts(1, 0, 0, 2)),
        ("a b", "ab", ErrorCounts(0, 1, 0, 2)),
        ("ab", "a b", ErrorCounts(0, 0, 1, 2)),
        ("a  b ", " a b", ErrorCounts(0, 0, 0, 3)),
        ("", "ab", ErrorCounts(0, 0, 2, 0)),
    ],
)
def test_character_errors_counted_by_hand(reference: str, hypothesis: str, counts: ErrorCounts) -> None:
    assert count_character_errors(reference, hypothesis) == counts


def test_counts_add_to_the_corpus_rate_and_not_to_the_mean_of_rates() -> None:
    total = sum([ErrorCounts(1, 0, 0, 0), ErrorCounts(0, 0, 0, 9)], ErrorCounts())
    assert (total.errors, total.reference_length, total.rate) == (1, 10, 0.1)


def test_rate_of_an_empty_reference_is_the_number_of_insertions_as_in_jiwer() -> None:
    import jiwer

    for hypothesis in ("", "a", "a b c"):
        assert count_word_errors("", hypothesis).rate == jiwer.wer("", hypothesis) == len(hypothesis.split())
        assert math.isfinite(json.loads(json.dumps(count_word_errors("", hypothesis).rate, allow_nan=False)))


def test_kaldi_line_is_kaldis() -> None:
    counts = ErrorCounts(substitutions=2394, deletions=235, insertions=350, hits=52576 - 2394 - 235)
    assert kaldi_line(counts) == "%WER 5.67 [ 2979 / 52576, 350 ins, 235 del, 2394 sub ]"
    assert kaldi_line(ErrorCounts(1, 0, 0, 2), "CER") == "%CER 33.33 [ 1 / 3, 0 ins, 0 del, 1 sub ]"
    assert kaldi_line(ErrorCounts()) == "%WER 0.00 [ 0 / 0, 0 ins, 0 del, 0 sub ]"


def test_errors_are_the_edit_distance_by_exhaustive_recursion() -> None:
    rng = random.Random(0)
    for _ in range(300):
        reference, hypothesis = _random_words(rng, "abc", 0, 7), _random_words(rng, "abc", 0, 7)
        counts = count_word_errors(reference, hypothesis)
        assert counts.errors == _edit_distance(tuple(reference.split()), tuple(hypothesis.split()))
        assert counts.reference_length == len(reference.split())
        assert counts.hits + counts.substitutions + counts.insertions == len(hypothesis.split())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from("abcd")), st.lists(st.sampled_from("abcd")))
def test_alignment_keeps_every_word_in_order_and_costs_the_counted_errors(left: list[str], right: list[str]) -> None:
    reference, hypothesis = " ".join(left), " ".join(right)
    alignment = align_words(reference, hypothesis)
    assert [word for word, _ in alignment if word is not None] == left
    assert [word for _, word in alignment if word is not None] == right
    counts = count_word_errors(reference, hypothesis)
    assert sum(word == heard for word, heard in alignment) == counts.hits
    assert sum(heard is None for _, heard in alignment) == counts.deletions
    assert sum(word is None for word, _ in alignment) == counts.insertions


def test_alignment_report_puts_words_in_columns() -> None:
    alignment = [("the", "the"), ("cat", "cap"), (None, "down"), ("sat", None), ("still", "still")]
    assert alignment_report(alignment) == (
        "REF:  the cat **** sat still\n"
        "HYP:  the cap down *** still\n"
        "Eval:     S   I    D"
    )  # fmt: skip


def test_alignment_report_counts_terminal_columns_and_not_code_points() -> None:
    reference, hypothesis, _ = alignment_report([("日本", None), ("u\u0308ber", "u\u0308ber"), ("x", "x")]).split("\n")
    assert reference == "REF:  日本 u\u0308ber x"
    assert hypothesis == "HYP:  **** u\u0308ber x"


def test_alignment_report_of_nothing_is_three_labels() -> None:
    assert alignment_report(align_words("", "")) == "REF:\nHYP:\nEval:"


def test_confusions_are_counted_and_sorted() -> None:
    pairs = [("a cat", "a cap"), ("the cat", "the cap"), ("an ox", "ox"), ("b", "c"), ("go", "go on"), ("", "oh")]
    confusions = find_confusions(align_words(*pair) for pair in pairs)
    assert confusions == Confusions(
        substitutions=((("cat", "cap"), 2), (("b", "c"), 1)),
        deletions=(("an", 1),),
        insertions=(("oh", 1), ("on", 1)),
    )
    assert confusions_report(confusions, 1) == (
        "substitutions: 3, 2 different\n     2  cat -> cap\n"
        "deletions: 1, 1 different\n     1  an\n"
        "insertions: 2, 2 different\n     1  oh"
    )  # fmt: skip


def test_bootstrap_interval_of_one_word_utterances_is_the_binomial_one() -> None:
    num_words, rate = 2000, 0.1
    counts = [ErrorCounts(1, 0, 0, 0)] * 200 + [ErrorCounts(0, 0, 0, 1)] * 1800
    low, high = bootstrap_interval(counts, num_resamples=4000)
    half = 1.96 * math.sqrt(rate * (1 - rate) / num_words)
    assert low == pytest.approx(rate - half, abs=0.1 * half)
    assert high == pytest.approx(rate + half, abs=0.1 * half)


def test_bootstrap_interval_covers_the_true_rate_95_times_in_100() -> None:
    rng = np.random.default_rng(1)
    num_corpora, covered = 300, 0
    for seed in range(num_corpora):
        errors = rng.binomial(10, 0.2, size=100)
        low, high = bootstrap_interval([ErrorCounts(int(e), 0, 0, 10 - int(e)) for e in errors], seed=seed)
        covered += low <= 0.2 <= high
    assert 0.91 <= covered / num_corpora <= 0.98


def test_bootstrap_interval_depends_on_the_seed_alone() -> None:
    counts = [ErrorCounts(i % 3, 0, 0, 5) for i in range(50)]
    assert bootstrap_interval(counts, seed=3) == bootstrap_interval(counts, seed=3)
    assert bootstrap_interval(counts, seed=3) != bootstrap_interval(counts, seed=4)


def test_bootstrap_over_speakers_takes_a_speakers_utterances_as_one() -> None:
    speakers = [ErrorCounts(i % 4, 0, 0, 10) for i in range(20)]
    utterances = [count for count in speakers for _ in range(5)]
    names = [str(i) for i in range(20) for _ in range(5)]
    by_speaker = bootstrap_interval(utterances, groups=names)
    assert by_speaker == bootstrap_interval(speakers)
    by_utterance = bootstrap_interval(utterances)
    assert by_speaker[1] - by_speaker[0] > 1.5 * (by_utterance[1] - by_utterance[0])


def test_bootstrap_of_degenerate_corpora_is_finite() -> None:
    assert bootstrap_interval([]) == (0.0, 0.0)
    assert bootstrap_interval([ErrorCounts(1, 0, 0, 3)]) == (0.25, 0.25)
    assert bootstrap_interval([ErrorCounts(0, 0, 2, 0)] * 3) == (6.0, 6.0)
    assert bootstrap_interval([ErrorCounts()] * 3) == (0.0, 0.0)


def test_bootstrap_needs_a_group_per_utterance_and_a_resample() -> None:
    with pytest.raises(ValueError):
        bootstrap_interval([ErrorCounts()] * 3, groups=["a", "b"])
    with pytest.raises(ValueError, match="num_resamples"):
        bootstrap_interval([ErrorCounts()], num_resamples=0)


def test_import_loads_no_torch_and_no_jiwer() -> None:
    code = "import sys, asr.wer; sys.exit(bool({'torch', 'jiwer', 'rapidfuzz'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0


@pytest.mark.skipif(SCLITE is None, reason="sclite (Debian's package sctk) is not installed")
def test_total_errors_are_sclites_at_the_error_rates_of_speech(tmp_path: Path) -> None:
    rng = random.Random(0)
    lexicon = [f"w{i}" for i in range(200)]
    references = [_random_words(rng, lexicon, 0, 30) for _ in range(300)]
    pairs = [(reference, _disturb(rng, reference, lexicon)) for reference in references]
    theirs = _sclite(pairs, tmp_path)
    ours = [count_word_errors(*pair) for pair in pairs]
    assert [c.errors for c in ours] == [c.errors for c in theirs]
    assert [c.reference_length for c in ours] == [c.reference_length for c in theirs]


@pytest.mark.skipif(SCLITE is None, reason="sclite (Debian's package sctk) is not installed")
def test_sclite_never_finds_fewer_errors_and_differs_only_by_its_weights(tmp_path: Path) -> None:
    rng = random.Random(0)
    pairs = [(_random_words(rng, "abcdef", 0, 20), _random_words(rng, "abcdef", 0, 20)) for _ in range(300)]
    for ours, theirs in zip((count_word_errors(*pair) for pair in pairs), _sclite(pairs, tmp_path), strict=True):
        assert ours.errors <= theirs.errors
        assert _sclite_cost(theirs) <= _sclite_cost(ours)


def _edit_distance(left: tuple[str, ...], right: tuple[str, ...]) -> int:
    @cache
    def rest(i: int, j: int) -> int:
        if i == len(left) or j == len(right):
            return len(left) - i + len(right) - j
        return min(rest(i + 1, j + 1) + (left[i] != right[j]), rest(i + 1, j) + 1, rest(i, j + 1) + 1)

    return rest(0, 0)


def _random_words(rng: random.Random, lexicon: str | list[str], shortest: int, longest: int) -> str:
    return " ".join(rng.choice(lexicon) for _ in range(rng.randint(shortest, longest)))


def _disturb(rng: random.Random, text: str, lexicon: list[str]) -> str:
    """Delete, replace and insert words, about 20 % in all."""
    changed: list[str] = []
    for word in text.split():
        other = rng.choice(lexicon)
        changed += rng.choices([[word], [], [other], [word, other]], weights=[12, 1, 1, 1])[0]
    return " ".join(changed)


def _sclite_cost(counts: ErrorCounts) -> int:
    return 4 * counts.substitutions + 3 * (counts.deletions + counts.insertions)


def _sclite(pairs: list[tuple[str, str]], folder: Path) -> list[ErrorCounts]:
    for name, side in (("ref", 0), ("hyp", 1)):
        (folder / name).write_text("".join(f"{pair[side]} (s-{i:04d})\n" for i, pair in enumerate(pairs)))
    command = [str(SCLITE), "-r", str(folder / "ref"), "trn", "-h", str(folder / "hyp"), "trn", "-i", "rm"]
    report = subprocess.run([*command, "-o", "pralign", "stdout"], capture_output=True, text=True, check=True).stdout
    scores = re.findall(r"id: \(s-(\d+)\)\s+Scores: \(#C #S #D #I\) (\d+) (\d+) (\d+) (\d+)", report)
    counts = {int(i): ErrorCounts(int(s), int(d), int(n), int(c)) for i, c, s, d, n in scores}
    return [counts[i] for i in range(len(pairs))]
