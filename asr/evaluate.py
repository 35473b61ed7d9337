"""A transcriber and a manifest in, error rates out: EvaluationResult, the table over manifests, the worst utterances.

Knows no model: whatever has `name` and `transcribe_batch` is evaluated. Every utterance of the manifest counts; one
that cannot be read or transcribed is an error, never a gap.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from asr.audio import SAMPLE_RATE, AudioError
from asr.manifest import Utterance, read_manifest, read_utterance
from asr.text import normalise as normalise_text
from asr.transcript import Word
from asr.wer import (
    NUM_RESAMPLES,
    ErrorCounts,
    align_words,
    alignment_report,
    bootstrap_interval,
    confusions_report,
    count_character_errors,
    count_word_errors,
    find_confusions,
    kaldi_line,
)

BATCH_SECONDS = 120.0

Interval = Literal["utterances", "speakers"]

logger = logging.getLogger(__name__)


class EvaluationError(ValueError):
    """An utterance that cannot be evaluated; the message names the manifest, the line and the utterance."""


class Recognised(Protocol):
    """What a transcriber returns for one waveform; a Transcript is one."""

    @property
    def text(self) -> str: ...


class BatchTranscriber(Protocol):
    """What is evaluated. Its optional `decoder_settings`, a mapping of plain values, are copied into the result."""

    @property
    def name(self) -> str: ...

    def transcribe_batch(self, waveforms: list[np.ndarray], /) -> Sequence[Recognised]:
        """Return one result per float32 waveform (N,) at 16 kHz, in their order."""
        ...


@dataclass(frozen=True)
class UtteranceResult:
    """One utterance, scored. duration: seconds of audio that were read. reference, hypothesis: normalised.

    recognised: the hypothesis' words with times and confidences, none where the transcriber gives none or the normalisation changed them.
    """

    id: str
    speaker: str
    duration: float
    reference: str
    hypothesis: str
    words: ErrorCounts
    characters: ErrorCounts
    recognised: tuple[Word, ...] = ()
    audio_filepath: str = ""
    offset: float = 0.0


@dataclass(frozen=True)
class EvaluationResult:
    """One manifest, scored: its utterances in the manifest's order; all figures are computed from them.

    processing_s: seconds for reading, features, encoder and decoder.
    num_resamples, seed, interval_over: settings of the bootstrap.
    """

    manifest: str
    model: str
    utterances: tuple[UtteranceResult, ...]
    processing_s: float
    decoder_settings: Mapping[str, Any] = field(default_factory=dict)
    num_resamples: int = NUM_RESAMPLES
    seed: int = 0
    interval_over: Interval = "utterances"

    @property
    def words(self) -> ErrorCounts:
        return sum((utterance.words for utterance in self.utterances), ErrorCounts())

    @property
    def characters(self) -> ErrorCounts:
        return sum((utterance.characters for utterance in self.utterances), ErrorCounts())

    @property
    def duration_s(self) -> float:
        return sum(utterance.duration for utterance in self.utterances)

    @property
    def rtf(self) -> float:
        """Real-time factor: processing seconds a second of audio, so smaller is faster."""
        return self.processing_s / self.duration_s if self.duration_s else 0.0

    @property
    def wer_interval(self) -> tuple[float, float]:
        return self._interval([utterance.words for utterance in self.utterances])

    @property
    def cer_interval(self) -> tuple[float, float]:
        return self._interval([utterance.characters for utterance in self.utterances])

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `json.dumps`, one object a manifest.

        Rates and intervals (95 %) are fractions, as jiwer's: 0.0567 is 5.67 %. They are finite also where a reference
        is empty (see ErrorCounts.rate). substitutions, deletions and insertions are words, `errors` is their sum.
        An utterance's `words` are UtteranceResult.recognised, each `correct` or not.
        """
        words = self.words
        return {
            "manifest": self.manifest,
            "model": self.model,
            "decoder_settings": dict(self.decoder_settings),
            "wer": words.rate,
            "wer_interval": list(self.wer_interval),
            "cer": self.characters.rate,
            "cer_interval": list(self.cer_interval),
            "interval_over": self.interval_over,
            "num_utterances": len(self.utterances),
            "num_words": words.reference_length,
            "num_characters": self.characters.reference_length,
            "substitutions": words.substitutions,
            "deletions": words.deletions,
            "insertions": words.insertions,
            "duration_s": self.duration_s,
            "processing_s": self.processing_s,
            "rtf": self.rtf,
            "utterances": [_utterance_json(utterance) for utterance in self.utterances],
        }

    def _interval(self, counts: list[ErrorCounts]) -> tuple[float, float]:
        groups = [utterance.speaker for utterance in self.utterances] if self.interval_over == "speakers" else None
        return bootstrap_interval(counts, groups=groups, num_resamples=self.num_resamples, seed=self.seed)


def evaluate_manifest(
    transcriber: BatchTranscriber,
    manifest_path: str | os.PathLike[str],
    *,
    batch_seconds: float = BATCH_SECONDS,
    normalise: Callable[[str], str] = normalise_text,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    interval_over: Interval = "utterances",
) -> EvaluationResult:
    """Transcribe every utterance of a manifest and count the errors.

    Audio is read as the manifest says, from `offset` for `duration`. Utterances are sorted by length and go to the
    transcriber in batches of at most `batch_seconds` seconds, padding included (a longer utterance goes alone).
    References and hypotheses both pass through `normalise` before they are compared. interval_over: what the bootstrap
    draws, utterances or whole speakers. Raises EvaluationError naming the line at fault, and ManifestError.
    """
    if not batch_seconds > 0:
        raise EvaluationError(f"batch_seconds must be a positive number of seconds, found {batch_seconds}")
    if num_resamples < 1:
        raise EvaluationError(f"num_resamples must be at least 1, found {num_resamples}")
    utterances = read_manifest(manifest_path)
    manifest = os.fspath(manifest_path)
    names = [f"{manifest}:{line} ({utterance.id})" for line, utterance in enumerate(utterances, start=1)]
    if interval_over == "speakers":
        _require_speakers(utterances, names)

    scored: dict[int, UtteranceResult] = {}
    processing_s = 0.0
    for batch in _batches([utterance.duration for utterance in utterances], batch_seconds):
        start = time.perf_counter()
        waveforms = [_load(utterances[index], names[index]) for index in batch]
        hypotheses = _transcribe(transcriber, waveforms, [names[index] for index in batch])
        processing_s += time.perf_counter() - start
        for index, waveform, hypothesis in zip(batch, waveforms, hypotheses, strict=True):
            scored[index] = _score(utterances[index], hypothesis, len(waveform) / SAMPLE_RATE, normalise)
        logger.info("%s: %d of %d utterances", manifest, len(scored), len(utterances))
    return EvaluationResult(
        manifest=manifest,
        model=transcriber.name,
        utterances=tuple(scored[index] for index in range(len(utterances))),
        processing_s=processing_s,
        decoder_settings=dict(getattr(transcriber, "decoder_settings", {})),
        num_resamples=num_resamples,
        seed=seed,
        interval_over=interval_over,
    )


def results_table(results: Sequence[EvaluationResult]) -> str:
    """Return a Markdown table, a row a manifest and, for several, one for all their utterances together.

    Rates in percent, with the 95 % interval; sub, del and ins are words; RTF as in EvaluationResult.rtf.
    """
    rows = [_table_row(result) for result in results]
    if len(results) > 1:
        rows.append(_table_row(_total(results)))
    header = ["manifest", "utterances", "words", "WER % [95 %]", "CER % [95 %]", "sub", "del", "ins", "RTF"]
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


def worst_utterances(result: EvaluationResult, num_worst: int = 10) -> str:
    """Return the alignments of the utterances with most word errors, worst first; of equals the higher rate first.

    Utterances without an error are left out, so the report may be shorter than asked for, or empty.
    """
    wrong = [utterance for utterance in result.utterances if utterance.words.errors]
    wrong.sort(key=lambda utterance: (-utterance.words.errors, -utterance.words.rate))
    return "\n\n".join(_utterance_report(utterance) for utterance in wrong[:num_worst])


def frequent_confusions(result: EvaluationResult, num_most: int = 10) -> str:
    """Return the most frequent substitutions, deletions and insertions of words, as text."""
    alignments = (align_words(utterance.reference, utterance.hypothesis) for utterance in result.utterances)
    return confusions_report(find_confusions(alignments), num_most)


def _require_speakers(utterances: Sequence[Utterance], names: Sequence[str]) -> None:
    for utterance, name in zip(utterances, names, strict=True):
        if not utterance.speaker:
            raise EvaluationError(
                f"{name}: no speaker; an interval over speakers needs the key 'speaker' on every line,"
                " so add it or draw utterances"
            )


def _batches(durations: Sequence[float], batch_seconds: float) -> list[list[int]]:
    """Return the indices in batches, longest first, so that too big a batch fails at once.

    A batch costs its longest utterance times its size: everything in it is padded to that length.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(durations)), key=lambda index: -durations[index]):
        if batches and durations[batches[-1][0]] * (len(batches[-1]) + 1) <= batch_seconds:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _load(utterance: Utterance, name: str) -> np.ndarray:
    try:
        return read_utterance(utterance)
    except AudioError as error:
        raise EvaluationError(f"{name}: {error}") from error


def _transcribe(transcriber: BatchTranscriber, waveforms: list[np.ndarray], names: list[str]) -> list[Recognised]:
    """Return the hypotheses of one batch; where it fails, try its utterances alone, to name the one at fault."""
    try:
        hypotheses = list(transcriber.transcribe_batch(waveforms))
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        if len(names) == 1:
            raise EvaluationError(f"{names[0]}: cannot be transcribed ({_reason(error)})") from error
        for waveform, name in zip(waveforms, names, strict=True):
            _transcribe(transcriber, [waveform], [name])
        raise EvaluationError(
            f"{', '.join(names)}: cannot be transcribed as one batch, though each can alone ({_reason(error)});"
            " lower batch_seconds"
        ) from error
    if len(hypotheses) != len(names):
        raise EvaluationError(
            f"{', '.join(names)}: expected {len(names)} results from {transcriber.name}, found {len(hypotheses)}"
        )
    return hypotheses


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _score(
    utterance: Utterance, recognised: Recognised, duration_s: float, normalise: Callable[[str], str]
) -> UtteranceResult:
    reference, hypothesis = normalise(utterance.text), normalise(recognised.text)
    words = tuple(getattr(recognised, "words", ()))
    return UtteranceResult(
        id=utterance.id,
        speaker=utterance.speaker,
        duration=duration_s,
        reference=reference,
        hypothesis=hypothesis,
        words=count_word_errors(reference, hypothesis),
        characters=count_character_errors(reference, hypothesis),
        recognised=words if [word.word for word in words] == hypothesis.split() else (),
        audio_filepath=utterance.audio_filepath,
        offset=utterance.offset,
    )


def _utterance_json(utterance: UtteranceResult) -> dict[str, Any]:
    correct = [pair[0] == pair[1] for pair in align_words(utterance.reference, utterance.hypothesis) if pair[1] is not None]
    return {
        "id": utterance.id,
        "speaker": utterance.speaker,
        "duration": utterance.duration,
        "reference": utterance.reference,
        "hypothesis": utterance.hypothesis,
        "num_words": utterance.words.reference_length,
        "errors": utterance.words.errors,
        "substitutions": utterance.words.substitutions,
        "deletions": utterance.words.deletions,
        "insertions": utterance.words.insertions,
        "audio_filepath": utterance.audio_filepath,
        "offset": utterance.offset,
        "words": [asdict(word) | {"correct": ok} for word, ok in zip(utterance.recognised, correct, strict=False)],
    }


def _total(results: Sequence[EvaluationResult]) -> EvaluationResult:
    """Return all utterances as one result, its bootstrap set as the first's."""
    return EvaluationResult(
        manifest="total",
        model=results[0].model,
        utterances=tuple(utterance for result in results for utterance in result.utterances),
        processing_s=sum(result.processing_s for result in results),
        num_resamples=results[0].num_resamples,
        seed=results[0].seed,
        interval_over=results[0].interval_over,
    )


def _table_row(result: EvaluationResult) -> list[str]:
    words = result.words
    return [
        result.manifest.replace("|", "\\|"),
        str(len(result.utterances)),
        str(words.reference_length),
        _percent(words.rate, result.wer_interval),
        _percent(result.characters.rate, result.cer_interval),
        str(words.substitutions),
        str(words.deletions),
        str(words.insertions),
        f"{result.rtf:.4f}",
    ]


def _percent(rate: float, interval: tuple[float, float]) -> str:
    return f"{100 * rate:.2f} [{100 * interval[0]:.2f}, {100 * interval[1]:.2f}]"


def _utterance_report(utterance: UtteranceResult) -> str:
    speaker = f"speaker {utterance.speaker}, " if utterance.speaker else ""
    alignment = align_words(utterance.reference, utterance.hypothesis)
    header = f"{utterance.id} ({speaker}{utterance.duration:.2f} s) {kaldi_line(utterance.words)}"
    return f"{header}\n{alignment_report(alignment)}"
