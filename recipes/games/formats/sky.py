"""Read what is said in the adventure game "Beneath a Steel Sky" (Revolution Software 1994, its version 0.0372 on CD).

sky.dnr is the directory of sky.dsk, whose files have numbers: the texts, Huffman-coded, and the speech that belongs to each.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

RATE = 11025
HEADER = 22  # bytes of a file's header; it overlays the first samples of a speech file (whose last one is a click)
TEXT_FILE, SPEECH_FILE = 60600, 50000
FIRST_SPEECH = (0, 600, 1100, 2430, 3380, 4530, 5080, 5230)  # of each section of the texts
WRONG = {16843}  # its speech is another line's
# The texts' Huffman tree, depth first: "\1" is an inner node, whose two children follow.
TREE = (
    "\1\1\1 \1ea\1\1\1os\1tn\1\1.ir\1\1\1\1\1\0Eu\1mA\1\1\1lI\1dR\1\1NST\1\1\1\1\1Ohc\1Dg\1\1\1LC\1pU\1\1!yM\1\1\1\1\1PvH\1?b\1\1\1'f"
    ",\1GB\1\1\1\1\1VkF\1qw\1\1\1K-W\1J*\1\1\1\1zY\1j+\1\1\1Q\x85)\1\1Z\x8b<\1\1\1\1\1\x95~\x8a\1\x87:\1\1\1\x7f]#\1\1xX\x91\1\1\1\1"
    "\1\x88`2\1\x010\x831\1\1\1/(=\1\x86^\1\1\1\x0139\1\x984\1\1\1}8\\\1\"\x90\1\1\1\1&\x8d\x0156\1\1\x92\x8f\1\x8e\x93\1\1\1\1\x8c7"
    "\x80\1\1\x81\x99\1$@\1\1\1\1[\x9a_\1>\x96\1\1\1\x82%\t\1\1\x9c\x97\1{\1\x94!"
)


def read_sky(folder: Path) -> Iterator[tuple[str, str, np.ndarray, int]]:
    """Yield (id, text, 8-bit samples, sample rate in Hz) of every English line that is spoken; `folder` has sky.dsk and sky.dnr."""
    load = _open_disk(folder)
    for section, first in enumerate(FIRST_SPEECH):
        for number, text in enumerate(_read_texts(load(TEXT_FILE + section))):
            speech = load(SPEECH_FILE + first + number)
            samples = np.frombuffer(speech, np.uint8)[HEADER:-1]
            key = section << 12 | number
            if text.strip() and len(samples) > RATE // 10 and samples.std() > 0.256 and key not in WRONG:
                yield f"sky-{key:05}", text, samples, RATE


def _open_disk(folder: Path) -> Callable[[int], bytes]:
    """Return a function that loads a file by its number, b"" if there is none."""
    index, disk = (folder / "sky.dnr").read_bytes(), (folder / "sky.dsk").read_bytes()
    entries: dict[int, tuple[int, int]] = {}
    for at in range(4, len(index) - 7, 8):
        number, low, high = struct.unpack_from("<HIH", index, at)
        bits = low | high << 32
        offset = (bits & 0x7FFFFF) << (4 if bits >> 23 & 1 else 0)
        entries.setdefault(number, (offset, bits >> 24))

    def load(number: int) -> bytes:
        if number not in entries:
            return b""
        offset, flags = entries[number]
        data = disk[offset : offset + (flags & 0x3FFFFF)]
        if flags >> 23 or not data[0] >> 7 or data[HEADER : HEADER + 4] != b"RNC\1":
            return data
        return (b"" if flags >> 22 & 1 else data[:HEADER]) + unpack_rnc(data[HEADER:])

    return load


def unpack_rnc(data: bytes) -> bytes:
    """Unpack Rob Northen compression, method 1: literals and copies, whose lengths and distances are Huffman codes."""
    size, blocks = int.from_bytes(data[4:8], "big"), data[17]
    data += bytes(4)
    at, bits, count = 18, 0, 0  # the next 16-bit word; the bits left of the one before, and their number
    out = bytearray()

    def take(amount: int) -> int:
        nonlocal at, bits, count
        if amount > count:
            bits |= (data[at] | data[at + 1] << 8) << count
            at += 2
            count += 16
        value = bits & ((1 << amount) - 1)
        bits >>= amount
        count -= amount
        return value

    def read_table() -> tuple[int, list[tuple[int, int]]]:
        """Return a mask, and (code length, symbol) by the masked bits ahead."""
        lengths = [take(4) for _ in range(take(5))]
        longest = max(lengths, default=0)
        table, code = [(0, 0)] * (1 << longest), 0
        for length in range(1, longest + 1):
            for symbol in (symbol for symbol, other in enumerate(lengths) if other == length):
                start = int(f"{code >> (16 - length):0{length}b}"[::-1], 2)
                table[start :: 1 << length] = [(length, symbol)] * (1 << (longest - length))
                code += 1 << (16 - length)
        return (1 << longest) - 1, table

    def read_value(mask: int, table: list[tuple[int, int]]) -> int:
        nonlocal at, bits, count
        ahead = bits | (data[at] | data[at + 1] << 8) << count
        length, symbol = table[ahead & mask]
        if length > count:
            bits = ahead
            at += 2
            count += 16
        bits >>= length
        count -= length
        return symbol if symbol < 2 else take(symbol - 1) | 1 << (symbol - 1)

    take(2)
    for _ in range(blocks):
        literals, distances, lengths = read_table(), read_table(), read_table()
        for left in range(take(16) - 1, -1, -1):
            if run := read_value(*literals):
                out += data[at : at + run]
                at += run
            if left:
                distance = read_value(*distances) + 1
                run = read_value(*lengths) + 2
                start = len(out) - distance
                if run <= distance:
                    out += out[start : start + run]
                else:
                    out += (out[start:] * (run // distance + 1))[:run]
    if len(out) != size:
        raise ValueError(f"{len(out)} bytes unpacked instead of {size}")
    return bytes(out)


def _read_texts(data: bytes) -> list[str]:
    """Return the texts of a section."""
    lengths_at, texts_at = struct.unpack_from("<HH", data)
    steps = [8 * (length & 0x7F) if length & 0x80 else length for length in data[lengths_at:texts_at]]
    bits = np.unpackbits(np.frombuffer(data, np.uint8)[texts_at:]).tolist() + [0] * 4096
    return [_decode_text(bits, 2 * int(start)) for start in np.cumsum([0, *steps[:-1]])]


def _decode_text(bits: list[int], at: int) -> str:
    text = ""
    while not text.endswith("\0") and at < len(bits) - 4096:
        node = 0
        while TREE[node] == "\1":
            node, at = (RIGHT[node] if bits[at] else node + 1), at + 1
        text += TREE[node]
    return text.rstrip("\0")


def _find_right_children() -> list[int]:
    right, ends = [0] * len(TREE), [0] * len(TREE)  # a subtree's end
    for node in range(len(TREE) - 1, -1, -1):
        right[node] = ends[node + 1] if TREE[node] == "\1" else 0
        ends[node] = ends[right[node]] if right[node] else node + 1
    return right


RIGHT = _find_right_children()
