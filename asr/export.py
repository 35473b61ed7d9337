"""Models as ONNX files, for other runtimes and languages. Inputs features (B, T, M) and lengths (B,), outputs log_probs (B, T', V + S) and
output_lengths (B,); any B and T. What makes features of audio and words of log-probabilities is in the file's metadata, not in its graph.
"""

from __future__ import annotations

import dataclasses
import json
import os
import warnings

from asr.checkpoint import ModelFolder, load_network
from asr.storage import replacing

OPSET = 17


def export_onnx(folder: ModelFolder, path: str | os.PathLike[str]) -> None:
    """Write the network of a model folder to an ONNX file. Metadata `features`, `vocabulary` and `sounds` are JSON. Raises CheckpointError."""
    import onnx
    import torch

    network = load_network(folder)
    features, lengths = torch.zeros(2, 64, folder.features.num_mels), torch.tensor([64, 40])
    metadata = {"name": folder.name, "features": json.dumps(dataclasses.asdict(folder.features)), "vocabulary": json.dumps(folder.vocabulary.tokens)}
    metadata["sounds"] = json.dumps(folder.sounds.tokens if folder.sounds else [])
    with replacing(path) as temporary:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a GRU may not take other batch sizes (a test shows that it does), and that an exporter is old
            torch.onnx.export(
                network,
                (features, lengths),
                temporary,
                dynamo=False,  # the new exporter fails on bidirectional recurrences of dynamic length
                opset_version=OPSET,
                input_names=["features", "lengths"],
                output_names=["log_probs", "output_lengths"],
                dynamic_axes={"features": {0: "B", 1: "T"}, "lengths": {0: "B"}, "log_probs": {0: "B", 1: "T_out"}, "output_lengths": {0: "B"}},
            )
        model = onnx.load(temporary)
        for key, value in metadata.items():
            model.metadata_props.add(key=key, value=value)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, temporary)
