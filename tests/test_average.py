"""Facts about the mean of several models."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from asr.average import average_models
from asr.checkpoint import CheckpointError, load_model_folder, load_network, save_decoder_settings, save_model_folder
from asr.logmel import FeatureConfig
from asr.model import AcousticModel, ModelConfig
from asr.text import ENGLISH, Vocabulary

SMALL = ModelConfig(num_layers=2, hidden_size=8, conv_channels=8)
DEEP = dataclasses.replace(SMALL, num_layers=3, residual_layers=1)


def save(path: Path, config: ModelConfig, *, seed: int, vocabulary: Vocabulary = ENGLISH) -> AcousticModel:
    torch.manual_seed(seed)
    network = AcousticModel(config).eval()
    for weight in network.parameters():  # as the file has them, none of them zero
        weight.data.copy_((weight + 0.1 * torch.randn(weight.shape)).half())
    save_model_folder(path, network, features=FeatureConfig(), vocabulary=vocabulary, info={"seed": seed, "dev_wer": {"dev": 0.1}}, card="")
    return network


def test_the_mean_of_models_is_that_of_their_weights(tmp_path: Path) -> None:
    parts = [save(tmp_path / str(seed), SMALL, seed=seed).state_dict() for seed in (1, 2)]
    save_decoder_settings(tmp_path / "2", {"alpha": 0.7})
    for weights, (a, b) in ((None, (0.5, 0.5)), ((1.0, 3.0), (0.25, 0.75)), ((0.0, 2.0), (0.0, 1.0))):
        average_models([tmp_path / "1", tmp_path / "2"], tmp_path / f"mean {b}", weights=weights)
        folder = load_model_folder(tmp_path / f"mean {b}")
        for name, tensor in load_network(folder).state_dict().items():
            assert torch.allclose(tensor, a * parts[0][name] + b * parts[1][name], atol=1e-3)
    assert folder.decoder == {"alpha": 0.7}
    assert folder.info == {"seed": 2, "average_of": "0 x 1, 2 x 2"}


def test_a_shallower_model_counts_as_one_whose_other_layers_do_nothing(tmp_path: Path) -> None:
    shallow, deep = save(tmp_path / "1", SMALL, seed=1), save(tmp_path / "2", DEEP, seed=2)
    features, lengths = torch.randn(2, 60, 80), torch.tensor([60, 41])
    for weights, expected in (((1.0, 0.0), shallow), ((0.0, 1.0), deep)):
        out = tmp_path / f"mean {weights}"
        average_models([tmp_path / "1", tmp_path / "2"], out, weights=weights)
        found = load_network(load_model_folder(out))
        assert torch.allclose(found(features, lengths)[0], expected(features, lengths)[0], atol=1e-3)


def test_what_has_no_mean_is_an_error_naming_it(tmp_path: Path) -> None:
    save(tmp_path / "1", SMALL, seed=1)
    save(tmp_path / "wide", dataclasses.replace(SMALL, hidden_size=9), seed=1)
    letters = Vocabulary(("<blank>", *ENGLISH.tokens[:0:-1]))
    save(tmp_path / "letters", SMALL, seed=1, vocabulary=letters)
    save(tmp_path / "deep", DEEP, seed=1)
    for other in ("wide", "letters", "deep", "none"):
        with pytest.raises(CheckpointError, match=other):
            average_models([tmp_path / other, tmp_path / "1"], tmp_path / "mean")
    for weights in ((1.0,), (1.0, -1.0), (0.0, 0.0), (1.0, float("nan"))):
        with pytest.raises(CheckpointError, match="expected 2 weights"):
            average_models([tmp_path / "1", tmp_path / "1"], tmp_path / "mean", weights=weights)
    assert not (tmp_path / "mean").exists()
    before = (tmp_path / "wide" / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="holds a model already"):
        average_models([tmp_path / "1", tmp_path / "1"], tmp_path / "wide")
    assert (tmp_path / "wide" / "model.safetensors").read_bytes() == before
