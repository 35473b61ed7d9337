"""Audio files, bytes and arrays in; mono float32 at the model's sample rate out. Knows nothing of features or models.

Reading is libsndfile's (wav, flac, ogg, opus, mp3, aiff, au, sphere, ...), resampling is soxr's; both work block by block, so an hour
of audio is held once at most, and `read_blocks` does not hold it at all.
"""

from __future__ import annotations

import io
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

SAMPLE_RATE = 16_000
BLOCK_S = 30.0
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 1_000, 768_000
MAX_CHANNELS = 64
MAX_HEADER_S = 7 * 24 * 3600.0  # a header that claims more is not believed

AudioSource = str | os.PathLike[str] | bytes | BinaryIO


class AudioError(ValueError):
    """Audio that cannot be used: missing, unreadable, empty, not finite or absurd. The message names the file and the reason."""


def load_audio(
    source: AudioSource, sample_rate: int = SAMPLE_RATE, *, offset_s: float = 0.0, duration_s: float | None = None
) -> np.ndarray:
    """Return the audio as float32 (N,), mono, at `sample_rate` Hz.

    source: a path, the bytes of a file, or a binary file object. offset_s, duration_s: the part to read, in seconds.
    Channels are averaged. Raises AudioError.
    """
    blocks = list(read_blocks(source, sample_rate, offset_s=offset_s, duration_s=duration_s))
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def read_blocks(
    source: AudioSource,
    sample_rate: int = SAMPLE_RATE,
    *,
    block_s: float = BLOCK_S,
    offset_s: float = 0.0,
    duration_s: float | None = None,
) -> Iterator[np.ndarray]:
    """Yield the audio in float32 blocks (n,) of about `block_s` seconds, mono, at `sample_rate` Hz; their concatenation is load_audio's array.

    Raises AudioError, also in the middle of a file that turns out damaged.
    """
    import soundfile

    name = _name(source)
    with _open(source, name) as file:
        first, stop = _part(file, name, offset_s, duration_s)
        resampler = _Resampler(file.samplerate, sample_rate)
        num_done, num_out, block_size = first, 0, max(1, round(block_s * file.samplerate))
        try:
            file.seek(first) if first else None
            while True:
                wanted = block_size if stop is None else min(block_size, stop - num_done)
                block = file.read(wanted, dtype="float32", always_2d=True) if wanted > 0 else np.zeros((0, 1), np.float32)
                num_done += len(block)
                last = len(block) < block_size
                mono = _mono(block, name)
                out = resampler.push(mono, last=last)
                num_out += len(out)
                if len(out):
                    yield out
                if last:
                    break
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{name}: damaged after {num_done / file.samplerate:.1f} s ({error.error_string})") from error
        if not num_out:
            raise AudioError(f"{name}: no audio in it (0 samples{_from(offset_s)}); expected at least one")


def audio_duration_s(source: AudioSource) -> float:
    """Return the length in seconds, from the header where it tells, else by reading. Raises AudioError."""
    name = _name(source)
    with _open(source, name) as file:
        if 0 <= file.frames <= MAX_HEADER_S * file.samplerate:
            return float(file.frames / file.samplerate)
    return sum(len(block) for block in read_blocks(source)) / SAMPLE_RATE


def as_waveform(array: Any, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Return an array of samples (N,) or (N, channels) at `sample_rate` Hz as float32 (N',) mono at 16 kHz.

    Integers are scaled by their full range, floats are taken as they are. Raises AudioError.
    """
    try:
        samples = np.asarray(array)
    except (ValueError, TypeError, RuntimeError) as error:
        raise AudioError(f"array: cannot be made an array of samples ({error})") from error
    if samples.ndim not in (1, 2) or samples.size == 0 or samples.dtype.kind not in "iuf":
        raise AudioError(
            f"array: expected numbers of shape (N,) or (N, channels), N > 0, found {samples.dtype} of shape {samples.shape}"
        )
    if samples.ndim == 2 and samples.shape[1] > MAX_CHANNELS:
        raise AudioError(f"array: {samples.shape[1]} channels; expected (N, channels), so transpose it")
    if samples.dtype.kind in "iu":
        info = np.iinfo(samples.dtype)
        samples = (samples.astype(np.float64) - (info.max + info.min + 1) // 2) / ((info.max - info.min + 1) / 2)
    _check_rate(sample_rate, "array")
    mono = _mono(np.asarray(samples, dtype=np.float32).reshape(len(samples), -1), "array")
    waveform = _Resampler(sample_rate, SAMPLE_RATE).push(mono, last=True)
    if not len(waveform):
        raise AudioError(f"array: {len(samples)} samples at {sample_rate} Hz are less than one at {SAMPLE_RATE} Hz")
    return waveform


def write_wav(path: str | os.PathLike[str], waveform: np.ndarray, sample_rate: int = SAMPLE_RATE) -> None:
    """Write float32 samples (N,) as a 16-bit wav file, first under a temporary name: a reader never sees half a file."""
    import soundfile

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        soundfile.write(temporary, np.clip(waveform, -1.0, 1.0), sample_rate, format="WAV", subtype="PCM_16")
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class _Resampler:
    """soxr's stream resampler, or the identity where the rates agree."""

    def __init__(self, rate_in: int, rate_out: int) -> None:
        self._stream: Any = None
        if rate_in != rate_out:
            import soxr

            self._stream = soxr.ResampleStream(rate_in, rate_out, 1, dtype="float32")

    def push(self, block: np.ndarray, *, last: bool) -> np.ndarray:
        if self._stream is None:
            return block
        return np.asarray(self._stream.resample_chunk(block, last=last), dtype=np.float32).reshape(-1)


def _name(source: AudioSource) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    return "audio bytes" if isinstance(source, (bytes, bytearray, memoryview)) else str(getattr(source, "name", "audio stream"))


@contextmanager
def _open(source: AudioSource, name: str) -> Iterator[Any]:
    import soundfile

    handle: Any
    if isinstance(source, (str, os.PathLike)):
        try:
            status = os.stat(source)
        except FileNotFoundError as error:
            raise AudioError(f"{name}: no such file") from error
        except (OSError, ValueError) as error:
            raise AudioError(f"{name}: cannot be opened ({getattr(error, 'strerror', None) or error})") from error
        if not stat.S_ISREG(status.st_mode):
            raise AudioError(f"{name}: not a regular file; expected an audio file")
        if status.st_size == 0:
            raise AudioError(f"{name}: the file is empty")
        handle = os.fspath(source)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        handle = io.BytesIO(source)
    else:
        handle = source
    try:
        file = soundfile.SoundFile(handle)
    except (soundfile.LibsndfileError, OSError, TypeError, ValueError) as error:
        reason = getattr(error, "error_string", str(error))
        raise AudioError(
            f"{name}: cannot be read as audio ({reason.strip()}); expected wav, flac, ogg, opus, mp3 or another format of libsndfile"
        ) from error
    with file:
        _check_rate(file.samplerate, name)
        if not 1 <= file.channels <= MAX_CHANNELS:
            raise AudioError(f"{name}: {file.channels} channels; expected 1 to {MAX_CHANNELS}")
        yield file


def _check_rate(sample_rate: int, name: str) -> None:
    if not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE:
        raise AudioError(f"{name}: a sample rate of {sample_rate} Hz; expected {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE}")


def _part(file: Any, name: str, offset_s: float, duration_s: float | None) -> tuple[int, int | None]:
    """Return the first sample and the one after the last (None: to the end) of the part asked for."""
    if not (np.isfinite(offset_s) and offset_s >= 0) or (duration_s is not None and not 0 < duration_s < np.inf):
        raise AudioError(f"{name}: expected offset >= 0 and duration > 0 s, found {offset_s} and {duration_s}")
    first = round(offset_s * file.samplerate)
    if first and first >= file.frames:
        raise AudioError(f"{name}: the part starts at {offset_s:.3f} s, the file ends at {file.frames / file.samplerate:.3f} s")
    return first, None if duration_s is None else first + max(1, round(duration_s * file.samplerate))


def _mono(block: np.ndarray, name: str) -> np.ndarray:
    """Average the channels: (n, channels) -> (n,)."""
    mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)
    if len(mono) and not np.isfinite(mono).all():
        raise AudioError(f"{name}: samples that are not finite (NaN or infinity); write the file anew")
    return np.ascontiguousarray(mono)


def _from(offset_s: float) -> str:
    return f" from {offset_s:.3f} s" if offset_s else ""
