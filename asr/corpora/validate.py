"""The validator: reads a manifest and all of its audio and reports, by line, what would spoil training or evaluation.

Preparing reads headers only; this decodes. Reports, changes nothing; knows no corpus and no model beyond a vocabulary
and a frame rate.
"""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from asr.audio import SAMPLE_RATE, AudioError, audio_duration_s, read_blocks
from asr.manifest import ManifestError, Utterance, parse_line
from asr.text import ENGLISH, Vocabulary, normalise

DURATION_TOLERANCE_S = 0.05
MIN_DURATION_S, MAX_DURATION_S = 0.1, 40.0
MIN_WORDS_PER_S, MAX_WORDS_PER_S = 0.25, 6.5
MIN_WORDS_FOR_RATE = 3  # a single digit may well take 0.15 s
MIN_SECONDS_FOR_RATE = 4.0  # and a single word may have a few seconds of silence around it
SILENCE_PEAK = 1e-3  # -60 dB below full scale
FRAME_S = 0.04  # 10 ms frames, subsampled by 4

Severity = Literal["error", "warning"]


@dataclass(frozen=True, order=True)
class Finding:
    """One thing wrong with one line. An error makes the line unusable or wrong; a warning is worth a look."""

    line: int
    id: str
    problem: str
    severity: Severity = "error"


def validate_manifest(
    path: str | os.PathLike[str],
    *,
    vocabulary: Vocabulary | None = ENGLISH,
    frame_s: float = FRAME_S,
    num_workers: int = 2,
) -> list[Finding]:
    """Return what is wrong with a manifest, in the order of its lines; an empty list means nothing was found.

    vocabulary: the characters that texts may have; None takes all that the normalisation leaves. frame_s: seconds of
    audio behind one output of the model, to tell texts that are too long for their audio. num_workers: threads that
    decode. Raises ManifestError if the file itself cannot be read.
    """
    utterances, findings = _parse(Path(path))
    findings += _repeats(utterances)
    shared = Counter(utterance.audio_filepath for utterance in utterances.values())
    check = partial(_check_line, vocabulary=vocabulary, frame_s=frame_s, shared=shared)
    with ThreadPoolExecutor(max_workers=max(1, num_workers)) as pool:
        for found in pool.map(check, utterances.items()):
            findings += found
    return sorted(findings)


def _parse(path: Path) -> tuple[dict[int, Utterance], list[Finding]]:
    """Return line number -> utterance, and a finding for each line that is none."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path}: the manifest cannot be read ({error.strerror})") from error
    utterances: dict[int, Utterance] = {}
    findings: list[Finding] = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n").split(b"\n"), start=1):
        try:
            utterances[number] = parse_line(line, path, number)
        except ManifestError as error:
            findings.append(Finding(number, "", str(error).removeprefix(f"{path}:{number}: ")))
    return utterances, findings


def _repeats(utterances: dict[int, Utterance]) -> list[Finding]:
    findings: list[Finding] = []
    ids: dict[str, int] = {}
    parts: dict[str, list[tuple[float, float, int]]] = {}
    for line, utterance in utterances.items():
        first = ids.setdefault(utterance.id, line)
        if first != line:
            findings.append(Finding(line, utterance.id, f"the id is that of line {first} too"))
        parts.setdefault(utterance.audio_filepath, []).append(
            (utterance.offset, utterance.offset + utterance.duration, line)
        )
    for spans in parts.values():
        spans.sort()
        for (_, end_s, before), (start_s, _, line) in pairwise(spans):
            if start_s < end_s - DURATION_TOLERANCE_S:
                findings.append(
                    Finding(
                        max(line, before),
                        utterances[max(line, before)].id,
                        f"the audio is that of line {min(line, before)} too",
                        "warning",
                    )
                )
    return findings


def _check_line(
    numbered: tuple[int, Utterance], *, vocabulary: Vocabulary | None, frame_s: float, shared: Counter[str]
) -> list[Finding]:
    line, utterance = numbered
    whole = shared[utterance.audio_filepath] == 1
    problems = [
        *_text_problems(utterance, vocabulary),
        *_length_problems(utterance, frame_s),
        *_audio_problems(utterance, whole),
    ]
    return [replace(problem, line=line, id=utterance.id) for problem in problems]


def _text_problems(utterance: Utterance, vocabulary: Vocabulary | None) -> list[Finding]:
    text = utterance.text
    if not text.strip():
        return [_error("the text is empty")]
    unknown = vocabulary.unknown(text) if vocabulary else sorted(set(text) - set(normalise(text)) - {" "})
    if unknown:
        return [_error(f"strange characters in the text: {', '.join(f'{c!r} (U+{ord(c):04X})' for c in unknown)}")]
    if text != normalise(text):
        return [_warning(f"the text is not normalised: expected {normalise(text)[:60]!r}, found {text[:60]!r}")]
    return []


def _length_problems(utterance: Utterance, frame_s: float) -> list[Finding]:
    problems = []
    duration_s, text = utterance.duration, utterance.text
    if duration_s < MIN_DURATION_S:
        problems.append(_error(f"too short: {duration_s:.3f} s, expected at least {MIN_DURATION_S} s"))
    if duration_s > MAX_DURATION_S:
        problems.append(
            _warning(f"long: {duration_s:.1f} s, expected at most {MAX_DURATION_S:.0f} s; cut it at pauses")
        )
    num_words = len(text.split())
    rate = num_words / duration_s
    if num_words >= MIN_WORDS_FOR_RATE and rate > MAX_WORDS_PER_S:
        problems.append(
            _warning(f"{rate:.1f} words a second, expected at most {MAX_WORDS_PER_S}; is it the text of this audio?")
        )
    if num_words and duration_s >= MIN_SECONDS_FOR_RATE and rate < MIN_WORDS_PER_S:
        problems.append(
            _warning(f"{rate:.2f} words a second, expected at least {MIN_WORDS_PER_S}; is the text complete?")
        )
    num_frames = int(duration_s / frame_s) + 1
    num_repeats = sum(a == b for a, b in pairwise(text))  # CTC puts a blank between repeats
    num_needed = len(text) + num_repeats
    if num_needed > num_frames:
        problems.append(
            _error(f"the text needs {num_needed} frames for CTC, its audio has {num_frames} of {1000 * frame_s:.0f} ms")
        )
    return problems


def _audio_problems(utterance: Utterance, whole: bool) -> list[Finding]:
    """whole: no other line names this file."""
    path = utterance.audio_filepath
    if not os.path.isfile(path):
        return [_error(f"missing file: {path}")]
    try:
        file_s = audio_duration_s(path)
        end_s = utterance.offset + utterance.duration
        if end_s > file_s + DURATION_TOLERANCE_S:
            return [_error(f"wrong duration: the line ends at {end_s:.2f} s, the file at {file_s:.2f} s")]
        num_samples, peak = _measure(utterance)
    except AudioError as error:
        return [_error(f"unreadable: {error}")]
    problems = []
    if num_samples / SAMPLE_RATE < utterance.duration - DURATION_TOLERANCE_S:
        problems.append(
            _error(f"damaged: {num_samples / SAMPLE_RATE:.2f} s can be decoded, expected {utterance.duration:.2f} s")
        )
    elif whole and not utterance.offset and file_s > end_s + DURATION_TOLERANCE_S:
        problems.append(_warning(f"wrong duration: {utterance.duration:.2f} s of a file of {file_s:.2f} s"))
    if peak < SILENCE_PEAK:
        problems.append(_warning(f"silent: the loudest sample is {peak:.1e} of full scale"))
    return problems


def _measure(utterance: Utterance) -> tuple[int, float]:
    """Decode an utterance's audio; return its samples at 16 kHz and the largest magnitude."""
    num_samples, peak = 0, 0.0
    for block in read_blocks(utterance.audio_filepath, offset_s=utterance.offset, duration_s=utterance.duration):
        num_samples += len(block)
        peak = max(peak, float(np.abs(block).max()))
    return num_samples, peak


def _error(problem: str) -> Finding:
    return Finding(0, "", problem, "error")


def _warning(problem: str) -> Finding:
    return Finding(0, "", problem, "warning")
