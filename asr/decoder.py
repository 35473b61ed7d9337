"""From a CTC network's log-probabilities to text: the greedy path, and beam search with a language model, a lexicon and hotwords.

Knows arrays and a vocabulary; nothing of audio, networks or files. Token 0 is the blank. The search itself is asr/search.py.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from asr import search
from asr.lexicon import Lexicon
from asr.lm import UNKNOWN_ID, LanguageModel, reorder
from asr.rnnlm import RecurrentLanguageModel
from asr.search import NONE
from asr.text import BLANK, BLANK_ID, Vocabulary

NUM_RESCORED = 30  # texts that a recurrent language model ranks anew,
NUM_PATHS = 1000  # found among so many readings, of which most are the same text,
MOST_LOSS = 8.0  # made of parts that score at most so much less than those the search went on with
HEAP_SIZE = 1 << 14  # readings that wait for their turn
HISTORY = 4  # words that decide what the recurrent model makes of the next ones
NUM_RESERVED = 3  # <unk>, <s> and </s> come first among a language model's words
MOST_OTHERS = 0.1  # words among the lexicon's that it lacks, for each of its own, that a language model may have without being put in order anew
_BUILDING = threading.Lock()  # threads that decode their first segments at once would each build the lexicon's trie


class DecoderError(ValueError):
    """Log-probabilities or settings that no text can be decoded from."""


@dataclass(frozen=True)
class Hypothesis:
    """One reading, its times and what it scores."""

    tokens: tuple[int, ...]
    text: str  # of the tokens, white space at the ends or doubled taken out, or the lexicon's words that sound like them
    frames: tuple[int, ...]  # where each token is most probable on the best path
    score: float  # what hypotheses are ranked by
    acoustic_score: float  # ln p(tokens) by the network; of greedy decoding that of one path
    lm_score: float  # ln p(words) by the language model, 0 without


@dataclass(frozen=True)
class DecoderConfig:
    """How to decode: `method` greedy or beam, and beam_search's settings of the same names.

    A word's confidence is sigmoid(confidence_offset + confidence_slope x), x the mean log-probability of its tokens at their peaks, as
    asr.tune fits it (Platt 1999); with a slope of 0, untuned, it is e^x. rescore_weight, 0 to 1: the share of a recurrent language model in
    the probability of a word, where there is one.
    """

    method: str = "greedy"
    beam_size: int = 100
    alpha: float = 0.5
    beta: float = 1.5
    unknown_penalty: float = 10.0
    confidence_slope: float = 0.0
    confidence_offset: float = 0.0
    rescore_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.method not in ("greedy", "beam"):
            raise DecoderError(f"method: expected greedy or beam, found {self.method!r}")
        if isinstance(self.beam_size, bool) or not isinstance(self.beam_size, int) or not 1 <= self.beam_size <= 10_000:
            raise DecoderError(f"beam_size: expected 1 to 10000, found {self.beam_size!r}")
        for name in ("alpha", "beta", "unknown_penalty", "confidence_slope", "confidence_offset", "rescore_weight"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise DecoderError(f"{name}: expected a finite number, found {value!r}")
        if not 0 <= self.rescore_weight <= 1:
            raise DecoderError(f"rescore_weight: expected 0 to 1, found {self.rescore_weight!r}")

    def confidence(self, mean_log_prob: float) -> float:
        """Return the confidence, 0 to 1, in a word whose tokens have this mean log-probability."""
        if not self.confidence_slope:
            return math.exp(mean_log_prob)
        return 1 / (1 + math.exp(-self.confidence_offset - self.confidence_slope * max(mean_log_prob, -50.0)))


def decode(
    log_probs: np.ndarray,
    vocabulary: Vocabulary,
    config: DecoderConfig,
    *,
    lm: LanguageModel | None = None,
    lexicon: Lexicon | None = None,
    sounds: Vocabulary | None = None,
    hotwords: Mapping[str, float] | None = None,
    rescorer: RecurrentLanguageModel | None = None,
    begun: BeamSearch | None = None,
) -> Hypothesis:
    """Return the best text of `log_probs` (T', V) by the method that the config names.

    With a lexicon of `sounds`, log_probs (T', V + S), beam search with a language model is among the lexicon's words as they sound, and
    the hypothesis' tokens are sounds. rescorer: ranks its best texts anew, if the config gives it weight. begun: make_search's of the same
    settings, which has searched earlier frames of the same utterance and goes on. Raises DecoderError.
    """
    spelled, pronounced = np.split(log_probs, [len(vocabulary)], axis=1)
    if config.method == "greedy":
        return greedy_decode(spelled, vocabulary)
    beam = begun or make_search(vocabulary, config, lm=lm, lexicon=lexicon, sounds=sounds, hotwords=hotwords, rescorer=rescorer)
    return beam.run(pronounced if beam.vocabulary is sounds else spelled)[0]


def make_search(
    vocabulary: Vocabulary,
    config: DecoderConfig,
    *,
    lm: LanguageModel | None,
    lexicon: Lexicon | None,
    sounds: Vocabulary | None,
    hotwords: Mapping[str, float] | None,
    rescorer: RecurrentLanguageModel | None,
) -> BeamSearch:
    """Return the search that decode makes of these settings. Raises DecoderError."""
    if lm is None or lexicon is None or sounds is None:
        lexicon, sounds = None, vocabulary
    return BeamSearch(
        sounds, beam_size=config.beam_size, lm=lm, alpha=config.alpha, beta=config.beta, unknown_penalty=config.unknown_penalty,
        lexicon=lexicon, hotwords=hotwords, rescorer=rescorer, rescore_weight=config.rescore_weight,
    )  # fmt: skip


def in_search_order(lm: LanguageModel, vocabulary: Vocabulary, lexicon: Lexicon | None = None) -> LanguageModel:
    """Return the model with its words in the order in which beam_search wants them; one in another it orders itself at first use.

    For a model of 6 million n-grams that takes two seconds.
    """
    ordered = _words(vocabulary, lm, lexicon).lm
    assert ordered is not None
    return ordered


def greedy_decode(log_probs: np.ndarray, vocabulary: Vocabulary) -> Hypothesis:
    """Return the most probable path of `log_probs` (T', V), collapsed: repeats merged, blanks dropped.

    Raises DecoderError for log-probabilities that are not (T', V) numbers <= 0.
    """
    log_probs = _checked(log_probs, vocabulary)
    best = log_probs.argmax(axis=1)  # (T',)
    peaks = log_probs.max(axis=1)
    starts = np.flatnonzero(np.diff(best, prepend=-1))  # first frame of each run of one token
    ends = [*starts[1:], len(best)]
    runs = [
        (int(best[s]), int(s + peaks[s:e].argmax())) for s, e in zip(starts, ends, strict=False) if best[s] != BLANK_ID
    ]
    tokens, frames = tuple(token for token, _ in runs), tuple(frame for _, frame in runs)
    score = float(peaks.sum(dtype=np.float64))
    return Hypothesis(tokens, _text(tokens, vocabulary), frames, score, score, 0.0)


def beam_search(log_probs: np.ndarray, vocabulary: Vocabulary, **settings: Any) -> list[Hypothesis]:
    """Return the best texts of `log_probs` (T', V), best first, by a BeamSearch of these settings. Raises DecoderError as it does."""
    return BeamSearch(vocabulary, **settings).run(log_probs)


class BeamSearch:
    """Finds the `num_best` best texts of log-probabilities that may grow, each summed over all its paths.

        score = ln p(tokens) + alpha ln p(words) + beta (number of words) - unknown_penalty (unknown words) + hotwords

    alpha, beta and unknown_penalty count only with a language model. A `lexicon` allows its words only; words
    without pronunciations are spelled in tokens. A hotword or phrase adds its
    weight wherever it stands between spaces, with a Lexicon wherever it is heard, but not to other words that sound like a single hotword;
    while the search is inside one it is credited in parts, and no word of it counts as unknown.
    rescorer: with its weight above 0, up to NUM_RESCORED best texts are ranked anew, p(word) being rescore_weight times its probability by
    `rescorer` and the rest by `lm` (the best texts of a lattice: Ortmanns, Ney and Aubert 1997; the recurrent model: Mikolov et al. 2010).
    Left out: prefixes that score `beam_threshold` less than the best, tokens with a log-probability below `token_threshold`, and
    whatever competes with a blank more probable than `blank_threshold`; and where only the best is wanted, prefixes that score less than
    another whose future is the same. What an unfinished word will score is foreseen by bigrams (Ortmanns et al. 1996, "Language-model
    look-ahead for large vocabulary speech recognition").
    Hannun et al. 2014, "First-pass large vocabulary continuous speech recognition using bi-directional recurrent DNNs".
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        beam_size: int = 100,
        num_best: int = 1,
        lm: LanguageModel | None = None,
        alpha: float = 0.5,
        beta: float = 1.5,
        unknown_penalty: float = 10.0,
        lexicon: Lexicon | Sequence[str] | None = None,
        hotwords: Mapping[str, float] | None = None,
        rescorer: RecurrentLanguageModel | None = None,
        rescore_weight: float = 0.0,
        beam_threshold: float = 13.0,
        token_threshold: float = -6.0,
        blank_threshold: float = 0.9,
    ) -> None:
        """Raises DecoderError for settings that mean nothing."""
        if beam_size < 1 or num_best < 1:
            raise DecoderError(f"expected a beam and a number of hypotheses of 1 or more, found {beam_size} and {num_best}")
        if (
            not math.isfinite(alpha + beta + unknown_penalty)
            or np.isnan([beam_threshold, token_threshold, blank_threshold]).any()
        ):
            raise DecoderError(
                "expected finite weights and thresholds that are numbers, found"
                f" {(alpha, beta, unknown_penalty, beam_threshold, token_threshold, blank_threshold)}"
            )
        phrases = tuple((hotwords or {}).items())
        is_heard = isinstance(lexicon, Lexicon)
        if lexicon is not None and not isinstance(lexicon, Lexicon):
            lexicon = _spelling_lexicon(tuple(lexicon))
        self.vocabulary, self._num_best, self._lexicon = vocabulary, num_best, lexicon
        self._lm, self._alpha, self._weight = lm, alpha, rescore_weight
        self._rescorer = None if lm is None or rescore_weight <= 0 else rescorer
        self._scorer, self._rows = _make_scorer(vocabulary, lm, lexicon, phrases, is_heard=is_heard, alpha=alpha, beta=beta, unknown_penalty=unknown_penalty)
        self._pruning = search.Pruning(
            beam_size=int(beam_size),
            beam_threshold=float(beam_threshold),
            token_threshold=float(token_threshold),
            blank_threshold=math.log(blank_threshold) if blank_threshold > 0 else -math.inf,
            recombine=num_best == 1 or self._rescorer is not None,
            most_loss=-1.0 if self._rescorer is None else MOST_LOSS,
        )
        num_alike = int(np.diff(self._scorer.lexicon_first_entry).max(initial=1))
        self._work = _work_memory(int(beam_size), len(vocabulary), num_alike)

    def run(self, log_probs: np.ndarray) -> list[Hypothesis]:
        """Return the best texts of `log_probs` (T', V), best first. Those of an earlier call, if there was one, are its first frames: they are not searched again.

        Raises DecoderError for log-probabilities that are not (T', V) numbers <= 0, and for fewer than before.
        """
        log_probs = _checked(log_probs, self.vocabulary)
        if len(log_probs) < self._work.done[0]:
            raise DecoderError(f"expected the {self._work.done[0]} frames that have been searched and perhaps more, found {len(log_probs)}; begin another search")
        self._make_room(log_probs[self._work.done[0] :])
        results = np.empty(len(self._work.candidates), search.RESULT)
        results = results[: _compiled_search()(log_probs, self._scorer, self._pruning, self._work, results)]
        ways: Iterable[_Way] = _ways(self._work.prefixes, results)
        if self._rescorer is not None and self._lm is not None and results["score"].max() > -math.inf:
            words = np.zeros(0, np.int32) if self._lexicon is None else self._scorer.lexicon_word
            ways = _best_ways(self._work, results, words, len(log_probs))
            ways = _rescored(ways, self._text_of, self._lm, self._rescorer, alpha=self._alpha, weight=self._weight)
        return _hypotheses(log_probs, self.vocabulary, ways, self._num_best, self._text_of)

    def _text_of(self, way: _Way) -> str:
        if self._lexicon is None:
            return _text(way.tokens, self.vocabulary)
        return " ".join(self._lexicon.words[self._rows[entry]] for entry in way.entries)

    def _make_room(self, frames: np.ndarray) -> None:
        """Make room for the prefixes and alternatives of further frames."""
        work, (_, _, num_prefixes, num_alternatives) = self._work, self._work.done.tolist()
        num_new = int((frames[:, BLANK_ID] <= self._pruning.blank_threshold).sum()) * self._pruning.beam_size
        alternatives = work.alternatives
        if self._rescorer is not None:
            alternatives = _longer(alternatives, num_alternatives, num_alternatives + num_new)
        prefixes = _longer(work.prefixes, num_prefixes, max(num_prefixes, 1) + num_new + len(alternatives) - num_alternatives)
        self._work = work._replace(prefixes=prefixes, alternatives=alternatives)


def _longer(array: np.ndarray, used: int, size: int) -> np.ndarray:
    """Return an array of `size` or more of which the first `used` are those of `array`: itself, if it is long enough."""
    if len(array) >= size:
        return array
    longer = np.empty(max(size, 2 * len(array)), array.dtype)
    longer[:used] = array[:used]
    return longer


@cache
def _compiled_search() -> Callable[..., int]:
    from asr import native  # not for greedy decoding

    scorer, _ = _make_scorer(Vocabulary((BLANK,)), None, None, (), is_heard=False, alpha=0.0, beta=0.0, unknown_penalty=0.0)
    pruning = search.Pruning(1, 0.0, 0.0, 0.0, False, -1.0)
    example = (np.zeros((1, 1), np.float32), scorer, pruning, _work_memory(1, 1, 1), np.empty(1, search.RESULT))
    return native.load(search, "search", example)


def _work_memory(beam_size: int, num_tokens: int, num_alike: int) -> search.Work:
    """Return memory for no frame yet. num_alike: the most words that sound or are spelled alike."""
    num_candidates = beam_size * (num_tokens - 1 + num_alike)  # those of a prefix: itself, a token more, or a word of the lexicon ended
    table_size = 2 ** (2 * num_candidates).bit_length()
    return search.Work(
        prefixes=np.empty(1, search.PREFIX),
        alternatives=np.empty(0, search.ALTERNATIVE),
        beam=np.empty(beam_size, search.ENTRY),
        candidates=np.empty(num_candidates, search.ENTRY),
        longer=np.empty(num_candidates, search.PREFIX),
        scores=np.empty(num_candidates),
        ranked=np.empty(num_candidates),
        table=np.empty(table_size, np.int32),
        frame=np.full(table_size, NONE, np.int32),
        lost=np.empty(num_candidates, np.int32),
        order=np.empty(num_tokens, np.int32),
        counts=np.empty(search.NUM_BINS, np.int64),
        first_child=np.empty(beam_size, np.int32),
        next_child=np.empty(beam_size, np.int32),
        done=np.zeros(4, np.int64),
    )


def _hypotheses(
    log_probs: np.ndarray, vocabulary: Vocabulary, ways: Iterable[_Way], num_best: int, text_of: Callable[[_Way], str]
) -> list[Hypothesis]:
    """Return the first ways with different texts."""
    best: dict[str, Hypothesis] = {}
    for way in ways:
        if way.score == -math.inf:  # the lexicon allows none of the last words: they are left out
            if best:
                break
            space = vocabulary.tokens.index(" ") if " " in vocabulary.tokens else NONE
            while way.tokens and way.tokens[-1] != space:
                way.tokens.pop()
        text = text_of(way)
        if text not in best:
            best[text] = Hypothesis(tuple(way.tokens), text, _peaks(log_probs, way.tokens), way.score, way.acoustic, way.lm)
        if len(best) == num_best:
            break
    return list(best.values())


class _Way(NamedTuple):
    """What the search found: tokens and the lexicon's entries that they end, and what they score."""

    tokens: list[int]
    entries: list[int]
    score: float
    acoustic: float
    lm: float


def _make_way(prefixes: np.ndarray, nodes: Sequence[int], result: np.void, **scores: float) -> _Way:
    """nodes: the prefixes from the last to the first. scores: those that differ from the result's."""
    tokens = prefixes["token"][nodes[::-1]].tolist()
    entries = [e for e in (*prefixes["entry"][nodes[::-1]].tolist(), int(result["entry"])) if e != NONE]
    return _Way(tokens, entries, **{name: float(result[name]) for name in ("score", "acoustic", "lm")} | scores)


def _nodes(prefixes: np.ndarray, node: int) -> list[int]:
    """Return the prefixes from `node` back to the first token's."""
    parents, nodes = prefixes["parent"], []
    while node > 0:
        nodes.append(node)
        node = int(parents[node])
    return nodes


def _ways(prefixes: np.ndarray, results: np.ndarray) -> Iterator[_Way]:
    """Yield the results, the best first."""
    for index in np.argsort(-results["score"], kind="stable"):
        yield _make_way(prefixes, _nodes(prefixes, int(results["prefix"][index])), results[index])


def _best_ways(work: search.Work, results: np.ndarray, words: np.ndarray, num_frames: int) -> Iterator[_Way]:
    """Yield the best ways of NUM_RESCORED texts, those too that the search gave up for others with the same future; their `lm` is not their own."""
    heap, paths = np.empty(HEAP_SIZE, search.PATH), np.empty(NUM_PATHS, search.PATH)
    paths = paths[: _compiled_best_paths()(work.prefixes, work.alternatives, results, words, NUM_RESCORED, heap, paths)]
    known: dict[int, list[int]] = {NONE: []}

    def nodes(number: int) -> list[int]:
        lacking, base = [], number
        while base not in known:
            lacking.append(base)
            base = int(paths["base"][base])
        for path in reversed(lacking):
            base, branch, prefix = (int(paths[name][path]) for name in ("base", "branch", "prefix"))
            after = known[base]
            known[path] = after[: after.index(branch) if after else 0] + _nodes(work.prefixes, prefix)
        return known[number]

    for number in np.flatnonzero(paths["is_new"]).tolist():
        path, found = paths[number], nodes(number)
        if num_frames < len(found) or len(set(found)) < len(found):  # it goes round and round
            continue
        yield _make_way(work.prefixes, found, results[path["result"]], score=float(path["score"]), acoustic=float(path["acoustic"]))


@cache
def _compiled_best_paths() -> Callable[..., int]:
    from asr import native

    memory = _work_memory(1, 1, 1)
    paths = np.empty(1, search.PATH)
    return native.load(search, "best_paths", (memory.prefixes, memory.alternatives, np.empty(1, search.RESULT), np.empty(0, np.int32), 0, paths, paths))


def _rescored(ways: Iterable[_Way], text_of: Callable[[_Way], str], lm: LanguageModel, rescorer: RecurrentLanguageModel, *, alpha: float, weight: float) -> list[_Way]:
    """Return the ways, of those with the same text the first, ranked anew: the best first by both language models together."""
    by_text: dict[str, _Way] = {}
    for way in ways:
        by_text.setdefault(text_of(way), way)
    both, first = rescorer.interpolate(list(by_text), lm, weight, history=HISTORY)
    ranked = [
        way._replace(score=way.score + alpha * (new - old), lm=new)
        for way, new, old in zip(by_text.values(), both.tolist(), first.tolist(), strict=True)
    ]
    return sorted(ranked, key=lambda way: -way.score)


def _text(tokens: Sequence[int], vocabulary: Vocabulary) -> str:
    return " ".join(vocabulary.decode(tokens).split())


def _peaks(log_probs: np.ndarray, tokens: Sequence[int]) -> tuple[int, ...]:
    """Return the frame where each token is most probable within its span on the best path that spells them."""
    num_states = 2 * len(tokens) + 1
    peaks = np.zeros(len(tokens), np.int32)
    memory = np.empty(num_states), np.empty((len(log_probs), num_states), np.int8)
    _compiled_align()(log_probs, np.array(tokens, np.int32), *memory, peaks)
    return tuple(peaks.tolist())


@cache
def _compiled_align() -> Callable[..., int]:
    from asr import native

    integers = np.zeros(1, np.int32)
    example = np.zeros((1, 1), np.float32), integers, np.zeros(1), np.zeros((1, 1), np.int8), integers
    return native.load(search, "align", example)


def _checked(log_probs: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    log_probs = np.ascontiguousarray(log_probs, np.float32)
    if log_probs.ndim != 2 or log_probs.shape[1] != len(vocabulary):
        raise DecoderError(
            f"expected log-probabilities of shape (frames, {len(vocabulary)}) for this vocabulary, found {log_probs.shape};"
            " the model and the vocabulary do not belong together"
        )
    bad = ~(log_probs <= 1e-3).all(axis=1) | ~(log_probs > -np.inf).any(axis=1)  # NaN compares false
    if bad.any():
        raise DecoderError(
            f"expected log-probabilities (numbers <= 0), found {log_probs[bad][0].max()} in frame {int(bad.argmax())};"
            " the network's weights or its input are broken, or its output is not normalised"
        )
    return log_probs


# --- what scores words -----------------------------------------------------------------------------------------------


def _make_scorer(
    vocabulary: Vocabulary,
    lm: LanguageModel | None,
    lexicon: Lexicon | None,
    hotwords: tuple[tuple[str, float], ...],
    *,
    is_heard: bool,
    alpha: float,
    beta: float,
    unknown_penalty: float,
) -> tuple[search.Scorer, np.ndarray]:
    """Return the scorer and, of each of its entries, which of the lexicon's words it is. is_heard: the hotwords sound as the lexicon says."""
    with _BUILDING:
        *trie, rows = _lexicon_trie(vocabulary, lm, lexicon, float(alpha), float(unknown_penalty))
    lm = _words(vocabulary, lm, lexicon).lm
    losses = np.zeros(len(rows))
    if lexicon is not None and is_heard and hotwords:
        losses = _homophone_losses(lexicon, hotwords)[rows]
        hotwords = tuple(_pronounced(lexicon, hotwords).items())
    fields = [
        vocabulary.tokens.index(" ") if " " in vocabulary.tokens else NONE,
        float(alpha) if lm else 0.0,
        float(beta) if lm else 0.0,
        -math.inf if lexicon is not None else -float(unknown_penalty) if lm else 0.0,
        *trie,
        losses,
        *_model_arrays(lm),
        *_hotword_automaton(vocabulary, hotwords),
    ]
    return search.Scorer._make(fields), rows


@lru_cache(maxsize=4)
def _model_arrays(lm: LanguageModel | None) -> tuple[np.ndarray, ...]:
    """Return the lm_ fields of search.Scorer."""
    if lm is None:
        integers, numbers = np.zeros(0, np.int32), np.zeros(0, np.float32)
        return integers, integers, numbers, numbers, integers, numbers
    blocks = np.maximum.reduceat(lm.log_prob, np.arange(0, len(lm.log_prob), search.BLOCK))
    return lm.first_child, lm.word, lm.log_prob, lm.backoff, lm.suffix, blocks


@lru_cache(maxsize=4)
def _spelling_lexicon(words: tuple[str, ...]) -> Lexicon:
    """Return the lexicon of words that are spelled as they are written."""
    if not any(words):
        raise DecoderError("expected words in the lexicon, found none; leave the lexicon out to allow every word")
    words = tuple(filter(None, words))
    return Lexicon(words, words)


class _Words(NamedTuple):
    """The lexicon's words in the order of their tokens, those that the vocabulary can spell."""

    codes: np.ndarray  # (W, L): their tokens, blanks behind
    rows: np.ndarray  # (W,): which of the lexicon's entries they are
    ids: np.ndarray  # (W,): their ids in the language model
    is_first: np.ndarray  # (W,): whether the language model knows the word, and this is the first way to say it
    lm: LanguageModel | None  # its words in the order of those that are first: what begins alike has ids next to each other


@lru_cache(maxsize=4)
def _words(vocabulary: Vocabulary, lm: LanguageModel | None, lexicon: Lexicon | None) -> _Words:
    """Return the words to search among; the lexicon is by default the language model's words."""
    if lexicon is not None:
        words, spellings = lexicon.words, lexicon.pronunciations
        ids = np.array([lm.word_ids.get(word, UNKNOWN_ID) if lm else UNKNOWN_ID for word in words], np.int32)
    else:
        words = spellings = lm.words[NUM_RESERVED:] if lm else ()
        ids = np.arange(NUM_RESERVED, NUM_RESERVED + len(words), dtype=np.int32)
    codes, rows = _spelled(spellings, vocabulary)
    if words and not len(rows):
        raise DecoderError(
            f"expected words that the vocabulary can spell, found {spellings[0]!r} and the like; they do not fit"
        )
    candidates = np.sort(rows)
    known, first = np.unique(ids[candidates], return_index=True)
    is_first = np.isin(rows, candidates[first[known != UNKNOWN_ID]])
    ids = ids[rows]
    in_order = ids[is_first]
    is_ordered = (np.diff(in_order) > 0).all() and in_order.max(initial=0) + 1 - NUM_RESERVED <= (1 + MOST_OTHERS) * len(in_order)
    if lm is not None and not is_ordered:
        others = np.setdiff1d(np.arange(NUM_RESERVED, len(lm.words)), in_order)
        order = np.concatenate([np.arange(NUM_RESERVED), in_order, others])
        lm, ids = reorder(lm, order), np.argsort(order)[ids].astype(np.int32)
    return _Words(codes, rows, ids, is_first, lm)


@lru_cache(maxsize=4)
def _lexicon_trie(
    vocabulary: Vocabulary, lm: LanguageModel | None, lexicon: Lexicon | None, alpha: float, unknown_penalty: float
) -> tuple[np.ndarray, ...]:
    """Return the first nine lexicon_ fields of search.Scorer, a trie over tokens, and which of the lexicon's entries each of its is."""
    codes, rows, ids, is_first, lm = _words(vocabulary, lm, lexicon)
    num_words, length = codes.shape
    inside = codes != BLANK_ID
    # A row's places have nodes of their own from where it first differs from the row above; before, it shares that row's.
    as_above = np.vstack([np.zeros((1, length), bool), codes[1:] == codes[:-1]])[:num_words]
    is_new = inside & ~np.logical_and.accumulate(as_above, axis=1)
    depth, row = np.nonzero(is_new.T)  # nodes 1, 2, ... by depth, then by row: the children of one node are neighbours
    node_at = np.cumsum(is_new.T.ravel(), dtype=np.int32).reshape(length, num_words)  # (L, W)
    parent = np.where(depth > 0, node_at[depth - 1, row], 0)
    first_child = 1 + np.concatenate([[0], np.cumsum(np.bincount(parent, minlength=1 + len(parent)))])
    ends = node_at[inside.sum(axis=1) - 1, np.arange(num_words)]
    by_node = np.argsort(ends, kind="stable")
    first_entry = np.concatenate([[0], np.cumsum(np.bincount(ends, minlength=1 + len(parent)))])
    bonus = np.where((ids == UNKNOWN_ID) & (lm is not None), -unknown_penalty, 0.0)
    best = np.full(1 + len(parent), -np.inf)
    np.maximum.at(best, ends, alpha * lm.log_prob[1 + ids] + bonus if lm else 0.0)
    for nodes in reversed(np.split(np.arange(1, 1 + len(parent)), np.flatnonzero(np.diff(depth)) + 1)):  # deepest first
        np.maximum.at(best, parent[nodes - 1], best[nodes])
    best = np.append(best, alpha * lm.log_prob[1 + UNKNOWN_ID] if lm else 0.0)  # the last, [NONE]: of words outside the lexicon
    tokens = np.append([NONE], codes[row, depth]).astype(np.int32)
    first_ids = ids[is_first]
    first_ids = np.append(first_ids, first_ids.max(initial=NUM_RESERVED - 1) + 1)  # they rise
    next_id = first_ids[np.append(0, np.cumsum(is_first))]  # of the next word that is first, at each row
    num_below = np.bincount(node_at[inside.T], minlength=1 + len(parent))[1:]
    low, high = np.append(0, next_id[row]), np.append(0, next_id[row + num_below])
    ids, bonus = ids[by_node], bonus[by_node]
    following = np.zeros(2 + len(parent), np.int64)
    np.bitwise_or.at(following, parent, np.left_shift(np.int64(1), tokens[1:] & 63, dtype=np.int64))
    following[NONE if lexicon is not None else slice(None)] = -1  # an unknown word may go on with any token, and begin as a known one
    first_child, first_entry = first_child.astype(np.int32), first_entry.astype(np.int32)
    return first_child, tokens, following, first_entry, ids, bonus, best, low, high, rows[by_node]


def _spelled(words: Sequence[str], vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Return the words that the vocabulary can spell, in the order of their tokens: tokens (W, L), blanks behind; indices (W,)."""
    token_of = np.full(0x110000, NONE, np.int32)  # by code point
    token_of[0] = BLANK_ID  # numpy pads strings with zeros
    token_of[[ord(token) for token in vocabulary.tokens[1:] if token != " "]] = [
        i for i, token in enumerate(vocabulary.tokens) if i != BLANK_ID and token != " "
    ]
    text = np.array(words or [" "])
    codes = token_of[text.view(np.uint32).reshape(len(text), -1)]  # (W, L)
    rows = np.flatnonzero((codes != NONE).all(axis=1))
    as_text = codes[rows].astype(np.uint32).view(f"U{codes.shape[1]}").ravel()  # sorts like the tokens
    rows = rows[np.argsort(as_text, kind="stable")]
    return codes[rows], rows


@lru_cache(maxsize=4)
def _pronounced(lexicon: Lexicon, hotwords: tuple[tuple[str, float], ...]) -> dict[str, float]:
    """Return how the phrases sound, in every way that the lexicon has, with their weights. Raises DecoderError for words that it lacks."""
    heard: dict[str, float] = {}
    for phrase, weight in hotwords:
        if missing := lexicon.missing(phrase):
            raise DecoderError(f"the hotword {phrase!r} has a word without pronunciation: {missing[0]!r}; add it to the model folder's lexicon.txt")
        for ways in product(*(lexicon.all[word] for word in phrase.split())):
            heard[" ".join(ways)] = weight
    return heard


@lru_cache(maxsize=4)
def _homophone_losses(lexicon: Lexicon, hotwords: tuple[tuple[str, float], ...]) -> np.ndarray:
    """Return (W,), what the automaton gives to each of the lexicon's words only because it sounds like a hotword of one word."""
    weights = {way: weight for phrase, weight in hotwords for way in lexicon.all.get(phrase, ()) if weight > 0}
    meant = {phrase for phrase, _ in hotwords}
    return np.array([0.0 if word in meant else weights.get(way, 0.0) for word, way in zip(lexicon.words, lexicon.pronunciations, strict=True)])


@lru_cache(maxsize=4)
def _hotword_automaton(
    vocabulary: Vocabulary, hotwords: tuple[tuple[str, float], ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the hotword_ fields of search.Scorer: an automaton that finds the phrases, each from a space to a space.

    Aho and Corasick 1975, "Efficient string matching: an aid to bibliographic search": a state is the longest beginning of a phrase
    that the tokens so far end with.
    """
    children: list[dict[int, int]] = [{}]
    depth, bonus, outlook = [0], [0.0], [0.0]
    for phrase, weight in hotwords:
        spelled = f" {' '.join(phrase.split())} "
        if not phrase.strip() or not math.isfinite(weight):
            raise DecoderError(f"expected hotwords with finite weights, found {phrase!r} with {weight}")
        if foreign := vocabulary.unknown(spelled):
            raise DecoderError(f"the hotword {phrase!r} has characters that the vocabulary lacks: {foreign}")
        tokens = vocabulary.encode(spelled)
        state = 0
        for position, token in enumerate(tokens):
            if token not in children[state]:
                children[state][token] = len(children)
                children.append({})
                depth.append(position + 1)
                bonus.append(0.0)
                outlook.append(0.0)
            state = children[state][token]
            if position < len(tokens) - 1:
                outlook[state] = max(outlook[state], weight * position / (len(tokens) - 1))
        bonus[state] += weight
    following = np.zeros((len(children), len(vocabulary)), np.int32)  # (S, V)
    fallback = [0] * len(children)  # the longest other beginning that the state's tokens end with
    queue = [0]
    for state in queue:  # by depth, as the states behind are appended
        following[state] = following[fallback[state]]
        if state:
            bonus[state] += bonus[fallback[state]]
            outlook[state] = max(outlook[state], outlook[fallback[state]])
        for token, child in children[state].items():
            fallback[child] = int(following[state, token])
            following[state, token] = child
            queue.append(child)
    outlooks, bonuses = np.array(outlook), np.array(bonus)
    gains = (outlooks + bonuses)[following].max(axis=1) - outlooks
    depths = np.array(depth, np.int32)
    bits = np.left_shift(np.int64(1), np.arange(len(vocabulary)) & 63, dtype=np.int64)
    inside = np.bitwise_or.reduce(np.where(depths[following] > 1, bits, 0), axis=1)
    return following, inside, gains, depths, outlooks, bonuses
