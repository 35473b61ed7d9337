"""How a word sounds that no dictionary lists: a joint-sequence n-gram model of letters and sounds.

Knows words and pronunciations, one character a sound; not which letters and sounds there are, nothing of audio or dictionaries.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np

from asr.lexicon import Lexicon
from asr.lm import END_ID, LanguageModel, load, train

MAX_SOUNDS = 2  # of one letter: x is ks; in sh the s is S and the h is silent
NUM_ITERATIONS = 10
PRUNE_THRESHOLD = 3e-7  # as asr.lm.train has it
BEAM_SIZE = 16

Key = TypeVar("Key", bound=Hashable)

logger = logging.getLogger(__name__)


class G2PError(ValueError):
    """A word that cannot be pronounced, or a dictionary that cannot be learned from."""


def train_g2p(entries: Iterable[tuple[str, str]], *, order: int = 5) -> LanguageModel:
    """Train an n-gram model of `order` on words and their pronunciations; a word may come more than once.

    Bisani and Ney 2008, "Joint-sequence models for grapheme-to-phoneme conversion". Its words are graphones: one letter with its 0
    to MAX_SOUNDS sounds, written "x:ks"; its sentences are the entries so cut up. Entries with too many sounds for their letters
    (www) are left out, and logged. Raises G2PError if a word or pronunciation is empty or has white space in it, or none is left.
    """
    by_lengths: dict[tuple[int, int], list[tuple[str, str]]] = defaultdict(list)
    for word, pronunciation in entries:
        if not word or not pronunciation or len((word + pronunciation).split()) != 1:
            raise G2PError(f"expected a word and its sounds without white space, found {word!r} and {pronunciation!r}")
        by_lengths[len(word), len(pronunciation)].append((word, pronunciation))
    num_entries = sum(map(len, by_lengths.values()))
    sentences = _align(list(by_lengths.values()))
    logger.info("%d of %d entries aligned, the others have too many sounds", len(sentences), num_entries)
    if not sentences:
        raise G2PError(f"expected words with at most {MAX_SOUNDS} sounds a letter, found none in {num_entries} entries")
    return train(sentences, order=order, prune_threshold=PRUNE_THRESHOLD)


def pronounce(model: LanguageModel, word: str, *, num_best: int = 1) -> list[str]:
    """Return the `num_best` most probable pronunciations of `word`, the best first; fewer where the search meets no more.

    A pronunciation is as probable as the alignments that the beam holds of it together. Raises G2PError for an empty word, for
    letters the model has never seen, and for a word of letters that are only ever silent.
    """
    graphones: dict[str, list[int]] = defaultdict(list)
    for index, graphone in enumerate(model.words):
        if graphone[1:2] == ":":
            graphones[graphone[0]].append(index)
    unseen = sorted(set(word) - graphones.keys())
    if not word or unseen:
        found = ", ".join(map(repr, unseen)) or "none"
        raise G2PError(f"the word {word!r}: expected letters that the model was trained on, found {found}")
    beam_size = max(BEAM_SIZE, 2 * num_best)
    beam = {("", model.start_state): 0.0}  # ln p by sounds so far and state of the model
    for letter in word:
        log_probs, states = model.score(np.array([[state] for _, state in beam]), np.array(graphones[letter]))
        log_probs += np.array(list(beam.values()))[:, None]
        sounds = [before + model.words[index][2:] for before, _ in beam for index in graphones[letter]]
        longer = zip(sounds, states.ravel().tolist(), strict=True)
        beam = dict(_best_first(longer, log_probs.ravel())[:beam_size])
    ends = model.score(np.array([state for _, state in beam]), END_ID)[0] + np.array(list(beam.values()))
    pronunciations = [sounds for sounds, _ in _best_first((sounds for sounds, _ in beam), ends) if sounds]
    if not pronunciations:
        raise G2PError(f"the word {word!r}: expected letters that have a sound, found only silent ones")
    return pronunciations[:num_best]


def complete(lexicon: Lexicon, words: Iterable[str], path: Path) -> Lexicon:
    """Return the lexicon with the most probable pronunciation of each of `words` that it lacks by the model in the file at `path`, if there is one.

    Raises G2PError and LanguageModelError.
    """
    missing = lexicon.missing(" ".join(words))
    if not missing or not path.exists():
        return lexicon
    model = load(path)
    logger.info("%d words that the lexicon lacks are pronounced by rule, such as %s", len(missing), ", ".join(missing[:5]))
    return Lexicon((*lexicon.words, *missing), (*lexicon.pronunciations, *(pronounce(model, word)[0] for word in missing)))


def _best_first(keys: Iterable[Key], log_probs: np.ndarray) -> list[tuple[Key, float]]:
    """Add up the probabilities of equal keys, and sort."""
    totals: dict[Key, float] = {}
    for key, log_prob in zip(keys, log_probs.tolist(), strict=True):
        totals[key] = float(np.logaddexp(totals[key], log_prob)) if key in totals else log_prob
    return sorted(totals.items(), key=lambda item: item[1], reverse=True)


# --- alignment -------------------------------------------------------------------------------------------------------

# The entries are taken in groups: B entries with n letters and m sounds each. Their `cells` (n, 1 + MAX_SOUNDS, m + 1, B) say where
# the table of p(sounds | letter), flat, has the i-th letter with the d sounds before place j.


def _align(groups: list[list[tuple[str, str]]]) -> list[str]:
    """Cut each entry into graphones, by the probabilities p(sounds | letter) that make all entries most probable (EM)."""
    letters: dict[str, int] = {}
    spans: dict[str, int] = {"none": 0}  # the spans that would begin before the first sound
    indices = [_indices(entries, letters, spans) for entries in groups]
    cells = [rows[:, None, None] * len(spans) + columns for rows, columns in indices]
    table = np.full((len(letters), len(spans)), 1 / (1 + MAX_SOUNDS))
    table[:, 0] = 0
    for _ in range(NUM_ITERATIONS):
        counts = np.zeros(table.size)
        for group in cells:
            _count(group, table.ravel(), counts)
        table = counts.reshape(table.shape)
        table /= np.maximum(table.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    return [
        sentence
        for entries, group in zip(groups, cells, strict=True)
        for sentence in _cut(entries, group, table.ravel())
    ]


def _indices(
    entries: list[tuple[str, str]], letters: dict[str, int], spans: dict[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the table's row of each letter (n, B) and the column of each span of sounds (1 + MAX_SOUNDS, m + 1, B)."""
    rows = [[letters.setdefault(letter, len(letters)) for letter in word] for word, _ in entries]
    columns = [
        [
            [spans.setdefault(sounds[j - d : j], len(spans)) if j >= d else 0 for j in range(len(sounds) + 1)]
            for d in range(1 + MAX_SOUNDS)
        ]
        for _, sounds in entries
    ]
    return np.array(rows, np.int32).T, np.array(columns, np.int32).transpose(1, 2, 0)


def _forward(cells: np.ndarray, table: np.ndarray, combine: np.ufunc) -> np.ndarray:
    """Return the probability that the first i letters make the first j sounds (n + 1, m + 1, B).

    `combine` is np.add for all the ways they can do so together, np.maximum for the best.
    """
    forward = np.zeros((len(cells) + 1, *cells.shape[2:]))
    forward[0, 0] = 1
    for i, by_length in enumerate(cells):
        for d, cell in enumerate(by_length):  # what wraps around meets the span 'none', of probability 0
            combine(forward[i + 1], np.roll(forward[i], d, axis=0) * table[cell], out=forward[i + 1])
    return forward


def _count(cells: np.ndarray, table: np.ndarray, counts: np.ndarray) -> None:
    """Add to `counts` how often each cell of the table is expected in the entries."""
    forward = _forward(cells, table, np.add)
    backward = np.zeros(forward.shape[1:])  # (m + 1, B), over the probability of the entry
    backward[-1] = 1 / np.maximum(forward[-1, -1], np.finfo(float).tiny)
    for i in reversed(range(len(cells))):
        before = np.zeros_like(backward)
        for d, cell in enumerate(cells[i]):
            onward = backward * table[cell]
            np.add.at(counts, cell.ravel(), (onward * np.roll(forward[i], d, axis=0)).ravel())
            before += np.roll(onward, -d, axis=0)
        backward = before


def _cut(entries: list[tuple[str, str]], cells: np.ndarray, table: np.ndarray) -> list[str]:
    """Return the most probable graphones of each entry, separated by spaces, leaving out entries that have none (Viterbi)."""
    forward = _forward(cells, table, np.maximum)
    each = np.arange(forward.shape[2])
    ends = np.full((len(forward), len(each)), forward.shape[1] - 1)  # (n + 1, B), sounds of the first i letters
    for i in reversed(range(len(cells))):
        end = ends[i + 1]
        ways = [forward[i, end - d, each] * table[cells[i, d, end, each]] for d in range(1 + MAX_SOUNDS)]
        ends[i] = end - np.argmax(ways, axis=0)
    return [
        " ".join(f"{letter}:{sounds[start:end]}" for letter, start, end in zip(word, places, places[1:], strict=False))
        for (word, sounds), places, probability in zip(entries, ends.T.tolist(), forward[-1, -1], strict=True)
        if probability > 0
    ]
