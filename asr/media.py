"""Sound out of what libsndfile cannot read: m4a, mp4, webm, mkv and other containers, also films, by PyAV (FFmpeg), the extra `media`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, BinaryIO, Self

import numpy as np

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".snd", ".sph", ".w64", ".caf", ".rf64"})
MEDIA_SUFFIXES = frozenset({".m4a", ".m4b", ".mp4", ".aac", ".mov", ".mkv", ".mka", ".webm", ".wma", ".wmv", ".amr", ".3gp", ".avi", ".ts"})
# FFmpeg's demuxers for them. Play lists, which would have it read other files and addresses, are not among them.
DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,aac,asf,amr,avi,mpegts"
SLACK_S = 1.0  # a container's duration is not exact


class MediaError(ValueError):
    """A container that cannot be read; the message is to stand behind the file's name."""


class MediaFile:
    """The first sound track of an open file, with what audio.py uses of a SoundFile. frames: about how many, 0 where it is not told; promised: at least so many."""

    format = "media"
    _container: Any

    def __init__(self, file: BinaryIO) -> None:
        """Raises MediaError, also where PyAV is missing."""
        try:
            import av
        except ModuleNotFoundError as error:
            raise MediaError("not a format of libsndfile; for m4a, mp4, webm and the like install the extra: pip install 'asr[media]'") from error
        self._errors = av.FFmpegError
        try:
            self._container = av.open(file, options={"format_whitelist": DEMUXERS, "protocol_whitelist": "none"}, metadata_errors="replace")
        except self._errors as error:
            raise MediaError(error.strerror or str(error)) from error
        if not self._container.streams.audio:
            self._container.close()
            raise MediaError("there is no sound in it")
        stream: Any = self._container.streams.audio[0]
        self.samplerate, self.channels = int(stream.rate), int(stream.channels)
        seconds = stream.duration * stream.time_base if stream.duration else (self._container.duration or 0) / av.time_base
        self.frames = round(float(seconds) * self.samplerate)
        self.promised = round(self.frames - SLACK_S * self.samplerate) if self.frames else None
        self._num_read = 0
        self._blocks = self._decode(stream, av.AudioResampler("fltp", stream.layout, stream.rate))
        self._held = np.zeros((0, self.channels), np.float32)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._container.close()

    def seek(self, frame: int) -> None:
        """Go on from a frame that is not read yet; what is before it is decoded, which is exact in every format."""
        while self._num_read < frame and len(self.read(min(frame - self._num_read, self.samplerate))):
            pass

    def read(self, num_frames: int, dtype: str = "float32", always_2d: bool = True) -> np.ndarray:
        """Return the next frames (n, channels); less than num_frames only at the end. Raises MediaError."""
        blocks = [self._held]
        try:
            while sum(map(len, blocks)) < num_frames:
                blocks.append(next(self._blocks))
        except StopIteration:
            pass
        except self._errors as error:
            raise MediaError(error.strerror or str(error)) from error
        joined = np.concatenate(blocks)
        self._held = joined[num_frames:]
        self._num_read += min(num_frames, len(joined))
        return joined[:num_frames]

    def _decode(self, stream: Any, resampler: Any) -> Iterator[np.ndarray]:
        for frame in chain(self._container.decode(stream), [None]):
            for converted in resampler.resample(frame):
                yield converted.to_ndarray().T  # (channels, n) -> (n, channels)
