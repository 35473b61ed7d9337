"""Other voices: the features of an utterance as if someone else had said it, for training.

What a voice does to a sound differs from sound to sound. With a teacher's frames (asr/teacher.py) for what is being said, c_t, a voice is a
few numbers z, and the features are A c_t + sum_r z_r B_r c_t + rest, bilinear in voice and content (Tenenbaum & Freeman 2000). To give an
utterance another one's numbers changes its voice and leaves its text (stochastic feature mapping, Cui, Goel & Kingsbury 2015). The
matrices are fitted once, beforehand, by recipes/english/voices.py.
"""

from __future__ import annotations

import os

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from asr.features import inside

RIDGE = 60.0  # how many standard deviations of features count as much as a voice's difference from the mean of all


class VoicesError(ValueError):
    """Voices that cannot be used; the message names the file."""


class Voices(nn.Module):
    """A, B and what makes c_t of a teacher's frame: its principal components, and a 1.

    mean (D,), projection (D, C): of the teacher's frames. common (C + 1, M): A. basis (R, C + 1, M): B.
    """

    mean: Tensor
    projection: Tensor
    common: Tensor
    basis: Tensor

    def __init__(self, mean: Tensor, projection: Tensor, common: Tensor, basis: Tensor) -> None:
        super().__init__()
        for name, value in {"mean": mean, "projection": projection, "common": common, "basis": basis}.items():
            self.register_buffer(name, value)

    def content(self, frames: Tensor) -> Tensor:
        """Return c_t (..., C + 1) of a teacher's frames (..., D)."""
        return F.pad((frames.float() - self.mean) @ self.projection, (0, 1), value=1.0)

    def rest(self, features: Tensor, content: Tensor) -> Tensor:
        """Return what is left of features (B, T', M) without what contents (B, T', C + 1) make of them in all voices, 0 outside of utterances."""
        return (features - content @ self.common) * (content[..., -1:] > 0)

    def estimate(self, features: Tensor, content: Tensor) -> tuple[Tensor, Tensor]:
        """Return the voices (B, R) of features (B, T', M) with contents (B, T', C + 1), 0 outside of utterances, and what each number does (B, R, T' M)."""
        effects = torch.einsum("btc,rcm->brtm", content, self.basis).flatten(2)
        gram = effects @ effects.transpose(1, 2) + RIDGE * torch.eye(len(self.basis), device=features.device)
        return torch.linalg.solve(gram, effects @ self.rest(features, content).flatten(1)[..., None])[..., 0], effects

    def forward(self, features: Tensor, lengths: Tensor, frames: Tensor, frame_lengths: Tensor, *, hop: int, others: Tensor, strengths: Tensor) -> Tensor:
        """Return features (B, T, M), each utterance with a share, of strengths (B,), of the difference of another's voice, others (B,), from its own.

        lengths (B,): of the features. frames (B, T', D), frame_lengths (B,): of the teacher, each as long as `hop` of the features. A strength above 1 exaggerates the difference.
        """
        slow = at_rate(features, hop)[:, : frames.shape[1]]
        content = self.content(frames[:, : slow.shape[1]]) * inside(torch.minimum(frame_lengths, lengths // hop), slow.shape[1])[..., None]
        voices, effects = self.estimate(slow, content)
        changes = (strengths[:, None] * (voices[others] - voices))[:, None, :] @ effects  # (B, 1, T' M)
        changes = F.interpolate(changes.view(slow.shape).transpose(1, 2), scale_factor=hop, mode="linear").transpose(1, 2)
        changes = F.pad(changes, (0, 0, 0, features.shape[1] - changes.shape[1]))
        return features + changes * inside(lengths, features.shape[1])[..., None]


def at_rate(features: Tensor, hop: int) -> Tensor:
    """Return features (B, T, M) averaged over every `hop` frames (B, T // hop, M)."""
    num_frames = features.shape[1] // hop
    return features[:, : num_frames * hop].reshape(len(features), num_frames, hop, -1).mean(dim=2)


def load(path: str | os.PathLike[str]) -> Voices:
    """Read what recipes/english/voices.py wrote. Raises VoicesError."""
    try:
        return Voices(**load_file(path))
    except (OSError, SafetensorError, TypeError) as error:
        raise VoicesError(f"{path}: expected voices, written by recipes/english/voices.py ({error})") from error
