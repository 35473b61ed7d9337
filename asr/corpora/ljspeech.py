"""LJSpeech 1.1: 24 hours of one woman reading non-fiction, wavs/*.wav with metadata.csv (`id|text|normalised text`).

The third column has numbers written out; what it leaves (Mr., accents, editor's brackets) is written as it is read
aloud here.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from asr.corpora import (
    DUPLICATE,
    MALFORMED_LINE,
    MISSING_TEXT,
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

EXPECTED = {"metadata.csv": 13_100}
ARCHIVE = Archive(
    "https://data.keithito.com/data/speech/LJSpeech-1.1.tar.bz2",
    "LJSpeech-1.1",
    "sha256:be1a30453f28eb8dd26af4101ae40cbf2c50413b1bb21936cbcdc6fae3de8aa5",
)
SPEAKER = "LJ"
DEV_PERCENT, TEST_PERCENT = 2, 2

# From the corpus' README; "No." is left out, because at the end of a sentence it is the word no.
_ABBREVIATIONS = {
    "Mr": "mister", "Mrs": "missus", "Dr": "doctor", "Drs": "doctors", "St": "saint", "Co": "company",
    "Jr": "junior", "Maj": "major", "Gen": "general", "Rev": "reverend",
    "Lt": "lieutenant", "Hon": "honorable", "Sgt": "sergeant", "Capt": "captain",
    "Esq": "esquire", "Ltd": "limited", "Col": "colonel", "Ft": "fort",
}  # fmt: skip
_ABBREVIATION = re.compile(rf"\b({'|'.join(_ABBREVIATIONS)})\.")


def download_ljspeech(directory: str | os.PathLike[str], *, archive: Archive = ARCHIVE) -> Path:
    """Download (2.7 GB), check (SHA-256) and unpack the corpus; return DIRECTORY/LJSpeech-1.1. Raises CorpusError."""
    return fetch(archive, directory)


def prepare_ljspeech(
    corpus_dir: str | os.PathLike[str],
    manifest_dir: str | os.PathLike[str],
    *,
    expected: Mapping[str, int] | None = EXPECTED,
    vocabulary: Vocabulary | None = ENGLISH,
    num_workers: int = 8,
) -> dict[str, Path]:
    """Write MANIFEST_DIR/ljspeech_train.jsonl, _dev.jsonl and _test.jsonl; return split -> manifest.

    The corpus has no official split. Here the SHA-256 of a clip's id decides, 2 % dev and 2 % test, so a clip's split
    does not depend on which others are there. corpus_dir: the folder with metadata.csv. expected: the number of
    clips; None takes a partial copy. vocabulary: the characters a text may have; None takes all. num_workers: threads
    that read headers. Raises CorpusError.
    """
    root = Path(os.path.abspath(corpus_dir))
    problems = Problems(root)
    texts: dict[str, str] = {}
    audio: dict[str, str] = {}
    for line, where in read_lines(root / "metadata.csv"):
        fields = line.split("|")
        if len(fields) != 3:
            problems.add(MALFORMED_LINE, where, f"expected id|text|normalised text, found {len(fields)} fields")
        elif fields[0] in texts:
            problems.add(DUPLICATE, where, fields[0])
        else:
            texts[fields[0]] = checked_text(_as_spoken(fields[2]), where, vocabulary, problems)
            audio[str(root / "wavs" / f"{fields[0]}.wav")] = where
    for path in sorted((root / "wavs").glob("*.wav")):
        if path.stem not in texts:
            problems.add(MISSING_TEXT, str(path), "no line in metadata.csv")
    durations = checked_durations(audio, problems, num_workers=num_workers)
    problems.raise_if_any()
    check_counts(root, {"metadata.csv": len(texts)}, expected)

    splits: dict[str, list[Utterance]] = {"train": [], "dev": [], "test": []}
    for (id, text), (wav, duration) in zip(texts.items(), durations.items(), strict=True):
        splits[_split(id)].append(Utterance(wav, duration, text, speaker=SPEAKER, id=id))
    return write_manifests(manifest_dir, "ljspeech", splits)


def _as_spoken(text: str) -> str:
    text = _ABBREVIATION.sub(lambda match: _ABBREVIATIONS[match.group(1)], text).replace("[", "").replace("]", "")
    decomposed = unicodedata.normalize("NFD", text)  # raison d'être -> raison d'etre: 19 clips
    return "".join(character for character in decomposed if not unicodedata.combining(character))


def _split(id: str) -> str:
    percent = int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") % 100
    return "dev" if percent < DEV_PERCENT else "test" if percent < DEV_PERCENT + TEST_PERCENT else "train"
