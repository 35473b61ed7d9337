"""AN4, CMU's census database: 948 + 130 utterances of spelled letters, digits, names, dates; 50 minutes, 84 speakers.

Layout: etc/an4_{train,test}.{fileids,transcription} and wav/FILEID.raw (headerless 16 kHz 16-bit), .sph or .wav.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from asr.audio import write_wav
from asr.corpora import (
    DUPLICATE,
    MALFORMED_LINE,
    MISSING_AUDIO,
    MISSING_TEXT,
    UNREADABLE_AUDIO,
    Archive,
    Problems,
    check_counts,
    checked_durations,
    checked_text,
    fetch,
    read_lines,
    write_manifests,
)
from asr.manifest import Utterance
from asr.text import ENGLISH, Vocabulary

EXPECTED = {"train": 948, "test": 130}
ARCHIVE = Archive("https://www.speech.cs.cmu.edu/databases/an4/an4_raw.bigendian.tar.gz", "an4")

_SUFFIXES = (".wav", ".flac", ".sph", ".raw")
_TRANSCRIPT = re.compile(r"(?P<text>.*?)\s*\((?P<id>[^()\s]+)\)\s*")
_MARKS = re.compile(r"</?s>|<sil>", re.IGNORECASE)


def download_an4(directory: str | os.PathLike[str], *, archive: Archive = ARCHIVE) -> Path:
    """Download (64 MB) and unpack the corpus from CMU; return DIRECTORY/an4.

    CMU publishes no checksum: the length, gzip's own check and prepare_an4's counts stand in for it. Raises
    CorpusError.
    """
    return fetch(archive, directory)


def prepare_an4(
    corpus_dir: str | os.PathLike[str],
    manifest_dir: str | os.PathLike[str],
    *,
    expected: Mapping[str, int] | None = EXPECTED,
    vocabulary: Vocabulary | None = ENGLISH,
    num_workers: int = 8,
) -> dict[str, Path]:
    """Write MANIFEST_DIR/an4_train.jsonl and an4_test.jsonl, the official split; return split -> manifest.

    Headerless .raw files (big-endian, as in CMU's main archive) are rewritten as wav under MANIFEST_DIR/audio/an4,
    sample for sample. corpus_dir: the folder with etc and wav. expected: utterances a split must have; None takes a
    partial copy. vocabulary: the characters a text may have; None takes all. num_workers: threads that read headers.
    Raises CorpusError.
    """
    root, audio_dir = Path(os.path.abspath(corpus_dir)), Path(os.path.abspath(manifest_dir)) / "audio" / "an4"
    problems = Problems(root)
    splits = {
        split: _read_split(root, split, audio_dir, vocabulary, problems, num_workers) for split in ("train", "test")
    }
    problems.raise_if_any()
    check_counts(root, {split: len(utterances) for split, utterances in splits.items()}, expected)
    return write_manifests(manifest_dir, "an4", splits)


def _read_split(
    root: Path, split: str, audio_dir: Path, vocabulary: Vocabulary | None, problems: Problems, num_workers: int
) -> list[Utterance]:
    texts = _read_transcripts(root / "etc" / f"an4_{split}.transcription", vocabulary, problems)
    audio: dict[str, str] = {}
    ids: set[str] = set()
    for line, where in read_lines(root / "etc" / f"an4_{split}.fileids"):
        id = Path(line.strip()).name
        path = _audio(root / "wav" / line.strip(), audio_dir, where, problems)
        if id in ids:
            problems.add(DUPLICATE, where, id)
        elif id not in texts:
            problems.add(MISSING_TEXT, where, f"no line for it in an4_{split}.transcription")
        elif path:
            audio[str(path)] = where
        ids.add(id)
    for id in sorted(texts.keys() - ids):
        problems.add(
            MISSING_AUDIO, str(root / "etc" / f"an4_{split}.transcription"), f"{id} is not in an4_{split}.fileids"
        )
    durations = checked_durations(audio, problems, num_workers=num_workers)
    # an251-fash-b: the utterance, the speaker, the microphone
    return [
        Utterance(path, duration, texts[Path(path).stem], speaker=Path(path).parent.name, id=Path(path).stem)
        for path, duration in durations.items()
    ]


def _read_transcripts(path: Path, vocabulary: Vocabulary | None, problems: Problems) -> dict[str, str]:
    """Return id -> text of lines like `<s> RUBOUT G M E F THREE NINE </s> (an251-fash-b)`."""
    texts: dict[str, str] = {}
    for line, where in read_lines(path):
        match = _TRANSCRIPT.fullmatch(line)
        if match is None:
            problems.add(MALFORMED_LINE, where, f"expected <s> WORDS </s> (id), found {line[:60]!r}")
        elif match["id"] in texts:
            problems.add(DUPLICATE, where, match["id"])
        else:
            texts[match["id"]] = checked_text(_MARKS.sub(" ", match["text"]), where, vocabulary, problems)
    return texts


def _audio(stem: Path, audio_dir: Path, where: str, problems: Problems) -> Path | None:
    """Return the file a data reader can open, made from .raw if need be."""
    path = next((p for suffix in _SUFFIXES if (p := stem.with_name(stem.name + suffix)).is_file()), None)
    if path is None:
        problems.add(MISSING_AUDIO, where, f"{stem} with none of {', '.join(_SUFFIXES)}")
    elif path.suffix == ".raw":
        return _raw_to_wav(
            path, audio_dir / stem.parent.parent.name / stem.parent.name / f"{stem.name}.wav", where, problems
        )
    return path


def _raw_to_wav(path: Path, target: Path, where: str, problems: Problems) -> Path | None:
    data = path.read_bytes()
    if not data or len(data) % 2:
        problems.add(UNREADABLE_AUDIO, where, f"{path}: expected 16-bit samples, found {len(data)} bytes")
        return None
    samples = np.frombuffer(data, dtype=">i2")
    # Samples read in the wrong byte order jump about: their low byte takes the high one's place.
    if _roughness(samples) > 4 * _roughness(samples.view("<i2")):
        problems.add(
            UNREADABLE_AUDIO,
            where,
            f"{path}: the samples look little-endian; fetch CMU's big-endian archive or the .sph one",
        )
        return None
    write_wav(target, samples.astype(np.int16))
    return target


def _roughness(samples: np.ndarray) -> float:
    return float(np.abs(np.diff(samples.astype(np.float64))).sum())
