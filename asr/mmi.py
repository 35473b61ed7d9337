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
    probs = log_probs.exp().transpose(0, 1)  # (T', B, V)
    probs = torch.cat([probs, probs[:, :, BLANK_ID : BLANK_ID + 1].expand(-1, -1, size)], dim=2)  # (T', B, 2 V): of the states' tokens
    ends = transitions[:, BLANK_ID].repeat(2)  # (2 V,): of the tokens' states, then of the blanks'
    inner = transitions.clone()
    inner[:, BLANK_ID] = 0
    same = torch.eye(size, device=inner.device)
    without_repeats = inner - torch.diag(inner.diagonal())  # a token is repeated only across a blank
    to_tokens = torch.cat([without_repeats + same, inner])
    to_tokens[:, BLANK_ID] = 0
    steps = torch.cat([to_tokens, same.repeat(2, 1)], dim=1)  # (2 V, 2 V)
    alphas = probs.new_zeros(num_frames + 1, batch, 2 * size)  # before each frame, and after the last, summing to 1
    alphas[0, :, size + BLANK_ID] = 1
    scales = probs.new_empty(num_frames, batch, 1)
    for alpha, frame, scale, new in zip(alphas, probs, scales, alphas[1:], strict=False):
        torch.matmul(alpha, steps, out=new)
        new *= frame
        torch.sum(new, dim=1, keepdim=True, out=scale)
        new /= scale
    frames = torch.arange(num_frames, device=lengths.device)[:, None]
    inside, is_last = frames < lengths, (frames == lengths - 1)[..., None]  # (T', B), (T', B, 1)
    last = alphas[lengths, torch.arange(batch, device=lengths.device)] @ ends
    total = last.log() + scales[..., 0].log().where(inside, 0.0).sum(dim=0)
    scaled = probs / scales
    end, back = ends / last[:, None], steps.T.contiguous()  # (B, 2 V), (2 V, 2 V)
    betas = torch.empty_like(probs)  # after each frame
    beta = end
    for t in reversed(range(num_frames)):
        torch.where(is_last[t], end, beta, out=betas[t])
        beta = (betas[t] * scaled[t]) @ back
    occupancy = alphas[1:] * betas
    occupancy = (occupancy / occupancy.sum(dim=2, keepdim=True)).where(inside[..., None], 0.0)
    blank = occupancy[..., :1] + occupancy[..., size:].sum(dim=2, keepdim=True)
    occupancy = torch.cat([blank, occupancy[..., 1:size]], dim=2)
    return total, occupancy.transpose(0, 1)
