"""Training of a recurrent word language model (asr/rnnlm.py) on texts, on the CPU. Knows words and numbers; nothing of audio or decoding.

All randomness is a function of the seed and the position in the text, so a resumed training repeats the uninterrupted one exactly.
"""

from __future__ import annotations

import logging
import math
import os
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asr.checkpoint import load_training_state, save_training_state
from asr.gru import fast_bfloat16, run_gru
from asr.lm import END_ID, START_ID, UNKNOWN_ID, LanguageModelError, read_words
from asr.rnnlm import RecurrentLanguageModel, load, save
from asr.storage import remove_leftovers

LONGEST = 60  # words in a row that are learned; what is left of a longer sentence goes on from the word before it, in a state of zeros
SORTED_TOGETHER = 20_000  # so many sentences, drawn at random, are sorted by length before they are cut into batches
NOISE_POWER = 0.75  # negatives are drawn as often as words occur, to this power
NORMALISATION_WEIGHT = 0.05  # of the square of ln Z in the loss
EMBEDDING_STD = 0.06
WARMUP_STEPS = 200
CLIP_NORM = 1.0
LOG_SECONDS = 30.0
FIELDS = {  # of a model, by their names in a RecurrentNetwork
    "embed.weight": "embedding", "bias": "bias", "gru.weight_ih_l0": "input_weight", "gru.weight_hh_l0": "recurrent_weight",
    "gru.bias_ih_l0": "input_bias", "gru.bias_hh_l0": "recurrent_bias", "project.weight": "projection", "project.bias": "projection_bias",
}  # fmt: skip
NOT_THE_RESULT = ("num_threads", "save_minutes")  # settings that a resumed training may change

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RnnlmConfig:
    """What a training depends on beside the text.

    vocabulary_size: so many of the most frequent words are known, the others are <unk>. passes: over the text, also less than one.
    batch_words: words a step, padding counted. num_samples: words that each word is told from, the same for the whole step.
    learning_rate: the peak, after WARMUP_STEPS; then it falls in a straight line, to zero at the end. num_threads: 0 for torch's
    own choice. save_minutes: between states.
    """

    vocabulary_size: int = 30_000
    embedding_size: int = 256
    hidden_size: int = 512
    passes: float = 1.0
    batch_words: int = 2400
    num_samples: int = 1024
    learning_rate: float = 2e-3
    dropout: float = 0.1
    seed: int = 0
    num_threads: int = 0
    save_minutes: float = 5.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            lowest = "0 or more" if name in ("dropout", "seed", "num_threads") else "more than 0"
            if not (0 < value < math.inf or (value == 0 and lowest == "0 or more")):
                raise LanguageModelError(f"{name}: expected {lowest}, found {value!r}")
        if self.dropout >= 1:
            raise LanguageModelError(f"dropout: expected less than 1, found {self.dropout!r}")


class RecurrentNetwork(nn.Module):
    """The network of asr/rnnlm.py as it is trained: with dropout, and biases that begin as ln p of the words (V,)."""

    def __init__(self, unigram: Tensor, config: RnnlmConfig) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(unigram), config.embedding_size)
        self.gru = nn.GRU(config.embedding_size, config.hidden_size)
        self.project = nn.Linear(config.hidden_size, config.embedding_size)
        self.bias = nn.Parameter(unigram.log())
        self.dropout = config.dropout
        nn.init.normal_(self.embed.weight, std=EMBEDDING_STD)

    def forward(self, words: Tensor) -> Tensor:
        """Return what is expected after each of the words (T, B), from states of zeros: (T, B, E), to be multiplied with the embeddings."""
        embedded = F.dropout(self.embed(words), self.dropout, self.training)
        frames = torch.arange(len(words))[:, None].expand_as(words)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.training and fast_bfloat16("cpu")):
            states = run_gru([self.gru], embedded, [frames])
        expected: Tensor = self.project(F.dropout(states, self.dropout, self.training))
        return expected


def to_model(weights: Mapping[str, Tensor], words: Sequence[str]) -> RecurrentLanguageModel:
    """Return the model of a RecurrentNetwork's state_dict and its words, by id."""
    fields: dict[str, Any] = {field: weights[name].detach().float().numpy().copy() for name, field in FIELDS.items()}
    return RecurrentLanguageModel(tuple(words), **fields)


class _Text(NamedTuple):
    """A text as word ids (S,), <s> before and </s> after each sentence, and the P pieces of it that are learned.

    A piece says `lengths` times which word follows which, from the place `starts` on.
    """

    stream: np.ndarray
    starts: np.ndarray  # (P,)
    lengths: np.ndarray  # (P,) at most LONGEST


@dataclass
class _Progress:
    """Where a training stands: `batch` batches of pass `pass_number` are done; in all `step` of them with `words` words."""

    pass_number: int = 0
    batch: int = 0
    step: int = 0
    words: int = 0


@dataclass
class _Training:
    """The moving parts of a training."""

    config: RnnlmConfig
    states: Path  # the folder of the training states
    text: _Text
    network: RecurrentNetwork
    optimiser: torch.optim.Optimizer
    noise: np.ndarray  # (V,) float64, the probability that a negative is one of the words up to each
    log_expected: Tensor  # (V,) ln of how often each word is expected among the negatives
    progress: _Progress
    identity: dict[str, Any]  # of settings and text, which a resumed training must have too

    @property
    def num_words(self) -> float:
        """Words to learn in all passes, sentence ends included."""
        return self.config.passes * float(self.text.lengths.sum())


def train(
    sentences: Iterable[str], config: RnnlmConfig, out: str | Path, *, init: str | Path | None = None, resume: bool = False
) -> RecurrentLanguageModel:
    """Train a model on `sentences`, words separated by spaces; write it to the file `out`, in fewer bits, and return it.

    The loss is that of a softmax over each word and the step's negatives, weighted by how often they are drawn (Bengio and Senécal 2008,
    "Adaptive importance sampling to accelerate training of a neural probabilistic language model"), and of the square of ln Z, so that the
    sum over the words becomes about 1 (Devlin et al. 2014). Until `out` is there, the folder OUT.state holds states to go on from.
    init: the file of a model to start from, whose words and sizes are taken instead of the config's.
    resume: go on from the newest; none, or one of another text or other settings, is an error.
    Raises LanguageModelError, and CheckpointError for states that cannot be read.
    """
    states = Path(f"{os.fspath(out)}.state")
    if not resume and any(states.glob("state-*.pt")):
        raise LanguageModelError(f"{states}: holds the states of a training already; resume it, or delete the folder")
    state = load_training_state(states) if resume else None
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    if init is None:
        words, stream = read_words(sentences, config.vocabulary_size)
        training = _start(config, states, words, stream)
    else:
        model = load(init)
        found, stream = read_words(sentences, None)
        words, stream = model.words, np.array([model.word_ids.get(word, UNKNOWN_ID) for word in found], np.int32)[stream]
        sizes = {"vocabulary_size": len(words), "embedding_size": model.embedding.shape[1], "hidden_size": model.projection.shape[1]}
        training = _start(replace(config, **sizes), states, words, stream)
        training.network.load_state_dict({name: torch.from_numpy(getattr(model, field)) for name, field in FIELDS.items()})
    if state:
        _restore(training, state)
        logger.info("resumed at %.2f million words", training.progress.words / 1e6)
    _run(training)
    model = to_model(training.network.state_dict(), words)
    save(model, out)
    _remove(states)
    return model


def _start(config: RnnlmConfig, states: Path, words: Sequence[str], stream: np.ndarray) -> _Training:
    torch.manual_seed(config.seed)
    counts = np.bincount(stream, minlength=len(words)).astype(np.float64)
    counts[START_ID] = 0  # never to be predicted
    unigram = (counts + 1) / (counts + 1).sum()
    noise = unigram**NOISE_POWER / (unigram**NOISE_POWER).sum()
    network = RecurrentNetwork(torch.from_numpy(unigram).float(), config)
    return _Training(
        config=config,
        states=states,
        text=_cut(stream),
        network=network,
        optimiser=torch.optim.Adam(network.parameters(), betas=(0.9, 0.98), fused=True),
        noise=np.cumsum(noise),
        log_expected=torch.from_numpy(np.log(config.num_samples * noise)).float(),
        progress=_Progress(),
        identity=asdict(config) | {"text": zlib.crc32("\n".join(words).encode(), zlib.crc32(stream.tobytes()))},
    )


def _run(training: _Training) -> None:
    """Train to the end, logging and saving states on the way."""
    progress = training.progress
    started = logged = saved = time.monotonic()
    first_word, losses = progress.words, []
    for batch in _batches(training):
        losses.append(_step(training, batch))
        now = time.monotonic()
        if now - logged > LOG_SECONDS:
            speed = (progress.words - first_word) / (now - started)
            minutes = max(0, round((training.num_words - progress.words) / speed / 60))
            logger.info(
                "%.2f of %.2f million words  loss %.3f  %.0f words/s  %d:%02d h left",
                progress.words / 1e6, training.num_words / 1e6, np.mean(losses), speed, minutes // 60, minutes % 60,
            )  # fmt: skip
            logged, losses = now, []
        if now - saved > 60 * training.config.save_minutes:
            _save_state(training)
            saved = now


def _step(training: _Training, batch: np.ndarray) -> float:
    """Learn from a batch of pieces; return the mean of -ln p over their words, by the sampled softmax."""
    config, progress, network = training.config, training.progress, training.network
    rng = np.random.default_rng([config.seed, 1, progress.step])
    torch.manual_seed(int(rng.integers(2**31)))  # of dropout
    negatives = np.searchsorted(training.noise, rng.random(config.num_samples) * training.noise[-1])
    inputs, targets = _rows(training.text, batch)
    rate = config.learning_rate * min(1, (progress.step + 1) / WARMUP_STEPS) * (1 - progress.words / training.num_words)
    for group in training.optimiser.param_groups:
        group["lr"] = rate
    loss, log_z = _losses(network, inputs, targets, torch.from_numpy(negatives), training.log_expected)
    training.optimiser.zero_grad()
    (loss + NORMALISATION_WEIGHT * log_z.square().mean()).backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
    if not math.isfinite(loss.item() + norm.item()):
        raise LanguageModelError(
            f"step {progress.step + 1}: the loss is {loss.item()} and the gradient {norm.item()}; the learning rate may be too high"
            f" (now {config.learning_rate}); the states in {training.states}, if any, are intact"
        )
    training.optimiser.step()
    progress.step += 1
    progress.words += int(training.text.lengths[batch].sum())
    return loss.item()


def _losses(network: RecurrentNetwork, inputs: Tensor, targets: Tensor, negatives: Tensor, log_expected: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of -ln p of the targets (T, B), those of -1 left out, and for each of them the estimate of ln Z.

    Z is exp of the target's score and, for the other words, the sum over the K negatives of exp(score) / how often each is expected there.
    """
    inside = targets >= 0
    expected, targets = network(inputs)[inside], targets[inside]
    scores = (expected * network.embed(targets)).sum(dim=1) + network.bias[targets]
    others = expected @ network.embed(negatives).t() + network.bias[negatives] - log_expected[negatives]
    others = others.masked_fill(negatives == targets[:, None], -math.inf)
    log_z = torch.cat([scores[:, None], others], dim=1).logsumexp(dim=1)
    return (log_z - scores).mean(), log_z


# --- the text --------------------------------------------------------------------------------------------------------


def _cut(stream: np.ndarray) -> _Text:
    """Cut each sentence of a text into pieces."""
    firsts = np.flatnonzero(stream == START_ID)
    sizes = np.diff(firsts, append=len(stream)) - 1
    num_pieces = -(-sizes // LONGEST)
    offsets = LONGEST * (np.arange(num_pieces.sum()) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces))
    return _Text(stream, np.repeat(firsts, num_pieces) + offsets, np.minimum(np.repeat(sizes, num_pieces) - offsets, LONGEST))


def _batches(training: _Training) -> Iterator[np.ndarray]:
    """Yield batches of indices of pieces until all words are learned, from where the training stands, keeping count."""
    progress = training.progress
    while progress.words < training.num_words:
        rng = np.random.default_rng([training.config.seed, 0, progress.pass_number])
        for batch in _shuffle(training.text.lengths, training.config.batch_words, rng)[progress.batch :]:
            if progress.words >= training.num_words:
                return
            progress.batch += 1
            yield batch
        progress.pass_number, progress.batch = progress.pass_number + 1, 0


def _shuffle(lengths: np.ndarray, batch_words: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return all pieces in batches of similar length and at most `batch_words` words, or one piece, in random order."""
    batches = []
    order = rng.permutation(len(lengths))
    for start in range(0, len(order), SORTED_TOGETHER):
        group = order[start : start + SORTED_TOGETHER]
        group = group[np.argsort(lengths[group], kind="stable")]
        while len(group):
            longest = lengths[group[:batch_words]]
            size = max(1, int(np.searchsorted(longest * np.arange(1, 1 + len(longest)), batch_words, side="right")))
            batches.append(group[:size])
            group = group[size:]
    return [batches[i] for i in rng.permutation(len(batches))]


def _rows(text: _Text, batch: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return the words of some pieces and, of each, the word that follows: (T, B), </s> and -1 beyond their ends."""
    steps = np.arange(text.lengths[batch].max())[:, None]
    inside = steps < text.lengths[batch]
    places = np.where(inside, text.starts[batch] + steps, 0)
    inputs, targets = np.where(inside, text.stream[places], END_ID), np.where(inside, text.stream[places + 1], -1)
    return torch.from_numpy(inputs).long(), torch.from_numpy(targets).long()


# --- states ----------------------------------------------------------------------------------------------------------


def _save_state(training: _Training) -> None:
    state = {
        "identity": training.identity,
        "network": training.network.state_dict(),
        "optimiser": training.optimiser.state_dict(),
        "progress": asdict(training.progress),
    }
    save_training_state(training.states, training.progress.step, state)


def _restore(training: _Training, state: dict[str, Any]) -> None:
    """Put a saved state back. Raises LanguageModelError for one of another text or other settings."""
    found = state.get("identity", {})
    changed = sorted(name for name, value in training.identity.items() if found.get(name) != value and name not in NOT_THE_RESULT)
    if changed:
        raise LanguageModelError(f"{training.states}: the training was started with another {', '.join(changed)}; resume it with the same, or delete the folder")
    training.network.load_state_dict(state["network"])
    training.optimiser.load_state_dict(state["optimiser"])
    training.progress = _Progress(**state["progress"])


def _remove(states: Path) -> None:
    """Delete the training states, and their folder if nothing else is in it."""
    for path in states.glob("state-*.pt"):
        path.unlink()
    remove_leftovers(states)
    if states.is_dir() and not any(states.iterdir()):
        states.rmdir()
