"""The commands `asr` and `transcribe`. Only here and in recipes is anything printed: results on stdout, the rest on stderr.

Every command imports what it needs when it runs, so that --help answers at once.
"""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from asr import __version__

if TYPE_CHECKING:
    from asr.jobs import Outcome, Output, Task

CORPORA = ("folder", "table", "kaldi", "an4", "librispeech", "ljspeech")
HOTWORD_WEIGHT = 8.0
CELLS = ("gru", "lstm", "rnn_tanh", "rnn_relu")
FORMATS = ("txt", "json", "srt", "vtt", "tsv", "ctm", "textgrid")
EXTRAS = {"matplotlib": "plot", "sounddevice": "live", "torch": "train", "torchaudio": "train", "onnx": "onnx"}  # package -> the extra that brings it

Command = TypeVar("Command", bound=Callable[..., Any])


class Commands(click.Group):
    """A group whose commands end in one line and exit code 1 on the errors that this package defines, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        with _Clear():
            return super().invoke(ctx)


class ClearCommand(click.Command):
    """A single command that ends like those of Commands."""

    def invoke(self, ctx: click.Context) -> Any:
        with _Clear():
            return super().invoke(ctx)


class _Clear:
    """Turn this package's errors and the system's into click's: a line on stderr, exit code 1."""

    def __enter__(self) -> None:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if error is None or isinstance(error, BrokenPipeError):
            return
        if isinstance(error, ModuleNotFoundError) and (package := (error.name or "").split(".")[0]) in EXTRAS:
            raise click.ClickException(f"this command needs {package}; install the extra: pip install 'asr[{EXTRAS[package]}]'") from error
        if isinstance(error, OSError) or (isinstance(error, ValueError) and type(error).__module__.startswith("asr.")):
            raise click.ClickException(str(error)) from error


precision_option = click.option(
    "--precision",
    type=click.Choice(["auto", "int8", "float32"]),
    default="auto",
    help="Of the networks' products; auto: int8 on processors that are faster with it, else float32.",
)


def decoder_options(command: Command) -> Command:
    """Add the options that change a model's own way of decoding."""
    options = (
        click.option("--decoder", "method", type=click.Choice(["greedy", "beam"]), help="How to find the words. [default: the model's own setting]"),
        click.option("--beam-size", type=click.IntRange(1, 10_000), help="Prefixes kept in beam search. [default: the model's own setting]"),
        click.option("--alpha", type=float, help="Weight of the language model in beam search. [default: the model's own setting]"),
        click.option("--beta", type=float, help="Bonus a word in beam search. [default: the model's own setting]"),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _decoder(model: str, options: dict[str, Any], hotwords: dict[str, float] | None = None) -> Any:
    """Return the model's decoder settings with the given options in their place; hotwords need beam search."""
    from dataclasses import replace

    from asr.checkpoint import load_model_folder
    from asr.transcribe import folder_decoder

    given = {name: value for name, value in options.items() if value is not None}
    if hotwords and given.setdefault("method", "beam") == "greedy":
        raise click.UsageError("hotwords need --decoder beam")
    return replace(folder_decoder(load_model_folder(model)), **given)


def _hotwords(phrases: tuple[str, ...], path: str | None) -> dict[str, float]:
    """Return phrase -> weight of PHRASE[:WEIGHT], given one by one and as the lines of a file."""
    from asr.text import normalise

    lines = [("--hotword", phrase) for phrase in phrases]
    if path is not None:
        text = Path(path).read_text(encoding="utf-8").splitlines()
        lines += [(f"{path}:{number}", line) for number, line in enumerate(text, start=1) if line.strip()]
    weights = {}
    for where, line in lines:
        phrase, colon, weight = line.rpartition(":")
        try:
            value = float(weight) if colon else HOTWORD_WEIGHT
        except ValueError as error:
            raise click.UsageError(f"{where}: expected PHRASE or PHRASE:WEIGHT, found {line!r}") from error
        name = normalise(phrase if colon else line)
        if not name:
            raise click.UsageError(f"{where}: no word in {line!r}")
        weights[name] = value
    return weights


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__)
def main() -> None:
    """Train a speech recogniser on your own recordings, evaluate it, and write down what is said in audio files."""


@click.command(cls=ClearCommand, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("sources", nargs=-1, required=True, metavar="FILE|FOLDER|PATTERN|MANIFEST...")
@click.option("--model", default="english", metavar="MODEL", help="A shipped model's name, or a model folder.")
@click.option("--format", "-f", "--output_format", "formats", type=click.Choice([*FORMATS, "all"]), multiple=True, default=["txt"], help="What to write; may be repeated with --output-dir. txt: a line a file; json: an object a line a file.")
@click.option("--output-dir", "-o", "--output_dir", type=click.Path(file_okay=False), help="Write NAME.txt, NAME.srt, ... here instead of to stdout, which is also called -.")
@click.option("--manifest-out", type=click.Path(dir_okay=False), help="Add a JSON object a file, with its text as pred_text, to this JSONL manifest.")
@click.option("--overwrite", is_flag=True, help="Do again what --output-dir or --manifest-out has already.")
@click.option("--jobs", "-j", type=click.IntRange(1), default=1, help="Processes that transcribe.")
@click.option("--vad", type=click.Choice(["energy", "silero", "none"]), default="energy", help="How to find silence to skip: by energy, or by a network that skips music and noise too (slower; extra vad).")
@click.option("--no-vad", "vad", flag_value="none", help="Skip nothing: the same as --vad none.")
@decoder_options
@click.option("--hotword", "hotwords", multiple=True, metavar="PHRASE[:WEIGHT]", help="A word or phrase to expect, weight 8 if none is given; may be repeated.")
@click.option("--hotwords-file", type=click.Path(dir_okay=False), help="A text file of such phrases, one a line.")
@click.option("--threads", type=click.IntRange(0), default=0, help="CPU threads a process; 0: as many as there are cores, divided by the jobs.")
@precision_option
def transcribe(sources: tuple[str, ...], **options: Any) -> None:
    """Write down what is said in recordings of any length (wav, flac, ogg, opus, mp3; with the extra media also m4a, mp4, webm, ...).

    A folder stands for all audio files in it and below, "**/*.wav" for what it matches, a .jsonl manifest for the recordings that it lists
    (with offset and duration), and "-" for a file from standard input. With --output-dir what is there already is not done again. A file that
    cannot be read is reported on stderr, the others are done, and the exit code is 1. Ctrl-C writes what is recognised so far; exit code 130.
    """
    import os
    from functools import partial

    from asr.jobs import Output, check_names, find_tasks, read_rows, run, unfinished, write_rows
    from asr.transcribe import Transcriber

    formats = FORMATS if "all" in options["formats"] else options["formats"]
    output_dir = None if options["output_dir"] == "-" else options["output_dir"]
    if len(formats) > 1 and output_dir is None:
        raise click.UsageError("several formats need --output-dir")
    phrases = _hotwords(options["hotwords"], options["hotwords_file"])
    decoder = _decoder(options["model"], {name: options[name] for name in ("method", "beam_size", "alpha", "beta")}, phrases)
    num_threads = options["threads"] or max(1, len(os.sched_getaffinity(0)) // options["jobs"])
    load = partial(Transcriber, options["model"], decoder=decoder, hotwords=phrases, num_threads=num_threads, vad=options["vad"], precision=options["precision"])

    tasks = find_tasks(sources)
    output = None if output_dir is None else Output(Path(output_dir), tuple(formats))
    if output:
        check_names(tasks)
    manifest = options["manifest_out"]
    rows = None if manifest is None else read_rows(manifest)
    todo = tasks if options["overwrite"] else unfinished(tasks, output, rows)
    if len(todo) < len(tasks):
        click.echo(f"{len(tasks) - len(todo)} already done, {len(todo)} to do", err=True)
    progress = _Progress(todo) if sys.stderr.isatty() else None
    try:
        failed = todo and _report(run(load, todo, output, jobs=options["jobs"], progress=progress), output, formats[0], rows, progress)
    except KeyboardInterrupt:
        click.echo(f"Interrupted{'; run it again to go on' if output or manifest else ''}", err=True)
        raise click.exceptions.Exit(130) from None
    finally:
        if rows:
            write_rows(manifest, rows)
    if failed:
        raise click.exceptions.Exit(1)


def _report(outcomes: Iterable[Outcome], output: Output | None, format_: str, rows: dict[Any, Any] | None, progress: _Progress | None) -> bool:
    """Print the transcripts that go to stdout, and what failed; add the others to the rows of a manifest. Return whether something failed."""
    from asr.formats import write
    from asr.jobs import add_row

    failed = False
    for outcome in outcomes:
        if progress:
            progress.clear()
        if outcome.error:
            partial = f" (recognised so far: {', '.join(map(str, output.partial_paths(outcome.task).values()))})" if output and outcome.transcript else ""
            click.echo(f"Error: {outcome.error}{partial}", err=True)
            failed = True
        elif rows is not None:
            add_row(rows, outcome)
        if outcome.transcript and output is None and rows is None:
            click.echo(write(outcome.transcript, format_, name=Path(outcome.task.name).name), nl=False)
    return failed


class _Progress:
    """A line on the terminal: how much of the audio is done, how fast, and how long it will take."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        from asr.jobs import duration_s

        self._total_s = sum(map(duration_s, tasks))
        self._done_s = self._shown = 0.0
        self._start = time.monotonic()

    def __call__(self, seconds: float) -> None:
        self._done_s += seconds
        now = time.monotonic()
        if now - self._shown < 0.2:
            return
        self._shown = now
        speed = self._done_s / (now - self._start)
        left_s = round(max(0.0, self._total_s - self._done_s) / max(speed, 1e-9)) if self._done_s else 0
        share = f"{min(1.0, self._done_s / self._total_s):4.0%}, " if self._total_s else ""
        left = f", {left_s // 3600}:{left_s // 60 % 60:02}:{left_s % 60:02} left" if share and self._done_s else ""
        click.echo(f"\r\x1b[K{share}{self._done_s:.0f} s of audio done, {speed:.0f} a second{left}", err=True, nl=False)

    def clear(self) -> None:
        click.echo("\r\x1b[K", err=True, nl=False)


main.add_command(transcribe)


@main.command()
@click.argument("audio", type=click.Path())
@click.argument("text", type=click.Path())
@click.option("--model", default="english", metavar="MODEL", help="A shipped model's name, or a model folder.")
@click.option("--format", "format_", type=click.Choice(["json", "ctm", "textgrid"]), default="json", help="How to write the words and their times.")
@click.option("--threads", type=click.IntRange(0), default=0, help="CPU threads; 0: as many as there are cores.")
def align(audio: str, text: str, model: str, format_: str, threads: int) -> None:
    """Find when each word of TEXT, a file with all that is said in AUDIO, was said, and print the words with their times in seconds."""
    from asr.decoder import DecoderConfig
    from asr.formats import write
    from asr.transcribe import Transcriber

    transcriber = Transcriber(model, decoder=DecoderConfig(), num_threads=threads)
    transcript = transcriber.align(audio, Path(text).read_text(encoding="utf-8"))
    click.echo(write(transcript, format_, name=Path(audio).stem), nl=False)


@main.command()
@click.option("--model", default="english", metavar="MODEL", help="A shipped model's name, english-live for the least work, or a model folder.")
@click.option("--file", "file", type=click.Path(), help="Listen to this audio file, as if it were spoken now, instead of to a microphone.")
@click.option("--speed", type=click.FloatRange(0, min_open=True), default=1.0, help="How many times as fast to play the file.")
@click.option("--device", help="The microphone's number or part of its name, as `python -m sounddevice` lists them. [default: the system's]")
@click.option("--format", "format_", type=click.Choice(["txt", "json"]), default="txt", help="txt: a line an utterance; json: a line a result, partial ones too.")
@decoder_options
@click.option("--hotword", "hotwords", multiple=True, metavar="PHRASE[:WEIGHT]", help="A word or phrase to expect, weight 8 if none is given; may be repeated.")
@click.option("--threads", type=click.IntRange(0), default=0, help="CPU threads; 0: as many as there are cores.")
@precision_option
def listen(
    model: str,
    file: str | None,
    speed: float,
    device: str | None,
    format_: str,
    hotwords: tuple[str, ...],
    threads: int,
    precision: str,
    **decoder: Any,
) -> None:
    """Write down what is said into the microphone while it is being said, until Ctrl-C.

    What stands on the terminal's last line may still change; an utterance is final, and goes to stdout, when a pause has ended it.
    """
    import time

    import numpy as np

    from asr.audio import SAMPLE_RATE
    from asr.stream import LiveRecogniser, load_streaming_network, microphone, paced
    from asr.transcribe import Transcriber

    phrases = _hotwords(hotwords, None)
    blocks = paced(file, speed=speed) if file is not None else microphone(device)  # what is missing is missed before models load
    transcriber = Transcriber(model, decoder=_decoder(model, decoder, phrases), hotwords=phrases, num_threads=threads, precision=precision)
    recogniser = LiveRecogniser(transcriber, load_streaming_network(model, precision))
    transcriber.transcribe_batch([np.zeros(SAMPLE_RATE, np.float32)])  # what loads late, loads before the first word
    start = time.monotonic()
    try:
        for block in blocks:
            _show(recogniser.push(block), format_, time.monotonic() - start)
    except KeyboardInterrupt:
        pass
    _show(recogniser.finish(), format_, time.monotonic() - start)


def _show(results: list[Any], format_: str, time_s: float) -> None:
    """Print results, partial ones as text on the terminal's last line. time_s: since listening began."""
    import dataclasses
    import json

    for result in results:
        text = result.segment.text
        if format_ == "json":
            row = {"final": result.final, "time": round(time_s, 3), **dataclasses.asdict(result.segment)}
            click.echo(json.dumps(row, ensure_ascii=False, allow_nan=False))
            continue
        if sys.stderr.isatty():
            width = shutil.get_terminal_size().columns - 1
            click.echo(f"\r\x1b[K{'' if result.final else text[-width:]}", err=True, nl=False)
        if result.final and text:
            click.echo(text)


@main.command()
@click.argument("corpus", type=click.Choice(CORPORA))
@click.argument("source", type=click.Path())
@click.argument("manifest_dir", type=click.Path(file_okay=False))
@click.option("--download", is_flag=True, help="First download the corpus into SOURCE (an4, librispeech, ljspeech).")
@click.option("--part", "parts", multiple=True, help="librispeech: a part, such as train-clean-100; may be repeated. [default: all that are there]")
@click.option("--partial", is_flag=True, help="Accept a copy of a public corpus that is not complete.")
@click.option("--dev-fraction", type=click.FloatRange(0, 1, max_open=True), default=0.1, help="folder: the share held out as dev.")
@click.option("--name", help="folder, table, kaldi: what the manifests are called. [default: the corpus' kind]")
@click.option("--any-characters", is_flag=True, help="Accept characters other than a-z, the apostrophe and the space.")
def prepare(corpus: str, source: str, manifest_dir: str, **options: Any) -> None:
    """Read a CORPUS in its own layout at SOURCE and write JSONL manifests to MANIFEST_DIR; print their paths.

    \b
    folder        audio files with texts of the same name (a.wav, a.txt), or with transcripts.tsv or metadata.csv
    table         a CSV or TSV file, or a folder of them, with columns for the audio file and the text (Common Voice)
    kaldi         a data folder with wav.scp and text, optionally segments and utt2spk, or a folder of such folders
    an4, librispeech, ljspeech    the public corpora
    """
    prepared = _prepare(corpus, source, manifest_dir, options)
    for path in prepared.values():
        _print_findings(path, None if options["any_characters"] else "english")
        click.echo(str(path))


def _prepare(corpus: str, source: str, manifest_dir: str, options: dict[str, Any]) -> dict[str, Path]:
    from asr.corpora.an4 import download_an4, prepare_an4
    from asr.corpora.folder import prepare_folder
    from asr.corpora.kaldi import prepare_kaldi
    from asr.corpora.librispeech import PARTS, download_librispeech, prepare_librispeech
    from asr.corpora.ljspeech import download_ljspeech, prepare_ljspeech
    from asr.corpora.table import prepare_table
    from asr.text import ENGLISH

    vocabulary = None if options["any_characters"] else ENGLISH
    parts = options["parts"] or None
    if corpus in ("folder", "table", "kaldi"):
        if options["download"] or options["partial"] or parts:
            raise click.UsageError(f"--download, --partial and --part do not go with {corpus}")
        name = options["name"] or corpus
        if corpus == "folder":
            return prepare_folder(source, manifest_dir, name=name, dev_fraction=options["dev_fraction"], vocabulary=vocabulary)
        return (prepare_table if corpus == "table" else prepare_kaldi)(source, manifest_dir, name=name, vocabulary=vocabulary)
    if options["name"]:
        raise click.UsageError(f"--name does not go with {corpus}")
    expected: dict[str, Any] = {"expected": None} if options["partial"] else {}
    if corpus == "librispeech":
        if options["download"]:
            download_librispeech(source, parts or PARTS)
        return prepare_librispeech(source, manifest_dir, parts=parts, vocabulary=vocabulary, **expected)
    download, read = (download_an4, prepare_an4) if corpus == "an4" else (download_ljspeech, prepare_ljspeech)
    where = download(source) if options["download"] else source
    return read(where, manifest_dir, vocabulary=vocabulary, **expected)


def _print_findings(path: Path, vocabulary: str | None) -> int:
    """Report on stderr what the validator finds in a manifest; return the number of errors."""
    from asr.corpora.validate import validate_manifest
    from asr.text import ENGLISH

    findings = validate_manifest(path, vocabulary=ENGLISH if vocabulary == "english" else None)
    for finding in findings[:20]:
        click.echo(f"{finding.severity}: {path}:{finding.line} ({finding.id}): {finding.problem}", err=True)
    if len(findings) > 20:
        click.echo(f"... and {len(findings) - 20} more", err=True)
    return sum(finding.severity == "error" for finding in findings)


@main.command()
@click.option("--train", "train_manifests", multiple=True, required=True, metavar="MANIFEST", help="Manifest to learn from; may be repeated.")
@click.option("--dev", "dev_manifests", multiple=True, metavar="MANIFEST", help="Manifest to choose the best weights by; may be repeated.")
@click.option("--out", "run_dir", required=True, type=click.Path(file_okay=False), help="Run folder: states, logs, and best/, the model folder.")
@click.option("--resume", is_flag=True, help="Go on from the run folder's newest state, with other --epochs too.")
@click.option("--init", default="", metavar="MODEL", help="Start from a model: a shipped one's name or a folder; network and vocabulary are its own.")
@click.option("--vocabulary", type=click.Choice(["english", "data"]), default="english", help="english: a-z ' and space; data: all characters of the texts.")
@click.option("--lexicon", default="", type=click.Path(dir_okay=False), help="Words and pronunciations, a tab between, a character a sound: learn to write these too.")
@click.option("--cell", type=click.Choice(CELLS), default="gru", help="Recurrent cell.")
@click.option("--layers", type=click.IntRange(1), default=3, help="Recurrent layers.")
@click.option("--hidden", type=click.IntRange(1), default=256, help="Units a layer and direction.")
@click.option("--one-directional", is_flag=True, help="Forward in time only and normalised as it goes, for live recognition.")
@click.option("--subsampling", type=click.Choice(["2", "4", "8"]), default="4", help="10-ms frames to one output frame.")
@click.option("--dropout", type=click.FloatRange(0, 1, max_open=True), default=0.2, help="Between layers.")
@click.option("--epochs", type=click.IntRange(1), default=60, help="Passes over the data.")
@click.option("--batch-seconds", type=float, default=100.0, help="Seconds of audio a step, padding counted.")
@click.option("--accumulation", type=click.IntRange(1), default=1, help="Pieces a step's batch is computed in, to save memory.")
@click.option("--learning-rate", type=float, default=2e-3, help="The peak.")
@click.option("--warmup-epochs", type=float, default=2.0, help="Epochs until the peak.")
@click.option("--consistency", type=click.FloatRange(0), default=0.0, help="Weight of CR-CTC's consistency loss, 0.2 is usual; doubles the work.")
@click.option("--mmi", type=click.FloatRange(0), default=1.0, help="Weight of MMI's denominator in the loss of the pronunciations; 0: CTC alone.")
@click.option("--noise-dir", default="", type=click.Path(), help="Folder of wav files mixed into a quarter of the utterances at 5 to 30 dB.")
@click.option("--patience", type=click.IntRange(0), default=0, help="Validations without a better dev WER until the run stops; 0: never.")
@click.option("--seed", type=click.IntRange(0), default=0)
@click.option("--device", default="cpu", help="cpu or cuda.")
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto", help="auto: bfloat16 where the processor has it, such as a CPU with AVX-512 BF16 or AMX, about twice as fast there; else float32.")
@click.option("--threads", type=click.IntRange(0), default=0, help="CPU threads; 0: as many as there are cores.")
@click.option("--workers", type=click.IntRange(0), default=1, help="Processes that read and augment audio.")
def train(**options: Any) -> None:
    """Train a model; print its folder and dev WER. Start it with torchrun for several GPUs or machines."""
    from asr.train import train as run_training

    config = _train_config(options)
    result = run_training(config, options["run_dir"], resume=options["resume"])
    click.echo(f"{result.model_dir}\tdev WER {100 * result.dev_wer:.2f} %\t{result.epochs} epochs\t{result.hours:.2f} h")


def _train_config(options: dict[str, Any]) -> Any:
    import json

    from asr.augment import AugmentConfig
    from asr.checkpoint import load_model_folder
    from asr.lexicon import read_lexicon
    from asr.logmel import FeatureConfig
    from asr.manifest import read_manifest
    from asr.model import ModelConfig
    from asr.text import ENGLISH, Vocabulary
    from asr.train import TrainConfig

    vocabulary, sounds, features = ENGLISH, None, FeatureConfig(normalisation="running" if options["one_directional"] else "utterance")
    if options["vocabulary"] == "data":
        vocabulary = Vocabulary.from_texts(u.text for path in options["train_manifests"] for u in read_manifest(path))
    started = Path(options["run_dir"]) / "config.json"
    if options["init"] and options["resume"] and started.is_file():  # the model that the run began with is no longer needed
        try:
            run = json.loads(started.read_text(encoding="utf-8"))
            features, vocabulary = FeatureConfig(**run["features"]), Vocabulary(tuple(run["vocabulary"]))
            sounds = Vocabulary(tuple(run["sounds"])) if run.get("sounds") else None
            network = ModelConfig(**{**run["model"], "dropout": options["dropout"]})
        except (ValueError, KeyError, TypeError) as error:
            raise click.ClickException(f"{started}: not the config of a run ({error}); start a new run") from error
    elif options["init"]:
        folder = load_model_folder(options["init"])
        features = folder.features
        vocabulary = folder.vocabulary if options["vocabulary"] == "english" else vocabulary
        sounds = folder.sounds if vocabulary == folder.vocabulary else None  # another language sounds differently
        sizes = {"vocabulary_size": len(vocabulary), "num_sounds": len(sounds or ())}
        network = ModelConfig(**{**folder.network, **sizes, "dropout": options["dropout"]})
    else:
        sounds = read_lexicon(options["lexicon"]).sounds if options["lexicon"] else None
        network = ModelConfig(
            vocabulary_size=len(vocabulary),
            num_sounds=len(sounds or ()),
            cell=options["cell"],
            bidirectional=not options["one_directional"],
            num_layers=options["layers"],
            hidden_size=options["hidden"],
            subsampling=int(options["subsampling"]),
            dropout=options["dropout"],
        )
    same = (
        "train_manifests", "dev_manifests", "lexicon", "init", "noise_dir", "seed", "epochs", "accumulation", "learning_rate", "warmup_epochs",
        "consistency", "mmi", "precision", "device", "patience",
    )  # fmt: skip
    return TrainConfig(
        **{name: options[name] for name in same},
        vocabulary=vocabulary.tokens,
        sounds=sounds.tokens if sounds else (),
        features=features,
        model=network,
        augment=AugmentConfig(noise_probability=0.25 if options["noise_dir"] else 0.0),
        batch_s=options["batch_seconds"],
        num_threads=options["threads"],
        num_workers=options["workers"],
    )


@main.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--weight", "weights", type=click.FloatRange(0), multiple=True, help="How much a MODEL counts, once for each in their order. [default: all alike]")
@click.option("--out", required=True, type=click.Path(file_okay=False), help="The model folder to write.")
def average(models: tuple[str, ...], weights: tuple[float, ...], out: str) -> None:
    """Write the mean of several MODELs' weights, which started from the same ones: of a run and what it began with, or of several runs.

    It often makes fewer errors than each of them. Decoder, language model and lexicon are the last MODEL's.
    """
    from asr.average import average_models

    average_models(models, out, weights=weights or None)
    click.echo(out)


@main.command()
@click.argument("manifests", nargs=-1, required=True, metavar="MANIFEST...")
@click.option("--model", default="english", metavar="MODEL", help="A shipped model's name, or a model folder.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Also write a JSON list, an object a manifest; rates are fractions.")
@click.option("--worst", type=click.IntRange(0), default=0, help="Show the alignments of this many utterances with most errors.")
@click.option("--confusions", type=click.IntRange(0), default=0, help="Show this many of the most frequent confusions.")
@click.option("--by-speaker", is_flag=True, help="Draw whole speakers for the interval, not utterances.")
@click.option("--batch-seconds", type=click.FloatRange(0, min_open=True), default=120.0, help="Seconds of audio recognised at once.")
@decoder_options
@click.option("--threads", type=click.IntRange(0), default=0, help="CPU threads; 0: as many as there are cores.")
@precision_option
def evaluate(
    manifests: tuple[str, ...],
    model: str,
    json_path: str | None,
    worst: int,
    confusions: int,
    by_speaker: bool,
    batch_seconds: float,
    threads: int,
    precision: str,
    **decoder: Any,
) -> None:
    """Transcribe the utterances of each MANIFEST and print the word and character error rates with 95 % intervals."""
    import json

    from asr.evaluate import evaluate_manifest, frequent_confusions, results_table, worst_utterances
    from asr.storage import write_atomically
    from asr.transcribe import Transcriber
    from asr.wer import kaldi_line

    transcriber = Transcriber(model, decoder=_decoder(model, decoder), num_threads=threads, precision=precision)
    over = "speakers" if by_speaker else "utterances"
    results = [evaluate_manifest(transcriber, path, batch_seconds=batch_seconds, interval_over=over) for path in manifests]  # type: ignore[arg-type]
    for result in results:
        click.echo(f"{result.manifest}\n{kaldi_line(result.words, 'WER')}\n{kaldi_line(result.characters, 'CER')}")
        for report in (worst_utterances(result, worst), frequent_confusions(result, confusions) if confusions else ""):
            if report:
                click.echo(report)
    click.echo(results_table(results))
    if json_path:
        text = json.dumps([result.to_json() for result in results], ensure_ascii=False, indent=1, allow_nan=False)
        write_atomically(Path(json_path), (text + "\n").encode())


@main.command()
@click.argument("source", type=click.Path(exists=True), metavar="AUDIO|RUN")
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="The picture to write: .png, .svg or .pdf.")
@click.option("--model", default="english", metavar="MODEL", help="AUDIO: a shipped model's name, or a model folder.")
@click.option("--text", help="AUDIO: what is said in it, to be aligned. [default: what the model recognises]")
@click.option("--offset", type=click.FloatRange(0), default=0.0, help="AUDIO: where to begin, in seconds.")
@click.option("--duration", type=click.FloatRange(0, min_open=True), help="AUDIO: how many seconds. [default: to the end]")
def plot(source: str, out: str, model: str, text: str | None, offset: float, duration: float | None) -> None:
    """Draw a recording as a model sees it (waveform, log-mel, tokens' probabilities, words), or the curves of a training run."""
    from asr.audio import load_audio
    from asr.plot import plot_recording, plot_run
    from asr.transcribe import Transcriber

    if Path(source).is_dir():
        plot_run(source, out)
    else:
        waveform = load_audio(source, offset_s=offset, duration_s=duration)
        plot_recording(Transcriber(model), waveform, out, text=text, start_s=offset)
    click.echo(out)


@main.command()
@click.argument("results", type=click.Path(dir_okay=False), metavar="RESULTS.json")
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="The HTML page to write.")
@click.option("--worst", type=click.IntRange(0), default=20, help="Utterances with most errors to show, with their audio.")
def report(results: str, out: str, worst: int) -> None:
    """Make an HTML page, one file that needs no network, of what `asr evaluate --json RESULTS.json` wrote."""
    from asr.report import make_report, read_results
    from asr.storage import write_atomically

    write_atomically(out, make_report(read_results(results), num_worst=worst).encode())
    click.echo(out)


@main.group(cls=Commands)
def lm() -> None:
    """Train, inspect, score with and tune language models."""


@lm.command("train")
@click.argument("texts", nargs=-1, required=True, type=click.Path(), metavar="TEXT...")
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="File to write: .arpa or .arpa.gz for ARPA, else the compact form.")
@click.option("--order", type=click.IntRange(2, 6), default=3, help="Words in an n-gram.")
@click.option("--min-count", "min_counts", type=click.IntRange(1), multiple=True, help="How often an n-gram must occur, given once for each order from 1 on. [default: 1]")
@click.option("--words", type=click.IntRange(1), help="Keep so many of the most frequent words. [default: all]")
@click.option("--prune", type=click.FloatRange(0), default=0.0, help="Entropy pruning threshold, 1e-9 to 1e-7 are usual.")
def lm_train(texts: tuple[str, ...], out: str, order: int, min_counts: tuple[int, ...], words: int | None, prune: float) -> None:
    """Train a modified Kneser-Ney model on TEXTs and print its size.

    A TEXT is a text file, plain, .gz or .xz, a normalised sentence a line, or a manifest, each of whose texts counts once.
    """
    from itertools import chain

    from asr.lm import save, write_arpa
    from asr.lm import train as train_lm

    model = train_lm(chain.from_iterable(map(_sentences, texts)), order=order, min_counts=min_counts, vocabulary_size=words, prune_threshold=prune)
    (write_arpa if out.endswith((".arpa", ".arpa.gz")) else save)(model, out)
    click.echo(f"{out}\torder {order}\tn-grams {' '.join(map(str, model.num_ngrams))}\t{Path(out).stat().st_size / 1e6:.1f} MB")


@lm.command("train-recurrent")
@click.argument("texts", nargs=-1, required=True, type=click.Path(), metavar="TEXT...")
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="File to write; until it is finished, the folder FILE.state holds what --resume needs.")
@click.option("--words", type=click.IntRange(1), default=30_000, help="Know so many of the most frequent words.")
@click.option("--embedding", type=click.IntRange(1), default=256, help="Numbers a word.")
@click.option("--hidden", type=click.IntRange(1), default=512, help="Units of the recurrent layer.")
@click.option("--init", metavar="FILE", type=click.Path(dir_okay=False), help="Start from this recurrent language model, with its words and sizes.")
@click.option("--passes", type=click.FloatRange(0, min_open=True), default=1.0, help="Passes over the text, also less than one.")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), default=2e-3, help="The peak.")
@click.option("--seed", type=click.IntRange(0), default=0)
@click.option("--threads", type=click.IntRange(0), default=0, help="CPU threads; 0: as many as there are cores.")
@click.option("--resume", is_flag=True, help="Go on from the newest state in FILE.state, with the same texts and settings.")
def lm_train_recurrent(texts: tuple[str, ...], out: str, init: str | None, resume: bool, **options: Any) -> None:
    """Train a recurrent language model (a GRU) on TEXTs, as `asr lm train` takes them, and print its size.

    It remembers a sentence from its first word on, and is used together with an n-gram model. Millions of words take hours. With --init, a model
    learns further texts, such as those of a field.
    """
    from itertools import chain

    from asr.rnnlm_train import RnnlmConfig
    from asr.rnnlm_train import train as train_recurrent

    names = {"words": "vocabulary_size", "embedding": "embedding_size", "hidden": "hidden_size", "threads": "num_threads"}
    config = RnnlmConfig(**{names.get(name, name): value for name, value in options.items()})
    model = train_recurrent(chain.from_iterable(map(_sentences, texts)), config, out, init=init, resume=resume)
    embedding_size, hidden_size = model.projection.shape
    click.echo(f"{out}\twords {len(model.words)}\tembedding {embedding_size}\thidden {hidden_size}\t{Path(out).stat().st_size / 1e6:.1f} MB")


def _sentences(path: str) -> Iterable[str]:
    from asr.lm import read_sentences
    from asr.manifest import read_manifest

    return dict.fromkeys(utterance.text for utterance in read_manifest(path)) if path.endswith(".jsonl") else read_sentences(path)


@lm.command("info")
@click.argument("model", type=click.Path())
def lm_info(model: str) -> None:
    """Print the order and the number of n-grams of a language model file, or the sizes of a recurrent one."""
    from asr.lm import load
    from asr.rnnlm import is_recurrent
    from asr.rnnlm import load as load_recurrent

    if is_recurrent(model):
        recurrent = load_recurrent(model)
        embedding_size, hidden_size = recurrent.projection.shape
        click.echo(f"words\t{len(recurrent.words)}\nembedding\t{embedding_size}\nhidden\t{hidden_size}")
        return
    loaded = load(model)
    click.echo(f"order\t{loaded.order}\nwords\t{len(loaded.words)}\nn-grams\t{' '.join(map(str, loaded.num_ngrams))}")


@lm.command("score")
@click.argument("model", type=click.Path())
@click.argument("texts", nargs=-1, required=True, type=click.Path(), metavar="TEXT...")
def lm_score(model: str, texts: tuple[str, ...]) -> None:
    """Print the perplexity of each TEXT, as `asr lm train` takes them, unknown words and sentence ends included."""
    from asr.lm import load, perplexity

    loaded = load(model)
    for text in texts:
        found = perplexity(loaded, _sentences(text))
        click.echo(f"{text}\tperplexity {found.perplexity:.2f}\twords {found.num_words}\tunknown {found.num_unknown}\tsentences {found.num_sentences}")


@lm.command("tune")
@click.argument("manifests", nargs=-1, required=True, metavar="MANIFEST...")
@click.option("--model", default="english", metavar="MODEL", help="Model folder with a language model; the best settings are written into it.")
@click.option("--lm", "lm_path", type=click.Path(dir_okay=False), help="First put this language model into the model folder.")
@click.option("--rnnlm", "rnnlm_path", type=click.Path(dir_okay=False), help="And this one, by `asr lm train-recurrent`; its weight is tuned too.")
@click.option("--trials", type=click.IntRange(0), default=60, help="Settings to try beside the model's own: half drawn at random, half near the best of these.")
@click.option("--beam-size", type=click.IntRange(1, 10_000), default=100, help="Prefixes kept.")
@click.option("--seed", type=click.IntRange(0), default=0)
def lm_tune(manifests: tuple[str, ...], model: str, lm_path: str | None, rnnlm_path: str | None, trials: int, beam_size: int, seed: int) -> None:
    """Find the decoder's weights for a model by random search on dev MANIFESTs; print every trial, best last."""
    from asr import lm, rnnlm
    from asr.checkpoint import LM_NAME, RNNLM_NAME, find_model, save_decoder_settings
    from asr.tune import tune

    if lm_path:
        lm.save(lm.load(lm_path), find_model(model) / LM_NAME)
    if rnnlm_path:
        rnnlm.save(rnnlm.load(rnnlm_path), find_model(model) / RNNLM_NAME)
    tuning = tune(model, manifests, num_trials=trials, beam_size=beam_size, seed=seed)
    for trial in tuning.trials:
        config = trial.config
        click.echo(f"WER {100 * trial.wer:.2f} %\t{config.method}\talpha {config.alpha:.3f}\tbeta {config.beta:.3f}\tunknown penalty {config.unknown_penalty:.2f}\trecurrent {config.rescore_weight:.2f}")
    click.echo(f"expected calibration error of the words' confidence\t{tuning.calibration_error:.3f}")
    save_decoder_settings(model, tuning.settings)


@main.command()
@click.option("--model", default="english", metavar="MODEL", help="A shipped model's name, or a model folder.")
@click.option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 for all that this machine has.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="0: any that is free.")
@click.option("--api-key", envvar="ASR_API_KEY", help="Answer only those who show this key. Better given as ASR_API_KEY: others see a command line.")
@click.option("--allow-host", "hosts", multiple=True, metavar="NAME", help="A name by which the server may be called, beside localhost and addresses; may be repeated.")
@click.option("--language", default="en", help="The model's language, ISO 639-1.")
@click.option("--workers", "num_workers", type=click.IntRange(1), default=1, help="Processes that recognise, a recording each.")
@click.option("--threads", "num_threads", type=click.IntRange(0), default=0, help="CPU threads a process; 0: as many as there are cores.")
@precision_option
@click.option("--queue", "queue_size", type=click.IntRange(1), default=64, help="Requests in hand at once; the next is told to come again (503).")
@click.option("--streams", "num_streams", type=click.IntRange(0), default=4, help="Live streams at once.")
@click.option("--max-megabytes", type=click.FloatRange(0, min_open=True), default=200.0, help="Largest upload.")
@click.option("--max-minutes", type=click.FloatRange(0, min_open=True), default=120.0, help="Longest recording.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0, min_open=True), default=300.0, help="Seconds that the recognition of one recording may take.")
def serve(model: str, host: str, port: int, hosts: tuple[str, ...], max_megabytes: float, max_minutes: float, **options: Any) -> None:
    """Answer transcription requests as OpenAI's clients send them, at http://HOST:PORT/v1, and show a page at http://HOST:PORT/."""
    import asyncio

    from asr.checkpoint import load_model_folder

    name = load_model_folder(model).name
    try:
        from asr.server.app import ServerConfig
        from asr.server.app import serve as serve_app
    except ModuleNotFoundError as error:
        raise click.ClickException(f"serving needs the package {error.name}; install the extra: pip install 'asr[server]'") from error
    config = ServerConfig(model, name, hosts=hosts, max_bytes=round(max_megabytes * 1e6), max_s=60 * max_minutes, **options)
    asyncio.run(serve_app(config, host=host, port=port))


@main.group()
def export() -> None:
    """Write a model in the format of another runtime."""


@export.command("onnx")
@click.argument("model")
@click.argument("out", type=click.Path(dir_okay=False))
def export_to_onnx(model: str, out: str) -> None:
    """Write MODEL, a shipped model's name or a model folder, as an ONNX file: features and lengths in, log-probabilities and lengths out."""
    from asr.checkpoint import load_model_folder
    from asr.export import export_onnx

    export_onnx(load_model_folder(model), out)
    click.echo(f"{out}\t{Path(out).stat().st_size / 1e6:.1f} MB")


@main.command()
@click.argument("thing", type=click.Path(), metavar="MODEL|MANIFEST|AUDIO")
def info(thing: str) -> None:
    """Describe a model, check a manifest (exit code 1 if it has errors), or describe an audio file."""
    path = Path(thing)
    if path.suffix in (".jsonl", ".json"):
        from asr.manifest import read_manifest

        num_errors = _print_findings(path, None)
        if num_errors:
            raise click.ClickException(f"{path}: {num_errors} errors")
        utterances = read_manifest(path)
        hours = sum(utterance.duration for utterance in utterances) / 3600
        words = sum(len(utterance.text.split()) for utterance in utterances)
        characters = "".join(sorted({c for utterance in utterances for c in utterance.text}))
        click.echo(f"utterances\t{len(utterances)}\nhours\t{hours:.3f}\nwords\t{words}\ncharacters\t{characters!r}")
        click.echo(f"speakers\t{len({utterance.speaker for utterance in utterances if utterance.speaker})}")
    elif path.is_file():
        from asr.audio import audio_duration_s

        click.echo(f"duration\t{audio_duration_s(path):.3f} s")
    else:
        from asr.checkpoint import CARD_NAME, load_model_folder

        folder = load_model_folder(thing)
        for name, value in {"path": folder.path, **folder.network, **folder.info}.items():
            click.echo(f"{name}\t{value}")
        card = folder.path / CARD_NAME
        click.echo(f"\n{card.read_text(encoding='utf-8')}" if card.is_file() else "")


if __name__ == "__main__":
    main()
