"""The mean of several models' weights, which errs less than each of them if they came of the same weights.

Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing inference time".
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from asr.checkpoint import (
    CONFIG_NAME,
    CheckpointError,
    copy_decoder,
    load_model_folder,
    load_network,
    save_model_folder,
)
from asr.model import AcousticModel, take_over


def average_models(
    models: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], *, weights: Sequence[float] | None = None
) -> None:
    """Write the model folder `out`: the mean of the networks in proportion to `weights`, and all else of the last model.

    A network may lack some of the last one's residual layers; it counts as one in which these do nothing.
    Raises CheckpointError for models that cannot be averaged, for weights that are not one a model, none below 0, not all 0, and where
    `out` holds a model.
    """
    shares = [1.0] * len(models) if weights is None else list(weights)
    if not models or len(shares) != len(models) or min(shares) < 0 or not 0 < sum(shares) < float("inf"):
        raise CheckpointError(f"expected {len(models)} weights, none below 0 and not all 0, found {shares}")
    if (Path(out) / CONFIG_NAME).exists():
        raise CheckpointError(f"{os.fspath(out)}: holds a model already; choose another folder")
    folders = [load_model_folder(model) for model in models]
    last, target = folders[-1], load_network(folders[-1])
    means = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in target.state_dict().items()}
    for folder, share in zip(folders, shares, strict=True):
        if (folder.features, folder.vocabulary, folder.sounds) != (last.features, last.vocabulary, last.sounds):
            raise CheckpointError(f"{folder.path}: its features or vocabulary differ from those of {last.path}")
        network, source = AcousticModel(target.config), load_network(folder)
        network.load_state_dict(target.state_dict())
        try:
            take_over(network, source)
        except ValueError as error:
            raise CheckpointError(f"{folder.path}: {error}") from error
        network.output.load_state_dict(source.output.state_dict())
        for name, tensor in network.state_dict().items():
            means[name] += tensor * (share / sum(shares))
    target.load_state_dict(means)
    parts = ", ".join(f"{share:g} x {folder.name}" for folder, share in zip(folders, shares, strict=True))
    info = {name: value for name, value in last.info.items() if name != "dev_wer"} | {"average_of": parts}
    card = f"# {last.name}\n\nThe mean of the weights of {parts}.\n"
    copy_decoder(last, out)
    save_model_folder(out, target, features=last.features, vocabulary=last.vocabulary, sounds=last.sounds, info=info, card=card)
