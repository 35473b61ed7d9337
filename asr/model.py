"""The network: convolutional subsampling, a stacked recurrent encoder, a linear layer to the tokens. Knows no audio and no text.

Padding never reaches a valid frame. The convolutions are causal, the forward recurrence runs from the first frame, and the backward one
runs over the sequence reversed within its own length, so what stands after an utterance's end is only ever seen after it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asr.gru import run_gru

CELLS = ("gru", "lstm", "rnn_tanh", "rnn_relu")
KERNEL = 3  # frames seen by a subsampling convolution: two from the past and the present one

State = list[Tensor]


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the network. dropout: between layers.

    subsampling: 2, 4 or 8 feature frames to one frame of the encoder. outputs_per_frame: output frames that the last layer makes of each
    encoder frame; 8 and 2 give the frame rate of 4 and 1 for half the work. num_sounds: size of a second vocabulary, in which the network
    writes how the words are pronounced beside how they are spelled; 0 for none. residual_layers: so many layers, the last ones, add to
    their input instead of replacing it (He et al. 2016). They start from zero, so that a network that is trained can be made deeper.
    """

    num_mels: int = 80
    vocabulary_size: int = 29
    num_sounds: int = 0
    cell: str = "gru"
    bidirectional: bool = True
    num_layers: int = 3
    hidden_size: int = 256
    conv_channels: int = 256
    subsampling: int = 4
    outputs_per_frame: int = 1
    dropout: float = 0.2
    residual_layers: int = 0

    def __post_init__(self) -> None:
        if self.cell not in CELLS:
            raise ValueError(f"cell: expected one of {', '.join(CELLS)}, found {self.cell!r}")
        if self.subsampling not in (2, 4, 8):
            raise ValueError(f"subsampling: expected 2, 4 or 8, found {self.subsampling!r}")
        if not 1 <= self.outputs_per_frame <= self.subsampling:
            raise ValueError(f"outputs_per_frame: expected 1 to {self.subsampling}, found {self.outputs_per_frame!r}")
        for name in ("num_mels", "vocabulary_size", "num_layers", "hidden_size", "conv_channels"):
            if not 1 <= getattr(self, name) <= 65_536:
                raise ValueError(f"{name}: expected 1 to 65536, found {getattr(self, name)!r}")
        if not 0 <= self.residual_layers < self.num_layers:
            raise ValueError(f"residual_layers: expected 0 to {self.num_layers - 1}, fewer than the layers, found {self.residual_layers!r}")
        if not 0 <= self.num_sounds <= 65_536:
            raise ValueError(f"num_sounds: expected 0 to 65536, found {self.num_sounds!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected 0 <= dropout < 1, found {self.dropout!r}")


def output_length(length: int, config: ModelConfig) -> int:
    """Return the number of output frames of `length` feature frames: halved, rounded up, once a convolution; also on tensors."""
    for _ in range(num_convolutions(config)):
        length = (length + 1) // 2
    return length * config.outputs_per_frame


def num_convolutions(config: ModelConfig) -> int:
    """Return how many convolutions of stride 2 make up the subsampling."""
    return config.subsampling.bit_length() - 1


class AcousticModel(nn.Module):
    """Log-mel features to log-probabilities of tokens, frame by frame."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.dropout = config.dropout
        sizes = [config.num_mels] + [config.conv_channels] * num_convolutions(config)
        self.convs = nn.ModuleList(nn.Conv1d(a, b, KERNEL, stride=2) for a, b in pairwise(sizes))
        width = config.hidden_size * (2 if config.bidirectional else 1)
        sizes = [config.conv_channels] + [width] * config.num_layers
        self.norms = nn.ModuleList(nn.LayerNorm(size) for size in sizes)
        self.layers = nn.ModuleList(Recurrence(size, config) for size in sizes[:-1])
        for layer in self.layers[config.num_layers - config.residual_layers :]:
            layer.start_from_zero()  # type: ignore[operator]
        self.output = nn.Linear(width, (config.vocabulary_size + config.num_sounds) * config.outputs_per_frame)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return (log_probs (B, T', V + S), lengths (B,)) of features (B, T, M) with lengths (B,) in frames.

        The V tokens' probabilities add up to 1, and so do those of the S sounds behind them.
        """
        x, output_lengths = self.encode(features, lengths)
        return self.classify(x), output_lengths

    def encode(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return (x (B, T'', C), lengths (B,)): what the output layer reads, and how many frames it will make of it."""
        x = features.transpose(1, 2)  # (B, T, M) -> (B, M, T)
        for conv in self.convs:
            x = F.relu(conv(F.pad(x, (KERNEL - 1, 0))))
        x = x.permute(2, 0, 1)  # (B, C, T'') -> (T'', B, C), T'' = T' / outputs_per_frame
        output_lengths: Tensor = output_length(lengths, self.config)  # type: ignore[arg-type, assignment]
        encoder_lengths = output_lengths // self.config.outputs_per_frame
        reversal = reversed_positions(encoder_lengths, x.shape[0]) if self.config.bidirectional else None  # (T'', B, 1)
        for number, (norm, layer) in enumerate(zip(self.norms, self.layers, strict=False)):
            y = layer(F.dropout(norm(x), self.dropout, self.training), reversal)
            x = self._after(number, x, y)
        return self._last(x), output_lengths

    def step(self, features: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Continue a stream: return (log_probs (B, T', V + S), state) of the next features (B, T, M), T a multiple of the subsampling.

        The results of the pieces, put together, are those of the whole. Raises ValueError for a bidirectional model.
        """
        if self.config.bidirectional:
            raise ValueError("a bidirectional model needs the whole utterance; train with bidirectional=False for streaming")
        if features.shape[1] % self.config.subsampling:
            raise ValueError(f"expected a multiple of {self.config.subsampling} frames, found {features.shape[1]}")
        previous = iter(state) if state is not None else None
        x, new_state = features.transpose(1, 2), []  # (B, T, M) -> (B, M, T)
        for conv in self.convs:
            past = next(previous) if previous else x.new_zeros(*x.shape[:2], KERNEL - 1)
            x = torch.cat([past, x], dim=2)
            new_state.append(x[:, :, x.shape[2] - (KERNEL - 1) :])
            x = F.relu(conv(x))
        x = x.permute(2, 0, 1)  # (B, C, T'') -> (T'', B, C)
        for number, (norm, layer) in enumerate(zip(self.norms, self.layers, strict=False)):
            hidden = [next(previous) for _ in range(layer.num_states)] if previous else None  # type: ignore[arg-type]
            y, hidden = layer.step(norm(x), hidden)  # type: ignore[operator]
            x = self._after(number, x, y)
            new_state.extend(hidden)
        return self.classify(self._last(x)), new_state

    def _after(self, number: int, x: Tensor, y: Tensor) -> Tensor:
        """Return what layer `number` hands on whose input was x and whose states are y."""
        return x + y if number >= self.config.num_layers - self.config.residual_layers else y

    def _last(self, x: Tensor) -> Tensor:
        """Return what the output layer reads (B, T'', C) of the last layer's states (T'', B, C)."""
        return F.dropout(self.norms[-1](x), self.dropout, self.training).transpose(0, 1)

    def classify(self, x: Tensor) -> Tensor:
        """Return log_probs (B, T', V + S) of x (B, T'', C)."""
        logits = self.output(x).float()  # (B, T'', outputs_per_frame (V + S))
        sizes = [self.config.vocabulary_size, self.config.num_sounds] if self.config.num_sounds else [self.config.vocabulary_size]
        parts = logits.reshape(x.shape[0], -1, sum(sizes)).split(sizes, dim=2)
        return torch.cat([F.log_softmax(part, dim=-1) for part in parts], dim=2)


def take_over(network: AcousticModel, source: AcousticModel) -> None:
    """Give `network` the weights of `source`, but for the output layer's; residual layers that `source` lacks then write zeros.

    Raises ValueError where their shapes differ otherwise.
    """
    added = network.config.num_layers - source.config.num_layers
    shapes = [dataclasses.replace(n.config, dropout=0.0, vocabulary_size=1, num_sounds=0) for n in (source, network)]
    if 0 < added <= network.config.residual_layers:
        num_residual = network.config.residual_layers - added
        shapes[1] = dataclasses.replace(shapes[1], num_layers=source.config.num_layers, residual_layers=num_residual)
    if shapes[0] != shapes[1]:
        raise ValueError(f"expected the shape {network.config}, perhaps with fewer residual layers, found {source.config}")
    for layer in network.layers[source.config.num_layers :]:
        layer.start_from_zero()  # type: ignore[operator]
    last, new_last = (f"norms.{n.config.num_layers}." for n in (source, network))
    weights = source.state_dict()
    weights = {name.replace(last, new_last): tensor for name, tensor in weights.items() if not name.startswith("output.")}
    network.load_state_dict(weights, strict=False)


class Recurrence(nn.Module):
    """One recurrent layer, forward in time and, in a bidirectional model, backward beside it: (T, B, C) -> (T, B, H or 2 H).

    rnn_tanh is h_t = tanh(U x_t + V h_{t-1} + b), rnn_relu the same with ReLU; gru: Cho et al. 2014; lstm: Hochreiter & Schmidhuber 1997.
    """

    def __init__(self, input_size: int, config: ModelConfig) -> None:
        super().__init__()
        self.num_states = 2 if config.cell == "lstm" else 1
        self.forward_cell = make_cell(config.cell, input_size, config.hidden_size)
        self.backward_cell = make_cell(config.cell, input_size, config.hidden_size) if config.bidirectional else None

    def forward(self, x: Tensor, reversal: Tensor | None) -> Tensor:
        """reversal: (T, B, 1), the position that each frame has in the sequence reversed within its length."""
        if isinstance(self.forward_cell, nn.GRU) and x.device.type == "cpu" and torch.is_grad_enabled():
            in_order = torch.arange(len(x))[:, None].expand(-1, x.shape[1])
            if self.backward_cell is None or reversal is None:
                return run_gru([self.forward_cell], x, [in_order])
            return run_gru([self.forward_cell, self.backward_cell], x, [in_order, reversal[..., 0]])  # type: ignore[list-item]
        ahead = run_cell(self.forward_cell, x)
        if self.backward_cell is None or reversal is None:
            return ahead
        back = run_cell(self.backward_cell, torch.gather(x, 0, reversal.expand(-1, -1, x.shape[2])))
        back = torch.gather(back, 0, reversal.expand(-1, -1, back.shape[2]))
        return torch.cat([ahead, back], dim=2)

    def start_from_zero(self) -> None:
        """Let every state be 0, whatever the input, until the weights change; not a ReLU's, which would have no gradient there."""
        if getattr(self.forward_cell, "nonlinearity", "") == "relu":
            return
        size = self.forward_cell.hidden_size
        candidate = slice(-2 * size, -size) if self.num_states == 2 else slice(-size, None)  # torch's gates: i, f, g, o and r, z, n
        for cell in self.children():
            for name in ("weight_ih_l0", "bias_ih_l0", "bias_hh_l0"):
                nn.init.zeros_(getattr(cell, name).detach()[candidate])

    def step(self, x: Tensor, hidden: State | None) -> tuple[Tensor, State]:
        """Continue from the hidden state (h,) or (h, c), each (1, B, H); None: from zeros."""
        initial = None if hidden is None else (tuple(hidden) if self.num_states == 2 else hidden[0])
        y, last = self.forward_cell(x, initial)
        return y, list(last) if self.num_states == 2 else [last]


def run_cell(cell: nn.RNNBase, x: Tensor) -> Tensor:
    """Return the hidden states (T, B, H) of x (T, B, C).

    Where products are in bfloat16, recurrences are in float32: on a CPU they are slow in bfloat16, and on a GPU torch takes float16 instead,
    in which gradients vanish that nobody has scaled.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
        return cell(x)[0]  # type: ignore[no-any-return]
    with torch.autocast(device, enabled=False):
        return cell(x.float())[0]  # type: ignore[no-any-return]


def make_cell(cell: str, input_size: int, hidden_size: int) -> nn.RNNBase:
    """Return one layer of recurrence in one direction; recurrent matrices start orthogonal, the ReLU's as half the identity.

    Le et al. 2015 start ReLU's as the identity; on speech the states then grow past all bounds.
    """
    if cell in ("gru", "lstm"):
        recurrence: nn.RNNBase = (nn.GRU if cell == "gru" else nn.LSTM)(input_size, hidden_size)
    else:
        recurrence = nn.RNN(input_size, hidden_size, nonlinearity=cell.removeprefix("rnn_"))
    for block in recurrence.weight_hh_l0.detach().split(hidden_size):  # type: ignore[operator]
        nn.init.eye_(block).mul_(0.5) if cell == "rnn_relu" else nn.init.orthogonal_(block)
    return recurrence


def reversed_positions(lengths: Tensor, size: int) -> Tensor:
    """Return (T, B, 1): L - 1 - t within each length L, t itself beyond it. The map is its own inverse."""
    t = torch.arange(size, device=lengths.device)[:, None]  # (T, 1)
    positions = torch.where(t < lengths, lengths - 1 - t, t)  # (T, B)
    return positions[..., None]
