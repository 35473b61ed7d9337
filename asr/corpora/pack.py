"""Packs: NAME.tar of short clips (Opus, FLAC, anything asr.audio reads) beside NAME.jsonl, lines with a `split`.

Every clip is decoded once, into 16-bit wav at 16 kHz under the manifests, because decoding Opus in each epoch costs
more than reading.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tarfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from asr.audio import AudioError, audio_duration_s, load_audio, write_wav
from asr.corpora import (
    DUPLICATE,
    MALFORMED_LINE,
    MISSING_AUDIO,
    UNREADABLE_AUDIO,
    CorpusError,
    Problems,
    checked_text,
    read_lines,
    write_manifests,
)
from asr.manifest import Utterance, read_manifest, write_manifest
from asr.text import ENGLISH, Vocabulary

SPLITS = ("train", "dev", "test")

_logger = logging.getLogger(__name__)

ENGLISH_PACKS = (
    "librispeech", "librispeech_recovered", "common_voice", "common_voice_2", "common_voice_recovered",
    "ljspeech", "ljtext", "cmu_arctic", "kathleen", "asterisk", "an4", "speechocean762",
)  # fmt: skip
ENGLISH_MIN_AGE = 9  # of what younger children say in speechocean762, 58 % of the words differ from the text to the shipped model, 21 % of what older ones say
ENGLISH_DEV = ("librispeech", "common_voice")
TOO_FAST = {"bdl_arctic_b0512"}  # its letters need more output frames than it has


def prepare_pack(
    pack_dir: str | os.PathLike[str],
    manifest_dir: str | os.PathLike[str],
    *,
    name: str,
    max_tier: float = math.inf,
    min_age: int = 0,
    vocabulary: Vocabulary | None = ENGLISH,
    num_workers: int = 2,
) -> dict[str, Path]:
    """Decode PACK_DIR/NAME.tar and write MANIFEST_DIR/NAME_SPLIT.jsonl for train, dev, test; return split -> manifest.

    The audio goes to MANIFEST_DIR/audio/NAME/*.wav; clips that are already there are kept (delete the folder to
    decode anew). max_tier: leave out lines whose `tier` (how the text was recovered, 1 is best) is higher; lines
    without a tier stay. min_age: leave out lines whose speaker's `age` in years is lower; lines without one stay.
    vocabulary: the characters a text may have; None takes all. num_workers: decoding threads. Raises CorpusError.
    """
    pack_dir, audio_dir = Path(pack_dir), Path(os.path.abspath(manifest_dir)) / "audio" / name
    problems = Problems(pack_dir / f"{name}.jsonl")
    rows = _read_rows(pack_dir / f"{name}.jsonl", name, problems)
    chosen = {m: row for m, row in rows.items() if (row.get("tier") or 0) <= max_tier and _age(row) >= min_age}
    if len(chosen) < len(rows):
        left_out = len(rows) - len(chosen)
        _logger.info("%s: %d of %d lines left out, tier above %s or age below %s", name, left_out, len(rows), max_tier, min_age)
    texts = {m: checked_text(row["text"], row["where"], vocabulary, problems) for m, row in chosen.items()}
    problems.raise_if_any()

    targets = {member: audio_dir / _relative(member, name).with_suffix(".wav") for member in chosen}
    wheres = {member: row["where"] for member, row in chosen.items()}
    durations = _decode_members(pack_dir / f"{name}.tar", targets, wheres, problems, num_workers=num_workers)
    problems.raise_if_any()

    splits: dict[str, list[Utterance]] = {split: [] for split in SPLITS}
    for member, row in chosen.items():
        splits[row["split"]].append(
            Utterance(
                audio_filepath=str(targets[member]),
                duration=durations[member],
                text=texts[member],
                speaker=str(row.get("speaker") or ""),
                id=str(row.get("id") or PurePosixPath(member).stem),
            )
        )
    return write_manifests(manifest_dir, name, splits)


def prepare_noise(
    pack_dir: str | os.PathLike[str], out_dir: str | os.PathLike[str], *, name: str = "noise"
) -> list[Path]:
    """Decode every clip of PACK_DIR/NAME.tar, which has no manifest, to OUT_DIR/*.wav. Raises CorpusError."""
    archive = Path(pack_dir) / f"{name}.tar"
    members = sorted(_members(archive))
    problems = Problems(archive)
    targets = {member: Path(out_dir) / _relative(member, name).with_suffix(".wav") for member in members}
    _decode_members(archive, targets, {member: f"{archive}:{member}" for member in members}, problems, num_workers=2)
    problems.raise_if_any()
    return list(targets.values())


def prepare_english(pack_dir: str | os.PathLike[str], out_dir: str | os.PathLike[str]) -> tuple[Path, tuple[Path, ...]]:
    """Prepare the packs of English speech, and the noise in OUT_DIR/noise; return the manifest of all training parts and those of dev parts.

    Raises CorpusError.
    """
    out_dir = Path(out_dir)
    manifests = {name: prepare_pack(pack_dir, out_dir, name=name, min_age=ENGLISH_MIN_AGE) for name in ENGLISH_PACKS}
    prepare_noise(pack_dir, out_dir / "noise")
    train, dev = english_manifests(out_dir)
    write_manifest(train, [u for name in ENGLISH_PACKS for u in read_manifest(manifests[name]["train"]) if u.id not in TOO_FAST])
    return train, dev


def english_manifests(out_dir: str | os.PathLike[str]) -> tuple[Path, tuple[Path, ...]]:
    """Return where prepare_english writes its manifests, of all training parts and of the dev parts."""
    return Path(out_dir) / "english_train.jsonl", tuple(Path(out_dir) / f"{name}_dev.jsonl" for name in ENGLISH_DEV)


def _read_rows(path: Path, name: str, problems: Problems) -> dict[str, dict[str, Any]]:
    """Return tar member -> line of the pack's manifest, with `where`, its file:line."""
    rows: dict[str, dict[str, Any]] = {}
    stems: set[PurePosixPath] = set()
    for line, where in read_lines(path):
        try:
            row = json.loads(line)
        except ValueError as error:
            problems.add(MALFORMED_LINE, where, f"not JSON: {error}")
            continue
        reason = _reason_against(row)
        if reason:
            problems.add(MALFORMED_LINE, where, reason)
            continue
        member = row["audio_filepath"]
        stem = _relative(member, name).with_suffix("")
        if stem in stems:
            problems.add(DUPLICATE, where, member)
            continue
        stems.add(stem)
        rows[member] = row | {"where": where, "split": row.get("split", "train")}
    if not rows and not problems:
        raise CorpusError(f"{path}: the pack's manifest is empty; expected one JSON object a line")
    return rows


def _reason_against(row: Any) -> str:
    if not isinstance(row, dict):
        return f"expected a JSON object, found {type(row).__name__}"
    member, tier = row.get("audio_filepath"), row.get("tier")
    if not isinstance(member, str) or not _is_plain(member):
        return f"'audio_filepath' must be a path inside the tar, found {member!r}"
    if not isinstance(row.get("text"), str):
        return f"'text' must be a string, found {row.get('text')!r}"
    if row.get("split", "train") not in SPLITS:
        return f"'split' must be one of {', '.join(SPLITS)}, found {row['split']!r}"
    if tier is not None and not isinstance(tier, int):
        return f"'tier' must be a whole number, found {tier!r}"
    return ""


def _age(row: Mapping[str, Any]) -> float:
    """Return the speaker's age in years, infinity where it is not known as a number."""
    age = str(row.get("age"))
    return int(age) if age.isdecimal() else math.inf


def _is_plain(member: str) -> bool:
    """Whether a member's name stays inside the folder it is unpacked to."""
    path = PurePosixPath(member)
    return bool(path.name) and not path.is_absolute() and ".." not in path.parts and not set(member) & {"\0", "\\", ":"}


def _relative(member: str, name: str) -> PurePosixPath:
    """Return the member's path without the folder NAME that the pack's members lie in."""
    path = PurePosixPath(member)
    return path.relative_to(name) if len(path.parts) > 1 and path.parts[0] == name else path


def _members(archive: Path) -> dict[str, tarfile.TarInfo]:
    try:
        with tarfile.open(archive, "r:") as tar:
            return {member.name: member for member in tar if member.isreg() and _is_plain(member.name)}
    except FileNotFoundError as error:
        raise CorpusError(f"{archive}: no such file; expected the pack's audio beside its manifest") from error
    except (tarfile.TarError, OSError) as error:
        raise CorpusError(f"{archive}: not a readable tar file ({error}); fetch the pack again") from error


def _decode_members(
    archive: Path, targets: Mapping[str, Path], wheres: Mapping[str, str], problems: Problems, *, num_workers: int
) -> dict[str, float]:
    """Write each member's audio as wav to its target; return member -> seconds. Those that fail become problems."""
    members = _members(archive)
    for member in targets:
        if member not in members:
            problems.add(MISSING_AUDIO, wheres[member], f"{member} is not in {archive}")
    present = [member for member in targets if member in members]
    with open(archive, "rb") as file, ThreadPoolExecutor(max_workers=max(1, num_workers)) as pool:
        # libsndfile runs outside the interpreter's lock, so threads decode side by side; pread shares no file position.
        decoded = pool.map(lambda m: _decode_member(file.fileno(), members[m], targets[m]), present)
        durations = dict(zip(present, decoded, strict=True))
    for member, duration in durations.items():
        if isinstance(duration, str):
            problems.add(UNREADABLE_AUDIO, wheres[member], duration)
    return {member: duration for member, duration in durations.items() if isinstance(duration, float)}


def _decode_member(descriptor: int, member: tarfile.TarInfo, target: Path) -> float | str:
    """Return the seconds of the wav at `target`, decoded from the tar unless it is there, or the reason why not."""
    try:
        if not target.is_file():
            write_wav(target, load_audio(os.pread(descriptor, member.size, member.offset_data)))
        return audio_duration_s(target)
    except AudioError as error:
        return f"{member.name}: {error}"
