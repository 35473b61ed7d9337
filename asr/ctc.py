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


def forced_align(log_probs: np.ndarray, tokens: Sequence[int]) -> list[tuple[int, int]]:
    """Return (first, last + 1) frame of each token on the best path of `log_probs` (T', V) that spells `tokens` (Viterbi).

    Raises CTCError when the text needs more frames than there are, or a token is outside the vocabulary.
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
    emissions = log_probs[:, states].astype(np.float64)  # (T', S)
    score = np.full(len(states), -np.inf)
    score[:2] = emissions[0, :2]
    steps = np.zeros((num_frames, len(states)), np.int8)  # how many states back the best predecessor is
    for t in range(1, num_frames):
        one = np.concatenate([[-np.inf], score[:-1]])
        two = np.where(may_skip, np.concatenate([[-np.inf, -np.inf], score[:-2]]), -np.inf)
        candidates = np.stack([score, one, two])  # (3, S)
        steps[t] = candidates.argmax(axis=0)
        score = candidates.max(axis=0) + emissions[t]
    state = len(states) - 1 if score[-1] >= score[-2] else len(states) - 2
    if not np.isfinite(score[state]):
        raise CTCError("no path of the log-probabilities spells the tokens: they are NaN or minus infinity where a token is needed")
    path = [state]
    for t in range(num_frames - 1, 0, -1):
        state -= int(steps[t, state])
        path.append(state)
    frames_of = np.array(path[::-1])
    found = [np.flatnonzero(frames_of == 2 * i + 1) for i in range(len(tokens))]
    return [(int(f[0]), int(f[-1]) + 1) for f in found]
