"""Transcribe a recording of many hours: memory must stay flat, and the text must be that of its pieces.

    python scripts/check_long_audio.py data/dev.jsonl --hours 10

The utterances of a manifest, 3.5 s of silence between them, are written again and again into one FLAC file until it is so long. The text of each
round must be that of the first, whatever is recognised together with it: nothing is lost or doubled.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import soundfile

from asr.audio import SAMPLE_RATE
from asr.decoder import DecoderConfig
from asr.manifest import read_manifest, read_utterance
from asr.transcribe import Transcriber
from asr.vad import CHUNK

PAUSE_S = 3.5  # longer than what is recognised of a pause: every utterance is a stretch of its own
MAX_GROWTH = 1.1  # of the peak of memory, from an eighth of the recording to its end


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write_rounds(path: Path, manifest: str, hours: float) -> list[int]:
    """Write the recording; return the sample at which each round ends. Rounds begin and end with a pause."""
    pause = np.zeros(round(PAUSE_S * SAMPLE_RATE), np.float32)
    one = np.concatenate([part for utterance in read_manifest(manifest) for part in (pause, read_utterance(utterance))] + [pause])
    one = np.pad(one, (0, -len(one) % CHUNK))  # so that silence is looked for in the same windows in every round
    ends = [len(one) * (number + 1) for number in range(max(2, round(hours * 3600 * SAMPLE_RATE / len(one))))]
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1, format="FLAC") as file:
        for _ in ends:
            file.write(one)
    return ends


@click.command()
@click.argument("manifest")
@click.option("--hours", default=0.1, show_default=True)
@click.option("--model", default="english", show_default=True)
@click.option("--threads", default=0, show_default=True)
@click.option("--greedy", is_flag=True, help="Without the language model.")
def main(manifest: str, hours: float, model: str, threads: int, greedy: bool) -> None:
    transcriber = Transcriber(model, decoder=DecoderConfig() if greedy else None, num_threads=threads)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.flac"
        ends_s = [end / SAMPLE_RATE for end in write_rounds(path, manifest, hours)]
        print(f"{ends_s[-1] / 3600:.2f} hours, {len(ends_s)} rounds, {path.stat().st_size / 1e6:.0f} MB; memory before: {peak_mb():.0f} MB", flush=True)
        texts: list[list[str]] = [[] for _ in ends_s]
        start, cpu, early_mb, end_s = time.perf_counter(), time.process_time(), 0.0, 0.0
        for segment in transcriber.stream(path):
            assert segment.start == end_s, f"a gap before {segment.start} s"
            end_s = segment.end
            texts[int(np.searchsorted(ends_s, (segment.start + segment.end) / 2))].append(segment.text)
            if end_s <= ends_s[-1] / 8:
                early_mb = peak_mb()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    rounds = [" ".join(filter(None, words)) for words in texts]
    print(f"{sum(len(text.split()) for text in rounds)} words in {seconds:.0f} s: {end_s / seconds:.0f} s of audio a second, {cpu / end_s:.5f} s of CPU a second")
    print(f"peak memory after an eighth: {early_mb:.0f} MB, at the end: {peak_mb():.0f} MB")
    different = [number for number, text in enumerate(rounds) if text != rounds[0]]
    print(f"{len(rounds) - len(different)} of {len(rounds)} rounds have the text of the first")
    if different or abs(end_s - ends_s[-1]) > 0.01 or peak_mb() > MAX_GROWTH * early_mb:
        sys.exit("FAILED")


if __name__ == "__main__":
    main()
