"""Training: the loop around loss.backward(), with everything that keeps a long run safe.

A run is a folder: config.json, log.jsonl, tensorboard/, state-STEP.pt to resume from, and best/, the model folder of the best dev WER.
All randomness is a function of the seed and the position in the run, so a resumed run repeats the uninterrupted one exactly.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.utils.data import DataLoader

from asr.audio import SAMPLE_RATE, AudioError, load_audio
from asr.augment import AugmentConfig, spec_augment, warp_frequencies, weigh_silence
from asr.checkpoint import (
    G2P_NAME,
    LEXICON_NAME,
    LM_NAME,
    RNNLM_NAME,
    CheckpointError,
    copy_decoder,
    load_model_folder,
    load_network,
    load_training_state,
    read_decoder_settings,
    save_model_folder,
    save_training_state,
)
from asr.ctc import ctc_loss, min_frames
from asr.data import Batch, SpeechDataset, collate, epoch_batches, utterance_seed
from asr.decoder import DecoderConfig, decode
from asr.features import LogMel, inside
from asr.g2p import complete
from asr.gru import fast_bfloat16
from asr.lexicon import Lexicon, read_lexicon, write_lexicon
from asr.lm import LanguageModel
from asr.lm import load as load_lm
from asr.logmel import FeatureConfig, num_frames
from asr.malloc import keep_memory
from asr.manifest import Utterance, read_manifest
from asr.mmi import bigram, denominator, text_log_probs
from asr.model import AcousticModel, ModelConfig, output_length, take_over
from asr.muon import Muon
from asr.rnnlm import RecurrentLanguageModel
from asr.rnnlm import load as load_rnnlm
from asr.storage import remove_leftovers, write_atomically
from asr.teacher import Student, TeacherFrames, teacher_loss
from asr.text import ENGLISH, Vocabulary
from asr.transcribe import decoder_config
from asr.voices import Voices
from asr.voices import load as load_voices
from asr.wer import ErrorCounts, count_word_errors

logger = logging.getLogger(__name__)

MAX_BAD_STEPS = 10
MAX_UNIFORM_SHARE = 1.5  # an epoch's loss over that of a network that guesses every frame's token; above it training has diverged
LOADER_TIMEOUT_S = 600.0  # to read and augment one batch
OPTIMISERS = ("adamw", "muon")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")


class TrainingError(ValueError):
    """Training that cannot start or go on; the message says why and what to change. States written before stay readable."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything a run depends on. Manifests are paths; the vocabulary is ENGLISH unless `vocabulary` gives its tokens.

    sounds: tokens of a second vocabulary, in which the network learns to write the words' pronunciations beside their spellings, with a
    loss of their own; lexicon: the file that they are in, by default that of `init`.
    epochs: passes over the data, the last at a learning rate of almost zero. batch_s: seconds of audio a step, padding counted, over all
    processes. optimiser: "muon" for the weights of the convolutions and the recurrent layers, with AdamW for the rest, or "adamw" for all.
    accumulation: pieces a step's batch is cut into, to save memory. learning_rate: the peak, reached after warmup_epochs, then
    falling as a cosine. clip_norm: largest norm of the gradient. ema_decay: of the running average of the weights, which is what is
    validated and saved; 0 turns it off. consistency: weight of the symmetric KL divergence between two differently masked views of an
    utterance (CR-CTC, Yao et al. 2024); 0 turns it off. mmi: weight of the denominator of lattice-free maximum mutual information
    (asr/mmi.py) in the loss of the pronunciations; 0 leaves CTC. spelling: weight of the CTC loss of the spellings where pronunciations are
    learned too. teacher: folder of another network's frames of the same speech (asr/teacher.py), which the network learns to foretell beside
    its outputs; teacher_weight: of their squared error in the loss; teacher_delay: so many output frames after their time they are foretold. voices:
    file that recipes/english/voices.py wrote of the teacher's frames, for AugmentConfig.voice_change. precision: of the products; "auto" is bfloat16
    where the processor has it, else float32. Beside bfloat16 a GPU's recurrences are float32. init: a model folder to start from, its language
    model included, with which dev WER is then measured. patience: validations without a better dev
    WER before the run stops; 0 never. validate_epochs: epochs from one validation to the next. save_minutes: between states.
    """

    train_manifests: tuple[str, ...]
    dev_manifests: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ENGLISH.tokens
    sounds: tuple[str, ...] = ()
    lexicon: str = ""
    features: FeatureConfig = field(default_factory=FeatureConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    noise_dir: str = ""
    init: str = ""
    seed: int = 0
    epochs: int = 60
    batch_s: float = 100.0
    accumulation: int = 1
    optimiser: str = "muon"
    learning_rate: float = 2e-3
    warmup_epochs: float = 2.0
    weight_decay: float = 1e-2
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    consistency: float = 0.0
    mmi: float = 1.0
    spelling: float = 1.0
    teacher: str = ""
    teacher_weight: float = 1.0
    teacher_delay: int = 0
    voices: str = ""
    precision: str = "float32"
    device: str = "cpu"
    num_workers: int = 1
    num_threads: int = 0
    validate_epochs: int = 1
    patience: int = 0
    save_minutes: float = 5.0

    def __post_init__(self) -> None:
        if not self.train_manifests:
            raise TrainingError("train_manifests: expected at least one manifest")
        if self.optimiser not in OPTIMISERS:
            raise TrainingError(f"optimiser: expected one of {', '.join(OPTIMISERS)}, found {self.optimiser!r}")
        if self.precision not in PRECISIONS:
            raise TrainingError(f"precision: expected one of {', '.join(PRECISIONS)}, found {self.precision!r}")
        for name in ("epochs", "batch_s", "accumulation", "learning_rate", "clip_norm", "validate_epochs"):
            if not 0 < getattr(self, name) < math.inf:
                raise TrainingError(f"{name}: expected more than 0, found {getattr(self, name)!r}")
        for name in ("seed", "warmup_epochs", "weight_decay", "consistency", "mmi", "spelling", "teacher_weight", "teacher_delay", "num_workers", "num_threads", "patience"):
            if not 0 <= getattr(self, name) < math.inf:
                raise TrainingError(f"{name}: expected 0 or more, found {getattr(self, name)!r}")
        if not 0 <= self.ema_decay < 1:
            raise TrainingError(f"ema_decay: expected 0 <= ema_decay < 1, found {self.ema_decay!r}")
        if self.features.sample_rate != SAMPLE_RATE:
            raise TrainingError(f"features.sample_rate: audio is read at {SAMPLE_RATE} Hz, found {self.features.sample_rate!r}")
        if self.model.num_mels != self.features.num_mels:
            raise TrainingError(f"model.num_mels: {self.model.num_mels} for features with {self.features.num_mels} mel bins")
        if self.model.vocabulary_size != len(self.vocabulary):
            raise TrainingError(f"model.vocabulary_size: {self.model.vocabulary_size} for {len(self.vocabulary)} tokens")
        if self.model.num_sounds != len(self.sounds):
            raise TrainingError(f"model.num_sounds: {self.model.num_sounds} for {len(self.sounds)} sounds")
        if bool(self.voices) != bool(self.augment.voice_change):
            raise TrainingError(f"voices: expected a file where augment.voice_change is more than 0, and only there, found {self.voices!r} for {self.augment.voice_change:g}")
        if self.sounds and not (self.lexicon or self.init):
            raise TrainingError("lexicon: expected a lexicon file, or a model to start from that has one, to learn pronunciations from")


@dataclass(frozen=True)
class TrainResult:
    """model_dir: the model folder written last or, with dev manifests, the best; dev_wer: its WER as a fraction, NaN without."""

    model_dir: Path
    dev_wer: float
    epochs: int
    steps: int
    hours: float


@dataclass
class Progress:
    """Where a run stands: `batch` batches of epoch `epoch` are done, `step` steps in all; what the guards and validation remember."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    bad_steps: int = 0
    best_wer: float = math.inf
    validations_since_best: int = 0
    audio_s: float = 0.0
    seconds: float = 0.0


@dataclass
class Run:
    """The moving parts of a run, made by _start."""

    config: TrainConfig
    run_dir: Path
    vocabulary: Vocabulary
    sounds: Vocabulary | None
    lexicon: Lexicon | None
    network: AcousticModel
    student: Student | None
    wrapped: Any  # the student if there is one, else the network; in several processes DistributedDataParallel around it
    average: AcousticModel
    log_mel: LogMel
    optimisers: list[torch.optim.Optimizer]
    scaler: GradScaler
    train_set: SpeechDataset
    bigram: Tensor | None
    voices: Voices | None
    dev_sets: dict[str, list[Utterance]]
    progress: Progress
    rank: int
    world: int
    device: torch.device
    tensorboard: Any
    decoder: DecoderConfig
    lm: LanguageModel | None
    rescorer: RecurrentLanguageModel | None


def train(config: TrainConfig, run_dir: str | os.PathLike[str], *, resume: bool = False) -> TrainResult:
    """Train a model and return where it is. Under torchrun, each process calls this with the same config.

    resume: go on from the newest readable state in run_dir, for more or fewer epochs too; a folder without one, or one of another config, is an error.
    Raises TrainingError, CheckpointError, and the errors of manifests, audio and text.
    """
    run_dir = Path(run_dir)
    _bound_memory()
    with _process_group(config) as (rank, world, device):
        run = _start(config, run_dir, resume=resume, rank=rank, world=world, device=device)
        try:
            while run.progress.epoch < config.epochs:
                if config.patience and run.progress.validations_since_best >= config.patience:
                    logger.info("stopped early: %d validations without a better dev WER", config.patience)
                    break
                _train_epoch(run)
                _end_epoch(run)
        finally:
            if run.tensorboard is not None:
                run.tensorboard.close()
        if not run.dev_sets:
            _save_best(run)
        progress = run.progress
        wer = progress.best_wer if run.dev_sets else math.nan
        return TrainResult(run_dir / "best", wer, progress.epoch, progress.step, progress.seconds / 3600)


def learning_rate(config: TrainConfig, epochs_done: float) -> float:
    """Return the learning rate after `epochs_done` epochs, a fraction too: a straight rise, then half a cosine to zero."""
    if epochs_done < config.warmup_epochs:
        return config.learning_rate * epochs_done / config.warmup_epochs
    share = (epochs_done - config.warmup_epochs) / max(config.epochs - config.warmup_epochs, 1e-9)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


# --- starting ---------------------------------------------------------------------------------------------------------------------


def _bound_memory() -> None:
    """Keep the memory of a run from growing with the shapes of its batches, of which hardly two are alike.

    oneDNN keeps code and workspace of up to 1,024 shapes of products, unless told otherwise before its first one.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    keep_memory()


@contextlib.contextmanager
def _process_group(config: TrainConfig) -> Iterator[tuple[int, int, torch.device]]:
    """Join the processes that torchrun started, or be the only one; yield (rank, world size, device)."""
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = config.device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        raise TrainingError(f"device: {config.device!r} was asked for and torch sees no CUDA device; use --device cpu")
    device = torch.device("cuda", local_rank) if cuda and world > 1 else torch.device(config.device)
    if world == 1:
        yield 0, 1, device
        return
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield dist.get_rank(), world, device
    finally:
        dist.destroy_process_group()


def _start(config: TrainConfig, run_dir: Path, *, resume: bool, rank: int, world: int, device: torch.device) -> Run:
    vocabulary = Vocabulary(config.vocabulary)
    sounds = Vocabulary(config.sounds) if config.sounds else None
    if not resume and any(run_dir.glob("state-*.pt")):
        raise TrainingError(f"{run_dir}: holds a run already; resume it, or choose another folder")
    train_utterances = _read_all(config.train_manifests)
    lexicon = _read_lexicon(config, run_dir, train_utterances, resume=resume) if sounds else None
    _check_files([*train_utterances, *_read_all(config.dev_manifests)])
    train_set = _train_set(config, train_utterances, vocabulary, lexicon=lexicon, sounds=sounds)
    torch.manual_seed(config.seed)
    network = (AcousticModel(config.model) if resume else _initial_network(config, vocabulary, sounds)).to(device)
    student = Student(network, train_set.teacher.size).to(device) if train_set.teacher else None
    optimisers = _optimisers(config, network, student)
    average = AcousticModel(config.model).to(device).eval().requires_grad_(False)
    average.load_state_dict(network.state_dict())
    progress = Progress()
    scaler = GradScaler(device.type, enabled=config.precision == "float16")
    if resume:
        progress = _restore(load_training_state(run_dir), config, network, student, average, optimisers, scaler)
        logger.info("resumed at epoch %d, step %d", progress.epoch, progress.step)
    tensorboard = _prepare_folder(config, run_dir, progress, vocabulary=vocabulary, lexicon=lexicon, resume=resume) if rank == 0 else None
    if world > 1:
        dist.barrier()  # until the run folder is prepared
    decoder, lm, rescorer = _read_search(run_dir / "best")
    trained: nn.Module = student or network
    wrapped: nn.Module = nn.parallel.DistributedDataParallel(trained) if world > 1 else trained
    return Run(
        config=config,
        run_dir=run_dir,
        vocabulary=vocabulary,
        sounds=sounds,
        lexicon=lexicon,
        network=network,
        student=student,
        wrapped=wrapped,
        average=average,
        log_mel=LogMel(config.features).to(device),
        optimisers=optimisers,
        scaler=scaler,
        train_set=train_set,
        bigram=bigram(train_set.sounds, len(sounds)).to(device) if sounds and config.mmi else None,
        voices=_read_voices(config, train_set.teacher, device),
        dev_sets=_read_dev_sets(config.dev_manifests, vocabulary),
        progress=progress,
        rank=rank,
        world=world,
        device=device,
        tensorboard=tensorboard,
        decoder=decoder,
        lm=lm,
        rescorer=rescorer,
    )


def _prepare_folder(
    config: TrainConfig, run_dir: Path, progress: Progress, *, vocabulary: Vocabulary, lexicon: Lexicon | None, resume: bool
) -> Any:
    """Tidy the run folder up, write what does not change any more, and return the TensorBoard log, if any."""
    run_dir.mkdir(parents=True, exist_ok=True)
    remove_leftovers(run_dir)
    remove_leftovers(run_dir / "best")
    _trim_log(run_dir / "log.jsonl", progress)
    if config.init and not resume and (folder := load_model_folder(config.init)).vocabulary == vocabulary:
        copy_decoder(folder, run_dir / "best")
    write_atomically(run_dir / "config.json", (json.dumps(dataclasses.asdict(config), indent=2) + "\n").encode())
    if lexicon is not None:
        for folder_path in (run_dir, run_dir / "best"):
            folder_path.mkdir(exist_ok=True)
            write_lexicon(lexicon, folder_path / LEXICON_NAME)
    return _tensorboard(run_dir, progress.step)


def _read_search(best: Path) -> tuple[DecoderConfig, LanguageModel | None, RecurrentLanguageModel | None]:
    """Return how validation decodes: with the settings and the language models that came from `init`, greedily without."""
    settings = read_decoder_settings(best)
    if not (settings and (best / LM_NAME).exists()):
        return DecoderConfig(), None, None
    decoder = decoder_config(best, settings)
    rescorer = load_rnnlm(best / RNNLM_NAME) if decoder.rescore_weight and (best / RNNLM_NAME).exists() else None
    return decoder, load_lm(best / LM_NAME), rescorer


def _optimisers(config: TrainConfig, network: AcousticModel, student: Student | None) -> list[torch.optim.Optimizer]:
    """Return Muon for the weights of convolutions and recurrences, if it is asked for, and AdamW for all that it leaves."""
    gates = {"gru": 3, "lstm": 4}.get(config.model.cell, 1)
    parameters = dict(network.named_parameters())
    matrices = {name: p for name, p in parameters.items() if p.dim() > 1 and not name.startswith("output.")}
    optimisers: list[torch.optim.Optimizer] = []
    if student is not None:
        parameters |= dict(student.foretelling.named_parameters("foretelling"))
    if config.optimiser == "muon":
        groups: list[dict[str, Any]] = [
            {"params": [p for name, p in matrices.items() if name.startswith("layers.")], "num_blocks": gates},
            {"params": [p for name, p in matrices.items() if not name.startswith("layers.")]},
        ]
        dtype = torch.bfloat16 if fast_bfloat16(config.device) else torch.float32
        optimisers.append(Muon(groups, lr=config.learning_rate, weight_decay=config.weight_decay, dtype=dtype))
        parameters = {name: p for name, p in parameters.items() if name not in matrices}
    groups = [
        {"params": [p for p in parameters.values() if p.dim() > 1]},
        {"params": [p for p in parameters.values() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    fused = config.device.startswith("cuda")
    adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=fused)
    return [*optimisers, adamw]


def _read_lexicon(config: TrainConfig, run_dir: Path, utterances: Sequence[Utterance], *, resume: bool) -> Lexicon:
    """Return the lexicon, with words of the utterances that it lacks as the model of letters and sounds beside it, if there is one, says them."""
    if resume or config.lexicon:
        lexicon_path = run_dir / LEXICON_NAME if resume else Path(config.lexicon)
        g2p_path = lexicon_path.parent / G2P_NAME
    else:
        folder = load_model_folder(config.init)
        lexicon_path, g2p_path = folder.part(LEXICON_NAME), folder.part(G2P_NAME)
    words = {word for utterance in utterances for word in utterance.text.split()}
    return complete(read_lexicon(lexicon_path), words, g2p_path)


def _read_all(paths: Sequence[str]) -> list[Utterance]:
    return [utterance for path in paths for utterance in read_manifest(path)]


def _train_set(
    config: TrainConfig, utterances: Sequence[Utterance], vocabulary: Vocabulary, *, lexicon: Lexicon | None, sounds: Vocabulary | None
) -> SpeechDataset:
    train_set = SpeechDataset(
        utterances,
        vocabulary,
        lexicon=lexicon,
        sounds=sounds,
        teacher=_read_teacher(config, utterances),
        augment=config.augment,
        noises=[load_audio(path) for path in sorted(Path(config.noise_dir).rglob("*.wav"))] if config.noise_dir else [],
    )
    train_set.fastest_speeds = _fastest_speeds(train_set, config)
    return train_set


def _read_teacher(config: TrainConfig, utterances: Sequence[Utterance]) -> TeacherFrames | None:
    """Return the teacher's frames, of which every utterance has its own, at the rate of the network's."""
    if not config.teacher:
        return None
    teacher = TeacherFrames(config.teacher)
    rate = config.features.sample_rate / config.features.hop_length / config.model.subsampling * config.model.outputs_per_frame
    if teacher.rate != rate:
        raise TrainingError(f"teacher: {config.teacher} has {teacher.rate:g} frames a second, the network {rate:g}")
    for utterance in utterances:
        teacher.find(utterance)
    return teacher


def _read_voices(config: TrainConfig, teacher: TeacherFrames | None, device: torch.device) -> Voices | None:
    """Return the voices, which are told from features like the network's and frames like the teacher's."""
    if not config.voices:
        return None
    voices = load_voices(config.voices)
    expected = (teacher.size if teacher else 0, config.features.num_mels)
    if (found := (len(voices.mean), voices.basis.shape[-1])) != expected:
        raise TrainingError(
            f"voices: {config.voices} is of frames of {found[0]} numbers of a teacher and {found[1]} mel bins, "
            f"the teacher's here have {expected[0]}, the features {expected[1]}; write it anew with recipes/english/voices.py"
        )
    return voices.to(device)


def _check_files(utterances: Sequence[Utterance]) -> None:
    """Raise TrainingError naming audio files that are not there: it belongs to the start, not to the end of the first epoch."""
    missing = [path for path in dict.fromkeys(u.audio_filepath for u in utterances) if not os.path.isfile(path)]
    if missing:
        raise TrainingError(f"{len(missing)} audio files of the manifests are missing: {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}")


def _trim_log(path: Path, progress: Progress) -> None:
    """Take out of log.jsonl the lines of steps after the state that a run goes on from, which will be written again, and a half line at the end."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            row = json.loads(line)
            done = row["step"] < progress.step or (row["step"] == progress.step > 0 and ("loss" in row or progress.batch == 0))
            kept += [line] if done and line.endswith(b"\n") else []
    write_atomically(path, b"".join(kept))


def _read_dev_sets(paths: Sequence[str], vocabulary: Vocabulary) -> dict[str, list[Utterance]]:
    """Return the dev sets by their manifests' stems, or by their paths where stems repeat. Raises TextError for texts that cannot be spelt."""
    stems = [Path(path).stem for path in paths]
    names = stems if len(set(stems)) == len(stems) else [str(path) for path in paths]
    dev_sets = {name: read_manifest(path) for name, path in zip(names, paths, strict=True)}
    for utterances in dev_sets.values():
        SpeechDataset(utterances, vocabulary)  # encodes the texts: an error belongs to the start, not to the end of the first epoch
    return dev_sets


def _fastest_speeds(train_set: SpeechDataset, config: TrainConfig) -> list[float]:
    """Return by what factor each utterance may be sped up until its text needs more output frames than it has.

    Raises TrainingError naming the utterances whose text is empty or does not even fit at speed 1.
    """
    speeds, problems = [], []
    for utterance, tokens, sounds in zip(train_set.utterances, train_set.tokens, train_set.sounds, strict=True):
        needed = max(min_frames(tokens), min_frames(sounds))
        samples = utterance.duration * config.features.sample_rate
        frames = output_length(num_frames(int(samples), config.features), config.model)
        if not utterance.text or frames < needed:
            problems.append(f"{utterance.id} ({utterance.duration:.2f} s, {frames} frames, its text needs {needed})")
        frames_needed = math.ceil(needed / config.model.outputs_per_frame)
        needed_samples = (frames_needed - 1) * config.model.subsampling * config.features.hop_length
        speeds.append(samples / max(needed_samples, 1) - 0.01)
    if problems:
        raise TrainingError(
            f"{len(problems)} training utterances have no text or are too short for it: {', '.join(problems[:5])}"
            f"{' ...' if len(problems) > 5 else ''}; correct them, take them out of the manifest, or lower the model's subsampling"
            f" ({config.model.subsampling})"
        )
    return speeds


def _initial_network(config: TrainConfig, vocabulary: Vocabulary, sounds: Vocabulary | None) -> AcousticModel:
    """Return a new network, with the weights of config.init where it names one; its output layer for each vocabulary only if that is the same.

    Residual layers that the model to start from lacks are put on top of its others.
    """
    network = AcousticModel(config.model)
    if not config.init:
        return network
    folder = load_model_folder(config.init)
    source = load_network(folder)
    try:
        take_over(network, source)
        if folder.features != config.features:
            raise ValueError(f"expected the features {config.features}, found {folder.features}")
    except ValueError as error:
        raise TrainingError(f"init: the network or features of {folder.path} differ from this run's: {error}") from error
    weights, old = network.state_dict(), source.state_dict()
    size, old_size = config.model.vocabulary_size, source.config.vocabulary_size
    for name in ("output.weight", "output.bias"):
        new_rows, old_rows = (w.unflatten(0, (config.model.outputs_per_frame, -1)) for w in (weights[name], old[name]))  # views
        if folder.vocabulary == vocabulary:
            new_rows[:, :size] = old_rows[:, :old_size]
        if sounds is not None and folder.sounds == sounds:
            new_rows[:, size:] = old_rows[:, old_size:]
    if folder.vocabulary != vocabulary or (sounds is not None and folder.sounds != sounds):
        logger.info("init: a vocabulary differs, its output layer starts anew")
    return network


def _tensorboard(run_dir: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info("no TensorBoard log: install the extra 'tensorboard'")
        return None
    return SummaryWriter(str(run_dir / "tensorboard"), purge_step=step)


# --- an epoch ---------------------------------------------------------------------------------------------------------------------


def _train_epoch(run: Run) -> None:
    config, progress, train_set = run.config, run.progress, run.train_set
    durations = [utterance.duration for utterance in train_set.utterances]
    batches = epoch_batches(durations, config.batch_s, seed=config.seed, epoch=progress.epoch)
    pieces = [_piece_keys(batch, run, k) for batch in batches[progress.batch :] for k in range(config.accumulation)]
    train_set.reading = torch.full((config.num_workers,), -1).share_memory_() if config.num_workers else None  # type: ignore[no-untyped-call]
    loader = DataLoader(
        train_set,
        batch_sampler=pieces,
        collate_fn=collate,
        num_workers=config.num_workers,
        pin_memory=run.device.type == "cuda",
        prefetch_factor=4 if config.num_workers else None,
        timeout=LOADER_TIMEOUT_S if config.num_workers else 0.0,
    )
    failure: ValueError | None = None
    try:
        _take_steps(run, iter(loader), batches, durations)
    except AudioError as error:
        line = str(error).strip().splitlines()[-1]  # a loader process adds its traceback in front
        failure = AudioError(line.removeprefix("asr.audio.AudioError: "))
    except (RuntimeError, ConnectionError, EOFError) as error:  # raised wherever this process happens to be when a loader process dies
        if train_set.reading is None or (isinstance(error, RuntimeError) and not str(error).startswith("DataLoader")):
            raise
        names = ", ".join(train_set.utterances[i].id for i in train_set.reading.tolist() if i >= 0) or "nothing"
        line = str(error).strip().splitlines()[0]
        failure = TrainingError(f"a loader process failed while reading {names} ({line}); if memory is short, use fewer --workers")
    if failure is not None:
        raise failure  # here and not above, where its context would keep the dead loader alive
    progress.epoch, progress.batch = progress.epoch + 1, 0


def _take_steps(run: Run, loaded: Iterator[Batch], batches: Sequence[Sequence[int]], durations: Sequence[float]) -> None:
    """Take the epoch's remaining steps. Raises TrainingError where its loss is that of a run that has diverged."""
    config, progress = run.config, run.progress
    last_saved = time.monotonic()
    loss = uniform_loss = 0.0
    for batch in batches[progress.batch :]:
        started = time.monotonic()
        num_tokens = sum(len(run.train_set.tokens[i]) for i in batch)
        epochs_done = progress.epoch + progress.batch / len(batches)
        pieces_of_batch = [next(loaded) for _ in range(config.accumulation)]
        figures = _step(run, pieces_of_batch, num_utterances=len(batch), num_tokens=num_tokens, epochs_done=epochs_done)
        progress.batch += 1
        audio_s = sum(durations[i] for i in batch)
        progress.audio_s += audio_s
        loss += figures["loss"] * num_tokens if math.isfinite(figures["loss"]) else 0.0
        uniform_loss += audio_s * _uniform_loss_per_s(config)
        progress.seconds += time.monotonic() - started
        _log_step(run, figures, epochs_done=epochs_done, num_batches=len(batches))
        if run.rank == 0 and time.monotonic() - last_saved > config.save_minutes * 60:
            _save_state(run)
            last_saved = time.monotonic()
    if loss > MAX_UNIFORM_SHARE * uniform_loss:
        raise TrainingError(
            f"training has diverged: in epoch {progress.epoch + 1} the loss was {loss / uniform_loss:.1f} times that of guessing;"
            f" the learning rate may be too high (now {config.learning_rate}); the states in {run.run_dir} are intact"
        )


def _uniform_loss_per_s(config: TrainConfig) -> float:
    """Return the loss a second of one path of a network to which all tokens are equally probable, a bound on that of all paths, in nats.

    A teacher's frames, which such a network would foretell as 0, add their variance of 1.
    """
    frames_per_s = config.features.sample_rate / config.features.hop_length / config.model.subsampling
    guessing = config.model.outputs_per_frame * math.log(len(config.vocabulary) * max(config.model.num_sounds, 1))
    return frames_per_s * (guessing + (config.teacher_weight if config.teacher else 0.0))


def _piece_keys(batch: Sequence[int], run: Run, piece: int) -> list[tuple[int, int]]:
    """Return (index, seed) of the part of a step's batch that this process computes in its `piece`-th pass.

    Where nothing is left for it, it gets the first utterance, which _step then counts with weight 0: every process takes every pass.
    """
    parts = run.world * run.config.accumulation
    mine = batch[piece * run.world + run.rank :: parts] or batch[:1]
    return [(index, utterance_seed(run.config.seed, run.progress.epoch, index)) for index in mine]


def _step(run: Run, pieces: Sequence[Batch], *, num_utterances: int, num_tokens: int, epochs_done: float) -> dict[str, float]:
    """One update of the weights: the gradient of the loss a token over the step's whole batch, guarded, clipped, applied, averaged."""
    config, progress = run.config, run.progress
    run.network.train()
    rate = learning_rate(config, epochs_done)
    for optimiser in run.optimisers:
        optimiser.zero_grad(set_to_none=True)
        for group in optimiser.param_groups:
            group["lr"] = rate
    seed = int(np.random.SeedSequence([config.seed, progress.step, run.rank]).generate_state(1)[0])
    torch.manual_seed(seed)  # dropout
    rng = np.random.default_rng(seed)  # SpecAugment
    total = torch.zeros((), device=run.device)
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1
        with contextlib.nullcontext() if last or run.world == 1 else run.wrapped.no_sync():
            weight = 1.0 if number * run.world + run.rank < num_utterances else 0.0
            loss = weight * _piece_loss(run, piece, rng) / max(num_tokens, 1)
            run.scaler.scale(loss * run.world).backward()  # type: ignore[no-untyped-call]  # DDP divides by the world's size
        total += loss.detach()
    if run.world > 1:
        dist.all_reduce(total)
    for optimiser in run.optimisers:
        run.scaler.unscale_(optimiser)
    norm = nn.utils.clip_grad_norm_(run.wrapped.parameters(), config.clip_norm)
    progress.step += 1
    if bool(torch.isfinite(total) & torch.isfinite(norm)):
        for optimiser in run.optimisers:
            run.scaler.step(optimiser)
        progress.bad_steps = 0
        _update_average(run)
    else:
        _skip_step(run, pieces, loss=float(total), norm=float(norm))
    run.scaler.update()
    return {"loss": float(total), "grad_norm": float(norm), "learning_rate": rate}


def _piece_loss(run: Run, batch: Batch, rng: np.random.Generator) -> Tensor:
    """Return the summed CTC loss of a piece, with the MMI loss of its pronunciations and consistency regularisation if they are on.

    CR-CTC: the CTC loss averaged over two views of each utterance under different masks, plus `consistency` times the symmetric KL
    divergence between their frames' distributions, each pulled towards the other held fixed.
    """
    config = run.config
    features, lengths = run.log_mel(batch.waveforms.to(run.device, non_blocking=True), batch.waveform_lengths.to(run.device))
    targets = [x.to(run.device) for x in (batch.tokens, batch.token_lengths, batch.sounds, batch.sound_lengths)]
    teacher, teacher_lengths = batch.teacher.to(run.device), batch.teacher_lengths.to(run.device)
    names, views = batch.names, 1
    if run.voices is not None:
        others = torch.from_numpy(rng.permutation(len(features))).to(run.device)
        strengths = torch.from_numpy(rng.uniform(0, config.augment.voice_change, len(features))).to(features)
        hop = config.model.subsampling // config.model.outputs_per_frame
        features = run.voices(features, lengths, teacher, teacher_lengths, hop=hop, others=others, strengths=strengths)
    if config.consistency:
        views, names = 2, names * 2
        features, lengths, *targets = (torch.cat([x, x]) for x in (features, lengths, *targets))
    if warp := config.augment.freq_warp:
        features = warp_frequencies(features, rng.uniform(1 - warp, 1 + warp, len(features)), config.features)
    if tilt := config.augment.silence_tilt:
        features = weigh_silence(features, lengths, rng.uniform(-tilt, tilt, len(features)))
    features = spec_augment(features, lengths.cpu(), config.augment, rng=rng, scale=2.5 if config.consistency else 1.0)
    automatic = torch.bfloat16 if fast_bfloat16(config.device) else None
    dtype = {"auto": automatic, "float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[config.precision]
    with torch.autocast(run.device.type, dtype=dtype, enabled=dtype is not None):
        log_probs, output_lengths, *foretold = run.wrapped(features, lengths)
    loss = text_loss(
        log_probs, output_lengths, *targets, vocabulary_size=config.model.vocabulary_size, spelling=config.spelling, mmi=config.mmi,
        pairs=run.bigram, names=names,
    ) / views  # fmt: skip
    for estimate in foretold:
        frames, frame_lengths = teacher.repeat(views, 1, 1), teacher_lengths.repeat(views).minimum(output_lengths)
        loss = loss + config.teacher_weight * teacher_loss(estimate, frames, frame_lengths, delay=config.teacher_delay) / views
    if config.consistency:
        first, second = log_probs.chunk(2)  # (2 B, T', V) -> 2 x (B, T', V)
        divergence = _kl(second.detach(), first) + _kl(first.detach(), second)  # (B, T')
        loss = loss + config.consistency * 0.5 * (divergence * inside(output_lengths.chunk(2)[0], first.shape[1])).sum()
    return loss


def text_loss(
    log_probs: Tensor,
    lengths: Tensor,
    tokens: Tensor,
    token_lengths: Tensor,
    sounds: Tensor,
    sound_lengths: Tensor,
    *,
    vocabulary_size: int,
    spelling: float,
    mmi: float,
    pairs: Tensor | None,
    names: Sequence[str],
) -> Tensor:
    """Return the summed CTC loss of log_probs (B, T', V + S), with that of the S sounds, if there are any, and their MMI loss.

    spelling, mmi: as in TrainConfig. pairs: the bigram of sounds that MMI weighs texts by; None leaves it out.
    """
    loss = ctc_loss(log_probs[..., :vocabulary_size], lengths, tokens, token_lengths=token_lengths, names=names).sum()
    spoken = log_probs[..., vocabulary_size:]
    if spoken.shape[-1]:
        loss = spelling * loss + ctc_loss(spoken, lengths, sounds, token_lengths=sound_lengths, names=names).sum()
    if pairs is not None:
        loss = loss + mmi * (denominator(spoken, lengths, pairs) - text_log_probs(sounds, sound_lengths, pairs)).sum()
    return loss


def _kl(target: Tensor, estimate: Tensor) -> Tensor:
    """Return KL(target || estimate) of log-probabilities (B, T, V): (B, T)."""
    return (target.exp() * (target - estimate)).sum(dim=-1)


def _update_average(run: Run) -> None:
    """Exponential moving average of the weights, with a decay that grows from 0.1 so that the first steps are soon forgotten."""
    decay = min(run.config.ema_decay, (1 + run.progress.step) / (10 + run.progress.step)) if run.config.ema_decay else 0.0
    with torch.no_grad():
        torch._foreach_lerp_(list(run.average.parameters()), list(run.network.parameters()), 1 - decay)


def _skip_step(run: Run, pieces: Sequence[Batch], *, loss: float, norm: float) -> None:
    """Count a step whose loss or gradient is not finite; the weights stay as they were."""
    run.progress.bad_steps += 1
    names = ", ".join(name for piece in pieces for name in piece.names)
    logger.warning("step %d skipped: loss %s, gradient norm %s, in: %.300s", run.progress.step, loss, norm, names)
    # In float16 overflows are a matter of course while the loss is scaled up: they count once the scale has gone below 1.
    if run.progress.bad_steps >= MAX_BAD_STEPS and not (run.scaler.is_enabled() and run.scaler.get_scale() >= 1):
        raise TrainingError(
            f"{MAX_BAD_STEPS} steps in a row had a loss or gradient that is not finite, the last at step {run.progress.step}; "
            f"the learning rate may be too high (now {run.config.learning_rate}); the states in {run.run_dir} are intact"
        )


# --- between epochs ---------------------------------------------------------------------------------------------------------------


def _end_epoch(run: Run) -> None:
    progress, config = run.progress, run.config
    due = progress.epoch % config.validate_epochs == 0 or progress.epoch == config.epochs
    if run.dev_sets and due:
        counts = {name: validate(run, utterances) for name, utterances in run.dev_sets.items()}
        wer = sum(c.rate for c in counts.values()) / len(counts)
        progress.validations_since_best += 1
        if wer < progress.best_wer:
            progress.best_wer, progress.validations_since_best = wer, 0
            _save_best(run, dev_wer={name: c.rate for name, c in counts.items()})
        line = ", ".join(f"{name} {100 * c.rate:.2f}" for name, c in counts.items())
        logger.info("epoch %d: dev WER %.2f %% (best %.2f): %s", progress.epoch, 100 * wer, 100 * progress.best_wer, line)
        _write_log(run, {"dev_wer": wer, **{f"dev_wer/{name}": c.rate for name, c in counts.items()}})
    if run.rank == 0:
        _save_state(run)
    if run.world > 1:
        dist.barrier()


def validate(run: Run, utterances: Sequence[Utterance]) -> ErrorCounts:
    """Return the word errors with the averaged weights."""
    durations = [utterance.duration for utterance in utterances]
    total = ErrorCounts()
    for indices in epoch_batches(durations, max(run.config.batch_s, 60.0), seed=0, epoch=0):
        dataset = SpeechDataset([utterances[i] for i in indices], run.vocabulary)
        batch = collate([dataset[i, 0] for i in range(len(indices))])
        with torch.inference_mode():
            features, lengths = run.log_mel(batch.waveforms.to(run.device), batch.waveform_lengths.to(run.device))
            log_probs, lengths = run.average(features, lengths)
        for row, length, utterance in zip(log_probs.cpu().numpy(), lengths.tolist(), dataset.utterances, strict=True):
            found = decode(row[:length], run.vocabulary, run.decoder, lm=run.lm, lexicon=run.lexicon, sounds=run.sounds, rescorer=run.rescorer)
            total += count_word_errors(utterance.text, found.text)
    return total


def _save_best(run: Run, dev_wer: Mapping[str, float] | None = None) -> None:
    if run.rank != 0:
        return
    config, progress = run.config, run.progress
    hours = sum(utterance.duration for utterance in run.train_set.utterances) / 3600
    num_parameters = sum(p.numel() for p in run.average.parameters())
    info = {
        "training_hours": round(hours, 2),
        "parameters": num_parameters,
        "epochs": progress.epoch,
        "steps": progress.step,
        "seed": config.seed,
        "dev_wer": dict(dev_wer or {}),
    }
    lines = [f"| {name} | {100 * wer:.2f} |" for name, wer in (dev_wer or {}).items()]
    table = "\n".join(["", f"| dev set | WER %, {'greedy' if run.lm is None else 'with language model'} |", "|---|---|", *lines, ""]) if lines else ""
    card = (
        f"# {run.run_dir.name}\n\nA {'bidirectional' if config.model.bidirectional else 'one-directional'} {config.model.cell} CTC model,"
        f" {config.model.num_layers} x {config.model.hidden_size}, {num_parameters:,} parameters, trained on {hours:.2f} hours"
        f" for {progress.epoch} epochs ({progress.step} steps, seed {config.seed}).\n{table}"
    )
    best = run.run_dir / "best"
    save_model_folder(best, run.average, features=config.features, vocabulary=run.vocabulary, sounds=run.sounds, info=info, card=card)


# --- state and logs ---------------------------------------------------------------------------------------------------------------


def _identity(config: TrainConfig) -> str:
    """The config without what may change between a run and its continuation."""
    free = ("device", "num_workers", "num_threads", "save_minutes", "validate_epochs", "patience", "init", "noise_dir", "train_manifests", "dev_manifests", "lexicon")
    return json.dumps({k: v for k, v in dataclasses.asdict(config).items() if k not in free}, sort_keys=True)


def _save_state(run: Run) -> None:
    """Write the state; one whose weights are not finite never takes the place of a sound one."""
    if not all(bool(tensor.isfinite().all()) for tensor in run.network.state_dict().values()):
        raise TrainingError(f"step {run.progress.step}: a weight is not finite; resume from the states in {run.run_dir}, which are intact")
    save_training_state(
        run.run_dir,
        run.progress.step,
        {
            "config": _identity(run.config),
            "progress": dataclasses.asdict(run.progress),
            "network": run.network.state_dict(),
            "foretelling": run.student.foretelling.state_dict() if run.student else {},
            "average": run.average.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in run.optimisers],
            "scaler": run.scaler.state_dict(),
        },
    )


def _restore(
    state: dict[str, Any],
    config: TrainConfig,
    network: AcousticModel,
    student: Student | None,
    average: AcousticModel,
    optimisers: Sequence[torch.optim.Optimizer],
    scaler: GradScaler,
) -> Progress:
    """Put a saved state back. Raises CheckpointError for a state of another configuration."""
    if "optimisers" not in state:
        raise CheckpointError("the run was started by an older version of this program; start a new run, with its best/ as init")
    old = json.loads(state["config"])
    changed = _changed(old, json.loads(_identity(config)))
    if "epochs" in changed:
        changed.remove("epochs")
        logger.warning("the learning rate now falls over %d epochs, not %d", config.epochs, old["epochs"])
    if changed:
        raise CheckpointError(f"the run was started with another configuration ({', '.join(changed)} differ); start a new run")
    network.load_state_dict(state["network"])
    if student is not None:
        student.foretelling.load_state_dict(state["foretelling"])
    average.load_state_dict(state["average"])
    for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(saved)
    scaler.load_state_dict(state["scaler"])
    return Progress(**state["progress"])


def _changed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return the settings that differ; those that the older version of the program did not have yet are taken to be as they were."""
    changed = []
    for key in old.keys() & new.keys():
        if isinstance(old[key], dict):
            changed += [f"{key}.{name}" for name in _changed(old[key], new[key])]
        elif old[key] != new[key]:
            changed.append(key)
    return sorted(changed)


def _log_step(run: Run, figures: Mapping[str, float], *, epochs_done: float, num_batches: int) -> None:
    progress = run.progress
    speed = progress.audio_s / max(progress.seconds, 1e-9)
    left_s = progress.seconds / max(progress.step, 1) * ((run.config.epochs - epochs_done) * num_batches)
    _write_log(run, {**figures, "audio_s_per_s": speed, "epoch": epochs_done})
    if progress.batch % max(1, num_batches // 5) == 0:
        logger.info(
            "epoch %d/%d  batch %d/%d  loss %.3f  gradient %.2f  rate %.1e  %.0f s/s  %s left",
            progress.epoch + 1, run.config.epochs, progress.batch, num_batches, figures["loss"], figures["grad_norm"],
            figures["learning_rate"], speed, time.strftime("%H:%M:%S", time.gmtime(left_s)),
        )  # fmt: skip


def _write_log(run: Run, figures: Mapping[str, float]) -> None:
    """Append to log.jsonl and TensorBoard. NaN and infinity are written as null."""
    if run.rank != 0:
        return
    row = {"step": run.progress.step} | {k: (v if math.isfinite(v) else None) for k, v in figures.items()}
    with open(run.run_dir / "log.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    if run.tensorboard is not None:
        for name, value in figures.items():
            run.tensorboard.add_scalar(name, value, run.progress.step)
