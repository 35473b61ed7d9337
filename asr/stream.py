"""Live recognition: audio comes in piece by piece, and words are shown while they are being spoken.

A one-directional network with running normalisation carries its state along: each frame is computed and searched once. With any other, the
utterance so far is recognised again and again. Either way an utterance ends at a pause, which its energy tells, and silence is not recognised.
"""

from __future__ import annotations

import logging
import os
import queue
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from asr.audio import SAMPLE_RATE, AudioSource, read_blocks
from asr.checkpoint import load_model_folder
from asr.encoder import Network, State, load, step
from asr.logmel import FeatureConfig, LogMelStream
from asr.transcribe import Transcriber
from asr.transcript import Segment

BLOCK_S = 0.1  # audio that a microphone or file hands over at once
WINDOW = SAMPLE_RATE // 50  # samples that are loud or not together: 20 ms
LOUD_DB, FAINTEST_DB = 10.0, -55.0  # loud is what stands so far above the background, and above this
BACKGROUND_S = 5.0  # the background is the faintest window of so many seconds
LOUD_WINDOWS = 3  # in a row make speech
PAUSE_S = 0.6  # so long without a loud window, and the utterance is over; it is cut in the middle of the pause
LEAD_S = 0.5  # kept from before the speech
MAX_UTTERANCE_S = 20.0  # then it is cut where it is faintest, in its second half
STEP_S, REPEAT_S = 0.1, 0.3  # from one partial result to the next, with a state carried along and without

logger = logging.getLogger(__name__)


class LiveError(ValueError):
    """A microphone that cannot be listened to; the message says why."""


@dataclass(frozen=True)
class Result:
    """An utterance as far as it has been heard or, `final`, all of it. Its times count from the start of the stream."""

    segment: Segment
    final: bool


class LiveRecogniser:
    """One stream of audio: push it as it comes, in pieces of any size, and get results. Of many streams each has its own."""

    def __init__(self, transcriber: Transcriber, network: Network | None = None) -> None:
        """network: load_streaming_network's for the same model; None: recognise the utterance so far anew for each result."""
        self._transcriber = transcriber
        self._network = network
        self._loudness = _Loudness()
        self._held = np.zeros(0, np.float32)  # less than a window
        self._start = 0  # of the utterance, in samples from the stream's start
        self._num_utterances = 0
        self._shown_s = 0.0  # how much of the utterance the last partial result covers
        self._begin([])

    def push(self, samples: np.ndarray) -> list[Result]:
        """Take the next samples (n,) float32 at 16 kHz; return what is new: utterances that ended, then a partial result if one is due."""
        self._held = np.concatenate([self._held, samples])
        num_whole = len(self._held) // WINDOW * WINDOW
        windows, self._held = self._held[:num_whole].reshape(-1, WINDOW), self._held[num_whole:]
        results = [result for window in windows for result in self._push_window(window)]
        utterance_s = len(self._windows) * WINDOW / SAMPLE_RATE
        interval_s = STEP_S if self._network else max(REPEAT_S, utterance_s / 40)
        if self._has_speech and utterance_s - self._shown_s >= interval_s:
            self._shown_s = utterance_s
            results.append(self._result(len(self._windows), final=False))
        return results

    def finish(self) -> list[Result]:
        """Return the last utterance, if one was going on; what is pushed afterwards begins another."""
        if len(self._held):
            self._windows.append(self._held)  # a short one
            self._held = self._held[:0]
        return self._end(len(self._windows))

    def _begin(self, windows: list[np.ndarray], *, has_speech: bool = False) -> None:
        self._windows = windows  # of the utterance
        self._has_speech = has_speech
        self._shown_s = 0.0
        self._steps = _Steps(self._network, self._transcriber.features) if self._network else None
        self._search = self._transcriber.new_search() if self._network else None

    def _push_window(self, window: np.ndarray) -> list[Result]:
        self._windows.append(window)
        self._loudness.push(window)
        self._has_speech |= self._loudness.num_loud >= LOUD_WINDOWS
        if not self._has_speech:
            surplus = max(0, len(self._windows) - _num_windows(LEAD_S))
            self._start += surplus * WINDOW
            del self._windows[:surplus]
        elif self._loudness.num_quiet >= _num_windows(PAUSE_S):
            return self._end(len(self._windows) - _num_windows(PAUSE_S / 2))
        elif len(self._windows) >= _num_windows(MAX_UTTERANCE_S):
            return self._end(_faintest(self._windows), has_speech=True)
        return []

    def _end(self, num_windows: int, *, has_speech: bool = False) -> list[Result]:
        """Return the final result of the utterance's first windows; the others begin the next one."""
        results = [self._result(num_windows, final=True)] if self._has_speech else []
        self._num_utterances += len(results)
        self._start += sum(map(len, self._windows[:num_windows]))
        self._begin(self._windows[num_windows:], has_speech=has_speech)
        return results

    def _result(self, num_windows: int, *, final: bool) -> Result:
        waveform = np.concatenate(self._windows[:num_windows])
        if self._steps is None:
            log_probs = self._transcriber.log_probs([waveform])[0]
        else:
            at_end = num_windows == len(self._windows)
            self._steps.push(np.concatenate(self._windows)[self._steps.num_samples :], last=final and at_end)
            log_probs = self._steps.log_probs(len(waveform))
        start_s, duration_s = self._start / SAMPLE_RATE, len(waveform) / SAMPLE_RATE
        begun = None if final else self._search  # the pause at its end may have been searched, but is not the utterance's
        return Result(self._transcriber.recognise(log_probs, self._num_utterances, start_s, duration_s, begun), final)


def load_streaming_network(model: str | os.PathLike[str], precision: str = "auto") -> Network | None:
    """Return the network of a model that can carry its state along, or None: it is bidirectional, or normalises over whole utterances.

    precision: as for asr.encoder.load.
    """
    folder = load_model_folder(model)
    if folder.network.get("bidirectional", True) or folder.features.normalisation != "running":
        return None
    return load(folder, precision)


def paced(source: AudioSource, *, speed: float = 1.0) -> Iterator[np.ndarray]:
    """Yield the audio in blocks (n,) as a microphone would, `speed` times as fast; what is late comes together. Raises AudioError."""
    start = time.monotonic()
    num_samples = 0
    late: list[np.ndarray] = []
    for block in read_blocks(source, block_s=BLOCK_S):
        num_samples += len(block)
        due = start + num_samples / SAMPLE_RATE / speed
        if late and time.monotonic() < due:
            yield np.concatenate(late)
            late = []
        time.sleep(max(0.0, due - time.monotonic()))
        late.append(block)
    if late:
        yield np.concatenate(late)


def microphone(device: str | None = None) -> Iterator[np.ndarray]:
    """Yield blocks (n,) at 16 kHz from a microphone, for ever; what is late comes together. device: its number or part of its name.

    Raises LiveError: at once where sounddevice cannot start, at the first block where there is no microphone.
    """
    try:
        import sounddevice  # the extra 'live'
    except OSError as error:
        raise LiveError(f"sounddevice cannot start ({error}); install PortAudio, on Debian: apt-get install libportaudio2") from error
    return _recorded(sounddevice, int(device) if device and device.isdecimal() else device)


def _recorded(sounddevice: Any, device: int | str | None) -> Iterator[np.ndarray]:
    import soxr

    blocks: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()

    def keep(data: np.ndarray, num_frames: int, when: Any, status: Any) -> None:
        if status.input_overflow:
            logger.warning("the sound driver has lost some audio: the machine is too busy")
        blocks.put(data[:, 0].copy())

    try:
        rate = int(sounddevice.query_devices(device, "input")["default_samplerate"])
        resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
        with sounddevice.InputStream(
            samplerate=rate, blocksize=round(rate * BLOCK_S), device=device, channels=1, dtype="float32", callback=keep
        ):
            while True:
                held = [blocks.get()]
                while not blocks.empty():
                    held.append(blocks.get())
                yield np.asarray(resampler.resample_chunk(np.concatenate(held)), np.float32).reshape(-1)
    except (sounddevice.PortAudioError, ValueError) as error:
        raise LiveError(f"no microphone can be opened ({error}); `python -m sounddevice` lists them") from error


class _Steps:
    """The log-probabilities of an utterance that grows, each frame computed once."""

    def __init__(self, network: Network, features: FeatureConfig) -> None:
        self.num_samples = 0
        self._network = network
        self._log_mel = LogMelStream(features)
        self._hop = features.hop_length
        self._held = np.zeros((0, features.num_mels), np.float32)  # fewer frames than make one of the encoder
        self._state: State | None = None
        self._log_probs = np.zeros((0, network.num_outputs), np.float32)

    def push(self, samples: np.ndarray, *, last: bool) -> None:
        self.num_samples += len(samples)
        features = np.concatenate([self._held, self._log_mel.push(samples, last=last)])  # (t, M)
        subsampling = self._network.subsampling
        if last:  # the encoder's last frame may be made of fewer: it sees the first of them only
            features = np.pad(features, ((0, -len(features) % subsampling), (0, 0)))
        num = len(features) // subsampling * subsampling
        self._held = features[num:]
        if num:
            log_probs, self._state = step(self._network, features[:num], self._state)
            self._log_probs = np.concatenate([self._log_probs, log_probs])

    def log_probs(self, num_samples: int) -> np.ndarray:
        """Return those (T', V) of the first `num_samples`, as far as they are known."""
        num_frames = num_samples // (self._hop * self._network.subsampling) + 1
        return self._log_probs[: num_frames * self._network.outputs_per_frame]


class _Loudness:
    """How many windows in a row have been loud or not, against a background that is learnt as the stream goes on."""

    def __init__(self) -> None:
        self._energies_db: deque[float] = deque(maxlen=_num_windows(BACKGROUND_S))
        self.num_loud = 0
        self.num_quiet = 0

    def push(self, window: np.ndarray) -> None:
        energy_db = 10 * float(np.log10(np.mean(window.astype(np.float64) ** 2) + 1e-12))
        self._energies_db.append(energy_db)
        if energy_db > max(min(self._energies_db) + LOUD_DB, FAINTEST_DB):
            self.num_loud, self.num_quiet = self.num_loud + 1, 0
        else:
            self.num_loud, self.num_quiet = 0, self.num_quiet + 1


def _num_windows(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE / WINDOW)


def _faintest(windows: list[np.ndarray]) -> int:
    """Return the window in the middle of the faintest 220 ms of the second half."""
    half = len(windows) // 2
    energies = [float(np.sum(window.astype(np.float64) ** 2)) for window in windows[half:]]
    return half + 5 + int(np.convolve(energies, np.ones(11), mode="valid").argmin())
