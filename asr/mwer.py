"""Minimum word error rate training (Prabhavalkar et al. 2018): the errors that the search is expected to make, as a loss.

MMI makes the right text more probable than all others; what counts is how many words of the text that the search finds are wrong. The
search's best texts stand for all, each as probable as it scores, language model and all, and their errors' mean is the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asr.ctc import ctc_loss
from asr.decoder import Hypothesis
from asr.wer import count_word_errors

Search = Callable[[np.ndarray], list[Hypothesis]]  # log-probabilities (T', V) to the best texts


def expected_errors(log_probs: Tensor, lengths: Tensor, texts: Sequence[str], search: Search, *, scale: float = 0.5) -> Tensor:
    """Return (B,), the mean number of wrong words in what `search` finds in log_probs (B, T', V) of `lengths` (B,) frames.

    Texts are the references. A hypothesis counts in proportion to e^(scale * score); the gradient passes through its acoustic score.
    """
    found = [search(x[:length].numpy()) for x, length in zip(log_probs.detach().cpu(), lengths.tolist(), strict=True)]
    owner = torch.tensor([b for b, best in enumerate(found) for _ in best], device=log_probs.device)  # (N,)
    hypotheses = [hypothesis for best in found for hypothesis in best]
    tokens = [torch.tensor(hypothesis.tokens, dtype=torch.int64) for hypothesis in hypotheses]
    token_lengths = torch.tensor([len(x) for x in tokens])
    padded = torch.nn.functional.pad(pad_sequence(tokens, batch_first=True), (0, 1))  # (N, U), U > 0 even if nothing was found
    acoustic = -ctc_loss(
        log_probs[owner], lengths[owner], padded.to(owner.device), token_lengths=token_lengths.to(owner.device)
    )
    # Where the search found no finished word, its only text has a score of -inf.
    fixed = torch.tensor([h.score - h.acoustic_score if h.score > -np.inf else 0.0 for h in hypotheses], device=owner.device)
    errors = torch.tensor(
        [float(count_word_errors(texts[b], h.text).errors) for b, h in zip(owner.tolist(), hypotheses, strict=True)],
        device=owner.device,
    )
    sizes = [len(best) for best in found]
    weighed = zip(torch.split(scale * (acoustic + fixed), sizes), torch.split(errors, sizes), strict=True)
    return torch.stack([(torch.softmax(scores, dim=0) * wrong).sum() for scores, wrong in weighed])
