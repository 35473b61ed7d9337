"""Facts about greedy decoding and beam search. The oracle is the sum over every path, by enumeration."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from asr import decoder, search
from asr.ctc import collapse, forced_align
from asr.decoder import (
    BeamSearch,
    DecoderConfig,
    DecoderError,
    _make_scorer,
    beam_search,
    decode,
    greedy_decode,
    in_search_order,
)
from asr.lexicon import Lexicon
from asr.lm import LanguageModel, train
from asr.text import BLANK, ENGLISH, Vocabulary

SMALL = Vocabulary((BLANK, " ", "a", "b"))


def random_log_probs(rng: np.random.Generator, num_frames: int, size: int, *, scale: float = 1.5) -> np.ndarray:
    logits = rng.normal(0, scale, (num_frames, size))
    return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


def all_prefixes(log_probs: np.ndarray) -> dict[tuple[int, ...], float]:
    """Log-probability of every token sequence: the sum over all V ** T' paths."""
    num_frames, size = log_probs.shape
    totals: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(size), repeat=num_frames):
        tokens = tuple(collapse(path))
        score = float(sum(log_probs[t, k].astype(np.float64) for t, k in enumerate(path)))
        totals[tokens] = float(np.logaddexp(totals.get(tokens, -np.inf), score))
    return totals


def occurrences(phrase: str, text: str) -> int:
    words, wanted = text.split(), phrase.split()
    return sum(words[i : i + len(wanted)] == wanted for i in range(len(words)))


def by_enumeration(
    log_probs: np.ndarray,
    *,
    model: LanguageModel | None = None,
    alpha: float = 0.0,
    beta: float = 0.0,
    unknown_penalty: float = 0.0,
    lexicon: Sequence[str] | None = None,
    hotwords: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Score of every text, by the definition; of several spellings of one text (spaces around it or doubled) that of the best."""
    hotwords = hotwords or {}
    scores: dict[str, float] = {}
    for tokens, score in all_prefixes(log_probs).items():
        words = "".join(SMALL.tokens[token] for token in tokens).split()
        text = " ".join(words)
        if model:
            score += alpha * float(model.score_sentences([text])[0]) + beta * len(words)
            hot = {word for phrase in hotwords if occurrences(phrase, text) for word in phrase.split()}
            score -= unknown_penalty * sum(word not in model.word_ids and word not in hot for word in words)
        if lexicon is not None and not set(words) <= set(lexicon):
            continue
        score += sum(weight * occurrences(phrase, text) for phrase, weight in hotwords.items())
        scores[text] = max(score, scores.get(text, -np.inf))
    return scores


MODEL = train(["a b a", "ab b", "ba ab a", "b a"], order=3)
EXACT = {
    "beam_size": 5000,
    "num_best": 5000,
    "beam_threshold": np.inf,
    "token_threshold": -np.inf,
    "blank_threshold": 1.0,
}
CASES: dict[str, dict] = {
    "acoustic": {},
    "model": {"model": MODEL, "alpha": 0.8, "beta": 0.7, "unknown_penalty": 1.5},
    "lexicon": {"lexicon": ["a", "ab", "aba"]},
    "model and lexicon": {"model": MODEL, "alpha": 0.5, "beta": 2.0, "unknown_penalty": 1.5, "lexicon": ["a", "ab", "aba"]},
    "hotwords": {"hotwords": {"ab": 1.5, "b a": 2.0, "a": 0.5, "a ab a": 3.0}},
    "model and hotwords": {
        "model": MODEL,
        "alpha": 0.8,
        "beta": 0.7,
        "unknown_penalty": 4.0,
        "hotwords": {"aba": 3.0, "bb": 1},
    },
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(12))
def test_beam_search_with_a_wide_beam_equals_the_sum_over_all_paths(seed: int, case: str) -> None:
    rng = np.random.default_rng(seed)
    log_probs = random_log_probs(rng, int(rng.integers(1, 6)), 4)
    expected = by_enumeration(log_probs, **CASES[case])
    settings = {{"model": "lm"}.get(name, name): value for name, value in CASES[case].items()}
    found = {hypothesis.text: hypothesis.score for hypothesis in beam_search(log_probs, SMALL, **EXACT, **settings)}
    assert found.keys() == expected.keys()
    assert all(found[text] == pytest.approx(expected[text], abs=1e-5) for text in expected)


ALIKE = Lexicon(("a", "ab", "ba", "b", "a"), ("a", "b", "b", "ab", "aa"))  # "a" is said in two ways; "ab" and "ba" sound alike


def readings(sound: str) -> list[str]:
    return [word for word, pronunciation in zip(ALIKE.words, ALIKE.pronunciations, strict=True) if pronunciation == sound]


@pytest.mark.parametrize("hotwords", [{}, {"ba": 1.5, "a b": 2.0}, {"a": 1.0, "ab": 1.5, "ba": 1.5}])
@pytest.mark.parametrize("seed", range(12))
def test_words_are_found_by_how_they_sound_and_those_that_sound_alike_by_the_model(seed: int, hotwords: dict[str, float]) -> None:
    rng = np.random.default_rng(seed)
    log_probs = random_log_probs(rng, int(rng.integers(1, 6)), 4)
    expected: dict[str, float] = {}
    for tokens, score in all_prefixes(log_probs).items():
        heard = "".join(SMALL.tokens[token] for token in tokens).split()
        for words in itertools.product(*map(readings, heard)):
            text = " ".join(words)
            total = score + 0.8 * float(MODEL.score_sentences([text])[0]) + 0.7 * len(words)
            for phrase, weight in hotwords.items():  # a word as it is written, several as they sound
                ways = [" ".join(said) for said in itertools.product(*(ALIKE.all[word] for word in phrase.split()))]
                total += weight * (sum(occurrences(way, " ".join(heard)) for way in ways) if " " in phrase else occurrences(phrase, text))
            expected[text] = max(total, expected.get(text, -np.inf))
    settings = {"lm": MODEL, "alpha": 0.8, "beta": 0.7, "lexicon": ALIKE, "hotwords": hotwords}
    found = {hypothesis.text: hypothesis.score for hypothesis in beam_search(log_probs, SMALL, **EXACT, **settings)}
    assert found.keys() == expected.keys()
    assert all(found[text] == pytest.approx(expected[text], abs=1e-5) for text in expected)


class Judge:
    """Stands for a recurrent language model: remembers the texts it was given, and likes one far better than the n-gram model does."""

    def __init__(self, favourite: str = "none") -> None:
        self.favourite = favourite
        self.texts: list[str] = []

    def interpolate(self, texts: Sequence[str], lm: LanguageModel, weight: float, *, history: int | None) -> tuple[np.ndarray, np.ndarray]:
        assert weight == 0.5
        self.texts = list(texts)
        first = lm.score_sentences(texts)
        return first + 50.0 * np.array([text == self.favourite for text in texts]), first


@pytest.mark.parametrize("lexicon", [None, ALIKE])
@pytest.mark.parametrize("seed", range(12))
def test_the_texts_ranked_anew_are_the_best_though_the_search_gave_most_of_them_up(seed: int, lexicon: Lexicon | None) -> None:
    rng = np.random.default_rng(seed)
    log_probs = random_log_probs(rng, 10, 4, scale=2.0)
    settings = {"lm": MODEL, "alpha": 0.8, "beta": 0.7, "unknown_penalty": 1.5, "lexicon": lexicon}
    exact = {hypothesis.text: hypothesis for hypothesis in beam_search(log_probs, SMALL, **(EXACT | settings))}
    judge = Judge()
    same = beam_search(log_probs, SMALL, **(EXACT | settings | {"num_best": 1, "rescorer": judge, "rescore_weight": 0.5}))[0]
    assert len(judge.texts) == len(set(judge.texts)) > 4
    assert set(list(exact)[:4]) <= set(judge.texts) <= exact.keys()
    assert same.text == judge.texts[0] == beam_search(log_probs, SMALL, **(EXACT | settings | {"num_best": 1}))[0].text
    for favourite in judge.texts:
        found = beam_search(log_probs, SMALL, **(EXACT | settings | {"num_best": 1, "rescorer": Judge(favourite), "rescore_weight": 0.5}))[0]
        assert found.text == favourite
        assert found.lm_score == pytest.approx(exact[favourite].lm_score + 50.0)
        words = favourite.split()
        bonus = 0.7 * len(words) - 1.5 * sum(word not in MODEL.word_ids for word in words)
        assert found.score == pytest.approx(found.acoustic_score + 0.8 * found.lm_score + bonus)


@pytest.mark.parametrize("case", [*CASES, "alike"])
@pytest.mark.parametrize("rescore_weight", [0.0, 0.5])
def test_a_search_that_goes_on_as_the_utterance_grows_finds_what_one_of_the_whole_does(case: str, rescore_weight: float) -> None:
    rng = np.random.default_rng(0)
    log_probs = random_log_probs(rng, 40, 4, scale=3.0)
    settings = {{"model": "lm"}.get(name, name): value for name, value in CASES.get(case, {"model": MODEL, "lexicon": ALIKE}).items()}
    settings |= {"beam_size": 20, "rescorer": Judge(), "rescore_weight": rescore_weight}
    growing = BeamSearch(SMALL, **settings)
    for end in (0, 1, 1, 2, 9, 30, 31, 40):
        assert growing.run(log_probs[:end]) == beam_search(log_probs[:end], SMALL, **settings)
    with pytest.raises(DecoderError, match="expected the 40 frames that have been searched and perhaps more, found 39"):
        growing.run(log_probs[:39])


def test_texts_are_ranked_anew_only_with_a_weight_and_a_language_model() -> None:
    log_probs = random_log_probs(np.random.default_rng(0), 10, 4)
    judge = Judge()
    for settings in ({"lm": MODEL, "rescore_weight": 0.0}, {"lm": None, "rescore_weight": 0.5}):
        beam_search(log_probs, SMALL, rescorer=judge, **settings)  # type: ignore[arg-type]
        assert not judge.texts
    with pytest.raises(DecoderError, match=r"rescore_weight: expected 0 to 1, found 1\.5"):
        DecoderConfig("beam", rescore_weight=1.5)


def test_what_an_unfinished_word_will_score_is_foreseen_by_bigrams() -> None:
    rng = np.random.default_rng(5)
    words = ["".join(rng.choice(list("abc"), rng.integers(1, 4))) for _ in range(30)]
    texts = [" ".join(rng.choice(words, 6)) for _ in range(60)]
    model, vocabulary = train(texts, order=3), Vocabulary((BLANK, " ", "a", "b", "c"))
    scorer, _ = _make_scorer(vocabulary, model, None, (), is_heard=False, alpha=0.7, beta=0.3, unknown_penalty=4.0)
    numbers = dict(zip(model.words, model.log_prob[1:], strict=False))
    for text in texts[:10]:
        prefix, last, begun = np.recarray(1, search.PREFIX)[0], "<s>", ""
        search._root(prefix, scorer)
        for letter in text:
            longer = np.recarray(1, search.PREFIX)[0]
            token = vocabulary.encode(letter)[0]
            assert search._lengthen(prefix, 0, token, search._entries(prefix, token, scorer)[0], scorer, longer)
            prefix, begun, last = longer, "" if letter == " " else begun + letter, begun if letter == " " else last
            if begun:
                state = 1 + model.word_ids[last]
                wanted = [word for word in model.words[3:] if word.startswith(begun)]
                seen = model.children(np.full(len(wanted), state), np.array([model.word_ids[word] for word in wanted]))
                best = max(model.backoff[state] + numbers[word] for word in wanted)
                assert prefix.outlook == pytest.approx(0.7 * max([best, *model.log_prob[seen[seen > 0]]]), abs=1e-5)


def test_a_language_model_in_search_order_is_left_as_it_is() -> None:
    model = train(["b ab ba a", "ba b b"], order=2)
    ordered = in_search_order(model, SMALL, ALIKE)
    assert ordered.words == ("<unk>", "<s>", "</s>", "a", "b", "ab", "ba")  # as they sound: a, ab, b, b
    assert in_search_order(ordered, SMALL, ALIKE) is ordered


@pytest.mark.parametrize("seed", range(12))
def test_words_of_the_language_model_that_the_lexicon_lacks_may_stand_between_its_own(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ordered, lexicon = in_search_order(MODEL, SMALL), ["a", "b"]
    assert [word for word in ordered.words if word[0] in "ab"] == ["a", "ab", "b", "ba"]
    assert in_search_order(ordered, SMALL, Lexicon(tuple(lexicon), tuple(lexicon))) is not ordered  # they are too many
    monkeypatch.setattr(decoder, "MOST_OTHERS", 1.0)
    with_few = replace(ordered)
    assert in_search_order(with_few, SMALL, Lexicon(tuple(lexicon), tuple(lexicon))) is with_few
    log_probs = random_log_probs(np.random.default_rng(seed), 5, 4)
    settings = {"alpha": 0.8, "beta": 0.7, "unknown_penalty": 1.5, "lexicon": lexicon}
    expected = by_enumeration(log_probs, model=with_few, **settings)
    found = {hypothesis.text: hypothesis.score for hypothesis in beam_search(log_probs, SMALL, lm=with_few, **EXACT, **settings)}
    assert found == pytest.approx(expected, abs=1e-5)


def clear(path: str, vocabulary: Vocabulary) -> np.ndarray:
    """Log-probabilities of a network that has no doubt of a path; an underscore is a blank."""
    log_probs = np.full((len(path), len(vocabulary)), np.log(0.01), np.float32)
    for row, token in zip(log_probs, path, strict=True):
        row[0 if token == "_" else vocabulary.encode(token)[0]] = np.log(1 - 0.01 * (len(vocabulary) - 1))
    return log_probs


@pytest.mark.parametrize(("text", "sounds"), [("a red rose", "A_ rEd_ roz_"), ("i read it", "Y_ rEd_ It__")])
def test_of_words_that_sound_alike_the_language_model_takes_the_likelier(text: str, sounds: str) -> None:
    lexicon = Lexicon(("a", "i", "it", "read", "red", "rose"), ("A", "Y", "It", "rEd", "rEd", "roz"))
    both = np.concatenate([clear("a_ whatever_"[: len(sounds)], ENGLISH), clear(sounds, lexicon.sounds)], axis=1)
    settings = {"lm": train(["a red rose", "i read it", "a rose"], order=3), "lexicon": lexicon, "sounds": lexicon.sounds}
    found = decode(both, ENGLISH, DecoderConfig("beam"), **settings)
    assert (found.text, lexicon.sounds.decode(found.tokens)) == (text, sounds.replace("_", ""))
    assert decode(both, ENGLISH, DecoderConfig(), **settings).text == "a whatever"[: len(sounds) - 1].replace("_", "")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_sixty_more_tokens_that_are_never_said_change_nothing(seed: int, case: str) -> None:
    log_probs = random_log_probs(np.random.default_rng(seed), 5, 4)
    large = Vocabulary((*SMALL.tokens[:3], *(chr(0x410 + i) for i in range(63)), "b"))  # "a" is token 2 and "b" token 66
    padded = np.full((5, len(large)), -np.inf, np.float32)
    padded[:, [0, 1, 2, 66]] = log_probs
    settings = {{"model": "lm"}.get(name, name): value for name, value in CASES[case].items()}
    found, expected = ({h.text: h.score for h in beam_search(*of, **EXACT, **settings)} for of in ((padded, large), (log_probs, SMALL)))
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("case", [name for name in CASES if "model" in name])
@pytest.mark.parametrize("seed", range(12))
def test_the_best_alone_is_one_of_all_and_lacks_paths_at_most(seed: int, case: str) -> None:
    log_probs = random_log_probs(np.random.default_rng(seed), 6, 4)
    settings = {{"model": "lm"}.get(name, name): value for name, value in CASES[case].items()}
    every = {hypothesis.text: hypothesis.score for hypothesis in beam_search(log_probs, SMALL, **EXACT, **settings)}
    alone = beam_search(log_probs, SMALL, **EXACT | {"num_best": 1}, **settings)[0]  # prefixes are recombined
    best = max(every.values())
    assert best - 1.0 < alone.score <= every[alone.text] + 1e-5 <= best + 1e-5


def test_nothing_is_lost_after_a_word_that_the_language_model_does_not_know() -> None:
    lexicon = Lexicon(("by", "kaslon", "in", "london"), ("bY", "k@slAn", "In", "lAndAn"))
    both = np.concatenate([clear("_" * 29, ENGLISH), clear("bY_ k@slAn_ In_ l_AndAn_ bY__", lexicon.sounds)], axis=1)
    settings = {"lm": train(["by in london", "in london by"], order=3), "lexicon": lexicon, "sounds": lexicon.sounds}
    for penalty in (5.0, 100.0):  # less than the beam's threshold, and more
        words = decode(both, ENGLISH, DecoderConfig("beam", unknown_penalty=penalty), **settings).text.split()
        assert words[0] == "by" and words[-3:] == ["in", "london", "by"]
    hot = decode(both, ENGLISH, DecoderConfig("beam", unknown_penalty=100.0), **settings, hotwords={"kaslon": 1.0})
    assert hot.text == "by kaslon in london by"


def test_a_hotword_is_written_though_another_word_sounds_like_it() -> None:
    lexicon = Lexicon(("a", "red", "rose", "rows"), ("A", "rEd", "roz", "roz"))
    both = np.concatenate([clear("a_ whatever_", ENGLISH), clear("A_ rEd_ roz_", lexicon.sounds)], axis=1)
    settings = {"lm": train(["a red rose", "red rows", "a rose"], order=3), "lexicon": lexicon, "sounds": lexicon.sounds}
    texts = [decode(both, ENGLISH, DecoderConfig("beam"), **settings, hotwords=hotwords).text for hotwords in ({}, {"rows": 8.0}, {"rows": 8.0, "rose": 8.0})]
    assert texts == ["a red rose", "a red rows", "a red rose"]


def test_a_hotword_without_pronunciation_is_an_error_that_names_it() -> None:
    log_probs = np.log(np.full((5, len(ENGLISH) + len(ALIKE.sounds)), 0.02, np.float32))
    with pytest.raises(DecoderError, match="'vercingetorix'"):
        decode(log_probs, ENGLISH, DecoderConfig("beam"), lm=MODEL, lexicon=ALIKE, sounds=ALIKE.sounds, hotwords={"vercingetorix": 8.0})


def test_a_vocabulary_without_a_space_writes_one_word() -> None:
    log_probs = random_log_probs(np.random.default_rng(0), 5, 3)
    best = max(all_prefixes(log_probs).items(), key=lambda item: item[1])
    found = beam_search(log_probs, Vocabulary((BLANK, "a", "b")), **EXACT)[0]
    assert (found.tokens, found.score) == (best[0], pytest.approx(best[1]))


def test_beam_search_finds_the_text_whose_paths_are_many_where_greedy_takes_the_best_path() -> None:
    log_probs = np.log(np.array([[0.6, 0.0, 0.4, 0.0], [0.6, 0.0, 0.4, 0.0]], np.float32) + 1e-30)
    assert greedy_decode(log_probs, SMALL).text == ""  # one path: 0.36
    assert beam_search(log_probs, SMALL)[0].text == "a"  # three paths: 0.24 + 0.24 + 0.16


def test_greedy_merges_repeats_and_drops_blanks_and_peaks_inside_the_run() -> None:
    path = [0, 2, 2, 0, 2, 3, 3, 1]
    log_probs = np.full((8, 4), np.log(0.1), np.float32)
    log_probs[np.arange(8), path] = np.log([0.7, 0.6, 0.7, 0.7, 0.7, 0.7, 0.6, 0.7])
    hypothesis = greedy_decode(log_probs, SMALL)
    assert (hypothesis.text, hypothesis.tokens, hypothesis.frames) == ("aab", (2, 2, 3, 1), (2, 4, 5, 7))
    assert hypothesis.score == pytest.approx(6 * np.log(0.7) + 2 * np.log(0.6), abs=1e-5)


@pytest.mark.parametrize("decode", [greedy_decode, lambda p, v: beam_search(p, v)[0]])
def test_no_frames_or_only_blanks_are_the_empty_text(decode) -> None:
    assert decode(np.zeros((0, 29), np.float32), ENGLISH).text == ""
    blanks = np.full((7, 29), -20, np.float32)
    blanks[:, 0] = 0
    assert decode(blanks, ENGLISH).text == ""


@pytest.mark.parametrize("decode", [greedy_decode, beam_search])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1.0])
def test_what_is_no_log_probability_is_an_error_that_names_the_frame(decode, value: float) -> None:
    log_probs = random_log_probs(np.random.default_rng(1), 6, 29)
    log_probs[4, 7] = value
    with pytest.raises(DecoderError, match="frame 4"):
        decode(log_probs, ENGLISH)


@pytest.mark.parametrize("decode", [greedy_decode, beam_search])
def test_a_frame_where_nothing_is_possible_is_an_error(decode) -> None:
    log_probs = random_log_probs(np.random.default_rng(1), 6, 29)
    log_probs[2] = -np.inf
    with pytest.raises(DecoderError, match="frame 2"):
        decode(log_probs, ENGLISH)


@pytest.mark.parametrize("decode", [greedy_decode, beam_search])
def test_another_vocabulary_than_the_models_is_an_error(decode) -> None:
    with pytest.raises(DecoderError, match="do not belong together"):
        decode(random_log_probs(np.random.default_rng(1), 6, 29), SMALL)


def spoken(text: str, rng: np.random.Generator, *, noise: float = 1.0) -> np.ndarray:
    """Log-probabilities of a network that hears `text` with doubts: two to four frames a token, mostly blanks."""
    rows = []
    for token in ENGLISH.encode(text):
        for position in range(int(rng.integers(2, 5))):
            logits = rng.normal(0, noise, len(ENGLISH))
            logits[token if position == 0 else 0] += 6
            rows.append(logits)
    logits = np.array(rows)
    return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


def plain_beam_search(log_probs: np.ndarray, beam_size: int) -> dict[tuple[int, ...], float]:
    """Prefix beam search with dictionaries, as the paper has it."""
    beam: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -np.inf)}
    for frame in log_probs.astype(np.float64):
        blank: defaultdict[tuple[int, ...], float] = defaultdict(lambda: -np.inf)
        token: defaultdict[tuple[int, ...], float] = defaultdict(lambda: -np.inf)
        for prefix, (ends_blank, ends_token) in beam.items():
            total = np.logaddexp(ends_blank, ends_token)
            blank[prefix] = total + frame[0]
            if prefix:
                token[prefix] = np.logaddexp(token[prefix], ends_token + frame[prefix[-1]])
            for k in range(1, len(frame)):
                start = ends_blank if prefix and k == prefix[-1] else total
                token[*prefix, k] = np.logaddexp(token[*prefix, k], start + frame[k])
        scores = {prefix: np.logaddexp(blank[prefix], token[prefix]) for prefix in blank.keys() | token.keys()}
        beam = {p: (blank[p], token[p]) for p in sorted(scores, key=lambda p: -scores[p])[:beam_size]}
    return {prefix: float(np.logaddexp(*parts)) for prefix, parts in beam.items()}


@pytest.mark.parametrize("beam_size", [1, 3, 20])
def test_a_narrow_beam_equals_the_plain_search(beam_size: int) -> None:
    log_probs = spoken("the cat", np.random.default_rng(beam_size), noise=2.0)
    settings = {**EXACT, "beam_size": beam_size}
    expected = plain_beam_search(log_probs, beam_size)
    for hypothesis in beam_search(log_probs, ENGLISH, **settings):
        assert hypothesis.score == pytest.approx(expected[hypothesis.tokens], abs=1e-6)
    assert beam_search(log_probs, ENGLISH, **settings)[0].score == pytest.approx(max(expected.values()), abs=1e-6)


WORDS = train(["the cat sat on the mat", "the dog sat on the cat", "a cat and a dog", "vercel is a company"], order=3)


def test_pruning_and_skipping_blanks_change_no_clear_text() -> None:
    log_probs = spoken("the cat sat on a dog", np.random.default_rng(1))
    exact = beam_search(log_probs, ENGLISH, lm=WORDS, **{**EXACT, "beam_size": 200, "num_best": 1})[0]
    pruned = beam_search(log_probs, ENGLISH, lm=WORDS, blank_threshold=0.9)[0]
    assert pruned.text == exact.text == "the cat sat on a dog"
    assert pruned.score == pytest.approx(exact.score, abs=0.2)


def misheard(text: str, *, heard: str, at: int) -> np.ndarray:
    """Log-probabilities of a network that takes the character of `text` at index `at` for another one."""
    log_probs = spoken(text, np.random.default_rng(0), noise=0.3)
    frame = greedy_decode(log_probs, ENGLISH).frames[at]
    log_probs[frame] = np.log(0.1 / len(ENGLISH))
    log_probs[frame, ENGLISH.encode(heard)] = np.log(0.6)
    log_probs[frame, ENGLISH.encode(text[at])] = np.log(0.3)
    return log_probs


def test_the_language_model_decides_where_the_sound_does_not() -> None:
    log_probs = misheard("the cat sat on the mat", heard="b", at=-3)
    assert greedy_decode(log_probs, ENGLISH).text == "the cat sat on the bat"
    found = beam_search(log_probs, ENGLISH, lm=WORDS)[0]
    assert found.text == "the cat sat on the mat"
    assert found.lm_score == pytest.approx(WORDS.score_sentences([found.text])[0], abs=1e-4)
    assert found.score == pytest.approx(found.acoustic_score + 0.5 * found.lm_score + 1.5 * 6)


def test_a_hotword_is_heard_and_its_credit_is_taken_back_where_it_breaks_off() -> None:
    log_probs = spoken("the cat vercing sat", np.random.default_rng(3), noise=0.3)
    plain = beam_search(log_probs, ENGLISH)[0]
    hot = beam_search(log_probs, ENGLISH, hotwords={"vercingetorix": 8.0})[0]
    assert (hot.text, hot.score) == (plain.text, pytest.approx(plain.score, abs=0.05))
    log_probs = misheard("the cat vercingetorix sat", heard="k", at=len("the cat vercingetori"))
    assert beam_search(log_probs, ENGLISH, lm=WORDS)[0].text != "the cat vercingetorix sat"
    assert (
        beam_search(log_probs, ENGLISH, lm=WORDS, hotwords={"vercingetorix": 8.0})[0].text
        == "the cat vercingetorix sat"
    )


def test_only_words_of_the_lexicon_appear() -> None:
    log_probs = spoken("the catt sat onn the mat", np.random.default_rng(4))
    assert beam_search(log_probs, ENGLISH, lexicon=WORDS.words)[0].text == "the cat sat on the mat"
    cut = log_probs[: len(log_probs) - 5]  # in the middle of a word
    assert set(beam_search(cut, ENGLISH, lexicon=["the", "sat", "on", "matt"])[0].text.split()) <= {
        "the",
        "sat",
        "on",
        "matt",
    }
    assert beam_search(spoken("q", np.random.default_rng(5)), ENGLISH, lexicon=["the"], beam_size=1)[0].text == ""


def test_frames_rise_and_lie_where_the_tokens_peak() -> None:
    log_probs = spoken("the cat", np.random.default_rng(6), noise=0.5)
    found = beam_search(log_probs, ENGLISH)[0]
    assert found.frames == greedy_decode(log_probs, ENGLISH).frames
    assert sorted(set(found.frames)) == list(found.frames)


@pytest.mark.parametrize("seed", range(20))
def test_frames_are_the_peaks_of_the_forced_alignment(seed: int) -> None:
    rng = np.random.default_rng(seed)
    log_probs = random_log_probs(rng, int(rng.integers(1, 30)), 4)
    for hypothesis in beam_search(log_probs, SMALL, num_best=5):
        spans = forced_align(log_probs, hypothesis.tokens)
        peaks = [s + int(log_probs[s:e, k].argmax()) for k, (s, e) in zip(hypothesis.tokens, spans, strict=True)]
        assert list(hypothesis.frames) == peaks


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beam_size": 0}, "1 or more"),
        ({"num_best": 0}, "1 or more"),
        ({"alpha": np.nan}, "finite"),
        ({"beam_threshold": np.nan}, "numbers"),
        ({"hotwords": {"": 3.0}}, "hotwords"),
        ({"hotwords": {" ": 3.0}}, "hotwords"),
        ({"hotwords": {"word": np.inf}}, "finite"),
        ({"hotwords": {"naïve": 1.0}}, "naïve"),
        ({"lexicon": ["été"]}, "cannot spell|can spell"),
        ({"lexicon": []}, "lexicon"),
    ],
)
def test_settings_that_mean_nothing_are_errors(settings: dict, message: str) -> None:
    with pytest.raises(DecoderError, match=message):
        beam_search(random_log_probs(np.random.default_rng(1), 6, 29), ENGLISH, **settings)


def test_a_model_in_another_script_is_an_error() -> None:
    with pytest.raises(DecoderError, match="do not fit"):
        beam_search(random_log_probs(np.random.default_rng(1), 6, 29), ENGLISH, lm=train(["привет мир"], order=2))
