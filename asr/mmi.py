"""Lattice-free maximum mutual information (Povey et al. 2016) for a CTC network and a bigram of its tokens: what it adds to the CTC loss.

CTC alone asks that the text be probable; MMI asks that it be probable among all texts, each weighted by a small language model. What that
model knows the network need not learn, so it goes better with the language model of the search.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from asr.text import BLANK_ID


def bigram(texts: Iterable[Sequence[int]], size: int, *, discount: float = 0.5) -> Tensor:
    """Return (V, V) probabilities of a token (column) after another (row), from texts without blanks; row and column 0 are start and end.

    Absolute discounting, interpolated with the distribution of single tokens, of which each is counted once more than it was seen.
    """
    counts = torch.zeros(size, size, dtype=torch.float64)
    for text in texts:
        path = torch.tensor([BLANK_ID, *text, BLANK_ID])
        counts.index_put_((path[:-1], path[1:]), torch.ones(len(path) - 1, dtype=torch.float64), accumulate=True)
    totals = counts.sum(dim=1, keepdim=True).clamp(min=1)
    unigram = counts.sum(dim=0) + 1
    left_over = 1 - (counts - discount).clamp(min=0).sum(dim=1, keepdim=True) / totals
    return (counts - discount).clamp(min=0) / totals + left_over * unigram / unigram.sum()


def text_log_probs(tokens: Tensor, lengths: Tensor, transitions: Tensor) -> Tensor:
    """Return (B,) ln p by the bigram of texts (B, U) of `lengths` (B,), without blanks."""
    path = F.pad(tokens.long(), (1, 1), value=BLANK_ID)  # (B, U + 2): start, text, end
    ends = torch.arange(path.shape[1], device=path.device) > lengths[:, None]
    path = path.masked_fill(ends, BLANK_ID)
    steps = transitions[path[:, :-1], path[:, 1:]].log()  # (B, U + 1)
    return steps.masked_fill(ends[:, :-1], 0).sum(dim=1).float()


def denominator(log_probs: Tensor, lengths: Tensor, transitions: Tensor) -> Tensor:
    """Return (B,) ln of the sum over all texts of p(text by the bigram) p(text by the network), by CTC's rules.

    log_probs (B, T', V) with token 0 the blank, lengths (B,) in frames, transitions (V, V) as `bigram` gives them.
    """
    return _Denominator.apply(log_probs, lengths, transitions)  # type: ignore[no-any-return, no-untyped-call]


class _Denominator(torch.autograd.Function):
    """Forward and backward sums over states (last token, it or a blank after it at this frame), in probabilities scaled frame by frame."""

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, lengths: Tensor, transitions: Tensor) -> Tensor:
        with torch.autocast(log_probs.device.type, enabled=False):
            total, occupancy = _forward_backward(log_probs.float(), lengths, transitions.float())
        ctx.save_for_backward(occupancy)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (occupancy,) = ctx.saved_tensors
        return gradients[0][:, None, None] * occupancy, None, None


def _forward_backward(log_probs: Tensor, lengths: Tensor, transitions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the denominator (B,) and its gradient with respect to log_probs: how probable each token is at each frame, (B, T', V)."""
    batch, num_frames, size = log_probs.shape
    probs = log_probs.exp().transpose(0, 1).contiguous()  # (T', B, V)
    ends = transitions[:, BLANK_ID].repeat(2)  # (2 V,): of the tokens' states, then of the blanks'
    inner = transitions.clone()
    inner[:, BLANK_ID] = 0
    without_repeats = inner - torch.diag(inner.diagonal())  # a token is repeated only across a blank
    steps = torch.cat([without_repeats + torch.eye(size, device=inner.device), inner])  # (2 V, V): to a token's state
    steps[:, BLANK_ID] = 0
    inside = torch.arange(num_frames, device=lengths.device)[:, None] < lengths  # (T', B)
    scaled = probs.new_zeros(num_frames + 1, batch, 2 * size)  # before each frame, and after the last
    scaled[0, :, size + BLANK_ID] = 1
    total = probs.new_zeros(batch)
    for t in range(num_frames):
        alpha = scaled[t]
        new = torch.cat([(alpha @ steps) * probs[t], (alpha[:, :size] + alpha[:, size:]) * probs[t, :, :1]], dim=1)
        scale = new.sum(dim=1, keepdim=True)
        total += torch.where(inside[t], scale[:, 0].log(), 0.0)
        scaled[t + 1] = torch.where(inside[t, :, None], new / scale, alpha)
    last = scaled[num_frames] @ ends
    total += last.log()
    occupancy = torch.zeros_like(probs)
    beta = (ends / last[:, None]).contiguous()  # (B, 2 V)
    for t in reversed(range(num_frames)):
        tokens, blanks = beta[:, :size] * probs[t], beta[:, size:] * probs[t, :, :1]
        alpha = scaled[t]
        from_tokens = tokens * (alpha @ steps)  # (B, V)
        from_blanks = (blanks * (alpha[:, :size] + alpha[:, size:])).sum(dim=1)
        raw = from_tokens.sum(dim=1) + from_blanks  # the frame's scale, and 1 in exact arithmetic after division by it
        from_tokens[:, BLANK_ID] += from_blanks
        occupancy[t] = torch.where(inside[t, :, None], from_tokens / raw[:, None], 0.0)
        before = tokens @ steps.T + blanks.repeat(1, 2)
        beta = torch.where(inside[t, :, None], before / raw[:, None], beta)
    return total, occupancy.transpose(0, 1)
