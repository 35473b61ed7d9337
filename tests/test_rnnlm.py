"""Facts about recurrent language models. Oracles: torch's nn.GRU text by text, the n-gram model alone, a grammar whose perplexity is known."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.numpy import load_file, save_file
from torch import nn

from asr import lm, rnnlm, rnnlm_train
from asr.cli import main
from asr.lm import LanguageModel, LanguageModelError
from asr.rnnlm import RecurrentLanguageModel
from asr.rnnlm_train import RnnlmConfig

WORDS = (lm.UNKNOWN, lm.START, lm.END, "the", "cat", "dog", "sat", "ran", "a")
TEXTS = ["the cat sat", "the cat sat down", "the cat ran", "a dog", "", "the", "zebras ran", "the cat sat", "zebras sat <unk> on the dog"]


def random_model(seed: int = 0, *, width: int = 6, hidden: int = 10) -> RecurrentLanguageModel:
    rng = np.random.default_rng(seed)
    shapes = {
        "embedding": (len(WORDS), width), "bias": (len(WORDS),), "input_weight": (3 * hidden, width), "recurrent_weight": (3 * hidden, hidden),
        "input_bias": (3 * hidden,), "recurrent_bias": (3 * hidden,), "projection": (width, hidden), "projection_bias": (width,),
    }  # fmt: skip
    return RecurrentLanguageModel(WORDS, **{name: (0.7 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()})


@functools.cache
def ngram() -> LanguageModel:
    return lm.train(["the cat sat down", "the dog ran", "zebras sat on a dog", "a cat ran"], order=3)


def scores(model: RecurrentLanguageModel, text: str) -> np.ndarray:
    """The scores of all words at each place of a text and after it, by nn.GRU: (T, V)."""
    hidden = model.projection.shape[1]
    gru = nn.GRU(model.embedding.shape[1], hidden).double()
    names = {"weight_ih_l0": "input_weight", "weight_hh_l0": "recurrent_weight", "bias_ih_l0": "input_bias", "bias_hh_l0": "recurrent_bias"}
    gru.load_state_dict({name: torch.from_numpy(getattr(model, mine)) for name, mine in names.items()})
    ids = [lm.START_ID, *(model.word_ids.get(word, lm.UNKNOWN_ID) for word in text.split())]
    with torch.no_grad():
        states = gru(torch.from_numpy(model.embedding[ids]).double()[:, None])[0][:, 0].numpy()
    return (states @ model.projection.T + model.projection_bias) @ model.embedding.T + model.bias


def mixture(model: RecurrentLanguageModel, text: str, weight: float) -> float:
    """ln p of a text, word by word."""
    total, state = 0.0, np.array(ngram().start_state)
    for word, row in zip([*text.split(), lm.END], scores(model, text), strict=True):
        log_prob, state = ngram().score(state, ngram().word_ids.get(word, lm.UNKNOWN_ID))
        known = word in WORDS and word != lm.UNKNOWN
        total += math.log(weight * math.exp(row[WORDS.index(word)]) + (1 - weight) * math.exp(log_prob)) if known else float(log_prob)
    return total


@pytest.mark.parametrize("weight", [0.01, 0.5, 0.9])
def test_the_mixture_is_that_of_torch_text_by_text(weight: float) -> None:
    model = random_model()
    mixed, alone = model.interpolate(TEXTS, ngram(), weight)
    np.testing.assert_allclose(mixed, [mixture(model, text, weight) for text in TEXTS], rtol=1e-5)
    np.testing.assert_array_equal(alone, ngram().score_sentences(TEXTS))


def test_at_weight_0_the_ngram_model_is_alone() -> None:
    mixed, _ = random_model().interpolate(TEXTS, ngram(), 0)
    np.testing.assert_array_equal(mixed, ngram().score_sentences(TEXTS))


def test_at_weight_1_known_words_have_the_recurrent_models_probability() -> None:
    model = random_model()
    texts = ["the cat ran", "the cat", "", "a dog sat sat"]
    expected = [sum(row[WORDS.index(word)] for word, row in zip([*text.split(), lm.END], scores(model, text), strict=True)) for text in texts]
    np.testing.assert_allclose(model.interpolate(texts, ngram(), 1)[0], expected, rtol=1e-5)


def test_unknown_words_count_as_the_ngram_model_has_them_and_the_state_goes_on() -> None:
    model = random_model()
    for text in ("zebras", "quaggas"):  # in the n-gram model the first is known
        state = np.array(ngram().start_state)
        log_prob, state = ngram().score(state, ngram().word_ids.get(text, lm.UNKNOWN_ID))
        end = scores(model, "<unk>")[1, lm.END_ID]
        assert model.interpolate([text], ngram(), 1)[0][0] == pytest.approx(log_prob + end, rel=1e-5)


def test_a_common_beginning_is_computed_once() -> None:
    tree = rnnlm._grow(["the cat sat", "the cat ran", "the dog ran", "the cat sat"])
    assert [len(level) for level in tree.levels] == [1, 2, 3, 3] and np.array_equal(tree.paths[0], tree.paths[3])


def test_after_the_same_words_at_the_same_place_the_first_text_decides() -> None:
    texts = ["the dog saw the cat", "a dog saw the cat", "a dog saw a cat"]
    tree = rnnlm._grow(texts, history=2)
    assert [len(level) for level in tree.levels] == [2, 2, 1, 2, 2, 1]
    assert tree.paths[1, 2] == tree.paths[0, 2] and tree.parent[tree.paths[1, 2]] == tree.paths[0, 1] != tree.paths[1, 1]
    model = random_model()
    exact, _ = model.interpolate(texts, ngram(), 1)
    merged, _ = model.interpolate(texts, ngram(), 1, history=2)
    assert merged[0] == pytest.approx(exact[0]) and merged[1] != pytest.approx(exact[1])
    np.testing.assert_allclose(model.interpolate(texts, ngram(), 1, history=6)[0], exact, rtol=1e-6)


def test_products_of_bytes_change_little() -> None:
    model = random_model()
    exact, _ = model.interpolate(TEXTS, ngram(), 0.5)
    rounded, _ = dataclasses.replace(model, as_bytes=True).interpolate(TEXTS, ngram(), 0.5)
    assert 0 < np.abs(rounded - exact).max() < 0.2


def test_no_texts_have_no_probabilities() -> None:
    mixed, alone = random_model().interpolate([], ngram(), 0.5)
    assert mixed.shape == alone.shape == (0,)


@pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan])
def test_a_weight_is_from_0_to_1(weight: float) -> None:
    with pytest.raises(LanguageModelError, match="weight of the recurrent language model from 0 to 1"):
        random_model().interpolate(TEXTS, ngram(), weight)


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_holds_the_model_in_fewer_bits(tmp_path: Path) -> None:
    model = random_model(1)
    model.embedding[4] = 0
    rnnlm.save(model, tmp_path / "m")
    found = rnnlm.load(tmp_path / "m")
    assert found.words == model.words
    half_step = np.abs(model.embedding).max(axis=1, keepdims=True) / 127 / 2
    assert (np.abs(found.embedding - model.embedding) <= half_step * 1.001).all()
    for name in ("input_weight", "recurrent_weight", "projection"):
        np.testing.assert_allclose(getattr(found, name), getattr(model, name), rtol=2**-11)
    for name in ("bias", "input_bias", "recurrent_bias", "projection_bias"):
        np.testing.assert_array_equal(getattr(found, name), getattr(model, name))
    assert all(getattr(found, name).dtype == np.float32 for name in vars(found) if name not in ("words", "word_ids", "as_bytes"))
    rnnlm.save(found, tmp_path / "again")  # nothing more is lost
    np.testing.assert_allclose(rnnlm.load(tmp_path / "again").embedding, found.embedding, rtol=1e-6)


def test_what_16_bits_cannot_hold_is_not_written(tmp_path: Path) -> None:
    model = random_model()
    model.projection[0, 0] = 1e6
    with pytest.raises(LanguageModelError, match="projection would have numbers that are not finite"):
        rnnlm.save(model, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "damaged.rnn"
    with pytest.raises(LanguageModelError, match=r"damaged\.rnn: no such recurrent language model file"):
        rnnlm.load(path)
    rnnlm.save(random_model(), path)
    whole = path.read_bytes()
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(LanguageModelError, match=r"damaged\.rnn: expected a recurrent language model, found a damaged file"):
            rnnlm.load(path)


def test_another_kind_of_file_is_named(tmp_path: Path) -> None:
    lm.save(ngram(), tmp_path / "ngram.lm")
    with pytest.raises(LanguageModelError, match=r"ngram\.lm: expected a language model of format 'asr recurrent lm' version 1"):
        rnnlm.load(tmp_path / "ngram.lm")
    lm.write_arpa(ngram(), tmp_path / "ngram.arpa")
    with pytest.raises(LanguageModelError, match=r"ngram\.arpa: expected a recurrent language model"):
        rnnlm.load(tmp_path / "ngram.arpa")
    rnnlm.save(random_model(), tmp_path / "m")
    assert [rnnlm.is_recurrent(tmp_path / name) for name in ("m", "ngram.lm", "ngram.arpa", "none")] == [True, False, False, False]
    save_file(load_file(tmp_path / "m"), tmp_path / "new", {"format": rnnlm.FORMAT, "version": "2"})
    with pytest.raises(LanguageModelError, match=r"new: .*version 1, found .*newer version"):
        rnnlm.load(tmp_path / "new")


def _words(*words: str) -> np.ndarray:
    return np.frombuffer("\n".join(words).encode(), np.uint8)


FAULTS: dict[str, Callable[[dict[str, np.ndarray]], object]] = {
    "first words": lambda t: t.update(words=_words(lm.START, lm.UNKNOWN, lm.END, *WORDS[3:])),
    "a word too few": lambda t: t.update(words=_words(*WORDS[:-1])),
    "a word twice": lambda t: t.update(words=_words(*WORDS[:-1], "the")),
    "not UTF-8": lambda t: t.update(words=np.full(9, 255, np.uint8)),
    "an array too few": lambda t: t.pop("bias"),
    "an array too many": lambda t: t.update(more=t["bias"]),
    "no embedding": lambda t: t.pop("embedding"),
    "a scale too few": lambda t: t.update(scale=t["scale"][1:]),
    "another size": lambda t: t.update(recurrent_weight=t["recurrent_weight"][:, 1:].copy()),
    "a vector": lambda t: t.update(projection=t["projection"].ravel()),
    "another type": lambda t: t.update(projection=t["projection"].astype(np.int16)),
    "NaN": lambda t: t["bias"].__setitem__(3, np.nan),
    "infinity": lambda t: t["input_weight"].__setitem__((0, 0), np.inf),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_arrays_that_do_not_fit_are_refused(fault: str, tmp_path: Path) -> None:
    rnnlm.save(random_model(), tmp_path / "good")
    tensors = load_file(tmp_path / "good")
    FAULTS[fault](tensors)
    save_file(tensors, tmp_path / "bad", {"format": rnnlm.FORMAT, "version": rnnlm.FORMAT_VERSION})
    with pytest.raises(LanguageModelError, match=r"bad: expected a recurrent language model, found arrays that do not fit \(.+\)"):
        rnnlm.load(tmp_path / "bad")


# --- training --------------------------------------------------------------------------------------------------------

SMALL = RnnlmConfig(vocabulary_size=50, embedding_size=16, hidden_size=24, passes=20, batch_words=100, num_samples=100, learning_rate=1e-2, num_threads=1)
TINY = replace(SMALL, hidden_size=8, passes=1.5, save_minutes=1e-9)


def sentences(seed: int, number: int) -> list[str]:
    """`left-i and right-i`, i from 0 to 3: the last word is the first one's, which no bigram sees; the entropy of a sentence is ln 4."""
    return [f"left{i} and right{i}" for i in np.random.default_rng(seed).integers(0, 4, number)]


@functools.cache
def trained(folder: Path) -> RecurrentLanguageModel:
    return rnnlm_train.train(sentences(0, 1000), SMALL, folder / "m")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trained")


def test_training_learns_what_a_bigram_model_cannot(folder: Path) -> None:
    bigram = lm.train(sentences(0, 1000), order=2)
    recurrent, alone = (-x.mean() for x in trained(folder).interpolate(sentences(1, 200), bigram, 1))  # nats a sentence
    assert abs(recurrent - math.log(4)) < 0.4
    assert alone > 2 * math.log(4) - 0.1


def test_training_makes_probabilities_sum_to_one(folder: Path) -> None:
    log_sums = [torch.from_numpy(scores(trained(folder), text)[:-1]).logsumexp(1).abs().mean().item() for text in sentences(2, 50)]
    assert np.mean(log_sums) < 0.3


def test_training_writes_the_model_and_leaves_no_state(folder: Path) -> None:
    model = trained(folder)
    found = rnnlm.load(folder / "m")
    assert [path.name for path in folder.iterdir()] == ["m"]
    assert found.words == model.words and set(model.words[3:]) == set(" ".join(sentences(0, 50)).split())
    np.testing.assert_allclose(found.interpolate(sentences(1, 9), ngram(), 1)[0], model.interpolate(sentences(1, 9), ngram(), 1)[0], atol=0.1)


def test_a_training_goes_on_from_a_model_with_its_words(folder: Path, tmp_path: Path) -> None:
    before, text = trained(folder), [sentence.replace("right0", "right1") for sentence in sentences(1, 300)]  # and no right0
    settings = replace(SMALL, passes=5, hidden_size=9, vocabulary_size=2)
    unchanged = rnnlm_train.train(text, replace(settings, learning_rate=1e-12), tmp_path / "unchanged", init=folder / "m")
    after = rnnlm_train.train(text, settings, tmp_path / "after", init=folder / "m")
    assert after.words == before.words
    old, same_as_old, new = (m.interpolate(["left0 and right1", "left2 and right2"], ngram(), 1)[0] for m in (rnnlm.load(folder / "m"), unchanged, after))
    np.testing.assert_allclose(same_as_old, old, atol=1e-4)
    assert new[0] > old[0] + 2 and abs(new[1] - old[1]) < 1


def same(one: RecurrentLanguageModel, other: RecurrentLanguageModel) -> bool:
    return one.words == other.words and all(np.array_equal(getattr(one, name), getattr(other, name)) for name in vars(other) if name != "word_ids")


def stop_after(monkeypatch: pytest.MonkeyPatch, num_steps: int) -> None:
    """Let the training die as if killed when it begins its next step."""
    step, steps = rnnlm_train._step, iter(range(num_steps))

    def dying(*arguments: object) -> float:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(rnnlm_train, "_step", dying)


def test_a_resumed_training_repeats_the_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = sentences(0, 150)
    whole = rnnlm_train.train(text, TINY, tmp_path / "whole")
    assert same(rnnlm_train.train(text, TINY, tmp_path / "twice"), whole)
    assert not same(rnnlm_train.train(text, replace(TINY, seed=1), tmp_path / "other"), whole)
    for killed_after in (3, 4):  # in the first pass and in the second
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_after(patch, killed_after)
            rnnlm_train.train(text, TINY, tmp_path / "m", resume=killed_after > 3)
        assert not (tmp_path / "m").exists()
    states = sorted((tmp_path / "m.state").iterdir())
    states[-1].write_bytes(states[-1].read_bytes()[:1000])  # a damaged one is passed over
    assert same(rnnlm_train.train(text, TINY, tmp_path / "m", resume=True), whole)
    assert same(rnnlm.load(tmp_path / "m"), rnnlm.load(tmp_path / "whole"))
    assert not (tmp_path / "m.state").exists()


def test_resuming_needs_a_state_of_the_same_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, out = sentences(0, 100), tmp_path / "m"
    with pytest.raises(ValueError, match=r"m\.state: nothing to resume from"):
        rnnlm_train.train(text, TINY, out, resume=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 1)
        rnnlm_train.train(text, TINY, out)
    with pytest.raises(LanguageModelError, match=r"m\.state: holds the states of a training already; resume it, or delete the folder"):
        rnnlm_train.train(text, TINY, out)
    with pytest.raises(LanguageModelError, match=r"m\.state: the training was started with another hidden_size, seed; resume"):
        rnnlm_train.train(text, replace(TINY, hidden_size=9, seed=5), out, resume=True)
    with pytest.raises(LanguageModelError, match=r"m\.state: the training was started with another text; resume"):
        rnnlm_train.train(text[::-1], TINY, out, resume=True)
    rnnlm_train.train(text, replace(TINY, save_minutes=5), out, resume=True)
    assert out.exists()


def test_a_loss_that_is_not_finite_ends_training(tmp_path: Path) -> None:
    with pytest.raises(LanguageModelError, match=r"step \d+: the loss is .*the learning rate may be too high \(now 1e\+30\)"):
        rnnlm_train.train(sentences(0, 100), replace(TINY, learning_rate=1e30), tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("setting", "value"),
    [("vocabulary_size", 0), ("hidden_size", -1), ("passes", 0.0), ("learning_rate", math.nan), ("dropout", 1.0), ("seed", -1), ("save_minutes", math.inf)],
)
def test_settings_without_sense_are_refused(setting: str, value: float) -> None:
    with pytest.raises(LanguageModelError, match=f"{setting}: expected .* found {value!r}"):
        RnnlmConfig(**{setting: value})  # type: ignore[arg-type]


def test_a_text_without_words_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LanguageModelError, match="expected sentences to train on, found no word"):
        rnnlm_train.train(["", " "], TINY, tmp_path / "m")


def test_long_sentences_are_learned_piece_by_piece_and_each_word_once() -> None:
    """130 words in a row and then 2: each pair of words that follow one another is learned once, in pieces of at most 60."""
    _, stream = lm.read_words([" ".join(f"w{i:03}" for i in range(130)), "b c"], None)
    text = rnnlm_train._cut(stream)
    assert text.lengths.tolist() == [60, 60, 11, 3]
    inputs, targets = (x.numpy() for x in rnnlm_train._rows(text, np.arange(4)))
    learned = np.stack([inputs[targets >= 0], targets[targets >= 0]])
    expected = np.stack([stream[:-1], stream[1:]])[:, stream[1:] != lm.START_ID]
    assert sorted(map(tuple, learned.T)) == sorted(map(tuple, expected.T))
    assert inputs[:, 1][0] == targets[:, 0][-1]


def test_batches_take_every_piece_once_and_hold_no_more_words_than_they_may() -> None:
    lengths = np.random.default_rng(0).integers(1, 61, 30_000)
    batches = rnnlm_train._shuffle(lengths, 300, np.random.default_rng(0))
    assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(len(lengths)))
    padded = np.array([len(batch) * lengths[batch].max() for batch in batches])
    assert padded.max() <= 300 and padded.sum() < 1.02 * lengths.sum()
    assert [len(batch) for batch in rnnlm_train._shuffle(np.full(3, 50), 10, np.random.default_rng(0))] == [1, 1, 1]


def test_the_sampled_loss_is_the_softmax_over_all_words_on_average() -> None:
    torch.manual_seed(0)
    unigram = torch.softmax(torch.randn(30), 0)
    network = rnnlm_train.RecurrentNetwork(unigram, replace(SMALL, dropout=0))
    nn.init.normal_(network.embed.weight, std=0.5)
    inputs, targets = torch.randint(30, (7, 5)), torch.randint(30, (7, 5))
    targets[5:, 2] = -1
    num_samples = 50_000
    negatives = torch.multinomial(unigram, num_samples, replacement=True)
    loss, log_z = rnnlm_train._losses(network, inputs, targets, negatives, (num_samples * unigram).log())
    every = network(inputs)[targets >= 0] @ network.embed.weight.t() + network.bias
    expected = nn.functional.cross_entropy(every, targets[targets >= 0])
    assert loss.item() == pytest.approx(expected.item(), abs=0.01)
    torch.testing.assert_close(log_z, every.logsumexp(1), atol=0.05, rtol=0)


def test_a_trained_network_becomes_the_same_model() -> None:
    torch.manual_seed(0)
    network = rnnlm_train.RecurrentNetwork(torch.full((len(WORDS),), 1 / len(WORDS)), SMALL).eval()
    model = rnnlm_train.to_model(network.state_dict(), WORDS)
    ids = torch.tensor([[lm.START_ID, 3, 4, 6]]).t()  # (T, 1)
    with torch.no_grad():
        expected = (network(ids)[:, 0] @ network.embed.weight.t() + network.bias).numpy()
    np.testing.assert_allclose(scores(model, "the cat sat"), expected, atol=1e-5)


def test_progress_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(rnnlm_train, "LOG_SECONDS", 0.0)
    with caplog.at_level(logging.INFO):
        rnnlm_train.train(sentences(0, 50), replace(TINY, save_minutes=5), tmp_path / "m")
    assert "million words  loss " in caplog.messages[-1] and caplog.messages[-1].endswith("0:00 h left")


# --- commands --------------------------------------------------------------------------------------------------------


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in ("lm", *arguments)])


def test_the_command_trains_and_info_describes(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n".join(sentences(0, 100)))
    settings = ("--words", 5, "--embedding", 5, "--hidden", 7, "--passes", 0.5, "--threads", 1)
    done = run("train-recurrent", tmp_path / "text.txt", "--out", tmp_path / "m", *settings)
    assert done.exit_code == 0, done.output
    assert f"{tmp_path / 'm'}\twords 8\tembedding 5\thidden 7\t" in done.stdout
    model = rnnlm.load(tmp_path / "m")
    assert len(model.words) == 8 and model.projection.shape == (5, 7)
    assert run("info", tmp_path / "m").stdout == "words\t8\nembedding\t5\nhidden\t7\n"
    done = run("train-recurrent", tmp_path / "text.txt", "--out", tmp_path / "n", "--init", tmp_path / "m", "--threads", 1)
    assert f"{tmp_path / 'n'}\twords 8\tembedding 5\thidden 7\t" in done.stdout, done.output
    lm.save(ngram(), tmp_path / "ngram")
    assert run("info", tmp_path / "ngram").stdout.startswith("order\t3\n")


def test_the_commands_errors_are_one_line(tmp_path: Path) -> None:
    for arguments, message in (
        (("train-recurrent", tmp_path / "none.txt", "--out", tmp_path / "m"), "none.txt: cannot be read"),
        (("train-recurrent", tmp_path / "none.txt", "--out", tmp_path / "m", "--resume"), "m.state: nothing to resume from"),
        (("info", tmp_path / "none.lm"), "none.lm: no such language model file"),
    ):
        done = run(*arguments)
        assert done.exit_code == 1 and message in done.stderr and done.stderr.count("\n") == 1
