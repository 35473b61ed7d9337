"""A GRU layer's forward and backward pass written out (Cho et al. 2014), for training on a CPU.

torch's own nn.GRU is right, but its backward pass multiplies out the recurrent weights' gradient frame by frame, it cannot mix
precisions on a CPU, and a bidirectional layer would need its input and output reversed. Here all products that don't wait for the
previous frame are one matrix product over the whole sequence and both directions, a frame's gates are one compiled loop
(asr/layers.py), and under torch.autocast the products run in bfloat16 with sums, gates and state in float32. A test holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from asr import layers, native


@cache
def fast_bfloat16(device: str) -> bool:
    """Whether the device multiplies in bfloat16 rather than imitate it, which on a CPU without AVX-512 BF16 or AMX takes 50 times as long as float32."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def run_gru(cells: Sequence[nn.GRU], x: Tensor, positions: Sequence[Tensor]) -> Tensor:
    """Return (T, B, D H): the states of D one-layer, one-directional nn.GRUs over x (T, B, C), side by side, from states of zeros.

    positions: for each, (T, B), the frame that it reads, and writes, at each step.
    """
    dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
    weights = [w for cell in cells for w in (cell.weight_ih_l0, cell.weight_hh_l0, cell.bias_ih_l0, cell.bias_hh_l0)]
    with torch.autocast("cpu", enabled=False):
        y: Tensor = _GRU.apply(x.float(), [p.contiguous() for p in positions], dtype, *weights)  # type: ignore[no-untyped-call]
    return y


class _GRU(torch.autograd.Function):
    """r = sigmoid(U_r x + V_r h + b_r), z likewise, n = tanh(U_n x + b_n + r (V_n h + c_n)), h' = n + z (h - n).

    The rows of U, V and the biases are those of r, z and n one after the other, as in nn.GRU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, positions: list[Tensor], dtype: torch.dtype, *weights: Tensor) -> Tensor:
        num_frames, batch, _ = x.shape
        us, vs, bs, cs = (weights[i::4] for i in range(4))
        size = vs[0].shape[1]
        half_x, u = x.to(dtype).flatten(0, 1), torch.cat(us).to(dtype)
        inputs = half_x @ u.t()  # (T B, D 3 H)
        y = x.new_empty(num_frames * batch, len(us) * size)
        kept = []
        for d, (v, b, c) in enumerate(zip(vs, bs, cs, strict=True)):
            v = v.to(dtype)
            bias = torch.cat([b[: 2 * size] + c[: 2 * size], b[2 * size :], c[2 * size :]])
            states = x.new_zeros((num_frames + 1) * batch, size, dtype=dtype)
            gates = x.new_empty(num_frames * batch, 4 * size)
            recurrent = x.new_empty(batch, 3 * size, dtype=dtype)
            row, h = x.new_empty(2, 3 * size), x.new_zeros(batch, size)
            step = _bind("gru_frame", d * size, dtype, positions[d], _bits(inputs), _bits(recurrent), bias, row, _bits(row), h, _bits(states), gates, y)
            vt = v.t()
            for t in range(num_frames):
                torch.mm(states[t * batch : (t + 1) * batch], vt, out=recurrent)
                step(t)
            kept += [v, states, gates]
        ctx.save_for_backward(half_x, u, y, *positions, *kept)
        return y.view(num_frames, batch, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        half_x, u, y, *rest = ctx.saved_tensors
        num_directions = len(rest) // 4
        positions, kept = rest[:num_directions], rest[num_directions:]
        dy, dtype = gradients[0].float().contiguous(), half_x.dtype
        num_frames, batch, _ = dy.shape
        sums = torch.empty(len(half_x), len(u), dtype=dtype)  # gradients of the gates' sums: r, z, n; for the recurrent product n's counts r times
        recurrent_gradients = []
        for d, (v, states, gates) in enumerate(zip(kept[::3], kept[1::3], kept[2::3], strict=True)):
            size = v.shape[1]
            recurrent_sums = torch.empty(len(half_x), 3 * size, dtype=dtype)
            product, dh = torch.zeros(batch, size, dtype=dtype), torch.zeros(batch, size)
            row, dbias = torch.empty(2, 3 * size), torch.zeros(4 * size)
            step = _bind(
                "gru_gradient", d * size, dtype, positions[d], dy.flatten(0, 1), y, gates, _bits(product), row, _bits(row), dh,
                _bits(sums), _bits(recurrent_sums), dbias,
            )  # fmt: skip
            for t in reversed(range(num_frames)):
                step(t)
                torch.mm(recurrent_sums[t * batch : (t + 1) * batch], v, out=product)
            dv = (recurrent_sums.t() @ states[: len(half_x)]).float()
            recurrent_gradients.append((dv, dbias[: 3 * size], torch.cat([dbias[: 2 * size], dbias[3 * size :]])))
        dx = (sums @ u).float().view(num_frames, batch, -1)
        dus = (sums.t() @ half_x).float().chunk(num_directions)
        return dx, None, None, *(g for du, others in zip(dus, recurrent_gradients, strict=True) for g in (du, *others))


def _bits(x: Tensor) -> Tensor:
    """Return the numbers' bits as integers of their size: numpy knows no bfloat16."""
    return x.view(torch.int16 if x.dtype == torch.bfloat16 else torch.int32)


_LOOPS: dict[tuple[str, torch.dtype], native.Loop] = {}


def _bind(name: str, left: int, dtype: torch.dtype, *tensors: Tensor) -> Callable[[int], int]:
    """Return the loop `name` of asr/layers.py for these arguments, a function of the step; it keeps the tensors alive."""
    arguments = (left, int(dtype == torch.bfloat16), *(tensor.detach().numpy() for tensor in tensors))
    if (name, dtype) not in _LOOPS:
        _LOOPS[name, dtype] = native.load(layers, name, (0, *arguments), fused=True)
    return _LOOPS[name, dtype].bind(*arguments)
