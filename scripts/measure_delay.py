"""Measure how soon live recognition shows a word, from its end in the audio to its first appearance, and its WER, on utterances of a manifest.

A word's end is where `--aligner`, a bidirectional model, puts it when it aligns the reference. Only words that are recognised count. The
clock is the audio's, and computing adds its CPU time, so that other programs on the machine disturb little.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from asr.audio import SAMPLE_RATE
from asr.ctc import CTCError
from asr.manifest import read_manifest, read_utterance
from asr.stream import BLOCK_S, LiveRecogniser, Result, load_streaming_network
from asr.text import normalise
from asr.transcribe import Transcriber
from asr.transcript import Word
from asr.wer import ErrorCounts, align_words, count_word_errors

SILENCE_S = 1.0  # after each utterance, so that its last word can appear


def heard(recogniser: LiveRecogniser, waveform: np.ndarray) -> Iterator[tuple[float, Result]]:
    """Yield each result with the time when it is shown, in seconds from the start."""
    size, clock_s = round(BLOCK_S * SAMPLE_RATE), 0.0
    for end in range(size, len(waveform) + size, size):
        started = time.process_time()
        results = recogniser.push(waveform[end - size : end])
        if end >= len(waveform):
            results += recogniser.finish()
        clock_s = max(clock_s, min(end, len(waveform)) / SAMPLE_RATE) + time.process_time() - started
        yield from ((clock_s, result) for result in results)


def delays(results: list[tuple[float, Result]], reference: tuple[Word, ...]) -> Iterator[float]:
    """Yield the delay of each word of the final text that is right."""
    words = [word for _, result in results if result.final for word in result.segment.words]
    left, right = iter(reference), iter(words)
    for expected, found in align_words(" ".join(w.word for w in reference), " ".join(w.word for w in words)):
        spoken = next(left) if expected is not None else None
        shown = next(right) if found is not None else None
        if spoken is None or shown is None or expected != found:
            continue
        yield next(
            at_s - spoken.end
            for at_s, result in results
            if any(word.word == found and abs(word.start - shown.start) < 0.3 for word in result.segment.words)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", default="english", help="the model to measure (default: %(default)s)")
    parser.add_argument("--aligner", default="english", help="the model that says when words end (default: %(default)s)")
    parser.add_argument("--utterances", type=int, default=20, help="how many of the manifest's first (default: %(default)s)")
    arguments = parser.parse_args()
    transcriber, aligner = Transcriber(arguments.model, num_threads=1), Transcriber(arguments.aligner, num_threads=1)
    network = load_streaming_network(arguments.model)
    transcriber.transcribe_batch([np.zeros(SAMPLE_RATE, np.float32)])  # compiles the search
    found: list[float] = []
    live, whole = ErrorCounts(), ErrorCounts()
    audio_s, cpu_s = 0.0, 0.0
    for utterance in read_manifest(arguments.manifest)[: arguments.utterances]:
        waveform = read_utterance(utterance)
        try:
            reference = aligner.align(waveform, utterance.text).segments[0].words
        except CTCError:
            continue  # too little audio for its text
        whole += count_word_errors(normalise(utterance.text), transcriber.transcribe(waveform).text)
        waveform = np.concatenate([waveform, np.zeros(round(SILENCE_S * SAMPLE_RATE), np.float32)])
        started = time.process_time()
        results = list(heard(LiveRecogniser(transcriber, network), waveform))
        cpu_s, audio_s = cpu_s + time.process_time() - started, audio_s + len(waveform) / SAMPLE_RATE
        found += delays(results, reference)
        live += count_word_errors(normalise(utterance.text), " ".join(result.segment.text for _, result in results if result.final))
    if not found:
        parser.error(f"{arguments.manifest}: no word was recognised")
    share = np.mean(np.array(found) < 0.5)
    print(
        f"{arguments.model}, {'stepped' if network else 'recognised anew'}: {len(found)} words, delay median {np.median(found):.2f} s,"
        f" 90 % {np.quantile(found, 0.9):.2f} s, under 0.5 s {100 * share:.0f} %; {cpu_s / audio_s:.3f} s of CPU a second of audio\n"
        f"WER live {100 * live.rate:.1f} %, as a whole {100 * whole.rate:.1f} %, {whole.reference_length} words"
    )


if __name__ == "__main__":
    main()
