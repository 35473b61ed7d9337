"""Facts about CTC. The oracle is the sum, or the best, over all paths, by enumeration."""

from __future__ import annotations

import itertools
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.ctc import CTCError, collapse, ctc_loss, forced_align, min_frames


def random_log_probs(rng: np.random.Generator, num_frames: int, size: int) -> np.ndarray:
    logits = rng.normal(0, 2, (num_frames, size))
    return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


def paths_of(tokens: list[int], num_frames: int, size: int) -> list[tuple[int, ...]]:
    return [path for path in itertools.product(range(size), repeat=num_frames) if collapse(path) == tokens]


def score(log_probs: np.ndarray, path: tuple[int, ...]) -> float:
    return float(sum(log_probs[t, k].astype(np.float64) for t, k in enumerate(path)))


def random_case(seed: int) -> tuple[np.ndarray, list[int]]:
    """Return (log_probs (T', V), tokens), small and feasible."""
    rng = np.random.default_rng(seed)
    while True:
        num_frames, size = int(rng.integers(1, 7)), int(rng.integers(2, 5))
        tokens = rng.integers(1, size, int(rng.integers(0, 5))).tolist()
        if min_frames(tokens) <= num_frames:
            return random_log_probs(rng, num_frames, size), tokens


def test_collapse_by_hand() -> None:
    assert collapse([0, 1, 1, 0, 1, 2, 2, 0, 0]) == [1, 1, 2]
    assert collapse([]) == collapse([0, 0]) == []


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 3), max_size=3))
def test_min_frames_is_the_shortest_path(tokens: list[int]) -> None:
    needed = min_frames(tokens)
    assert paths_of(tokens, needed, 4)
    assert needed == 0 or not paths_of(tokens, needed - 1, 4)


@pytest.mark.parametrize("seed", range(40))
def test_the_loss_is_the_sum_over_all_paths(seed: int) -> None:
    log_probs, tokens = random_case(seed)
    expected = -np.logaddexp.reduce([score(log_probs, path) for path in paths_of(tokens, *log_probs.shape)])
    padded = torch.full((1, len(tokens) + 2), -7)  # what stands beyond the target's length is of no interest
    padded[0, : len(tokens)] = torch.tensor(tokens)
    frames = torch.cat([torch.from_numpy(log_probs), torch.zeros(2, log_probs.shape[1])])[None]
    loss = ctc_loss(frames, torch.tensor([len(log_probs)]), padded, token_lengths=torch.tensor([len(tokens)]))
    assert loss.shape == (1,) and float(loss) == pytest.approx(expected, abs=1e-4)


def test_a_batch_of_empty_targets_has_the_loss_of_all_blanks() -> None:
    log_probs = torch.from_numpy(random_log_probs(np.random.default_rng(0), 4, 3))
    loss = ctc_loss(log_probs[None], torch.tensor([4]), torch.zeros(1, 0, dtype=torch.int64), token_lengths=torch.tensor([0]))
    assert float(loss) == pytest.approx(-float(log_probs[:, 0].sum()), abs=1e-4)


def test_the_gradient_is_finite_differences() -> None:
    logits = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).float().requires_grad_()
    lengths, tokens, token_lengths = torch.tensor([5, 4]), torch.tensor([[1, 1], [3, 0]]), torch.tensor([2, 1])

    def total(values: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = ctc_loss(values.log_softmax(dim=-1), lengths, tokens, token_lengths=token_lengths).sum()
        return loss

    total(logits).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None and not logits.grad[1, 4].any()
    for index in np.ndindex(2, 5, 4):
        change = torch.zeros(2, 5, 4)
        change[index] = 1e-2
        with torch.no_grad():
            slope = (total(logits + change) - total(logits - change)) / 2e-2
        assert float(logits.grad[index]) == pytest.approx(float(slope), abs=2e-3)


@pytest.mark.parametrize("seed", range(40))
def test_the_alignment_is_the_best_path(seed: int) -> None:
    log_probs, tokens = random_case(seed)
    spans = forced_align(log_probs, tokens)
    path = [0] * len(log_probs)
    for token, (first, end) in zip(tokens, spans, strict=True):
        assert first < end
        path[first:end] = [token] * (end - first)
    assert collapse(path) == tokens
    best = max(score(log_probs, other) for other in paths_of(tokens, *log_probs.shape))
    assert score(log_probs, tuple(path)) == pytest.approx(best, abs=1e-5)


def test_alignments_that_cannot_be_are_refused() -> None:
    log_probs = random_log_probs(np.random.default_rng(0), 3, 4)
    for tokens, reason in (([1, 1, 2], "cannot hold"), ([4], "1 to 3"), ([0], "1 to 3"), ([-1], "1 to 3")):
        with pytest.raises(CTCError, match=reason):
            forced_align(log_probs, tokens)
    log_probs[1:, 1] = -np.inf
    assert forced_align(log_probs, [1]) == [(0, 1)]
    log_probs[0, 1] = -np.inf
    with pytest.raises(CTCError, match="no path"):
        forced_align(log_probs, [1])
    with pytest.raises(CTCError, match="NaN"):
        forced_align(np.full((3, 4), np.nan, np.float32), [1])


LOG_PROBS = torch.zeros(2, 6, 5).log_softmax(dim=-1)


@pytest.mark.parametrize(
    ("tokens", "lengths", "token_lengths", "reason"),
    [
        ([[1, 2], [5, 1]], [6, 6], [2, 2], "second: a label outside 1 to 4"),
        ([[1, 2], [-1, 1]], [6, 6], [2, 2], "second: a label"),
        ([[1, 0], [1, 1]], [6, 6], [2, 2], "first: a label"),
        ([[1, 2], [3, 3]], [6, 2], [2, 2], "second: 2 output frames for a text of 2 tokens that needs 3"),
        ([[1, 2], [3, 3]], [7, 6], [2, 2], "first: a length of 7"),
        ([[1, 2], [3, 3]], [6, 0], [2, 2], "second: a length of 0"),
        ([[1, 2], [3, 3]], [6, 6], [2, 3], "second: a target length of 3"),
        ([[1, 2], [3, 3]], [6, 6], [-1, 2], "first: a target length of -1"),
    ],
)
def test_targets_that_would_corrupt_memory_or_hide_are_named(
    tokens: list[list[int]], lengths: list[int], token_lengths: list[int], reason: str
) -> None:
    with pytest.raises(CTCError, match=reason):
        ctc_loss(
            LOG_PROBS, torch.tensor(lengths), torch.tensor(tokens), token_lengths=torch.tensor(token_lengths), names=("first", "second")
        )


def test_shapes_and_kinds_are_checked() -> None:
    two = torch.tensor([2, 2])
    with pytest.raises(CTCError, match="expected log_probs"):
        ctc_loss(LOG_PROBS[0], two, torch.ones(2, 2, dtype=torch.int64), token_lengths=two)
    with pytest.raises(CTCError, match="expected log_probs"):
        ctc_loss(LOG_PROBS, two[:1], torch.ones(2, 2, dtype=torch.int64), token_lengths=two)
    with pytest.raises(CTCError, match="whole numbers"):
        ctc_loss(LOG_PROBS, two, torch.ones(2, 2), token_lengths=two)


@pytest.mark.parametrize("seed", range(20))
def test_a_band_that_holds_the_best_path_changes_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = [int(token) for token in rng.integers(1, 5, 40)]
    path = [state for token in tokens for state in [0] * int(rng.integers(1, 3)) + [token] * int(rng.integers(1, 4))]
    logits = rng.standard_normal((len(path), 5)) + 6 * np.eye(5)[path]
    log_probs = (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)
    assert forced_align(log_probs, tokens, band=31) == forced_align(log_probs, tokens)


def test_a_narrow_band_still_spells_the_whole_text() -> None:
    log_probs = np.log(np.full((25, 4), 0.25, np.float32))
    spans = forced_align(log_probs, [1, 2, 3] * 6, band=5)
    assert [start for start, _ in spans] == sorted({start for start, _ in spans})
    assert all(a_end <= b_start for (_, a_end), (b_start, _) in pairwise(spans))
