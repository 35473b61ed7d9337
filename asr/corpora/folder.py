"""A folder of one's own speech: audio files, each with its text in one of that name (one.wav, one.txt or one.lab), or
all texts in one file at the top: transcripts.tsv (name TAB text [TAB speaker]) or metadata.csv (name|text, or
name|text|normalised text as LJSpeech writes it). Subfolders are speakers.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
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

# The second row cannot be read without conversion: it is here so that such files are reported, not overlooked.
AUDIO_SUFFIXES = frozenset(
    {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".sph", ".w64", ".caf", ".rf64"}
    | {".m4a", ".mp4", ".aac", ".wma", ".webm", ".amr", ".3gp"}
)
TEXT_SUFFIXES = (".txt", ".lab")
TRANSCRIPTS = ("transcripts.tsv", "metadata.csv")
MIN_SPEAKERS_TO_SPLIT = 4

_ABOUT = frozenset({"readme", "license", "licence", "copying", "notice", "changelog", "about"})


@dataclass(frozen=True)
class _Transcript:
    text: str
    where: str
    speaker: str | None = None


def prepare_folder(
    corpus_dir: str | os.PathLike[str],
    manifest_dir: str | os.PathLike[str],
    *,
    name: str = "folder",
    dev_fraction: float = 0.1,
    seed: int = 0,
    vocabulary: Vocabulary | None = ENGLISH,
    num_workers: int = 8,
) -> dict[str, Path]:
    """Write MANIFEST_DIR/NAME_train.jsonl and NAME_dev.jsonl; return split -> manifest.

    An utterance's speaker is the speaker column, else the first subfolder. dev_fraction: the part of the utterances
    to hold out, 0 for none; with four speakers or more whole speakers are held out, so that dev tells how the model
    does on new voices; a hash with the seed draws, so the same folder always gives the same split. Every audio file
    needs its text and every text its audio. vocabulary: the characters a text may have; None takes all. num_workers:
    threads that read headers. Raises CorpusError.
    """
    if not 0 <= dev_fraction < 1:
        raise CorpusError(f"dev_fraction must be at least 0 and below 1, found {dev_fraction}")
    root = Path(os.path.abspath(corpus_dir))
    if not root.is_dir():
        raise CorpusError(f"{root}: no such folder; expected one with audio files and their texts")
    problems = Problems(root)
    files = _files(root)
    audio = [path for path in files if path.suffix.lower() in AUDIO_SUFFIXES]
    listed = [root / transcripts for transcripts in TRANSCRIPTS if (root / transcripts).is_file()]
    if len(listed) > 1:
        raise CorpusError(f"{root}: found both {' and '.join(TRANSCRIPTS)}; keep one of them")
    if not audio:
        raise CorpusError(f"{root}: no audio files in it; expected wav, flac, ogg, opus or mp3 with their texts")
    found = _listed_texts(listed[0], audio, root, problems) if listed else _sibling_texts(files, audio, problems)
    for path in audio:
        if path not in found:
            expected = (
                f"no line in {listed[0].name}"
                if listed
                else f"no {' or '.join(path.stem + s for s in TEXT_SUFFIXES)} beside it"
            )
            problems.add(MISSING_TEXT, str(path), expected)
    texts = {str(path): checked_text(t.text, t.where, vocabulary, problems) for path, t in found.items()}
    durations = checked_durations({str(path): str(path) for path in found}, problems, num_workers=num_workers)
    problems.raise_if_any()

    utterances = [_utterance(path, root, durations[str(path)], texts[str(path)], found[path]) for path in sorted(found)]
    dev = _dev_ids(utterances, dev_fraction, seed)
    splits = {"train": [u for u in utterances if u.id not in dev], "dev": [u for u in utterances if u.id in dev]}
    return write_manifests(manifest_dir, name, splits)


def _files(root: Path) -> list[Path]:
    return sorted(
        path
        for path in root.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )


def _sibling_texts(files: Sequence[Path], audio: Sequence[Path], problems: Problems) -> dict[Path, _Transcript]:
    """Return audio file -> the text of the file with the same name beside it."""
    by_stem: dict[Path, Path] = {}
    for path in files:
        stem = path.with_suffix("")
        if path.suffix.lower() not in TEXT_SUFFIXES or path.stem.lower() in _ABOUT:
            continue
        if stem in by_stem:
            problems.add(DUPLICATE, str(path), f"{by_stem[stem].name} is there too")
        by_stem[stem] = path
    found: dict[Path, _Transcript] = {}
    seen: dict[Path, Path] = {}
    for path in audio:
        stem = path.with_suffix("")
        if stem in seen:
            problems.add(DUPLICATE, str(path), f"{seen[stem].name} has the same text")
        seen[stem] = path
        if stem in by_stem:
            text = " ".join(line for line, _ in read_lines(by_stem[stem]))
            found[path] = _Transcript(text, str(by_stem[stem]))
    for stem, path in by_stem.items():
        if stem not in seen:
            problems.add(MISSING_AUDIO, str(path), "no audio file of this name beside it")
    return found


def _listed_texts(listed: Path, audio: Sequence[Path], root: Path, problems: Problems) -> dict[Path, _Transcript]:
    """Return audio file -> its line in a transcripts file; names may lack the extension and, if unique, the folder."""
    by_name: dict[str, set[Path]] = {}
    for path in audio:
        relative = path.relative_to(root)
        for key in {relative.as_posix(), relative.with_suffix("").as_posix(), path.name, path.stem}:
            by_name.setdefault(key, set()).add(path)
    separator = "\t" if listed.suffix == ".tsv" else "|"
    found: dict[Path, _Transcript] = {}
    for line, where in read_lines(listed):
        fields = [field.strip() for field in line.split(separator)]
        candidates = _candidates(by_name, fields[0], root)
        if not 2 <= len(fields) <= 3:
            problems.add(MALFORMED_LINE, where, f"expected name{separator!r}text, found {len(fields)} fields")
        elif not candidates:
            problems.add(MISSING_AUDIO, where, fields[0])
        elif len(candidates) > 1:
            names = ", ".join(path.relative_to(root).as_posix() for path in candidates)
            problems.add(DUPLICATE, where, f"{fields[0]} may be {names}; write the subfolder and the extension")
        elif candidates[0] in found:
            problems.add(DUPLICATE, where, fields[0])
        elif separator == "\t":
            found[candidates[0]] = _Transcript(fields[1], where, fields[2] if len(fields) > 2 else None)
        else:
            found[candidates[0]] = _Transcript(fields[-1], where)
    return found


def _candidates(by_name: dict[str, set[Path]], name: str, root: Path) -> list[Path]:
    paths = sorted(by_name.get(name.removeprefix("./"), ()))
    exact = [path for path in paths if path.relative_to(root).as_posix() == name]
    return exact or paths


def _utterance(path: Path, root: Path, duration: float, text: str, transcript: _Transcript) -> Utterance:
    relative = path.relative_to(root)
    folder = relative.parts[0] if len(relative.parts) > 1 else ""
    speaker = folder if transcript.speaker is None else transcript.speaker
    return Utterance(str(path), duration, text, speaker=speaker, id=relative.as_posix())


def _dev_ids(utterances: Sequence[Utterance], dev_fraction: float, seed: int) -> set[str]:
    """Return the ids to hold out, drawn by a seeded hash: whole speakers if there are enough, else utterances."""
    num_wanted = round(dev_fraction * len(utterances))
    if dev_fraction and len(utterances) > 1:
        num_wanted = max(1, num_wanted)
    if not num_wanted:
        return set()
    sizes = Counter(utterance.speaker for utterance in utterances)
    if len(sizes) < MIN_SPEAKERS_TO_SPLIT:
        ids = sorted((utterance.id for utterance in utterances), key=lambda id: _hash(seed, id))
        return set(ids[:num_wanted])
    held_out: set[str] = set()
    num_held = 0
    for speaker in sorted(sizes, key=lambda speaker: _hash(seed, speaker)):
        if num_held < num_wanted and num_held + sizes[speaker] <= 1.5 * num_wanted:
            held_out.add(speaker)
            num_held += sizes[speaker]
    held_out = held_out or {min(sizes, key=lambda speaker: (sizes[speaker], _hash(seed, speaker)))}
    return {utterance.id for utterance in utterances if utterance.speaker in held_out}


def _hash(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()
