"""Facts about exported models: another runtime computes what torch computes, on shapes that the export has not seen."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from asr.checkpoint import load_model_folder, load_network
from asr.cli import main
from asr.text import Vocabulary

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnx", reason="needs the extra onnx")


def test_onnx_runtime_gives_torchs_log_probs_on_unseen_shapes(tmp_path: Path) -> None:
    folder = load_model_folder("english")
    done = CliRunner().invoke(main, ["export", "onnx", "english", str(tmp_path / "english.onnx")])
    assert done.exit_code == 0, done.output
    session = onnxruntime.InferenceSession(tmp_path / "english.onnx", providers=["CPUExecutionProvider"])
    network = load_network(folder)
    rng = np.random.default_rng(0)
    for lengths in ([1], [97], [250, 131, 4], [33, 64, 64, 1, 12]):
        features = rng.standard_normal((len(lengths), max(lengths), folder.features.num_mels)).astype(np.float32)
        log_probs, output_lengths = session.run(None, {"features": features, "lengths": np.array(lengths)})
        expected, expected_lengths = network(torch.from_numpy(features), torch.tensor(lengths))
        assert output_lengths.tolist() == expected_lengths.tolist()
        for row, expected_row, length in zip(log_probs, expected.numpy(), output_lengths, strict=True):
            np.testing.assert_allclose(row[:length], expected_row[:length], atol=1e-4)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["features"]) == dataclasses.asdict(folder.features)
    assert Vocabulary(tuple(json.loads(metadata["vocabulary"]))) == folder.vocabulary
