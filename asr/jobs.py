"""Transcribing many recordings: which there are, which are done, in how many processes, and what is written. Prints nothing."""

from __future__ import annotations

import glob
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from asr.audio import AudioError, audio_duration_s, read_blocks
from asr.formats import SUFFIXES, write
from asr.malloc import keep_memory
from asr.media import AUDIO_SUFFIXES, MEDIA_SUFFIXES
from asr.storage import write_atomically
from asr.transcribe import Transcriber, join
from asr.transcript import Segment, Transcript

MANIFEST_SUFFIXES = (".jsonl", ".json")
MAX_TASKS_AT_ONCE = 32  # given to a process together, so that short recordings are recognised together

REPORT_S = 0.5  # from one report of progress to the next, of several processes

Progress = Callable[[float], None]  # is told how many more seconds of audio are done
Row = dict[str, Any]  # a line of a manifest
Key = tuple[str, float]  # its audio_filepath and offset

_of_process: list[Any] = []  # in the processes of `run`: their Transcriber, Output and Progress


class JobError(ValueError):
    """A list of recordings that cannot be worked on; the message names what is wrong with it."""


@dataclass(frozen=True)
class Task:
    """A recording, or the part of it from offset_s on, duration_s long (None: to its end).

    path: "-" is standard input. name: of its files in the output folder, without suffix. row: its line in a manifest.
    """

    path: str
    name: str
    offset_s: float = 0.0
    duration_s: float | None = None
    row: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What came of a task. transcript: all of it, or where there is an `error`, what was recognised before, if anything."""

    task: Task
    transcript: Transcript | None
    error: str = ""


@dataclass(frozen=True)
class Output:
    """A folder and the formats in which NAME.SUFFIX is written into it."""

    folder: Path
    formats: tuple[str, ...]

    def paths(self, task: Task) -> dict[str, Path]:
        """Return format -> file of a task's transcript."""
        return {name: self.folder / f"{task.name}.{SUFFIXES[name]}" for name in self.formats}

    def partial_paths(self, task: Task) -> dict[str, Path]:
        """Return format -> file of a transcript that is not whole."""
        return {name: self.folder / f"{task.name}.partial.{SUFFIXES[name]}" for name in self.formats}

    def write(self, outcome: Outcome) -> None:
        """Write the files of a transcript; one that is not whole is written apart, and goes when the whole comes."""
        if outcome.transcript is None:
            return
        partial = self.partial_paths(outcome.task)
        for name, path in (partial if outcome.error else self.paths(outcome.task)).items():
            write_atomically(path, write(outcome.transcript, name, name=Path(outcome.task.name).name).encode())
        if not outcome.error:
            for path in partial.values():
                path.unlink(missing_ok=True)


def find_tasks(sources: Sequence[str]) -> list[Task]:
    """Return the recordings that are meant by files, folders (all audio in and below them), glob patterns (** is any depth), manifests and "-".

    A manifest is a .jsonl or .json file with an object a line: `audio_filepath`, relative to its folder, and if it is a part of the file
    that is meant, `offset` and `duration` in seconds. Raises JobError.
    """
    tasks: list[Task] = []
    for source in sources:
        path = Path(source)
        if source == "-":
            tasks.append(Task("-", "stdin", row={"audio_filepath": "-"}))
        elif path.is_dir():
            files = sorted(file for file in path.rglob("*") if _is_audio(file))
            tasks += _file_tasks(files, path, f"{source}: no audio files in this folder")
        elif path.suffix.lower() in MANIFEST_SUFFIXES and path.exists():
            tasks += _read_manifest(path)
        elif glob.has_magic(source) and not path.exists():
            files = sorted(Path(file) for file in glob.glob(source, recursive=True) if os.path.isfile(file))
            fixed = Path(*[part for i, part in enumerate(path.parts) if not glob.has_magic("/".join(path.parts[: i + 1]))])
            tasks += _file_tasks(files, fixed, f"{source}: no file matches")
        else:
            tasks.append(_file_task(path, path.parent))
    return tasks


def _is_audio(file: Path) -> bool:
    """Whether a file in a folder is taken for audio: by its suffix, and not hidden, as the ._NAME.wav that macOS leaves behind are."""
    return file.suffix.lower() in AUDIO_SUFFIXES | MEDIA_SUFFIXES and not file.name.startswith(".") and file.is_file()


def _file_tasks(files: Sequence[Path], folder: Path, complaint: str) -> list[Task]:
    if not files:
        raise JobError(complaint)
    return [_file_task(file, folder) for file in files]


def _file_task(file: Path, folder: Path) -> Task:
    return Task(str(file), str(file.relative_to(folder).with_suffix("")), row={"audio_filepath": os.path.abspath(file)})


def _read_manifest(path: Path) -> Iterator[Task]:
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        try:
            row = json.loads(line)
            audio = os.path.abspath(path.parent / os.path.expanduser(row["audio_filepath"]))
            offset_s = float(row.get("offset") or 0.0)
            duration_s = None if row.get("duration") is None else float(row["duration"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise JobError(f'{path}:{number}: expected {{"audio_filepath": "...", "offset": 0.0, "duration": 1.0}}, found {line[:60]!r}') from error
        name = str(row.get("id") or Path(audio).stem + (f"_{offset_s:.3f}" if offset_s else ""))
        yield Task(audio, name.replace("/", "_"), offset_s, duration_s, {**row, "audio_filepath": audio})


def check_names(tasks: Iterable[Task]) -> None:
    """Raise JobError if two tasks would be written to the same files."""
    named: dict[str, Task] = {}
    for task in tasks:
        if other := named.get(task.name):
            raise JobError(f"{other.path} and {task.path} would both be written to {task.name}.*; give them separately")
        named[task.name] = task


def unfinished(tasks: Iterable[Task], output: Output | None, rows: Mapping[Key, Row] | None) -> list[Task]:
    """Return the tasks of which a file of `output` is missing, or the row of a manifest; all of them where there is neither."""
    if output is None and rows is None:
        return list(tasks)
    return [
        task
        for task in tasks
        if (output and not all(path.exists() for path in output.paths(task).values())) or (rows is not None and _key(task.row) not in rows)
    ]


def read_rows(path: str | os.PathLike[str]) -> dict[Key, Row]:
    """Return the rows of a manifest of transcripts by the recording they are of; none where there is no file yet. Raises JobError."""
    path = Path(path)
    if not path.exists():
        return {}
    rows = [dict(task.row) for task in _read_manifest(path)] if path.is_file() else [{}]
    if not all("pred_text" in row for row in rows):
        raise JobError(f"{path}: is not a manifest of transcripts, with a pred_text in every line; choose another name")
    return {_key(row): row for row in rows}


def add_row(rows: dict[Key, Row], outcome: Outcome) -> None:
    """Add a transcript's row: the task's own with `pred_text`, and with `duration` where that was not known."""
    assert outcome.transcript is not None
    row = outcome.task.row
    rows[_key(row)] = {**row, "duration": row.get("duration") or outcome.transcript.duration, "pred_text": outcome.transcript.text}


def write_rows(path: str | os.PathLike[str], rows: Mapping[Key, Row]) -> None:
    """Write the rows as a manifest, a line each."""
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values()).encode())


def _key(row: Mapping[str, Any]) -> Key:
    return row["audio_filepath"], float(row.get("offset") or 0.0)


def duration_s(task: Task) -> float:
    """Return how long a task's audio is, 0 where its header does not tell."""
    if task.duration_s is not None:
        return task.duration_s
    try:
        return 0.0 if task.path == "-" else max(0.0, audio_duration_s(task.path) - task.offset_s)
    except AudioError:
        return 0.0


def run(
    load: Callable[[], Transcriber], tasks: Sequence[Task], output: Output | None, *, jobs: int = 1, progress: Progress | None = None
) -> Iterator[Outcome]:
    """Do the tasks in `jobs` processes and yield their outcomes in order; the files of each are written as soon as it is done.

    load: to be picklable where there are more processes than one. At KeyboardInterrupt the outcomes of what is begun are yielded, then it is
    raised again. Raises JobError where a process dies, OSError where nothing can be written.
    """
    progress = progress or (lambda seconds: None)
    if jobs == 1:
        keep_memory()
        yield from _do(load(), tasks, output, progress)
        return
    if any(task.path == "-" for task in tasks):
        raise JobError("standard input is read by one process only, so not with several jobs")
    context = multiprocessing.get_context("spawn")
    seconds, stop = context.Value("d", 0.0), context.Event()
    size = max(1, min(MAX_TASKS_AT_ONCE, len(tasks) // (4 * jobs)))
    pool = ProcessPoolExecutor(jobs, context, _start_process, (load, output, seconds, stop))
    futures = deque(pool.submit(_do_in_process, tasks[i : i + size]) for i in range(0, len(tasks), size))
    reported_s = 0.0
    try:
        while futures:
            if futures[0].done():
                yield from _outcomes(futures.popleft())
            wait([*futures][:1], timeout=REPORT_S)
            now_s = seconds.value
            progress(now_s - reported_s)
            reported_s = now_s
    except KeyboardInterrupt:
        stop.set()
        for future in [future for future in futures if not future.cancel()]:
            yield from _outcomes(future)
        raise
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _do(transcriber: Transcriber, tasks: Sequence[Task], output: Output | None, progress: Progress) -> Iterator[Outcome]:
    """Do tasks in this process, short ones together; KeyboardInterrupt, also from `progress`, ends with what there is of the present one."""
    segments: list[Segment] = []
    number = 0
    try:
        for number, event in transcriber.events(map(_read, tasks)):
            if isinstance(event, Segment):
                segments.append(event)
                progress(event.end - event.start)
            else:
                yield _finish(tasks[number], segments, transcriber.name, output, "" if event is None else str(event))
                segments = []
    except KeyboardInterrupt:
        if segments:
            yield _finish(tasks[number], segments, transcriber.name, output, f"{tasks[number].path}: interrupted at {segments[-1].end:.1f} s")
        raise


def _finish(task: Task, segments: Sequence[Segment], model: str, output: Output | None, error: str) -> Outcome:
    outcome = Outcome(task, join(segments, model) if segments or not error else None, error)
    if output:
        output.write(outcome)
    return outcome


def _read(task: Task) -> Iterator[np.ndarray]:
    if task.path != "-":
        return read_blocks(task.path, offset_s=task.offset_s, duration_s=task.duration_s)
    return _read_stdin()


def _read_stdin() -> Iterator[np.ndarray]:
    """Read a file from standard input, by way of the disk: formats want to be read back and forth."""
    with tempfile.NamedTemporaryFile(prefix="stdin-") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        yield from read_blocks(file.name)


def _start_process(load: Callable[[], Transcriber], output: Output | None, seconds: Any, stop: Any) -> None:
    """Prepare a process of `run`, which Ctrl-C reaches as `stop`, between two segments."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_memory()

    def progress(segment_s: float) -> None:
        with seconds.get_lock():
            seconds.value += segment_s
        if stop.is_set():
            raise KeyboardInterrupt

    _of_process.extend([load(), output, progress])


def _do_in_process(tasks: Sequence[Task]) -> list[Outcome]:
    transcriber, output, progress = _of_process
    outcomes = []
    with suppress(KeyboardInterrupt):
        for outcome in _do(transcriber, tasks, output, progress):
            outcomes.append(outcome)
    return outcomes


def _outcomes(future: Future[list[Outcome]]) -> list[Outcome]:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise JobError("a process died (killed, or out of memory?); what is written stays, so run it again with fewer jobs") from error
