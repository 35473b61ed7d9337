"""CTC at its limits: every batch that torch would corrupt memory over is refused by name, every other one has the loss of brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_ctc import paths_of, random_log_probs, score

from asr.ctc import CTCError, ctc_loss, min_frames

FAULTS = ("infeasible", "blank", "negative", "too large", "huge", "no frames", "too many frames", "negative length", "long length")


def random_batch(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return log_probs (B, T, V), lengths, tokens and token_lengths (B,), all feasible; some targets are empty."""
    batch, frames, size, longest = int(rng.integers(1, 9)), int(rng.integers(6, 40)), int(rng.integers(2, 40)), int(rng.integers(0, 4))
    tokens = rng.integers(1, size, (batch, longest))
    return (
        torch.randn(batch, frames, size, generator=torch.Generator().manual_seed(int(rng.integers(2**31)))).log_softmax(dim=-1),
        torch.from_numpy(rng.integers(6, frames + 1, batch)),
        torch.from_numpy(tokens),
        torch.from_numpy(rng.integers(0, longest + 1, batch)),
    )


def break_one(rng: np.random.Generator, fault: str, index: int, lengths: torch.Tensor, tokens: torch.Tensor, token_lengths: torch.Tensor, size: int) -> None:
    """Put a fault into one utterance of a batch with targets of at least one token."""
    place = int(rng.integers(tokens.shape[1]))
    if fault in ("blank", "negative", "too large", "huge"):
        token_lengths[index] = tokens.shape[1]
        tokens[index, place] = {"blank": 0, "negative": -int(rng.integers(1, 100)), "too large": size + int(rng.integers(100)), "huge": 2**40}[fault]
    elif fault == "infeasible":
        token_lengths[index] = tokens.shape[1]
        lengths[index] = min_frames(tokens[index].tolist()) - 1
    elif fault in ("no frames", "too many frames"):
        lengths[index] = 0 if fault == "no frames" else 10_000
    else:
        token_lengths[index] = -1 if fault == "negative length" else tokens.shape[1] + 1


@pytest.mark.parametrize("block", range(4))
def test_a_thousand_batches_are_refused_by_name_or_have_a_finite_loss_and_gradient(block: int) -> None:
    rng = np.random.default_rng(block)
    for number in range(250):
        log_probs, lengths, tokens, token_lengths = random_batch(rng)
        names = [f"utterance-{i}" for i in range(len(log_probs))]
        log_probs.requires_grad_()
        loss = ctc_loss(log_probs, lengths, tokens, token_lengths=token_lengths, names=names)
        loss.sum().backward()  # type: ignore[no-untyped-call]
        assert loss.isfinite().all() and (loss > -1e-4).all()
        assert log_probs.grad is not None and log_probs.grad.isfinite().all()
        if tokens.shape[1]:
            index, fault = int(rng.integers(len(names))), FAULTS[number % len(FAULTS)]
            break_one(rng, fault, index, lengths, tokens, token_lengths, log_probs.shape[2])
            with pytest.raises(CTCError, match=f"^utterance-{index}: "):
                ctc_loss(log_probs, lengths, tokens, token_lengths=token_lengths, names=names)


def compare_with_brute_force(seed: int, count: int) -> None:
    """All 5,000 cases of one shape stand in a few batches, so that padding and neighbours are part of what is shown."""
    rng = np.random.default_rng(seed)
    cases = []
    while len(cases) < count:
        num_frames, size = int(rng.integers(1, 6)), 4
        tokens = rng.integers(1, size, int(rng.integers(0, 4))).tolist()
        if min_frames(tokens) <= num_frames:
            cases.append((random_log_probs(rng, num_frames, size), tokens))
    for first in range(0, count, 50):
        part = cases[first : first + 50]
        log_probs, tokens_of = torch.zeros(len(part), 6, 4), torch.full((len(part), 4), -1)
        for row, (frames, tokens) in enumerate(part):
            log_probs[row, : len(frames)] = torch.from_numpy(frames)
            tokens_of[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
        lengths, token_lengths = torch.tensor([len(x) for x, _ in part]), torch.tensor([len(t) for _, t in part])
        losses = ctc_loss(log_probs, lengths, tokens_of, token_lengths=token_lengths).tolist()
        for loss, (frames, tokens) in zip(losses, part, strict=True):
            expected = -np.logaddexp.reduce([score(frames, path) for path in PATHS[len(frames), tuple(tokens)]])
            assert abs(loss - expected) < 1e-5 * max(1.0, abs(expected)), (loss, expected, tokens)


class Paths(dict[tuple[int, tuple[int, ...]], list[tuple[int, ...]]]):
    def __missing__(self, key: tuple[int, tuple[int, ...]]) -> list[tuple[int, ...]]:
        self[key] = paths_of(list(key[1]), key[0], 4)
        return self[key]


PATHS = Paths()


def test_two_hundred_losses_in_batches_are_those_of_brute_force() -> None:
    compare_with_brute_force(0, 200)


@pytest.mark.slow
def test_five_thousand_losses_in_batches_are_those_of_brute_force() -> None:
    compare_with_brute_force(1, 5000)
