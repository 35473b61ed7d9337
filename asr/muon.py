"""The Muon optimiser: the update of a weight matrix is its momentum made orthogonal. Knows matrices, not networks.

Keller Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks". The orthogonal factor of the momentum comes from
a Newton-Schulz iteration with the coefficients of Amsel et al. 2025, "The Polar Express". Its scale is that of a usual AdamW update
(Liu et al. 2025, "Muon is scalable for LLM training"), so that one learning rate serves both.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

COEFFICIENTS = (
    (4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037), (2.8769, -3.1427, 1.2046), (2.8366, -3.0525, 1.2012),
)  # fmt: skip
UPDATE_RMS = 0.2  # root mean square of an AdamW update, in learning rates


class Muon(torch.optim.Optimizer):
    """Muon for parameters of two dimensions or more, all but the first taken together.

    A group's "num_blocks" says how many matrices, one above the other, each of its parameters holds: a gated cell's weights are three
    or four.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "num_blocks": 1})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the parameters that have a gradient; matrices of one shape are made orthogonal together."""
        for group in self.param_groups:
            updates: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}  # shape -> (matrix, momentum) pairs
            for parameter in (p for p in group["params"] if p.grad is not None):
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                nesterov = torch.lerp(parameter.grad, state["momentum"], group["momentum"])
                matrices, directions = (x.flatten(1).chunk(group["num_blocks"]) for x in (parameter, nesterov))
                updates.setdefault(matrices[0].shape, []).extend(zip(matrices, directions, strict=True))
            for shape, pairs in updates.items():
                step_size = group["lr"] * UPDATE_RMS * max(shape) ** 0.5
                for (matrix, _), direction in zip(pairs, _orthogonalise_together(torch.stack([d for _, d in pairs]), self.dtype), strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=step_size)


def _orthogonalise_together(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Return orthogonalise(matrices); where several processes train, each does its part of them, and the results overwrite `matrices`."""
    if not dist.is_initialized():
        return orthogonalise(matrices, dtype)
    parts, mine = list(matrices.tensor_split(dist.get_world_size())), dist.get_rank()
    parts[mine] = orthogonalise(parts[mine], dtype).contiguous()
    for rank, part in enumerate(parts):
        dist.broadcast(part, rank)
    return torch.cat(parts)


def orthogonalise(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the matrices (K, M, N) with their singular values moved to about 1: U V^T of each one's U S V^T, computed in `dtype`.

    The iteration needs no more than bfloat16's precision, but processors that have no such products are slow at them.
    """
    x = matrices.to(dtype)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (1.01 * x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for a, b, c in COEFFICIENTS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    orthogonal: Tensor = x.mT if tall else x
    return orthogonal.to(matrices.dtype)
