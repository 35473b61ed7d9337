"""Tables: CSV or TSV files whose header names the columns, such as Common Voice's train.tsv, dev.tsv and test.tsv."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from asr.corpora import (
    DUPLICATE,
    MALFORMED_LINE,
    MISSING_AUDIO,
    CorpusError,
    Problems,
    checked_durations,
    checked_text,
    read_lines,
    write_manifests,
)
from asr.manifest import Utterance
from asr.text import ENGLISH, Vocabulary

AUDIO_COLUMNS = ("audio_filepath", "audio", "path", "file")
TEXT_COLUMNS = ("text", "sentence", "transcript")
SPEAKER_COLUMNS = ("speaker", "client_id")
DURATION_COLUMNS = ("duration",)
SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class _Row:
    audio: str
    text: str
    speaker: str
    duration_s: float | None
    where: str


def prepare_table(
    corpus_dir: str | os.PathLike[str],
    manifest_dir: str | os.PathLike[str],
    *,
    name: str = "table",
    audio_root: str | os.PathLike[str] | None = None,
    vocabulary: Vocabulary | None = ENGLISH,
    num_workers: int = 8,
) -> dict[str, Path]:
    """Write MANIFEST_DIR/NAME_SPLIT.jsonl for a table, or a folder's train, dev and test; return split -> manifest.

    corpus_dir: a .csv or .tsv file, whose split is its name, or a folder with train.tsv and the like. Columns: the
    audio file (audio_filepath, audio, path, file), the text (text, sentence, transcript), optionally the speaker
    (speaker, client_id) and the duration in seconds (duration; else read from the file). audio_root: what relative
    paths are relative to, by default the table's folder or, as in Common Voice, `clips` in it. vocabulary: the
    characters a text may have; None takes all. num_workers: threads that read headers. Raises CorpusError.
    """
    root = Path(os.path.abspath(corpus_dir))
    tables = [root] if root.is_file() else _tables(root)
    problems = Problems(root)
    splits = {table.stem: _read_table(table, audio_root, vocabulary, problems, num_workers) for table in tables}
    problems.raise_if_any()
    return write_manifests(manifest_dir, name, splits)


def _tables(folder: Path) -> list[Path]:
    tables = [
        path for split in SPLITS for suffix in (".tsv", ".csv") if (path := folder / f"{split}{suffix}").is_file()
    ]
    if not tables:
        raise CorpusError(
            f"{folder}: expected a .csv or .tsv file, or a folder with train.tsv, dev.tsv, test.tsv (or .csv)"
        )
    if len({table.stem for table in tables}) < len(tables):
        raise CorpusError(f"{folder}: a split is there as .tsv and as .csv; keep one of the two")
    return tables


def _read_table(
    table: Path,
    audio_root: str | os.PathLike[str] | None,
    vocabulary: Vocabulary | None,
    problems: Problems,
    num_workers: int,
) -> list[Utterance]:
    rows = _read_rows(table, problems)
    roots = [Path(os.path.abspath(audio_root))] if audio_root else [table.parent, table.parent / "clips"]
    paths: dict[str, _Row] = {}
    for row in rows:
        path = _resolve(row.audio, roots)
        if path in paths:
            problems.add(DUPLICATE, row.where, f"{row.audio}, before in {paths[path].where}")
        else:
            paths[path] = row
    unmeasured = {path: row.where for path, row in paths.items() if row.duration_s is None}
    durations = checked_durations(unmeasured, problems, num_workers=num_workers)
    utterances = []
    for path, row in paths.items():
        if row.duration_s is not None and not os.path.isfile(path):
            problems.add(MISSING_AUDIO, row.where, path)
        text = checked_text(row.text, row.where, vocabulary, problems)
        duration_s = row.duration_s if row.duration_s is not None else durations.get(path, 0.0)
        utterances.append(Utterance(path, duration_s, text, speaker=row.speaker, id=Path(row.audio).stem))
    return utterances


def _read_rows(table: Path, problems: Problems) -> list[_Row]:
    lines = read_lines(table)
    if not lines:
        raise CorpusError(f"{table}: the table is empty; expected a header that names the columns")
    delimiter = _delimiter(lines[0][0])
    if delimiter == "\t":  # TSV as Common Voice writes it: a quotation mark is a character like any other
        records = [(line.split("\t"), where) for line, where in lines]
    else:
        records = _csv_records(table, delimiter)
    header = [column.strip().strip('"').lower() for column in records[0][0]]
    audio, text = _column(header, AUDIO_COLUMNS), _column(header, TEXT_COLUMNS)
    speaker, duration = _column(header, SPEAKER_COLUMNS), _column(header, DURATION_COLUMNS)
    if audio is None or text is None:
        raise CorpusError(
            f"{table}:1: expected a header with a column for the audio file ({', '.join(AUDIO_COLUMNS)}) and one for"
            f" the text ({', '.join(TEXT_COLUMNS)}), found {', '.join(header)[:200]!r}; name the columns so"
        )
    rows = []
    for fields, where in records[1:]:
        seconds = _seconds(fields[duration]) if duration is not None and duration < len(fields) else None
        if len(fields) != len(header):
            problems.add(MALFORMED_LINE, where, f"expected {len(header)} fields as in the header, found {len(fields)}")
        elif seconds is not None and not (math.isfinite(seconds) and seconds > 0):
            problems.add(
                MALFORMED_LINE, where, f"the duration must be seconds above 0, found {fields[duration or 0]!r}"
            )
        elif not fields[audio].strip():
            problems.add(MISSING_AUDIO, where, "the field is empty")
        else:
            rows.append(
                _Row(
                    fields[audio].strip(),
                    fields[text],
                    fields[speaker].strip() if speaker is not None else "",
                    seconds,
                    where,
                )
            )
    return rows


def _csv_records(table: Path, delimiter: str) -> list[tuple[list[str], str]]:
    reader = csv.reader(
        io.StringIO(table.read_text(encoding="utf-8-sig"), newline=""), delimiter=delimiter, strict=True
    )
    records = []
    try:
        for fields in reader:
            if fields:
                records.append((fields, f"{table}:{reader.line_num}"))
    except csv.Error as error:
        raise CorpusError(
            f"{table}:{reader.line_num}: not valid CSV ({error}); put quotation marks around fields that need them"
        ) from error
    return records


def _delimiter(header: str) -> str:
    return max(("\t", ",", ";", "|"), key=header.count)


def _column(header: Sequence[str], names: Sequence[str]) -> int | None:
    return next((header.index(name) for name in names if name in header), None)


def _seconds(field: str) -> float | None:
    """Return the number; NaN for what is none, None for an empty field."""
    try:
        return float(field) if field.strip() else None
    except ValueError:
        return math.nan


def _resolve(audio: str, roots: Sequence[Path]) -> str:
    paths = [os.path.abspath(root / audio) for root in roots]
    return next((path for path in paths if os.path.isfile(path)), paths[0])
