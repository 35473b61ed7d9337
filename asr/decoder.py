"""From a CTC network's log-probabilities to text: the greedy path and prefix beam search.

Knows arrays and a vocabulary; nothing of audio, networks or files. Token 0 is the blank.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from asr.ctc import forced_align
from asr.text import BLANK_ID, Vocabulary


class DecoderError(ValueError):
    """Log-probabilities or settings that no text can be decoded from."""


@dataclass(frozen=True)
class Hypothesis:
    """One reading: its tokens and text, the frame where each token peaks, and its log-probability."""

    tokens: tuple[int, ...]
    text: str
    frames: tuple[int, ...]
    score: float


def greedy_decode(log_probs: np.ndarray, vocabulary: Vocabulary) -> Hypothesis:
    """Return the most probable path of `log_probs` (T', V), collapsed: repeats merged, blanks dropped.

    Raises DecoderError for log-probabilities that are not (T', V) numbers <= 0.
    """
    log_probs = _checked(log_probs, vocabulary)
    best = log_probs.argmax(axis=1)  # (T',)
    peaks = log_probs.max(axis=1)
    starts = np.flatnonzero(np.diff(best, prepend=-1))  # first frame of each run of one token
    ends = [*starts[1:], len(best)]
    runs = [(int(best[s]), int(s + peaks[s:e].argmax())) for s, e in zip(starts, ends, strict=False) if best[s] != BLANK_ID]
    tokens, frames = tuple(token for token, _ in runs), tuple(frame for _, frame in runs)
    return Hypothesis(tokens, vocabulary.decode(tokens), frames, float(peaks.sum(dtype=np.float64)))


def beam_search(log_probs: np.ndarray, vocabulary: Vocabulary, *, beam_size: int = 100) -> list[Hypothesis]:
    """Return the most probable texts of `log_probs` (T', V), best first, each summed over all its paths.

    Hannun et al. 2014, "First-pass large vocabulary continuous speech recognition using bi-directional recurrent DNNs".
    Raises DecoderError for log-probabilities that are not (T', V) numbers <= 0.
    """
    log_probs = _checked(log_probs, vocabulary)
    # A prefix's probability is kept in two parts: of the paths that end in a blank, and of those that end in its last token.
    beam: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -np.inf)}
    for frame in log_probs.astype(np.float64):
        blank_paths: defaultdict[tuple[int, ...], float] = defaultdict(lambda: -np.inf)
        token_paths: defaultdict[tuple[int, ...], float] = defaultdict(lambda: -np.inf)
        for prefix, (ends_blank, ends_token) in beam.items():
            total = np.logaddexp(ends_blank, ends_token)
            blank_paths[prefix] = total + frame[BLANK_ID]
            for token in range(1, len(frame)):
                repeats = bool(prefix) and token == prefix[-1]
                if repeats:  # without a blank between, the same token goes on; with one, it comes again
                    token_paths[prefix] = np.logaddexp(token_paths[prefix], ends_token + frame[token])
                longer = (*prefix, token)
                start = ends_blank if repeats else total
                token_paths[longer] = np.logaddexp(token_paths[longer], start + frame[token])
        prefixes = blank_paths.keys() | token_paths.keys()
        scores = {prefix: np.logaddexp(blank_paths[prefix], token_paths[prefix]) for prefix in prefixes}
        beam = {p: (blank_paths[p], token_paths[p]) for p in _best(scores, beam_size) if scores[p] > -np.inf}
    scores = {prefix: float(np.logaddexp(*parts)) for prefix, parts in beam.items()}
    return [
        Hypothesis(prefix, vocabulary.decode(prefix), _peaks(log_probs, prefix), scores[prefix])
        for prefix in _best(scores, beam_size)
    ]


def _best(scores: dict[tuple[int, ...], float], size: int) -> list[tuple[int, ...]]:
    return sorted(scores, key=lambda prefix: (-scores[prefix], prefix))[:size]


def _peaks(log_probs: np.ndarray, tokens: tuple[int, ...]) -> tuple[int, ...]:
    """Return the frame where each token is most probable within its span on the best path."""
    spans = forced_align(log_probs, tokens)
    return tuple(s + int(log_probs[s:e, token].argmax()) for token, (s, e) in zip(tokens, spans, strict=True))


def _checked(log_probs: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    log_probs = np.asarray(log_probs)
    if log_probs.ndim != 2 or log_probs.shape[1] != len(vocabulary):
        raise DecoderError(
            f"expected log-probabilities of shape (frames, {len(vocabulary)}) for this vocabulary, found {log_probs.shape};"
            " the model and the vocabulary do not belong together"
        )
    bad = ~(log_probs <= 1e-3).all(axis=1) | ~(log_probs > -np.inf).any(axis=1)  # NaN compares false
    if bad.any():
        raise DecoderError(
            f"expected log-probabilities (numbers <= 0), found {log_probs[bad][0].max()} in frame {int(bad.argmax())};"
            " the network's weights or its input are broken, or its output is not normalised"
        )
    return log_probs
