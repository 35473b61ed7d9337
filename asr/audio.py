"""Audio files, bytes and arrays in; mono float32 at the model's sample rate out. Knows nothing of features or models.

Reading is libsndfile's (wav, flac, ogg, opus, mp3, aiff, au, sphere, ...), resampling is soxr's; both work block by block, so an hour
of audio is held once at most, and `read_blocks` does not hold it at all.

A file that ends before the length its header promises is an error, not a shorter recording. What cannot be told: NIST SPHERE; lengths that a
pipe's writer left open (about 2^31 or 2^32 bytes); an mp3 without a Xing, Info or VBRI tag; an ogg file cut just between two pages.
libsndfile reads only the first of several ogg or mp3 files joined into one: they are refused, so that nothing is lost in silence.
"""

from __future__ import annotations

import io
import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from asr.media import MediaError, MediaFile

SAMPLE_RATE = 16_000
BLOCK_S = 30.0
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 1_000, 768_000
MAX_CHANNELS = 64
MAX_HEADER_S = 7 * 24 * 3600.0  # a header that claims more is not believed
MAX_LOADED_S = 2 * 3600.0  # load_audio holds it twice for a moment: 0.9 GB at 16 kHz
MAX_BLOCK_VALUES = 1 << 23  # samples times channels read at once: 32 MB
MAX_OGG_PAGE = 65_307  # bytes

# libsndfile's log where a file is shorter than its header says: wav's and caf's data, aiff's SSND, au's Data Size, RF64's and W64's whole.
_SHORTER = re.compile(r"(?:data|SSND|Data Size|Riff size|riff) *: (\d+) \(should be (\d+)\)")

AudioSource = str | os.PathLike[str] | bytes | BinaryIO


class AudioError(ValueError):
    """Audio that cannot be used: missing, unreadable, empty, not finite or absurd. The message names the file and the reason."""


def load_audio(
    source: AudioSource, sample_rate: int = SAMPLE_RATE, *, offset_s: float = 0.0, duration_s: float | None = None
) -> np.ndarray:
    """Return the audio as float32 (N,), mono, at `sample_rate` Hz.

    source: a path, the bytes of a file, or a binary file object. offset_s, duration_s: the part to read, in seconds.
    Channels are averaged. Raises AudioError, also for more than MAX_LOADED_S, which read_blocks is for.
    """
    blocks, num_samples = [], 0
    for block in read_blocks(source, sample_rate, offset_s=offset_s, duration_s=duration_s):
        blocks.append(block)
        num_samples += len(block)
        if num_samples > MAX_LOADED_S * sample_rate:
            raise AudioError(f"{_name(source)}: more than {MAX_LOADED_S / 3600:.0f} hours, too much to hold at once; cut it into parts")
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
    with _open(source, name) as (file, handle, promised):
        first, stop = _part(file, name, offset_s, duration_s)
        resampler = _Resampler(file.samplerate, sample_rate)
        num_done, num_out = first, 0
        block_size = max(1, min(round(block_s * file.samplerate), MAX_BLOCK_VALUES // file.channels))
        try:
            file.seek(first) if first else None
            while True:
                wanted = block_size if stop is None else min(block_size, stop - num_done)
                block = file.read(wanted, dtype="float32", always_2d=True) if wanted > 0 else np.zeros((0, 1), np.float32)
                num_done += len(block)
                last = len(block) < block_size
                if len(block) < wanted:
                    _check_end(file, handle, name, num_done, promised)
                mono = _mono(block, name)
                out = resampler.push(mono, last=last)
                num_out += len(out)
                if len(out):
                    yield out
                if last:
                    break
        except (soundfile.LibsndfileError, MediaError) as error:
            raise AudioError(f"{name}: damaged after {num_done / file.samplerate:.1f} s ({getattr(error, 'error_string', error)})") from error
        if not num_out:
            raise AudioError(f"{name}: no audio in it (0 samples{_from(offset_s)}); expected at least one")


def audio_duration_s(source: AudioSource) -> float:
    """Return the length in seconds, from the header where it tells, else by reading. Raises AudioError."""
    name = _name(source)
    with _open(source, name) as (file, _, promised):
        if promised is not None:
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
    """Write samples (N,), int16 as they are or floats in -1 to 1, as a 16-bit wav file, first under a temporary name: a reader never sees half a file."""
    import soundfile

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        samples = waveform if waveform.dtype == np.int16 else np.clip(waveform, -1.0, 1.0)
        soundfile.write(temporary, samples, sample_rate, format="WAV", subtype="PCM_16")
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
def _open(source: AudioSource, name: str) -> Iterator[tuple[Any, Any, int | None]]:
    """Yield the SoundFile, the binary file under it, and the number of samples a channel that the header promises, None where it does not."""
    if not isinstance(source, (str, os.PathLike)):
        yield from _opened(io.BytesIO(source) if isinstance(source, (bytes, bytearray, memoryview)) else source, name)
        return
    try:
        status = os.stat(source)
        if not stat.S_ISREG(status.st_mode):
            raise AudioError(f"{name}: not a regular file; expected an audio file")
        if status.st_size == 0:
            raise AudioError(f"{name}: the file is empty")
        handle = open(source, "rb", buffering=0)  # noqa: SIM115
    except AudioError:
        raise
    except FileNotFoundError as error:
        raise AudioError(f"{name}: no such file") from error
    except (OSError, ValueError) as error:
        raise AudioError(f"{name}: cannot be opened ({getattr(error, 'strerror', None) or error})") from error
    with handle:
        yield from _opened(handle, name)


def _opened(handle: Any, name: str) -> Iterator[tuple[Any, Any, int | None]]:
    import soundfile

    try:
        _check_ogg(handle, name)
        tagged = _tells_its_length(handle)
        file = soundfile.SoundFile(handle.fileno() if isinstance(handle, io.FileIO) else handle, closefd=False)
    except AudioError:
        raise
    except (soundfile.LibsndfileError, OSError, TypeError, ValueError) as error:
        reason = getattr(error, "error_string", str(error))
        file = _media_file(handle, name, reason.strip())
    with file:
        _check_rate(file.samplerate, name)
        if not 1 <= file.channels <= MAX_CHANNELS:
            raise AudioError(f"{name}: {file.channels} channels; expected 1 to {MAX_CHANNELS}")
        if file.format == MediaFile.format:
            yield file, handle, file.promised
            return
        shorter = _SHORTER.search(file.extra_info)
        claimed, found = (int(number) for number in shorter.groups()) if shorter else (0, 0)
        if found < claimed and (claimed & 0x7FFF_FFFF) < 0x7FFF_0000:  # what is about 2^31 or 2^32 was left open by a pipe's writer
            raise AudioError(f"{name}: truncated, it holds {100 * found / claimed:.1f} % of what its header promises; fetch it again")
        promised = file.frames if 0 <= file.frames <= MAX_HEADER_S * file.samplerate and (tagged or file.format != "MP3") else None
        if promised is None and file.format == "FLAC":
            # After each block soundfile seeks to where it is already, which libFLAC cannot at the end of a file of unknown length.
            file.seekable = lambda: False
        yield file, handle, promised


def _media_file(handle: Any, name: str, reason: str) -> MediaFile:
    """Return what PyAV makes of a file that libsndfile refuses for a reason."""
    try:
        handle.seek(0)
        return MediaFile(handle)
    except (MediaError, OSError, AttributeError, TypeError) as error:
        raise AudioError(
            f"{name}: cannot be read as audio ({reason}; {error}); expected wav, flac, ogg, opus, mp3 or another format of libsndfile"
        ) from error


def _bytes_at(handle: Any, start: int, size: int) -> bytes:
    handle.seek(start)
    return bytes(handle.read(size))


def _check_ogg(handle: Any, name: str) -> None:
    """Raise AudioError for an ogg file (RFC 3533) that ends within a page or whose last page is not of the first one's stream."""
    head = _bytes_at(handle, 0, 18)
    if head.startswith(b"OggS"):
        tail = _bytes_at(handle, max(0, handle.seek(0, io.SEEK_END) - MAX_OGG_PAGE), MAX_OGG_PAGE)
        page = tail[tail.rfind(b"OggS") :]  # 27 bytes, among them the number of segments; a byte's length of each; the segments
        size = 27 + page[26] + sum(page[27 : 27 + page[26]]) if len(page) >= 27 else 27
        rest = page[size:]
        if len(page) < size or (rest and b"OggS".startswith(rest)):
            raise AudioError(f"{name}: truncated, it ends within an ogg page; fetch it again")
        if page[14:18] != head[14:18]:
            raise AudioError(f"{name}: several ogg streams in one file; expected one, so write each to a file of its own")
    handle.seek(0)


def _tells_its_length(handle: Any) -> bool:
    """Whether the first frame of an mp3 file, behind an ID3v2 tag if there is one, holds a count of the frames."""
    head = _bytes_at(handle, 0, 10)
    start = 10 + sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=False)) if head.startswith(b"ID3") else 0
    first = _bytes_at(handle, start, 200)
    handle.seek(0)
    return any(tag in first for tag in (b"Xing", b"Info", b"VBRI"))


def _check_end(file: Any, handle: Any, name: str, num_done: int, promised: int | None) -> None:
    """Raise AudioError where a file ends before its promised length, or an mp3 goes on after it."""
    if promised is not None and num_done < promised:
        raise AudioError(
            f"{name}: truncated or damaged, it holds {num_done / file.samplerate:.2f} s of the {promised / file.samplerate:.2f} s that its"
            " header promises; fetch it again"
        )
    if file.format == "MP3":
        consumed, following = handle.tell(), handle.read(3)
        rest_s = (handle.seek(0, io.SEEK_END) - consumed) * num_done / max(1, consumed) / file.samplerate  # the last frame may be padding
        if rest_s > 0.25 and (following == b"ID3" or (following[:1] == b"\xff" and following[1:2] >= b"\xe0")):
            raise AudioError(
                f"{name}: the mp3 goes on for about {rest_s:.1f} s after the end that its header tells (files joined, or a variable bit rate"
                " without a Xing tag); write it anew, as wav or with a right header"
            )


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
