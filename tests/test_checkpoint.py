"""Facts about model folders and training states: what is written is read back, what is damaged is a CheckpointError."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import random
import struct
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from asr.checkpoint import (
    SCHEMA_VERSION,
    CheckpointError,
    copy_decoder,
    find_model,
    load_model_folder,
    load_network,
    load_training_state,
    load_weights,
    save_model_folder,
    save_training_state,
)
from asr.logmel import FeatureConfig
from asr.model import AcousticModel, ModelConfig
from asr.storage import write_atomically
from asr.text import ENGLISH, Vocabulary

CONFIG = ModelConfig(num_mels=8, hidden_size=4, conv_channels=4, num_layers=1)
FEATURES = FeatureConfig(num_mels=8)


def save(path: Path, network: AcousticModel | None = None) -> AcousticModel:
    torch.manual_seed(0)
    network = network or AcousticModel(CONFIG).eval()
    save_model_folder(path, network, features=FEATURES, vocabulary=ENGLISH, info={"epochs": 3}, card="# A model\n")
    return network


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "model")
    return tmp_path / "model"


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn_tanh", "rnn_relu"])
def test_a_saved_model_is_read_back_rounded_to_16_bits(tmp_path: Path, cell: str) -> None:
    network = save(tmp_path / "m", AcousticModel(ModelConfig(num_mels=8, hidden_size=4, conv_channels=4, cell=cell)).eval())
    found = load_model_folder(tmp_path / "m")
    assert (found.name, found.features, found.vocabulary, found.info) == ("m", FEATURES, ENGLISH, {"epochs": 3})
    loaded = load_network(found)
    assert not loaded.training and loaded.config == network.config
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.half().float()), name
    x, lengths = torch.randn(2, 20, 8), torch.tensor([20, 13])
    assert (loaded(x, lengths)[0] - network(x, lengths)[0]).abs().max() < 0.01
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["README.md", "config.json", "model.safetensors", "vocabulary.json"]


def test_reading_the_folder_and_the_weights_needs_no_torch(folder: Path) -> None:
    weights = load_weights(load_model_folder(folder))
    assert all(array.dtype == "float32" for array in weights.values())


@pytest.mark.parametrize("name", ["config.json", "vocabulary.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "garbage", "folder"])
def test_damaged_files_are_named(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    data = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes({"empty": b"", "half": data[: len(data) // 2], "garbage": b"\xff\x00garbage" * 20}[damage])
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_network(load_model_folder(folder))


def test_flipped_bits_in_the_weights_are_found(folder: Path) -> None:
    path, rng = folder / "model.safetensors", random.Random(0)
    good = path.read_bytes()
    for _ in range(150):
        damaged = bytearray(good)
        damaged[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            weights = load_network(load_model_folder(folder)).state_dict()
        except CheckpointError:
            continue
        path.write_bytes(good)  # a bit that carries nothing, such as the name of the checksum
        expected = load_network(load_model_folder(folder)).state_dict()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "I64", "F32"])
def test_weights_of_another_kind_or_shape_do_not_fit(folder: Path, dtype: str) -> None:
    size = {"BF16": 2, "F8_E4M3": 1, "I64": 8, "F32": 4}[dtype]
    header = json.dumps({"output.bias": {"dtype": dtype, "shape": [3], "data_offsets": [0, 3 * size]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(3 * size))
    with pytest.raises(CheckpointError):
        load_network(load_model_folder(folder))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schema_version": SCHEMA_VERSION + 1}, "update the program"),
        ({"schema_version": "1"}, "schema_version"),
        ({"schema_version": None}, "schema_version"),
        ({"network": {"hidden_size": 5}}, "do not fit"),
        ({"network": {"hidden_size": -5}}, "hidden_size"),
        ({"network": {"hidden_size": 4.0}}, "hidden_size"),
        ({"network": {"cell": "qrnn"}}, "cell"),
        ({"network": {"surprise": 1}}, "surprise"),
        ({"network": {"vocabulary_size": 30}}, "vocabulary_size"),
        ({"network": {"num_mels": 9}}, "mel bins"),
        ({"network": []}, "network"),
        ({"features": {"hop_length": 0}}, "hop_length"),
        ({"features": {"hop_length": "160"}}, "hop_length"),
        ({"features": {"log_floor": float("nan")}}, "log_floor"),
        ({"features": {"surprise": 1}}, "surprise"),
        ({"features": None}, "features"),
    ],
)
def test_configs_that_are_newer_or_wrong_are_refused(folder: Path, changes: dict[str, Any], reason: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises(CheckpointError, match=reason):
        load_network(load_model_folder(folder))


@pytest.mark.parametrize(
    "tokens", [[], ["a"], ["<blank>", "a", "a"], ["<blank>", 7], {"a": 1}, list(ENGLISH.tokens[:-1]), [*ENGLISH.tokens, "é"]]
)
def test_vocabularies_that_do_not_fit_are_refused(folder: Path, tokens: object) -> None:
    (folder / "vocabulary.json").write_text(json.dumps(tokens))
    with pytest.raises(CheckpointError):
        load_model_folder(folder)


def test_a_model_that_writes_pronunciations_has_their_vocabulary(tmp_path: Path) -> None:
    network = AcousticModel(dataclasses.replace(CONFIG, num_sounds=4)).eval()
    sounds = Vocabulary(("<blank>", " ", "@", "t"))
    save_model_folder(tmp_path, network, features=FEATURES, vocabulary=ENGLISH, sounds=sounds, info={}, card="")
    assert load_model_folder(tmp_path).sounds == sounds
    assert load_network(load_model_folder(tmp_path)).config.num_sounds == 4
    for tokens in (["<blank>", " ", "@"], ["<blank>", " ", "@", 7], {}):
        (tmp_path / "sounds.json").write_text(json.dumps(tokens))
        with pytest.raises(CheckpointError, match="sounds"):
            load_model_folder(tmp_path)
    (tmp_path / "sounds.json").unlink()
    with pytest.raises(CheckpointError, match=r"sounds\.json"):
        load_model_folder(tmp_path)


def test_a_model_that_names_a_shipped_one_searches_with_its_language_model_and_lexicon(tmp_path: Path) -> None:
    live, english = load_model_folder("english-live"), load_model_folder("english")
    assert live.part("lm.safetensors") == english.path / "lm.safetensors" and live.part("decoder.json").parent == live.path
    assert not (live.path / "lm.safetensors").exists()
    copy_decoder(live, tmp_path / "copy")  # as a run that starts from it does
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {"decoder.json", "lm.safetensors", "rnnlm.safetensors", "lexicon.txt", "g2p.safetensors"}
    elsewhere = dataclasses.replace(live, info={"decoder_of": "../english"})
    assert elsewhere.part("lm.safetensors").parent == live.path  # a name, never a path


def test_weights_that_are_not_finite_are_neither_read_nor_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (float("nan"), 1e6):  # 1e6 is infinity in 16 bits
        network = AcousticModel(CONFIG)
        network.output.bias.data[3] = value
        before = (folder / "model.safetensors").read_bytes()
        with pytest.raises(CheckpointError, match=r"output\.bias.*learning rate"):
            save(folder, network)
        assert (folder / "model.safetensors").read_bytes() == before
    monkeypatch.setattr(torch.Tensor, "isfinite", lambda tensor: torch.ones((), dtype=torch.bool))
    save(folder, network)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"output\.bias.*finite"):
        load_network(load_model_folder(folder))


def test_unknown_models_and_files_as_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in (tmp_path / "missing", tmp_path / "file", "no-such-model", "../models", ""):
        with pytest.raises(CheckpointError):
            load_model_folder(name)
    assert find_model(tmp_path) == tmp_path


def test_the_newest_two_states_stay_and_the_newest_is_read(tmp_path: Path) -> None:
    for step in (5, 10, 100):
        save_training_state(tmp_path, step, {"step": step, "weights": torch.arange(step)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state-000000010.pt", "state-000000100.pt"]
    state = load_training_state(tmp_path)
    assert state["step"] == 100 and torch.equal(state["weights"], torch.arange(100))


@pytest.mark.parametrize("damage", ["empty", "half", "flip", "garbage", "list"])
def test_a_damaged_state_falls_back_to_the_one_before(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    save_training_state(tmp_path, 1, {"step": 1})
    path = save_training_state(tmp_path, 2, {"step": 2, "weights": torch.randn(1000)})
    data = bytearray(path.read_bytes())
    if damage == "list":
        torch.save([1, 2], path)
    elif damage == "flip":
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    else:
        path.write_bytes({"empty": b"", "half": bytes(data[: len(data) // 2]), "garbage": b"garbage" * 99}[damage])
    assert load_training_state(tmp_path) == {"step": 1}
    assert "state-000000002.pt is damaged" in caplog.text


@pytest.mark.filterwarnings("ignore")
def test_no_damage_to_a_state_is_anything_but_found(tmp_path: Path) -> None:
    weights = torch.randn(50)
    path, rng = save_training_state(tmp_path, 1, {"weights": weights}), random.Random(0)
    good = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(good)
        for _ in range(rng.choice([1, 1, 5])):
            damaged[rng.randrange(len(good))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            state = load_training_state(tmp_path)
        except CheckpointError:
            continue
        assert torch.equal(state["weights"], weights)


class Trap:
    """Unpickled, it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_state_runs_no_code(tmp_path: Path) -> None:
    torch.save({"step": Trap(tmp_path / "trap")}, tmp_path / "state-000000001.pt")
    (tmp_path / "state-000000002.pt").write_bytes(pickle.dumps(Trap(tmp_path / "trap")))
    with pytest.raises(CheckpointError, match="nothing to resume from"):
        load_training_state(tmp_path)
    assert not (tmp_path / "trap").exists()


def test_a_run_without_states_has_nothing_to_resume_from(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no state-\*\.pt"):
        load_training_state(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and path.read_bytes() == b"old"


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = {bytes([i]) * 50_000 for i in range(4)}
    write_atomically(path, next(iter(contents)))

    def write_often(content: bytes) -> None:
        for _ in range(5):
            write_atomically(path, content)

    writers = [threading.Thread(target=write_often, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert path.read_bytes() in contents
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
