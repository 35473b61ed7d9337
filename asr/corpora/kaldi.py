"""Kaldi data folders: wav.scp, text, if there are any utt2spk and segments. Runs no commands: pipes are refused."""

from __future__ import annotations

import math
import os
from pathlib import Path

from asr.corpora import (
    DUPLICATE,
    MALFORMED_LINE,
    MISSING_AUDIO,
    MISSING_TEXT,
    CorpusError,
    Problems,
    checked_durations,
    checked_text,
    read_lines,
    write_manifests,
)
from asr.manifest import Utterance
from asr.text import ENGLISH, Vocabulary

TOLERANCE_S = 0.05


def prepare_kaldi(
    corpus_dir: str | os.PathLike[str],
    manifest_dir: str | os.PathLike[str],
    *,
    name: str = "kaldi",
    audio_root: str | os.PathLike[str] | None = None,
    vocabulary: Vocabulary | None = ENGLISH,
    num_workers: int = 8,
) -> dict[str, Path]:
    """Write MANIFEST_DIR/NAME_SPLIT.jsonl for a data folder, or for each one in `corpus_dir`; return split -> manifest.

    A split has its folder's name. Segments become offset and duration within the recording. audio_root: what relative
    paths in wav.scp are relative to, by default each data folder (Kaldi itself takes the folder it is started in).
    vocabulary: the characters a text may have; None takes all. num_workers: threads that read headers. Raises
    CorpusError.
    """
    root = Path(os.path.abspath(corpus_dir))
    folders = [root] if (root / "wav.scp").is_file() else sorted(path.parent for path in root.glob("*/wav.scp"))
    if not folders:
        raise CorpusError(
            f"{root}: no wav.scp in it or its subfolders; expected a Kaldi data folder with wav.scp and text"
        )
    problems = Problems(root)
    splits = {
        folder.name: _read_folder(folder, Path(audio_root or folder), vocabulary, problems, num_workers)
        for folder in folders
    }
    problems.raise_if_any()
    return write_manifests(manifest_dir, name, splits)


def _read_folder(
    folder: Path, audio_root: Path, vocabulary: Vocabulary | None, problems: Problems, num_workers: int
) -> list[Utterance]:
    recordings, audio = _read_recordings(folder / "wav.scp", audio_root, problems)
    durations = checked_durations(audio, problems, num_workers=num_workers)
    parts = _read_segments(folder / "segments", recordings, durations, problems)
    if parts is None:
        parts = {id: (id, 0.0, durations.get(path, 0.0)) for id, path in recordings.items()}
    speakers = {id: speaker for id, (speaker, _) in _read_table(folder / "utt2spk", problems).items()}
    texts = _read_table(folder / "text", problems, required=True)

    utterances = []
    for id, (text, where) in texts.items():
        normalised = checked_text(text, where, vocabulary, problems)
        if id not in parts:
            problems.add(MISSING_AUDIO, where, f"{id} is in neither segments nor wav.scp")
            continue
        recording, offset_s, duration_s = parts[id]
        path = recordings.get(recording, "")
        utterances.append(Utterance(path, duration_s, normalised, offset=offset_s, speaker=speakers.get(id, ""), id=id))
    for id in sorted(parts.keys() - texts.keys()):
        problems.add(MISSING_TEXT, str(folder / "text"), f"no line for {id}")
    return utterances


def _read_recordings(path: Path, audio_root: Path, problems: Problems) -> tuple[dict[str, str], dict[str, str]]:
    """Return recording id -> audio file, and audio file -> file:line."""
    recordings: dict[str, str] = {}
    audio: dict[str, str] = {}
    for id, (value, where) in _read_table(path, problems, required=True).items():
        if "|" in value:
            problems.add(
                MALFORMED_LINE,
                where,
                f"a command, not a file: {value[:60]!r}; run it once and name the wav file it writes",
            )
        elif not value:
            problems.add(MALFORMED_LINE, where, "expected an id and a file")
        else:
            recordings[id] = os.path.abspath(audio_root / value)
            audio.setdefault(recordings[id], where)
    return recordings, audio


def _read_segments(
    path: Path, recordings: dict[str, str], durations: dict[str, float], problems: Problems
) -> dict[str, tuple[str, float, float]] | None:
    """Return utterance id -> recording, offset and duration in seconds; None if the folder has no segments."""
    if not path.is_file():
        return None
    segments: dict[str, tuple[str, float, float]] = {}
    for id, (value, where) in _read_table(path, problems).items():
        fields = value.split()
        times = [_seconds(field) for field in fields[1:]]
        if len(fields) != 3 or None in times:
            problems.add(MALFORMED_LINE, where, "expected utterance, recording, start and end in seconds")
            continue
        start_s, end_s = (time for time in times if time is not None)
        recording = fields[0]
        segments[id] = (recording, start_s, end_s - start_s)
        if recording not in recordings:
            problems.add(MISSING_AUDIO, where, f"the recording {recording} is not in wav.scp")
        elif recordings[recording] in durations:
            length_s = durations[recordings[recording]]
            end_s = length_s if end_s == -1 else end_s  # Kaldi writes -1 for the end of the recording
            if not 0 <= start_s < end_s <= length_s + TOLERANCE_S:
                problems.add(MALFORMED_LINE, where, f"from {start_s} to {end_s} s of a recording of {length_s:.2f} s")
            segments[id] = (recording, start_s, min(end_s, length_s) - start_s)
    return segments


def _read_table(path: Path, problems: Problems, *, required: bool = False) -> dict[str, tuple[str, str]]:
    """Return first field -> rest of the line and file:line."""
    if not required and not path.is_file():
        return {}
    table: dict[str, tuple[str, str]] = {}
    for line, where in read_lines(path):
        id, *rest = line.split(maxsplit=1)
        if id in table:
            problems.add(DUPLICATE, where, id)
        table[id] = (rest[0].strip() if rest else "", where)
    return table


def _seconds(field: str) -> float | None:
    try:
        value = float(field)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
