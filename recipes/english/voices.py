"""Fit what voices do to sounds, for training with `--voices` (see README.md and asr/voices.py), from a teacher's frames of the same speech.

Alternating least squares: the matrices from the voices of all utterances, the voices from the matrices.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asr.data import epoch_batches
from asr.features import LogMel, inside
from asr.logmel import FeatureConfig
from asr.manifest import Utterance, read_manifest, read_utterance
from asr.teacher import TeacherFrames
from asr.voices import Voices, at_rate

BATCH_S = 30.0
HELD_OUT = 10  # one batch of so many is not fitted, but measured
SMOOTHING = 100.0  # added to the squares of what is fitted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifests", type=Path, nargs="+", help="of speech that the teacher heard")
    parser.add_argument("--teacher", type=Path, default=Path("data/teacher"), help="folder of its frames (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("data/voices.safetensors"), help="default: %(default)s")
    parser.add_argument("--utterances", type=int, default=5000, help="how many, drawn at random (default: %(default)s)")
    parser.add_argument("--shortest", type=float, default=2.5, help="seconds that an utterance must have to tell its voice (default: %(default)s)")
    parser.add_argument("--numbers", type=int, default=24, help="that make a voice (default: %(default)s)")
    parser.add_argument("--components", type=int, default=48, help="principal components of the teacher's frames (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=8, help="of the alternation (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    utterances = [u for path in arguments.manifests for u in read_manifest(path) if u.duration >= arguments.shortest]
    utterances = random.Random(0).sample(utterances, min(arguments.utterances, len(utterances)))
    teacher = TeacherFrames(arguments.teacher)
    mean, projection = principal_components(teacher.frames, arguments.components)
    voices = Voices(mean, projection, torch.zeros(0), torch.zeros(0))
    batches = [hear([utterances[i] for i in batch], teacher, voices) for batch in epoch_batches([u.duration for u in utterances], BATCH_S, seed=0, epoch=0)]
    if len(batches) < 2:
        raise SystemExit(f"expected more than {BATCH_S:g} s of speech, found {sum(u.duration for u in utterances):.0f} s")
    fitted, held_out = [b for i, b in enumerate(batches) if i % HELD_OUT], batches[::HELD_OUT]
    voices.common = least_squares([(content, features) for features, content in fitted])
    generator = torch.Generator().manual_seed(0)
    numbers = [torch.randn(len(features), arguments.numbers, generator=generator) for features, _ in fitted]
    for number in range(arguments.rounds):
        voices.basis = fit_basis(voices, fitted, numbers)
        print(f"round {number + 1}: of what differs from the mean voice in an utterance's second half, {100 * foretold(voices, held_out):.1f} % is foretold by its first")
        numbers = [voices.estimate(*batch)[0] for batch in fitted]
        scale = torch.cat(numbers).std(dim=0)
        numbers = [x / scale for x in numbers]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in voices.state_dict().items()}, arguments.out)


def principal_components(frames: np.ndarray, number: int) -> tuple[Tensor, Tensor]:
    """Return the mean (D,) of frames (N, D), of every hundredth, and what makes their first components (D, number), each with a variance of 1."""
    some = torch.from_numpy(np.asarray(frames[::100], np.float32))
    variances, directions = torch.linalg.eigh(some.T.cov())
    return some.mean(dim=0), directions[:, -number:] / variances[-number:].sqrt()


def hear(utterances: list[Utterance], teacher: TeacherFrames, voices: Voices) -> tuple[Tensor, Tensor]:
    """Return the features (B, T', M) of utterances at the teacher's rate and the contents (B, T', C + 1) of its frames."""
    waveforms = [torch.from_numpy(read_utterance(utterance)) for utterance in utterances]
    frames = [torch.from_numpy(teacher.read(utterance)) for utterance in utterances]
    config = FeatureConfig()
    features, lengths = LogMel(config)(pad_sequence(waveforms, batch_first=True), torch.tensor([len(w) for w in waveforms]))
    hop = round(config.sample_rate / config.hop_length / teacher.rate)
    slow, content = at_rate(features, hop), voices.content(pad_sequence(frames, batch_first=True))
    num_frames = min(slow.shape[1], content.shape[1])
    frame_lengths = torch.minimum(lengths // hop, torch.tensor([len(f) for f in frames]))
    return slow[:, :num_frames], content[:, :num_frames] * inside(frame_lengths, num_frames)[..., None]


def least_squares(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return W (X, Y) such that x W is about y, for all pairs of x (..., X) and y (..., Y)."""
    gram = sum(x.flatten(0, 1).T @ x.flatten(0, 1) for x, _ in pairs)
    product = sum(x.flatten(0, 1).T @ y.flatten(0, 1) for x, y in pairs)
    return torch.linalg.solve(gram + SMOOTHING * torch.eye(len(gram)), product)


def fit_basis(voices: Voices, batches: list[tuple[Tensor, Tensor]], numbers: list[Tensor]) -> Tensor:
    """Return the basis (R, C + 1, M) with which the voices, numbers (B, R) a batch, explain most of the features."""
    gram, product = 0, 0
    for (features, content), z in zip(batches, numbers, strict=True):
        x = torch.einsum("br,btc->btrc", z, content).flatten(2).flatten(0, 1)
        gram, product = gram + x.T @ x, product + x.T @ voices.rest(features, content).flatten(0, 1)
    return torch.linalg.solve(gram + SMOOTHING * torch.eye(len(gram)), product).unflatten(0, (numbers[0].shape[1], -1))


def foretold(voices: Voices, batches: list[tuple[Tensor, Tensor]]) -> float:
    """Return the share of the variance of second halves of utterances, less the mean voice's, that the voices of their first halves explain."""
    before = after = 0.0
    for features, content in batches:
        half = features.shape[1] // 2
        numbers, _ = voices.estimate(features[:, :half], content[:, :half])
        rest = voices.rest(features[:, half:], content[:, half:])
        changes = torch.einsum("br,btc,rcm->btm", numbers, content[:, half:], voices.basis)
        before, after = before + float(rest.square().sum()), after + float((rest - changes).square().sum())
    return 1 - after / before


if __name__ == "__main__":
    main()
