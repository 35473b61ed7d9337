"""Transcripts as text: the normalisation every corpus goes through, and the vocabulary of output tokens.

Knows nothing of audio, models or files. Token 0 is always the CTC blank; the space is a token like any other.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

BLANK = "<blank>"
BLANK_ID = 0

_APOSTROPHES = dict.fromkeys(map(ord, "’‘ʼ`´＇"), "'")


class TextError(ValueError):
    """A transcript that the vocabulary cannot write, or a vocabulary that is not one."""


def normalise(text: str) -> str:
    """Return `text` as the project compares and learns it.

    In this order: typographic apostrophes become '; Unicode NFKC; lower case; hyphens, dashes and slashes become spaces; every
    other punctuation mark and symbol is removed; an apostrophe stays only inside or at the end of a word that has letters on its
    left (don't, dogs'), as a quotation mark it is dropped; white space collapses to single spaces. Letters of any script, combining
    marks and digits stay: digits are not spelled out, because how they were read aloud is not known here.
    """
    text = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).lower()  # NFKC takes an acute accent apart
    text = unicodedata.normalize("NFKC", "".join(_replacement(character) for character in text))
    text = re.sub(r"(?<!\w)'+|''+", "", text)  # an apostrophe that opens a word is a quotation mark, and so are two together
    return " ".join(unicodedata.normalize("NFKC", text).split())  # what was dropped may have stood before a combining mark


def _replacement(character: str) -> str:
    category = unicodedata.category(character)
    if category[0] in "LMN" or character == "'":
        return character
    if category in ("Pd", "Zs", "Cc", "Zl", "Zp") or character in "/_\u2044\u2215":
        return " "
    return ""


@dataclass(frozen=True)
class Vocabulary:
    """The output tokens of a model: `tokens[0]` is the blank, the others are single characters, among them the space.

    Raises TextError when the first token is not the blank, a token repeats or is not one character.
    """

    tokens: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.tokens or self.tokens[0] != BLANK:
            raise TextError(f"a vocabulary starts with {BLANK!r}, found {self.tokens[:1]!r:.60}")
        if len(set(self.tokens)) != len(self.tokens):
            repeated = next(t for t in self.tokens if self.tokens.count(t) > 1)
            raise TextError(f"a vocabulary names each token once, found {repeated!r:.60} twice")
        wrong = [t for t in self.tokens[1:] if not isinstance(t, str) or len(t) != 1]
        if wrong:
            raise TextError(f"a vocabulary's tokens are single characters, found {wrong[0]!r:.60}")

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> Vocabulary:
        """Build the vocabulary of all characters in `texts` (the space is always in it), in code point order."""
        characters = {" "}
        for text in texts:
            characters.update(text)
        return cls((BLANK, *sorted(characters)))

    def __len__(self) -> int:
        return len(self.tokens)

    def unknown(self, text: str) -> list[str]:
        """Return the characters of `text` that this vocabulary lacks, each once, sorted."""
        return sorted(set(text).difference(self.tokens[1:]))

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, one a character. Raises TextError naming characters that are not in the vocabulary."""
        unknown = self.unknown(text)
        if unknown:
            names = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in unknown[:10]) + (", ..." if len(unknown) > 10 else "")
            raise TextError(
                f"the text {text[:60]!r} has characters outside the vocabulary: {names}; spell digits and symbols out as words,"
                " or build the vocabulary from a manifest that has them"
            )
        index = {token: i for i, token in enumerate(self.tokens)}
        return [index[character] for character in text]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids; blanks are dropped, repeats are kept (CTC's collapse is ctc.collapse)."""
        return "".join(self.tokens[i] for i in ids if i != BLANK_ID)


ENGLISH = Vocabulary((BLANK, " ", "'", *"abcdefghijklmnopqrstuvwxyz"))
