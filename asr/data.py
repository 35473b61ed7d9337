"""Manifests and the batches made from them: Utterance, JSONL in NeMo's keys, the data set, length buckets, collate.

Knows audio and text, not features or models: a batch carries waveforms, the features are computed where the model is.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from asr.audio import AudioError, load_audio
from asr.augment import AugmentConfig, augment_waveform
from asr.text import TextError, Vocabulary


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
        raise ManifestError(f"{where}: 'audio_filepath' is not a path: {audio!r}")
    if not (math.isfinite(duration) and duration > 0):
        raise ManifestError(f"{where}: 'duration' must be a positive number of seconds, found {duration}")
    if not (math.isfinite(offset) and offset >= 0):
        raise ManifestError(f"{where}: 'offset' must be a number of seconds >= 0, found {offset}")
    return Utterance(
        audio_filepath=os.path.abspath(path.parent / os.path.expanduser(audio)),
        duration=duration,
        text=_field(row, "text", str, where),
        offset=offset,
        speaker=str(row.get("speaker") or ""),
        id=str(row.get("id") or Path(audio).stem),
    )


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
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.path.abspath(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        for utterance in utterances:
            file.write(json.dumps(_row(utterance, folder), ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _row(utterance: Utterance, folder: str) -> dict[str, Any]:
    audio = os.path.abspath(utterance.audio_filepath)
    if os.path.commonpath([audio, folder]) == folder:
        audio = os.path.relpath(audio, folder)
    row: dict[str, Any] = {"audio_filepath": audio, "duration": round(utterance.duration, 4), "text": utterance.text}
    optional = {"offset": utterance.offset, "speaker": utterance.speaker, "id": utterance.id}
    return row | {key: value for key, value in optional.items() if value}


@dataclass(frozen=True)
class Batch:
    """Utterances padded with zeros: waveforms (B, N) float32, waveform_lengths (B,) in samples, tokens (B, U), token_lengths (B,), names."""

    waveforms: Tensor
    waveform_lengths: Tensor
    tokens: Tensor
    token_lengths: Tensor
    names: tuple[str, ...]


class SpeechDataset(Dataset[tuple[np.ndarray, list[int], str]]):
    """Reads and augments utterances. An item is asked for by (index, seed): the seed alone decides its augmentation.

    augment: None for evaluation. noises: waveforms for AugmentConfig.noise_probability. fastest_speeds: the largest speed factor of
    each utterance, so that its text still fits.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        vocabulary: Vocabulary,
        *,
        augment: AugmentConfig | None = None,
        noises: Sequence[np.ndarray] = (),
        fastest_speeds: Sequence[float] = (),
    ) -> None:
        self.utterances = list(utterances)
        self.augment = augment
        self.noises = list(noises)
        self.fastest_speeds = list(fastest_speeds) or [math.inf] * len(self.utterances)
        self.tokens = [_encode(utterance, vocabulary) for utterance in self.utterances]

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, key: tuple[int, int]) -> tuple[np.ndarray, list[int], str]:
        index, seed = key
        utterance = self.utterances[index]
        waveform = read_utterance(utterance)
        if self.augment is not None:
            rng = np.random.default_rng(seed)
            waveform = augment_waveform(
                waveform, self.augment, noises=self.noises, rng=rng, fastest_speed=self.fastest_speeds[index]
            )
        return waveform, self.tokens[index], utterance.id


def read_utterance(utterance: Utterance) -> np.ndarray:
    """Return the waveform (N,) of an utterance, the part from `offset` on where it is a part. Raises AudioError naming file and utterance."""
    try:
        return load_audio(
            utterance.audio_filepath,
            offset_s=utterance.offset,
            duration_s=utterance.duration if utterance.offset else None,
        )
    except AudioError as error:
        raise AudioError(f"utterance {utterance.id!r}: {error}") from error


def _encode(utterance: Utterance, vocabulary: Vocabulary) -> list[int]:
    try:
        return vocabulary.encode(utterance.text)
    except TextError as error:
        raise TextError(f"utterance {utterance.id!r} ({utterance.audio_filepath}): {error}") from error


def collate(items: Sequence[tuple[np.ndarray, list[int], str]]) -> Batch:
    """Pad items to one batch."""
    waveforms = [torch.from_numpy(waveform) for waveform, _, _ in items]
    tokens = [torch.tensor(ids, dtype=torch.int64) for _, ids, _ in items]
    return Batch(
        waveforms=pad_sequence(waveforms, batch_first=True),
        waveform_lengths=torch.tensor([len(w) for w in waveforms]),
        tokens=pad_sequence(tokens, batch_first=True),
        token_lengths=torch.tensor([len(t) for t in tokens]),
        names=tuple(name for _, _, name in items),
    )


def epoch_batches(durations: Sequence[float], batch_s: float, *, seed: int, epoch: int) -> list[list[int]]:
    """Return the batches of an epoch as lists of indices: each index once, `batch_s` seconds of audio or less, padding counted.

    Utterances of like length stand together: the order is by duration with a random 10 % of jitter, the batches are then shuffled.
    An utterance longer than batch_s is a batch of its own. The same seed and epoch give the same batches.
    """
    rng = np.random.default_rng([seed, epoch])
    jittered = np.asarray(durations) * rng.uniform(0.9, 1.1, len(durations))
    batches: list[list[int]] = [[]]
    longest = 0.0
    for index in np.argsort(jittered, kind="stable"):
        longest = max(longest, durations[index])
        if batches[-1] and longest * (len(batches[-1]) + 1) > batch_s:
            batches.append([])
            longest = durations[index]
        batches[-1].append(int(index))
    return [batches[i] for i in rng.permutation(len(batches))]


def utterance_seed(seed: int, epoch: int, index: int) -> int:
    """Return the seed of one utterance's augmentation in one epoch, whatever worker or machine reads it."""
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1)[0])
