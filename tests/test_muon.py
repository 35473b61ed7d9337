"""Facts about Muon. The oracle is the singular value decomposition."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from test_train import free_port, start_child
from torch import nn

from asr.muon import UPDATE_RMS, Muon, orthogonalise


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 32), (2, 32, 8), (1, 1, 5)])
def test_singular_values_become_about_one_and_directions_stay(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    found = orthogonalise(matrices, dtype)
    values = torch.linalg.svdvals(found)
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    well_conditioned = s > 0.05 * s[:, :1]
    assert ((values - 1).abs() < 0.3)[well_conditioned].all()
    expected = u @ vh
    assert (found * expected).sum() / (found.norm() * expected.norm()) > 0.97


def test_a_zero_gradient_moves_nothing() -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    weight.grad = torch.zeros(4, 4)
    Muon([{"params": [weight]}], lr=0.1).step()
    assert torch.equal(weight, torch.ones(4, 4))


def test_the_update_has_adamw_s_size() -> None:
    weight = nn.Parameter(torch.zeros(64, 64))
    weight.grad = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) * 100
    Muon([{"params": [weight]}], lr=0.01).step()
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.01 * UPDATE_RMS, rel=0.15)


def test_blocks_are_updated_as_if_they_were_matrices_of_their_own() -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = [torch.randn(8, 5, generator=generator) for _ in range(3)]
    whole, apart = nn.Parameter(torch.zeros(24, 5)), [nn.Parameter(torch.zeros(8, 5)) for _ in blocks]
    whole.grad = torch.cat(blocks)
    for parameter, block in zip(apart, blocks, strict=True):
        parameter.grad = block
    Muon([{"params": [whole], "num_blocks": 3}], lr=0.1).step()
    Muon([{"params": apart}], lr=0.1).step()
    assert torch.allclose(whole.detach(), torch.cat([p.detach() for p in apart]), atol=1e-6)


def update_as_rank(rank: int, port: int, path: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.save(five_updated(), path / f"{rank}.pt")
    dist.destroy_process_group()


def five_updated() -> list[torch.Tensor]:
    """Four matrices of one shape, which two processes share, and one of another."""
    generator = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.zeros(6, 4)) for _ in range(4)] + [nn.Parameter(torch.zeros(3, 5))]
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator)
    Muon([{"params": weights}], lr=0.1).step()
    return [weight.detach() for weight in weights]


def test_two_processes_update_as_one_does(tmp_path: Path) -> None:
    port = free_port()
    children = [start_child(update_as_rank, rank, port, tmp_path) for rank in (0, 1)]
    for child in children:
        child.join(120)
    for rank in (0, 1):
        for alone, shared in zip(five_updated(), torch.load(tmp_path / f"{rank}.pt", weights_only=True), strict=True):
            assert torch.allclose(alone, shared, atol=1e-6)


def test_a_saved_state_continues_alike() -> None:
    def updated(steps: int, *, save_after: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        weight = nn.Parameter(torch.zeros(6, 6))
        optimiser = Muon([{"params": [weight]}], lr=0.1)
        for step in range(steps):
            if step == save_after:
                state = optimiser.state_dict()
                optimiser = Muon([{"params": [weight]}], lr=0.5)
                optimiser.load_state_dict(state)
            weight.grad = torch.randn(6, 6, generator=generator)
            optimiser.step()
        return weight.detach()

    assert torch.equal(updated(6, save_after=3), updated(6, save_after=-1))
