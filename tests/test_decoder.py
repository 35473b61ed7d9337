"""Facts about greedy decoding and beam search. The oracle is the sum over every path, by enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from asr.ctc import collapse
from asr.decoder import DecoderError, beam_search, greedy_decode
from asr.text import BLANK, ENGLISH, Vocabulary

SMALL = Vocabulary((BLANK, " ", "a", "b"))


def random_log_probs(rng: np.random.Generator, num_frames: int, size: int, *, scale: float = 1.5) -> np.ndarray:
    logits = rng.normal(0, scale, (num_frames, size))
    return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


def all_texts(log_probs: np.ndarray) -> dict[tuple[int, ...], float]:
    """Log-probability of every token sequence: the sum over all V ** T' paths."""
    num_frames, size = log_probs.shape
    totals: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(size), repeat=num_frames):
        tokens = tuple(collapse(path))
        score = float(sum(log_probs[t, k].astype(np.float64) for t, k in enumerate(path)))
        totals[tokens] = float(np.logaddexp(totals.get(tokens, -np.inf), score))
    return totals


@pytest.mark.parametrize("seed", range(60))
def test_beam_search_with_a_wide_beam_equals_the_sum_over_all_paths(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_frames, size = int(rng.integers(1, 6)), int(rng.integers(2, 5))
    vocabulary = Vocabulary(SMALL.tokens[:size])
    log_probs = random_log_probs(rng, num_frames, size)
    expected = all_texts(log_probs)
    found = {hypothesis.tokens: hypothesis.score for hypothesis in beam_search(log_probs, vocabulary, beam_size=10_000)}
    assert found.keys() == expected.keys()
    assert all(found[tokens] == pytest.approx(expected[tokens], abs=1e-9) for tokens in expected)


def test_hypotheses_come_best_first() -> None:
    scores = [h.score for h in beam_search(random_log_probs(np.random.default_rng(0), 5, 4), SMALL)]
    assert scores == sorted(scores, reverse=True)


def test_beam_search_finds_the_text_whose_paths_are_many_where_greedy_takes_the_best_path() -> None:
    log_probs = np.log(np.array([[0.6, 0.0, 0.4, 0.0], [0.6, 0.0, 0.4, 0.0]], np.float32) + 1e-30)
    assert greedy_decode(log_probs, SMALL).text == ""  # one path: 0.36
    assert beam_search(log_probs, SMALL)[0].text == "a"  # three paths: 0.24 + 0.24 + 0.16


def test_greedy_merges_repeats_and_drops_blanks_and_peaks_inside_the_run() -> None:
    path = [0, 2, 2, 0, 2, 3, 3, 1]
    log_probs = np.full((8, 4), np.log(0.1), np.float32)
    log_probs[np.arange(8), path] = np.log([0.7, 0.6, 0.7, 0.7, 0.7, 0.7, 0.6, 0.7])
    hypothesis = greedy_decode(log_probs, SMALL)
    assert (hypothesis.text, hypothesis.tokens, hypothesis.frames) == ("aab ", (2, 2, 3, 1), (2, 4, 5, 7))
    assert hypothesis.score == pytest.approx(6 * np.log(0.7) + 2 * np.log(0.6), abs=1e-5)


@pytest.mark.parametrize("decode", [greedy_decode, lambda p, v: beam_search(p, v)[0]])
def test_no_frames_or_only_blanks_are_the_empty_text(decode) -> None:
    assert decode(np.zeros((0, 29), np.float32), ENGLISH).text == ""
    blanks = np.full((7, 29), -20, np.float32)
    blanks[:, 0] = 0
    assert decode(blanks, ENGLISH).text == ""


@pytest.mark.parametrize("decode", [greedy_decode, beam_search])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1.0])
def test_what_is_no_log_probability_is_an_error_that_names_the_frame(decode, value: float) -> None:
    log_probs = random_log_probs(np.random.default_rng(1), 6, 29)
    log_probs[4, 7] = value
    with pytest.raises(DecoderError, match="frame 4"):
        decode(log_probs, ENGLISH)


@pytest.mark.parametrize("decode", [greedy_decode, beam_search])
def test_a_frame_where_nothing_is_possible_is_an_error(decode) -> None:
    log_probs = random_log_probs(np.random.default_rng(1), 6, 29)
    log_probs[2] = -np.inf
    with pytest.raises(DecoderError, match="frame 2"):
        decode(log_probs, ENGLISH)


@pytest.mark.parametrize("decode", [greedy_decode, beam_search])
def test_another_vocabulary_than_the_models_is_an_error(decode) -> None:
    with pytest.raises(DecoderError, match="do not belong together"):
        decode(random_log_probs(np.random.default_rng(1), 6, 29), SMALL)
