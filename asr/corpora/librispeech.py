"""LibriSpeech (OpenSLR 12): 1,000 hours of audiobooks, PART/SPEAKER/CHAPTER/*.flac with a transcript file a chapter."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from asr.corpora import (
    DUPLICATE,
    MISSING_AUDIO,
    MISSING_TEXT,
    Archive,
    CorpusError,
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

EXPECTED = {
    "dev-clean": 2_703,
    "dev-other": 2_864,
    "test-clean": 2_620,
    "test-other": 2_939,
    "train-clean-100": 28_539,
    "train-clean-360": 104_014,
    "train-other-500": 148_688,
}
PARTS = tuple(EXPECTED)

_SHA256 = {
    "dev-clean": "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
    "dev-other": "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365",
    "test-clean": "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23",
    "test-other": "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29",
    "train-clean-100": "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
    "train-clean-360": "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf",
    "train-other-500": "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2",
}
ARCHIVES = {
    part: Archive(f"https://www.openslr.org/resources/12/{part}.tar.gz", f"LibriSpeech/{part}", f"sha256:{digest}")
    for part, digest in _SHA256.items()
}


def download_librispeech(
    directory: str | os.PathLike[str], parts: Sequence[str] = PARTS, *, archives: Mapping[str, Archive] = ARCHIVES
) -> Path:
    """Download, check (SHA-256) and unpack parts (all: 60 GB compressed); return DIRECTORY/LibriSpeech.

    The archives stay in `directory` and may be deleted. Raises CorpusError.
    """
    for part in parts:
        if part not in archives:
            raise CorpusError(f"LibriSpeech has no part {part!r}; expected one of {', '.join(archives)}")
    for part in parts:
        fetch(archives[part], directory)
    return Path(directory) / "LibriSpeech"


def prepare_librispeech(
    corpus_dir: str | os.PathLike[str],
    manifest_dir: str | os.PathLike[str],
    *,
    parts: Sequence[str] | None = None,
    expected: Mapping[str, int] | None = EXPECTED,
    vocabulary: Vocabulary | None = ENGLISH,
    num_workers: int = 8,
) -> dict[str, Path]:
    """Write MANIFEST_DIR/librispeech_PART.jsonl for each part; return part -> manifest.

    corpus_dir: the folder LibriSpeech or the one it lies in. parts: None means all that are there. expected:
    utterances a part must have; None takes a partial copy as it is. vocabulary: the characters a text may have; None
    takes all. num_workers: threads that read headers. Raises CorpusError.
    """
    root = Path(os.path.abspath(corpus_dir))
    root = root / "LibriSpeech" if (root / "LibriSpeech").is_dir() else root
    chosen = [part for part in PARTS if (root / part).is_dir()] if parts is None else list(parts)
    absent = [part for part in chosen if not (root / part).is_dir()]
    if absent or not chosen:
        raise CorpusError(
            f"{root}: expected the folders {', '.join(absent or PARTS)} of LibriSpeech there; download them first"
        )
    problems = Problems(root)
    splits = {part: _read_part(root / part, vocabulary, problems, num_workers) for part in chosen}
    problems.raise_if_any()
    check_counts(root, {part: len(utterances) for part, utterances in splits.items()}, expected)
    return write_manifests(manifest_dir, "librispeech", splits)


def _read_part(folder: Path, vocabulary: Vocabulary | None, problems: Problems, num_workers: int) -> list[Utterance]:
    found = {path.stem: path for path in sorted(folder.glob("*/*/*.flac"))}
    texts: dict[str, str] = {}
    audio: dict[str, str] = {}
    for transcript in sorted(folder.glob("*/*/*.trans.txt")):
        for line, where in read_lines(transcript):
            id, _, text = line.strip().partition(" ")
            if id in texts:
                problems.add(DUPLICATE, where, id)
                continue
            texts[id] = checked_text(text, where, vocabulary, problems)
            if id in found:
                audio[str(found[id])] = where
            else:
                problems.add(MISSING_AUDIO, where, f"{transcript.parent / id}.flac")
    for id in sorted(found.keys() - texts.keys()):
        problems.add(MISSING_TEXT, str(found[id]), "no line in its chapter's .trans.txt")
    durations = checked_durations(audio, problems, num_workers=num_workers)
    return [
        Utterance(path, duration, texts[Path(path).stem], speaker=Path(path).parts[-3], id=Path(path).stem)
        for path, duration in durations.items()
    ]
