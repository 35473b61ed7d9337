"""The one place that knows CTC's rules (Graves et al. 2006): the loss with its guards, collapse, forced alignment.

Blank is token 0. `collapse`, `min_frames` and `forced_align` need numpy only; torch is loaded by `ctc_loss`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

import numpy as np

from asr.text import BLANK_ID

if TYPE_CHECKING:
    from torch import Tensor


ALIGNMENT_BAND = 4001


class CTCError(ValueError):
    """Targets that CTC cannot align or lengths that do not fit; the message names the utterance."""


def collapse(ids: Iterable[int]) -> list[int]:
    """Return the labelling of a path: repeats merged, then blanks removed."""
    return [token for token, _ in groupby(ids) if token != BLANK_ID]


def min_frames(tokens: Sequence[int]) -> int:
    """Return how many output frames a labelling needs: one a token, and a blank between equal neighbours."""
    return len(tokens) + sum(a == b for a, b in pairwise(tokens))


def ctc_loss(
    log_probs: Tensor, lengths: Tensor, tokens: Tensor, *, token_lengths: Tensor, names: Sequence[str] | None = None
) -> Tensor:
    """Return the CTC loss (B,) in nats of each utterance, not divided by anything.

    log_probs (B, T', V), lengths (B,) in output frames, tokens (B, U) without blanks, token_lengths (B,).
    names: what to call the utterances in an error. Raises CTCError for labels outside 1..V-1 (torch does not look: on the CPU they
    corrupt memory), lengths outside their tensors, and utterances with fewer frames than their text needs.
    """
    import torch
    from torch.nn import functional as F

    _check(log_probs, lengths, tokens, token_lengths, names)
    loss: Tensor = F.ctc_loss(
        log_probs.float().transpose(0, 1),  # (B, T', V) -> (T', B, V)
        tokens.to(torch.int64),
        lengths,
        token_lengths,
        blank=BLANK_ID,
        reduction="none",
    )
    return loss


def _check(log_probs: Tensor, lengths: Tensor, tokens: Tensor, token_lengths: Tensor, names: Sequence[str] | None) -> None:
    import torch

    batch = log_probs.shape[0] if log_probs.dim() == 3 else -1
    if batch < 1 or tokens.dim() != 2 or not (batch == len(tokens) == len(lengths) == len(token_lengths)):
        raise CTCError(
            "expected log_probs (B, T, V), tokens (B, U), lengths (B,), token_lengths (B,) with one B > 0, found "
            f"{tuple(log_probs.shape)}, {tuple(tokens.shape)}, {tuple(lengths.shape)}, {tuple(token_lengths.shape)}"
        )
    if tokens.is_floating_point() or lengths.is_floating_point() or token_lengths.is_floating_point():
        raise CTCError("tokens, lengths and token_lengths must be whole numbers")
    inside = torch.arange(tokens.shape[1], device=tokens.device)[None, :] < token_lengths[:, None]  # (B, U)
    repeats = ((tokens[:, 1:] == tokens[:, :-1]) & inside[:, 1:]).sum(dim=1)
    problems = torch.stack(
        [
            (lengths < 1) | (lengths > log_probs.shape[1]),
            (token_lengths < 0) | (token_lengths > tokens.shape[1]),
            (inside & ((tokens < 1) | (tokens >= log_probs.shape[2]))).any(dim=1),
            lengths < token_lengths + repeats,
        ]
    ).cpu()
    if not problems.any():
        return
    kind, index = (int(i) for i in problems.nonzero()[0])
    name = names[index] if names is not None else f"utterance {index} of the batch"
    num_frames, num_tokens, size = int(lengths[index]), int(token_lengths[index]), log_probs.shape[2]
    raise CTCError(
        f"{name}: "
        + (
            f"a length of {num_frames} frames, expected 1 to {log_probs.shape[1]}",
            f"a target length of {num_tokens}, expected 0 to {tokens.shape[1]}",
            f"a label outside 1 to {size - 1} (0 is the blank); was the text encoded with another vocabulary?",
            f"{num_frames} output frames for a text of {num_tokens} tokens that needs {num_tokens + int(repeats[index])};"
            " drop the utterance, check its text, or subsample less",
        )[kind]
    )


def forced_align(log_probs: np.ndarray, tokens: Sequence[int], *, band: int = ALIGNMENT_BAND) -> list[tuple[int, int]]:
    """Return (first, last + 1) frame of each token on the best path of `log_probs` (T', V) that spells `tokens` (Viterbi).

    Of the 2 U + 1 states (tokens, and blanks around them) only `band` around the best one are followed at a time, so that an hour with its
    whole text fits in memory: T' * band bytes. Raises CTCError when the text needs more frames than there are, or a token is outside
    the vocabulary.
    """
    num_frames, size = log_probs.shape
    if any(not 0 < token < size for token in tokens):
        raise CTCError(f"tokens must lie in 1 to {size - 1}, found {list(tokens)}")
    if num_frames < min_frames(tokens):
        raise CTCError(f"{num_frames} frames cannot hold {len(tokens)} tokens that need {min_frames(tokens)}")
    if not tokens:
        return []
    # States: blank, t1, blank, t2, ..., blank. A state is reached from itself, the one before, or, unless it is a blank or repeats
    # the token before it, from two before.
    states = np.full(2 * len(tokens) + 1, BLANK_ID)
    states[1::2] = tokens
    may_skip = np.zeros(len(states), bool)
    may_skip[3::2] = states[3::2] != states[1:-2:2]
    band = min(band, len(states))
    lows = np.zeros(num_frames, np.int64)  # the first state followed at each frame
    score = np.full(band, -np.inf)
    score[:2] = log_probs[0, states[:2]]
    steps = np.zeros((num_frames, band), np.int8)  # how many states back the best predecessor is
    for t in range(1, num_frames):
        low = _next_low(int(lows[t - 1]), score, num_states=len(states), frames_left=num_frames - t)
        padded = np.concatenate([[-np.inf, -np.inf], score, np.full(low - lows[t - 1], -np.inf)])[low - lows[t - 1] :]
        two = np.where(may_skip[low : low + band], padded[:-2], -np.inf)
        candidates = np.stack([padded[2:], padded[1:-1], two])  # (3, band)
        steps[t] = candidates.argmax(axis=0)
        score = candidates.max(axis=0) + log_probs[t, states[low : low + band]]
        lows[t] = low
    state = len(states) - 1 if score[-1] >= score[-2] else len(states) - 2
    if not np.isfinite(score[state - lows[-1]]):
        raise CTCError("no path of the log-probabilities spells the tokens: they are NaN or minus infinity where a token is needed")
    path = [state]
    for t in range(num_frames - 1, 0, -1):
        state -= int(steps[t, state - lows[t]])
        path.append(state)
    frames_of = np.array(path[::-1])
    found = np.flatnonzero(np.diff(frames_of, prepend=0, append=len(states)))  # first frames of the runs, and the end
    runs = {int(frames_of[first]): (int(first), int(end)) for first, end in pairwise(found)}
    return [runs[2 * i + 1] for i in range(len(tokens))]


def _next_low(low: int, score: np.ndarray, *, num_states: int, frames_left: int) -> int:
    """Return the first state to follow next: the band is centred on the best, never goes back, and can still reach the end."""
    highest = num_states - len(score)
    centred = low + int(score.argmax()) - len(score) // 2
    return min(max(low, centred, highest - 2 * (frames_left - 1)), highest)
