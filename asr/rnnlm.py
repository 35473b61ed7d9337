"""A recurrent word language model (a GRU), which judges whole texts together with an n-gram model; its file.

Knows words and numbers; nothing of audio, acoustic tokens, decoding or torch. All log-probabilities are natural logarithms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from asr import tiles
from asr.lm import END, START, UNKNOWN, UNKNOWN_ID, LanguageModel, LanguageModelError
from asr.storage import write_atomically
from asr.tiles import Weights

FORMAT, FORMAT_VERSION = "asr recurrent lm", "1"
INT8_STEPS = 127  # each way, of the embedding in a file
TYPES = {  # of the arrays in a file
    "words": np.uint8, "embedding": np.int8, "scale": np.float32, "bias": np.float32, "input_weight": np.float16, "recurrent_weight": np.float16,
    "input_bias": np.float32, "recurrent_bias": np.float32, "projection": np.float16, "projection_bias": np.float32,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class RecurrentLanguageModel:
    """A one-layer GRU (Cho et al. 2014) over V words, with E numbers a word and a state h of H; all arrays float32.

        ln p(w | h) = embedding[w] . (projection h + projection_bias) + bias[w]

    Training has made the sum of p over the words about 1 (Devlin et al. 2014, "Fast and robust neural network joint models for
    statistical machine translation"), so it is never computed. The rows of the GRU's weights are those of the gates r, z and n one
    after the other, as in torch's nn.GRU.
    """

    words: tuple[str, ...]  # words[0:3] are <unk>, <s>, </s>
    embedding: np.ndarray  # (V, E)
    bias: np.ndarray  # (V,)
    input_weight: np.ndarray  # (3 H, E)
    recurrent_weight: np.ndarray  # (3 H, H)
    input_bias: np.ndarray  # (3 H,)
    recurrent_bias: np.ndarray  # (3 H,)
    projection: np.ndarray  # (E, H)
    projection_bias: np.ndarray  # (E,)
    as_bytes: bool = False  # the products are of numbers rounded to 8 bits

    @cached_property
    def word_ids(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.words)}

    @cached_property
    def _packed(self) -> list[Weights]:
        """The weights and biases of input, state and projection as asr/layers.py reads them."""
        pairs = ((self.input_weight, self.input_bias), (self.recurrent_weight, self.recurrent_bias), (self.projection, self.projection_bias))
        return [tiles.pack(weights.T, bias, as_bytes=self.as_bytes) for weights, bias in pairs]

    def interpolate(self, texts: Sequence[str], lm: LanguageModel, weight: float, *, history: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return ln p of each text, its end included, by the mixture of both models and by the n-gram model alone: (num texts,) each.

        A word's probability is weight * this model's + (1 - weight) * the n-gram model's; that of a word which this model does not
        know is the n-gram model's. What texts have in common at their beginnings is computed once. history: so many words that texts have
        in common at the same place are enough for what follows to be computed once, with the beginning of the first of them (Liu et al. 2014,
        "Efficient lattice rescoring using recurrent neural network language models"); None, all. Raises LanguageModelError for a weight outside 0 to 1.
        """
        if not 0 <= weight <= 1:
            raise LanguageModelError(f"expected a weight of the recurrent language model from 0 to 1, found {weight!r}")
        tree = _grow(texts, history)
        ids = np.array([self.word_ids.get(word, UNKNOWN_ID) for word in tree.words])
        ngram = _ngram_log_probs(tree, lm)
        with np.errstate(divide="ignore"):  # of a weight of 0 or 1
            mixed = np.logaddexp(np.log(weight) + self._log_probs(tree, ids), np.log1p(-weight) + ngram)
        log_probs = np.stack([np.where(ids[tree.word] == UNKNOWN_ID, ngram, mixed), ngram])  # (2, N)
        log_probs[:, 0] = 0
        mixed_totals, ngram_totals = log_probs[:, tree.paths].sum(axis=2)
        return mixed_totals, ngram_totals

    def _log_probs(self, tree: _Tree, ids: np.ndarray) -> np.ndarray:
        """Return ln p of each node's word after its parent: (N,). ids: of the tree's words here."""
        embedded = self.embedding[ids]
        of_input, recurrent, projection = self._packed
        inputs = _product(embedded, of_input)  # (U, 3 H or more)
        levels = [np.zeros(1, np.int64), *(level[tree.word[level] != len(ids) - 1] for level in tree.levels)]  # nothing follows an end
        starts, widest = np.cumsum([0, *map(len, levels)]), max(map(len, levels))
        size = recurrent.depth
        states = np.zeros((len(tree.word), size), np.float32)
        rows, sums = np.empty(widest * size, np.float32), np.empty((widest, inputs.shape[1]), np.float32)
        _compiled_tree()(starts, np.concatenate(levels), tree.parent, tree.word, inputs, recurrent, tiles.memory(widest, recurrent), rows, sums, states)
        expected = _product(states, projection)[:, : embedded.shape[1]]  # (N, E)
        scores: np.ndarray = np.einsum("ne,ne->n", expected[tree.parent], embedded[tree.word]) + self.bias[ids[tree.word]]
        return scores


class _Tree(NamedTuple):
    """What texts begin with, each beginning once: N nodes, first the empty beginning, then those of one word, of two and so on."""

    words: list[str]  # <s>, the U - 2 distinct words of the texts, and </s>
    word: np.ndarray  # (N,) the last word of each node, as an index; of the empty beginning it is <s>
    parent: np.ndarray  # (N,) the node without its last word
    levels: list[np.ndarray]  # the nodes of one word, of two, ...
    paths: np.ndarray  # (num texts, L) the nodes of each text's words and </s>; behind them the empty beginning


def _grow(texts: Sequence[str], history: int | None = None) -> _Tree:
    """history: so many last words make a node, whose parent is that of the first text with it; None, all."""
    indices = {START: 0}
    rows = [[indices.setdefault(word, len(indices)) for word in text.split()] for text in texts]
    num_words = len(indices) + 1
    lengths = np.array([len(row) + 1 for row in rows], np.int64)
    table = np.full((len(rows), lengths.max(initial=0)), num_words - 1)
    for row, found in zip(table, rows, strict=True):
        row[: len(found)] = found
    paths = np.zeros(table.shape, np.int64)
    word, parent, starts = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)], [1]
    for position in range(table.shape[1]):
        alive = np.flatnonzero(lengths > position)
        before = paths[alive, position - 1] if position else np.zeros(len(alive), np.int64)
        alike = before if history is None else _hash(table[alive, max(0, position + 1 - history) : position])
        _, first, inverse = np.unique(alike * num_words + table[alive, position], return_index=True, return_inverse=True)
        paths[alive, position] = starts[-1] + inverse
        word.append(table[alive[first], position])
        parent.append(before[first])
        starts.append(starts[-1] + len(first))
    levels = [np.arange(start, end) for start, end in pairwise(starts)]
    return _Tree([*indices, END], np.concatenate(word), np.concatenate(parent), levels, paths)


def _hash(rows: np.ndarray) -> np.ndarray:
    """Return a number of each row, the same where rows are."""
    numbers = np.zeros(len(rows), np.int64)
    for column in rows.T:
        numbers = numbers * 0x5851F42D4C957F2D + column  # modulo 2^64
    return numbers


def _ngram_log_probs(tree: _Tree, lm: LanguageModel) -> np.ndarray:
    """Return ln p of each node's word after its parent: (N,)."""
    ids = np.array([lm.word_ids.get(word, UNKNOWN_ID) for word in tree.words])
    log_probs, states = np.zeros(len(tree.word)), np.zeros(len(tree.word), np.int64)
    ngrams = _Ngrams(lm.first_child, lm.word, lm.log_prob, lm.backoff, lm.suffix)
    _compiled_scores()(ngrams, tree.parent, ids[tree.word], log_probs, states)
    return log_probs


class _Ngrams(NamedTuple):
    """The fields of asr.search.Scorer that score words."""

    lm_first_child: np.ndarray
    lm_word: np.ndarray
    lm_log_prob: np.ndarray
    lm_backoff: np.ndarray
    lm_suffix: np.ndarray


def _product(a: np.ndarray, weights: Weights) -> np.ndarray:
    """Return a @ weights + their bias on one thread; numpy's product would wake the others, which other texts need."""
    out = np.empty((len(a), len(weights.bias)), np.float32)
    tiles.multiply(a.ravel(), a.shape[1], weights, out)
    return out


@cache
def _compiled_tree() -> Callable[..., int]:
    from asr import layers, native

    integers, numbers, matrix = np.zeros(1, np.int64), np.zeros(1, np.float32), np.zeros((1, 1), np.float32)
    weights = tiles.pack(matrix, numbers)
    example = (integers, integers, integers, integers, matrix, weights, tiles.memory(1, weights), numbers, matrix, matrix)
    return native.load(layers, "recur_tree", example, fused=True)


@cache
def _compiled_scores() -> Callable[..., int]:
    from asr import native, search

    integers, numbers, indices = np.zeros(1, np.int32), np.zeros(1, np.float32), np.zeros(1, np.int64)
    return native.load(search, "score_tree", (_Ngrams(integers, integers, numbers, numbers, integers), indices, indices, np.zeros(1), indices))


# --- files -----------------------------------------------------------------------------------------------------------


def save(model: RecurrentLanguageModel, path: str | Path) -> None:
    """Write `model` as safetensors: the embedding in 8 bits with a scale a word, the other matrices in 16.

    Raises LanguageModelError where a number is not finite, or too large for 16 bits.
    """
    largest = np.abs(model.embedding).max(axis=1)
    scale = np.where(largest > 0, largest, 1).astype(np.float32) / INT8_STEPS
    arrays = {
        "words": np.frombuffer("\n".join(model.words).encode(), np.uint8),
        "embedding": np.rint(model.embedding / scale[:, None]),
        "scale": scale,
        **{name: getattr(model, name) for name in TYPES.keys() - {"words", "embedding", "scale"}},
    }
    with np.errstate(over="ignore", invalid="ignore"):
        tensors = {name: np.ascontiguousarray(arrays[name], kind) for name, kind in TYPES.items()}
    infinite = [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]
    if infinite:
        raise LanguageModelError(f"{path}: not written, as {', '.join(infinite)} would have numbers that are not finite; train at a lower learning rate")
    write_atomically(path, to_bytes(tensors, {"format": FORMAT, "version": FORMAT_VERSION}))


def is_recurrent(path: str | Path) -> bool:
    """Return whether a file says that it is what `save` writes."""
    try:
        with safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (SafetensorError, OSError):
        return False


def load(path: str | Path, *, as_bytes: bool = False) -> RecurrentLanguageModel:
    """Read what `save` wrote. as_bytes: its products are to be of numbers rounded to 8 bits. Raises LanguageModelError naming what is wrong with the file."""
    path = Path(path)
    if not path.is_file():
        raise LanguageModelError(f"{path}: no such recurrent language model file")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, AttributeError) as error:  # the last two: of kinds that numpy lacks
        raise LanguageModelError(f"{path}: expected a recurrent language model, found a damaged file ({error})") from error
    if metadata.get("format") != FORMAT or metadata.get("version") != FORMAT_VERSION:
        raise LanguageModelError(
            f"{path}: expected a language model of format {FORMAT!r} version {FORMAT_VERSION}, found {metadata};"
            " it is another kind of file or from a newer version of this package"
        )
    try:
        _check(tensors)
        words = tuple(tensors.pop("words").tobytes().decode().split("\n"))
        if words[:3] != (UNKNOWN, START, END) or len(words) != len(tensors["embedding"]) or len(set(words)) < len(words):
            raise ValueError(f"{len(words)} words from {words[:3]} on for {len(tensors['embedding'])} embeddings of {UNKNOWN}, {START}, {END} and others")
    except (KeyError, ValueError, IndexError) as error:
        raise LanguageModelError(f"{path}: expected a recurrent language model, found arrays that do not fit ({error})") from error
    arrays = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    arrays["embedding"] *= arrays.pop("scale")[:, None]
    return RecurrentLanguageModel(words, **arrays, as_bytes=as_bytes)


def _check(tensors: dict[str, np.ndarray]) -> None:
    """Raise KeyError, IndexError or ValueError where a file's arrays do not make a model."""
    (size, width), hidden = tensors["embedding"].shape, tensors["projection"].shape[1]
    shapes = {
        "words": tensors["words"].shape, "embedding": (size, width), "scale": (size,), "bias": (size,), "input_weight": (3 * hidden, width),
        "recurrent_weight": (3 * hidden, hidden), "input_bias": (3 * hidden,), "recurrent_bias": (3 * hidden,), "projection": (width, hidden),
        "projection_bias": (width,),
    }  # fmt: skip
    if tensors.keys() != shapes.keys():
        raise ValueError(f"missing or unknown {', '.join(sorted(tensors.keys() ^ shapes.keys()))}")
    for name, tensor in tensors.items():
        if tensor.shape != shapes[name] or tensor.dtype != TYPES[name]:
            raise ValueError(f"{name}: {tensor.dtype} {tensor.shape} instead of {np.dtype(TYPES[name])} {shapes[name]}")
        if not np.isfinite(tensor).all():
            raise ValueError(f"{name}: numbers that are not finite")
