"""The Transcriber: audio of any length in, a Transcript out. Knows how to cut, batch and put together; not how words are found.

Long audio is read block by block, cut at its quietest moments into pieces, and recognised some pieces at a time.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from asr.audio import SAMPLE_RATE, AudioSource, as_waveform, read_blocks
from asr.checkpoint import DECODER_NAME, LM_NAME, CheckpointError, ModelFolder, load_model_folder, load_network
from asr.ctc import forced_align
from asr.decoder import DecoderConfig, decode
from asr.lm import LanguageModel
from asr.lm import load as load_lm
from asr.logmel import FeatureConfig, log_mel
from asr.text import normalise
from asr.transcript import Segment, Transcript, Word

MAX_PIECE_S = 30.0  # longest piece recognised at once
MIN_PIECE_S = 15.0  # a cut is looked for from here on
BATCH_S = 120.0  # seconds of audio encoded at once, padding counted
LOUDNESS_WINDOW_S = 0.2  # a cut goes through the middle of the quietest window this long

Encoder = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


class Transcriber:
    """A loaded model. `name` is the model's, `features` its front-end, `frame_s` the seconds between two output frames."""

    def __init__(
        self,
        model: str | os.PathLike[str] = "english",
        *,
        decoder: DecoderConfig | None = None,
        hotwords: Mapping[str, float] | None = None,
        num_threads: int = 0,
    ) -> None:
        """Load a shipped model by name or a model folder by path.

        decoder: None takes the model folder's own settings, and greedy decoding where it has none. hotwords: phrases that count for more,
        with their weights (8 is a lot), in beam search. num_threads: 0 leaves torch's choice. Raises CheckpointError, DecoderError and
        LanguageModelError.
        """
        folder = load_model_folder(model)
        self.name = folder.name
        self.vocabulary = folder.vocabulary
        self.features: FeatureConfig = folder.features
        self.frame_s = folder.frame_s
        self.decoder = decoder or folder_decoder(folder)
        self.decoder_settings: dict[str, Any] = dataclasses.asdict(self.decoder)
        self.hotwords = dict(hotwords or {})
        self.lm = folder_lm(folder) if self.decoder.method == "beam" else None
        self._encode = torch_encoder(folder, num_threads)

    def transcribe(self, source: AudioSource | np.ndarray, sample_rate: int = SAMPLE_RATE) -> Transcript:
        """Return what is said in a path, the bytes of a file, a binary file object, or an array (N,) or (N, channels) at `sample_rate` Hz.

        Raises AudioError.
        """
        return self._recognise_pieces(self._encoded_pieces(source, sample_rate))

    def align(self, source: AudioSource | np.ndarray, text: str, sample_rate: int = SAMPLE_RATE) -> Transcript:
        """Return `text`, which is what is said in the audio, with the times of its words: the best path that spells it.

        The text is normalised; the transcript has one segment. Raises AudioError, TextError for characters that the model cannot write, and
        CTCError where the text does not fit into the audio.
        """
        tokens = self.vocabulary.encode(normalise(text))
        frames: list[np.ndarray] = []
        starts: list[np.ndarray] = []  # in seconds, of each output frame
        num_samples = 0
        for num_piece, log_probs in self._encoded_pieces(source, sample_rate):
            frames.append(log_probs)
            starts.append(num_samples / SAMPLE_RATE + self.frame_s * np.arange(len(log_probs)))
            num_samples += num_piece
        log_probs, times = np.concatenate(frames), np.append(np.concatenate(starts), num_samples / SAMPLE_RATE)
        spans = forced_align(log_probs, tokens)
        peaks = tuple(start + int(log_probs[start:end, token].argmax()) for token, (start, end) in zip(tokens, spans, strict=True))
        words = tuple(self._words(tuple(tokens), peaks, log_probs, times))
        duration_s = num_samples / SAMPLE_RATE
        return self._join([make_segment(0, 0.0, duration_s, words)], duration_s)

    def _encoded_pieces(self, source: AudioSource | np.ndarray, sample_rate: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the number of samples and log_probs (T', V) of each piece of the audio, in their order."""
        blocks = [as_waveform(source, sample_rate)] if isinstance(source, np.ndarray) else read_blocks(source)
        for pieces in _groups(cut_at_pauses(blocks), BATCH_S):
            yield from zip(map(len, pieces), self.log_probs(pieces), strict=True)

    def transcribe_batch(self, waveforms: Sequence[np.ndarray]) -> list[Transcript]:
        """Return one Transcript per float32 waveform (N,) at 16 kHz, encoded together; the same texts as one by one."""
        cut = [list(cut_at_pauses([waveform])) for waveform in waveforms]
        log_probs = iter(self.log_probs([piece for pieces in cut for piece in pieces]))
        return [self._recognise_pieces((len(piece), next(log_probs)) for piece in pieces) for pieces in cut]

    def log_probs(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return log-probabilities (T', V) per waveform (N,), in their order; similar lengths are encoded together."""
        features = [log_mel(waveform, self.features) for waveform in waveforms]
        results: list[np.ndarray] = [np.empty(0)] * len(features)
        frames_at_once = BATCH_S * self.features.sample_rate / self.features.hop_length
        order = sorted(range(len(features)), key=lambda i: len(features[i]))
        batch: list[int] = []
        for position, index in enumerate(order):
            batch.append(index)
            following = order[position + 1] if position + 1 < len(order) else None
            if following is None or len(features[following]) * (len(batch) + 1) > frames_at_once:
                for i, log_probs in zip(batch, self._encode_batch([features[i] for i in batch]), strict=True):
                    results[i] = log_probs
                batch = []
        return results

    def _encode_batch(self, features: Sequence[np.ndarray]) -> list[np.ndarray]:
        lengths = np.array([len(x) for x in features], dtype=np.int64)
        padded = np.zeros((len(features), lengths.max(), self.features.num_mels), np.float32)  # (B, T, M)
        for row, x in zip(padded, features, strict=True):
            row[: len(x)] = x
        log_probs, output_lengths = self._encode(padded, lengths)
        return [x[:length] for x, length in zip(log_probs, output_lengths, strict=True)]

    def recognise(self, log_probs: np.ndarray, number: int, start_s: float, duration_s: float) -> Segment:
        """Return segment `number`, decoded from log_probs (T', V), which begins at start_s and lasts duration_s seconds."""
        hypothesis = decode(log_probs, self.vocabulary, self.decoder, lm=self.lm, hotwords=self.hotwords)
        times = np.minimum(start_s + self.frame_s * np.arange(len(log_probs) + 1), start_s + duration_s)
        words = tuple(self._words(hypothesis.tokens, hypothesis.frames, log_probs, times))
        return make_segment(number, start_s, start_s + duration_s, words)

    def _recognise_pieces(self, pieces: Iterable[tuple[int, np.ndarray]]) -> Transcript:
        """Return the transcript of pieces that follow one another, each a number of samples and log_probs (T', V)."""
        segments: list[Segment] = []
        num_samples = 0
        for num_piece, log_probs in pieces:
            segments.append(self.recognise(log_probs, len(segments), num_samples / SAMPLE_RATE, num_piece / SAMPLE_RATE))
            num_samples += num_piece
        return self._join(segments, num_samples / SAMPLE_RATE)

    def _words(self, tokens: Sequence[int], frames: Sequence[int], log_probs: np.ndarray, times: np.ndarray) -> Iterator[Word]:
        """Group tokens to words at the spaces.

        times (T' + 1,): seconds of the start of each frame, and of the end.
        """
        space = self.vocabulary.tokens.index(" ")
        spelled = zip(tokens, frames, strict=True)
        for is_space, group in groupby(spelled, key=lambda token_frame: token_frame[0] == space):
            if is_space:
                continue
            letters, peaks = zip(*group, strict=True)
            yield Word(
                word=self.vocabulary.decode(letters),
                start=round(float(times[peaks[0]]), 3),
                end=round(float(times[peaks[-1] + 1]), 3),
                confidence=round(self.decoder.confidence(float(np.mean(log_probs[list(peaks), list(letters)]))), 4),
            )

    def _join(self, segments: Sequence[Segment], duration_s: float) -> Transcript:
        text = " ".join(segment.text for segment in segments if segment.text)
        return Transcript(text, round(duration_s, 3), self.name, tuple(segments))


def make_segment(number: int, start_s: float, end_s: float, words: tuple[Word, ...]) -> Segment:
    """Return a segment of words; its confidence is their mean, 1 for silence."""
    confidence = float(np.mean([word.confidence for word in words])) if words else 1.0
    return Segment(number, round(start_s, 3), round(end_s, 3), " ".join(word.word for word in words), round(confidence, 4), words)


def folder_decoder(folder: ModelFolder) -> DecoderConfig:
    """Return the decoder settings of a model folder. Raises CheckpointError where they are none."""
    try:
        return DecoderConfig(**folder.decoder)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder.path / DECODER_NAME}: {error}; tune the decoder again") from error


def folder_lm(folder: ModelFolder) -> LanguageModel | None:
    """Return the language model of a model folder, if it has one. Raises LanguageModelError."""
    path = folder.path / LM_NAME
    return load_lm(path) if path.exists() else None


def torch_encoder(folder: ModelFolder, num_threads: int = 0) -> Encoder:
    """Return (features (B, T, M), lengths (B,)) -> (log_probs (B, T', V), lengths (B,)), all numpy, run by torch."""
    import torch

    if num_threads:
        torch.set_num_threads(num_threads)
    network = load_network(folder)

    def encode(features: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            log_probs, output_lengths = network(torch.from_numpy(features), torch.from_numpy(lengths))
        return log_probs.numpy(), output_lengths.numpy()

    return encode


def cut_at_pauses(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the samples of `blocks`, all of them in their order, as pieces of at most MAX_PIECE_S, cut where it is quietest."""
    longest, shortest = int(MAX_PIECE_S * SAMPLE_RATE), int(MIN_PIECE_S * SAMPLE_RATE)
    held = np.zeros(0, np.float32)
    for block in blocks:
        held = np.concatenate([held, block]) if len(held) else block
        while len(held) > longest:
            cut = shortest + _quietest(held[shortest:longest])
            yield held[:cut]
            held = held[cut:]
    if len(held):
        yield held


def _quietest(waveform: np.ndarray) -> int:
    """Return the sample in the middle of the window of least energy."""
    hop = int(LOUDNESS_WINDOW_S * SAMPLE_RATE) // 4
    energies = np.add.reduceat(waveform.astype(np.float64) ** 2, np.arange(0, len(waveform) - hop + 1, hop))
    return int(np.argmin(np.convolve(energies, np.ones(4), mode="valid")) + 2) * hop


def _groups(pieces: Iterable[np.ndarray], seconds: float) -> Iterator[list[np.ndarray]]:
    group: list[np.ndarray] = []
    for piece in pieces:
        group.append(piece)
        if sum(map(len, group)) >= seconds * SAMPLE_RATE:
            yield group
            group = []
    if group:
        yield group
