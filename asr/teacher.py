"""A teacher: frames of another network that heard the same speech, foretold by the one in training beside its own outputs.

A network that has heard more speech stands for what it heard in ways that do not depend on voice or room; to foretell that teaches a small
network more about each frame than a text does (Romero et al. 2015, "FitNets"; Chang et al. 2022, "DistilHuBERT"). The teacher is run once,
beforehand, and only its frames are read here. What foretells them is left out of the model that training writes.
"""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from asr.features import inside
from asr.manifest import Utterance
from asr.model import AcousticModel
from asr.storage import write_atomically

SLACK_S = 0.02  # durations and offsets in manifests are rounded
FRAMES_NAME, INDEX_NAME = "frames.npy", "index.json"


class TeacherError(ValueError):
    """Frames of a teacher that cannot be used; the message names the file."""


class TeacherFrames:
    """The frames (N, D) of a folder: those of all its pieces of audio one after the other, each dimension with a mean of 0 and a variance of 1."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Map the frames into memory. Raises TeacherError for a folder without them."""
        self.folder = Path(folder)
        try:
            self.frames = np.load(self.folder / FRAMES_NAME, mmap_mode="r")
            index = json.loads((self.folder / INDEX_NAME).read_text())
            self.rate = float(index["frames_per_s"])
            pieces: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
            for path, offset, duration, first in index["pieces"]:
                pieces[os.path.abspath(self.folder / path)].append((offset, offset + duration, first))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TeacherError(f"{self.folder}: expected {FRAMES_NAME} and {INDEX_NAME}, written by recipes/english/teacher.py ({error})") from error
        self.pieces = dict(pieces)

    @property
    def size(self) -> int:
        """D, numbers a frame."""
        return int(self.frames.shape[1])

    def read(self, utterance: Utterance, speed: float = 1.0) -> np.ndarray:
        """Return the frames (T, D) of an utterance that is played `speed` times as fast.

        Raises TeacherError as find does.
        """
        times = np.arange(math.floor(utterance.duration / speed * self.rate)) * speed
        return self.frames[np.floor(self.find(utterance) + times).astype(np.int64)]  # type: ignore[no-any-return]

    def find(self, utterance: Utterance) -> float:
        """Return where in the frames an utterance begins. Raises TeacherError where no piece of audio holds it."""
        start, end = utterance.offset, utterance.offset + utterance.duration
        for first_s, last_s, first in self.pieces.get(utterance.audio_filepath, ()):
            if first_s <= start + SLACK_S and end <= last_s + SLACK_S:
                return max(first, first + (start - first_s) * self.rate)
        raise TeacherError(f"{self.folder}: no frames of utterance {utterance.id!r} ({utterance.audio_filepath} from {start:.2f} s on)")


def write_index(folder: Path, pieces: Iterable[tuple[Utterance, int]], frames_per_s: float) -> None:
    """Write the index of the frames of pieces of audio, each with the number of its first frame."""
    rows = [(os.path.relpath(u.audio_filepath, folder), u.offset, u.duration, first) for u, first in pieces]
    write_atomically(folder / INDEX_NAME, json.dumps({"frames_per_s": frames_per_s, "pieces": rows}).encode())


class Student(nn.Module):
    """A network and, beside its output layer, a linear layer that foretells a teacher's frames; it starts from zero."""

    def __init__(self, network: AcousticModel, size: int) -> None:
        super().__init__()
        self.network = network
        self.foretelling = nn.Linear(network.output.in_features, size * network.config.outputs_per_frame)
        nn.init.zeros_(self.foretelling.weight)
        nn.init.zeros_(self.foretelling.bias)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what AcousticModel.forward does, and the frames (B, T', D) that the network takes the teacher's to be."""
        x, output_lengths = self.network.encode(features, lengths)
        return self.network.classify(x), output_lengths, self.foretelling(x).unflatten(2, (self.network.config.outputs_per_frame, -1)).flatten(1, 2)


def teacher_loss(estimate: Tensor, frames: Tensor, lengths: Tensor, *, delay: int = 0) -> Tensor:
    """Return the squared error of estimate (B, T, D), mean over D, sum over the frames (B, T', D) within lengths (B,).

    A frame is foretold `delay` frames after its own time, when a one-directional network has heard what follows it; the last ones never are.
    """
    estimate, lengths = estimate[:, delay:], (lengths - delay).clamp(min=0)
    num_frames = min(estimate.shape[1], frames.shape[1])
    error = (estimate[:, :num_frames].float() - frames[:, :num_frames].float()).square().mean(dim=-1)
    return (error * inside(lengths, num_frames)).sum()
