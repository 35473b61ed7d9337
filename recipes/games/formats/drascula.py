"""Read what is said in the English version of the adventure game "Drascula: The Vampire Strikes Back" (Alcachofa Soft 1996).

drascula.dat has the texts, in arrays of a character each; NAME.ALS is the speech of a text, its name the array's prefix and the text's number.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

RATE = 11025  # of all speech files, 8-bit unsigned PCM
MARGIN = 32  # bytes at each end of a speech file that the game does not play
PREFIXES = ("", "D", "B", "BJ", "E", "I", "L", "P", "T", "VB")  # of the arrays of texts in drascula.dat, in its order
RECORDS = (4, 4, 4, 2, 4, 2, 4, 2, 2, 20, 20, 10, 8)  # bytes, of the tables before them
# Options of conversations that are spoken in the words of the conversation file (OP_*.CAL) and not in those of drascula.dat.
AS_OPTION = {"252", "290", "295", "369", "370", "372", "379", "397"}
# Clips that say something else than their text (D26 has the words of D27, 122 also those of 123; 207 and 278 are cut short), or prices, whistles, singing.
UNUSABLE = {"8", "48", "122", "144", "166", "167", "207", "235", "257", "268", "278", "296", "407", "D26", "D28", "D67", "VB27"}


def _read_texts(data: bytes) -> dict[str, str]:
    """Return name -> English text of drascula.dat."""
    if data[:8] != b"DRASCULA":
        raise ValueError("not a drascula.dat")
    at = 9
    for size in RECORDS:
        at += 2 + size * struct.unpack_from(">H", data, at)[0]
    languages = struct.unpack_from(">H", data, at)[0]
    at += 2
    texts = {}
    for prefix in PREFIXES:
        count = struct.unpack_from(">H", data, at)[0]
        at += 2
        for language in range(languages):
            size = struct.unpack_from(">H", data, at)[0]
            if language == 0:
                start = at + 6
                for i in range(count):
                    texts[f"{prefix}{i}"] = data[start : data.index(0, start)].decode("latin-1").strip()
                    start += struct.unpack_from(">H", data, start - 2)[0]
            at += 2 + size
    return texts


def _read_options(path: Path) -> dict[str, str]:
    """Return name -> text of a file of a conversation: what the player can say, four texts, then their files."""
    lines = [line.strip() for line in bytes(255 - byte for byte in path.read_bytes()).decode("latin-1").split("\n")]
    lines = [line.replace("\xa7", " ") for line in lines if line]
    return {sound.upper().removesuffix(".ALS"): text for text, sound in zip(lines[:4], lines[4:8], strict=True)}


def read_drascula(folder: Path) -> Iterator[tuple[str, str, np.ndarray, int]]:
    """Yield (id, text, 8-bit samples, sample rate in Hz) of every line that is spoken. Some texts put what is said in other words."""
    texts = _read_texts((folder / "drascula.dat").read_bytes())
    for path in sorted(folder.glob("OP_*.CAL")):
        texts |= {name: text for name, text in _read_options(path).items() if name in AS_OPTION}
    for name, text in texts.items():
        path = folder / f"{name}.ALS"
        if name in UNUSABLE or not any(letter.isalpha() for letter in text) or not path.exists():
            continue
        data = path.read_bytes()[MARGIN:-MARGIN]
        if name == "3":  # a long silence at both ends, see the engine's playFile
            data = data[73927:-26338]
        yield f"drascula-{name}", text, np.frombuffer(data, np.uint8), RATE
