"""The inner loops of the recurrent layers: plain loops over numbers in arrays, to be compiled.

For recognition, where asr/encoder.py fills the arrays, each row's sums run in the same order whatever rows stand beside it, so an
utterance gets the same bits alone and in any batch. For training asr/gru.py does the matrix products, and a frame's gates are here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from asr import tiles

GRU, LSTM, RNN_TANH, RNN_RELU = range(4)
BLOCK = 64  # rows multiplied by one panel of weights before the next: both stay in a core's cache

HALF, ZERO, ONE, TINY = np.float32(0.5), np.float32(0), np.float32(1), np.float32(1e-30)
BYTE_LIMIT, BYTE_ZERO = np.float32(tiles.LIMIT), np.float32(tiles.LIMIT + 1.5)  # the half rounds to the nearest
WIDTH, ROWS, PANELS = tiles.WIDTH, tiles.ROWS, tiles.PANELS
float_tile: Any = tiles.FLOAT_TILE
float_row: Any = tiles.FLOAT_ROW
byte_tile: Any = tiles.BYTE_TILE
byte_row: Any = tiles.BYTE_ROW
# tanh x = x P(x^2) / Q(x^2) to a few units in the last place; beyond the limit float32 knows only 1 (minimax fit, as in Eigen's ptanh)
TANH_LIMIT = np.float32(7.90531110763549805)
P0, P1, P2, P3 = (np.float32(p) for p in (4.89352455891786e-03, 6.37261928875436e-04, 1.48572235717979e-05, 5.12229709037114e-08))
P4, P5, P6 = (np.float32(p) for p in (-8.60467152213735e-11, 2.00018790482477e-13, -2.76076847742355e-16))
Q0, Q1, Q2, Q3 = (np.float32(q) for q in (4.89352518554385e-03, 2.26843463243900e-03, 1.18534705686654e-04, 1.19825839466702e-06))


def product(a: Any, stride: int, weights: Any, memory: Any, out: Any) -> int:
    """Fill out (R, P WIDTH) with a @ weights + their bias. Row r of a is a[r * stride : r * stride + K] of a flat array, so rows may overlap.

    weights: tiles.Weights of (K, J). memory: see multiply.
    """
    num_rows = len(out)
    for row in range(0, num_rows, BLOCK):
        multiply(a, row * stride, stride, weights, memory, out, row, min(BLOCK, num_rows - row), ZERO)
    return 0


def recur(cell: int, inputs: Any, recurrent: Any, memory: Any, starts: Any, lengths: Any, step: int, sums: Any, h: Any, c: Any, out: Any, left: int) -> int:
    """Run one direction of a layer over utterances, the longest first, and write its states into the H columns of out (N, C) from `left` on.

    inputs (N, G H or more): U x + b of all frames, G gates. recurrent: V (H, G H) and what is added to V h, tiles.Weights.
    memory: see multiply. starts (B,): each utterance's first row. step: 1, or -1 to run from its last row. sums (B, P WIDTH): memory.
    h, c (B H,): first states, on return the last.
    """
    size = recurrent.depth
    num_running = len(lengths)
    for t in range(lengths[0]):
        while lengths[num_running - 1] <= t:
            num_running -= 1
        multiply(h, 0, size, recurrent, memory, sums, 0, num_running, ONE)
        for b in range(num_running):
            frame = starts[b] + (t if step > 0 else lengths[b] - 1 - t)
            state, y = h[b * size : (b + 1) * size], out[frame, left : left + size]
            update(cell, inputs[frame], sums[b], state, c[b * size : (b + 1) * size])
            for j in range(size):
                y[j] = state[j]
    return 0


def recur_tree(
    starts: Any, nodes: Any, parents: Any, words: Any, inputs: Any, recurrent: Any, memory: Any, rows: Any, sums: Any, states: Any
) -> int:
    """Fill in the states (N, H) of a GRU after each of `nodes`, from those of its parent; the root's is its own parent's, and given.

    nodes[starts[l]] to nodes[starts[l + 1] - 1] are on level l, no more than sums has rows. inputs (U, 3 H or more): U x + b of each word; words,
    parents (N,). recurrent, memory: as for recur. rows (R H,), sums (R, P WIDTH): memory.
    """
    size = recurrent.depth
    for level in range(len(starts) - 1):
        first, num = starts[level], starts[level + 1] - starts[level]
        for i in range(num):
            before, h = states[parents[nodes[first + i]]], rows[i * size : (i + 1) * size]
            for j in range(size):
                h[j] = before[j]
        multiply(rows, 0, size, recurrent, memory, sums, 0, num, ONE)
        for i in range(num):
            node = nodes[first + i]
            h, state = rows[i * size : (i + 1) * size], states[node]
            update(GRU, inputs[words[node]], sums[i], h, h)
            for j in range(size):
                state[j] = h[j]
    return 0


def multiply(a: Any, start: int, stride: int, weights: Any, memory: Any, out: Any, first: int, num: int, limit: Any) -> None:
    """Fill `num` rows of out (R, P WIDTH), from `first` on, with rows of a @ weights + their bias; the first of a's begins at `start`.

    weights: tiles.Weights of (K, J). Those in bytes want the inputs in bytes too: memory is (bytes (num or more, GROUP ceil(K / GROUP)), scales
    (num or more,)) for them. limit: what no input exceeds; 0: a row's largest.
    """
    if len(weights.floats):
        multiply_floats(a, start, stride, weights, out, first, num)
        return
    narrow, scales = memory
    for row in range(num):
        x = a[start + row * stride : start + row * stride + weights.depth]
        scales[row] = narrow_row(x, limit if limit > ZERO else largest(x), narrow[row])
    multiply_bytes(narrow, weights, out, first, num)
    for row in range(num):
        y = out[first + row]
        integers = y.view(np.int32)  # what multiply_bytes wrote there
        for j in range(len(y)):
            y[j] = np.float32(integers[j]) * (scales[row] * weights.scales[j]) + weights.bias[j]


def multiply_floats(a: Any, start: int, stride: int, weights: Any, out: Any, first: int, num: int) -> None:
    """multiply for weights in float32."""
    depth, width, whole = weights.depth, out.shape[1], num - num % ROWS
    for panel in range(len(weights.floats)):
        column = panel * WIDTH
        address, begin = weights.floats[panel].ctypes.data, weights.bias[column:].ctypes.data
        for row in range(0, whole, ROWS):
            float_tile(a[start + row * stride :].ctypes.data, stride, depth, address, begin, out[first + row, column:].ctypes.data, width)
        if panel % PANELS == 0:
            for row in range(whole, num):
                float_row(a[start + row * stride :].ctypes.data, stride, depth, address, begin, out[first + row, column:].ctypes.data, width)


def multiply_bytes(narrow: Any, weights: Any, out: Any, first: int, num: int) -> None:
    """Fill rows of out with the bits of int32: rows of bytes times weights in bytes, without the 128 that are added to a row's."""
    depth, width, whole = weights.bytes.shape[1], out.shape[1], num - num % ROWS
    for panel in range(len(weights.bytes)):
        column = panel * WIDTH
        address, begin = weights.bytes[panel].ctypes.data, weights.offsets[column:].ctypes.data
        for row in range(0, whole, ROWS):
            byte_tile(narrow[row].ctypes.data, depth, depth, address, begin, out[first + row, column:].ctypes.data, width)
        if panel % PANELS == 0:
            for row in range(whole, num):
                byte_row(narrow[row].ctypes.data, depth, depth, address, begin, out[first + row, column:].ctypes.data, width)


def largest(x: Any) -> Any:
    """Return the largest absolute value of x (K,), at least 1e-30; float32 numbers without their sign are in the order of their bits."""
    bits = x.view(np.int32)
    most = np.int32(0)
    for j in range(len(bits)):
        most = max(most, np.int32(bits[j] & 0x7FFFFFFF))
    for j in range(len(x)):
        if np.int32(bits[j] & 0x7FFFFFFF) == most:
            return max(abs(x[j]), TINY)
    return TINY


def narrow_row(x: Any, limit: Any, target: Any) -> Any:
    """Write x (K,), within -limit to limit, as bytes from 1 to 255, 128 for 0; return how much one step of them is."""
    scale = limit / BYTE_LIMIT
    inverse = ONE / scale
    for j in range(len(x)):
        target[j] = np.int32(x[j] * inverse + BYTE_ZERO)
    return scale


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
        out = y[frame, left : left + size]
        for j in range(size):  # a loop for each result: with more arrays in one, compilers give up doing many numbers at once
            m[j] = sn[j] + cn[j]
        for j in range(size):
            n[j] = tanh(xn[j] + bn[j] + r[j] * m[j])
        for j in range(size):
            x[j] = n[j] + z[j] * (state[j] - n[j])
        for j in range(size):
            state[j] = x[j]
        for j in range(size):
            out[j] = x[j]
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
            p[j] += carry[j] + d[j]
        for j in range(size):
            sz[j] = p[j] * sz[j] * z[j] * (ONE - z[j])
        for j in range(size):
            sn[j] = p[j] * (ONE - z[j]) * (ONE - n[j] * n[j])
        for j in range(size):
            sr[j] = sn[j] * m[j] * r[j] * (ONE - r[j])
        for j in range(size):
            carry[j] = p[j] * z[j]
        for j in range(3 * size):
            dbias[j] += s[j]
        narrow(bits[1], half, sums[frame, 3 * left : 3 * left + 3 * size])
        dc = dbias[3 * size :]
        for j in range(size):
            sn[j] = sn[j] * r[j]
        for j in range(size):
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
