"""The expected word errors. The oracle is the sum over all paths, by enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from asr.ctc import collapse
from asr.decoder import Hypothesis, beam_search
from asr.mwer import expected_errors
from asr.text import Vocabulary
from asr.wer import count_word_errors

LETTERS = Vocabulary(("<blank>", " ", "a"))


def search(log_probs: np.ndarray) -> list[Hypothesis]:
    """All texts there are."""
    return beam_search(log_probs, LETTERS, beam_size=1000, num_best=1000, beam_threshold=1e9, token_threshold=-1e9, blank_threshold=2.0)


def by_enumeration(log_probs: Tensor, text: str, scale: float) -> Tensor:
    """The expected errors of one utterance (T', V)."""
    scores: dict[str, list[Tensor]] = {}
    for path in itertools.product(range(len(LETTERS)), repeat=len(log_probs)):
        scores.setdefault(LETTERS.decode(collapse(path)), []).append(log_probs[range(len(path)), path].sum())
    best: dict[str, Tensor] = {}  # of the spellings that are the same words, as the search has it
    for spelled, paths in scores.items():
        score, words = torch.stack(paths).logsumexp(dim=0), " ".join(spelled.split())
        best[words] = max(best.get(words, score), score)
    weights = torch.softmax(scale * torch.stack(list(best.values())), dim=0)
    errors = torch.tensor([float(count_word_errors(text, words).errors) for words in best])
    return (weights * errors).sum()


@pytest.mark.parametrize("seed", range(5))
def test_the_expected_errors_and_their_gradient_are_those_of_all_texts(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_probs = (2 * torch.randn(3, 5, len(LETTERS), generator=generator)).log_softmax(dim=-1).requires_grad_()
    lengths, texts = torch.tensor([5, 1, 4]), ("a a", "a", "aa a")
    expected = torch.stack([by_enumeration(x[:n], text, 0.7) for x, n, text in zip(log_probs, lengths, texts, strict=True)])
    found = expected_errors(log_probs, lengths, texts, search, scale=0.7)
    assert torch.allclose(found, expected, atol=1e-5)
    for b in range(3):
        gradients = [torch.autograd.grad(x[b], log_probs, retain_graph=True)[0] for x in (found, expected)]
        # CTC's gradient is that with respect to what stands before the softmax: they agree there
        centred = [g - log_probs.exp() * g.sum(dim=-1, keepdim=True) for g in gradients]
        assert torch.allclose(*centred, atol=1e-5)


def test_what_makes_no_errors_becomes_more_probable() -> None:
    logits = torch.zeros(2, 6, len(LETTERS)).requires_grad_()
    lengths, texts = torch.tensor([6, 4]), ("a a", "a")
    optimiser = torch.optim.SGD([logits], lr=3.0)
    for _ in range(60):
        loss = expected_errors(logits.log_softmax(dim=-1), lengths, texts, search).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    log_probs = logits.detach().log_softmax(dim=-1)
    assert loss < 0.2
    assert [search(x[:n].numpy())[0].text for x, n in zip(log_probs, lengths.tolist(), strict=True)] == list(texts)


@pytest.mark.parametrize("token", [0, 2])  # a blank, and the beginning of a word that does not end
def test_an_utterance_in_which_nothing_is_found_has_a_loss(token: int) -> None:
    log_probs = torch.full((1, 3, 3), 1e-30).log()
    log_probs[..., token] = 0.0
    log_probs.requires_grad_()

    def narrow(x: np.ndarray) -> list[Hypothesis]:
        return beam_search(x, LETTERS, lexicon=["aaaa"])

    loss = expected_errors(log_probs, torch.tensor([3]), ("a a",), narrow)
    assert loss.tolist() == [2.0]
    (gradient,) = torch.autograd.grad(loss.sum(), log_probs)
    assert not gradient.any()
