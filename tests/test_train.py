"""Facts about training: it learns, resumes exactly, survives kills and bad numbers, and splits over processes without a difference."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SENTENCES

import asr.data
import asr.lm
import asr.train
from asr.augment import AugmentConfig
from asr.checkpoint import CheckpointError, load_model_folder, load_network, load_training_state, save_decoder_settings
from asr.data import epoch_batches, utterance_seed
from asr.decoder import beam_search, greedy_decode
from asr.g2p import train_g2p
from asr.lexicon import Lexicon, LexiconError, read_lexicon, write_lexicon
from asr.logmel import FeatureConfig
from asr.manifest import ManifestError, Utterance, read_manifest, read_utterance
from asr.model import ModelConfig
from asr.text import TextError
from asr.train import TrainConfig, TrainingError, _changed, learning_rate, train
from asr.transcribe import Transcriber

Tones = Callable[..., Path]

PLAIN = AugmentConfig(speeds=(1.0,), freq_masks=0, time_masks_per_s=0.0)
FEATURES = FeatureConfig(num_mels=40)
MODEL = ModelConfig(num_mels=40, num_layers=1, hidden_size=32, conv_channels=32, dropout=0.0, subsampling=4)


def small_config(manifest: Path, **changes: Any) -> TrainConfig:
    """A run of a few steps an epoch, without any augmentation or dropout."""
    settings: dict[str, Any] = dict(
        train_manifests=(str(manifest),),
        features=FEATURES,
        model=MODEL,
        augment=PLAIN,
        epochs=2,
        batch_s=3.0,
        learning_rate=3e-3,
        warmup_epochs=0.5,
        ema_decay=0.9,
        num_workers=0,
    )
    return TrainConfig(**settings | changes)


def random_config(manifest: Path, **changes: Any) -> TrainConfig:
    """The same with everything on that draws random numbers, and a state after every step."""
    settings: dict[str, Any] = dict(
        model=ModelConfig(num_mels=40, num_layers=1, hidden_size=16, conv_channels=16, dropout=0.3),
        augment=AugmentConfig(noise_probability=0.5, freq_warp=0.1, silence_tilt=0.5),
        consistency=0.2,
        precision="bfloat16",
        epochs=3,
        save_minutes=1e-9,
        num_workers=1,
    )
    return small_config(manifest, **settings | changes)


def weights_hash(run_dir: Path) -> str:
    """Return a hash of the weights, their average and the optimiser's moments in the newest state."""
    state = load_training_state(run_dir)
    digest = hashlib.sha256()
    tensors = [*state["network"].values(), *state["average"].values()]
    for optimiser in state["optimisers"]:
        tensors += [value for moments in optimiser["state"].values() for value in moments.values()]
    for tensor in tensors:
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


class Stop(Exception):
    """Ends a training from within."""


def stop_at_step(monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    step = asr.train._step

    def stopping(run: asr.train.Run, *arguments: Any, **named: Any) -> dict[str, float]:
        if run.progress.step == last:
            raise Stop
        return step(run, *arguments, **named)

    monkeypatch.setattr(asr.train, "_step", stopping)


def train_until(last: int, config: TrainConfig, run_dir: Path, *, resume: bool = False) -> None:
    """Train, and stop before the step after step `last`."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop_at_step(monkeypatch, last)
        with pytest.raises(Stop):
            train(config, run_dir, resume=resume)


def record_gradients(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Return a list to which every step adds all its gradients as one vector."""
    step, gradients = asr.train._step, []

    def recording(run: asr.train.Run, *arguments: Any, **named: Any) -> dict[str, float]:
        figures = step(run, *arguments, **named)
        gradients.append(torch.cat([p.grad.flatten() for p in run.network.parameters() if p.grad is not None]).clone())
        return figures

    monkeypatch.setattr(asr.train, "_step", recording)
    return gradients


# --- learning ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "hidden_size", "epochs", "rate"),
    [("gru", 48, 15, 6e-3), ("lstm", 48, 15, 6e-3), ("rnn_tanh", 48, 15, 6e-3), ("rnn_relu", 96, 45, 3e-3)],
)
def test_eight_utterances_are_learnt_by_heart(
    tones: Tones, tmp_path: Path, cell: str, hidden_size: int, epochs: int, rate: float
) -> None:
    manifest, dev = tones(repeat=8), tones(name="dev")
    model = ModelConfig(num_mels=40, cell=cell, num_layers=1, hidden_size=hidden_size, conv_channels=48, dropout=0.0)
    config = small_config(
        manifest, dev_manifests=(str(dev),), model=model, epochs=epochs, validate_epochs=epochs, batch_s=8.0, learning_rate=rate, warmup_epochs=1.0
    )
    result = train(config, tmp_path / "run")
    assert result.dev_wer == 0.0
    assert (result.epochs, result.model_dir) == (epochs, tmp_path / "run" / "best")
    folder = load_model_folder(result.model_dir)
    assert folder.info["dev_wer"] == {"dev": 0.0} and folder.network["cell"] == cell
    load_network(folder)


@pytest.mark.parametrize("mmi", [0.0, 1.0])
def test_spelling_and_pronunciation_are_learnt_beside_each_other(mmi: float, tones: Tones, tmp_path: Path) -> None:
    manifest, dev = tones(repeat=8), tones(name="dev")
    words = sorted(set(" ".join(SENTENCES).split()))
    lexicon = Lexicon(tuple(words), tuple(word.upper()[::-1] for word in words))  # the "sounds" of a word: its letters from the end
    write_lexicon(lexicon, tmp_path / "lexicon.txt")
    model = ModelConfig(num_mels=40, num_layers=1, hidden_size=48, conv_channels=48, dropout=0.0, num_sounds=len(lexicon.sounds))
    config = small_config(
        manifest, dev_manifests=(str(dev),), lexicon=str(tmp_path / "lexicon.txt"), sounds=lexicon.sounds.tokens, model=model, epochs=25, validate_epochs=25, batch_s=8.0, learning_rate=6e-3, warmup_epochs=1.0, mmi=mmi
    )  # fmt: skip
    result = train(config, tmp_path / "run")
    assert result.dev_wer == 0.0
    transcriber = Transcriber(result.model_dir)
    assert transcriber.sounds == lexicon.sounds
    utterances, lm = read_manifest(dev), asr.lm.train(SENTENCES, order=2)
    for utterance, log_probs in zip(utterances, transcriber.log_probs([read_utterance(u) for u in utterances]), strict=True):
        heard = log_probs[:, len(transcriber.vocabulary) :]
        if not mmi:  # with it the network says no more than a language model needs
            assert greedy_decode(heard, lexicon.sounds).text == lexicon.pronounce(utterance.text)
        assert beam_search(heard, lexicon.sounds, lm=lm, alpha=1.0, beta=0.0, lexicon=lexicon)[0].text == utterance.text
    settings = {"sounds": config.sounds, "model": model, "epochs": 1, "learning_rate": 1e-12}
    again = train(small_config(manifest, init=str(result.model_dir), **settings), tmp_path / "again")  # with the lexicon that is there
    source = load_network(load_model_folder(result.model_dir)).state_dict()
    found = load_training_state(again.model_dir.parent)["network"]
    assert all((found[name] - tensor).abs().max() < 1e-6 for name, tensor in source.items())
    asr.lm.save(lm, result.model_dir / "lm.safetensors")
    wers = []
    for beta in (0.0, -1e3):  # dev WER is that of the search with init's language model: here words cost nothing, or too much
        save_decoder_settings(result.model_dir, {"method": "beam", "alpha": 1.0, "beta": beta})
        searched = train(small_config(manifest, dev_manifests=(str(dev),), init=str(result.model_dir), **settings), tmp_path / f"beta {beta}")
        wers.append(searched.dev_wer)
    assert wers[0] == 0 and wers[1] > 0.3
    assert "with language model" in (searched.model_dir / "README.md").read_text()


def test_words_without_pronunciation_are_named_unless_a_model_of_letters_and_sounds_says_them(tones: Tones, tmp_path: Path) -> None:
    manifest = tones(("ab", "ba", "bab"))
    lexicon = Lexicon(("ab", "ba", "a"), ("AB", "BA", "A"))
    write_lexicon(lexicon, tmp_path / "lexicon.txt")
    model = ModelConfig(num_mels=40, num_layers=1, hidden_size=16, conv_channels=16, num_sounds=4)
    config = small_config(manifest, lexicon=str(tmp_path / "lexicon.txt"), sounds=lexicon.sounds.tokens, model=model, epochs=1)
    with pytest.raises(LexiconError, match=r"'train2'.*bab"):
        train(config, tmp_path / "run")
    asr.lm.save(train_g2p([("ab", "AB"), ("ba", "BA"), ("aa", "AA"), ("bb", "BB")]), tmp_path / "g2p.safetensors")
    result = train(config, tmp_path / "run")
    assert read_lexicon(result.model_dir / "lexicon.txt").first == {**lexicon.first, "bab": "BAB"}
    resumed = train(dataclasses.replace(config), tmp_path / "run", resume=True)
    assert resumed.epochs == 1


def test_sounds_that_do_not_fit_are_refused(tones: Tones, tmp_path: Path) -> None:
    manifest = tones()
    model = ModelConfig(num_mels=40, num_layers=1, hidden_size=32, conv_channels=32, num_sounds=4)
    with pytest.raises(TrainingError, match="num_sounds"):
        small_config(manifest, model=model)
    with pytest.raises(TrainingError, match="lexicon"):
        small_config(manifest, model=model, sounds=("<blank>", " ", "A", "B"))


def test_dropout_is_what_is_asked_for(tones: Tones, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used, real = [], torch.nn.functional.dropout
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, p, training: used.append(p) or real(x, p, training))
    train(small_config(tones(), model=dataclasses.replace(MODEL, dropout=0.4), epochs=1), tmp_path)
    assert set(used) == {0.4}


def test_the_learning_rate_rises_straight_and_falls_as_a_cosine() -> None:
    config = TrainConfig(train_manifests=("m",), epochs=10, warmup_epochs=2.0, learning_rate=1.0)
    rates = [learning_rate(config, epochs) for epochs in (0, 1, 2, 6, 10)]
    assert rates == pytest.approx([0, 0.5, 1.0, 0.5, 0.0])


def test_without_dev_manifests_the_last_weights_are_the_model(tones: Tones, tmp_path: Path) -> None:
    result = train(small_config(tones(), epochs=1), tmp_path / "run")
    assert math.isnan(result.dev_wer) and result.epochs == 1
    average = load_training_state(tmp_path / "run")["average"]
    network = load_network(load_model_folder(result.model_dir))
    assert all(torch.equal(tensor, average[name].half().float()) for name, tensor in network.state_dict().items())


def test_the_average_is_the_recursion_and_without_decay_the_weights(tones: Tones, tmp_path: Path) -> None:
    train(small_config(tones(), epochs=1, ema_decay=0.0), tmp_path / "run")
    state = load_training_state(tmp_path / "run")
    assert all(torch.equal(state["average"][name], tensor) for name, tensor in state["network"].items())


def test_log_and_config_are_json(tones: Tones, tmp_path: Path) -> None:
    dev = tones(name="dev")
    train(small_config(tones(), epochs=1, dev_manifests=(str(dev),)), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {"step", "loss", "grad_norm", "learning_rate", "audio_s_per_s", "epoch"} <= set(rows[0])
    assert {"dev_wer", "dev_wer/dev"} <= set(rows[-1])
    assert json.loads((tmp_path / "run" / "config.json").read_text())["epochs"] == 1


def test_training_stops_when_the_dev_wer_no_longer_falls(tones: Tones, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dev = tones(name="dev")
    config = small_config(tones(), dev_manifests=(str(dev),), learning_rate=1e-9, epochs=50, patience=2)
    result = train(config, tmp_path / "run")
    assert result.epochs == 3  # the first validation is the best; two more are not better
    weights = weights_hash(tmp_path / "run")
    assert train(config, tmp_path / "run", resume=True).epochs == 3  # resumed, it is still stopped
    assert weights_hash(tmp_path / "run") == weights


def test_dev_sets_of_the_same_name_are_all_scored(tones: Tones, tmp_path: Path) -> None:
    manifest, dev = tones(), tones(SENTENCES[:3], name="dev")
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "dev.jsonl"
    other.write_text(dev.read_text().replace('"dev', '"../dev'))
    train(small_config(manifest, epochs=1, dev_manifests=(str(dev), str(other))), tmp_path / "run")
    assert set(load_model_folder(tmp_path / "run" / "best").info["dev_wer"]) == {str(dev), str(other)}


def test_a_run_starts_from_a_model_folder(tones: Tones, tmp_path: Path) -> None:
    manifest = tones()
    first = train(small_config(manifest, epochs=1), tmp_path / "first")
    train(small_config(manifest, epochs=1, learning_rate=1e-12, init=str(first.model_dir)), tmp_path / "second")
    source = load_network(load_model_folder(first.model_dir)).state_dict()
    found = load_training_state(tmp_path / "second")["network"]
    assert all((found[name] - tensor).abs().max() < 1e-6 for name, tensor in source.items())
    with pytest.raises(TrainingError, match="init"):
        train(small_config(manifest, init=str(first.model_dir), model=ModelConfig(num_mels=40, num_layers=2)), tmp_path / "third")


def test_a_run_makes_a_model_deeper(tones: Tones, tmp_path: Path) -> None:
    manifest = tones()
    shallow = train(small_config(manifest, epochs=1), tmp_path / "shallow").model_dir
    for number in (2, 3):
        model = dataclasses.replace(small_config(manifest).model, num_layers=number, residual_layers=number - 1)
        config = small_config(manifest, epochs=1, learning_rate=1e-12, init=str(shallow), model=model)
        deep = train(config, tmp_path / str(number)).model_dir
        features, lengths = torch.randn(2, 50, 40), torch.tensor([50, 33])
        before, after = (load_network(load_model_folder(path))(features, lengths)[0] for path in (shallow, deep))
        assert (before - after).abs().max() < 1e-4
        shallow = deep
    plain = dataclasses.replace(model, num_layers=4, residual_layers=0)
    with pytest.raises(TrainingError, match="init"):
        train(small_config(manifest, init=str(shallow), model=plain), tmp_path / "plain")


def test_another_vocabulary_starts_the_output_layer_anew(tones: Tones, tmp_path: Path) -> None:
    manifest = tones(("ab", "ba"))
    first = train(small_config(manifest, epochs=1), tmp_path / "first")
    vocabulary = ("<blank>", "b", "a")
    model = ModelConfig(num_mels=40, num_layers=1, hidden_size=32, conv_channels=32, dropout=0.0, vocabulary_size=3)
    config = small_config(manifest, epochs=1, learning_rate=1e-12, init=str(first.model_dir), vocabulary=vocabulary, model=model)
    train(config, tmp_path / "second")
    source = load_network(load_model_folder(first.model_dir)).state_dict()
    found = load_training_state(tmp_path / "second")["network"]
    assert found["output.weight"].shape == (3, 64)
    assert all((found[name] - tensor).abs().max() < 1e-6 for name, tensor in source.items() if not name.startswith("output."))


# --- resuming ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [2, 5, 7])
def test_a_run_stopped_in_an_epoch_and_resumed_ends_with_the_same_weights(tones: Tones, tmp_path: Path, last: int) -> None:
    manifest, dev = tones(), tones(SENTENCES[:2], name="dev")
    config = random_config(manifest, dev_manifests=(str(dev),))
    train(config, tmp_path / "whole")
    train_until(last, config, tmp_path / "stopped")
    progress = load_training_state(tmp_path / "stopped")["progress"]
    assert progress["step"] == last
    result = train(config, tmp_path / "stopped", resume=True)
    assert result.epochs == 3
    assert weights_hash(tmp_path / "stopped") == weights_hash(tmp_path / "whole")


def test_a_state_written_after_an_epoch_s_last_batch_is_resumed(tones: Tones, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = random_config(tones(), epochs=2, num_workers=1)
    train(config, tmp_path / "whole")

    def stop(run: asr.train.Run) -> None:
        raise Stop

    monkeypatch.setattr(asr.train, "_end_epoch", stop)
    with pytest.raises(Stop):
        train(config, tmp_path / "stopped")
    progress = load_training_state(tmp_path / "stopped")["progress"]
    assert progress["epoch"] == 0 and progress["batch"] == progress["step"] > 1
    monkeypatch.undo()
    train(config, tmp_path / "stopped", resume=True)
    assert weights_hash(tmp_path / "stopped") == weights_hash(tmp_path / "whole")


def train_in_child(config: TrainConfig, run_dir: Path) -> None:
    torch.set_num_threads(1)
    train(config, run_dir, resume=any(run_dir.glob("state-*.pt")))


def start_child(target: Callable[..., None], *arguments: Any) -> Any:
    """Start a process by fork: it need not import torch again."""
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


def kill_and_resume(tones: Tones, tmp_path: Path, *, num_kills: int) -> None:
    manifest, dev = tones(repeat=2), tones(SENTENCES[:2], name="dev")
    config = random_config(manifest, dev_manifests=(str(dev),), epochs=6)
    started = time.monotonic()
    whole = start_child(train_in_child, config, tmp_path / "whole")
    whole.join()
    duration_s, rng = time.monotonic() - started, random.Random(0)
    run_dir, kills = tmp_path / "killed", 0
    while kills < num_kills:
        child = start_child(train_in_child, config, run_dir)
        child.join(rng.uniform(0.05, 0.5) * duration_s)
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
            child.join()
        else:  # done before the kill came
            assert child.exitcode == 0 and weights_hash(run_dir) == weights_hash(tmp_path / "whole")
            run_dir.rename(tmp_path / f"done-{kills}-{time.monotonic_ns()}")
        if any(run_dir.glob("state-*.pt")):
            for path in run_dir.glob("state-*.pt"):
                torch.load(path, weights_only=True)
    child = start_child(train_in_child, config, run_dir)
    child.join()
    assert child.exitcode == whole.exitcode == 0
    assert weights_hash(run_dir) == weights_hash(tmp_path / "whole")


def test_a_run_killed_twice_and_resumed_ends_with_the_same_weights(tones: Tones, tmp_path: Path) -> None:
    kill_and_resume(tones, tmp_path, num_kills=2)


@pytest.mark.slow
def test_a_run_killed_twenty_times_and_resumed_ends_with_the_same_weights(tones: Tones, tmp_path: Path) -> None:
    kill_and_resume(tones, tmp_path, num_kills=20)


def test_a_run_is_not_overwritten_and_not_resumed_as_another(tones: Tones, tmp_path: Path) -> None:
    manifest = tones()
    config = small_config(manifest, epochs=1)
    with pytest.raises(CheckpointError, match="nothing to resume"):
        train(config, tmp_path / "run", resume=True)
    train(config, tmp_path / "run")
    with pytest.raises(TrainingError, match="holds a run already"):
        train(config, tmp_path / "run")
    with pytest.raises(CheckpointError, match="learning_rate"):
        train(small_config(manifest, epochs=1, learning_rate=1e-4), tmp_path / "run", resume=True)


def test_a_run_can_go_on_for_more_epochs(tones: Tones, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = random_config(tones(), epochs=1)
    train(config, tmp_path / "run")
    longer = dataclasses.replace(config, epochs=2)
    result = train(longer, tmp_path / "run", resume=True)
    assert result.epochs == 2 and "the learning rate now falls over 2 epochs, not 1" in caplog.text
    rates = [(row["epoch"], row["learning_rate"]) for row in map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines()) if "loss" in row]
    assert all(rate == learning_rate(longer if epoch >= 1 else config, epoch) for epoch, rate in rates) and rates[-1][0] > 1


def test_a_resumed_run_with_a_damaged_newest_state_ends_with_the_same_weights(tones: Tones, tmp_path: Path) -> None:
    config = random_config(tones(), epochs=2)
    train(config, tmp_path / "whole")
    train_until(4, config, tmp_path / "stopped")
    newest = sorted((tmp_path / "stopped").glob("state-*.pt"))[-1]
    newest.write_bytes(newest.read_bytes()[:-1000])
    train(config, tmp_path / "stopped", resume=True)
    assert weights_hash(tmp_path / "stopped") == weights_hash(tmp_path / "whole")


# --- pieces and processes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [2, 3])
def test_accumulation_does_not_change_the_gradients(
    tones: Tones, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulation: int
) -> None:
    manifest = tones()
    config = small_config(manifest, epochs=1, clip_norm=1e9, batch_s=2.5, learning_rate=1e-9)
    sizes = [len(batch) for batch in epoch_batches([u.duration for u in read_manifest(manifest)], 2.5, seed=0, epoch=0)]
    assert min(sizes) == 1 and max(sizes) >= 3, sizes  # also batches with fewer utterances than pieces
    gradients = record_gradients(monkeypatch)
    train(config, tmp_path / "one")
    num_steps = len(gradients)
    train(small_config(manifest, epochs=1, clip_norm=1e9, batch_s=2.5, learning_rate=1e-9, accumulation=accumulation), tmp_path / "more")
    assert len(gradients) == 2 * num_steps
    for one, more in zip(gradients[:num_steps], gradients[num_steps:], strict=True):
        assert (one - more).norm() < 1e-5 * one.norm()


def train_as_rank(config: TrainConfig, run_dir: Path, rank: int, port: int) -> None:
    """What torchrun makes of a process; writes the gradients of every step."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with pytest.MonkeyPatch.context() as monkeypatch:
        gradients = record_gradients(monkeypatch)
        train(config, run_dir)
    torch.save(gradients, run_dir / f"gradients-{rank}.pt")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_have_the_gradients_of_one(
    tones: Tones, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulation: int
) -> None:
    manifest, dev = tones(), tones(SENTENCES[:2], name="dev")
    settings: dict[str, Any] = dict(epochs=2, clip_norm=1e9, batch_s=2.5, learning_rate=1e-9, accumulation=accumulation)
    config = small_config(manifest, dev_manifests=(str(dev),), **settings)
    gradients = record_gradients(monkeypatch)
    train(config, tmp_path / "one")
    monkeypatch.undo()
    port = free_port()
    children = [start_child(train_as_rank, config, tmp_path / "two", rank, port) for rank in (0, 1)]
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0, 0]
    ranks = [torch.load(tmp_path / "two" / f"gradients-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert len(gradients) == len(ranks[0]) == len(ranks[1]) > 4
    for one, first, second in zip(gradients, *ranks, strict=True):
        assert torch.equal(first, second)
        assert (one - first).norm() < 1e-5 * one.norm()
    state, expected = (load_training_state(tmp_path / name)["network"] for name in ("two", "one"))
    assert all((state[name] - tensor).abs().max() < 1e-5 for name, tensor in expected.items())


FAILING_RANK = """
import os, sys
import torch
torch.set_num_threads(1)
import asr.train
from asr.transcribe import Transcriber
from asr.train import TrainConfig, TrainingError
sys.path.insert(0, {tests!r})
from test_train import small_config
from pathlib import Path
step = asr.train._step
def failing(run, *arguments, **named):
    if run.rank == 1 and run.progress.step == 2:
        raise TrainingError("rank 1 cannot go on")
    return step(run, *arguments, **named)
asr.train._step = failing
asr.train.train(small_config(Path({manifest!r}), epochs=50), {run_dir!r})
"""


@pytest.mark.slow
def test_an_error_in_one_process_ends_all(tones: Tones, tmp_path: Path) -> None:
    script = tmp_path / "failing.py"
    script.write_text(FAILING_RANK.format(tests=str(Path(__file__).parent), manifest=str(tones()), run_dir=str(tmp_path / "run")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(asr.train.__file__).parents[1])}
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert result.returncode != 0
    assert "rank 1 cannot go on" in result.stderr


# --- bad numbers ------------------------------------------------------------------------------------------------------------------


def spoil(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> None:
    """Make the waveforms of some utterances NaN."""
    read = asr.manifest.read_utterance

    def spoilt(utterance: Utterance) -> np.ndarray:
        waveform = read(utterance)
        return np.full_like(waveform, np.nan) if utterance.id in names else waveform

    monkeypatch.setattr(asr.data, "read_utterance", spoilt)


def test_a_step_with_nan_is_skipped_and_named(
    tones: Tones, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = tones()
    spoil(monkeypatch, ("train3",))
    train(small_config(manifest, epochs=2), tmp_path / "run")
    assert caplog.text.count("skipped") == 2 and "train3" in caplog.text
    state = load_training_state(tmp_path / "run")
    assert all(tensor.isfinite().all() for part in ("network", "average") for tensor in state[part].values())
    assert state["progress"]["bad_steps"] <= 1
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert sum(row.get("loss", 0) is None for row in rows) == 2


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_ten_bad_steps_in_a_row_are_the_end(tones: Tones, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    manifest = tones()
    spoil(monkeypatch, tuple(f"train{i}" for i in range(8)))
    with pytest.raises(TrainingError, match="in a row"):
        train(small_config(manifest, epochs=50, precision=precision), tmp_path / "run")
    state = load_training_state(tmp_path / "run")
    assert all(tensor.isfinite().all() for tensor in state["network"].values())


def test_float16_skips_overflows_and_learns(tones: Tones, tmp_path: Path) -> None:
    train(small_config(tones(), epochs=2, precision="float16"), tmp_path / "run")
    state = load_training_state(tmp_path / "run")
    assert state["scaler"]["scale"] > 0 and state["progress"]["bad_steps"] < state["progress"]["step"]


def test_an_absurd_learning_rate_ends_in_a_clear_message(tones: Tones, tmp_path: Path) -> None:
    with pytest.raises((TrainingError, CheckpointError), match="learning rate"):
        train(small_config(tones(), epochs=20, learning_rate=1e30, warmup_epochs=0.0), tmp_path / "run")


# --- bad input --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"train_manifests": ()}, {"precision": "float8"}, {"epochs": 0}, {"batch_s": -1.0}, {"learning_rate": math.nan},
        {"accumulation": 0}, {"seed": -1}, {"ema_decay": 1.0}, {"patience": -1}, {"clip_norm": math.inf},
        {"vocabulary": ("<blank>", "a")}, {"features": FeatureConfig(num_mels=64)},
        {"features": FeatureConfig(num_mels=40, sample_rate=8000, max_frequency=4000.0)},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_trained_with_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(TrainingError):
        small_config(Path("m.jsonl"), **wrong)


def test_texts_too_long_for_their_audio_are_named_at_the_start(tones: Tones, tmp_path: Path) -> None:
    manifest = tones()
    lines = manifest.read_text().splitlines()
    row = json.loads(lines[2]) | {"text": "far too many letters for this", "id": "crowded"}
    manifest.write_text("\n".join([*lines[:2], json.dumps(row), *lines[3:]]))
    with pytest.raises(TrainingError, match="crowded"):
        train(small_config(manifest), tmp_path / "run")


def test_dev_texts_outside_the_vocabulary_are_named_at_the_start(tones: Tones, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, dev = tones(), tones(SENTENCES[:2], name="dev")
    dev.write_text(dev.read_text().replace("go forward", "go 4ward"))
    stop_at_step(monkeypatch, 0)
    with pytest.raises(TextError, match="'4'"):
        train(small_config(manifest, dev_manifests=(str(dev),)), tmp_path / "run")


def test_cuda_is_refused_where_there_is_none(tones: Tones, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainingError, match="no CUDA device"):
        train(small_config(tones(), device="cuda"), tmp_path / "run")


def test_the_masks_of_a_step_are_drawn_from_seed_and_step(tones: Tones, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = tones()
    gradients = record_gradients(monkeypatch)
    for seed in (0, 0, 1):
        config = random_config(manifest, epochs=1, seed=seed, num_workers=0, save_minutes=5.0, learning_rate=1e-9)
        train(config, tmp_path / f"run{len(gradients)}")
    first, again, other = (gradients[len(gradients) // 3 * i] for i in range(3))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert utterance_seed(0, 0, 0) != utterance_seed(0, 1, 0)


@pytest.fixture(autouse=True)
def log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="asr.train")


def test_a_setting_that_an_older_state_lacks_does_not_stop_its_run() -> None:
    new = {"epochs": 3, "model": {"cell": "gru", "later": 1}, "even_later": True}
    assert _changed({"epochs": 3, "model": {"cell": "gru"}}, new) == []
    assert _changed({"epochs": 4, "model": {"cell": "lstm"}}, new) == ["epochs", "model.cell"]


@pytest.mark.parametrize(("before", "after"), [("", "64"), ("7", "7")])
def test_few_products_are_kept_for_shapes_of_batches_unless_told_otherwise(before: str, after: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", before)  # also so that what train sets is undone
    if not before:
        monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    with pytest.raises(ManifestError):
        train(TrainConfig(train_manifests=(str(tmp_path / "missing.jsonl"),)), tmp_path / "run")
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == after
