"""recipes/games reads each game's files: of a miniature of each, made here, it keeps the line that says what its text says, and not the other."""

from __future__ import annotations

import io
import runpy
import struct
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from asr.audio import SAMPLE_RATE, load_audio
from asr.manifest import read_manifest

RECIPE = Path(__file__).parents[1] / "recipes" / "games"
SPEECH = Path(__file__).parent / "data" / "sense_and_sensibility.wav"
TEXT = "Unless to be rather cold hearted, and rather selfish, is to be ill disposed."
OTHER = "Good morning to you, my young friend."


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RECIPE))


def speech(rate: int) -> np.ndarray:
    return soxr.resample(load_audio(SPEECH), SAMPLE_RATE, rate)


def speech_of_8_bits() -> bytes:
    return np.clip(128 + 127 * speech(11025), 0, 255).astype(np.uint8).tobytes()


class PackedFile:
    """Rob Northen compression, method 1: fields of bits in 16-bit words, each of which stands where a reader first needs it, among literals."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.words: list[int] = []
        self.num_bits = 0

    def bits(self, *fields: tuple[int, int]) -> None:
        """Add (value, number of bits) each."""
        for value, size in fields:
            if self.num_bits + size > 16 * len(self.words):
                self.words.append(len(self.data))
                self.data += bytes(2)
            for i in range(size):
                word, bit = divmod(self.num_bits, 16)
                self.data[self.words[word] + bit // 8] |= (value >> i & 1) << bit % 8
                self.num_bits += 1

    def tables(self, *tables: tuple[int, ...]) -> None:
        """Add the lengths of the codes of each table's symbols, after two bits that are not used."""
        self.bits((0, 2), *chain(*([(len(lengths), 5), *((length, 4) for length in lengths)] for lengths in tables)))

    def finish(self, size: int) -> bytes:
        return b"RNC\1" + struct.pack(">IIHHBB", size, len(self.data), 0, 0, 0, 1) + self.data


def pack_literals(data: bytes) -> bytes:
    file, symbol = PackedFile(), len(data).bit_length()
    file.tables((*[0] * symbol, 1), (), ())
    file.bits((1, 16), (0, 1), (len(data) - (1 << symbol - 1), symbol - 1))
    file.data += data
    return file.finish(len(data))


def test_packed_copies() -> None:
    from formats.sky import unpack_rnc

    file = PackedFile()
    file.tables((1, 0, 1), (0, 0, 1), (0, 0, 0, 1))  # 0 literals or 2 to 3; distances of 3 to 4; lengths of 6 to 9
    file.bits((2, 16), (1, 1), (1, 1))
    file.data += b"abc"
    file.bits((0, 1), (0, 1), (0, 1), (1, 2), (0, 1))
    assert unpack_rnc(file.finish(10)) == b"abcabcabca"
    with pytest.raises(ValueError, match="10 bytes unpacked instead of 11"):
        unpack_rnc(file.finish(11))


def write_sky(folder: Path) -> None:
    from formats.sky import RIGHT, TREE

    def codes(node: int = 0, code: str = "") -> dict[str, str]:
        return codes(node + 1, code + "0") | codes(RIGHT[node], code + "1") if TREE[node] == "\1" else {TREE[node]: code}

    table = codes()
    coded = ["".join(table[letter] for letter in text + "\0") for text in (TEXT, OTHER)]
    coded = [bits + "0" * (-len(bits) % 16) for bits in coded]
    section = bytes([4, 0, 6, 0, *(0x80 | len(bits) // 16 for bits in coded)]) + int("".join(coded), 2).to_bytes(sum(map(len, coded)) // 8, "big")
    whole, samples = 1 << 23, bytes(22) + speech_of_8_bits() + b"\0"
    files = {60600: (b"\x80" + bytes(21) + pack_literals(section), 1 << 22), 50000: (samples, whole), 50001: (samples, whole)}
    files |= {60600 + i: (bytes([4, 0, 4, 0]), whole) for i in range(1, 8)}
    disk, index = bytearray(), bytearray(4)
    for number, (data, flags) in files.items():
        index += struct.pack("<HQ", number, len(disk) >> 4 | 1 << 23 | (len(data) | flags) << 24)[:8]
        disk += data + bytes(-len(data) % 16)
    (folder / "sky.dsk").write_bytes(disk)
    (folder / "sky.dnr").write_bytes(index)


def write_drascula(folder: Path) -> None:
    data = b"DRASCULA\0" + bytes(2 * 13) + struct.pack(">HH", 2, 2)  # no records; two languages, two texts
    for texts in ((TEXT, OTHER), ("Hola.", "No.")):
        block = b"\0\0" + b"".join(struct.pack(">H", len(text) + 3) + text.encode() + b"\0" for text in texts)
        data += struct.pack(">H", len(block)) + block
    (folder / "drascula.dat").write_bytes(data + bytes(9 * 6))
    for i in range(2):
        (folder / f"{i}.ALS").write_bytes(bytes(32) + speech_of_8_bits() + bytes(32))


def write_queen(folder: Path) -> None:
    """Joe says something of an object, after a command; a dialogue begins, goes on, with one sentence of each, and begins again; in a scene one text is said."""

    def string(text: str, align: int, at: int) -> bytes:
        data = bytes([len(text)]) + text.encode()
        return data + bytes(-(at + len(data)) % align) if text else data

    audio = io.BytesIO()
    soundfile.write(audio, speech(11840), 11025, format="MP3")
    strings = [f"*14{TEXT}", *[""] * 12, *[""] * 40]
    dialogue = bytearray(struct.pack(">11h", 0, 0, 7, 1, 1, *[0] * 6) + bytes(10))
    joe = struct.pack(">2h", 1, 0x12)
    joe += string(OTHER, 4, len(dialogue) + len(joe))
    other = struct.pack(">2h", 1, 0x13)
    other += string("*FLWell?", 4, len(dialogue) + len(joe) + len(other))
    again = len(dialogue) + len(joe) + len(other)
    struct.pack_into(">3H", dialogue, 22, len(dialogue) + len(joe), 0, again)
    dialogue += joe + other + string("Yes?", 2, again)
    dialogue += string("Hi.", 2, len(dialogue))
    scene = struct.pack(">6h", 0, 1, 0, 0, 12 + 36, 0) + struct.pack(">17h", *[0] * 17) + bytes(2)
    files = {
        "QUEEN.JAS": bytes(20) + struct.pack(">4h", 0, 0, 0, 1),
        "QUEEN2.JAS": "\r\n".join(strings).encode(),
        "A.DOG": bytes(20) + dialogue,
        "C.CUT": bytes(20) + scene + string("", 2, 0) + string(TEXT, 2, len(scene) + 1),
    }
    files |= {f"{name}.SB": audio.getvalue() for name in ("JOE00412", "070012J1", "C____011")}
    start, entries = 15 + 21 * len(files), b""
    for name, data in files.items():
        entries += struct.pack(">12sxII", name.encode(), start, len(data))
        start += len(data)
    (folder / "queen.1c").write_bytes(struct.pack(">4s6s2xBH", b"QTBL", b"CEM100", 0, len(files)) + entries + b"".join(files.values()))


def test_keeps_what_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for write in (write_sky, write_queen, write_drascula):
        write(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prepare.py", str(tmp_path), "--out", str(tmp_path / "out")])
    runpy.run_path(str(RECIPE / "prepare.py"), run_name="__main__")
    kept = read_manifest(tmp_path / "out" / "games_train.jsonl")
    assert [u.id for u in kept] == ["sky-00000", "queen-JOE00412", "queen-C____011", "drascula-0"]
    assert {u.text for u in kept} == {"unless to be rather cold hearted and rather selfish is to be ill disposed"}
    for u in kept:
        assert len(load_audio(u.audio_filepath)) / SAMPLE_RATE == pytest.approx(u.duration, abs=1e-4)
        assert u.duration == pytest.approx(len(load_audio(SPEECH)) / SAMPLE_RATE, abs=0.15)  # MP3 adds silence
    assert "queen.1c: 3 lines, 2 kept" in capsys.readouterr().out


def test_other_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from formats.queen import read_queen

    monkeypatch.setattr(sys, "argv", ["prepare.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(RECIPE / "prepare.py"), run_name="__main__")
    assert f"{tmp_path}: no sky.dsk" in capsys.readouterr().err
    (tmp_path / "queen.1c").write_bytes(struct.pack(">4s6s2xBH", b"QTBL", b"PEM100", 0, 0))
    with pytest.raises(ValueError, match=r"queen\.1c: expected the English version"):
        next(read_queen(tmp_path))
