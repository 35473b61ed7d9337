"""What skipping silence does to the word error rate: a manifest's utterances in one long recording, pauses and noise of several kinds between.

    python scripts/benchmark_vad.py data/dev.jsonl --minutes 5

For each kind and detector: WER, how much of the utterances and how much of the pauses was skipped, and the detector's seconds a second of audio.
"""

from __future__ import annotations

import time
from pathlib import Path

import click
import numpy as np

from asr.audio import SAMPLE_RATE, load_audio
from asr.decoder import DecoderConfig
from asr.manifest import read_manifest, read_utterance
from asr.transcribe import Transcriber
from asr.vad import Vad, mark_silence
from asr.wer import count_word_errors

DETECTORS: tuple[Vad, ...] = ("none", "energy", "silero")
PAUSES_S = (0.3, 15.0)
CONDITIONS = {  # level of white noise in the pauses, and under everything, both in dB below the first utterance
    "digital silence": (np.inf, np.inf),
    "faint noise (-50 dB) in pauses": (50.0, np.inf),
    "noise under all, -20 dB": (np.inf, 20.0),
    "noise under all, -5 dB": (np.inf, 5.0),
}


def recording(manifest: str, minutes: float, noise: np.ndarray | None, levels_db: tuple[float, float]) -> tuple[np.ndarray, np.ndarray, str]:
    """Return a waveform (N,), which of its samples belong to utterances (N,), and the text. noise (M,): recorded, for the pauses; None: white."""
    rng = np.random.default_rng(0)
    parts, is_speech, texts, num_samples, level = [], [], [], 0, 0.0
    for utterance in read_manifest(manifest):
        speech = read_utterance(utterance)
        size = round(rng.uniform(*PAUSES_S) * SAMPLE_RATE)
        pause = rng.standard_normal(size) if noise is None else np.roll(np.resize(noise, size), -int(rng.integers(len(noise))))
        level = level or float(np.sqrt(np.mean(speech**2)))
        pause *= level / np.sqrt(np.mean(pause**2)) * 10 ** (-levels_db[0] / 20)
        parts += [speech, pause.astype(np.float32)]
        is_speech += [np.ones(len(speech), bool), np.zeros(size, bool)]
        texts.append(utterance.text)
        num_samples += len(speech)
        if num_samples >= minutes * 60 * SAMPLE_RATE:
            break
    waveform = np.concatenate(parts)
    waveform += (level * 10 ** (-levels_db[1] / 20) * rng.standard_normal(len(waveform))).astype(np.float32)
    return waveform, np.concatenate(is_speech), " ".join(texts)


@click.command()
@click.argument("manifest")
@click.option("--minutes", default=5.0, show_default=True, help="Speech to use.")
@click.option("--noise-dir", type=click.Path(exists=True), help="Folder of noise recordings, each a condition of its own at -15 dB in the pauses.")
@click.option("--model", default="english", show_default=True)
def main(manifest: str, minutes: float, noise_dir: str | None, model: str) -> None:
    conditions: list[tuple[str, np.ndarray | None, tuple[float, float]]] = [(name, None, levels) for name, levels in CONDITIONS.items()]
    conditions += [(f"{path.stem} (-15 dB) in pauses", load_audio(path), (15.0, np.inf)) for path in sorted(Path(noise_dir).glob("*.wav"))] if noise_dir else []
    print("| pauses | detector | WER % | insertions | of utterances skipped % | of pauses skipped % | detector, s a s |\n|---|---|---:|---:|---:|---:|---:|")
    for name, noise, levels in conditions:
        waveform, is_speech, text = recording(manifest, minutes, noise, levels)
        for vad in DETECTORS:
            start = time.process_time()
            skipped = np.concatenate([np.full(len(samples), is_silence) for is_silence, samples in mark_silence([waveform], vad)])
            seconds = time.process_time() - start
            errors = count_word_errors(text, Transcriber(model, decoder=DecoderConfig(), num_threads=1, vad=vad).transcribe(waveform).text)
            shares = f"{100 * skipped[is_speech].mean():.2f} | {100 * skipped[~is_speech].mean():.1f}"
            print(f"| {name} | {vad} | {100 * errors.rate:.2f} | {errors.insertions} | {shares} | {seconds * SAMPLE_RATE / len(waveform):.5f} |", flush=True)


if __name__ == "__main__":
    main()
