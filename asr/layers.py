"""The inner loops of the recurrent layers: plain loops over numbers in arrays, to be compiled.

For recognition, where asr/encoder.py fills the arrays, each row's sums run in the same order whatever rows stand beside it, so an
utterance gets the same bits alone and in any batch. For training asr/gru.py does the matrix products, and a frame's gates are here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

GRU, LSTM, RNN_TANH, RNN_RELU = range(4)
DEPTH = 128  # rows of a weight matrix multiplied at once: they stay in a core's cache; a multiple of 4

HALF, ZERO, ONE = np.float32(0.5), np.float32(0), np.float32(1)
# tanh x = x P(x^2) / Q(x^2) to a few units in the last place; beyond the limit float32 knows only 1 (minimax fit, as in Eigen's ptanh)
TANH_LIMIT = np.float32(7.90531110763549805)
P0, P1, P2, P3 = (np.float32(p) for p in (4.89352455891786e-03, 6.37261928875436e-04, 1.48572235717979e-05, 5.12229709037114e-08))
P4, P5, P6 = (np.float32(p) for p in (-8.60467152213735e-11, 2.00018790482477e-13, -2.76076847742355e-16))
Q0, Q1, Q2, Q3 = (np.float32(q) for q in (4.89352518554385e-03, 2.26843463243900e-03, 1.18534705686654e-04, 1.19825839466702e-06))


def product(a: Any, stride: int, weights: Any, bias: Any, out: Any) -> int:
    """Fill out (R, J) with a @ weights (K, J) + bias (J,). Row r of a is a[r * stride : r * stride + K] of a flat array, so rows may overlap."""
    num_rows, width = out.shape
    for row in range(num_rows):
        y = out[row]
        for j in range(width):
            y[j] = bias[j]
    for k in range(0, len(weights), DEPTH):
        part = weights[k : k + DEPTH]
        for row in range(0, num_rows, 4):
            add_products(a, row * stride + k, stride, part, out, row, min(4, num_rows - row))
    return 0


def recur(cell: int, inputs: Any, recurrent: Any, bias: Any, starts: Any, lengths: Any, step: int, sums: Any, h: Any, c: Any, out: Any, left: int) -> int:
    """Run one direction of a layer over utterances, the longest first, and write its states into the H columns of out (N, C) from `left` on.

    inputs (N, G H): U x + b of all frames, G gates. recurrent (H, G H), bias (G H,): V and what is added to V h. starts (B,): each
    utterance's first row. step: 1, or -1 to run from its last row. sums (B, G H): memory. h, c (B H,): first states, on return the last.
    """
    size, width = recurrent.shape
    num_running = len(lengths)
    for t in range(lengths[0]):
        while lengths[num_running - 1] <= t:
            num_running -= 1
        for first in range(0, num_running, 4):
            num = min(4, num_running - first)
            for b in range(first, first + num):
                row = sums[b]
                for j in range(width):
                    row[j] = bias[j]
            add_products(h, first * size, size, recurrent, sums, first, num)
            for b in range(first, first + num):
                frame = starts[b] + (t if step > 0 else lengths[b] - 1 - t)
                state, y = h[b * size : (b + 1) * size], out[frame, left : left + size]
                update(cell, inputs[frame], sums[b], state, c[b * size : (b + 1) * size])
                for j in range(size):
                    y[j] = state[j]
    return 0


def recur_tree(starts: Any, nodes: Any, parents: Any, words: Any, inputs: Any, recurrent: Any, bias: Any, rows: Any, sums: Any, states: Any) -> int:
    """Fill in the states (N, H) of a GRU after each of `nodes`, from those of its parent; the root's is its own parent's, and given.

    nodes[starts[l]] to nodes[starts[l + 1] - 1] are on level l, no more than sums has rows. inputs (U, 3 H): U x + b of each word; words, parents
    (N,). recurrent (H, 3 H), bias (3 H,): V and what is added to V h. rows (R H,), sums (R, 3 H): memory.
    """
    size = len(recurrent)
    for level in range(len(starts) - 1):
        first, num = starts[level], starts[level + 1] - starts[level]
        for i in range(num):
            before, h = states[parents[nodes[first + i]]], rows[i * size : (i + 1) * size]
            for j in range(size):
                h[j] = before[j]
        product(rows, size, recurrent, bias, sums[:num])
        for i in range(num):
            node = nodes[first + i]
            h, state = rows[i * size : (i + 1) * size], states[node]
            update(GRU, inputs[words[node]], sums[i], h, h)
            for j in range(size):
                state[j] = h[j]
    return 0


def add_products(a: Any, start: int, stride: int, weights: Any, out: Any, first: int, num: int) -> None:
    """Add rows of a @ weights (K, W) to `num` rows of `out`, at most 4, from `first` on; the first of a's begins at `start`.

    Four rows and four k at a time, every number loaded is used four times: the limit is arithmetic, not memory.
    """
    size, width = weights.shape
    for k in range(0, size - 3, 4):
        w0, w1, w2, w3 = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        f = start + k
        if num == 4:
            a00, a01, a02, a03 = a[f], a[f + 1], a[f + 2], a[f + 3]
            f += stride
            a10, a11, a12, a13 = a[f], a[f + 1], a[f + 2], a[f + 3]
            f += stride
            a20, a21, a22, a23 = a[f], a[f + 1], a[f + 2], a[f + 3]
            f += stride
            a30, a31, a32, a33 = a[f], a[f + 1], a[f + 2], a[f + 3]
            y0, y1, y2, y3 = out[first], out[first + 1], out[first + 2], out[first + 3]
            for j in range(width):
                y0[j] = y0[j] + a00 * w0[j] + a01 * w1[j] + a02 * w2[j] + a03 * w3[j]
                y1[j] = y1[j] + a10 * w0[j] + a11 * w1[j] + a12 * w2[j] + a13 * w3[j]
                y2[j] = y2[j] + a20 * w0[j] + a21 * w1[j] + a22 * w2[j] + a23 * w3[j]
                y3[j] = y3[j] + a30 * w0[j] + a31 * w1[j] + a32 * w2[j] + a33 * w3[j]
        else:
            for row in range(first, first + num):
                b0, b1, b2, b3 = a[f], a[f + 1], a[f + 2], a[f + 3]
                f += stride
                y = out[row]
                for j in range(width):
                    y[j] = y[j] + b0 * w0[j] + b1 * w1[j] + b2 * w2[j] + b3 * w3[j]
    for k in range(size - size % 4, size):
        w = weights[k]
        for i in range(num):
            b0, y = a[start + i * stride + k], out[first + i]
            for j in range(width):
                y[j] = y[j] + b0 * w[j]


def update(cell: int, x: Any, s: Any, h: Any, c: Any) -> None:
    """Replace the state h (H,), for an LSTM also c, by the next one. x (G H,): U x + b; s (G H,): V h and its bias; gates as in torch."""
    size = len(h)
    if cell == GRU:  # r, z, n
        xr, xz, xn = x[:size], x[size : 2 * size], x[2 * size :]
        sr, sz, sn = s[:size], s[size : 2 * size], s[2 * size :]
        for j in range(size):
            n = tanh(xn[j] + sigmoid(xr[j] + sr[j]) * sn[j])
            h[j] = n + sigmoid(xz[j] + sz[j]) * (h[j] - n)
    elif cell == LSTM:  # i, f, g, o
        xi, xf, xg, xo = x[:size], x[size : 2 * size], x[2 * size : 3 * size], x[3 * size :]
        si, sf, sg, so = s[:size], s[size : 2 * size], s[2 * size : 3 * size], s[3 * size :]
        for j in range(size):
            c[j] = sigmoid(xf[j] + sf[j]) * c[j] + sigmoid(xi[j] + si[j]) * tanh(xg[j] + sg[j])
            h[j] = sigmoid(xo[j] + so[j]) * tanh(c[j])
    elif cell == RNN_TANH:
        for j in range(size):
            h[j] = tanh(x[j] + s[j])
    else:
        for j in range(size):
            h[j] = max(x[j] + s[j], ZERO)


def gru_frame(t: int, left: int, half: int, positions: Any, inputs: Any, recurrent: Any, bias: Any, row: Any, bits: Any, h: Any, states: Any, gates: Any, y: Any) -> int:
    """Take step t of one direction of a GRU, and keep what its gradient needs.

    positions (T, B): the frame that step t of an utterance reads and writes. inputs (T B, D 3 H): U x of all frames and directions, this
    direction's from column 3 `left` on; recurrent (B, 3 H): V h; bias (4 H,). h (B, H): the state, replaced by the next one; states
    ((T + 1) B, H): the same for each step, as the products want it. gates (T B, 4 H): r, z, n and V_n h + c_n. y (T B, D H): the states by
    frame, this direction's from column `left` on. inputs, recurrent and states are numbers as integers, bfloat16 if half, or float32. row,
    bits (2, 3 H): memory, the same as float32 and as int32.
    """
    num_rows, size = h.shape
    for b in range(num_rows):
        frame = positions[t, b] * num_rows + b
        widen(inputs[frame, 3 * left : 3 * left + 3 * size], half, bits[0])
        widen(recurrent[b], half, bits[1])
        x, s, g, state = row[0], row[1], gates[t * num_rows + b], h[b]
        r, z, n, m = g[:size], g[size : 2 * size], g[2 * size : 3 * size], g[3 * size :]
        for j in range(2 * size):
            g[j] = sigmoid(x[j] + s[j] + bias[j])
        xn, sn, bn, cn = x[2 * size :], s[2 * size :], bias[2 * size : 3 * size], bias[3 * size :]
        for j in range(size):
            m[j] = sn[j] + cn[j]
            n[j] = tanh(xn[j] + bn[j] + r[j] * m[j])
            state[j] = n[j] + z[j] * (state[j] - n[j])
        out = y[frame, left : left + size]
        for j in range(size):
            out[j] = state[j]
            x[j] = state[j]
        narrow(bits[0, :size], half, states[(t + 1) * num_rows + b])
    return 0


def gru_gradient(t: int, left: int, half: int, positions: Any, dy: Any, y: Any, gates: Any, product: Any, row: Any, bits: Any, dh: Any, sums: Any, recurrent_sums: Any, dbias: Any) -> int:
    """Undo gru_frame's step t: from dy (T B, D H) and what step t + 1 left, the gradients of the gates' sums.

    product (B, H): recurrent_sums of step t + 1 times V; dh (B, H): the rest of what it left, replaced by this step's. sums (T B, D 3 H),
    by frame, and recurrent_sums (T B, 3 H), by step: of U x and V h; product and these are integers as in gru_frame. dbias (4 H,): added to.
    """
    num_rows, size = dh.shape
    for b in range(num_rows):
        frame = positions[t, b] * num_rows + b
        widen(product[b], half, bits[0, :size])
        p, s, g, carry, d = row[0], row[1], gates[t * num_rows + b], dh[b], dy[frame, left : left + size]
        r, z, n, m = g[:size], g[size : 2 * size], g[2 * size : 3 * size], g[3 * size :]
        sr, sz, sn = s[:size], s[size : 2 * size], s[2 * size :]
        if t:
            h = y[positions[t - 1, b] * num_rows + b, left : left + size]
            for j in range(size):
                sz[j] = h[j] - n[j]
        else:
            for j in range(size):
                sz[j] = -n[j]
        for j in range(size):
            whole = carry[j] + p[j] + d[j]
            sz[j] = whole * sz[j] * z[j] * (ONE - z[j])
            sn[j] = whole * (ONE - z[j]) * (ONE - n[j] * n[j])
            sr[j] = sn[j] * m[j] * r[j] * (ONE - r[j])
            carry[j] = whole * z[j]
        for j in range(3 * size):
            dbias[j] += s[j]
        narrow(bits[1], half, sums[frame, 3 * left : 3 * left + 3 * size])
        dc = dbias[3 * size :]
        for j in range(size):
            sn[j] = sn[j] * r[j]
            dc[j] += sn[j]
        narrow(bits[1], half, recurrent_sums[t * num_rows + b])
    return 0


def widen(source: Any, half: int, bits: Any) -> None:
    """Write numbers, bfloat16 or float32, as float32: a bfloat16 is the upper half of one. All are given as integers of their size."""
    if half:
        for j in range(len(bits)):
            bits[j] = np.int32(source[j]) << 16
    else:
        for j in range(len(bits)):
            bits[j] = source[j]


def narrow(bits: Any, half: int, target: Any) -> None:
    """Write float32 numbers as bfloat16, rounded to the nearest, ties to even, or as they are."""
    if half:
        for j in range(len(bits)):
            target[j] = (bits[j] + 0x7FFF + ((bits[j] >> 16) & 1)) >> 16
    else:
        for j in range(len(bits)):
            target[j] = bits[j]


def sigmoid(x: Any) -> Any:
    """The logistic function by tanh."""
    return HALF + HALF * tanh(HALF * x)


def tanh(x: Any) -> Any:
    """A rational function, which compilers do for many numbers at once."""
    x = max(min(x, TANH_LIMIT), -TANH_LIMIT)
    y = x * x
    return x * (P0 + y * (P1 + y * (P2 + y * (P3 + y * (P4 + y * (P5 + y * P6)))))) / (Q0 + y * (Q1 + y * (Q2 + y * Q3)))
