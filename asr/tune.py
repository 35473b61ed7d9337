"""The decoder's weights, found on dev manifests: the network runs once, then many settings decode what it said.

Then the words' confidences are calibrated: so that of the words given 0.8, eight in ten are right.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from asr.checkpoint import LM_NAME, CheckpointError, ModelFolder, load_model_folder
from asr.decoder import DecoderConfig, DecoderError, decode
from asr.manifest import read_manifest, read_utterance
from asr.text import normalise
from asr.transcribe import Transcriber, decoder_config, folder_lexicon, folder_lm, folder_rescorer
from asr.wer import ErrorCounts, align_words, count_word_errors, expected_calibration_error

ALPHA, BETA, UNKNOWN_PENALTY, RESCORE_WEIGHT = (0.2, 1.6), (-3.0, 4.0), (2.0, 25.0), (0.0, 1.0)  # what is drawn from
MIN_WORDS = 50  # fewer say nothing about confidence


@dataclass(frozen=True)
class Trial:
    """Decoder settings and the word error rate they gave, a fraction."""

    config: DecoderConfig
    wer: float


@dataclass(frozen=True)
class Tuning:
    """trials: worst first, best last. config: the best, its confidence calibrated; calibration_error: the expected one of words in
    utterances that the calibration did not see, NaN where there were too few words."""

    trials: tuple[Trial, ...]
    config: DecoderConfig
    calibration_error: float

    @property
    def settings(self) -> dict[str, Any]:
        return dataclasses.asdict(self.config)


def tune(
    model: str | os.PathLike[str], manifest_paths: Sequence[str | os.PathLike[str]], *, num_trials: int = 60, beam_size: int = 100, seed: int = 0
) -> Tuning:
    """Try greedy decoding, beam search with the model folder's own weights, if it has some, and `num_trials` with weights drawn at random, the
    later ones near the best; calibrate the confidence of the best.

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
    lexicon, rescorer = folder_lexicon(folder), folder_rescorer(folder)

    def try_out(config: DecoderConfig) -> Trial:
        counts = ErrorCounts()
        for reference, array in zip(references, log_probs, strict=True):
            found = decode(array, folder.vocabulary, config, lm=lm, lexicon=lexicon, sounds=folder.sounds, rescorer=rescorer)
            counts += count_word_errors(reference, found.text)
        return Trial(config, counts.rate)

    rng = np.random.default_rng(seed)
    low, high = np.transpose([ALPHA, BETA, UNKNOWN_PENALTY, RESCORE_WEIGHT if rescorer else (0.0, 0.0)])
    trials = [try_out(config) for config in (DecoderConfig(), *_own_weights(folder, beam_size))]
    for number in range(num_trials):
        weights = rng.uniform(low, high)
        if number >= num_trials // 2:  # the second half of the trials looks around the best so far
            best = min(trials, key=lambda trial: trial.wer).config
            weights = rng.normal([best.alpha, best.beta, best.unknown_penalty, best.rescore_weight], (high - low) / 12).clip(low, high)
        alpha, beta, unknown_penalty, rescore_weight = (round(float(weight), 3) for weight in weights)
        trials.append(try_out(DecoderConfig("beam", beam_size, alpha, beta, unknown_penalty, rescore_weight=rescore_weight)))
    trials.sort(key=lambda trial: -trial.wer)
    transcriber.decoder, transcriber.lm, transcriber.lexicon, transcriber.rescorer = trials[-1].config, lm, lexicon, rescorer
    scored = [_scored_words(transcriber, array, reference) for array, reference in zip(log_probs, references, strict=True)]
    config, error = _calibrated(trials[-1].config, scored)
    return Tuning(tuple(trials), config, error)


def _own_weights(folder: ModelFolder, beam_size: int) -> list[DecoderConfig]:
    """Return the settings that the folder has, not calibrated, if they are any of beam search: what is wrong with them tuning puts right."""
    try:
        own = decoder_config(folder.path, folder.decoder)
    except CheckpointError:
        return []
    return [dataclasses.replace(own, beam_size=beam_size, confidence_slope=0.0, confidence_offset=0.0)] if own.method == "beam" else []


def _scored_words(transcriber: Transcriber, log_probs: np.ndarray, reference: str) -> np.ndarray:
    """Return (W, 2): mean log-probability, from the uncalibrated confidence, and whether the word is right, of each word of the hypothesis."""
    segment = transcriber.recognise(log_probs, 0, 0.0, len(log_probs) * transcriber.frame_s)
    right = [pair[0] == pair[1] for pair in align_words(reference, segment.text) if pair[1] is not None]
    return np.array([(np.log(max(word.confidence, 1e-4)), ok) for word, ok in zip(segment.words, right, strict=True)]).reshape(-1, 2)


def _calibrated(config: DecoderConfig, scored: Sequence[np.ndarray]) -> tuple[DecoderConfig, float]:
    """Fit the confidence to all words, and measure it by fitting each half of the utterances to judge the other."""
    words = np.concatenate(list(scored))
    if len(words) < MIN_WORDS or words[:, 1].min() == words[:, 1].max():
        return config, float("nan")
    halves = [np.concatenate(list(scored[start::2])) for start in (0, 1)]
    judged = [_with_fit(config, halves[1 - i]) for i in (0, 1)]
    confidences = np.concatenate([[judge.confidence(x) for x in half[:, 0]] for judge, half in zip(judged, halves, strict=True)])
    return _with_fit(config, words), expected_calibration_error(confidences, np.concatenate([half[:, 1] for half in halves]))


def _with_fit(config: DecoderConfig, words: np.ndarray) -> DecoderConfig:
    """Fit sigmoid(offset + slope x) to right (1) and wrong (0) words by Newton's method, a little ridge keeping it finite."""
    inputs = np.column_stack([np.ones(len(words)), words[:, 0]])
    weights = np.zeros(2)
    for _ in range(25):
        estimates = 1 / (1 + np.exp(-inputs @ weights))
        gradient = inputs.T @ (words[:, 1] - estimates) - 1e-3 * weights
        hessian = (inputs * (estimates * (1 - estimates))[:, None]).T @ inputs + 1e-3 * np.eye(2)
        weights += np.linalg.solve(hessian, gradient)
    offset, slope = (round(float(weight), 4) for weight in weights)
    return dataclasses.replace(config, confidence_slope=slope, confidence_offset=offset)
