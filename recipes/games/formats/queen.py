"""Read what is said in the adventure game "Flight of the Amazon Queen" (John Passfield and Steven Stamatiadis 1995, with speech, as MP3).

queen.1c holds many files. Commands ("*14", "*FL", "*XY00(237,112)") divide a text into segments, each with a speech file of its own; s is the
segment's number in hexadecimal digits, from 1:

    JOEnnnns               what Joe says of things, and his stock answers: the texts of QUEEN2.JAS
    kkhhhhPs, kkhhhhJs     sentence hhhh (hexadecimal) of a dialogue (.DOG) with the key kk, said by the other or by Joe;
                           SSSS is how Joe begins, XXXX what is said when they meet again
    name_nns               record nn of a scene (.CUT), whose name is filled with underscores to five characters
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

TRUE_RATE = {11025: 11840}  # Hz, of files that say the first
NUM_ANSWERS, NUM_VERBS = 40, 12
COMMAND = re.compile(r"\*(?:XY\d\d.\d{3}.\d{3}.|[0-9A-Z]{2})")
CORRECTED = {"55SSSSJ1": "Excuse me Sparky.", "55XXXXJ1": "Hi Sparky, I'm back."}  # where the game's text is another's


def read_queen(folder: Path) -> Iterator[tuple[str, str, np.ndarray, int]]:
    """Yield (id, text, samples in [-1, 1], sample rate in Hz) of every English segment that is spoken; `folder` has queen.1c."""
    files = _read_files(folder / "queen.1c")
    done: set[str] = set()
    for prefix, line in _read_lines(files):
        for number, text in enumerate(COMMAND.split(line), 1):
            name = f"{prefix}{number:X}"
            if name not in done and f"{name}.SB" in files and re.search("[A-Za-z0-9]", text):
                done.add(name)
                samples, rate = soundfile.read(io.BytesIO(files[f"{name}.SB"]), dtype="float32")
                yield f"queen-{name}", CORRECTED.get(name, text.strip()), samples, TRUE_RATE.get(rate, rate)


def _read_files(path: Path) -> dict[str, bytes]:
    """Return name -> content. Raises ValueError for another version of the game."""
    data = path.read_bytes()
    magic, version, _, count = struct.unpack_from(">4s6s2xBH", data)
    if magic != b"QTBL" or version[:2] != b"CE":
        raise ValueError(f"{path}: expected the English version with compressed speech; the Debian package flight-of-the-amazon-queen has it")
    entries = struct.iter_unpack(">12sxII", data[15 : 15 + 21 * count])
    return {name.rstrip(b"\0").decode(): data[start : start + size] for name, start, size in entries}


class _Reader:
    """Reads big-endian numbers and strings one after another."""

    def __init__(self, data: bytes, position: int = 0) -> None:
        self.data = data
        self.position = position

    def numbers(self, count: int) -> tuple[int, ...]:
        """Return the next signed 16-bit numbers."""
        values = struct.unpack_from(f">{count}h", self.data, self.position)
        self.position += 2 * count
        return values

    def string(self, align: int = 2) -> str:
        """Return the next string; the position is aligned after one that is not empty."""
        length, start = self.data[self.position], self.position + 1
        self.position = start if not length else (start + length + align - 1) & -align
        return self.data[start : start + length].decode("cp437")


def _read_lines(files: dict[str, bytes]) -> Iterator[tuple[str, str]]:
    """Yield (what its speech files' names begin with, text with its commands) of all texts, whether they are spoken or not."""
    jas = _Reader(files["QUEEN.JAS"], 20)
    num_rooms, num_names, num_objects, num_descriptions = jas.numbers(4)
    people = [True, *(jas.numbers(8)[7] in (-3, -4) for _ in range(num_objects))]
    strings = files["QUEEN2.JAS"].decode("cp437").split("\r\n")
    answers = num_descriptions + num_names + num_rooms + NUM_VERBS
    for number, text in enumerate(strings[answers : answers + NUM_ANSWERS] + strings[:num_descriptions], 1):
        yield f"JOE{number:04}", text
    for name, data in files.items():
        if name.endswith(".DOG"):
            yield from _read_dialogue(data[20:])
    for name, data in files.items():
        if name.endswith(".CUT"):
            yield from _read_scene(name.removesuffix(".CUT"), data[20:], people)


def _read_dialogue(data: bytes) -> Iterator[tuple[str, str]]:
    num_levels, _, key, num_joe, num_other, *_ = _Reader(data).numbers(11)
    other_at, _, again_at = struct.unpack_from(">3H", data, 22)
    joe_at = 32 + abs(num_levels) * 96
    begin = _Reader(data, joe_at + 2)
    if begin.numbers(1) == (0,):
        yield f"{key:02}SSSSJ", begin.string()
    again = _Reader(data, again_at)
    yield f"{key:02}XXXXP", again.string()
    yield f"{key:02}XXXXJ", again.string()
    for start, count, letter in ((joe_at, num_joe, "J"), (other_at, num_other, "P")):
        reader, seen = _Reader(data, start), {0}
        for _ in range(count):
            _, sentence = reader.numbers(2)
            text = reader.string(4)
            if sentence not in seen:
                seen.add(sentence)
                yield f"{key:02}{sentence & 0xFFFF:04X}{letter}", text


def _read_scene(name: str, data: bytes, people: list[bool]) -> Iterator[tuple[str, str]]:
    """people: of each of the game's objects whether it is a person; scenes describe how the other ones move."""
    reader = _Reader(data)
    _, count, _, _, texts_at, _ = reader.numbers(6)
    texts = _Reader(data, texts_at)
    texts.string()
    for number in range(1, abs(count) + 1):
        who, _, _, _, animation, execute, *_, from_object, _, _, _, _ = reader.numbers(17)
        reader.numbers(reader.numbers(1)[0])
        who = 0 if who == -1 else who
        if from_object <= 0 and execute and who >= 0 and (animation or not people[who]):
            while reader.numbers(1)[0] != -2:
                reader.numbers(9)
        text = texts.string()
        if text and not text.startswith("#"):
            yield f"{name:_<5}{number:02}", text
