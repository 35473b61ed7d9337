"""Manifests: Utterance, the JSONL file in NeMo's keys, and the reading of an utterance's audio. Knows no torch and no batches."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asr.audio import SAMPLE_RATE, AudioError, load_audio
from asr.storage import write_atomically

SLACK_S = 0.05
MIN_AUDIO_SHARE = 0.9


class ManifestError(ValueError):
    """A manifest that cannot be used; the message names the file and the line."""


@dataclass(frozen=True)
class Utterance:
    """One line of a manifest: a piece of audio and what is said in it.

    audio_filepath: absolute path. duration, offset: seconds. speaker, id: empty when unknown.
    """

    audio_filepath: str
    duration: float
    text: str
    offset: float = 0.0
    speaker: str = ""
    id: str = ""


def read_manifest(path: str | os.PathLike[str]) -> list[Utterance]:
    """Read a JSONL manifest: an object a line with `audio_filepath`, `duration` (s), `text`, optional `offset` (s), `speaker`, `id`.

    A relative `audio_filepath` is relative to the manifest's folder; other keys are ignored; empty lines are not.
    A missing `id` becomes the file's stem. Raises ManifestError with file and line.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path}: the manifest cannot be read ({error.strerror})") from error
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if lines and not lines[-1].strip():
        lines.pop()
    utterances = [parse_line(line, path, number) for number, line in enumerate(lines, start=1)]
    if not utterances:
        raise ManifestError(f"{path}: the manifest is empty; expected one JSON object a line")
    return utterances


def parse_line(line: bytes, path: Path, number: int) -> Utterance:
    where = f"{path}:{number}"
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ManifestError(f"{where}: not UTF-8 text (byte {error.start}); save the manifest as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{where}: not a JSON object ({error}); expected one object a line") from error
    if not isinstance(row, dict):
        raise ManifestError(f"{where}: expected a JSON object, found {type(row).__name__}")
    audio = _field(row, "audio_filepath", str, where)
    duration, offset = _field(row, "duration", float, where), _field(row, "offset", float, where, default=0.0)
    if not audio or "\0" in audio:
        raise ManifestError(f"{where}: 'audio_filepath' is not a path: {audio!r:.60}")
    if not (math.isfinite(duration) and duration > 0):
        raise ManifestError(f"{where}: 'duration' must be a positive number of seconds, found {duration}")
    if not (math.isfinite(offset) and offset >= 0):
        raise ManifestError(f"{where}: 'offset' must be a number of seconds >= 0, found {offset}")
    text, speaker, name = _field(row, "text", str, where), str(row.get("speaker") or ""), str(row.get("id") or Path(audio).stem)
    if any("\ud800" <= character <= "\udfff" for character in audio + text + speaker + name):
        raise ManifestError(f"{where}: half a character (a lone surrogate, \\ud800 to \\udfff) in a string; expected whole ones")
    return Utterance(os.path.abspath(path.parent / os.path.expanduser(audio)), duration, text, offset, speaker, name)


def _field(row: dict[str, Any], key: str, kind: type, where: str, *, default: Any = None) -> Any:
    value = row.get(key, default)
    if value is None:
        raise ManifestError(f"{where}: the key {key!r} is missing; expected audio_filepath, duration and text")
    accepted = (int, float) if kind is float else (kind,)
    if isinstance(value, bool) or not isinstance(value, accepted):
        raise ManifestError(f"{where}: {key!r} must be a {'number' if kind is float else 'string'}, found {value!r:.60}")
    try:
        return kind(value)
    except OverflowError as error:
        raise ManifestError(f"{where}: {key!r} is too large a number") from error


def write_manifest(path: str | os.PathLike[str], utterances: Iterable[Utterance]) -> None:
    """Write a manifest atomically. Audio under the manifest's folder is written relative to it, so the folder can be moved."""
    folder = os.path.abspath(Path(path).parent)
    lines = [json.dumps(_row(utterance, folder), ensure_ascii=False) + "\n" for utterance in utterances]
    write_atomically(path, "".join(lines).encode())


def _row(utterance: Utterance, folder: str) -> dict[str, Any]:
    audio = os.path.abspath(utterance.audio_filepath)
    if os.path.commonpath([audio, folder]) == folder:
        audio = os.path.relpath(audio, folder)
    row: dict[str, Any] = {"audio_filepath": audio, "duration": round(utterance.duration, 4), "text": utterance.text}
    optional = {"offset": utterance.offset, "speaker": utterance.speaker, "id": utterance.id}
    return row | {key: value for key, value in optional.items() if value}


def read_utterance(utterance: Utterance) -> np.ndarray:
    """Return the waveform (N,) of an utterance, a part of its file or all of it.

    A file that ends within SLACK_S of the manifest's duration, which is rounded, is read to its end. Raises AudioError naming file and
    utterance, also where the file holds less than MIN_AUDIO_SHARE of the duration: it is truncated, or not the one meant.
    """
    is_start = not utterance.offset
    try:
        waveform = load_audio(
            utterance.audio_filepath,
            offset_s=utterance.offset,
            duration_s=utterance.duration + (2 * SLACK_S if is_start else 0.0),
        )
    except AudioError as error:
        raise AudioError(f"utterance {utterance.id!r}: {error}") from error
    found_s = len(waveform) / SAMPLE_RATE
    if found_s < MIN_AUDIO_SHARE * utterance.duration:
        raise AudioError(
            f"utterance {utterance.id!r}: {utterance.audio_filepath} has {found_s:.2f} s from {utterance.offset:.2f} s on, the manifest"
            f" says {utterance.duration:.2f} s; replace the truncated file or correct 'duration'"
        )
    if is_start and found_s > utterance.duration + SLACK_S:
        return waveform[: max(1, round(utterance.duration * SAMPLE_RATE))]
    return waveform
