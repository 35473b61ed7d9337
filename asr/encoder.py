"""The network of asr/model.py for recognition, in numpy and the compiled loops of asr/layers.py: no torch, and faster than it on a CPU.

Utterances stand one after the other without padding, and each has its own rows, so it gets the same bits alone and in any batch. The
layer norms' scales and shifts are folded into the products that follow them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from asr import layers, tiles
from asr.checkpoint import CheckpointError, ModelFolder, load_weights
from asr.tiles import ROWS, Weights, aligned

CELLS = {"gru": layers.GRU, "lstm": layers.LSTM, "rnn_tanh": layers.RNN_TANH, "rnn_relu": layers.RNN_RELU}
NUM_GATES = {"gru": 3, "lstm": 4, "rnn_tanh": 1, "rnn_relu": 1}
KERNEL = 3  # frames seen by a subsampling convolution
NORM_EPSILON = 1e-5

Encoder = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
State = list[np.ndarray]


@dataclass(frozen=True)
class Linear:
    """x -> x @ matrix (K, J) + bias (J,). num_columns: J."""

    weights: Weights
    num_columns: int

    @property
    def width(self) -> int:
        """Columns up to the last panel's end."""
        return len(self.weights.bias)


@dataclass(frozen=True)
class Direction:
    """One direction of a layer: U and the biases that need not wait, and V (H, G H) with the bias added to V h."""

    inputs: Linear
    recurrent: Linear


@dataclass(frozen=True)
class Network:
    """The weights of a model folder as the loops want them. subsampling, outputs_per_frame, residual_layers: as in asr.model.ModelConfig."""

    cell: str
    convs: tuple[Linear, ...]
    layers: tuple[tuple[Direction, ...], ...]
    output: Linear
    outputs_per_frame: int
    vocabulary_size: int
    num_sounds: int
    residual_layers: int

    def after(self, number: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return what layer `number` hands on whose input was x and whose states are y."""
        return x + y if number >= len(self.layers) - self.residual_layers else y

    @property
    def num_outputs(self) -> int:
        """Log-probabilities a frame."""
        return self.vocabulary_size + self.num_sounds

    @property
    def subsampling(self) -> int:
        """Feature frames to one frame of the encoder."""
        return int(2 ** len(self.convs))


def load_encoder(folder: ModelFolder, num_threads: int = 0, *, precision: str = "auto") -> Encoder:
    """Return (features (B, T, M), lengths (B,)) -> (log_probs (B, T', V + S), lengths (B,)) of a model folder; num_threads 0: one a core.

    precision: as for load. Raises CheckpointError for weights that cannot be read or do not fit the config.
    """
    network = load(folder, precision)
    num_threads = num_threads or len(os.sched_getaffinity(0))

    def encode(features: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        results = run(network, [x[:length] for x, length in zip(features, lengths, strict=True)], num_threads=num_threads)
        output_lengths = np.array([len(result) for result in results], np.int64)
        log_probs = np.zeros((len(results), output_lengths.max(initial=0), network.num_outputs), np.float32)
        for row, result in zip(log_probs, results, strict=True):
            row[: len(result)] = result
        return log_probs, output_lengths

    return encode


def load(folder: ModelFolder, precision: str = "auto") -> Network:
    """Return the network of a model folder.

    precision: of the recurrent layers' products: "int8" rounds weights and inputs to 8 bits, "float32" does not, "auto" does where the
    processor is faster with them. A ReLU network, whose states know no bound, is always in float32.
    Raises CheckpointError for weights that cannot be read or do not fit the config, ValueError for another precision.
    """
    as_bytes = tiles.in_bytes(precision) and folder.network.get("cell") != "rnn_relu"
    weights = load_weights(folder)
    try:
        if folder.network.get("num_mels") != folder.features.num_mels:
            raise ValueError(f"{folder.network.get('num_mels')} mel bins in the network, {folder.features.num_mels} in the features")
        return pack(folder.network, weights, as_bytes=as_bytes)
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder.path}: the weights do not fit the network of the config: {error}") from error


def pack(config: Mapping[str, Any], weights: Mapping[str, np.ndarray], *, as_bytes: bool = False) -> Network:
    """Return the network of a config, the fields of asr.model.ModelConfig, and its weights by their names in asr.model.AcousticModel.

    as_bytes: those of the recurrent layers are rounded to 8 bits. Raises ValueError, KeyError or TypeError where they do not fit.
    """
    expected = dict(_shapes(config, weights))
    if foreign := sorted(set(weights) - set(expected)):
        raise ValueError(f"unexpected weights {foreign[0]}")
    convs = []
    for i in range(_num_convolutions(config)):
        kernel = weights[f"convs.{i}.weight"]  # (C', C, KERNEL)
        convs.append(_linear(kernel.transpose(2, 1, 0).reshape(-1, len(kernel)), weights[f"convs.{i}.bias"]))
    stack = tuple(
        tuple(_direction(weights, i, name, config["cell"], as_bytes) for name in _directions(config)) for i in range(config["num_layers"])
    )
    output = _normed(weights, config["num_layers"], weights["output.weight"].T, weights["output.bias"])
    return Network(
        cell=config["cell"],
        convs=tuple(convs),
        layers=stack,
        output=output,
        outputs_per_frame=config.get("outputs_per_frame", 1),
        vocabulary_size=config["vocabulary_size"],
        num_sounds=config.get("num_sounds", 0),
        residual_layers=config.get("residual_layers", 0),
    )


def _shapes(config: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and shape of each weight that the config asks for, checked: the loops check nothing."""
    sizes = {name: config.get(name, 1) for name in ("num_mels", "vocabulary_size", "num_layers", "hidden_size", "conv_channels", "outputs_per_frame")}
    for name, size in sizes.items():
        if type(size) is not int or size < 1:
            raise ValueError(f"{name}: expected 1 or more, found {size!r}")
    for name, limit in (("num_sounds", 65_536), ("residual_layers", config["num_layers"] - 1)):
        if type(size := config.get(name, 0)) is not int or not 0 <= size <= limit:
            raise ValueError(f"{name}: expected 0 to {limit}, found {size!r}")
    if config["cell"] not in CELLS or config["subsampling"] not in (2, 4, 8):
        raise ValueError(f"expected a cell out of {', '.join(CELLS)} and a subsampling of 2, 4 or 8")
    for name, shape in _expected_shapes(config):
        if weights[name].shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, found {weights[name].shape}")
        yield name, shape


def _expected_shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    channels, hidden, num_gates = config["conv_channels"], config["hidden_size"], NUM_GATES[config["cell"]]
    for i in range(_num_convolutions(config)):
        yield f"convs.{i}.weight", (channels, channels if i else config["num_mels"], KERNEL)
        yield f"convs.{i}.bias", (channels,)
    width = channels
    for i in range(config["num_layers"] + 1):
        yield f"norms.{i}.weight", (width,)
        yield f"norms.{i}.bias", (width,)
        if i == config["num_layers"]:
            break
        for name in _directions(config):
            yield f"layers.{i}.{name}.weight_ih_l0", (num_gates * hidden, width)
            yield f"layers.{i}.{name}.weight_hh_l0", (num_gates * hidden, hidden)
            yield f"layers.{i}.{name}.bias_ih_l0", (num_gates * hidden,)
            yield f"layers.{i}.{name}.bias_hh_l0", (num_gates * hidden,)
        width = hidden * len(_directions(config))
    num_outputs = (config["vocabulary_size"] + config.get("num_sounds", 0)) * config.get("outputs_per_frame", 1)
    yield "output.weight", (num_outputs, width)
    yield "output.bias", (num_outputs,)


def _num_convolutions(config: Mapping[str, Any]) -> int:
    return int(config["subsampling"]).bit_length() - 1


def _directions(config: Mapping[str, Any]) -> tuple[str, ...]:
    return ("forward_cell", "backward_cell") if config["bidirectional"] else ("forward_cell",)


def run(network: Network, features: Sequence[np.ndarray], *, num_threads: int = 1) -> list[np.ndarray]:
    """Return log_probs (T', V + S) of each utterance's features (T, M)."""
    order = sorted(range(len(features)), key=lambda i: -len(features[i]))
    utterances = [np.asarray(features[i], np.float32) for i in order]
    results = [np.zeros((0, network.num_outputs), np.float32)] * len(features)
    if not any(map(len, utterances)):
        return results
    threads = _Threads(num_threads)
    with threads.pool:
        for conv in network.convs:
            utterances = _convolve(threads, conv, utterances)
        ends = np.cumsum([len(x) for x in utterances])
        x = np.concatenate(utterances)  # (N, C)
        for number, layer in enumerate(network.layers):
            x = network.after(number, x, _recur(threads, network.cell, layer, _normalise(threads, x), np.diff(ends, prepend=0)))
        log_probs = _classify(threads, network, x)
    for i, end, x in zip(order, ends, utterances, strict=True):
        first, last = (end - len(x)) * network.outputs_per_frame, end * network.outputs_per_frame
        results[i] = log_probs[first:last]
    return results


def step(network: Network, features: np.ndarray, state: State | None = None) -> tuple[np.ndarray, State]:
    """Continue a stream: return (log_probs (T', V + S), state) of the next features (T, M), T a multiple of the subsampling and not 0.

    The results of the pieces, put together, are those of the whole to the bit. Raises ValueError for a bidirectional network.
    """
    if len(network.layers[0]) > 1:
        raise ValueError("a bidirectional model needs the whole utterance; train with --one-directional for streaming")
    if len(features) % network.subsampling or not len(features):
        raise ValueError(f"expected a multiple of {network.subsampling} frames, found {len(features)}")
    previous, threads = iter(state or []), _Threads(1)
    x, new_state = np.asarray(features, np.float32), []
    for conv in network.convs:
        x = np.concatenate([next(previous, np.zeros((KERNEL - 1, x.shape[1]), np.float32)), x])
        new_state.append(x[1 - KERNEL :].copy())
        x = np.maximum(_product(threads, x.reshape(-1), 2 * x.shape[1], conv, (len(x) - 1) // 2)[:, : conv.num_columns], 0)
    for number, (direction,) in enumerate(network.layers):
        size = direction.recurrent.weights.depth
        hidden = next(previous, np.zeros((2, size), np.float32)).copy()  # h and, of an LSTM, c
        y = aligned((len(x), size))
        _run_direction(network.cell, direction, 1, _normalise(threads, x), np.array([0]), np.array([len(x)]), hidden, y, 0)
        new_state.append(hidden)
        x = network.after(number, x, y)
    return _classify(threads, network, x), new_state


class _Threads:
    """Run compiled loops beside each other, `num` at once; one alone runs in the caller's thread."""

    def __init__(self, num: int) -> None:
        self.num = num
        self.pool = ThreadPoolExecutor(num)  # starts no thread before the first task

    def run(self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> None:
        if len(tasks) == 1:
            function(*tasks[0])
        else:
            list(self.pool.map(lambda task: function(*task), tasks))


def _product(threads: _Threads, a: np.ndarray, stride: int, linear: Linear, num_rows: int) -> np.ndarray:
    """Return (num_rows, J or more): asr.layers.product, its rows divided among the threads."""
    out = aligned((num_rows, linear.width))
    share = -(-num_rows // (ROWS * threads.num)) * ROWS
    tasks = [(a[first * stride :], stride, linear.weights, out[first : first + share]) for first in range(0, num_rows, share)]
    threads.run(tiles.multiply, tasks)
    return out


def _convolve(threads: _Threads, conv: Linear, utterances: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return max(0, causal convolution of stride 2) of utterances (T, C): frame t' sees 2 t' - 2, 2 t' - 1 and 2 t'.

    They stand in one array, each after two rows of zeros and from an even row on, so that the frames seen by a result are KERNEL rows
    that follow one another, and the next result's begin two rows further.
    """
    sizes = [KERNEL - 1 + len(x) + len(x) % 2 for x in utterances]
    firsts = np.cumsum([0, *sizes])
    padded = aligned((firsts[-1] + 1, utterances[0].shape[1]))
    for x, first in zip(utterances, firsts, strict=False):
        padded[first : first + 2] = 0
        padded[first + 2 : first + 2 + len(x)] = x
        padded[first + 2 + len(x) : first + 3 + len(x)] = 0
    result = _product(threads, padded.reshape(-1), 2 * padded.shape[1], conv, firsts[-1] // 2)[:, : conv.num_columns]
    np.maximum(result, 0, out=result)
    return [result[first // 2 : first // 2 + (len(x) + 1) // 2] for x, first in zip(utterances, firsts, strict=False)]


def _recur(threads: _Threads, cell: str, layer: tuple[Direction, ...], x: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the states (N, D H) of a layer of D directions over x (N, C), utterances of `lengths` one after the other, the longest first.

    Directions run beside each other and, where there are more threads, utterances too.
    """
    size = layer[0].recurrent.weights.depth
    out = aligned((len(x), len(layer) * size))
    starts = np.cumsum(lengths) - lengths
    num_groups = min(-(-threads.num // len(layer)), len(lengths))
    bounds = [len(lengths) * g // num_groups for g in range(num_groups + 1)]
    tasks = [
        (cell, layer[d], 1 - 2 * d, x, starts[a:b], lengths[a:b], np.zeros((2, (b - a) * size), np.float32), out, d * size)
        for a, b in pairwise(bounds)
        for d in range(len(layer))
    ]
    threads.run(_run_direction, tasks)
    return out


def _run_direction(
    cell: str, direction: Direction, step: int, x: np.ndarray, starts: np.ndarray, lengths: np.ndarray, state: np.ndarray, out: np.ndarray, left: int
) -> None:
    """Run one direction over utterances that follow one another in x (N, C), from and to the state (2, B H): h and, of an LSTM, c."""
    first, last = starts[0], starts[-1] + lengths[-1]
    inputs = aligned((last - first, direction.inputs.width))
    tiles.multiply(x[first:last].reshape(-1), x.shape[1], direction.inputs.weights, inputs)
    recurrent = direction.recurrent.weights
    sums, memory = aligned((len(lengths), direction.recurrent.width)), tiles.memory(len(lengths), recurrent)
    _compiled_recur()(
        CELLS[cell], inputs, recurrent, memory, starts - first, lengths, step, sums, state[0], state[1], out[first:last], left
    )


def _classify(threads: _Threads, network: Network, x: np.ndarray) -> np.ndarray:
    """Return log_probs (N * outputs_per_frame, V + S) of the last layer's states (N, C)."""
    normed = _normalise(threads, x)
    logits = _product(threads, normed.reshape(-1), x.shape[1], network.output, len(x))[:, : network.output.num_columns].reshape(-1, network.num_outputs)
    for part in np.split(logits, [network.vocabulary_size], axis=1):  # views
        if part.size:
            part -= part.max(axis=1, keepdims=True)
            part -= np.log(np.exp(part).sum(axis=1, keepdims=True))
    return logits


def _normalise(threads: _Threads, x: np.ndarray) -> np.ndarray:
    """Return each row of x (N, C) shifted to mean 0 and scaled to variance 1."""
    normed = aligned(x.shape)
    share = -(-len(x) // threads.num)
    threads.run(_normalise_rows, [(x[first : first + share], normed[first : first + share]) for first in range(0, len(x), share)])
    return normed


def _normalise_rows(x: np.ndarray, normed: np.ndarray) -> None:
    np.subtract(x, x.mean(axis=1, keepdims=True), out=normed)
    normed /= np.sqrt((normed * normed).mean(axis=1, keepdims=True) + np.float32(NORM_EPSILON))


def _direction(weights: Mapping[str, np.ndarray], layer: int, name: str, cell: str, as_bytes: bool) -> Direction:
    u, v, b, c = (weights[f"layers.{layer}.{name}.{kind}_l0"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    size = v.shape[1]
    apart = np.zeros_like(c)
    if cell == "gru":  # r multiplies the last gate's recurrent bias
        apart[2 * size :] = c[2 * size :]
    return Direction(_normed(weights, layer, u.T, b + c - apart, as_bytes), _linear(v.T, apart, as_bytes))


def _normed(weights: Mapping[str, np.ndarray], layer: int, matrix: np.ndarray, bias: np.ndarray, as_bytes: bool = False) -> Linear:
    """Return (norm(x) * scale + shift) @ matrix + bias as a product of norm(x)."""
    scale, shift = (weights[f"norms.{layer}.{kind}"].astype(np.float64)[:, None] for kind in ("weight", "bias"))
    return _linear(scale * matrix, bias + (shift * matrix).sum(axis=0), as_bytes)


def _linear(matrix: np.ndarray, bias: np.ndarray, as_bytes: bool = False) -> Linear:
    return Linear(tiles.pack(matrix, bias, as_bytes=as_bytes), len(bias))


@cache
def _compiled_recur() -> Callable[..., int]:
    from asr import native

    numbers, matrix, integers = np.zeros(1, np.float32), np.zeros((1, 1), np.float32), np.zeros(1, np.int64)
    weights = tiles.pack(matrix, numbers)
    example = (0, matrix, weights, tiles.memory(1, weights), integers, integers, 1, matrix, numbers, numbers, matrix, 0)
    return native.load(layers, "recur", example, fused=True)
