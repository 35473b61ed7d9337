"""Facts about the network: lengths, padding, streaming, state, bad settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from asr.model import CELLS, AcousticModel, ModelConfig, output_length, reversed_positions


def small_network(
    cell: str = "gru", *, bidirectional: bool = True, subsampling: int = 4, outputs_per_frame: int = 1, seed: int = 0
) -> AcousticModel:
    torch.manual_seed(seed)
    config = ModelConfig(
        num_mels=10,
        cell=cell,
        bidirectional=bidirectional,
        num_layers=2,
        hidden_size=12,
        conv_channels=14,
        subsampling=subsampling,
        outputs_per_frame=outputs_per_frame,
        residual_layers=subsampling % 8 // 4,  # some of the networks have one
    )
    network = AcousticModel(config)
    if config.residual_layers:
        for weight in network.layers[-1].parameters():
            torch.nn.init.normal_(weight, 0.0, 0.3)  # it starts from zero
    return network.eval()


RATES = [(2, 1), (4, 1), (8, 1), (8, 2), (4, 4)]  # subsampling, outputs_per_frame
STREAMS = [(cell, *rates) for cell in CELLS for rates in RATES]
ALL = [(cell, bidirectional, *rates) for cell in CELLS for bidirectional in (True, False) for rates in RATES]


@pytest.mark.parametrize(("cell", "bidirectional", "subsampling", "outputs_per_frame"), ALL)
def test_padding_does_not_change_log_probs(cell: str, bidirectional: bool, subsampling: int, outputs_per_frame: int) -> None:
    network = small_network(cell, bidirectional=bidirectional, subsampling=subsampling, outputs_per_frame=outputs_per_frame)
    for seed, grad in ((1, False), (2, True)):  # with gradients a CPU takes another way through a GRU
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.cat([torch.tensor([1, 2]), torch.randint(1, 90, (6,), generator=generator)])
        features = 3 * torch.randn(8, int(lengths.max()) + 3, 10, generator=generator)
        with torch.set_grad_enabled(grad):
            together, output_lengths = network(features, lengths)
            for row, count, x, length in zip(together, output_lengths.tolist(), features, lengths.tolist(), strict=True):
                alone, alone_lengths = network(x[None, :length], torch.tensor([length]))
                assert alone.shape[1] == count == alone_lengths.item() == output_length(length, network.config)
                assert (row[:count] - alone[0]).abs().max() < 1e-5


@pytest.mark.parametrize(("cell", "subsampling", "outputs_per_frame"), STREAMS)
def test_a_stream_in_pieces_is_the_whole(cell: str, subsampling: int, outputs_per_frame: int) -> None:
    network = small_network(cell, bidirectional=False, subsampling=subsampling, outputs_per_frame=outputs_per_frame)
    features = torch.randn(2, 12 * subsampling, 10)
    with torch.inference_mode():
        whole, _ = network(features, torch.tensor([features.shape[1]] * 2))
        state, pieces = None, []
        for piece in torch.split(features, [subsampling, 3 * subsampling, 2 * subsampling, 6 * subsampling], dim=1):
            log_probs, state = network.step(piece, state)
            pieces.append(log_probs)
    assert (torch.cat(pieces, dim=1) - whole).abs().max() < 1e-5


def test_a_step_does_not_change_the_state_it_is_given() -> None:
    network = small_network("lstm", bidirectional=False)
    with torch.inference_mode():
        _, state = network.step(torch.randn(1, 8, 10))
        copies, piece = [tensor.clone() for tensor in state], torch.randn(1, 8, 10)
        first, _ = network.step(piece, state)
        again, _ = network.step(piece, state)
    assert torch.equal(first, again)
    assert all(torch.equal(a, b) for a, b in zip(state, copies, strict=True))


def test_a_bidirectional_model_does_not_stream_and_pieces_fit_the_subsampling() -> None:
    with pytest.raises(ValueError, match="bidirectional"):
        small_network().step(torch.zeros(1, 4, 10))
    with pytest.raises(ValueError, match="multiple of 4"):
        small_network(bidirectional=False).step(torch.zeros(1, 5, 10))


def test_reversal_by_hand_and_its_own_inverse() -> None:
    lengths = torch.tensor([1, 3, 5, 4])
    positions = reversed_positions(lengths, 5)[..., 0]
    assert positions[:, 1].tolist() == [2, 1, 0, 3, 4]
    assert torch.equal(torch.gather(positions, 0, positions), torch.arange(5)[:, None].expand(5, 4))


@pytest.mark.parametrize(("cell", "kind"), [("gru", torch.nn.GRU), ("lstm", torch.nn.LSTM), ("rnn_tanh", torch.nn.RNN)])
def test_a_layer_is_torch_s_bidirectional_layer_over_a_packed_batch(cell: str, kind: Callable[..., torch.nn.RNNBase]) -> None:
    layer: Any = small_network(cell).layers[0]
    reference = kind(14, 12, bidirectional=True)
    weights = {name: tensor for name, tensor in layer.forward_cell.state_dict().items()}
    weights |= {f"{name}_reverse": tensor for name, tensor in layer.backward_cell.state_dict().items()}
    reference.load_state_dict(weights)
    lengths, x = torch.tensor([7, 3, 1]), torch.randn(7, 3, 14)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths)
    with torch.inference_mode():
        expected, _ = torch.nn.utils.rnn.pad_packed_sequence(reference(packed)[0])
        found = layer(x, reversed_positions(lengths, 7))
    for b, length in enumerate(lengths.tolist()):
        assert (found[:length, b] - expected[:length, b]).abs().max() < 1e-6


@pytest.mark.parametrize(("subsampling", "outputs_per_frame"), RATES)
def test_output_lengths_are_the_quotient_rounded_up(subsampling: int, outputs_per_frame: int) -> None:
    config = ModelConfig(subsampling=subsampling, outputs_per_frame=outputs_per_frame)
    expected = [outputs_per_frame * -(-n // subsampling) for n in range(1, 50)]
    assert [output_length(n, config) for n in range(1, 50)] == expected
    assert output_length(torch.arange(1, 50), config).tolist() == expected  # type: ignore[arg-type, attr-defined]


@pytest.mark.parametrize("cell", CELLS)
def test_log_probs_are_distributions_in_training_and_in_evaluation(cell: str) -> None:
    network = small_network(cell)
    for mode in (True, False):
        log_probs, _ = network.train(mode)(torch.randn(2, 30, 10), torch.tensor([30, 20]))
        assert torch.allclose(log_probs.exp().sum(dim=-1), torch.ones(2, 8), atol=1e-5)


def test_dropout_is_seeded_and_absent_in_evaluation() -> None:
    network, x, lengths = small_network().train(), torch.randn(1, 30, 10), torch.tensor([30])
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(network(x, lengths)[0])
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(network.eval()(x, lengths)[0], network(x, lengths)[0])


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn_tanh"])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_residual_layers_start_from_zero_and_learn(cell: str, bidirectional: bool) -> None:
    config = ModelConfig(num_mels=10, cell=cell, bidirectional=bidirectional, num_layers=3, residual_layers=2, hidden_size=12, conv_channels=14, dropout=0.0)
    network, states = AcousticModel(config), []
    for layer in network.layers[1:]:
        layer.register_forward_hook(lambda _layer, _inputs, output: states.append(output))
    log_probs, _ = network(torch.randn(2, 40, 10), torch.tensor([40, 31]))
    assert all(not output.any() for output in states)
    log_probs[..., 1].sum().backward()
    assert all(cell.weight_ih_l0.grad.abs().max() > 0 for layer in network.layers for cell in layer.children())


@pytest.mark.parametrize(
    "wrong",
    [
        {"cell": "qrnn"}, {"residual_layers": 3}, {"outputs_per_frame": 5}, {"subsampling": 3}, {"hidden_size": 0}, {"num_layers": -1},
        {"vocabulary_size": 10**9}, {"dropout": 1.0},
    ],
)  # fmt: skip
def test_settings_that_make_no_network_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ModelConfig(**wrong)  # type: ignore[arg-type]
