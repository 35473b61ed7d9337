"""Model folders that are damaged or that lie: loading one, and recognising with it, works or ends in an error of this package.

Run as a program, this file tries such folders: SEED COUNT FOLDER, in which FOLDER is a sound one.
"""

from __future__ import annotations

import ast
import faulthandler
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asr.checkpoint import (
    G2P_NAME,
    LEXICON_NAME,
    LM_NAME,
    RNNLM_NAME,
    CheckpointError,
    load_model_folder,
    save_decoder_settings,
)
from asr.g2p import train_g2p
from asr.lexicon import Lexicon, LexiconError, write_lexicon
from asr.lm import LanguageModelError
from asr.lm import save as save_lm
from asr.lm import train as train_lm
from asr.rnnlm import RecurrentLanguageModel
from asr.rnnlm import save as save_rnnlm
from asr.transcribe import Transcriber

ROOT = Path(__file__).parents[1]
WAVEFORM = (0.1 * np.random.default_rng(0).standard_normal(8000)).astype(np.float32)
LIES = (0, 1, -1, 3, 2**31, 2**63, 10**30, 1.5, 1e300, True, None, "gru", "", [], {}, [1], {"a": 1}, "x" * 10_000)


def sound_folder(path: Path, *, bidirectional: bool = True) -> Path:
    """Write a small model with a language model, a lexicon, a model of letters and sounds, and settings for beam search."""
    import torch

    from asr.checkpoint import save_model_folder
    from asr.logmel import FeatureConfig
    from asr.model import AcousticModel, ModelConfig
    from asr.text import ENGLISH

    torch.manual_seed(0)
    words = ("a", "cat", "dog", "is", "mat", "on", "sat", "the", "the")
    lexicon = Lexicon(words, ("A", "k@t", "dcg", "Iz", "m@t", "cn", "s@t", "DA", "Di"))
    network = AcousticModel(
        ModelConfig(num_mels=16, hidden_size=8, conv_channels=8, num_layers=2, bidirectional=bidirectional, num_sounds=len(lexicon.sounds))
    )
    features = FeatureConfig(num_mels=16, normalisation="utterance" if bidirectional else "running")
    save_model_folder(path, network, features=features, vocabulary=ENGLISH, sounds=lexicon.sounds, info={}, card="# A model\n")
    write_lexicon(lexicon, path / LEXICON_NAME)
    save_lm(train_g2p(zip(lexicon.words, lexicon.pronunciations, strict=True)), path / G2P_NAME)
    save_lm(train_lm(["a cat sat on a mat", "a dog sat", "the cat is on the mat"] * 3, order=3), path / LM_NAME)
    save_rnnlm(random_rnnlm(("<unk>", "<s>", "</s>", "a", "cat", "sat", "the")), path / RNNLM_NAME)
    save_decoder_settings(path, {"method": "beam", "beam_size": 8, "rescore_weight": 0.5})
    return path


def random_rnnlm(words: tuple[str, ...]) -> RecurrentLanguageModel:
    rng = np.random.default_rng(0)
    shapes = {"embedding": (len(words), 2), "bias": (len(words),), "input_weight": (9, 2), "recurrent_weight": (9, 3), "input_bias": (9,)}
    shapes |= {"recurrent_bias": (9,), "projection": (2, 3), "projection_bias": (2,)}
    return RecurrentLanguageModel(words, **{name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})


def change_json(path: Path, rng: np.random.Generator) -> None:
    """Put a lie at a random place of a JSON file: another value, a key more, a key less."""
    whole = json.loads(path.read_text())
    places: list[Any] = [whole] + [value for value in (whole.values() if isinstance(whole, dict) else []) if isinstance(value, dict)]
    place = places[int(rng.integers(len(places)))]
    lie = LIES[int(rng.integers(len(LIES)))]
    if isinstance(place, list):
        place[int(rng.integers(len(place)))] = lie
    elif rng.random() < 0.1:
        place["surprise"] = lie
    elif place:
        key = list(place)[int(rng.integers(len(place)))]
        if rng.random() < 0.2:
            del place[key]
        else:
            place[key] = lie
    path.write_text(json.dumps(whole))


def change_tensors(path: Path, rng: np.random.Generator) -> None:
    """Change what a safetensors file says of a tensor, or the tensor: its shape, kind or place; NaN; names exchanged, lost, repeated values."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), bytearray(data[8 + size :])
    metadata = header.get("__metadata__", {})
    metadata.pop("crc32", None)  # the liar leaves the checksum out
    names = [name for name in header if name != "__metadata__"]
    one, other = (names[int(i)] for i in rng.integers(0, len(names), 2))
    first, last = header[one]["data_offsets"]
    kind = int(rng.integers(8))
    if kind == 0:
        header[one]["shape"] = [[2**40, 2**40], [2**31], [0], [-1], [1, 1, 1], []][int(rng.integers(6))]
    elif kind == 1:
        header[one]["shape"] = header[one]["shape"][::-1]
    elif kind == 2:
        header[one]["dtype"] = str(rng.choice(["F64", "I64", "BF16", "BOOL", "F8_E4M3", "I32", "U8", "F32"]))
    elif kind == 3:
        header[one], header[other] = header[other], header[one]
    elif kind == 4:
        del header[one]
    elif kind == 5:
        header[one]["data_offsets"] = [int(rng.integers(0, 2**33)), int(rng.integers(0, 2**33))]
    elif kind == 6:
        body[first:last] = (b"\xff\xff" if rng.random() < 0.5 else b"\x00\x7c") * ((last - first) // 2) + b"\0" * ((last - first) % 2)
    else:
        body[first:last] = rng.integers(0, 256, last - first, dtype=np.uint8).tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(body))


def damage(path: Path, rng: np.random.Generator) -> None:
    """Cut a file off, flip bits in it, fill it with rubbish, or take it away."""
    data = bytearray(path.read_bytes())
    kind = int(rng.integers(5))
    if kind == 0:
        path.write_bytes(data[: int(rng.integers(len(data)))])
    elif kind <= 2:
        for position in rng.integers(0, min(len(data), 400) if kind == 1 else len(data), 3):
            data[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
    elif kind == 3:
        path.write_bytes(rng.integers(0, 256, len(data), dtype=np.uint8).tobytes())
    else:
        path.unlink()


def try_folders(seed: int, count: int, sound: Path) -> None:
    """Recognise with folders made worse; a hang, 4 GB, or anything but this package's errors ends the process."""
    hotwords = {"a mad god": 3.0}  # with words that the lexicon lacks
    Transcriber(sound, num_threads=1, hotwords=hotwords).transcribe(WAVEFORM)
    resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))
    rng, worked = np.random.default_rng(seed), 0
    folder = sound.with_name("worse")
    for number in range(count):
        faulthandler.dump_traceback_later(60, exit=True)
        shutil.copytree(sound, folder)
        name = str(rng.choice(["config.json", "vocabulary.json", "decoder.json", "model.safetensors", LM_NAME, RNNLM_NAME, "sounds.json", LEXICON_NAME, G2P_NAME]))
        how = damage if number % 3 == 0 or name == LEXICON_NAME else change_json if name.endswith("json") else change_tensors
        how(folder / name, rng)
        try:
            transcript = Transcriber(folder, num_threads=1, hotwords=hotwords).transcribe(WAVEFORM)
            assert all(word.start <= word.end and 0 <= word.confidence <= 1 for segment in transcript.segments for word in segment.words)
            worked += 1
        except ValueError as error:
            if not type(error).__module__.startswith("asr."):
                raise
            assert str(error) and "\n" not in str(error)
        except BaseException:
            print(f"{number}: {how.__name__} {name}: {(folder / name).read_bytes()[:3000] if (folder / name).exists() else 'missing'!r}", file=sys.stderr)
            raise
        finally:
            shutil.rmtree(folder)
    print(f"{count} folders: {worked} worked, {count - worked} refused")


def run_folders(sound: Path, seed: int, count: int) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(seed), str(count), str(sound)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=3000, env=environment, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr[-4000:])
    return done.stdout.strip()


def test_forty_damaged_or_lying_folders_work_or_are_refused(tmp_path: Path) -> None:
    assert run_folders(sound_folder(tmp_path / "sound"), 0, 40).startswith("40 folders")


@pytest.mark.slow
def test_five_hundred_damaged_or_lying_folders_work_or_are_refused(tmp_path: Path) -> None:
    print(run_folders(sound_folder(tmp_path / "sound"), 1, 500))


@pytest.mark.parametrize("value", [2**62, 0, -1, "4", 4.0, True, None])
@pytest.mark.parametrize("key", ["subsampling", "num_layers", "hidden_size", "outputs_per_frame"])
def test_a_network_of_absurd_size_is_refused_at_once(tmp_path: Path, key: str, value: object) -> None:
    folder = sound_folder(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["network"][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError):
        Transcriber(folder)


def test_a_damaged_language_model_or_its_settings_are_named(tmp_path: Path) -> None:
    folder = sound_folder(tmp_path / "m")
    (folder / "decoder.json").write_text('{"method": "beam", "beam_size": 1e99}')
    with pytest.raises(CheckpointError, match=r"decoder\.json: beam_size"):
        Transcriber(folder)
    save_decoder_settings(folder, {"method": "beam"})
    (folder / LM_NAME).write_bytes((folder / LM_NAME).read_bytes()[:-9])
    with pytest.raises(LanguageModelError, match=LM_NAME):
        Transcriber(folder)
    shutil.copy(sound_folder(tmp_path / "sound") / LM_NAME, folder)
    (folder / RNNLM_NAME).write_bytes((folder / RNNLM_NAME).read_bytes()[:-9])
    assert Transcriber(folder).rescorer is None  # a weight of 0
    save_decoder_settings(folder, {"method": "beam", "rescore_weight": 0.5})
    with pytest.raises(LanguageModelError, match=RNNLM_NAME):
        Transcriber(folder)
    (folder / "decoder.json").mkdir() if (folder / "decoder.json").unlink() is None else None
    with pytest.raises(CheckpointError, match=r"decoder\.json"):
        load_model_folder(folder)


def test_a_lexicon_with_other_sounds_than_the_networks_is_named(tmp_path: Path) -> None:
    folder = sound_folder(tmp_path / "m")
    (folder / LEXICON_NAME).write_text("cat\tk@Q\n")
    with pytest.raises(CheckpointError, match=r"lexicon\.txt.*Q"):
        Transcriber(folder)
    (folder / LEXICON_NAME).write_text("cat k@t\n")
    with pytest.raises(LexiconError, match=r"lexicon\.txt:1"):
        Transcriber(folder)


@pytest.mark.parametrize("path", sorted((ROOT / "asr").rglob("*.py")) + sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.name)
def test_nothing_is_unpickled_that_could_run_code(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            name = f"{node.func.value.id}.{node.func.attr}"
            named = {keyword.arg: keyword.value for keyword in node.keywords}
            assert name not in ("pickle.load", "pickle.loads", "dill.load", "joblib.load", "marshal.loads"), f"{path}:{node.lineno}"
            if name == "torch.load":
                assert isinstance(named.get("weights_only"), ast.Constant) and named["weights_only"].value is True, f"{path}:{node.lineno}"  # type: ignore[attr-defined]
            if name in ("np.load", "numpy.load"):
                assert "allow_pickle" not in named, f"{path}:{node.lineno}"


if __name__ == "__main__":
    try_folders(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
