"""Plot what train.py left: the gradient's norm against distance in time, before and after training, and the learning curves.

The norm at distance k is that of the Jacobian of the recurrent stack's output at a frame t by its input at frame t - k: what the error
at t can still teach about the input k frames before.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch import Tensor

from asr.checkpoint import load_model_folder, load_network
from asr.data import SpeechDataset, collate
from asr.features import LogMel
from asr.manifest import Utterance, read_manifest
from asr.model import AcousticModel

matplotlib.use("Agg")
from matplotlib import pyplot

LABELS = {"rnn_tanh": "tanh RNN", "rnn_relu": "ReLU RNN", "lstm": "LSTM", "gru": "GRU"}
COLOURS = {"rnn_tanh": "tab:red", "rnn_relu": "tab:orange", "lstm": "tab:blue", "gru": "tab:green"}
FRAME_S = 0.04  # from an output frame to the next
NUM_UTTERANCES, NUM_ENDS = 32, 8  # frames t looked back from in an utterance


def gradient_norms(network: AcousticModel, features: Tensor, lengths: Tensor, *, max_distance: int) -> np.ndarray:
    """Return the norm at distance 0, 1, ..., max_distance (K + 1,) of features (B, T, M), relative to that at distance 0.

    With a vector v of random signs E |J^T v|^2 is the squared Frobenius norm of J. The mean over utterances and frames t is geometric.
    """
    seen: dict[str, Tensor] = {}
    network.layers[0].register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
    network.layers[-1].register_forward_hook(lambda _, inputs, y: seen.update(y=y))
    _, lengths = network.eval().requires_grad_(True)(features, lengths)
    x, y = seen["x"], seen["y"]  # (T', B, C), (T', B, H)
    batch, logs = torch.arange(x.shape[1]), []
    signs = torch.randint(2, y.shape[1:], generator=torch.Generator().manual_seed(0)) * 2.0 - 1  # (B, H)
    for share in np.linspace(0, 1, NUM_ENDS):
        ends = max_distance + (share * (lengths - 1 - max_distance)).long()  # (B,)
        (gradient,) = torch.autograd.grad((y[ends, batch] * signs).sum(), x, retain_graph=True)  # (T', B, C)
        norms = gradient.norm(dim=2)[ends - torch.arange(max_distance + 1)[:, None], batch]  # (K + 1, B)
        logs.append(torch.log((norms / norms[0]).clamp(min=1e-30)).mean(dim=1))
    return torch.stack(logs).mean(dim=0).exp().numpy()


def long_utterances(manifest: Path, max_distance: int) -> list[Utterance]:
    """Return the first utterances of a manifest with more than max_distance output frames."""
    return [u for u in read_manifest(manifest) if u.duration >= (max_distance + 1) * FRAME_S][:NUM_UTTERANCES]


def plot_gradients(runs: list[Path], manifest: Path, out: Path, *, max_distance: int) -> None:
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for run in runs:
        folder = load_model_folder(run / "best")
        trained = load_network(folder)
        torch.manual_seed(json.loads((run / "config.json").read_text())["seed"])
        initial = AcousticModel(trained.config)  # as asr.train makes it
        utterances = long_utterances(manifest, max_distance)
        batch = collate([SpeechDataset(utterances, folder.vocabulary)[i, 0] for i in range(len(utterances))])
        features, lengths = LogMel(folder.features)(batch.waveforms, batch.waveform_lengths)
        for axis, network in zip(axes, (initial, trained), strict=True):
            norms = gradient_norms(network, features, lengths, max_distance=max_distance)
            axis.semilogy(norms, label=LABELS[run.name], color=COLOURS[run.name], linewidth=2)
            when = "after" if network is trained else "before"
            print(f"{run.name} {when} training: at distance {max_distance} {norms[-1]:.1e} of the norm at distance 0")
    axes[0].set(title="before training", ylabel="norm of the gradient, relative to distance 0")
    axes[1].set(title="after training")
    axes[1].legend()
    for axis in axes:
        axis.set(xlabel="distance in time k, frames of 40 ms", xlim=(0, max_distance))
        axis.grid(alpha=0.3)
    figure.savefig(out, dpi=110)


def plot_learning(runs: list[Path], out: Path) -> None:
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for run in runs:
        rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        for axis, key in zip(axes, ("loss", "grad_norm"), strict=True):
            values = np.array([row[key] for row in rows if "loss" in row], float)  # a skipped step's null is NaN
            window = max(1, len(values) // 50)
            smooth = [np.nanmedian(values[max(0, i - window) : i + 1]) for i in range(len(values))]
            axis.plot(smooth, label=LABELS[run.name], color=COLOURS[run.name], linewidth=2)
    axes[0].set(title="training loss, running median", ylabel="nats a character", ylim=(0, 4))
    axes[1].set(title="norm of the gradient before clipping to 1, running median", yscale="log")
    axes[0].legend()
    for axis in axes:
        axis.set(xlabel="step")
        axis.grid(alpha=0.3)
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description="Plot gradients.png and learning.png from the run folders of train.py.")
    parser.add_argument("--runs", type=Path, default=Path("runs/cells"), help="train.py's --out (default: %(default)s)")
    parser.add_argument("--manifest", type=Path, default=Path("data/an4/an4_test.jsonl"), help="utterances (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder of the two pictures (default: that of --runs)")
    parser.add_argument("--distance", type=int, default=75, help="largest distance in output frames (default: %(default)s)")
    arguments = parser.parse_args()
    runs = [arguments.runs / cell for cell in LABELS if (arguments.runs / cell / "best").is_dir()]
    if not runs:
        parser.error(f"{arguments.runs}: expected the run folders {', '.join(LABELS)} of train.py there, found none that is finished")
    if not long_utterances(arguments.manifest, arguments.distance):
        parser.error(f"{arguments.manifest}: no utterance has more than {arguments.distance} frames; take a smaller --distance")
    out = arguments.out or arguments.runs
    out.mkdir(parents=True, exist_ok=True)
    plot_gradients(runs, arguments.manifest, out / "gradients.png", max_distance=arguments.distance)
    plot_learning(runs, out / "learning.png")


if __name__ == "__main__":
    main()
