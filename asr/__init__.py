"""asr: a speech recogniser that can be trained, read and run on a plain CPU.

>>> import asr
>>> model = asr.load_model("english")
>>> model.transcribe("examples/goforward.flac").text
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asr.transcribe import Transcriber

__version__ = "0.1.0"


def load_model(model: str | os.PathLike[str] = "english", *, num_threads: int = 0) -> Transcriber:
    """Return a Transcriber for a shipped model (by name) or a model folder (by path). Raises asr.checkpoint.CheckpointError."""
    from asr.transcribe import Transcriber

    return Transcriber(model, num_threads=num_threads)
