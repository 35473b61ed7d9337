"""Facts about lexicons: what is written is read, and what is wrong is named by its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from asr.lexicon import Lexicon, LexiconError, from_arpabet, read_lexicon, write_lexicon

LEXICON = Lexicon(("the", "the", "red", "read", "read"), ("DA", "Di", "rEd", "rid", "rEd"))


def test_a_lexicon_written_and_read_is_the_same(tmp_path: Path) -> None:
    write_lexicon(LEXICON, tmp_path / "lexicon.txt")
    found = read_lexicon(tmp_path / "lexicon.txt")
    assert (found.words, found.pronunciations) == (LEXICON.words, LEXICON.pronunciations)


def test_a_text_is_pronounced_as_the_first_entries_say() -> None:
    assert LEXICON.pronounce("read the red") == "rid DA rEd"
    assert LEXICON.sounds.tokens == ("<blank>", " ", "A", "D", "E", "d", "i", "r")
    assert LEXICON.all["read"] == ["rid", "rEd"]
    with pytest.raises(LexiconError, match="blue, green"):
        LEXICON.pronounce("green the blue")


def test_arpabet_becomes_one_character_a_sound() -> None:
    assert from_arpabet(["CH", "IY1", "Z"]) == "Ciz"
    with pytest.raises(LexiconError, match="'Q'"):
        from_arpabet(["Q"])


@pytest.mark.parametrize("line", ["", "red", "red rEd", "red\t", "\trEd", "red\tr E d", "red\trEd\tx"])
def test_a_line_that_is_no_entry_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "lexicon.txt").write_text(f"a\tA\n{line}\nb\tbi\n")
    with pytest.raises(LexiconError, match=r"lexicon.txt:2: expected a word"):
        read_lexicon(tmp_path / "lexicon.txt")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(LexiconError, match="cannot be read"):
        read_lexicon(tmp_path / "missing.txt")
    (tmp_path / "lexicon.txt").write_bytes(b"\xff\t\xff")
    with pytest.raises(LexiconError, match="cannot be read"):
        read_lexicon(tmp_path / "lexicon.txt")
    (tmp_path / "lexicon.txt").write_bytes(b"")
    with pytest.raises(LexiconError, match=r"lexicon.txt:1: expected a word"):
        read_lexicon(tmp_path / "lexicon.txt")
