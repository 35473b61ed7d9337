"""The decoder's weights, found on dev manifests: the network runs once, then many settings decode what it said."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from asr.checkpoint import LM_NAME, load_model_folder
from asr.decoder import DecoderConfig, DecoderError, decode
from asr.manifest import read_manifest, read_utterance
from asr.text import normalise
from asr.transcribe import Transcriber, folder_lm
from asr.wer import ErrorCounts, count_word_errors

ALPHA, BETA, UNKNOWN_PENALTY = (0.2, 1.4), (0.0, 4.0), (4.0, 25.0)  # what is drawn from, uniformly


@dataclass(frozen=True)
class Trial:
    """Decoder settings and the word error rate they gave, a fraction."""

    config: DecoderConfig
    wer: float

    @property
    def settings(self) -> dict[str, Any]:
        return dataclasses.asdict(self.config)


def tune(
    model: str | os.PathLike[str], manifest_paths: Sequence[str | os.PathLike[str]], *, num_trials: int = 60, beam_size: int = 100, seed: int = 0
) -> list[Trial]:
    """Return the greedy result and `num_trials` of beam search with weights drawn at random, worst first, best last.

    Raises DecoderError for a model folder without a language model, and the errors of manifests and audio.
    """
    folder = load_model_folder(model)
    lm = folder_lm(folder)
    if lm is None:
        raise DecoderError(f"{folder.path}: no {LM_NAME} in the model folder, so there is nothing to tune; give a language model")
    utterances = [utterance for path in manifest_paths for utterance in read_manifest(path)]
    transcriber = Transcriber(model, decoder=DecoderConfig())
    log_probs = transcriber.log_probs([read_utterance(utterance) for utterance in utterances])
    references = [normalise(utterance.text) for utterance in utterances]
    rng = np.random.default_rng(seed)
    configs = [DecoderConfig()]
    for _ in range(num_trials):
        alpha, beta, penalty = (round(float(rng.uniform(*limits)), 3) for limits in (ALPHA, BETA, UNKNOWN_PENALTY))
        configs.append(DecoderConfig("beam", beam_size, alpha, beta, penalty))
    trials = []
    for config in configs:
        counts = ErrorCounts()
        for reference, array in zip(references, log_probs, strict=True):
            counts += count_word_errors(reference, decode(array, folder.vocabulary, config, lm=lm).text)
        trials.append(Trial(config, counts.rate))
    return sorted(trials, key=lambda trial: -trial.wer)
