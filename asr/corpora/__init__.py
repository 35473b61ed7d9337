"""Corpora: one file each, `download_X(directory)` and `prepare_X(corpus_dir, manifest_dir) -> {split: manifest}`.

Here is what they share: the check of a transcript, the list of everything wrong with a corpus, raised at once, the
writing of manifests, and the fetching of archives. Knows no corpus' layout.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import re
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from asr.audio import AudioError, audio_duration_s
from asr.manifest import Utterance, write_manifest
from asr.text import Vocabulary, normalise

NUM_LISTED = 10
MAX_ATTEMPTS = 5
TIMEOUT_S = 60.0
CHUNK_BYTES = 1 << 20

MISSING_AUDIO = "missing audio"
UNREADABLE_AUDIO = "unreadable audio"
MISSING_TEXT = "missing text"
UNKNOWN_CHARACTERS = "unknown characters"
MARKUP = "mark-up in the text"
MALFORMED_LINE = "malformed line"
DUPLICATE = "named twice"

_REMEDIES = {
    MISSING_AUDIO: "add the audio or take its text out",
    UNREADABLE_AUDIO: "replace the file or take it and its text out",
    MISSING_TEXT: "write what is said in it or take the audio out",
    UNKNOWN_CHARACTERS: "spell digits and symbols out as words, or prepare for a vocabulary that has these characters",
    MARKUP: "take the tag out of the text or leave the utterance out",
    MALFORMED_LINE: "correct the line",
    DUPLICATE: "keep one of the two",
}

_TAG = re.compile(
    r"</?\w+>|\[\w+\]"
)  # <unk>, [laughter]: sounds or gaps, not words; the normalisation would keep the letters

_logger = logging.getLogger(__name__)


class CorpusError(ValueError):
    """A corpus that cannot be prepared or downloaded; the message names the files or lines and the remedy."""


@dataclass(frozen=True)
class Archive:
    """A tar file to fetch: address, the folder in it, checksum (`sha256:...`, `md5:...`; empty if unpublished)."""

    url: str
    folder: str
    checksum: str = ""


class Problems:
    """Everything wrong with one corpus, collected while it is read, so that it can be corrected in one go."""

    def __init__(self, corpus: str | os.PathLike[str]) -> None:
        self._corpus = os.fspath(corpus)
        self._found: list[tuple[str, str]] = []

    def add(self, kind: str, where: str, detail: str = "") -> None:
        """Note a problem of a `kind` (a constant of this module) at `where`, a file or file:line."""
        self._found.append((kind, f"{where}: {kind}" + (f" ({detail})" if detail else "")))

    def __len__(self) -> int:
        return len(self._found)

    def raise_if_any(self) -> None:
        """Raise CorpusError with the counts of each kind, the first ten cases and the remedies, unless all is well."""
        if not self._found:
            return
        counts = Counter(kind for kind, _ in self._found)
        kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        remedies = "; ".join(f"{kind}: {_REMEDIES[kind]}" for kind in counts)
        listed = "".join(f"\n  {line}" for _, line in self._found[:NUM_LISTED])
        rest = len(self._found) - NUM_LISTED
        more = f"\n  ... and {rest} more" if rest > 0 else ""
        raise CorpusError(f"{self._corpus}: nothing was written, because of {kinds} ({remedies}):{listed}{more}")


def checked_text(text: str, where: str, vocabulary: Vocabulary | None, problems: Problems) -> str:
    """Return the normalised transcript; a problem is noted if nothing is left or the vocabulary cannot write it.

    vocabulary: None takes every character that the normalisation leaves.
    """
    normalised = normalise(text)
    tag = _TAG.search(text)
    if tag:
        problems.add(MARKUP, where, f"{tag.group()} in {text[:60]!r}")
    if not normalised:
        problems.add(MISSING_TEXT, where, f"found {text[:60]!r}")
    unknown = vocabulary.unknown(normalised) if vocabulary else []
    if unknown:
        problems.add(UNKNOWN_CHARACTERS, where, f"{', '.join(map(repr, unknown))} in {text[:60]!r}")
    return normalised


def checked_durations(audio: Mapping[str, str], problems: Problems, *, num_workers: int = 8) -> dict[str, float]:
    """Return the seconds of each audio file, path -> duration; missing and unreadable ones are problems and left out.

    audio: path -> where it is named (file or file:line), for the message.
    """
    with ThreadPoolExecutor(max_workers=num_workers) as pool:
        durations = dict(zip(audio, pool.map(_duration_or_reason, audio), strict=True))
    for path, found in durations.items():
        if isinstance(found, str):
            problems.add(UNREADABLE_AUDIO if os.path.isfile(path) else MISSING_AUDIO, audio[path], found)
    return {path: found for path, found in durations.items() if isinstance(found, float)}


def check_counts(corpus: str | os.PathLike[str], counts: Mapping[str, int], expected: Mapping[str, int] | None) -> None:
    """Raise CorpusError unless each of `counts` is that of the complete corpus. expected: None takes a partial copy."""
    known = expected or {}
    wrong = [f"{part} {n} of {known[part]}" for part, n in counts.items() if n != known.get(part, n)]
    if wrong:
        raise CorpusError(
            f"{os.fspath(corpus)}: the copy is not complete, it has {', '.join(wrong)} utterances; download it again,"
            " or prepare what is there as a partial copy (--partial; expected=None in Python)"
        )


def read_lines(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """Return the lines of a UTF-8 text file that are not blank, each with its `file:line`. Raises CorpusError."""
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise CorpusError(f"{path}: no such file; expected it as part of the corpus") from error
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from error
    lines = text.replace("\r\n", "\n").split("\n")
    return [(line, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]


def write_manifests(
    manifest_dir: str | os.PathLike[str], name: str, splits: Mapping[str, Iterable[Utterance]]
) -> dict[str, Path]:
    """Write MANIFEST_DIR/NAME_SPLIT.jsonl for each split that has utterances; return split -> path."""
    written = {}
    for split, utterances in splits.items():
        rows = list(utterances)
        if not rows:
            continue
        path = Path(manifest_dir) / f"{name}_{split}.jsonl"
        write_manifest(path, rows)
        hours = sum(row.duration for row in rows) / 3600
        _logger.info("%s: %d utterances, %.2f hours", path, len(rows), hours)
        written[split] = path
    return written


def fetch(archive: Archive, directory: str | os.PathLike[str]) -> Path:
    """Download an archive into `directory`, check and unpack it; return its folder. What is already there is kept.

    An interrupted download goes on where it stopped. The archive gets its name only when its checksum is right, and
    the folder only when it is unpacked in full. Without a published checksum the length and the compression's own
    check remain. Raises CorpusError.
    """
    directory = Path(directory)
    folder = directory / archive.folder
    if folder.exists():
        _logger.info("%s is there already", folder)
        return folder
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / Path(urllib.parse.urlsplit(archive.url).path).name
    if not path.exists():
        _download(archive, path)
    elif archive.checksum:
        _check_checksum(path, archive.checksum, "delete it and download again")
    _unpack(path, directory, archive)
    return folder


def _download(archive: Archive, path: Path) -> None:
    partial = path.with_name(f"{path.name}.part")
    _logger.info("downloading %s to %s", archive.url, path)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            _download_rest(archive.url, partial)
            break
        except urllib.error.HTTPError as error:
            raise CorpusError(
                f"{archive.url}: the server answers {error.code} ({error.reason}); expected the archive, try later"
            ) from error
        except (OSError, http.client.HTTPException) as error:  # URLError, time-outs and broken connections among them
            if attempt == MAX_ATTEMPTS:
                raise CorpusError(
                    f"{archive.url}: the download stopped ({error}); run it again to go on where it stopped"
                ) from error
            _logger.warning("%s: interrupted (%s), attempt %d of %d", archive.url, error, attempt + 1, MAX_ATTEMPTS)
    if archive.checksum:
        try:
            _check_checksum(partial, archive.checksum, f"it is deleted, download {archive.url} again")
        except CorpusError:
            partial.unlink()
            raise
    os.replace(partial, path)


def _download_rest(url: str, partial: Path) -> None:
    """Append to `partial` what it lacks of the file at `url`; start anew if the server cannot continue."""
    num_done = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={num_done}-"} if num_done else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if error.headers.get("Content-Range") == f"bytes */{num_done}":
            return  # nothing is lacking
        partial.unlink()
        raise ConnectionError("the part on disk does not fit the file on the server") from error
    with response, open(partial, "ab" if response.status == 206 else "wb") as file:
        length = response.headers.get("Content-Length")
        num_read = 0
        while chunk := response.read(CHUNK_BYTES):
            file.write(chunk)
            num_read += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    if length is not None and num_read < int(length):
        raise ConnectionError(f"{num_read} of {length} bytes arrived")


def _check_checksum(path: Path, checksum: str, remedy: str) -> None:
    algorithm, _, expected = checksum.partition(":")
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != expected:
        raise CorpusError(f"{path}: the archive is damaged, its {algorithm} is {found}, expected {expected}; {remedy}")


def _unpack(path: Path, directory: Path, archive: Archive) -> None:
    """Unpack a tar file beside the target, then move its folder into place; nothing can land outside."""
    if not hasattr(tarfile, "data_filter"):
        raise CorpusError(f"{path}: unpacking safely needs Python 3.11.4 or newer; unpack it by hand into {directory}")
    folder = directory / archive.folder
    _logger.info("unpacking %s", path)
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=directory) as temporary:
        unpacked = Path(temporary) / archive.folder
        try:
            with tarfile.open(path) as tar:
                tar.extractall(temporary, filter="data")
                while tar.fileobj and tar.fileobj.read(CHUNK_BYTES):
                    pass  # to the very end, where gzip and bzip2 compare their checksums
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            if (
                isinstance(error, OSError) and error.errno
            ):  # the disk; damaged gzip and bzip2 data are OSErrors without a number
                raise CorpusError(
                    f"{path}: cannot be unpacked into {directory} ({error.strerror}); make room there"
                ) from error
            if not archive.checksum:
                path.unlink()
            raise CorpusError(f"{path}: cannot be unpacked ({error}); delete it and download again") from error
        if not unpacked.is_dir():
            raise CorpusError(f"{path}: expected the folder {archive.folder} in it, found none; is it another archive?")
        for extra in unpacked.parent.iterdir():  # LibriSpeech: README and licence beside the part
            if extra != unpacked and not (folder.parent / extra.name).exists():
                folder.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(extra, folder.parent / extra.name)
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.replace(unpacked, folder)


def _duration_or_reason(path: str) -> float | str:
    try:
        duration = audio_duration_s(path)
    except AudioError as error:
        return str(error)
    return duration if duration > 0 else "no audio in it (0 samples)"
