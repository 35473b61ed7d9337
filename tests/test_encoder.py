"""Facts about the encoder without torch: it computes what the network computes, the same alone, in a batch, in pieces and with any threads."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from asr.audio import load_audio
from asr.checkpoint import CheckpointError, load_model_folder, load_network, save_model_folder
from asr.encoder import load, load_encoder, pack, run, step
from asr.features import LogMel
from asr.logmel import FeatureConfig, log_mel
from asr.model import CELLS, AcousticModel, ModelConfig
from asr.text import ENGLISH

SPEECH = Path(__file__).parent / "data" / "sense_and_sensibility.wav"
SMALL = ModelConfig(num_mels=5, vocabulary_size=7, num_layers=2, hidden_size=6, conv_channels=9)


def _network(config: ModelConfig) -> AcousticModel:
    torch.manual_seed(0)
    network = AcousticModel(config).eval().requires_grad_(False)
    for norm in network.norms:
        torch.nn.init.normal_(norm.weight, 1.0, 0.3)
        torch.nn.init.normal_(norm.bias, 0.0, 0.3)
    for layer in network.layers[config.num_layers - config.residual_layers :]:
        for weight in layer.parameters():
            torch.nn.init.normal_(weight, 0.0, 0.3)  # they start from zero
    return network


def _weights(network: AcousticModel) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def _features(lengths: tuple[int, ...], num_mels: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [2 * rng.standard_normal((length, num_mels)).astype(np.float32) for length in lengths]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("subsampling", "outputs_per_frame", "num_sounds", "residual"), [(2, 1, 0, 0), (4, 1, 4, 1), (8, 2, 3, 0)])
def test_every_network_gives_torchs_log_probs(
    cell: str, bidirectional: bool, subsampling: int, outputs_per_frame: int, num_sounds: int, residual: int
) -> None:
    rates = {"subsampling": subsampling, "outputs_per_frame": outputs_per_frame, "num_sounds": num_sounds}
    config = dataclasses.replace(SMALL, cell=cell, bidirectional=bidirectional, residual_layers=residual, **rates)
    network = _network(config)
    features = _features((37, 1, 64, 8, 9, 2, 23), config.num_mels)
    results = run(pack(dataclasses.asdict(config), _weights(network)), features, num_threads=3)
    for x, log_probs in zip(features, results, strict=True):
        expected, _ = network(torch.from_numpy(x)[None], torch.tensor([len(x)]))
        np.testing.assert_allclose(log_probs, expected[0].numpy(), atol=2e-5)
        for part in np.split(np.exp(log_probs), [config.vocabulary_size], axis=1)[: 1 + bool(num_sounds)]:
            np.testing.assert_allclose(part.sum(axis=1), 1, atol=1e-5)


def test_the_shipped_model_gives_torchs_log_probs_on_real_speech_from_the_front_end_on() -> None:
    folder = load_model_folder("english")
    waveform = load_audio(SPEECH)
    features = log_mel(waveform, folder.features)
    trained = LogMel(folder.features).double()  # in single precision it is itself 1e-4 off
    exact, lengths = trained(torch.from_numpy(waveform)[None].double(), torch.tensor([len(waveform)]))
    np.testing.assert_allclose(features, exact[0].numpy(), atol=1e-4)
    expected, _ = load_network(folder)(exact.float(), lengths)
    (log_probs,) = run(load(folder, "float32"), [features])
    np.testing.assert_allclose(log_probs, expected[0].numpy(), atol=1e-4)
    (rounded,) = run(load(folder, "int8"), [features])
    divergence = (np.exp(log_probs) * (log_probs - rounded)).sum(axis=1)  # of letters and sounds together
    assert 0 < divergence.mean() < 0.05


@pytest.mark.parametrize("as_bytes", [False, True])
def test_an_utterance_gets_the_same_bits_alone_in_any_batch_and_with_any_number_of_threads(as_bytes: bool) -> None:
    network = pack(dataclasses.asdict(SMALL), _weights(_network(SMALL)), as_bytes=as_bytes)
    features = _features((40, 3, 17, 90, 90, 1, 66, 5, 12), SMALL.num_mels)
    alone = [run(network, [x])[0] for x in features]
    for num_threads in (1, 2, 5):
        for together, expected in zip(run(network, features, num_threads=num_threads), alone, strict=True):
            assert np.array_equal(together, expected)


@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_a_stream_in_pieces_gets_the_bits_of_the_whole(cell: str, as_bytes: bool) -> None:
    config = dataclasses.replace(SMALL, cell=cell, bidirectional=False, residual_layers=1)
    network = pack(dataclasses.asdict(config), _weights(_network(config)), as_bytes=as_bytes and cell != "rnn_relu")
    (features,) = _features((48,), config.num_mels)
    pieces, state = [], None
    for first, last in ((0, 4), (4, 20), (20, 24), (24, 48)):
        log_probs, state = step(network, features[first:last], state)
        pieces.append(log_probs)
    assert np.array_equal(np.concatenate(pieces), run(network, [features])[0])
    with pytest.raises(ValueError, match="multiple of 4"):
        step(network, features[:3])
    with pytest.raises(ValueError, match="whole utterance"):
        step(pack(dataclasses.asdict(SMALL), _weights(_network(SMALL))), features)


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn_tanh"])
def test_weights_and_inputs_rounded_to_bytes_change_little(cell: str) -> None:
    config = dataclasses.replace(SMALL, cell=cell, hidden_size=70)  # more than a panel, no multiple of a group
    weights = _weights(_network(config))
    features = _features((37, 1, 64, 8, 9, 2, 23), config.num_mels)
    exact, rounded = (run(pack(dataclasses.asdict(config), weights, as_bytes=as_bytes), features) for as_bytes in (False, True))
    for a, b in zip(exact, rounded, strict=True):
        assert 0 < np.abs(a - b).max() < 0.1


def test_an_unknown_precision_is_an_error_and_relu_networks_stay_in_float32(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected one of auto, int8, float32, found 'int4'"):
        load(load_model_folder("english"), "int4")
    relu = _network(ModelConfig(cell="rnn_relu"))
    save_model_folder(tmp_path, relu, features=FeatureConfig(), vocabulary=ENGLISH, info={}, card="")
    for precision, folder, rounded in (("int8", tmp_path, False), ("int8", "english", True), ("float32", "english", False)):
        weights = load(load_model_folder(folder), precision).layers[0][0].recurrent.weights
        assert bool(weights.bytes.size) == rounded


def test_padding_and_empty_utterances_are_harmless() -> None:
    folder = load_model_folder("english")
    encode = load_encoder(folder, num_threads=1)
    (short,) = _features((30,), folder.features.num_mels)
    padded = np.full((3, 50, folder.features.num_mels), np.nan, np.float32)
    padded[0, :30] = short
    padded[2, :1] = 0
    log_probs, lengths = encode(padded, np.array([30, 0, 1]))
    assert lengths.tolist() == [8, 0, 1]
    assert np.isfinite(log_probs).all()
    np.testing.assert_allclose(np.exp(log_probs[0, :, : len(folder.vocabulary)]).sum(axis=1), 1, atol=1e-5)
    assert np.array_equal(log_probs[0], encode(short[None], np.array([30]))[0][0])
    assert encode(padded[1:2], np.array([0]))[0].shape == (1, 0, log_probs.shape[2])


@pytest.mark.parametrize("change", [{"hidden_size": 7}, {"num_layers": 3}, {"cell": "lstm"}, {"cell": "maths"}, {"bidirectional": False}, {"num_mels": 6}, {"subsampling": 8}, {"residual_layers": 2}])
def test_weights_that_do_not_fit_the_config_are_an_error(change: dict[str, object]) -> None:
    with pytest.raises((ValueError, KeyError)):
        pack(dataclasses.asdict(SMALL) | change, _weights(_network(SMALL)))


def test_a_folder_whose_weights_do_not_fit_is_named(tmp_path: Path) -> None:
    folder = load_model_folder("english")
    with pytest.raises(CheckpointError, match="do not fit"):
        load(dataclasses.replace(folder, network=folder.network | {"num_layers": 9}))
