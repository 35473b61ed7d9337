"""The innermost loops of matrix products, in LLVM's assembly language, and weights in the order in which they are read.

A tile is a few rows and some vectors of columns of the result, whose sums stay in registers until they are done; compilers do not make
that of plain loops. A sum's terms are added one after the other however many rows a tile has, so a row gets the same bits beside any others.

Weights and inputs may be rounded to 8 bits (Jacob et al. 2018, "Quantization and training of neural networks for efficient integer-arithmetic-only
inference"): four products of bytes and their sum are then one instruction, where the processor has it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import llvmlite.binding as llvm
import numpy as np

from asr import native
from asr.native import Assembly

_FEATURES = llvm.get_host_cpu_features()
_WIDE = _FEATURES.get("avx512f", False)
LANES = 16 if _WIDE else 8 if _FEATURES.get("avx2") else 4  # numbers of a vector
VECTORS = 4 if _WIDE else 2  # of columns, in a tile
WIDTH = LANES * VECTORS
ROWS = 4
PANELS = 8 // VECTORS  # that a tile of a single row spans: the processor adds to some sums while others wait for their last term
_DOT = bool(_FEATURES.get("avx512vnni") if _WIDE else _FEATURES.get("avxvnni"))  # an instruction for four products of bytes and their sum
FAST_BYTES = _DOT or bool(_FEATURES.get("avx512bw") if _WIDE else _FEATURES.get("avx2"))  # that, or one for two products of 16 bits
GROUP = 4 if _DOT else 2  # products of a step
INPUT = np.uint8 if _DOT else np.int16  # what inputs rounded to bytes are stored as; their sums are the same
LIMIT = 127  # largest byte of a weight and, without the 128 that are added to make it positive, of an input
PRECISIONS = ("auto", "int8", "float32")
LINE = 64  # bytes of a cache line; arrays that begin with one are read fastest


class Weights(NamedTuple):
    """A matrix (K, J) in P panels of WIDTH columns, a multiple of PANELS, and what is added to its products, with zeros beyond the last column.

    floats (P, K, WIDTH), or, rounded to bytes, bytes (P, ceil(K / GROUP), WIDTH, GROUP), a column's numbers in `scales` (P WIDTH,), and what its sums
    begin with in `offsets` (P WIDTH,), for the 128 that is added to each input. bias (P WIDTH,). depth: K.
    """

    floats: np.ndarray
    bytes: np.ndarray
    scales: np.ndarray
    offsets: np.ndarray
    bias: np.ndarray
    depth: int


def pack(matrix: np.ndarray, bias: np.ndarray, *, as_bytes: bool = False) -> Weights:
    """Return a matrix (K, J) and a bias (J,) as tiles read them, the matrix rounded to 8 bits a number and a scale a column, or as it is."""
    depth, num_columns = matrix.shape
    num_panels = -(-num_columns // (WIDTH * PANELS)) * PANELS
    padded = np.zeros((-(-depth // GROUP) * GROUP if as_bytes else depth, num_panels * WIDTH), np.float32)
    padded[:depth, :num_columns] = matrix
    bias = np.pad(bias.astype(np.float32), (0, padded.shape[1] - num_columns))
    floats, scales = np.zeros((0, 0, 0), np.float32), np.zeros(0, np.float32)
    rounded, offsets = np.zeros((0, 0, 0, 0), np.int8), np.zeros(0, np.int32)
    if as_bytes:
        scales = np.maximum(np.abs(padded).max(axis=0) / LIMIT, np.float32(1e-30))
        numbers = np.rint(padded / scales).astype(np.int8)
        offsets = -(LIMIT + 1) * numbers.sum(axis=0, dtype=np.int32)
        rounded = _copy(numbers.reshape(-1, GROUP, num_panels, WIDTH).transpose(2, 0, 3, 1))
    else:
        floats = _copy(padded.reshape(depth, num_panels, WIDTH).transpose(1, 0, 2))
    return Weights(floats, rounded, scales, offsets, bias, depth)


def aligned(shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    """Return an array that begins with a cache line, not filled."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(size + LINE, np.uint8)
    first = -memory.ctypes.data % LINE
    return memory[first : first + size].view(dtype).reshape(shape)


def in_bytes(precision: str) -> bool:
    """Return whether a precision, one of PRECISIONS, means bytes: "int8" does, "float32" does not, "auto" where the processor is faster with them.

    Raises ValueError for another.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, found {precision!r}")
    return precision == "int8" or (precision == "auto" and FAST_BYTES)


def multiply(a: np.ndarray, stride: int, weights: Weights, out: np.ndarray) -> None:
    """Fill out (R, P WIDTH): asr.layers.product, compiled, on one thread."""
    from asr import layers

    _compiled_product()(a, stride, weights, memory(layers.BLOCK, weights), out)


def memory(num_rows: int, weights: Weights) -> tuple[np.ndarray, np.ndarray]:
    """Return what asr.layers.multiply wants for rows in bytes."""
    return np.zeros((num_rows, GROUP * weights.bytes.shape[1]), INPUT), np.zeros(num_rows, np.float32)


@cache
def _compiled_product() -> Callable[..., int]:
    from asr import layers

    numbers, matrix = np.zeros(1, np.float32), np.zeros((1, 1), np.float32)
    weights = pack(matrix, numbers)
    return native.load(layers, "product", (numbers, 1, weights, memory(1, weights), matrix), fused=True)


def _copy(array: np.ndarray) -> np.ndarray:
    copy = aligned(array.shape, array.dtype.type)
    copy[...] = array
    return copy


def _tile(name: str, rows: int, panels: int, number: str, inputs: str, weights: str, step: str) -> Assembly:
    """Return the function (a, stride, depth, weights, first, out, width), all addresses but for the numbers stride, depth and width.

    It fills `rows` rows of the columns of `panels` panels, `width` numbers apart, from `out` on, with what `first` has for each column plus the
    products of `depth` numbers of a's rows, `stride` apart, and the panels'. number: the type of all these but the panels'; inputs, weights: of a vector of
    a row's, all the same, and of a panel's; step: how a vector of sums %s becomes %n by these, %x and %w.
    """
    sums, columns = f"<{LANES} x {number}>", range(VECTORS * panels)
    tile = [(row, column) for row in range(rows) for column in columns]
    lines = [f"define void @{name}(i64 %a, i64 %stride, i64 %depth, i64 %weights, i64 %first, i64 %out, i64 %width) #0 {{", "start:"]
    lines += [f"%{pointer}_0 = inttoptr i64 %{pointer} to ptr" for pointer in ("a", "weights", "first", "out")]
    for row in range(1, rows):
        lines += [f"%{p}_{row} = getelementptr {number}, ptr %{p}_{row - 1}, i64 %{size}" for p, size in (("a", "stride"), ("out", "width"))]
    for panel in range(1, panels):
        lines += [f"%weights_{panel} = getelementptr [{VECTORS} x {weights}], ptr %weights_{panel - 1}, i64 %depth"]
    for column in columns:
        lines += [f"%f_{column} = getelementptr {sums}, ptr %first_0, i64 {column}", f"%b_{column} = load {sums}, ptr %f_{column}, align 4"]
    lines += ["br label %loop", "loop:", "%i = phi i64 [0, %start], [%next, %loop]"]
    lines += [f"%s_{r}_{c} = phi {sums} [%b_{c}, %start], [%n_{r}_{c}, %loop]" for r, c in tile]
    lines += [f"%r_{panel} = getelementptr [{VECTORS} x {weights}], ptr %weights_{panel}, i64 %i" for panel in range(panels)]
    for column in columns:
        panel, place = divmod(column, VECTORS)
        lines += [f"%p_{column} = getelementptr {weights}, ptr %r_{panel}, i64 {place}", f"%w_{column} = load {weights}, ptr %p_{column}, align 4"]
    for row in range(rows):
        lines += [f"%q_{row} = getelementptr {number}, ptr %a_{row}, i64 %i", f"%l_{row} = load {number}, ptr %q_{row}, align 4"]
        lines += [f"%v_{row} = insertelement {sums} poison, {number} %l_{row}, i64 0"]
        lines += [f"%u_{row} = shufflevector {sums} %v_{row}, {sums} poison, <{LANES} x i32> zeroinitializer"]
        lines += [f"%x_{row} = bitcast {sums} %u_{row} to {inputs}"]
    lines += [step.replace("%n", f"%n_{r}_{c}").replace("%s", f"%s_{r}_{c}").replace("%x", f"%x_{r}").replace("%w", f"%w_{c}") for r, c in tile]
    lines += ["%next = add i64 %i, 1", "%more = icmp ult i64 %next, %depth", "br i1 %more, label %loop, label %done", "done:"]
    for r, c in tile:
        lines += [f"%o_{r}_{c} = getelementptr {sums}, ptr %out_{r}, i64 {c}", f"store {sums} %n_{r}_{c}, ptr %o_{r}_{c}, align 4"]
    attributes = 'attributes #0 = { "prefer-vector-width"="512" "min-legal-vector-width"="512" }'  # else some processors get halves
    return Assembly(name, 7, "\n".join([*lines, "ret void", "}", attributes, *_DECLARATIONS]))


_FLOATS, _SUMS, _BYTES, _WORDS = (f"<{size} x {kind}>" for size, kind in ((LANES, "float"), (LANES, "i32"), (GROUP * LANES, "i8"), (GROUP * LANES, "i16")))
_FMA = f"@llvm.fmuladd.v{LANES}f32"
_FLOAT_STEP = f"%n = call {_FLOATS} {_FMA}({_FLOATS} %x, {_FLOATS} %w, {_FLOATS} %s)"
_DECLARATIONS = [f"declare {_FLOATS} {_FMA}({_FLOATS}, {_FLOATS}, {_FLOATS})"]
if _DOT:
    _INSTRUCTION = f"@llvm.x86.avx512.vpdpbusd.{32 * LANES}"
    _BYTE_STEP = f"%n = call {_SUMS} {_INSTRUCTION}({_SUMS} %s, {_BYTES} %x, {_BYTES} %w)"
    _DECLARATIONS.append(f"declare {_SUMS} {_INSTRUCTION}({_SUMS}, {_BYTES}, {_BYTES})")
elif FAST_BYTES:
    _INSTRUCTION = "@llvm.x86.avx512.pmaddw.d.512" if _WIDE else "@llvm.x86.avx2.pmadd.wd"
    _BYTE_STEP = f"""%n.w = sext {_BYTES} %w to {_WORDS}
%n.p = call {_SUMS} {_INSTRUCTION}({_WORDS} %x, {_WORDS} %n.w)
%n = add {_SUMS} %n.p, %s"""
    _DECLARATIONS.append(f"declare {_SUMS} {_INSTRUCTION}({_WORDS}, {_WORDS})")
else:  # the same numbers, slower than floats
    _PAIRS = f"<{GROUP * LANES} x i32>"
    _HALVES = ["<" + ", ".join(f"i32 {2 * lane + k}" for lane in range(LANES)) + ">" for k in (0, 1)]
    _BYTE_STEP = f"""%n.w = sext {_BYTES} %w to {_PAIRS}
%n.x = sext {_WORDS} %x to {_PAIRS}
%n.p = mul {_PAIRS} %n.x, %n.w
%n.0 = shufflevector {_PAIRS} %n.p, {_PAIRS} poison, {_SUMS} {_HALVES[0]}
%n.1 = shufflevector {_PAIRS} %n.p, {_PAIRS} poison, {_SUMS} {_HALVES[1]}
%n.2 = add {_SUMS} %n.0, %n.1
%n = add {_SUMS} %n.2, %s"""
_INPUTS = _BYTES if _DOT else _WORDS

FLOAT_TILE = _tile("float_tile", ROWS, 1, "float", _FLOATS, _FLOATS, _FLOAT_STEP)
FLOAT_ROW = _tile("float_row", 1, PANELS, "float", _FLOATS, _FLOATS, _FLOAT_STEP)
BYTE_TILE = _tile("byte_tile", ROWS, 1, "i32", _INPUTS, _BYTES, _BYTE_STEP)
BYTE_ROW = _tile("byte_row", 1, PANELS, "i32", _INPUTS, _BYTES, _BYTE_STEP)
