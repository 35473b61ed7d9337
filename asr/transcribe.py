"""The Transcriber: audio of any length in, a Transcript out. Knows how to cut, batch and put together; not how words are found.

Long audio is read block by block, long silences are skipped, the rest is cut at its quietest moments into pieces, and these are recognised
some at a time, those of similar lengths together. Memory does not grow with the length of the audio, but for the words.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from asr.audio import SAMPLE_RATE, AudioError, AudioSource, as_waveform, read_blocks
from asr.checkpoint import (
    DECODER_NAME,
    G2P_NAME,
    LEXICON_NAME,
    LM_NAME,
    RNNLM_NAME,
    CheckpointError,
    ModelFolder,
    load_model_folder,
)
from asr.ctc import forced_align
from asr.decoder import BeamSearch, DecoderConfig, decode, make_search
from asr.encoder import load as load_network
from asr.encoder import run
from asr.g2p import complete
from asr.lexicon import Lexicon, read_lexicon
from asr.lm import LanguageModel
from asr.lm import load as load_lm
from asr.logmel import FeatureConfig, log_mel
from asr.rnnlm import RecurrentLanguageModel
from asr.rnnlm import load as load_rnnlm
from asr.text import Vocabulary, normalise
from asr.tiles import in_bytes
from asr.transcript import Segment, Transcript, Word
from asr.vad import Vad, mark_silence

MAX_PIECE_S = 20.0  # longest piece recognised at once
MIN_PIECE_S = 8.0  # a cut is looked for from here on
BATCH_S = 120.0  # about so many seconds of audio are encoded at once
GROUP_S = 480.0  # seconds of audio from which batches are put together
LOUDNESS_WINDOW_S = 0.2  # a cut goes through the middle of the quietest window this long

Item = TypeVar("Item")


@dataclass(frozen=True)
class Piece:
    """A stretch of a recording, of num_samples. waveform: None for silence, which is not recognised."""

    num_samples: int
    waveform: np.ndarray | None


class Transcriber:
    """A loaded model. `name` is the model's, `features` its front-end, `frame_s` the seconds between two output frames."""

    def __init__(
        self,
        model: str | os.PathLike[str] = "english",
        *,
        decoder: DecoderConfig | None = None,
        hotwords: Mapping[str, float] | None = None,
        num_threads: int = 0,
        vad: Vad = "energy",
        precision: str = "auto",
    ) -> None:
        """Load a shipped model by name or a model folder by path.

        decoder: None takes the model folder's own settings, and greedy decoding where it has none. hotwords: phrases that count for more,
        with their weights (8 is a lot), in beam search. num_threads: 0, one a core. vad: how silence is found that is skipped, as in
        asr.vad.mark_silence. precision: of the networks' products, as for asr.encoder.load. Raises CheckpointError, DecoderError and
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
        self.vad: Vad = vad
        self.sounds = folder.sounds
        self.num_threads = num_threads or len(os.sched_getaffinity(0))
        with ThreadPoolExecutor(1) as pool:  # loaded beside the language models
            network = pool.submit(load_network, folder, precision)
            self.lm = folder_lm(folder) if self.decoder.method == "beam" else None
            self.rescorer = folder_rescorer(folder, precision) if self.lm is not None and self.decoder.rescore_weight else None
            self.lexicon = folder_lexicon(folder, " ".join(self.hotwords).split()) if self.lm is not None else None
            self._network = network.result()

    def transcribe(self, source: AudioSource | np.ndarray, sample_rate: int = SAMPLE_RATE) -> Transcript:
        """Return what is said in a path, the bytes of a file, a binary file object, or an array (N,) or (N, channels) at `sample_rate` Hz.

        Raises AudioError.
        """
        return join(list(self.stream(source, sample_rate)), self.name)

    def stream(self, source: AudioSource | np.ndarray, sample_rate: int = SAMPLE_RATE) -> Iterator[Segment]:
        """Yield the segments of `transcribe` as they are recognised. They cover the recording; skipped silence is one without words.

        Raises AudioError, where a file is damaged after the segments before the damage.
        """
        for _, event in self.events([_blocks(source, sample_rate)]):
            if isinstance(event, AudioError):
                raise event
            if isinstance(event, Segment):
                yield event

    def events(self, recordings: Iterable[Iterable[np.ndarray]]) -> Iterator[tuple[int, Segment | AudioError | None]]:
        """Yield what comes of each recording, with its number: its segments, then None or the AudioError that its blocks raised.

        recordings: each as blocks (n,) of float32 at 16 kHz. Short ones are recognised together, so they are read ahead.
        """
        num_segments = num_samples = 0
        with ThreadPoolExecutor(self.num_threads) as pool:  # starts no thread before the first task
            for group in _groups(self._pieces(recordings), GROUP_S):
                waveforms = [piece.waveform for _, piece in group if isinstance(piece, Piece) and piece.waveform is not None]
                log_probs = iter(self.log_probs(waveforms))
                found: list[tuple[int, Segment | Future[Segment] | AudioError | None]] = []
                for number, piece in group:
                    if isinstance(piece, Piece):
                        start_s, duration_s = num_samples / SAMPLE_RATE, piece.num_samples / SAMPLE_RATE
                        if piece.waveform is None:
                            found.append((number, make_segment(num_segments, start_s, start_s + duration_s, ())))
                        else:
                            found.append((number, pool.submit(self.recognise, next(log_probs), num_segments, start_s, duration_s)))
                        num_segments, num_samples = num_segments + 1, num_samples + piece.num_samples
                    else:
                        found.append((number, piece))
                        num_segments = num_samples = 0
                for number, event in found:
                    yield number, event.result() if isinstance(event, Future) else event

    def _pieces(self, recordings: Iterable[Iterable[np.ndarray]]) -> Iterator[tuple[int, Piece | AudioError | None]]:
        """Yield the pieces of each recording, then None or its error; what was read before the error is among the pieces."""
        for number, blocks in enumerate(recordings):
            errors: list[AudioError] = []
            for piece in cut(_until_error(blocks, errors), self.vad):
                yield number, piece
            yield number, errors[0] if errors else None

    def align(self, source: AudioSource | np.ndarray, text: str, sample_rate: int = SAMPLE_RATE) -> Transcript:
        """Return `text`, which is what is said in the audio, with the times of its words: the best path that spells it.

        The text is normalised; the transcript has one segment. Raises AudioError, TextError for characters that the model cannot write, and
        CTCError where the text does not fit into the audio.
        """
        text = normalise(text)
        tokens = self.vocabulary.encode(text)
        frames: list[np.ndarray] = []
        starts: list[np.ndarray] = []  # in seconds, of each output frame
        num_samples = 0
        for group in _groups(enumerate(cut(_blocks(source, sample_rate), "none")), BATCH_S):
            waveforms = [piece.waveform for _, piece in group if piece.waveform is not None]
            for waveform, log_probs in zip(waveforms, self.log_probs(waveforms), strict=True):
                frames.append(log_probs)
                starts.append(num_samples / SAMPLE_RATE + self.frame_s * np.arange(len(log_probs)))
                num_samples += len(waveform)
        log_probs, times = np.concatenate(frames)[:, : len(self.vocabulary)], np.append(np.concatenate(starts), num_samples / SAMPLE_RATE)
        spans = forced_align(log_probs, tokens)
        peaks = tuple(start + int(log_probs[start:end, token].argmax()) for token, (start, end) in zip(tokens, spans, strict=True))
        words = tuple(self._words(text, tuple(tokens), peaks, log_probs, times, self.vocabulary))
        duration_s = num_samples / SAMPLE_RATE
        return join([make_segment(0, 0.0, duration_s, words)], self.name)

    def transcribe_batch(self, waveforms: Sequence[np.ndarray]) -> list[Transcript]:
        """Return one Transcript per float32 waveform (N,) at 16 kHz, encoded together; the same texts as one by one."""
        segments: list[list[Segment]] = [[] for _ in waveforms]
        for number, event in self.events([waveform] for waveform in waveforms):
            if isinstance(event, Segment):
                segments[number].append(event)
        return [join(found, self.name) for found in segments]

    def log_probs(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return log-probabilities (T', V + S) per waveform (N,), in their order; similar lengths are encoded together."""
        features = [log_mel(waveform, self.features) for waveform in waveforms]
        results: list[np.ndarray] = [np.empty(0)] * len(features)
        frames_at_once = BATCH_S * self.features.sample_rate / self.features.hop_length
        order = sorted(range(len(features)), key=lambda i: len(features[i]))
        batches = np.cumsum([len(features[i]) for i in order]) // frames_at_once  # the number of each one's batch
        for _, group in groupby(zip(order, batches, strict=True), key=itemgetter(1)):
            batch = [i for i, _ in group]
            for i, log_probs in zip(batch, run(self._network, [features[i] for i in batch], num_threads=self.num_threads), strict=True):
                results[i] = log_probs
        return results

    def new_search(self) -> BeamSearch | None:
        """Return what recognise can go on with as an utterance grows; greedy decoding has no use for it."""
        return None if self.decoder.method == "greedy" else make_search(self.vocabulary, self.decoder, **self._models)

    @property
    def _models(self) -> dict[str, Any]:
        """The arguments of decode and make_search."""
        return {"lm": self.lm, "lexicon": self.lexicon, "sounds": self.sounds, "hotwords": self.hotwords, "rescorer": self.rescorer}

    def recognise(self, log_probs: np.ndarray, number: int, start_s: float, duration_s: float, begun: BeamSearch | None = None) -> Segment:
        """Return segment `number`, decoded from log_probs (T', V + S), which begins at start_s and lasts duration_s seconds.

        begun: new_search's, which goes on after the frames of the call before; these were the first of log_probs.
        """
        hypothesis = decode(log_probs, self.vocabulary, self.decoder, **self._models, begun=begun)
        vocabulary = self.vocabulary
        if self.lexicon is not None and self.sounds is not None:
            vocabulary, log_probs = self.sounds, log_probs[:, len(self.vocabulary) :]
        times = np.minimum(start_s + self.frame_s * np.arange(len(log_probs) + 1), start_s + duration_s)
        words = tuple(self._words(hypothesis.text, hypothesis.tokens, hypothesis.frames, log_probs, times, vocabulary))
        return make_segment(number, start_s, start_s + duration_s, words)

    def _words(
        self, text: str, tokens: Sequence[int], frames: Sequence[int], log_probs: np.ndarray, times: np.ndarray, vocabulary: Vocabulary
    ) -> Iterator[Word]:
        """Yield the words of `text`, the times of each from its tokens between the spaces.

        times (T' + 1,): seconds of the start of each frame, and of the end.
        """
        space = vocabulary.tokens.index(" ")
        grouped = groupby(zip(tokens, frames, strict=True), key=lambda token_frame: token_frame[0] == space)
        for word, group in zip(text.split(), (group for is_space, group in grouped if not is_space), strict=True):
            letters, peaks = zip(*group, strict=True)
            yield Word(
                word=word,
                start=round(float(times[peaks[0]]), 3),
                end=round(float(times[peaks[-1] + 1]), 3),
                confidence=round(self.decoder.confidence(float(np.mean(log_probs[list(peaks), list(letters)]))), 4),
            )


def join(segments: Sequence[Segment], model: str) -> Transcript:
    """Return the transcript of a recording that the segments cover."""
    text = " ".join(segment.text for segment in segments if segment.text)
    return Transcript(text, segments[-1].end if segments else 0.0, model, tuple(segments))


def make_segment(number: int, start_s: float, end_s: float, words: tuple[Word, ...]) -> Segment:
    """Return a segment of words; its confidence is their mean, 1 for silence."""
    confidence = float(np.mean([word.confidence for word in words])) if words else 1.0
    return Segment(number, round(start_s, 3), round(end_s, 3), " ".join(word.word for word in words), round(confidence, 4), words)


def folder_decoder(folder: ModelFolder) -> DecoderConfig:
    """Return the decoder settings of a model folder. Raises CheckpointError where they are none."""
    return decoder_config(folder.path, folder.decoder)


def decoder_config(path: Path, settings: Mapping[str, Any]) -> DecoderConfig:
    """Return the settings of the search that the folder `path` has. Raises CheckpointError where they are none."""
    try:
        return DecoderConfig(**settings)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path / DECODER_NAME}: {error}; tune the decoder again") from error


def folder_lm(folder: ModelFolder) -> LanguageModel | None:
    """Return the language model of a model folder, if it has one. Raises LanguageModelError."""
    path = folder.part(LM_NAME)
    return load_lm(path) if path.exists() else None


def folder_rescorer(folder: ModelFolder, precision: str = "auto") -> RecurrentLanguageModel | None:
    """Return the recurrent language model of a model folder, if it has one; precision: as for asr.encoder.load. Raises LanguageModelError."""
    path = folder.part(RNNLM_NAME)
    return load_rnnlm(path, as_bytes=in_bytes(precision)) if path.exists() else None


def folder_lexicon(folder: ModelFolder, words: Iterable[str] = ()) -> Lexicon | None:
    """Return the lexicon of a model folder whose network writes pronunciations, if it has one, with `words` that it lacks as its G2P says them.

    Raises LexiconError, G2PError and CheckpointError.
    """
    path = folder.part(LEXICON_NAME)
    if folder.sounds is None or not path.exists():
        return None
    lexicon = read_lexicon(path)
    if foreign := set(lexicon.sounds.tokens).difference(folder.sounds.tokens):
        raise CheckpointError(f"{path}: sounds that the network does not write: {' '.join(sorted(foreign))}; it writes {' '.join(folder.sounds.tokens[2:])}")
    return complete(lexicon, words, folder.part(G2P_NAME))


def cut(blocks: Iterable[np.ndarray], vad: Vad) -> Iterator[Piece]:
    """Yield pieces of at most MAX_PIECE_S, and the silences between them, which together are all samples of `blocks` in their order."""
    for is_silence, marked in groupby(mark_silence(blocks, vad), key=itemgetter(0)):
        if is_silence:
            yield Piece(sum(len(samples) for _, samples in marked), None)
        else:
            yield from (Piece(len(waveform), waveform) for waveform in cut_at_pauses(samples for _, samples in marked))


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


def _groups(pieces: Iterable[tuple[int, Item]], seconds: float) -> Iterator[list[tuple[int, Item]]]:
    """Group what has pieces in it so that each group has about so many seconds to recognise."""
    group: list[tuple[int, Item]] = []
    num_samples = 0
    for number, piece in pieces:
        group.append((number, piece))
        num_samples += len(piece.waveform) if isinstance(piece, Piece) and piece.waveform is not None else 0
        if num_samples >= seconds * SAMPLE_RATE:
            yield group
            group, num_samples = [], 0
    if group:
        yield group


def _blocks(source: AudioSource | np.ndarray, sample_rate: int) -> Iterable[np.ndarray]:
    return [as_waveform(source, sample_rate)] if isinstance(source, np.ndarray) else read_blocks(source)


def _until_error(blocks: Iterable[np.ndarray], errors: list[AudioError]) -> Iterator[np.ndarray]:
    """Yield the blocks; an AudioError ends them and is appended to `errors`."""
    try:
        yield from blocks
    except AudioError as error:
        errors.append(error)
