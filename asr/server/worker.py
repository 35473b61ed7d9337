"""The process that decodes and recognises: a recording that breaks it breaks only it, and the server starts another.

Requests come on stdin, answers go to stdout, both framed alike: a line of JSON, in it `size`, and then so many bytes.

    {"job": "file", "response_format", "words", "segments", "include", "language", "max_s"} + a file  ->  {"status"} + the answer's body
    {"job": "live", "session", "sample_rate", "first", "last"} + 16-bit samples                      ->  {"status"} + a line of JSON a result
    {"job": "forget", "session"}                                                                     ->  {"status"}

A status other than 200 comes with `error`, the `code` and `message` for the client.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, BinaryIO

import numpy as np
import soxr

from asr.audio import SAMPLE_RATE, AudioError, audio_duration_s
from asr.formats import write
from asr.stream import LiveRecogniser, load_streaming_network
from asr.transcribe import Transcriber, join
from asr.transcript import Segment, Transcript

Answer = tuple[dict[str, Any], bytes]


class TooLong(ValueError):
    """A recording of more seconds than the server takes."""


class Stream:
    """A live stream of 16-bit samples at any rate."""

    def __init__(self, transcriber: Transcriber, network: Any, sample_rate: int) -> None:
        self._recogniser = LiveRecogniser(transcriber, network)
        self._resampler = soxr.ResampleStream(sample_rate, SAMPLE_RATE, 1, dtype="float32")

    def push(self, data: bytes, *, last: bool) -> Iterator[str]:
        """Yield a line of JSON for each new result."""
        samples = np.frombuffer(data, "<i2").astype(np.float32) / 32768
        waveform = np.asarray(self._resampler.resample_chunk(samples, last=last), np.float32).reshape(-1)
        for result in self._recogniser.push(waveform) + (self._recogniser.finish() if last else []):
            yield json.dumps({"type": "final" if result.final else "partial", **asdict(result.segment)}, allow_nan=False)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--timeout", type=float, required=True)
    given = parser.parse_args()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not come between the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's; closing stdin ends this process
    transcriber = Transcriber(given.model, num_threads=given.threads, precision=given.precision)
    network = load_streaming_network(given.model, given.precision)
    streams: dict[str, Stream] = {}
    transcriber.transcribe_batch([np.zeros(SAMPLE_RATE, np.float32)])  # what loads late, loads now
    _write(answers, {"status": 200}, b"")
    while request := sys.stdin.buffer.readline():
        header = json.loads(request)
        payload = sys.stdin.buffer.read(header["size"])
        signal.alarm(math.ceil(given.timeout) + 5)  # kills it should nobody be there any more to do so
        if header["job"] == "file":
            answer = answer_file(transcriber, header, payload)
        elif header["job"] == "live":
            if header["first"]:
                streams[header["session"]] = Stream(transcriber, network, header["sample_rate"])
            answer = answer_live(streams.get(header["session"]), header, payload)
        else:
            streams.pop(header["session"], None)
            answer = {"status": 200}, b""
        signal.alarm(0)
        _write(answers, *answer)


def _write(answers: BinaryIO, header: dict[str, Any], payload: bytes) -> None:
    answers.write(json.dumps({**header, "size": len(payload)}).encode() + b"\n" + payload)
    answers.flush()


def answer_file(transcriber: Transcriber, header: dict[str, Any], data: bytes) -> Answer:
    try:
        transcript = transcribe(transcriber, data, max_s=header["max_s"])
    except TooLong as error:
        return {"status": 413, "error": {"code": "audio_too_long", "message": str(error)}}, b""
    except AudioError as error:
        return {"status": 400, "error": {"code": "invalid_audio", "message": str(error)}}, b""
    return {"status": 200}, write_response(transcript, header).encode()


def answer_live(stream: Stream | None, header: dict[str, Any], data: bytes) -> Answer:
    if stream is None:  # it was in a worker that is gone
        return {"status": 500, "error": {"code": "stream_lost", "message": "the stream was interrupted; begin another"}}, b""
    return {"status": 200}, "\n".join(stream.push(data, last=header["last"])).encode()


def transcribe(transcriber: Transcriber, data: bytes, *, max_s: float) -> Transcript:
    """Return what is said in a file. Raises AudioError and, without trust in what its header says, TooLong."""
    _check_length(audio_duration_s(data), max_s)
    segments = []
    for segment in transcriber.stream(data):
        _check_length(segment.end, max_s)
        segments.append(segment)
    return join(segments, transcriber.name)


def _check_length(duration_s: float, max_s: float) -> None:
    if duration_s > max_s:
        raise TooLong(f"the recording is longer than the {max_s:g} seconds that this server takes; send it in parts")


def write_response(transcript: Transcript, header: dict[str, Any]) -> str:
    """Return the body that OpenAI's clients expect for a response format, with subtitles in it where `include` names them."""
    response_format = header["response_format"]
    if response_format in ("text", "srt", "vtt"):
        return write(transcript, "txt" if response_format == "text" else response_format, name="audio")
    body: dict[str, Any] = {"text": transcript.text}
    if response_format == "verbose_json":
        body = {"task": "transcribe", "language": header["language"], "duration": transcript.duration, "text": transcript.text}
        if header["segments"]:
            body["segments"] = [verbose_segment(segment) for segment in transcript.segments if segment.words]
        if header["words"]:
            body["words"] = [asdict(word) for word in transcript.words]
    body |= {name: write(transcript, name, name="audio") for name in header["include"]}
    return json.dumps(body, ensure_ascii=False, allow_nan=False)


def verbose_segment(segment: Segment) -> dict[str, Any]:
    """Return a segment with the fields of Whisper's. There are no subword tokens; avg_logprob is that of the words' confidences."""
    text = segment.text.encode()
    confidences = [word.confidence for word in segment.words]
    return {
        "id": segment.id,
        "seek": 0,
        "start": segment.start,
        "end": segment.end,
        "text": segment.text,
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": round(float(np.mean(np.log(np.maximum(confidences, 1e-4)))), 4),
        "compression_ratio": round(len(text) / len(zlib.compress(text)), 4),
        "no_speech_prob": 0.0,
        "confidence": segment.confidence,
    }


if __name__ == "__main__":
    main()
