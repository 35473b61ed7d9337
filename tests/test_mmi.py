"""The denominator of MMI. The oracle is the sum over all paths, by enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from asr.ctc import collapse, ctc_loss
from asr.mmi import bigram, denominator, text_log_probs


def by_enumeration(log_probs: Tensor, transitions: Tensor) -> Tensor:
    """The denominator of one utterance (T', V)."""
    scores = []
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        text = [0, *collapse(path), 0]
        scores.append(log_probs[range(len(path)), path].sum() + transitions[text[:-1], text[1:]].log().sum())
    return torch.stack(scores).logsumexp(dim=0)


@pytest.mark.parametrize("seed", range(10))
def test_the_denominator_and_its_gradient_are_those_of_all_paths(seed: int) -> None:
    rng = np.random.default_rng(seed)
    transitions = bigram([rng.integers(1, 4, 3).tolist() for _ in range(5)], 4)
    lengths = torch.tensor([5, 1, 4])
    log_probs = torch.from_numpy(rng.normal(0, 3, (3, 5, 4))).log_softmax(dim=-1).requires_grad_()
    weights = torch.tensor([1.0, -2.0, 0.5])
    expected = torch.stack([by_enumeration(x[:length], transitions) for x, length in zip(log_probs, lengths, strict=True)])
    found = denominator(log_probs, lengths, transitions)
    assert torch.allclose(found.double(), expected, atol=1e-5)
    gradients = [torch.autograd.grad((weights * x).sum(), log_probs)[0] for x in (found, expected)]
    assert torch.allclose(*gradients, atol=1e-5)


def test_the_loss_is_that_of_the_text_among_all_texts() -> None:
    """What CTC and MMI add up to, e to the minus of it, over all texts that three frames can hold, is 1."""
    transitions = bigram([[1, 2], [2, 2, 1]], 3)
    log_probs = torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).log_softmax(dim=-1)
    length = torch.tensor([3])
    total = 0.0
    for text in {tuple(collapse(path)) for path in itertools.product(range(3), repeat=3)}:
        tokens, token_length = torch.tensor([[*text, 2, 2]]), torch.tensor([len(text)])  # what stands behind the text does not count
        loss = ctc_loss(log_probs, length, tokens, token_lengths=token_length)
        loss = loss + denominator(log_probs, length, transitions) - text_log_probs(tokens, token_length, transitions)
        total += float((-loss).exp())
    assert total == pytest.approx(1, abs=1e-5)


def test_long_and_improbable_utterances_do_not_underflow() -> None:
    log_probs = torch.randn(2, 3000, 40, generator=torch.Generator().manual_seed(0)).mul(30).log_softmax(dim=-1).requires_grad_()
    total = denominator(log_probs, torch.tensor([3000, 2000]), bigram([[1, 2, 3], [5, 5]], 40))
    (gradient,) = torch.autograd.grad(total.sum(), log_probs)
    assert bool(total.isfinite().all()) and bool((total < 0).all())
    assert torch.allclose(gradient.sum(dim=2)[0], torch.ones(3000), atol=1e-4)  # of each frame's tokens one is on the path
    assert not gradient[1, 2000:].any()


def test_the_bigram_by_hand() -> None:
    # After the start: 1 twice. After 1: 2 once, the end twice. After 2: 1. Half of each count goes to single tokens, seen 2, 3, 1 times and once more.
    expected = [[0.25 * 3 / 9, 0.75 + 0.25 * 4 / 9, 0.25 * 2 / 9], [0.5 + 1 / 3 * 3 / 9, 1 / 3 * 4 / 9, 1 / 6 + 1 / 3 * 2 / 9], [0.5 * 3 / 9, 0.5 + 0.5 * 4 / 9, 0.5 * 2 / 9]]
    assert torch.allclose(bigram([[1, 2, 1], [1]], 3), torch.tensor(expected, dtype=torch.float64))
    assert torch.allclose(bigram([], 3), torch.full((3, 3), 1 / 3, dtype=torch.float64))
