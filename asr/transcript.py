"""What recognition returns: a Transcript of segments of words, with times and confidences. Plain values, and how a notebook shows them."""

from __future__ import annotations

import html
from dataclasses import dataclass

HTML_WORDS = 5_000  # a notebook shows no more: each is an element of the page


@dataclass(frozen=True)
class Word:
    """A word. start, end: seconds from the beginning of the audio. confidence: 0 to 1."""

    word: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class Segment:
    """A stretch of audio that was recognised in one piece, `start` to `end` seconds; silence has no words."""

    id: int
    start: float
    end: float
    text: str
    confidence: float
    words: tuple[Word, ...]


@dataclass(frozen=True)
class Transcript:
    """The text of a recording of `duration` seconds, by the model named `model`; its segments cover the recording."""

    text: str
    duration: float
    model: str
    segments: tuple[Segment, ...]

    @property
    def words(self) -> tuple[Word, ...]:
        """The words of all segments."""
        return tuple(word for segment in self.segments for word in segment.words)

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        """Show the words in a notebook, the redder the less certain, times and confidence as tooltips."""
        words = self.words
        more = f" … and {len(words) - HTML_WORDS} more words" if len(words) > HTML_WORDS else ""
        return f"<p>{' '.join(map(_word_html, words[:HTML_WORDS]))}{more}</p>"


def _word_html(word: Word) -> str:
    doubt = min(1.0, max(0.0, 1 - word.confidence))
    tooltip = f"{word.start:.2f} to {word.end:.2f} s, {word.confidence:.0%}"
    return f'<span title="{tooltip}" style="background: rgba(220, 60, 20, {0.6 * doubt:.2f})">{html.escape(word.word)}</span>'
