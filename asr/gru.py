"""A GRU layer's forward and backward pass written out (Cho et al. 2014), for training on a CPU.

torch's own nn.GRU is right, but its backward pass multiplies out the recurrent weights' gradient frame by frame, and it cannot mix
precisions on a CPU. Here all products that don't wait for the previous frame are one matrix product over the whole sequence, and under
torch.autocast the products run in bfloat16 with sums, gates and state in float32. A test holds the two together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def run_gru(layer: nn.GRU, x: Tensor) -> Tensor:
    """Return h (T, B, H) of x (T, B, C) by the weights of a one-layer, one-directional nn.GRU, from a state of zeros."""
    half = torch.is_autocast_enabled("cpu")
    with torch.autocast("cpu", enabled=False):
        y: Tensor = _GRU.apply(  # type: ignore[no-untyped-call]
            x.float(), layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0, torch.bfloat16 if half else torch.float32
        )
    return y


class _GRU(torch.autograd.Function):
    """r = sigmoid(U_r x + V_r h + b_r), z likewise, n = tanh(U_n x + b_n + r (V_n h + c_n)), h' = n + z (h - n).

    The rows of U, V and the biases are those of r, z and n one after the other, as in nn.GRU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, u: Tensor, v: Tensor, b: Tensor, c: Tensor, dtype: torch.dtype) -> Tensor:
        num_frames, batch, _ = x.shape
        size = v.shape[1]
        x, u, v = x.to(dtype), u.to(dtype), v.to(dtype)
        inputs = (x.flatten(0, 1) @ u.t()).float().add_(b).view(num_frames, batch, 3 * size)  # (T, B, 3 H)
        states = x.new_zeros(num_frames + 1, batch, size, dtype=torch.float32)  # h_0 = 0, h_1, ..., h_T
        gates = torch.empty_like(inputs)  # r, z, n
        recurrent_n = torch.empty_like(states[1:])  # V_n h + c_n
        vt = v.t()
        for t in range(num_frames):
            h = states[t]
            recurrent = (h.to(dtype) @ vt).float().add_(c)  # (B, 3 H)
            rz = torch.sigmoid_(torch.add(inputs[t, :, : 2 * size], recurrent[:, : 2 * size], out=gates[t, :, : 2 * size]))
            recurrent_n[t] = recurrent[:, 2 * size :]
            n = torch.addcmul(inputs[t, :, 2 * size :], rz[:, :size], recurrent_n[t], out=gates[t, :, 2 * size :]).tanh_()
            torch.lerp(n, h, rz[:, size:], out=states[t + 1])
        ctx.save_for_backward(x, u, v, states, gates, recurrent_n)
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, u, v, states, gates, recurrent_n = ctx.saved_tensors
        dy, dtype, size = gradients[0].float(), x.dtype, v.shape[1]
        r, z, n = gates.split(size, dim=2)
        # What each gate's sum gets from dh, for all frames at once: dh/dn * tanh', dh/dz * sigmoid'; r's follows from n's.
        from_n = (1 - z) * (1 - n * n)
        from_z = (states[:-1] - n) * z * (1 - z)
        r_from_n = recurrent_n * r * (1 - r)
        sums = torch.empty_like(gates)  # gradients of the gates' sums: r, z, n; for the recurrent product n's counts r times
        recurrent_sums = torch.empty(gates.shape, dtype=dtype)
        dh = torch.zeros_like(states[0])
        for t in range(dy.shape[0] - 1, -1, -1):
            dh = dh + dy[t]
            dr, dz, dn = sums[t].split(size, dim=1)  # type: ignore[no-untyped-call]
            torch.mul(dh, from_n[t], out=dn)
            torch.mul(dh, from_z[t], out=dz)
            torch.mul(dn, r_from_n[t], out=dr)
            recurrent_sums[t, :, : 2 * size] = sums[t, :, : 2 * size]
            recurrent_sums[t, :, 2 * size :] = dn * r[t]
            dh = torch.addcmul((recurrent_sums[t] @ v).float(), dh, z[t])
        flat, recurrent_flat = sums.flatten(0, 1), recurrent_sums.flatten(0, 1)  # (T B, 3 H)
        half = flat.to(dtype)
        dx = (half @ u).float().view(*x.shape)
        du = (half.t() @ x.flatten(0, 1)).float()
        dv = (recurrent_flat.t() @ states[:-1].flatten(0, 1).to(dtype)).float()
        return dx, du, dv, flat.sum(0), recurrent_flat.float().sum(0), None
