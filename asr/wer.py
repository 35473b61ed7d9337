"""Word and character error rates: counts, Kaldi's line, the bootstrap interval, alignments and confusions as text, calibration.

Knows two strings and nothing else: no audio, no model, no normalisation (callers normalise both sides first). The edit
distance is jiwer's, of unit costs, so the number of errors is the smallest possible. sclite weighs a substitution 4 and
the others 3: its split, and on very wrong hypotheses now and then its total, differs.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
NUM_RESAMPLES = 1000
_DRAWS_AT_ONCE = 2_000_000  # bounds the memory of the bootstrap (16 MB an array), whatever the number of utterances

# An alignment is many (reference word, hypothesis word): None on the left is an insertion, on the right a deletion.
Pair = tuple[str | None, str | None]

NUM_BINS = 10  # of confidence


@dataclass(frozen=True)
class ErrorCounts:
    """Edit operations from references to hypotheses; add the counts of utterances to get a corpus'."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    hits: int = 0

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        return ErrorCounts(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.hits + other.hits,
        )

    @property
    def reference_length(self) -> int:
        return self.hits + self.substitutions + self.deletions

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """errors / reference_length, a fraction: 0.05 is 5 %; above 1 when there are many insertions.

        Where the reference is empty it is the number of insertions, as jiwer 4 defines it: 0.0 for an empty hypothesis,
        and always finite. In a sum an empty reference adds its insertions to the errors and nothing to the length.
        """
        return self.errors / max(1, self.reference_length)


@dataclass(frozen=True)
class Confusions:
    """What was mistaken and how often, most frequent first, then alphabetically."""

    substitutions: tuple[tuple[tuple[str, str], int], ...]  # ((reference word, hypothesis word), times)
    deletions: tuple[tuple[str, int], ...]
    insertions: tuple[tuple[str, int], ...]


def count_word_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """Return the counts over words, which are what white space separates; case and punctuation count."""
    import jiwer

    output = jiwer.process_words(_single_spaced(reference), _single_spaced(hypothesis))
    return ErrorCounts(output.substitutions, output.deletions, output.insertions, output.hits)


def count_character_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """Return the counts over characters (code points); the single space between two words is one of them."""
    import jiwer

    output = jiwer.process_characters(_single_spaced(reference), _single_spaced(hypothesis))
    return ErrorCounts(output.substitutions, output.deletions, output.insertions, output.hits)


def kaldi_line(counts: ErrorCounts, name: str = "WER") -> str:
    """Return Kaldi's score line: `%WER 5.67 [ 2979 / 52576, 350 ins, 235 del, 2394 sub ]`."""
    return (
        f"%{name} {100 * counts.rate:.2f} [ {counts.errors} / {counts.reference_length}, "
        f"{counts.insertions} ins, {counts.deletions} del, {counts.substitutions} sub ]"
    )


def bootstrap_interval(
    counts: Sequence[ErrorCounts],
    *,
    groups: Sequence[str] | None = None,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval (low, high) of the corpus' rate, as fractions.

    counts: one per utterance; utterances are drawn with replacement, as many as there are (Bisani & Ney 2004).
    groups: one name per utterance, for instance its speaker; then whole groups are drawn, which is the honest interval
    when a speaker's utterances are alike. The same seed gives the same interval. One utterance or group gives an
    interval of no width, none gives (0, 0). Raises ValueError for num_resamples < 1 and for too few or many `groups`.
    """
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be at least 1, found {num_resamples}")
    errors, lengths = _totals_by_group(counts, range(len(counts)) if groups is None else groups)
    if not len(errors):
        return 0.0, 0.0
    generator = np.random.default_rng(seed)
    block = max(1, _DRAWS_AT_ONCE // len(errors))
    rates = [
        _resampled_rates(errors, lengths, generator, min(block, num_resamples - first))
        for first in range(0, num_resamples, block)
    ]
    low, high = np.quantile(np.concatenate(rates), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def align_words(reference: str, hypothesis: str) -> tuple[Pair, ...]:
    """Return the words of both sides in pairs, None where the other side has a word too many."""
    import jiwer

    output = jiwer.process_words(_single_spaced(reference), _single_spaced(hypothesis))
    words, heard = output.references[0], output.hypotheses[0]
    pairs: list[Pair] = []
    for chunk in output.alignments[0]:
        left: list[str] = words[chunk.ref_start_idx : chunk.ref_end_idx]
        right: list[str] = heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "delete":
            pairs += [(word, None) for word in left]
        elif chunk.type == "insert":
            pairs += [(None, word) for word in right]
        else:
            pairs += zip(left, right, strict=True)
    return tuple(pairs)


def alignment_report(alignment: Iterable[Pair]) -> str:
    """Return three lines with the words in columns, as sclite prints them: asterisks for no word, S, D and I below.

    REF:  the *** cat  sat
    HYP:  the cap down sat
    Eval:     I   S
    """
    rows = ["REF: ", "HYP: ", "Eval:"]
    for reference, hypothesis in alignment:
        width = max(_width(reference or ""), _width(hypothesis or ""))
        cells = (reference or "*" * width, hypothesis or "*" * width, _mark(reference, hypothesis))
        rows = [f"{row} {cell}{' ' * (width - _width(cell))}" for row, cell in zip(rows, cells, strict=True)]
    return "\n".join(row.rstrip() for row in rows)


def find_confusions(alignments: Iterable[Iterable[Pair]]) -> Confusions:
    """Count the substituted pairs, the deleted and the inserted words of many alignments."""
    substitutions: Counter[tuple[str, str]] = Counter()
    deletions: Counter[str] = Counter()
    insertions: Counter[str] = Counter()
    for reference, hypothesis in (pair for alignment in alignments for pair in alignment):
        if hypothesis is None and reference is not None:
            deletions[reference] += 1
        elif reference is None and hypothesis is not None:
            insertions[hypothesis] += 1
        elif reference is not None and hypothesis is not None and reference != hypothesis:
            substitutions[reference, hypothesis] += 1
    return Confusions(
        tuple(sorted(substitutions.items(), key=lambda item: (-item[1], item[0]))),
        tuple(sorted(deletions.items(), key=lambda item: (-item[1], item[0]))),
        tuple(sorted(insertions.items(), key=lambda item: (-item[1], item[0]))),
    )


def confusions_report(confusions: Confusions, num_most: int = 10) -> str:
    """Return the `num_most` most frequent substitutions (reference -> hypothesis), deletions and insertions."""
    pairs = [(f"{reference} -> {hypothesis}", times) for (reference, hypothesis), times in confusions.substitutions]
    sections = [("substitutions", pairs), ("deletions", confusions.deletions), ("insertions", confusions.insertions)]
    lines = []
    for title, entries in sections:
        lines.append(f"{title}: {sum(times for _, times in entries)}, {len(entries)} different")
        lines += [f"{times:6d}  {what}" for what, times in entries[:num_most]]
    return "\n".join(lines)


def reliability(confidences: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the number of words, their mean confidence and the share of right ones in NUM_BINS bins of confidence; NaN in empty bins.

    confidences (W,): 0 to 1; right (W,): 1 for a word that is right, else 0.
    """
    bins = np.minimum((confidences * NUM_BINS).astype(int), NUM_BINS - 1)
    counts = np.bincount(bins, minlength=NUM_BINS)
    with np.errstate(invalid="ignore"):
        means, shares = (np.bincount(bins, values, NUM_BINS) / counts for values in (confidences, right))
    return counts, means, shares


def expected_calibration_error(confidences: np.ndarray, right: np.ndarray) -> float:
    """Return the mean distance between confidence and share of right words over the bins of `reliability`, weighted by their words.

    Guo et al. 2017, "On calibration of modern neural networks".
    """
    counts, means, shares = reliability(confidences, right)
    return float(np.nansum(counts * np.abs(means - shares)) / max(len(confidences), 1))


def _single_spaced(text: str) -> str:
    """Write `text` with single spaces: jiwer itself takes a tab or a newline between two words for a letter."""
    return " ".join(text.split())


def _totals_by_group(counts: Sequence[ErrorCounts], groups: Iterable[object]) -> tuple[np.ndarray, np.ndarray]:
    """Return errors (G,) and reference lengths (G,) of each group, groups in the order of their first utterance."""
    totals: defaultdict[object, ErrorCounts] = defaultdict(ErrorCounts)
    for count, group in zip(counts, groups, strict=True):
        totals[group] += count
    errors = np.array([total.errors for total in totals.values()], dtype=np.int64)
    lengths = np.array([total.reference_length for total in totals.values()], dtype=np.int64)
    return errors, lengths


def _resampled_rates(
    errors: np.ndarray, lengths: np.ndarray, generator: np.random.Generator, num_resamples: int
) -> np.ndarray:
    """Return the rates (R,), as ErrorCounts.rate, of R corpora drawn with replacement from errors and lengths (G,)."""
    drawn = generator.integers(0, len(errors), size=(num_resamples, len(errors)))  # (R, G)
    rates: np.ndarray = errors[drawn].sum(axis=1) / np.maximum(1, lengths[drawn].sum(axis=1))
    return rates


def _mark(reference: str | None, hypothesis: str | None) -> str:
    if reference == hypothesis:
        return ""
    return "I" if reference is None else "D" if hypothesis is None else "S"


def _width(text: str) -> int:
    """Return the columns `text` takes in a terminal: combining marks none, wide East Asian characters two."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )
