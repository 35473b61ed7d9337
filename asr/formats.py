"""Transcripts as files: plain text and JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

from asr.transcript import Transcript


def to_text(transcript: Transcript) -> str:
    """Return the words on one line."""
    return transcript.text + "\n"


def to_json(transcript: Transcript) -> str:
    """Return one line of JSON: {"text", "duration", "model", "segments": [{"id", "start", "end", "text", "confidence", "words": [...]}]}."""
    return json.dumps(dataclasses.asdict(transcript), ensure_ascii=False, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Transcript], str]] = {"txt": to_text, "json": to_json}
