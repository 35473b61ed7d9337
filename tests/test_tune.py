"""The tuner finds what a language model is worth: on letters that sound alike, the words that the model knows win."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_faults_folders import random_rnnlm

from asr.audio import write_wav
from asr.checkpoint import LM_NAME, RNNLM_NAME, load_model_folder, save_decoder_settings, save_model_folder
from asr.decoder import DecoderConfig, DecoderError
from asr.lm import save, train
from asr.logmel import FeatureConfig
from asr.manifest import Utterance, write_manifest
from asr.model import AcousticModel, ModelConfig
from asr.rnnlm import save as save_rnnlm
from asr.text import ENGLISH
from asr.transcribe import Transcriber
from asr.tune import _calibrated, tune
from asr.wer import expected_calibration_error


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    network = AcousticModel(ModelConfig(num_layers=1, hidden_size=8, conv_channels=8))
    save_model_folder(tmp_path / "model", network, features=FeatureConfig(), vocabulary=ENGLISH, info={}, card="")
    return tmp_path / "model"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    write_wav(tmp_path / "a.wav", np.random.default_rng(0).standard_normal(16_000).astype(np.float32) / 9)
    write_manifest(tmp_path / "dev.jsonl", [Utterance(str(tmp_path / "a.wav"), 1.0, "a cat", id="a")])
    return tmp_path / "dev.jsonl"


def test_the_best_settings_come_last_and_are_kept_by_the_folder(folder: Path, manifest: Path) -> None:
    save(train(["a cat", "a dog", "the cat"], order=2), folder / LM_NAME)
    tuning = tune(folder, [manifest], num_trials=3, beam_size=5)
    assert len(tuning.trials) == 4 and tuning.trials[-1].wer == min(trial.wer for trial in tuning.trials)
    assert tuning.config == tuning.trials[-1].config and np.isnan(tuning.calibration_error)  # too few words to calibrate
    save_decoder_settings(folder, tuning.settings)
    assert load_model_folder(folder).decoder == tuning.settings
    assert Transcriber(folder).decoder == tuning.config
    assert tune(folder, [manifest], num_trials=0, beam_size=5).config == tuning.config  # the folder's own weights are tried too
    save_decoder_settings(folder, {"alpha": "high"})
    assert len(tune(folder, [manifest], num_trials=1, beam_size=5).trials) == 2


def test_the_weight_of_a_recurrent_language_model_is_tuned_too(folder: Path, manifest: Path) -> None:
    save(train(["a cat", "a dog", "the cat"], order=2), folder / LM_NAME)
    assert {trial.config.rescore_weight for trial in tune(folder, [manifest], num_trials=3, beam_size=5).trials} == {0.0}
    save_rnnlm(random_rnnlm(("<unk>", "<s>", "</s>", "a", "cat")), folder / RNNLM_NAME)
    weights = {trial.config.rescore_weight for trial in tune(folder, [manifest], num_trials=3, beam_size=5).trials}
    assert len(weights) == 4 and all(0 <= weight <= 1 for weight in weights)


def test_a_folder_without_language_model_cannot_be_tuned(folder: Path, manifest: Path) -> None:
    with pytest.raises(DecoderError, match="language model"):
        tune(folder, [manifest])


@pytest.mark.parametrize("wrong", [{"method": "magic"}, {"beam_size": 0}, {"beam_size": True}, {"alpha": float("nan")}, {"beta": "1"}])
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(DecoderError, match=next(iter(wrong))):
        DecoderConfig(**wrong)  # type: ignore[arg-type]


def test_calibration_finds_the_curve_that_made_the_data() -> None:
    rng = np.random.default_rng(0)
    scored = []
    for _ in range(400):
        x = rng.uniform(-4, 0, 10)
        right = rng.random(10) < 1 / (1 + np.exp(-(2.0 + 1.5 * x)))
        scored.append(np.column_stack([x, right]))
    config, error = _calibrated(DecoderConfig("beam"), scored)
    assert config.confidence_offset == pytest.approx(2.0, abs=0.2) and config.confidence_slope == pytest.approx(1.5, abs=0.15)
    assert error < 0.03
    assert 0 < config.confidence(-1000.0) < config.confidence(0.0) < 1


def test_calibration_error_by_hand() -> None:
    assert expected_calibration_error(np.array([0.95, 0.95, 0.15, 0.15]), np.array([1, 0, 0, 0])) == pytest.approx((2 * 0.45 + 2 * 0.15) / 4)
