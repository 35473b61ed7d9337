"""The log-mel spectrogram in torch: batched, on any device, for training. Settings and numpy form are in asr.logmel."""

from __future__ import annotations

import torch
import torchaudio
from torch import Tensor, nn

from asr.logmel import FeatureConfig, num_frames


class LogMel(nn.Module):
    """Log-mel features of a padded batch, normalised per mel bin over the valid frames of the utterance, or over those so far.

    The result of an utterance does not depend on its neighbours: samples beyond its length count as zeros, as they do when it is alone.
    """

    def __init__(self, config: FeatureConfig) -> None:
        super().__init__()
        self.config = config
        self.mel = torchaudio.transforms.MelSpectrogram(
            sample_rate=config.sample_rate,
            n_fft=config.fft_length,
            win_length=config.window_length,
            hop_length=config.hop_length,
            f_min=config.min_frequency,
            f_max=config.max_frequency,
            n_mels=config.num_mels,
            center=True,
            pad_mode="constant",
            power=2.0,
            norm=None,
            mel_scale="htk",
        )

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return (features (B, T, M), lengths (B,) in frames) of waveforms (B, N) with lengths (B,) in samples.

        Frames beyond an utterance's length are zero.
        """
        waveforms = waveforms * inside(lengths, waveforms.shape[1])
        mel = self.mel(waveforms).transpose(1, 2)  # (B, M, T) -> (B, T, M)
        logs = torch.log(torch.clamp(mel, min=self.config.log_floor))
        frame_lengths: Tensor = num_frames(lengths, self.config)  # type: ignore[arg-type, assignment]
        mask = inside(frame_lengths, logs.shape[1])[..., None]  # (B, T, 1)
        if self.config.normalisation == "running":
            return _normalise_running(logs, self.config) * mask, frame_lengths
        count = frame_lengths[:, None, None]
        mean = (logs * mask).sum(dim=1, keepdim=True) / count
        centred = (logs - mean) * mask
        std = torch.sqrt((centred**2).sum(dim=1, keepdim=True) / count)
        return centred / torch.clamp(std, min=self.config.min_std), frame_lengths


def _normalise_running(logs: Tensor, config: FeatureConfig) -> Tensor:
    """Normalise each frame (B, T, M) over those up to it, as asr.logmel.LogMelStream does."""
    differences = logs.double() - config.prior_mean
    counts = config.prior_frames + torch.arange(1, logs.shape[1] + 1, device=logs.device)[:, None]  # (T, 1)
    means = differences.cumsum(dim=1) / counts
    squares = (config.prior_frames * config.prior_std**2 + (differences**2).cumsum(dim=1)) / counts
    stds = torch.sqrt(torch.clamp(squares - means**2, min=config.min_std**2))
    return ((differences - means) / stds).float()


def inside(lengths: Tensor, size: int) -> Tensor:
    """Return (B, size), True where frames or samples are within lengths (B,)."""
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]
