"""Facts about n-gram language models. Oracles: Kneser-Ney by hand, sums over the vocabulary, KenLM where it is installed."""

from __future__ import annotations

import gzip
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from asr import lm
from asr.lm import LanguageModel, LanguageModelError

TEXT = ["a b a", "a b", "b a c"]
RNG_WORDS = [chr(ord("a") + i) * 2 for i in range(20)]


def random_text(seed: int, num_sentences: int = 400) -> list[str]:
    """Sentences in which a word depends on the two before it."""
    rng = np.random.default_rng(seed)
    sentences = []
    for _ in range(num_sentences):
        words = [int(rng.integers(20))]
        for _ in range(int(rng.integers(0, 12))):
            words.append(int((words[-1] * 3 + words[0] + rng.geometric(0.4)) % 20))
        sentences.append(" ".join(RNG_WORDS[w] for w in words))
    return sentences


def distribution(model: LanguageModel, state: int) -> np.ndarray:
    """p(w | state) of every word but <s>."""
    words = np.array([w for w in range(len(model.words)) if w != lm.START_ID])
    return np.exp(model.score(np.full(len(words), state), words)[0])


def probability(model: LanguageModel, context: str, word: str) -> float:
    states = np.array(0)
    for w in context.split():
        states = model.score(states, model.word_ids[w])[1] if w != "<s>" else np.array(model.start_state)
    return float(np.exp(model.score(states, model.word_ids[word])[0]))


def test_other_word_ids_change_nothing_else() -> None:
    model = lm.train(random_text(3), order=3)
    order = np.append([0, 1, 2], 3 + np.random.default_rng(3).permutation(len(model.words) - 3))
    other = lm.reorder(model, order)
    assert other.words == tuple(model.words[i] for i in order) and other.num_ngrams == model.num_ngrams
    assert (np.diff(other._keys) > 0).all()
    sentences = [*random_text(4, 50), "aa zz bb"]
    np.testing.assert_array_equal(other.score_sentences(sentences), model.score_sentences(sentences))
    assert np.array_equal(lm.reorder(other, np.argsort(order)).word, model.word)


# --- training --------------------------------------------------------------------------------------------------------


def test_kneser_ney_by_hand() -> None:
    """The bigrams of `ab, ab, ac` with the discounts 0.5, 1, 1.5 that so small a text falls back to.

    Distinct words before: a: {<s>} 1, b: {a} 1, c: {a} 1, </s>: {b, c} 2; 5 in all. What the discounts 0.5 + 0.5 + 0.5 + 1
    leave is shared alike by the 5 words <unk> a b c </s>: each 2.5 / 5 / 5 = 0.1.
    """
    model = lm.train(["a b", "a b", "a c"], order=2)
    unigram = {"a": 0.5 / 5 + 0.1, "b": 0.5 / 5 + 0.1, "c": 0.5 / 5 + 0.1, "</s>": 1 / 5 + 0.1, "<unk>": 0.1}
    for word, expected in unigram.items():
        assert math.exp(model.log_prob[1 + model.word_ids[word]]) == pytest.approx(expected, rel=1e-6)
    # After a: b twice, c once; the discounts leave 1 + 0.5 of 3 to the unigrams.
    assert probability(model, "a", "b") == pytest.approx((2 - 1) / 3 + 1.5 / 3 * 0.2, rel=1e-6)
    assert probability(model, "a", "c") == pytest.approx((1 - 0.5) / 3 + 1.5 / 3 * 0.2, rel=1e-6)
    assert probability(model, "a", "</s>") == pytest.approx(1.5 / 3 * 0.3, rel=1e-6)
    # After <s>: a three times.
    assert probability(model, "<s>", "a") == pytest.approx((3 - 1.5) / 3 + 1.5 / 3 * 0.2, rel=1e-6)


def test_discounts_follow_chen_and_goodman() -> None:
    counts = np.repeat([1, 2, 3, 4], [100, 40, 20, 10])
    y = 100 / (100 + 80)
    expected = [0, 1 - 2 * y * 40 / 100, 2 - 3 * y * 20 / 40, 3 - 4 * y * 10 / 20]
    assert lm._discounts(counts) == pytest.approx(expected)


@pytest.mark.parametrize("order", [2, 3, 4, 5])
@pytest.mark.parametrize("settings", [{}, {"min_counts": (1, 1, 2)}, {"vocabulary_size": 9}, {"prune_threshold": 1e-3}])
def test_probabilities_sum_to_one_in_every_context(order: int, settings: dict) -> None:
    model = lm.train(random_text(order), order=order, **settings)
    for state in range(len(model.backoff)):
        assert distribution(model, state).sum() == pytest.approx(1, abs=1e-5)


def test_an_unlisted_word_leads_to_the_longest_known_context() -> None:
    model = lm.train(TEXT, order=3)
    ids = model.word_ids
    _, after_ab = model.score(model.score(model.start_state, ids["a"])[1], ids["b"])
    assert after_ab == model.children(np.array([1 + ids["a"]]), np.array([ids["b"]]))[0]  # the bigram a b
    _, after_c = model.score(after_ab, ids["c"])  # neither a b c nor b c occurs
    assert after_c == 1 + ids["c"]


def test_states_carry_what_the_whole_history_would_say() -> None:
    """Against p(w | h) by the definition: the longest listed n-gram, else the back-off weight times the shorter context's."""
    model = lm.train(random_text(7), order=3, prune_threshold=1e-3)
    log_probs, backoffs = ngrams(model)
    rng = np.random.default_rng(0)
    for _ in range(200):
        sentence = rng.integers(3, len(model.words), 6).tolist()
        state, history = np.array(model.start_state), [lm.START_ID]
        for word in sentence:
            score, state = model.score(state, word)
            assert score == pytest.approx(by_definition(log_probs, backoffs, tuple(history[-2:]), word), abs=1e-5)
            history.append(word)


def ngrams(model: LanguageModel) -> tuple[dict, dict]:
    names: list[tuple[int, ...]] = [()]
    for node in range(1, len(model.word)):
        names.append((*names[int(model.parent[node])], int(model.word[node])))
    log_probs = dict(zip(names, model.log_prob.tolist(), strict=True))
    return log_probs, dict(zip(names, model.backoff.tolist(), strict=False))


def by_definition(log_probs: dict, backoffs: dict, history: tuple[int, ...], word: int) -> float:
    if (*history, word) in log_probs:
        return log_probs[*history, word]
    return backoffs.get(history, 0.0) + by_definition(log_probs, backoffs, history[1:], word)


def test_rare_ngrams_are_left_out_and_rare_words_become_unknown() -> None:
    text = random_text(1)
    whole = lm.train(text, order=3)
    cut = lm.train(text, order=3, min_counts=(1, 2, 3))
    assert cut.num_ngrams[0] == whole.num_ngrams[0] and cut.num_ngrams[1] < whole.num_ngrams[1]
    counts = {" ".join(text).count(w): w for w in whole.words[3:]}
    small = lm.train(text, order=2, vocabulary_size=5)
    assert len(small.words) == 8 and counts[max(counts)] in small.words and counts[min(counts)] not in small.words


def test_pruning_takes_the_ngrams_that_matter_least() -> None:
    """Leaving out one n-gram raises the cross-entropy of the model's own distribution by what the formula says."""
    text = random_text(3)
    model = lm.train(text, order=2)
    sizes, perplexities = [], []
    for threshold in (1e-5, 1e-3, 1e-2):
        pruned = lm.train(text, order=2, prune_threshold=threshold)
        sizes.append(pruned.num_ngrams[1])
        perplexities.append(lm.perplexity(pruned, text).perplexity)
    assert model.num_ngrams[1] >= sizes[0] > sizes[1] > sizes[2]
    assert perplexities == sorted(perplexities)


def test_the_loss_of_pruning_is_the_relative_entropy_of_the_two_models() -> None:
    model = lm.train(random_text(5, 30), order=2)
    histories = lm._history_log_probs(model)
    low, high = 0.0, 1.0  # at the threshold `high` one bigram goes, at `low` none
    for _ in range(50):
        middle = (low + high) / 2
        pruned = lm.prune(model, middle, history_log_probs=histories)
        low, high = (low, middle) if pruned.num_ngrams < model.num_ngrams else (middle, high)
    pruned = lm.prune(model, high, history_log_probs=histories)
    assert model.num_ngrams[1] - pruned.num_ngrams[1] == 1
    changed = int(np.flatnonzero(np.diff(model.first_child) != np.diff(pruned.first_child))[0])
    p, q = distribution(model, changed), distribution(pruned, changed)
    loss = math.exp(histories[changed]) * float(np.sum(p * np.log(p / q)))
    assert math.expm1(loss) == pytest.approx(high, rel=1e-3)


def test_a_model_knows_its_own_text_better_than_another() -> None:
    model = lm.train(random_text(1), order=3)
    own, other = lm.perplexity(model, random_text(1)), lm.perplexity(model, [" ".join(RNG_WORDS)] * 3)
    assert own.perplexity < 10 < other.perplexity
    assert (own.num_sentences, own.num_unknown) == (400, 0)


def test_perplexity_counts_sentence_ends_and_unknown_words() -> None:
    model = lm.train(["a b", "a b", "a c"], order=2)
    log_prob = math.log((3 - 1.5) / 3 + 1.5 / 3 * 0.2) + math.log(1.5 / 3 * 0.1) + math.log(0.3)
    found = lm.perplexity(model, ["a zebra"])  # <s> a <unk> </s>
    assert found.perplexity == pytest.approx(math.exp(-log_prob / 3), rel=1e-5)
    assert (found.num_words, found.num_unknown) == (2, 1)


@pytest.mark.parametrize("text", [[], ["", "  "]])
def test_no_words_to_train_on_is_an_error(text: list[str]) -> None:
    with pytest.raises(LanguageModelError, match="no word"):
        lm.train(text)


def test_a_reserved_word_in_the_text_is_an_error_naming_the_sentence() -> None:
    with pytest.raises(LanguageModelError, match="sentence 2"):
        lm.train(["a b", "a <s> b"])


@pytest.mark.parametrize("settings", [{"order": 1}, {"min_counts": (2, 1)}])
def test_settings_no_model_can_be_made_from_are_an_error(settings: dict) -> None:
    with pytest.raises(LanguageModelError, match="never fall"):
        lm.train(TEXT, **settings)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m.arpa", "m.arpa.gz", "m.lm"])
def test_a_model_comes_back_from_its_file(tmp_path: Path, name: str) -> None:
    model = lm.train(random_text(2), order=4, prune_threshold=1e-4)
    (lm.write_arpa if "arpa" in name else lm.save)(model, tmp_path / name)
    again = lm.load(tmp_path / name)
    text = [*random_text(3, 50), "unheard words", ""]
    limit = {"m.lm": 0.02}.get(name, 1e-4)  # compact files have 256 values a level
    assert set(again.words) == set(model.words) and again.num_ngrams == model.num_ngrams
    assert np.abs(again.score_sentences(text) - model.score_sentences(text)).max() < limit
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_compact_file_keeps_the_links_between_contexts(tmp_path: Path) -> None:
    for order in (2, 3, 4, 5):
        model = lm.train(random_text(2), order=order, prune_threshold=1e-4)
        lm.save(model, tmp_path / "m.lm")
        assert (lm.load(tmp_path / "m.lm").suffix == model.suffix).all()


def test_a_compact_file_rounds_to_256_values_a_level(tmp_path: Path) -> None:
    model = lm.train(random_text(2, 4000), order=3, prune_threshold=1e-6)
    lm.save(model, tmp_path / "m.lm")
    again = lm.load(tmp_path / "m.lm")
    levels = [slice(*pair) for pair in pairwise(model.level_starts)]
    assert max(len(np.unique(model.log_prob[level])) for level in levels) > 256
    assert max(len(np.unique(again.log_prob[level])) for level in levels) == 256
    assert np.abs(again.log_prob - model.log_prob).max() < 0.05 and np.abs(again.backoff - model.backoff).max() < 0.05
    assert again.log_prob[model.start_state] == np.float32(lm.NEVER)
    assert (again.backoff[np.diff(model.first_child) == 0] == 0).all()
    for state in range(len(model.backoff)):
        assert distribution(again, state).sum() == pytest.approx(1, abs=0.02)


def test_what_has_no_more_than_256_values_is_not_rounded() -> None:
    values = np.sort(np.random.default_rng(0).normal(size=200))
    assert np.unique(lm._codebook(np.repeat(values, np.arange(1, 201)))) == pytest.approx(values, abs=1e-9)
    assert (lm._codebook(np.zeros(0)) == 0).all()


def test_a_vocabulary_beyond_16_bits_costs_more_only_where_it_is_used(tmp_path: Path) -> None:
    """Where the next word's id is more than 65,534 beyond its sibling's, it takes 4 bytes, and 1 or 2 elsewhere."""
    words = [f"w{i:05}" for i in range(70_000)]
    model = lm.train([*words[:-1], *["w00000 w00001"] * 5, "w00000 w69999"], order=2)
    lm.save(model, tmp_path / "m.lm")
    again = lm.load(tmp_path / "m.lm")
    assert model.words[3:5] == ("w00000", "w00001")  # the most frequent first
    assert again.words == model.words
    assert np.array_equal(again.word, model.word) and np.array_equal(again.first_child, model.first_child)
    sizes = {name: len(tensor) for name, tensor in load_file(tmp_path / "m.lm").items()}
    assert (sizes["gap_uint8"], sizes["gap_uint16"], sizes["gap_int32"]) == (len(model.word), 1, 1)


def test_a_compact_file_of_version_1_is_still_read(tmp_path: Path) -> None:
    model = lm.train(random_text(2), order=4, prune_threshold=1e-4)
    tensors = {
        "words": np.frombuffer("\n".join(model.words).encode(), np.uint8),
        "word": model.word.astype(np.uint16),
        "num_children": np.diff(model.first_child).astype(np.uint16),
        "log_prob": np.rint(np.maximum(model.log_prob, -32) * 1024).astype(np.int16),
        "backoff": np.rint(model.backoff * 1024).astype(np.int16),
        "suffix": model.suffix[model.level_starts[3] :],
    }
    save_file(tensors, tmp_path / "m.lm", {"format": "asr n-gram", "version": "1", "order": "4"})
    again = lm.load(tmp_path / "m.lm")
    for name in ("word", "first_child", "suffix"):
        assert np.array_equal(getattr(again, name), getattr(model, name))
    assert np.abs(again.log_prob - np.maximum(model.log_prob, -32)).max() <= 0.5 / 1024 + 1e-6
    assert np.abs(again.backoff - model.backoff).max() <= 0.5 / 1024 + 1e-6


@pytest.mark.parametrize(
    ("name", "index", "lie"),
    [
        ("words", slice(-1, None), ord("\n")),  # one more word than the empty context has children
        ("num_children_uint8", 0, 4),  # fewer than there are words
        ("num_children_uint8", 1, 255),  # so that one is missing among those in 16 bits
        ("gap_uint8", 3, 200),  # beyond the vocabulary
        ("gap_uint8", 3, 2),  # an id without a word
        ("log_prob_values", (1, 2), np.nan),
        ("backoff_values", (1, 0), np.inf),
        ("is_context", 0, 0),
        ("backoff_values", slice(None), None),  # cut to order 1
        ("log_prob", slice(None), None),
        ("num_children_int32", slice(None), -1),
    ],
)
def test_arrays_that_contradict_each_other_are_an_error(
    tmp_path: Path, name: str, index: object, lie: float | None
) -> None:
    path = tmp_path / "m.lm"
    lm.save(lm.train(TEXT, order=3), path)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    tensors = {key: tensor.copy() for key, tensor in load_file(path).items()}
    if lie is None:
        tensors[name] = tensors[name][:1]
    elif name == "num_children_int32":
        tensors["num_children_uint8"][1], tensors["num_children_uint16"] = 255, np.array([65_535], np.uint16)
        tensors[name] = np.array([lie], np.int32)
    else:
        tensors[name][index] = lie
    save_file(tensors, path, metadata)
    with pytest.raises(LanguageModelError, match=r"m\.lm: expected a compact language model, found arrays that"):
        lm.load(path)


def test_kenlm_gives_our_arpa_files_the_same_scores(tmp_path: Path) -> None:
    kenlm = pytest.importorskip("kenlm")
    model = lm.train(random_text(4), order=3, prune_threshold=1e-4)
    lm.write_arpa(model, tmp_path / "m.arpa")
    theirs = kenlm.Model(str(tmp_path / "m.arpa"))
    for sentence in [*random_text(5, 50), "unheard aa words"]:
        assert model.score_sentences([sentence])[0] / lm.LN_10 == pytest.approx(theirs.score(sentence), abs=1e-4)


ARPA = """\\data\\
ngram 1=5
ngram 2=2

\\1-grams:
-1.0\t<unk>
-99\t<s>\t-0.2
-0.7\t</s>
-0.5\ta\t-0.3
-0.6\tb

\\2-grams:
-0.2\t<s> a
-0.4\ta b

\\end\\
"""


def test_arpa_probabilities_are_read_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "m.arpa").write_text(ARPA)
    model = lm.read_arpa(tmp_path / "m.arpa")
    total = -0.2 + -0.4 + (0 + -0.7)  # <s> a, a b, b backs off for nothing to </s>
    assert model.score_sentences(["a b"])[0] == pytest.approx(total * lm.LN_10, abs=1e-5)
    total = (-0.2 - 0.6) + -0.7  # <s> backs off to b
    assert model.score_sentences(["b"])[0] == pytest.approx(total * lm.LN_10, abs=1e-5)


def test_an_arpa_file_without_unknown_gets_one_that_is_all_but_impossible(tmp_path: Path) -> None:
    (tmp_path / "m.arpa").write_text(ARPA.replace("-1.0\t<unk>\n", "").replace("ngram 1=5", "ngram 1=4"))
    model = lm.read_arpa(tmp_path / "m.arpa")
    assert model.score(0, lm.UNKNOWN_ID)[0] == pytest.approx(-100 * lm.LN_10)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("\\data\\", "data", 1),
        ("ngram 2=2", "ngram 3=2", 3),
        ("ngram 1=5", "ngram 1=6", 11),
        ("ngram 1=5", "ngram 1=4", 10),
        ("-0.5\ta", "x\ta", 9),
        ("-0.5\ta", "0.5\ta", 9),
        ("-0.5\ta", "nan\ta", 9),
        ("-0.3", "inf", 9),
        ("-0.6\tb", "-0.6\ta", 10),
        ("-0.6\tb", "-0.6\tb\t-1\t-2", 10),
        ("-99\t<s>\t-0.2", "-99\tc\t-0.2", 6),
        ("\\2-grams:", "\\3-grams:", 12),
        ("a b\n", "a c\n", 14),
        ("a b\n", "<s> a\n", 14),
        ("\\end\\", "", 16),
    ],
)
def test_a_broken_arpa_file_is_an_error_that_names_the_line(tmp_path: Path, old: str, new: str, line: int) -> None:
    assert ARPA.count(old) == 1
    path = tmp_path / "broken.arpa"
    path.write_text(ARPA.replace(old, new))
    with pytest.raises(LanguageModelError, match=rf"broken\.arpa:{line}: expected .* found"):
        lm.load(path)


def test_a_context_that_is_not_listed_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "m.arpa"
    path.write_text(
        ARPA.replace("ngram 2=2\n", "ngram 2=2\nngram 3=1\n").replace("\\end", "\\3-grams:\n-0.1\tb a b\n\n\\end")
    )
    with pytest.raises(LanguageModelError, match=r"m\.arpa:18: expected the context 'b a'"):
        lm.load(path)


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.2, 0.9, 0.99])
def test_a_cut_file_is_an_error(tmp_path: Path, keep: float) -> None:
    model = lm.train(TEXT, order=3)
    lm.save(model, tmp_path / "m.lm")
    lm.write_arpa(model, tmp_path / "m.arpa.gz")
    for name in ("m.lm", "m.arpa.gz"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: int(keep * len(whole))])
        with pytest.raises(LanguageModelError, match=name):
            lm.load(tmp_path / name)


def test_another_kind_of_file_is_an_error(tmp_path: Path) -> None:
    save_file({"x": np.zeros(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(LanguageModelError, match="another kind of file"):
        lm.load(tmp_path / "weights.safetensors")
    with pytest.raises(LanguageModelError, match="no such language model"):
        lm.load(tmp_path / "nowhere.lm")


def test_sentences_are_read_plain_or_packed(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a b\n\n c\n")
    with gzip.open(tmp_path / "t.gz", "wt") as file:
        file.write("a b\n\n c\n")
    for name in ("t.txt", "t.gz"):
        assert list(lm.read_sentences(tmp_path / name)) == ["a b", "c"]
    (tmp_path / "bad.txt").write_bytes(b"a b\n\xff\xfe\n")
    with pytest.raises(LanguageModelError, match=r"bad\.txt"):
        list(lm.read_sentences(tmp_path / "bad.txt"))
