"""Model folders, which people share, and training states, which a run resumes from. Both are written whole or not at all.

A model folder holds config.json (schema version, features, network), vocabulary.json, model.safetensors and README.md, the model card; and,
where it has a language model, lm.safetensors and decoder.json, the settings of the search; and, where the network writes pronunciations too,
sounds.json, their vocabulary, lexicon.txt, and g2p.safetensors, which finds the pronunciations of words that this lacks. A shipped model may
use those of another.
Reading one runs no code from it. `load_model_folder` needs numpy only; torch is loaded where a network or a training state is made.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asr.logmel import FeatureConfig
from asr.storage import write_atomically
from asr.text import TextError, Vocabulary

if TYPE_CHECKING:
    from asr.model import AcousticModel

SCHEMA_VERSION = 1
MODELS_DIR = Path(__file__).parent / "models"
CONFIG_NAME, VOCABULARY_NAME, WEIGHTS_NAME, CARD_NAME = "config.json", "vocabulary.json", "model.safetensors", "README.md"
DECODER_NAME, LM_NAME, RNNLM_NAME = "decoder.json", "lm.safetensors", "rnnlm.safetensors"
SOUNDS_NAME, LEXICON_NAME, G2P_NAME = "sounds.json", "lexicon.txt", "g2p.safetensors"
MAX_CONFIG_BYTES = 1_000_000
STATES_KEPT = 2
CHECKSUM_KEY = "crc32"  # in the metadata of model.safetensors; folders without it are read unchecked


class CheckpointError(ValueError):
    """A model folder or training state that is missing, broken, or written by a newer version."""


@dataclass(frozen=True)
class ModelFolder:
    """What a model folder says, weights apart.

    network: the fields of asr.model.ModelConfig; sounds: the vocabulary of pronunciations, if it writes them; info: what the trainer noted about it; decoder: the settings in decoder.json, if any.
    """

    path: Path
    name: str
    features: FeatureConfig
    network: dict[str, Any]
    vocabulary: Vocabulary
    info: dict[str, Any]
    decoder: dict[str, Any]
    sounds: Vocabulary | None = None

    def part(self, name: str) -> Path:
        """Return where a file of the search lies, or would: in the folder or, if it is not there, in the shipped model that info names as "decoder_of"."""
        shared = self.info.get("decoder_of")
        if not (self.path / name).exists() and isinstance(shared, str) and re.fullmatch(r"\w[\w-]*", shared):
            return MODELS_DIR / shared / name
        return self.path / name

    @property
    def frame_s(self) -> float:
        """Seconds from one output frame to the next."""
        hop_s = self.features.hop_length / self.features.sample_rate
        return float(hop_s * self.network["subsampling"] / self.network.get("outputs_per_frame", 1))


def find_model(name: str | os.PathLike[str]) -> Path:
    """Return the folder of a model: a path, or the name of one that ships with the package. Raises CheckpointError."""
    shipped = MODELS_DIR / os.fspath(name)
    if Path(name).is_dir():
        return Path(name)
    if Path(name).name == os.fspath(name) and shipped.is_dir():
        return shipped
    names = ", ".join(sorted(p.name for p in MODELS_DIR.iterdir() if p.is_dir())) if MODELS_DIR.is_dir() else "none"
    raise CheckpointError(f"{os.fspath(name)}: no such model folder; expected a folder written by `asr train`, or one of: {names}")


def load_model_folder(path: str | os.PathLike[str]) -> ModelFolder:
    """Read and check config.json and vocabulary.json. Raises CheckpointError naming the file and what is wrong."""
    path = find_model(path)
    config = _read_json(path / CONFIG_NAME)
    version = config.get("schema_version") if isinstance(config, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise CheckpointError(f"{path / CONFIG_NAME}: no schema_version; this is not a model folder of this project")
    if version > SCHEMA_VERSION:
        raise CheckpointError(
            f"{path / CONFIG_NAME}: schema version {version}, this program reads up to {SCHEMA_VERSION}; update the program"
        )
    vocabulary = _read_vocabulary(path / VOCABULARY_NAME)
    network = config.get("network")
    if not isinstance(network, dict) or network.get("vocabulary_size") != len(vocabulary):
        raise CheckpointError(f"{path / CONFIG_NAME}: 'network' must be an object whose vocabulary_size is {len(vocabulary)}")
    sounds = _read_vocabulary(path / SOUNDS_NAME) if network.get("num_sounds", 0) else None
    if sounds is not None and network["num_sounds"] != len(sounds):
        raise CheckpointError(f"{path / CONFIG_NAME}: 'network': num_sounds must be {len(sounds)}, found {network['num_sounds']!r:.60}")
    for key in ("subsampling", "outputs_per_frame"):
        value = network.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65_536 or "subsampling" not in network:
            raise CheckpointError(f"{path / CONFIG_NAME}: 'network': {key} must be a whole number from 1 on, found {network.get(key)!r:.60}")
    try:
        features = FeatureConfig(**_plain(config.get("features"), FeatureConfig))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path / CONFIG_NAME}: 'features': {error}") from error
    info = config.get("info")
    decoder = read_decoder_settings(path)
    return ModelFolder(path, path.resolve().name, features, network, vocabulary, info if isinstance(info, dict) else {}, decoder, sounds)


def read_decoder_settings(path: Path) -> dict[str, Any]:
    """Return the settings of the search in a folder, none if it has none. Raises CheckpointError."""
    settings = _read_json(path / DECODER_NAME) if (path / DECODER_NAME).exists() else {}
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path / DECODER_NAME}: expected a JSON object, found {type(settings).__name__}")
    return settings


def save_decoder_settings(path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
    """Write the settings of the search into a model folder."""
    write_atomically(find_model(path) / DECODER_NAME, (json.dumps(dict(settings), indent=2) + "\n").encode())


def copy_decoder(source: ModelFolder, target: str | os.PathLike[str]) -> None:
    """Put the decoder settings, language models and lexicon of one model folder, as far as it has them, into another, which need not be there yet."""
    Path(target).mkdir(parents=True, exist_ok=True)
    for name in (DECODER_NAME, LM_NAME, RNNLM_NAME, LEXICON_NAME, G2P_NAME):
        if (path := source.part(name)).exists():
            write_atomically(Path(target) / name, path.read_bytes())


def load_weights(folder: ModelFolder) -> dict[str, np.ndarray]:
    """Return the weights by name as float32 arrays. Raises CheckpointError for a damaged file and for weights that are not finite."""
    from safetensors import SafetensorError, safe_open

    path = folder.path / WEIGHTS_NAME
    try:
        with safe_open(path, framework="numpy") as file:
            checksum = (file.metadata() or {}).get(CHECKSUM_KEY)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError) as error:
        raise CheckpointError(f"{path}: the weights cannot be read ({error}); fetch or train the model again") from error
    if checksum is not None and checksum != _checksum({name: array.tobytes() for name, array in weights.items()}):
        raise CheckpointError(f"{path}: the weights differ from their checksum, the file is damaged; fetch or train the model again")
    for name, array in weights.items():
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise CheckpointError(f"{path}: {name} is not made of finite floating-point numbers; fetch or train the model again")
    return {name: array.astype(np.float32) for name, array in weights.items()}


def load_network(folder: ModelFolder) -> AcousticModel:
    """Return the network with its weights, in evaluation mode. Raises CheckpointError where the weights do not fit the config."""
    import torch

    from asr.model import AcousticModel, ModelConfig

    weights = load_weights(folder)
    try:
        config = ModelConfig(**_plain(folder.network, ModelConfig))
        if config.num_mels != folder.features.num_mels:
            raise ValueError(f"{config.num_mels} mel bins in the network, {folder.features.num_mels} in the features")
        with torch.device("meta"):
            network = AcousticModel(config)
        network.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()}, assign=True)
    except (RuntimeError, TypeError, ValueError) as error:
        first_line = str(error).splitlines()[0:3]
        raise CheckpointError(f"{folder.path}: the weights do not fit the network of the config: {' '.join(first_line)}") from error
    return network.eval().requires_grad_(False)


def save_model_folder(
    path: str | os.PathLike[str],
    network: AcousticModel,
    *,
    features: FeatureConfig,
    vocabulary: Vocabulary,
    info: Mapping[str, Any],
    card: str,
    sounds: Vocabulary | None = None,
) -> None:
    """Write a model folder, the weights as 16-bit floats. Every file is written under a temporary name, synced and renamed, config.json last.

    Raises CheckpointError where a weight is NaN or too large for 16 bits.
    """
    from safetensors.torch import save

    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().half().contiguous() for name, tensor in network.state_dict().items()}
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path}: {name} is not finite as 16-bit floats, so nothing is written; train at a lower learning rate")
    config = {
        "schema_version": SCHEMA_VERSION,
        "features": dataclasses.asdict(features),
        "network": dataclasses.asdict(network.config),
        "info": dict(info),
    }
    checksum = _checksum({name: tensor.numpy().tobytes() for name, tensor in weights.items()})
    write_atomically(path / WEIGHTS_NAME, save(weights, metadata={CHECKSUM_KEY: checksum}))
    write_atomically(path / VOCABULARY_NAME, (json.dumps(vocabulary.tokens, ensure_ascii=False) + "\n").encode())
    if sounds is not None:
        write_atomically(path / SOUNDS_NAME, (json.dumps(sounds.tokens, ensure_ascii=False) + "\n").encode())
    write_atomically(path / CARD_NAME, card.encode())
    write_atomically(path / CONFIG_NAME, (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode())


def save_training_state(run_dir: str | os.PathLike[str], step: int, state: Mapping[str, Any]) -> Path:
    """Write RUN_DIR/state-STEP.pt atomically, then delete all but the newest two. Returns its path."""
    import io

    import torch

    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    path = Path(run_dir) / f"state-{step:09d}.pt"
    write_atomically(path, buffer.getvalue())
    for old in _states(run_dir)[:-STATES_KEPT]:
        old.unlink(missing_ok=True)
    return path


def load_training_state(run_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the newest training state of RUN_DIR that can be read. Raises CheckpointError when there is none."""
    import logging
    import pickle
    import struct
    import zipfile

    reasons = []
    for path in reversed(_states(run_dir)):
        try:
            return _read_state(path.read_bytes())
        except (RuntimeError, OSError, EOFError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError,
                pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error) as error:  # fmt: skip
            reasons.append(f"{path.name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            logging.getLogger(__name__).warning("%s is damaged, falling back to the state before it", path)
    found = "; ".join(reasons) or "no state-*.pt there"
    raise CheckpointError(f"{os.fspath(run_dir)}: nothing to resume from ({found})")


def _read_state(data: bytes) -> dict[str, Any]:
    import io
    import zipfile

    import torch

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        damaged = archive.testzip()  # torch.load does not look at the checksums
        for entry in archive.infolist():  # what no checksum covers and torch.load believes
            damaged = damaged or (entry.filename if entry.file_size != entry.compress_size or entry.external_attr else None)
    if damaged is not None:
        raise ValueError(f"{damaged} differs from its checksum")
    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise ValueError(f"expected a dictionary, found {type(state).__name__}")
    return state


def _states(run_dir: str | os.PathLike[str]) -> list[Path]:
    return sorted(Path(run_dir).glob("state-*.pt"))


def _checksum(weights: Mapping[str, bytes]) -> str:
    checksum = 0
    for name in sorted(weights):
        checksum = zlib.crc32(weights[name], zlib.crc32(name.encode(), checksum))
    return f"{checksum:08x}"


def _read_vocabulary(path: Path) -> Vocabulary:
    tokens = _read_json(path)
    try:
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise TextError("expected a JSON list of strings")
        return Vocabulary(tuple(tokens))
    except TextError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise CheckpointError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes; this is not a model folder of this project")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); a model folder needs it") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); fetch or train the model again") from error


def _plain(values: Any, kind: type) -> dict[str, Any]:
    """Return the dictionary if it has just the fields of the dataclass `kind`, each of the type of its default."""
    if not isinstance(values, dict):
        raise ValueError("expected an object")
    fields = {field.name: field.default for field in dataclasses.fields(kind)}
    if set(values) - set(fields):
        raise ValueError(f"unknown keys {sorted(set(values) - set(fields))!r:.200}")
    for name, value in values.items():
        expected = (int, float) if isinstance(fields[name], float) else type(fields[name])
        if not isinstance(value, expected) or isinstance(value, bool) != isinstance(fields[name], bool):
            raise ValueError(f"{name}: expected {type(fields[name]).__name__}, found {value!r:.60}")
    return values
