"""The inner loops of beam search: plain loops over numbers in flat arrays, to be compiled. asr/decoder.py fills the arrays.

A trie lays the children of a node side by side, sorted by label: they are the nodes first_child[n] to first_child[n + 1] - 1. Node 0
is its root, and NONE no node.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

BLANK = 0
NONE = -1
UNKNOWN_ID, END_ID, START_STATE = 0, 2, 2  # as asr/lm.py has them

# A prefix is a sequence of tokens and, at its spaces, of the lexicon's entries they end, kept as its parent and one token more.
PREFIX = np.dtype(
    [
        ("parent", np.int32),
        ("token", np.int32),
        ("slot", np.int32),  # its place in the beam
        ("lexicon", np.int32),  # node of its unfinished last word, NONE if that begins no word of the lexicon
        ("word_length", np.int32),  # tokens of the unfinished word
        ("lm_state", np.int32),  # after the finished words
        ("hotword", np.int32),  # state of the hotwords' automaton
        ("entry", np.int32),  # of the lexicon, if the last token is the space after it, else NONE: words that sound alike part here
        ("lm", np.float64),  # ln p of the finished words
        ("bonus", np.float64),  # for finished words and hotwords
        ("outlook", np.float64),  # for the unfinished ones; taken back when they are finished
        ("seen", np.int32),  # the language model's first bigram of the last word and one that the unfinished word may become
        ("seen_end", np.int32),  # the first after those
        ("alternative", np.int32),  # the last of its ALTERNATIVEs, NONE without
    ],
    align=True,
)
# A prefix in the beam: the log-probability of its paths that end in a blank, and of those that end in its last token.
ENTRY = np.dtype(
    [
        ("prefix", np.int32),
        ("parent", np.int32),  # of the prefix, as are the next two
        ("last", np.int32),
        ("word", np.int32),
        ("blank", np.float64),
        ("token", np.float64),
        ("either", np.float64),  # the two together
        ("fixed", np.float64),  # what the prefix scores beside them
        ("ceiling", np.float64),  # the most that this can be with one token more, other than the space
        ("following", np.int64),  # bit t % 64 is set if token t may follow inside a word
        ("future", np.int64),  # the same for prefixes whose longer ones will score alike
    ],
    align=True,
)
# A prefix that was given up for another with the same future.
ALTERNATIVE = np.dtype(
    [
        ("prefix", np.int32),
        ("next", np.int32),  # the one before of the same prefix, NONE for none
        ("loss", np.float64),  # how much less it scored,
        ("acoustic_loss", np.float64),  # and how much of that is the acoustic model's
    ],
    align=True,
)
# A way back through the prefixes: from the end of a result, or as the path `base` up to its prefix `branch`, and from `prefix` on in that one's stead.
PATH = np.dtype(
    [
        ("base", np.int32),
        ("branch", np.int32),
        ("prefix", np.int32),
        ("result", np.int32),
        ("score", np.float64),
        ("acoustic", np.float64),
        ("text", np.int64),  # a hash of its text, of what comes after the branch until the path is a whole one
        ("is_new", np.int32),  # whether no better path has that text
    ],
    align=True,
)
BLOCK = 32  # n-grams of which the most probable is looked up at once
NEGLIGIBLE = 37.0  # nats; what is so much smaller is lost in a sum's rounding
NUM_BINS = 128  # of scores between the best and the beam's threshold
RESULT = np.dtype(
    [("prefix", np.int32), ("entry", np.int32), ("acoustic", np.float64), ("lm", np.float64), ("score", np.float64)],
    align=True,
)


class Scorer(NamedTuple):
    """What scores prefixes beside the acoustic model."""

    space: int  # token, NONE without
    alpha: float
    word_bonus: float
    unknown_bonus: float  # for words outside the lexicon, -inf forbids them
    lexicon_first_child: Any
    lexicon_token: Any
    lexicon_following: Any  # as int64: bit t % 64 is set if token t leads from the node to another; the last, [NONE], is that of unknown words
    lexicon_first_entry: Any  # those of node n are first_entry[n] to first_entry[n + 1] - 1
    lexicon_word: Any  # id of an entry's word in the language model
    lexicon_bonus: Any  # of an entry, 0 or less if the language model does not know it
    lexicon_best: Any  # alpha ln p + bonus of the best word that begins so; the last, [NONE], is that of unknown words, without their bonus
    lexicon_low: Any  # the words below a node have ids in the language model from lexicon_low to lexicon_high - 1,
    lexicon_high: Any  # but for those that are there as another way to say them; a few of these ids may be of words that the lexicon lacks
    lexicon_loss: Any  # of an entry that sounds like a hotword and is another word: that hotword's bonus
    lm_first_child: Any  # without model: of length 0
    lm_word: Any
    lm_log_prob: Any
    lm_backoff: Any
    lm_suffix: Any
    lm_best: Any  # the largest of each BLOCK of lm_log_prob
    hotword_next: Any  # (states, V): state after a token
    hotword_following: Any  # as lexicon_following
    hotword_gain: Any  # the most that a token adds
    hotword_depth: Any  # tokens matched
    hotword_outlook: Any  # credit for a phrase begun
    hotword_bonus: Any  # for the phrases that end here


class Pruning(NamedTuple):
    """What the search leaves out."""

    beam_size: int
    beam_threshold: float  # prefixes that score so much less than the best
    token_threshold: float  # tokens with a smaller log-probability
    blank_threshold: float  # every token beside a blank with a greater log-probability
    recombine: bool  # prefixes worse than another whose future is the same: enough for the best, not for the next best
    most_loss: float  # of recombined prefixes those that score at most so much less are remembered as alternatives; negative: none


class Work(NamedTuple):
    """Memory to search in."""

    prefixes: Any  # (1 + T' * beam_size,) PREFIX, and room for the alternatives'
    alternatives: Any  # ALTERNATIVE, as many as there is room for
    beam: Any  # (beam_size,) ENTRY
    candidates: Any  # (beam_size * (V + words alike),) ENTRY: first the beam's own, then those with one token more
    longer: Any  # as many PREFIX: what each candidate would be as a prefix, if it is new
    scores: Any  # as many
    ranked: Any  # as many
    table: Any  # (2 ** k,), twice as many at least: candidates by a hash of what their future depends on
    frame: Any  # (2 ** k,): in which frame each was entered
    lost: Any  # as many as candidates: where in the table the one is that it was given up for, NONE if it was not
    order: Any  # (V,): the tokens worth a try, the most probable first
    counts: Any  # (NUM_BINS,): candidates by score
    first_child: Any  # (beam_size,): of the entries whose prefix is an entry's with one token more, the first
    next_child: Any  # (beam_size,): the next with the same parent
    done: Any  # (4,): how many frames have been searched, zeros at first; how many of the beam, the prefixes and the alternatives there are


def search(log_probs: Any, scorer: Scorer, pruning: Pruning, work: Work, results: Any) -> int:
    """Search the most probable prefixes of `log_probs` (T', V), write them to `results` unsorted and return how many there are.

    Goes on after the frames that `work` says have been searched.
    """
    first, size, num_prefixes, num_alternatives = work.done
    if first == 0:
        _root(work.prefixes[0], scorer)
        _enter(work.beam[0], 0, work.prefixes[0], scorer)
        work.beam[0].blank = work.beam[0].either = 0.0
        work.beam[0].token = -math.inf
        size = num_prefixes = 1
        num_alternatives = 0
    for t in range(first, log_probs.shape[0]):
        if log_probs[t, BLANK] > pruning.blank_threshold:
            for s in range(size):
                work.beam[s].blank = work.beam[s].either = work.beam[s].either + log_probs[t, BLANK]
                work.beam[s].token = -math.inf
        else:
            count = _extend_beam(log_probs[t], scorer, pruning, work, size)
            if pruning.recombine:
                _recombine(work, count, t)
            size, num_prefixes = _keep_best(pruning, work, size, count, num_prefixes)
            if pruning.most_loss >= 0.0:
                num_prefixes, num_alternatives = _remember(pruning, work, count, num_prefixes, num_alternatives)
    work.done[:] = log_probs.shape[0], size, num_prefixes, num_alternatives
    count = 0
    for s in range(size):
        count = _finish(work.prefixes, work.beam[s], scorer, results, count)
    return count


def _root(prefix: Any, scorer: Scorer) -> None:
    prefix.parent = NONE
    prefix.token = BLANK
    prefix.slot = 0
    prefix.lexicon = 0
    prefix.word_length = 0
    prefix.lm_state = START_STATE if len(scorer.lm_word) > 0 else 0
    prefix.hotword = (
        scorer.hotword_next[0, scorer.space] if scorer.space != NONE else 0
    )  # a text starts as after a space
    prefix.entry = NONE
    prefix.lm = 0.0
    prefix.bonus = 0.0
    prefix.outlook = 0.0
    prefix.alternative = NONE
    _expect_any(scorer, prefix)


def _add(a: float, b: float) -> float:
    """Return ln(e^a + e^b)."""
    if a < b:
        a, b = b, a
    return a if b < a - NEGLIGIBLE or b == -math.inf else a + math.log1p(math.exp(b - a))


def _enter(entry: Any, index: int, prefix: Any, scorer: Scorer) -> None:
    """Fill in what an entry says of its prefix."""
    entry.prefix = index
    entry.parent = prefix.parent
    entry.last = prefix.token
    entry.word = prefix.entry
    known = scorer.alpha * prefix.lm + prefix.bonus
    entry.fixed = known + prefix.outlook
    # A word's outlook gets worse with every token, unless the word turns into an unknown one.
    unknown = scorer.lexicon_best[NONE] + scorer.hotword_outlook[prefix.hotword]
    if scorer.hotword_following[prefix.hotword] == 0:
        unknown += scorer.unknown_bonus
    entry.ceiling = known + max(prefix.outlook, unknown) + scorer.hotword_gain[prefix.hotword]
    entry.following = scorer.lexicon_following[prefix.lexicon] | scorer.hotword_following[prefix.hotword]
    future = _mix(prefix.lm_state, prefix.lexicon)
    future = _mix(future, prefix.token)
    future = _mix(future, prefix.hotword)
    entry.future = _mix(future, prefix.word_length)


def _mix(a: int, b: int) -> int:
    """Return a hash of two numbers."""
    mixed = (a ^ (a >> 29)) * 0x1B873593CC9E2D51 + b
    return (mixed ^ (mixed >> 32)) * 0x2545F4914F6CDD1D


def _stay(frame: Any, work: Work, size: int) -> float:
    """Make the beam's own prefixes the first candidates, link those that are another's with one token more, and return the best score."""
    best = -math.inf
    for s in range(size):
        work.first_child[s] = NONE
    for s in range(size):
        entry, candidate = work.beam[s], work.candidates[s]
        slot = work.prefixes[entry.parent].slot if entry.parent != NONE else NONE
        if slot != NONE:
            work.next_child[s] = work.first_child[slot]
            work.first_child[slot] = s
        work.candidates[s] = entry
        candidate.blank = entry.either + frame[BLANK]
        candidate.token = entry.token + frame[entry.last]
        candidate.either = _add(candidate.blank, candidate.token)
        best = max(best, candidate.either + candidate.fixed)
    return best


def _extend_beam(frame: Any, scorer: Scorer, pruning: Pruning, work: Work, size: int) -> int:
    """Fill in the candidates for the next beam and return their number.

    Longer prefixes that score less than the beam's worst are not made, and where one of them is in the beam already, what so improbable
    a path adds to it is lost.
    """
    best = _stay(frame, work, size)
    work.counts[:] = 0
    bins_per_nat = NUM_BINS / pruning.beam_threshold
    for s in range(size):
        _count(work.counts, (best - work.candidates[s].either - work.candidates[s].fixed) * bins_per_nat)
    count = size
    for i in range(_order(frame, pruning.token_threshold, work.order)):
        token = work.order[i]
        cutoff = best - _width(work.counts, pruning.beam_size) / bins_per_nat
        for s in range(size):
            entry = work.beam[s]
            prefix = work.prefixes[entry.prefix]
            # The same token comes again only after a blank.
            log_prob = (entry.blank if token == entry.last else entry.either) + frame[token]
            if token == scorer.space:
                ceiling = entry.ceiling + max(scorer.word_bonus, 0.0)
            else:
                ceiling = entry.ceiling if entry.following >> (token & 63) & 1 else -math.inf
            if log_prob + ceiling < cutoff or log_prob + ceiling == -math.inf:
                continue
            first, last = _entries(prefix, token, scorer)
            for word_entry in range(first, last):
                child = work.first_child[s]
                while child != NONE and (work.beam[child].last != token or work.beam[child].word != word_entry):
                    child = work.next_child[child]
                if child != NONE:
                    candidate = work.candidates[child]
                    candidate.token = _add(candidate.token, log_prob)
                    candidate.either = _add(candidate.blank, candidate.token)
                elif _lengthen(prefix, entry.prefix, token, word_entry, scorer, work.longer[count]):
                    longer = work.longer[count]
                    score = log_prob + scorer.alpha * longer.lm + longer.bonus + longer.outlook
                    if score >= cutoff:
                        candidate = work.candidates[count]
                        _enter(candidate, NONE, longer, scorer)
                        candidate.blank = -math.inf
                        candidate.token = candidate.either = log_prob
                        _count(work.counts, (best - score) * bins_per_nat)
                        count += 1
    for c in range(count):
        work.scores[c] = work.candidates[c].either + work.candidates[c].fixed
    return count


def _order(frame: Any, threshold: float, order: Any) -> int:
    """Write the tokens of a log-probability of `threshold` or more to `order`, the most probable first, and return their number."""
    count = 0
    for token in range(1, len(frame)):
        if frame[token] >= threshold:
            place = count
            while place > 0 and frame[order[place - 1]] < frame[token]:
                order[place] = order[place - 1]
                place -= 1
            order[place] = token
            count += 1
    return count


def _count(counts: Any, place: float) -> None:
    """Count a score in its bin; not one that is beyond the last, or not a number of bins because there is no threshold."""
    if place < NUM_BINS:
        counts[max(0, int(place))] += 1


def _width(counts: Any, number: int) -> int:
    """Return how many bins, from the best on, it takes to hold `number` scores; all of them, if they hold less."""
    total = 0
    for i in range(NUM_BINS):
        total += counts[i]
        if total >= number:
            return i + 1
    return NUM_BINS


def _recombine(work: Work, count: int, frame: int) -> None:
    """Give up candidates that another one with the same future is better than, whichever way both go on."""
    size = 2  # of the part of the table that is used: it stays in the processor's cache
    while size < 2 * count:
        size *= 2
    for c in range(count):
        future = work.candidates[c].future
        h = future & (size - 1)
        while work.frame[h] == frame and work.candidates[work.table[h]].future != future:
            h = (h + 1) & (size - 1)
        work.lost[c] = NONE
        if work.frame[h] != frame:
            work.frame[h] = frame
            work.table[h] = c
            continue
        loser = c
        if work.scores[c] > work.scores[work.table[h]]:
            loser, work.table[h] = work.table[h], c
        work.scores[loser] = -math.inf
        work.lost[loser] = h


def _keep_best(pruning: Pruning, work: Work, size: int, count: int, num_prefixes: int) -> tuple[int, int]:
    """Make the best candidates the beam; return its size and the number of prefixes."""
    best = -math.inf
    for c in range(count):
        best = max(best, work.scores[c])
        work.ranked[c] = work.scores[c]
    lowest = best - pruning.beam_threshold
    if count > pruning.beam_size:
        lowest = max(lowest, _kth_largest(work.ranked, count, pruning.beam_size))
    for s in range(size):
        work.prefixes[work.beam[s].prefix].slot = NONE
    size = 0
    for is_tie in (False, True):  # first those above the lowest score, then those that have it, as far as there is room
        for c in range(count):
            candidate, score = work.candidates[c], work.scores[c]
            if (score == lowest if is_tie else score > lowest) and score > -math.inf and size < pruning.beam_size:
                if candidate.prefix == NONE:
                    candidate.prefix = num_prefixes
                    work.prefixes[num_prefixes] = work.longer[c]
                    num_prefixes += 1
                work.prefixes[candidate.prefix].slot = size
                work.beam[size] = candidate
                size += 1
    return size, num_prefixes


def _remember(pruning: Pruning, work: Work, count: int, num_prefixes: int, num_alternatives: int) -> tuple[int, int]:
    """Link the candidates given up in this frame to those of the beam they were given up for; return the numbers of prefixes and alternatives."""
    for c in range(count):
        if work.lost[c] == NONE:
            continue
        loser, winner = work.candidates[c], work.candidates[work.table[work.lost[c]]]
        acoustic_loss = winner.either - loser.either
        loss = acoustic_loss + winner.fixed - loser.fixed
        if not loss <= pruning.most_loss or winner.prefix == NONE or work.prefixes[winner.prefix].slot == NONE:
            continue
        before = loser.parent
        while before > winner.prefix:  # a prefix comes after those it goes on from
            before = work.prefixes[before].parent
        if before == winner.prefix:  # the loser goes on from it: in its stead it would go round and round
            continue
        known = work.prefixes[winner.prefix].alternative  # the same tokens, given up in an earlier frame
        while known != NONE:
            other = work.prefixes[work.alternatives[known].prefix]
            if other.parent == loser.parent and other.token == loser.last and other.entry == loser.word:
                break
            known = work.alternatives[known].next
        if known == NONE and num_alternatives < len(work.alternatives):
            known, num_alternatives = num_alternatives, num_alternatives + 1
            if loser.prefix == NONE:
                loser.prefix = num_prefixes
                work.prefixes[num_prefixes] = work.longer[c]
                num_prefixes += 1
            work.alternatives[known].prefix = loser.prefix
            work.alternatives[known].next = work.prefixes[winner.prefix].alternative
            work.alternatives[known].loss = math.inf
            work.prefixes[winner.prefix].alternative = known
        if known != NONE and loss < work.alternatives[known].loss:
            work.alternatives[known].loss = loss
            work.alternatives[known].acoustic_loss = acoustic_loss
    return num_prefixes, num_alternatives


def _kth_largest(values: Any, count: int, k: int) -> float:
    """Return the k-th largest of the first `count` values, reordering them (Hoare's quickselect)."""
    low, high = 0, count - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if k - 1 <= j:
            high = j
        elif k - 1 >= i:
            low = i
        else:
            break
    return float(values[k - 1])


def _entries(prefix: Any, token: int, scorer: Scorer) -> tuple[int, int]:
    """Return the range of the lexicon's entries that `prefix` may end with before `token`; NONE alone where it ends none."""
    if token == scorer.space and prefix.word_length > 0 and prefix.lexicon != NONE:
        first, last = scorer.lexicon_first_entry[prefix.lexicon], scorer.lexicon_first_entry[prefix.lexicon + 1]
        if first < last:
            return first, last
    return NONE, NONE + 1


def _lengthen(old: Any, parent: int, token: int, entry: int, scorer: Scorer, new: Any) -> bool:
    """Make `new` the prefix `old` with one token more, a space after the lexicon's `entry` perhaps; False if it is forbidden."""
    new.parent = parent
    new.token = token
    new.entry = entry
    new.slot = NONE
    new.alternative = NONE
    new.lm_state = old.lm_state
    new.lm = old.lm
    new.bonus = old.bonus
    new.hotword = scorer.hotword_next[old.hotword, token]
    if token == scorer.space:
        new.lexicon = 0
        new.word_length = 0
        new.outlook = 0.0
        if old.word_length > 0:
            lm, bonus, new.lm_state = _end_word(old, entry, scorer)
            new.lm += lm
            new.bonus += bonus
        _expect_any(scorer, new)
    else:
        new.word_length = old.word_length + 1
        new.lexicon = _child(scorer.lexicon_first_child, scorer.lexicon_token, old.lexicon, token)
        new.outlook = _look_ahead(scorer, old, new)
        if scorer.hotword_depth[new.hotword] > new.word_length:  # inside a hotword, of which no word counts as unknown
            new.outlook = max(new.outlook, scorer.lexicon_best[NONE])
        elif new.lexicon == NONE:
            new.outlook += scorer.unknown_bonus
    new.bonus += scorer.hotword_bonus[new.hotword]
    new.outlook += scorer.hotword_outlook[new.hotword]
    forbidden: bool = new.bonus == -math.inf or new.outlook == -math.inf
    return not forbidden


def _last_word(scorer: Scorer, state: int) -> int:
    """Return the language model's state after the last word of `state` alone."""
    while scorer.lm_suffix[state] > 0:
        state = scorer.lm_suffix[state]
    return state


def _expect_any(scorer: Scorer, prefix: Any) -> None:
    """Let a word that has not begun be any that was seen after the last one."""
    prefix.seen = prefix.seen_end = 0
    if prefix.lm_state > 0:
        state = _last_word(scorer, prefix.lm_state)
        prefix.seen, prefix.seen_end = scorer.lm_first_child[state], scorer.lm_first_child[state + 1]


def _look_ahead(scorer: Scorer, old: Any, new: Any) -> float:
    """Return what the best of the words that `new`'s unfinished one may become scores after the last word, and note which were seen there."""
    node = new.lexicon
    new.seen = new.seen_end = 0
    outlook: float = scorer.lexicon_best[node]
    if node == NONE or old.lm_state <= 0:
        return outlook
    outlook += scorer.alpha * scorer.lm_backoff[_last_word(scorer, old.lm_state)]
    if old.seen < old.seen_end:
        new.seen = _first_from(scorer.lm_word, old.seen, old.seen_end, scorer.lexicon_low[node])
        new.seen_end = _first_from(scorer.lm_word, new.seen, old.seen_end, scorer.lexicon_high[node])
        outlook = max(outlook, scorer.alpha * _largest(scorer.lm_log_prob, scorer.lm_best, new.seen, new.seen_end))
    return outlook


def _first_from(words: Any, low: int, high: int, word: int) -> int:
    """Return the first of the places low to high - 1, where `words` rise, that has `word` or one after it; `high` if none has."""
    while low < high:
        middle = (low + high) // 2
        if words[middle] < word:
            low = middle + 1
        else:
            high = middle
    return low


def _largest(values: Any, best: Any, low: int, high: int) -> float:
    """Return the largest of values[low:high], -inf if there are none; best: those of each BLOCK."""
    largest = -math.inf
    while low < high:
        if low % BLOCK == 0 and low + BLOCK <= high:
            largest = max(largest, best[low // BLOCK])
            low += BLOCK
        else:
            largest = max(largest, values[low])
            low += 1
    return largest


def _end_word(prefix: Any, entry: int, scorer: Scorer) -> tuple[float, float, int]:
    """Return what it adds to lm and bonus to end the last word of `prefix` as the lexicon's `entry`, and the model's state after it."""
    bonus = scorer.word_bonus
    word, word_bonus = UNKNOWN_ID, scorer.unknown_bonus
    if entry != NONE:
        word, word_bonus = scorer.lexicon_word[entry], scorer.lexicon_bonus[entry]
        bonus -= scorer.lexicon_loss[entry]
    if word_bonus != 0.0:
        # The automaton has matched the space before the word, the word, and goes on to match the space after it.
        after = scorer.hotword_next[prefix.hotword, scorer.space]
        if scorer.hotword_depth[after] < prefix.word_length + 2:
            bonus += word_bonus
    if len(scorer.lm_word) == 0:
        return 0.0, bonus, 0
    lm, state = _score_word(scorer, prefix.lm_state, word)
    return lm, bonus, state


def _score_word(scorer: Scorer, state: int, word: int) -> tuple[float, int]:
    """Return ln p(word | state) and the state after it, as asr.lm.LanguageModel.score does."""
    log_prob = 0.0
    node = _child(scorer.lm_first_child, scorer.lm_word, state, word)
    while node == NONE:
        log_prob += scorer.lm_backoff[state]
        state = scorer.lm_suffix[state]
        node = _child(scorer.lm_first_child, scorer.lm_word, state, word)
    log_prob += scorer.lm_log_prob[node]
    while node == NONE or node >= len(scorer.lm_backoff):
        state = scorer.lm_suffix[state]
        node = _child(scorer.lm_first_child, scorer.lm_word, state, word)
    return log_prob, node


def score_tree(ngrams: Any, parents: Any, words: Any, log_probs: Any, states: Any) -> int:
    """Fill in ln p of each node's word after its parent (N,), and the model's state after it; the root, node 0, is the beginning of a text.

    ngrams: has the lm_ fields of Scorer; words: ids of the model.
    """
    states[0] = START_STATE
    for node in range(1, len(parents)):
        log_probs[node], states[node] = _score_word(ngrams, states[parents[node]], words[node])
    return 0


def _child(first_child: Any, labels: Any, node: int, label: int) -> int:
    """Return the child of a trie's node with that label, NONE if there is none."""
    if node == NONE or node + 1 >= len(first_child):
        return NONE
    end = first_child[node + 1]
    low = _first_from(labels, first_child[node], end, label)
    return low if low < end and labels[low] == label else NONE


def _finish(prefixes: Any, entry: Any, scorer: Scorer, results: Any, count: int) -> int:
    """Score a prefix as a whole sentence, once for each word that its last one can be; append to the results and return their number."""
    prefix = prefixes[entry.prefix]
    first, last = _entries(prefix, scorer.space, scorer)
    for word_entry in range(first, last):
        lm, bonus, state = prefix.lm, prefix.bonus, prefix.lm_state
        if prefix.word_length > 0:
            word_lm, word_bonus, state = _end_word(prefix, word_entry, scorer)
            lm += word_lm
            bonus += word_bonus
            if scorer.space != NONE:
                bonus += scorer.hotword_bonus[scorer.hotword_next[prefix.hotword, scorer.space]]
        if len(scorer.lm_word) > 0:
            lm += _score_word(scorer, state, END_ID)[0]
        result = results[count]
        result.prefix = entry.prefix
        result.entry = word_entry
        result.acoustic = entry.either
        result.lm = lm
        result.score = result.acoustic + scorer.alpha * lm + bonus
        count += 1
    return count


def best_paths(prefixes: Any, alternatives: Any, results: Any, words: Any, num_texts: int, heap: Any, paths: Any) -> int:
    """Write the best ways back from the results, the best first, to `paths` until they have num_texts texts; return how many they are.

    A path goes on from any of its prefixes as from one given up for it. A result that scores -inf has no path. words: the lexicon_word
    of Scorer if texts are made of the lexicon's entries; of length 0 if they are made of tokens. heap: PATH, memory.
    """
    size = count = found = 0
    for i in range(len(results)):
        if results[i].score > -math.inf:
            text = _mix(0, _part(words, NONE, results[i].entry))
            size = _push(heap, size, NONE, NONE, results[i].prefix, i, results[i].score, results[i].acoustic, text)
    while size > 0 and count < len(paths) and found < num_texts:
        paths[count] = heap[0]
        path = paths[count]
        size = _drop_first(heap, size)
        prefix = path.prefix
        while prefix > 0:
            node = prefixes[prefix]
            a = node.alternative
            while a != NONE:
                other = alternatives[a]
                size = _push(heap, size, count, prefix, other.prefix, path.result, path.score - other.loss, path.acoustic - other.acoustic_loss, path.text)
                a = other.next
            part = _part(words, node.token, node.entry)
            if part != NONE:
                path.text = _mix(path.text, part)
            prefix = node.parent
        path.is_new = 1
        for i in range(count):
            if paths[i].text == path.text:
                path.is_new = 0
        found += path.is_new
        count += 1
    return count


def _part(words: Any, token: int, entry: int) -> int:
    """Return what a prefix adds to the text, NONE if that is nothing."""
    if len(words) == 0:
        return token
    if entry == NONE:
        return NONE
    return words[entry] if words[entry] != UNKNOWN_ID else -2 - entry  # words that the language model does not know differ too


def _push(heap: Any, size: int, base: int, branch: int, prefix: int, result: int, score: float, acoustic: float, text: int) -> int:
    """Put a path into the heap, whose first is always the best, if there is room; return its size."""
    if size == len(heap):
        return size
    place = size
    while place > 0 and heap[(place - 1) // 2].score < score:
        heap[place] = heap[(place - 1) // 2]
        place = (place - 1) // 2
    path = heap[place]
    path.base, path.branch, path.prefix, path.result = base, branch, prefix, result
    path.score, path.acoustic, path.text = score, acoustic, text
    return size + 1


def _drop_first(heap: Any, size: int) -> int:
    """Take the best out of the heap; return its size."""
    size -= 1
    place, below = 0, 1
    while below < size:
        if below + 1 < size and heap[below + 1].score > heap[below].score:
            below += 1
        if heap[below].score <= heap[size].score:
            break
        heap[place] = heap[below]
        place, below = below, 2 * below + 1
    heap[place] = heap[size]
    return size


def align(log_probs: Any, tokens: Any, scores: Any, moves: Any, peaks: Any) -> int:
    """Write to `peaks` (U,) the frame where each of `tokens` (U,) is most probable within its span on the best path that spells them.

    The states of the path are blank, token 0, blank, token 1, ..., blank: token u is state 2u + 1. `scores` (2U + 1,) and `moves`
    (T', 2U + 1) are memory to work in. Returns 0, or NONE if no path is possible.
    """
    num_frames, num_states = log_probs.shape[0], 2 * len(tokens) + 1
    for s in range(num_states):
        scores[s] = -math.inf
    scores[0] = 0.0  # as if a blank came before
    for t in range(num_frames):
        first = max(0, num_states - 2 * (num_frames - t))  # from states before it the end is out of reach
        for s in range(
            min(num_states, 2 * t + 2) - 1, first - 1, -1
        ):  # downwards: the states before it are still those of t - 1
            move = 0
            if s > 0 and scores[s - 1] > scores[s]:
                move = 1
            token = BLANK
            if s % 2 == 1:
                token = tokens[s // 2]
                if s > 1 and token != tokens[s // 2 - 1] and scores[s - 2] > scores[s - move]:
                    move = 2
            moves[t, s] = move
            scores[s] = scores[s - move] + log_probs[t, token]
    state = num_states - 1
    if num_states > 1 and scores[state - 1] > scores[state]:
        state -= 1
    if num_frames > 0 and scores[state] == -math.inf:
        return NONE
    best = -math.inf
    for t in range(num_frames - 1, -1, -1):
        if state % 2 == 1:
            u = state // 2
            if log_probs[t, tokens[u]] >= best:
                best = log_probs[t, tokens[u]]
                peaks[u] = t
        if moves[t, state] > 0:
            best = -math.inf
        state -= moves[t, state]
    return 0
