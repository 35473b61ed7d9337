"""Lexicons: words and how they are pronounced, a character a sound. The second output of a network learns to write the pronunciations.

A lexicon file is text, a line an entry: the word, a tab, its pronunciation. A word that is said in several ways has several lines, the most
common first; words that sound alike are entries like any others.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from asr.storage import write_atomically
from asr.text import Vocabulary

# Two-letter ARPABET, as CMUdict has it, to the one-letter one.
ARPABET = {
    "AA": "a", "AE": "@", "AH": "A", "AO": "c", "AW": "W", "AY": "Y", "B": "b", "CH": "C", "D": "d", "DH": "D", "EH": "E", "ER": "R",
    "EY": "e", "F": "f", "G": "g", "HH": "h", "IH": "I", "IY": "i", "JH": "J", "K": "k", "L": "l", "M": "m", "N": "n", "NG": "G",
    "OW": "o", "OY": "O", "P": "p", "R": "r", "S": "s", "SH": "S", "T": "t", "TH": "T", "UH": "U", "UW": "u", "V": "v", "W": "w",
    "Y": "y", "Z": "z", "ZH": "Z",
}  # fmt: skip


class LexiconError(ValueError):
    """A lexicon that cannot be read, or a text with words that it lacks."""


@dataclass(frozen=True, eq=False)
class Lexicon:
    """Words and, in the same order, their pronunciations. A word may come several times, and so may a pronunciation."""

    words: tuple[str, ...]
    pronunciations: tuple[str, ...]

    @cached_property
    def first(self) -> dict[str, str]:
        """The first pronunciation of each word."""
        return dict(zip(reversed(self.words), reversed(self.pronunciations), strict=True))

    @cached_property
    def all(self) -> dict[str, list[str]]:
        """All pronunciations of each word."""
        found: dict[str, list[str]] = {}
        for word, pronunciation in zip(self.words, self.pronunciations, strict=True):
            found.setdefault(word, []).append(pronunciation)
        return found

    @cached_property
    def sounds(self) -> Vocabulary:
        """The vocabulary of a network that writes pronunciations: the sounds, and the space between words."""
        return Vocabulary.from_texts(["".join(self.pronunciations)])

    def missing(self, text: str) -> list[str]:
        """Return the words of `text` that have no pronunciation, each once, sorted."""
        return sorted(set(text.split()).difference(self.first))

    def pronounce(self, text: str) -> str:
        """Return `text` with the first pronunciation of each word in its place. Raises LexiconError naming words that have none."""
        if missing := self.missing(text):
            raise LexiconError(f"no pronunciation of {', '.join(missing[:10])} in the lexicon; add a line with the word, a tab and how it sounds")
        return " ".join(self.first[word] for word in text.split())


def read_lexicon(path: str | os.PathLike[str]) -> Lexicon:
    """Read a lexicon file. Raises LexiconError naming the line that is not a word, a tab and a pronunciation."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LexiconError(f"{os.fspath(path)}: cannot be read ({error}); expected a text file of words and pronunciations") from error
    if not re.fullmatch(r"(\S+\t\S+\n)*\S+\t\S+\n?", text):  # all lines at once: a lexicon is read whenever recognition starts
        for number, line in enumerate(text.splitlines() or [""], start=1):
            if not re.fullmatch(r"\S+\t\S+", line):
                raise LexiconError(f"{os.fspath(path)}:{number}: expected a word, a tab and its pronunciation, found {line!r:.80}")
    fields = text.split()
    return Lexicon(tuple(fields[::2]), tuple(fields[1::2]))


def write_lexicon(lexicon: Lexicon, path: str | os.PathLike[str]) -> None:
    """Write a lexicon file."""
    lines = (f"{word}\t{pronunciation}\n" for word, pronunciation in zip(lexicon.words, lexicon.pronunciations, strict=True))
    write_atomically(path, "".join(lines).encode())


def from_arpabet(phones: Iterable[str]) -> str:
    """Return the pronunciation that CMUdict's phones, with or without stress, stand for. Raises LexiconError for others."""
    try:
        return "".join(ARPABET[phone.rstrip("012")] for phone in phones)
    except KeyError as error:
        raise LexiconError(f"expected phones of ARPABET, found {error.args[0]!r}") from error
