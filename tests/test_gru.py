"""Facts about the written-out GRU. The oracle is torch's nn.GRU, and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from asr.gru import run_gru
from asr.model import reversed_positions


def in_order(x: Tensor) -> Tensor:
    return torch.arange(len(x))[:, None].expand(-1, x.shape[1])


def values_and_gradients(layer: nn.GRU, x: Tensor, weight: Tensor, *, ours: bool) -> list[Tensor]:
    """Return h and the gradients of (h * weight).sum() by the input and all weights."""
    x = x.clone().requires_grad_()
    y = run_gru([layer], x, [in_order(x)]) if ours else layer(x)[0]
    inputs = [x, *layer.parameters()]
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), inputs)]


@pytest.mark.parametrize(("num_frames", "batch", "inputs", "hidden"), [(1, 1, 1, 1), (1, 3, 4, 2), (25, 1, 3, 7), (60, 5, 12, 16)])
def test_values_and_gradients_are_torch_s(num_frames: int, batch: int, inputs: int, hidden: int) -> None:
    torch.manual_seed(0)
    layer = nn.GRU(inputs, hidden)
    x, weight = torch.randn(num_frames, batch, inputs), torch.randn(num_frames, batch, hidden)
    for found, expected in zip(*(values_and_gradients(layer, x, weight, ours=ours) for ours in (True, False)), strict=True):
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))


def test_two_directions_are_two_layers_each_in_its_own_order() -> None:
    torch.manual_seed(0)
    cells, x, weight = [nn.GRU(6, 4), nn.GRU(6, 4)], torch.randn(9, 3, 6), torch.randn(9, 3, 8)
    backward = reversed_positions(torch.tensor([9, 5, 1]), 9)[..., 0]
    alone = []
    for cell, positions in zip(cells, (in_order(x), backward), strict=True):
        order = positions[..., None]
        y = cell(torch.gather(x, 0, order.expand(-1, -1, 6)))[0]
        alone.append(torch.gather(y, 0, order.expand(-1, -1, 4)))
    parameters = [p for cell in cells for p in cell.parameters()]
    found, expected = run_gru(cells, x, [in_order(x), backward]), torch.cat(alone, dim=2)
    assert torch.allclose(found, expected, atol=1e-6)
    pairs = zip(*(torch.autograd.grad((y * weight).sum(), parameters) for y in (found, expected)), strict=True)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)


def test_gradients_are_finite_differences() -> None:
    torch.manual_seed(0)
    layer, x, weight = nn.GRU(2, 3), torch.randn(4, 2, 2), torch.randn(4, 2, 3)
    _, *gradients = values_and_gradients(layer, x, weight, ours=True)
    layer, x = layer.double(), x.double()
    for tensor, gradient in zip([x, *layer.parameters()], gradients, strict=True):
        flat = tensor.detach().view(-1)
        for i in range(0, len(flat), 3):
            ends = []
            for change in (1e-5, -2e-5):
                flat[i] += change
                with torch.no_grad():
                    ends.append((layer(x)[0] * weight).sum())
            flat[i] += 1e-5
            assert float(gradient.view(-1)[i]) == pytest.approx(float(ends[0] - ends[1]) / 2e-5, rel=1e-3, abs=1e-4)


def test_bfloat16_is_within_two_percent() -> None:
    torch.manual_seed(0)
    layer = nn.GRU(32, 48)
    x, weight = torch.randn(50, 6, 32), torch.randn(50, 6, 48)
    expected = values_and_gradients(layer, x, weight, ours=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = values_and_gradients(layer, x, weight, ours=True)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() / b.norm() < 0.02


def test_second_derivatives_are_refused_and_not_wrong() -> None:
    layer, x = nn.GRU(2, 2), torch.randn(3, 1, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(run_gru([layer], x, [in_order(x)]).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(gradient.sum(), x)
