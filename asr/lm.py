"""Word n-gram language models: training from text (modified Kneser-Ney), pruning, ARPA and compact files, scoring.

Knows words and numbers; nothing of audio, acoustic tokens or decoding. All log-probabilities are natural logarithms.
"""

from __future__ import annotations

import gzip
import io
import logging
import lzma
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from asr.storage import replacing, write_atomically

UNKNOWN, START, END = "<unk>", "<s>", "</s>"
UNKNOWN_ID, START_ID, END_ID = 0, 1, 2
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)  # where the text is too small to estimate them, as KenLM's lmplz has them
LN_10 = np.log(10.0)
NEVER = -99 * LN_10  # what ARPA files give <s>, which is never predicted
FORMAT, FORMAT_VERSION = "asr n-gram", "2"
NUM_CODES = 256  # so many values a level the log-probabilities of a compact file have, and the back-off weights
STEPS_PER_NAT = 1024  # in files of version 1 they are 16-bit multiples of 1/1024
PACKED_TYPES = (np.uint8, np.uint16, np.int32)  # of a compact file's integers
CHUNK_SIZE = 1 << 15  # codes looked up at once, so that little memory is needed beside the result

logger = logging.getLogger(__name__)


class LanguageModelError(ValueError):
    """A language model file, or a text or settings to train one with, that cannot be used; or a training that cannot go on."""


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A back-off n-gram model, laid out as a trie in flat arrays.

    Node 0 is the empty context, nodes 1 to V are the words in the order of their ids, then come all bigrams, all
    trigrams and so on, each level sorted by (parent, word). So the children of a node lie side by side, sorted by word, and those of
    the next node follow them. N nodes, of which the first M are shorter than the model's order and can be contexts.

        p(w | h) = exp(log_prob[child of h by w])                if h has such a child
                 = exp(backoff[h]) p(w | h without its first word) if not

    A state is the node of the longest known context. `suffix` leads from a context to the longest known one that lacks its first words.
    """

    order: int
    words: tuple[str, ...]  # words[0:3] are <unk>, <s>, </s>
    word: np.ndarray  # (N,) int32, the last word of each node
    log_prob: np.ndarray  # (N,) float32
    backoff: np.ndarray  # (M,) float32
    first_child: np.ndarray  # (M + 1,) int32, children of n are first_child[n] to first_child[n + 1] - 1
    suffix: np.ndarray  # (M,) int32

    @cached_property
    def word_ids(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.words)}

    @cached_property
    def level_starts(self) -> np.ndarray:
        """First node of each order 0 (the empty context) to `order`, and the number of nodes: (order + 2,)."""
        return _level_starts(self.first_child, self.order)

    @property
    def num_ngrams(self) -> tuple[int, ...]:
        """Number of n-grams of each order from 1."""
        return tuple(int(n) for n in np.diff(self.level_starts)[1:])

    @property
    def start_state(self) -> int:
        """The context of a sentence's first word."""
        return 1 + START_ID

    @cached_property
    def parent(self) -> np.ndarray:
        """(N,) int64, the context of each node; the empty context is its own."""
        contexts = np.repeat(np.arange(len(self.backoff)), np.diff(self.first_child))
        return np.append([0], contexts)

    @cached_property
    def _keys(self) -> np.ndarray:
        keys = self.parent * len(self.words) + self.word  # rising: nodes are sorted by (level, parent, word)
        return np.append([-1], keys[1:])

    def children(self, nodes: np.ndarray, words: np.ndarray) -> np.ndarray:
        """Return the node that continues each of `nodes` with each of `words`, 0 where there is none."""
        keys = nodes.astype(np.int64) * len(self.words) + words
        found: np.ndarray = np.maximum(_find(self._keys, keys), 0)  # contexts of the highest order are in no key
        return found

    def score(self, states: np.ndarray | int, words: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
        """Return ln p(word | state) and the state after the word, for each pair; states from `start_state` or from here."""
        shape = np.broadcast_shapes(np.shape(states), np.shape(words))
        states, words = (np.broadcast_to(x, shape).astype(np.int64).ravel() for x in (states, words))
        log_probs = np.zeros(len(states))
        nodes = self.children(states, words)
        while (missing := nodes == 0).any():  # ends at the empty context, which every word continues
            log_probs[missing] += self.backoff[states[missing]]
            states[missing] = self.suffix[states[missing]]
            nodes[missing] = self.children(states[missing], words[missing])
        log_probs += self.log_prob[nodes]
        full = nodes >= len(self.backoff)  # an n-gram of the highest order is no context
        nodes[full] = self.longest_suffixes(self.suffix[states[full]], words[full])
        return log_probs.reshape(shape)[()], nodes.reshape(shape)[()]

    def longest_suffixes(self, states: np.ndarray, words: np.ndarray) -> np.ndarray:
        """Return the longest known context that ends in each of `states` and its word."""
        states = states.astype(np.int64)
        nodes = self.children(states, words)
        while (missing := nodes == 0).any():
            states[missing] = self.suffix[states[missing]]
            nodes[missing] = self.children(states[missing], words[missing])
        return nodes

    def encode(self, sentence: str) -> list[int]:
        """Return the word ids of `sentence`, unknown words as UNKNOWN_ID."""
        return [self.word_ids.get(word, UNKNOWN_ID) for word in sentence.split()]

    def score_sentences(self, sentences: Iterable[str]) -> np.ndarray:
        """Return ln p(sentence), its end included, for each sentence."""
        rows = [[*self.encode(sentence), END_ID] for sentence in sentences]
        lengths = np.array([len(row) for row in rows], np.int64)
        totals = np.zeros(len(rows))
        states = np.full(len(rows), self.start_state)
        for position in range(lengths.max(initial=0)):
            alive = np.flatnonzero(lengths > position)
            words = np.array([rows[i][position] for i in alive])
            log_probs, states[alive] = self.score(states[alive], words)
            totals[alive] += log_probs
        return totals


class Perplexity(NamedTuple):
    """How well a model predicts a text: exp of the mean -ln p over words and sentence ends."""

    perplexity: float
    num_words: int  # sentence ends not counted
    num_unknown: int
    num_sentences: int


def perplexity(model: LanguageModel, sentences: Iterable[str]) -> Perplexity:
    """Return the perplexity of `sentences`, unknown words and sentence ends included."""
    texts = list(sentences)
    if not texts:
        raise LanguageModelError("expected sentences to measure perplexity on, found none")
    ids = [model.encode(text) for text in texts]
    num_words = sum(map(len, ids))
    num_unknown = sum(row.count(UNKNOWN_ID) for row in ids)
    total = float(model.score_sentences(texts).sum())
    return Perplexity(float(np.exp(-total / (num_words + len(texts)))), num_words, num_unknown, len(texts))


def read_sentences(path: str | Path) -> Iterator[str]:
    """Yield the lines of a text file, plain, .gz or .xz, empty ones left out."""
    opened = _open_text(Path(path))
    with opened as lines:
        try:
            for line in lines:
                if line := line.strip():
                    yield line
        except (UnicodeDecodeError, EOFError, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise LanguageModelError(f"{path}: expected UTF-8 text, found damaged data ({error})") from error


def read_words(sentences: Iterable[str], vocabulary_size: int | None) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the words by id, the most frequent first, and the whole text as ids (S,), <s> before and </s> after each sentence.

    Words beyond the `vocabulary_size` most frequent become <unk>. Raises LanguageModelError for a text without words, or with <s> or </s>.
    """
    specials = (UNKNOWN, START, END)
    first_ids: dict[str, int] = {word: i for i, word in enumerate(specials)}
    text = array("i")
    for number, sentence in enumerate(sentences, start=1):
        found = sentence.split()
        if START in found or END in found:
            raise LanguageModelError(f"sentence {number}: {START} and {END} are reserved, found {sentence[:60]!r}")
        text.append(START_ID)
        text.extend([first_ids.setdefault(word, len(first_ids)) for word in found])
        text.append(END_ID)
    if len(first_ids) == len(specials):
        raise LanguageModelError("expected sentences to train on, found no word")
    stream = np.frombuffer(text, np.int32)
    counts = np.bincount(stream, minlength=len(first_ids))
    ordinary = list(first_ids)[len(specials) :]
    frequent = sorted(ordinary, key=lambda word: (-counts[first_ids[word]], word))[:vocabulary_size]
    words = (*specials, *frequent)  # the compact file is smaller where the frequent words come first
    new_ids = np.full(len(first_ids), UNKNOWN_ID, np.int32)
    new_ids[[first_ids[word] for word in words]] = np.arange(len(words))
    return words, new_ids[stream]


# --- training --------------------------------------------------------------------------------------------------------


class _Level(NamedTuple):
    """All distinct n-grams of one order, sorted by (parent, word)."""

    parent: np.ndarray  # index of the n-gram without its last word on the level below
    suffix: np.ndarray  # index of the n-gram without its first word on the level below
    word: np.ndarray
    frequency: np.ndarray
    at_start: np.ndarray  # whether its first word is <s>


class _Part(NamedTuple):
    """What a finished model says about one order, sorted by (parent, word)."""

    parent: np.ndarray
    word: np.ndarray
    log_prob: np.ndarray
    backoff: np.ndarray


def train(
    sentences: Iterable[str],
    *,
    order: int = 3,
    min_counts: Sequence[int] = (),
    vocabulary_size: int | None = None,
    prune_threshold: float = 0.0,
) -> LanguageModel:
    """Train an interpolated modified Kneser-Ney model on `sentences`, words separated by spaces.

    Chen and Goodman 1998, "An empirical study of smoothing techniques for language modeling". `min_counts[n - 1]` is how often an
    n-gram must occur to be listed (the last one holds for all higher orders; default 1); the mass of the others goes to the back-off.
    Words beyond the `vocabulary_size` most frequent become <unk>. A `prune_threshold` (1e-9 to 1e-7) adds entropy pruning.
    Raises LanguageModelError for a text or settings that no model can be made from.
    """
    minima = (*min_counts, *[max(min_counts, default=1)] * order)[:order]
    if order < 2 or sorted(minima) != list(minima):
        raise LanguageModelError(f"expected order >= 2 and minimal counts that never fall, found {order} and {minima}")
    words, stream = read_words(sentences, vocabulary_size)
    levels = _count_ngrams(stream, len(words), order)
    logger.info("distinct n-grams by order: %s", [len(level.word) for level in levels])
    listed = [
        np.ones(len(words), bool),
        *[level.frequency >= low for level, low in zip(levels[1:], minima[1:], strict=True)],
    ]
    probs, backoffs = _kneser_ney(levels, listed)
    parts, counts, renumbered = [], [], np.zeros(1, np.int64)
    for level, keep, prob, backoff in zip(levels, listed, probs, backoffs, strict=True):
        parts.append(_Part(renumbered[level.parent[keep]], level.word[keep], np.log(prob[keep]), np.log(backoff[keep])))
        counts.append(level.frequency[keep])
        renumbered = np.cumsum(keep) - 1
    parts[0].log_prob[START_ID] = NEVER
    model = _assemble(words, parts)
    if prune_threshold <= 0:
        return model
    num_events = len(stream) - levels[0].frequency[START_ID]
    histories = np.concatenate([[num_events], *counts[:-1]])  # (M,) how often each context is one
    return prune(model, prune_threshold, history_log_probs=np.log(np.maximum(histories, 1e-9) / num_events))


def _count_ngrams(stream: np.ndarray, num_words: int, order: int) -> list[_Level]:
    """Return the n-grams of each order from 1 in a text of word ids."""
    is_start = stream == START_ID
    indices = np.arange(len(stream), dtype=np.int32)
    position = indices - np.maximum.accumulate(np.where(is_start, indices, 0))  # in its sentence
    words = np.arange(num_words)
    none = np.zeros(num_words, np.int64)
    levels = [_Level(none, none, words, np.bincount(stream, minlength=num_words), words == START_ID)]
    ending_at = stream  # index of the n-gram that ends at each position
    for n in range(2, order + 1):
        ends = indices[position >= n - 1]
        keys = ending_at[ends - 1].astype(np.int64) * num_words + stream[ends]
        distinct, inverse, count = np.unique(keys, return_inverse=True, return_counts=True)
        suffix = np.empty(len(distinct), np.int32)
        suffix[inverse] = ending_at[ends]
        parent = distinct // num_words
        levels.append(_Level(parent, suffix, distinct % num_words, count, levels[-1].at_start[parent]))
        ending_at = np.full(len(stream), -1, np.int32)
        ending_at[ends] = inverse
    return levels


def _kneser_ney(levels: list[_Level], listed: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return each level's probabilities p(w | h) and, of each n-gram as a context, the share of what it leaves to shorter contexts.

    With a(hw) the count on the highest level, below it the number of distinct words seen before hw, and D(a) the discount:

        p(w | h) = (a(hw) - D(a(hw))) / a(h.) + gamma(h) p(w | h'),   gamma(h) = sum over w of D(a(hw)) / a(h.)

    where h' is h without its first word. An unlisted n-gram gives up all its count, not just D.
    """
    num_words = len(levels[0].word)
    probs = [np.full(1, 1 / (num_words - 1))]  # below the words: each alike, but <s>
    backoffs = []
    for n, level in enumerate(levels):
        counts = _adjusted_counts(levels, n)
        taken = np.where(listed[n], _discounts(counts)[np.minimum(counts, 3)], counts)
        totals = np.bincount(level.parent, counts, len(probs[-1]))  # one a context
        given = np.bincount(level.parent, taken, len(probs[-1]))
        gamma = np.divide(given, totals, out=np.ones(len(totals)), where=totals > 0)
        probs.append((counts - taken) / totals[level.parent] + gamma[level.parent] * probs[-1][level.suffix])
        backoffs.append(gamma)
    return probs[1:], [*backoffs[1:], np.ones(len(levels[-1].word))]


def _adjusted_counts(levels: list[_Level], index: int) -> np.ndarray:
    level = levels[index]
    if index == len(levels) - 1:
        return level.frequency
    preceding = np.bincount(levels[index + 1].suffix, minlength=len(level.word))
    at_start = level.frequency if index else 0  # nothing comes before <s>, and <s> itself is not predicted
    return np.where(level.at_start, at_start, preceding)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Return what to take off counts of 0, 1, 2 and more (Chen and Goodman's equation 26)."""
    n1, n2, n3, n4 = (int((counts == c).sum()) for c in (1, 2, 3, 4))
    if min(n1, n2, n3, n4) > 0:
        y = n1 / (n1 + 2 * n2)
        estimated = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        if all(0 <= d <= c for c, d in enumerate(estimated, start=1)):
            return np.array([0, *estimated])
    logger.info("too little text to estimate discounts: %s taken", FALLBACK_DISCOUNTS)
    return np.array([0, *FALLBACK_DISCOUNTS])


def _assemble(words: tuple[str, ...], parts: Sequence[_Part]) -> LanguageModel:
    """Lay the levels out as one trie and link each context to its longest known suffix."""
    starts = np.cumsum([0, 1, *[len(part.word) for part in parts]])
    parents = np.concatenate([start + part.parent for start, part in zip(starts, parts, strict=False)])
    num_contexts = int(starts[-2])
    num_children = np.bincount(parents, minlength=num_contexts)
    model = LanguageModel(
        order=len(parts),
        words=words,
        word=np.concatenate([[0], *[part.word for part in parts]]).astype(np.int32),
        log_prob=np.concatenate([[0], *[part.log_prob for part in parts]]).astype(np.float32),
        backoff=np.concatenate([[0], *[part.backoff for part in parts[:-1]]]).astype(np.float32),
        first_child=(1 + np.concatenate([[0], np.cumsum(num_children)])).astype(np.int32),
        suffix=np.zeros(num_contexts, np.int32),
    )
    for start, end in pairwise(starts[2:-1]):  # bigrams and up
        states = model.suffix[model.parent[start:end]]
        model.suffix[start:end] = model.longest_suffixes(states, model.word[start:end])
    return model


# --- pruning ---------------------------------------------------------------------------------------------------------


def prune(model: LanguageModel, threshold: float, *, history_log_probs: np.ndarray | None = None) -> LanguageModel:
    """Leave out each n-gram without which the perplexity of the model's own text rises by less than the factor 1 + `threshold`.

    Stolcke 1998, "Entropy-based pruning of backoff language models". `history_log_probs` (M,): how probable each context is;
    by default by the model itself, which Kneser-Ney's lower orders estimate badly, so `train` gives counts.
    """
    if history_log_probs is None:
        history_log_probs = _history_log_probs(model)
    keep = np.ones(len(model.word), bool)
    for n in range(model.order, 1, -1):
        nodes = np.arange(model.level_starts[n], model.level_starts[n + 1])
        contexts = model.parent[nodes]
        log_prob = model.log_prob[nodes].astype(np.float64)
        lower = model.score(model.suffix[contexts], model.word[nodes])[0]
        listed_lower = np.bincount(contexts, np.exp(lower), len(model.backoff))
        unlisted = np.maximum(1 - listed_lower, 1e-9)[contexts]  # mass of the other words by the lower order
        old_backoff = model.backoff[contexts]
        rest = np.exp(old_backoff) * unlisted
        new_backoff = np.log((rest + np.exp(log_prob)) / (unlisted + np.exp(lower)))
        loss = np.exp(log_prob) * (log_prob - lower - new_backoff) + rest * (old_backoff - new_backoff)
        is_context = np.bincount(model.parent[keep], minlength=len(model.word))[nodes] > 0
        keep[nodes] = (np.expm1(np.exp(history_log_probs[contexts]) * loss) >= threshold) | is_context
    parts, renumbered = [], np.zeros(1, np.int64)
    for n in range(1, model.order + 1):
        kept = model.level_starts[n] + np.flatnonzero(keep[model.level_starts[n] : model.level_starts[n + 1]])
        parents = renumbered[model.parent[kept] - model.level_starts[n - 1]]
        parts.append(_Part(parents, model.word[kept], model.log_prob[kept], np.zeros(len(kept), np.float32)))
        renumbered = np.cumsum(keep[model.level_starts[n] : model.level_starts[n + 1]]) - 1
    pruned = _assemble(model.words, parts)
    _renormalise(pruned)
    logger.info("n-grams by order: %s, pruned to %s", model.num_ngrams, pruned.num_ngrams)
    return pruned


def reorder(model: LanguageModel, order: np.ndarray) -> LanguageModel:
    """Return the same model with other word ids: order (V,) is the old id of each; those of <unk>, <s> and </s> are the same."""
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    new = np.zeros(len(model.word), np.int64)  # place of each node
    for start, end in pairwise(model.level_starts[1:]):
        keys = new[model.parent[start:end]] * len(order) + rank[model.word[start:end]]
        new[start + np.argsort(keys, kind="stable")] = np.arange(start, end)
    old = np.empty_like(new)
    old[new] = np.arange(len(new))
    contexts = old[: len(model.backoff)]
    return LanguageModel(
        order=model.order,
        words=tuple(model.words[i] for i in order),
        word=rank[model.word[old]].astype(np.int32),
        log_prob=model.log_prob[old],
        backoff=model.backoff[contexts],
        first_child=np.cumsum(np.append(1, np.diff(model.first_child)[contexts]), dtype=np.int32),
        suffix=new[model.suffix[contexts]].astype(np.int32),
    )


def _history_log_probs(model: LanguageModel) -> np.ndarray:
    """Return ln p of each context by the chain rule; a sentence starts as often as one ends."""
    log_probs = np.zeros(len(model.backoff))
    for n in range(1, model.order):
        level = slice(model.level_starts[n], model.level_starts[n + 1])
        log_probs[level] = log_probs[model.parent[level]] + model.log_prob[level]
        if n == 1:
            log_probs[model.start_state] = model.log_prob[1 + END_ID]
    return log_probs


def _renormalise(model: LanguageModel) -> None:
    """Set each context's back-off weight so that its probabilities sum to one."""
    for n in range(2, model.order + 1):
        nodes = np.arange(model.level_starts[n], model.level_starts[n + 1])
        contexts = model.parent[nodes] - model.level_starts[n - 1]
        size = model.level_starts[n] - model.level_starts[n - 1]
        lower = model.score(model.suffix[model.parent[nodes]], model.word[nodes])[0]
        listed = np.bincount(contexts, np.exp(model.log_prob[nodes].astype(np.float64)), size)
        listed_lower = np.bincount(contexts, np.exp(lower), size)
        weights = np.log(np.maximum(1 - listed, 1e-9) / np.maximum(1 - listed_lower, 1e-9))
        model.backoff[model.level_starts[n - 1] : model.level_starts[n]] = np.where(listed > 0, weights, 0)


# --- files -----------------------------------------------------------------------------------------------------------


def load(path: str | Path) -> LanguageModel:
    """Read a language model file: compact, or ARPA (plain, .gz or .xz). Raises LanguageModelError naming what is wrong with it."""
    path = Path(path)
    if not path.is_file():
        raise LanguageModelError(f"{path}: no such language model file")
    with path.open("rb") as file:
        start = file.read(9)
    is_compact = start[8:] == b"{"  # safetensors: the length of the header, then the header in JSON
    return _load_compact(path) if is_compact else read_arpa(path)


def save(model: LanguageModel, path: str | Path) -> None:
    """Write `model` as a compact file: its arrays as safetensors, its numbers rounded to the nearest of NUM_CODES a level.

    Beside the words and the links of n-grams of order 3 and more to their suffixes, which those of shorter ones show, it holds

        is_context (M / 8,)       a bit a node: whether it has children or a back-off weight
        num_children, backoff     of these nodes
        gap, log_prob (N,)        of each node; the gap is its word less that of the sibling before it
    """
    num_children = np.diff(model.first_child)
    is_context = (num_children > 0) | (model.backoff != 0)
    gap = np.diff(model.word, prepend=0)
    first = model.first_child[:-1][num_children > 0]
    gap[first] = model.word[first]
    context_starts = np.searchsorted(np.flatnonzero(is_context), model.level_starts[:-1])
    tensors = {
        "words": np.frombuffer("\n".join(model.words).encode(), np.uint8),
        "is_context": np.packbits(is_context),
        **_pack("num_children", num_children[is_context]),
        **_pack("gap", gap),
        **_to_codes("log_prob", model.log_prob, model.level_starts),
        **_to_codes("backoff", model.backoff[is_context], context_starts),
        "suffix": model.suffix[model.level_starts[min(model.order, 3)] :],
    }
    write_atomically(path, to_bytes(tensors, {"format": FORMAT, "version": FORMAT_VERSION}))


def _load_compact(path: Path) -> LanguageModel:
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError, AttributeError) as error:  # the last two: of kinds that numpy lacks
        raise LanguageModelError(
            f"{path}: expected a compact language model, found a damaged file ({error})"
        ) from error
    version = metadata.get("version")
    if metadata.get("format") != FORMAT or version not in ("1", FORMAT_VERSION):
        raise LanguageModelError(
            f"{path}: expected a language model of format {FORMAT!r} version 1 or {FORMAT_VERSION}, found {metadata};"
            " it is another kind of file or from a newer version of this package"
        )
    try:
        words = tuple(tensors["words"].tobytes().decode().split("\n"))
        model = _read_version_1(words, tensors, int(metadata["order"])) if version == "1" else _read(words, tensors)
        bigrams, trigrams = model.level_starts[[min(model.order, 2), min(model.order, 3)]]
        np.add(model.word[bigrams:trigrams], 1, out=model.suffix[bigrams:trigrams])
        model.suffix[trigrams:] = tensors["suffix"]
        sound = (
            words[:3] == (UNKNOWN, START, END)
            and model.order > 1
            and model.level_starts[2] == 1 + len(words)  # so that each word continues the empty context
            and (model.first_child[1:] >= model.first_child[:-1]).all()
            and model.word.shape == model.log_prob.shape == (model.first_child[-1],)
            and model.suffix.shape == model.backoff.shape == (model.level_starts[-2],)
            and np.array_equal(model.word[1 : 1 + len(words)], np.arange(len(words)))
            and 0 <= model.word.min() <= model.word.max() < len(words)
            and tensors["suffix"].min(initial=0) >= 0
            and (tensors["suffix"] < np.arange(trigrams, model.level_starts[-2])).all()  # so that following it ends
        )
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise LanguageModelError(
            f"{path}: expected a compact language model, found arrays that do not fit ({error})"
        ) from error
    if not sound:
        raise LanguageModelError(f"{path}: expected a compact language model, found arrays that contradict each other")
    return model


def _read(words: tuple[str, ...], tensors: dict[str, np.ndarray]) -> LanguageModel:
    """Return the model that `save` made the arrays of, as yet without suffixes. In place where it can: new memory takes longest."""
    is_context = np.unpackbits(tensors["is_context"]).view(bool)  # and up to 7 nodes too many
    contexts = np.flatnonzero(is_context)
    first_child = np.zeros(1 + len(is_context), np.int32)
    first_child[0], first_child[1 + contexts] = 1, _unpack("num_children", tensors)
    np.cumsum(first_child, out=first_child)
    order = len(tensors["backoff_values"])
    starts = _level_starts(first_child, order)
    word = _unpack("gap", tensors)
    first = first_child[contexts]
    first = first[np.diff(first, append=len(word)) > 0]
    word[first[1:]] -= np.diff(np.cumsum(word, dtype=np.int32)[first - 1])  # less the last word of the siblings before
    backoff = np.zeros(len(is_context), np.float32)
    backoff[contexts] = _from_codes("backoff", tensors, np.searchsorted(contexts, starts[:-1]))
    return LanguageModel(
        order=order,
        words=words,
        word=np.cumsum(word, out=word),
        log_prob=_from_codes("log_prob", tensors, starts),
        backoff=backoff[: starts[-2]],
        first_child=first_child[: 1 + starts[-2]],
        suffix=np.zeros(len(backoff), np.int32)[: starts[-2]],
    )


def _read_version_1(words: tuple[str, ...], tensors: dict[str, np.ndarray], order: int) -> LanguageModel:
    log_prob, backoff = (
        np.multiply(tensors[name], np.float32(1 / STEPS_PER_NAT), dtype=np.float32) for name in ("log_prob", "backoff")
    )
    return LanguageModel(
        order=order,
        words=words,
        word=tensors["word"].astype(np.int32),
        log_prob=log_prob,
        backoff=backoff,
        first_child=np.cumsum(np.append(1, tensors["num_children"]), dtype=np.int32),
        suffix=np.zeros(len(backoff), np.int32),
    )


def _level_starts(first_child: np.ndarray, order: int) -> np.ndarray:
    starts = [0, 1]
    for _ in range(order):
        starts.append(int(first_child[starts[-1]]))
    return np.array(starts)


def _pack(name: str, numbers: np.ndarray) -> dict[str, np.ndarray]:
    """Return numbers >= 0, most of them small, in 8 bits; the largest number that fits stands for one that 16 bits hold, or 32."""
    tensors = {}
    for kind in PACKED_TYPES:
        limit = np.iinfo(kind).max
        tensors[f"{name}_{kind.__name__}"] = np.minimum(numbers, limit).astype(kind)
        numbers = numbers[numbers >= limit]
    return tensors


def _unpack(name: str, tensors: dict[str, np.ndarray]) -> np.ndarray:
    numbers = np.zeros(0, np.int32)
    for kind in reversed(PACKED_TYPES):
        packed = tensors[f"{name}_{kind.__name__}"]
        wide = packed.astype(np.int32)
        wide[np.flatnonzero(packed == np.iinfo(packed.dtype).max)] = numbers
        numbers = wide
    if numbers.min(initial=0) < 0:
        raise ValueError(f"negative numbers in {name}")
    return numbers


def _to_codes(name: str, numbers: np.ndarray, starts: np.ndarray) -> dict[str, np.ndarray]:
    """Return each level's NUM_CODES values and, of each number, which it is nearest to."""
    levels = [numbers[start:end] for start, end in pairwise(starts)]
    values = [_codebook(level) for level in levels]
    codes = [np.searchsorted((v[1:] + v[:-1]) / 2, level) for v, level in zip(values, levels, strict=True)]
    return {name: np.concatenate(codes).astype(np.uint8), f"{name}_values": np.array(values, np.float32)}


def _from_codes(name: str, tensors: dict[str, np.ndarray], starts: np.ndarray) -> np.ndarray:
    codes, values = tensors[name], tensors[f"{name}_values"].astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"numbers in {name} that are not finite")
    numbers = np.zeros(codes.shape, np.float32)
    for level, (start, end) in zip(values, pairwise(starts), strict=True):
        for chunk in range(start, end, CHUNK_SIZE):
            part = slice(chunk, min(chunk + CHUNK_SIZE, end))
            np.take(level, codes[part], out=numbers[part], mode="clip")  # the other modes write to a buffer first
    return numbers


def _codebook(numbers: np.ndarray) -> np.ndarray:
    """Return NUM_CODES values, rising, to round `numbers` to with little square error: all that occur, where they are no more.

    The cell with the greatest error is split at its mean, again and again; of each cell the mean is taken.
    """
    ordered = np.sort(numbers).astype(np.float64)
    totals, squares = (np.append(0, np.cumsum(x)) for x in (ordered, ordered**2))
    edges, means = np.array([0, len(ordered)]), np.array([ordered.mean() if len(ordered) else 0.0])
    while len(means) < NUM_CODES:
        worst = int(np.argmax(np.diff(squares[edges]) - np.diff(edges) * means**2))
        edge = np.searchsorted(ordered, means[worst])
        if not edges[worst] < edge < edges[worst + 1]:
            break
        edges = np.insert(edges, worst + 1, edge)
        means = np.diff(totals[edges]) / np.diff(edges)
    return np.pad(means, (0, NUM_CODES - len(means)), mode="edge")


def write_arpa(model: LanguageModel, path: str | Path) -> None:
    """Write `model` in the ARPA format, gzipped if the name ends in .gz."""
    with replacing(path) as temporary:
        opener = gzip.open if Path(path).suffix == ".gz" else open
        with opener(temporary, "wt", encoding="utf-8") as file:
            file.write("\\data\\\n")
            file.writelines(f"ngram {n}={size}\n" for n, size in enumerate(model.num_ngrams, start=1))
            texts = [""]
            for n in range(1, model.order + 1):
                nodes = slice(model.level_starts[n], model.level_starts[n + 1])
                contexts = (model.parent[nodes] - model.level_starts[n - 1]).tolist()
                texts = [
                    f"{texts[c]} {model.words[w]}" for c, w in zip(contexts, model.word[nodes].tolist(), strict=True)
                ]
                log_probs = (model.log_prob[nodes] / LN_10).tolist()
                file.write(f"\n\\{n}-grams:\n")
                if n == model.order:
                    file.writelines(f"{p:.7g}\t{text[1:]}\n" for p, text in zip(log_probs, texts, strict=True))
                else:
                    backoffs = (model.backoff[nodes] / LN_10).tolist()
                    rows = zip(log_probs, texts, backoffs, strict=True)
                    file.writelines(f"{p:.7g}\t{text[1:]}\t{b:.7g}\n" for p, text, b in rows)
            file.write("\n\\end\\\n")


def read_arpa(path: str | Path) -> LanguageModel:
    """Read an ARPA file, plain, .gz or .xz. Raises LanguageModelError naming file and line.

    A file without <unk> gets one that is all but impossible, as in KenLM.
    """
    path = Path(path)
    try:
        with _open_text(path) as lines:
            return _ArpaReader(path, lines).read()
    except (UnicodeDecodeError, EOFError, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise LanguageModelError(f"{path}: expected an ARPA file, found damaged data ({error})") from error


class _ArpaReader:
    """Reads one ARPA file, counting its lines."""

    def __init__(self, path: Path, lines: Iterable[str]) -> None:
        self.path = path
        self.lines = iter(lines)
        self.number = 0

    def next_line(self, expected: str) -> str:
        """Return the next line that is not empty."""
        for line in self.lines:
            self.number += 1
            if line := line.strip():
                return line
        raise self.error(expected, "the end of the file")

    def error(self, expected: str, found: str, line: int | None = None) -> LanguageModelError:
        return LanguageModelError(f"{self.path}:{line or self.number}: expected {expected}, found {found}")

    def read(self) -> LanguageModel:
        sizes = self._read_header()
        order = len(sizes)
        ids: dict[str, int] = {UNKNOWN: UNKNOWN_ID, START: START_ID, END: END_ID}
        levels: list[np.ndarray] = []  # n-grams of each order as keys (parent * V + word), sorted
        parts = []
        for n, size in enumerate(sizes, start=1):
            if n > 1:
                self._expect(f"\\{n}-grams:")
            rows, log_probs, backoffs, first_line = self._read_section(n, size, ids)
            if n == 1:
                rows, log_probs, backoffs = self._complete(rows, log_probs, backoffs, ids, first_line)
            parents = np.zeros(len(rows), np.int64)
            for depth in range(n - 1):
                parents = _find(levels[depth], parents * len(ids) + rows[:, depth])
                missing = np.flatnonzero(parents < 0)
                if len(missing):
                    context = " ".join(list(ids)[w] for w in rows[missing[0], : depth + 1])
                    raise self.error(f"the context {context!r} to be listed too", "none", first_line + int(missing[0]))
            keys = parents * len(ids) + rows[:, -1]
            sorting = np.argsort(keys)
            levels.append(keys[sorting])
            twice = np.flatnonzero(np.diff(levels[-1]) == 0)
            if len(twice):
                raise self.error("each n-gram once", "one twice", first_line + int(sorting[twice + 1].max()))
            parts.append(
                _Part(parents[sorting], rows[sorting, -1], log_probs[sorting] * LN_10, backoffs[sorting] * LN_10)
            )
        self._expect("\\end\\")
        for _ in self.lines:  # a packed file's checksum stands at its end
            pass
        if order < 2:
            raise self.error("a model of order 2 or more", f"order {order}")
        return _assemble(tuple(ids), parts)

    def _expect(self, expected: str) -> None:
        found = self.next_line(expected)
        if found != expected:
            raise self.error(expected, repr(found[:60]))

    def _read_header(self) -> list[int]:
        self._expect("\\data\\")
        sizes: list[int] = []
        while (line := self.next_line("ngram 1=COUNT")) != "\\1-grams:":
            name, _, size = line.partition("=")
            if name.split() != ["ngram", str(len(sizes) + 1)] or not size.strip().isdigit():
                raise self.error(f"'ngram {len(sizes) + 1}=COUNT' or '\\1-grams:'", repr(line[:60]))
            sizes.append(int(size))
        if not sizes:
            raise self.error("ngram 1=COUNT", repr(line))
        return sizes

    def _read_section(self, n: int, size: int, ids: dict[str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """Return word ids (size, n), log10 probabilities, log10 back-off weights and the line of the first."""
        words, log_probs, backoffs = array("i"), array("d"), array("d")
        first_line = self.number + 1
        for _ in range(size):
            line = next(self.lines, "")
            self.number += 1
            fields = line.split()
            if not n + 1 <= len(fields) <= n + 2:
                raise self.error(
                    f"one of {size} lines 'log10 probability, {n} word(s), back-off weight'", repr(line.strip()[:60])
                )
            try:
                log_probs.append(float(fields[0]))
                backoffs.append(float(fields[n + 1]) if len(fields) == n + 2 else 0.0)
                words.extend(
                    [ids.setdefault(fields[1], len(ids))] if n == 1 else [ids[word] for word in fields[1 : n + 1]]
                )
            except ValueError:
                raise self.error("numbers", repr(line.strip()[:60])) from None
            except KeyError as error:
                raise self.error("words that the 1-grams list", error.args[0]) from None
        numbers = np.array(log_probs), np.array(backoffs)
        bad = np.flatnonzero(~(numbers[0] <= 1e-3) | ~np.isfinite(numbers[1]))
        if len(bad):
            raise self.error(
                "a log10 probability <= 0 and a finite weight", str(numbers[0][bad[0]]), first_line + int(bad[0])
            )
        return np.array(words).reshape(size, n), *numbers, first_line

    def _complete(
        self, rows: np.ndarray, log_probs: np.ndarray, backoffs: np.ndarray, ids: dict[str, int], first_line: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Add <unk> where the 1-grams lack it."""
        listed = set(rows[:, 0].tolist())
        for word in (START, END):
            if ids[word] not in listed:
                raise self.error(f"{word} among the 1-grams", "none", first_line)
        if UNKNOWN_ID in listed:
            return rows, log_probs, backoffs
        logger.info("%s has no %s: it gets a log10 probability of -100", self.path, UNKNOWN)
        return np.vstack([rows, [[UNKNOWN_ID]]]), np.append(log_probs, -100.0), np.append(backoffs, 0.0)


def _find(sorted_keys: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return the index of each of `keys` in `sorted_keys`, -1 where it is not there."""
    if not len(sorted_keys):
        return np.full(np.shape(keys), -1)
    found = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    indices: np.ndarray = np.where(sorted_keys[found] == keys, found, -1)
    return indices


def _open_text(path: Path) -> io.TextIOBase:
    """Open a text file for reading, unpacking .gz and .xz by their first bytes."""
    try:
        with path.open("rb") as file:
            magic = file.read(6)
    except OSError as error:
        raise LanguageModelError(f"{path}: cannot be read ({error.strerror})") from error
    opener = gzip.open if magic[:2] == b"\x1f\x8b" else lzma.open if magic == b"\xfd7zXZ\x00" else open
    return opener(path, "rt", encoding="utf-8")
