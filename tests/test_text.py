"""Facts about the normalisation of transcripts and the vocabulary."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.text import BLANK, ENGLISH, TextError, Vocabulary, normalise


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, World!", "hello world"),
        ("don’t", "don't"),
        ("don´t", "don't"),
        ("don`t", "don't"),
        ("'tis the dogs' bone", "tis the dogs' bone"),
        ("''Quoted''", "quoted"),
        ("twenty-one and/or a — b", "twenty one and or a b"),
        ("  tabs\tand\nlines  ", "tabs and lines"),
        ("ﬁne ＡＢＣ", "fine abc"),
        ("1½", "11 2"),
        ("ÉCOLE", "école"),
        ("E\u0301cole", "école"),
        ("soft\u00adhyphen", "softhyphen"),
        ("$5 & more…", "5 more"),
        ("", ""),
        ("?!", ""),
    ],
)
def test_normalise_by_hand(text: str, expected: str) -> None:
    assert normalise(text) == expected


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("abZé '’-_.⁄½´İßﬁ\u200d\u0301\u00ad\u0345ΩΣ"), max_size=20))
def test_normalise_twice_is_normalise_once(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert once == " ".join(once.split())


@settings(deadline=None)
@given(st.text(alphabet=ENGLISH.tokens[1:]))
def test_decode_undoes_encode(text: str) -> None:
    assert ENGLISH.decode(ENGLISH.encode(text)) == text


def test_english_has_the_blank_first_and_29_tokens() -> None:
    assert len(ENGLISH) == 29 and ENGLISH.tokens[0] == BLANK
    assert ENGLISH.encode(" 'az") == [1, 2, 3, 28]


def test_decode_drops_blanks_and_keeps_repeats() -> None:
    assert ENGLISH.decode([0, 3, 3, 0, 4]) == "aab"


def test_unknown_characters_are_named() -> None:
    with pytest.raises(TextError, match=r"'3' \(U\+0033\), 'é' \(U\+00E9\)"):
        ENGLISH.encode("é3a")


def test_the_vocabulary_of_texts_has_every_character_and_the_space() -> None:
    vocabulary = Vocabulary.from_texts(["ba", "né"])
    assert vocabulary.tokens == (BLANK, " ", "a", "b", "n", "é")
    assert Vocabulary.from_texts([]).tokens == (BLANK, " ")


@pytest.mark.parametrize("tokens", [(), ("a",), (BLANK, "a", "a"), (BLANK, "ab"), (BLANK, "")])
def test_a_vocabulary_that_is_none_is_refused(tokens: tuple[str, ...]) -> None:
    with pytest.raises(TextError):
        Vocabulary(tokens)
