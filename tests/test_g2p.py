"""Facts about letters to sounds. Oracle: a made language whose spelling is regular, so that unseen words have one right answer."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from asr import lm
from asr.g2p import G2PError, pronounce, train_g2p
from asr.lm import LanguageModel

ONSETS = {"sh": "S", "ch": "C", "ph": "f", "s": "s", "h": "h", "p": "p", "t": "t", "m": "m"}
RIMES = {
    "at": "@t",
    "ate": "et",
    "ax": "@ks",
    "it": "It",
    "ite": "Yt",
    "ing": "IG",
    "eep": "ip",
    "on": "an",
}  # silent e


def regular_word(rng: np.random.Generator) -> tuple[str, str]:
    """A word of two or three syllables and its pronunciation."""
    syllables = [(str(rng.choice(list(ONSETS))), str(rng.choice(list(RIMES)))) for _ in range(rng.integers(2, 4))]
    return "".join(a + b for a, b in syllables), "".join(ONSETS[a] + RIMES[b] for a, b in syllables)


@functools.cache
def regular_entries() -> list[tuple[str, str]]:
    rng = np.random.default_rng(0)
    return [regular_word(rng) for _ in range(600)]


@functools.cache
def regular_model() -> LanguageModel:
    return train_g2p(regular_entries())


def test_unseen_words_of_a_regular_spelling_come_out_right() -> None:
    rng = np.random.default_rng(1)
    known = {word for word, _ in regular_entries()}
    unseen = [entry for entry in (regular_word(rng) for _ in range(200)) if entry[0] not in known]
    assert len(unseen) > 50
    wrong = [(word, sounds) for word, sounds in unseen if pronounce(regular_model(), word) != [sounds]]
    assert not wrong


def test_alignment_finds_what_each_letter_sounds_like() -> None:
    graphones = set(regular_model().words)
    assert {"x:ks", "h:", "e:", "t:t"} <= graphones


def test_the_more_frequent_of_two_pronunciations_comes_first() -> None:
    entries = [*regular_entries(), *[("pon", "pan")] * 20, *[("pon", "pon")] * 10]
    found = pronounce(train_g2p(entries), "pon", num_best=5)
    assert found[:2] == ["pan", "pon"]


def test_the_best_are_different_and_the_first_is_the_same_for_any_number() -> None:
    found = pronounce(regular_model(), "shatephax", num_best=6)
    assert len(found) == len(set(found)) == 6
    assert found[:1] == pronounce(regular_model(), "shatephax")
    assert all(found)


def test_the_probabilities_of_one_pronunciation_are_added_up() -> None:
    """aa is k in two ways, a:k a: and a: a:k, each less frequent than a:p a:p but together more; every sentence is equally short."""
    model = lm.train([*["a:k a:"] * 3, *["a: a:k"] * 3, *["a:p a:p"] * 4], order=3)
    by_sum = {}
    for sounds in (("k", ""), ("", "k"), ("p", "p")):
        log_prob = model.score_sentences([" ".join(f"a:{sound}" for sound in sounds)])[0]
        by_sum["".join(sounds)] = by_sum.get("".join(sounds), 0) + np.exp(log_prob)
    assert pronounce(model, "aa", num_best=2) == sorted(by_sum, key=lambda sounds: -by_sum[sounds]) == ["k", "pp"]


def test_training_and_search_are_deterministic() -> None:
    again = train_g2p(regular_entries())
    assert np.array_equal(again.log_prob, regular_model().log_prob)
    assert pronounce(again, "chitemax", num_best=4) == pronounce(regular_model(), "chitemax", num_best=4)


def test_a_saved_model_pronounces_the_same(tmp_path: Path) -> None:
    lm.save(regular_model(), tmp_path / "g2p.lm")
    loaded = lm.load(tmp_path / "g2p.lm")
    for word, _ in regular_entries()[:20]:
        assert pronounce(loaded, word) == pronounce(regular_model(), word)


@pytest.mark.parametrize(("word", "message"), [("sház", "'sház'.*'z', 'á'"), ("", "''.*none"), ("a t", "' '")])
def test_a_word_that_cannot_be_pronounced_is_named(word: str, message: str) -> None:
    with pytest.raises(G2PError, match=message):
        pronounce(regular_model(), word)


def test_letters_that_are_always_silent_make_no_word() -> None:
    with pytest.raises(G2PError, match="silent"):
        pronounce(lm.train(["a:k b:", "a:p b:"], order=2), "b")


@pytest.mark.parametrize("entry", [("", "k"), ("cat", ""), ("c at", "k@t"), ("cat", "k @t")])
def test_an_entry_that_is_not_one_word_is_named(entry: tuple[str, str]) -> None:
    with pytest.raises(G2PError, match=repr(entry[0])):
        train_g2p([("at", "@t"), entry])


def test_abbreviations_are_left_out_and_nothing_else_is_an_error() -> None:
    with_abbreviation = train_g2p([*regular_entries(), ("mmm", "trIplEm")])
    assert np.array_equal(with_abbreviation.log_prob, regular_model().log_prob)
    for entries in ([], [("m", "trIplEm")]):
        with pytest.raises(G2PError, match="found none"):
            train_g2p(entries)
