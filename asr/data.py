"""Batches: the data set, length buckets, collate.

Knows audio and text, not features or models: a batch carries waveforms, the features are computed where the model is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, get_worker_info

from asr.augment import AugmentConfig, add_noise, augment_waveform, mix
from asr.lexicon import Lexicon, LexiconError
from asr.manifest import Utterance, read_utterance
from asr.teacher import TeacherFrames
from asr.text import TextError, Vocabulary

_MAX_TALKERS = 4  # in the background


@dataclass(frozen=True)
class Batch:
    """Utterances padded with zeros: waveforms (B, N) float32, waveform_lengths (B,) in samples, tokens (B, U), token_lengths (B,), names.

    sounds (B, U'), sound_lengths (B,): the tokens of the pronunciations, all of length 0 without a lexicon. teacher (B, T, D),
    teacher_lengths (B,): the teacher's frames, none without one.
    """

    waveforms: Tensor
    waveform_lengths: Tensor
    tokens: Tensor
    token_lengths: Tensor
    sounds: Tensor
    sound_lengths: Tensor
    teacher: Tensor
    teacher_lengths: Tensor
    names: tuple[str, ...]


Item = tuple[np.ndarray, list[int], list[int], np.ndarray, str]  # waveform, tokens, sounds, frames of the teacher, name


class SpeechDataset(Dataset[Item]):
    """Reads and augments utterances. An item is asked for by (index, seed): the seed alone decides its augmentation.

    lexicon, sounds: how the words are pronounced, and the vocabulary of that, for networks that write it too. teacher: whose frames an item has.
    augment: None for evaluation. noises: waveforms for AugmentConfig.noise_probability. fastest_speeds: the largest speed factor of
    each utterance, so that its text still fits.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        vocabulary: Vocabulary,
        *,
        lexicon: Lexicon | None = None,
        sounds: Vocabulary | None = None,
        teacher: TeacherFrames | None = None,
        augment: AugmentConfig | None = None,
        noises: Sequence[np.ndarray] = (),
        fastest_speeds: Sequence[float] = (),
    ) -> None:
        self.utterances = list(utterances)
        self.teacher = teacher
        self.augment = augment
        self.noises = list(noises)
        self.fastest_speeds = list(fastest_speeds) or [math.inf] * len(self.utterances)
        self.tokens = [_encode(utterance, vocabulary) for utterance in self.utterances]
        self.sounds = [_pronounce(utterance, lexicon, sounds) if lexicon and sounds else [] for utterance in self.utterances]
        self.reading: Tensor | None = None  # (num_workers,) in shared memory: what each loader process reads, -1 nothing

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        index, seed = key
        utterance = self.utterances[index]
        self._note(index)
        waveform = read_utterance(utterance)
        num_samples = len(waveform)
        if self.augment is not None:
            rng = np.random.default_rng(seed)
            if self.augment.speech_probability and rng.random() < self.augment.speech_probability:
                waveform = add_noise(waveform, self._background(rng), rng.uniform(*self.augment.speech_snr_db), rng=rng)
            waveform = augment_waveform(
                waveform, self.augment, noises=self.noises, rng=rng, fastest_speed=self.fastest_speeds[index]
            )
        frames = np.zeros((0, 0), np.float16) if self.teacher is None else self.teacher.read(utterance, num_samples / len(waveform))
        self._note(-1)
        return waveform, self.tokens[index], self.sounds[index], frames, utterance.id

    def _background(self, rng: np.random.Generator) -> np.ndarray:
        """Return what one to four utterances, equally loud, sound like at once, each as long as the first (N,)."""
        indices = rng.integers(len(self.utterances), size=int(rng.integers(1, _MAX_TALKERS + 1)))
        voices = [read_utterance(self.utterances[int(i)]) for i in indices]
        return mix(voices, len(voices[0]))

    def _note(self, index: int) -> None:
        """Let the main process know what to name should this one die."""
        worker = get_worker_info()
        if worker is not None and self.reading is not None:
            self.reading[worker.id] = index


def _encode(utterance: Utterance, vocabulary: Vocabulary) -> list[int]:
    try:
        return vocabulary.encode(utterance.text)
    except TextError as error:
        raise TextError(f"utterance {utterance.id!r} ({utterance.audio_filepath}): {error}") from error


def _pronounce(utterance: Utterance, lexicon: Lexicon, sounds: Vocabulary) -> list[int]:
    try:
        return sounds.encode(lexicon.pronounce(utterance.text))
    except (LexiconError, TextError) as error:
        raise LexiconError(f"utterance {utterance.id!r} ({utterance.audio_filepath}): {error}") from error


def collate(items: Sequence[Item]) -> Batch:
    """Pad items to one batch."""
    waveforms = [torch.from_numpy(item[0]) for item in items]
    tokens = [torch.tensor(item[1], dtype=torch.int64) for item in items]
    sounds = [torch.tensor(item[2], dtype=torch.int64) for item in items]
    frames = [torch.from_numpy(item[3]) for item in items]
    return Batch(
        waveforms=pad_sequence(waveforms, batch_first=True),
        waveform_lengths=torch.tensor([len(w) for w in waveforms]),
        tokens=pad_sequence(tokens, batch_first=True),
        token_lengths=torch.tensor([len(t) for t in tokens]),
        sounds=pad_sequence(sounds, batch_first=True),
        sound_lengths=torch.tensor([len(t) for t in sounds]),
        teacher=pad_sequence(frames, batch_first=True),
        teacher_lengths=torch.tensor([len(f) for f in frames]),
        names=tuple(item[4] for item in items),
    )


def epoch_batches(durations: Sequence[float], batch_s: float, *, seed: int, epoch: int) -> list[list[int]]:
    """Return the batches of an epoch as lists of indices: each index once, `batch_s` seconds of audio or less, padding counted.

    Utterances of like length stand together: the order is by duration with a random 10 % of jitter, the batches are then shuffled.
    An utterance longer than batch_s is a batch of its own. The same seed and epoch give the same batches.
    """
    rng = np.random.default_rng([seed, epoch])
    jittered = np.asarray(durations) * rng.uniform(0.9, 1.1, len(durations))
    batches: list[list[int]] = [[]]
    longest = 0.0
    for index in np.argsort(jittered, kind="stable"):
        longest = max(longest, durations[index])
        if batches[-1] and longest * (len(batches[-1]) + 1) > batch_s:
            batches.append([])
            longest = durations[index]
        batches[-1].append(int(index))
    return [batches[i] for i in rng.permutation(len(batches))]


def utterance_seed(seed: int, epoch: int, index: int) -> int:
    """Return the seed of one utterance's augmentation in one epoch, whatever worker or machine reads it."""
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1)[0])
