"""What recognition returns: a Transcript of segments of words, with times and confidences. Plain values, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    """A word. start, end: seconds from the beginning of the audio. confidence: 0 to 1."""

    word: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class Segment:
    """A stretch of audio that was recognised in one piece, `start` to `end` seconds; silent ones have no words."""

    id: int
    start: float
    end: float
    text: str
    confidence: float
    words: tuple[Word, ...]


@dataclass(frozen=True)
class Transcript:
    """The text of a recording of `duration` seconds, by the model named `model`."""

    text: str
    duration: float
    model: str
    segments: tuple[Segment, ...]

    def __str__(self) -> str:
        return self.text
