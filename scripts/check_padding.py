"""Print how far the log-probabilities of utterances alone are from those of the same utterances in padded batches.

Without a model folder, random networks of every cell, direction and subsampling are tried. Exit code 1 when the largest difference
reaches 1e-5 or a greedy text differs.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator

import numpy as np
import torch

from asr.checkpoint import load_model_folder, load_network
from asr.ctc import collapse
from asr.model import CELLS, AcousticModel, ModelConfig

TOLERANCE = 1e-5
BATCH_SIZE = 32


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", help="model folder (default: random networks)")
    parser.add_argument("--sets", type=int, default=500, help="random batches (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=400, help="longest utterance in feature frames of 10 ms (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    arguments = parser.parse_args()

    rng = np.random.default_rng(arguments.seed)
    worst, num_other_texts = 0.0, 0
    for number, network in zip(range(arguments.sets), networks(arguments.model), strict=False):
        difference, other_texts = check_set(network, rng, longest=arguments.frames)
        worst, num_other_texts = max(worst, difference), num_other_texts + other_texts
        if (number + 1) % 50 == 0:
            print(f"{number + 1} sets: largest difference {worst:.2e}, other texts {num_other_texts}", file=sys.stderr)
    print(f"largest difference {worst:.2e}, other texts {num_other_texts}, in {arguments.sets} sets of {BATCH_SIZE} utterances")
    return int(worst >= TOLERANCE or num_other_texts > 0)


def networks(model: str | None) -> Iterator[AcousticModel]:
    """Yield the model of a folder for ever, or random networks of every kind in turn."""
    if model is not None:
        yield from itertools.repeat(load_network(load_model_folder(model)))
    torch.manual_seed(0)
    for cell, bidirectional, subsampling in itertools.cycle(itertools.product(CELLS, (True, False), (2, 4, 8))):
        config = ModelConfig(
            cell=cell, bidirectional=bidirectional, subsampling=subsampling, num_layers=2, hidden_size=32, conv_channels=32, num_mels=20
        )
        yield AcousticModel(config).eval().requires_grad_(False)


def check_set(network: AcousticModel, rng: np.random.Generator, *, longest: int) -> tuple[float, int]:
    """Return the largest difference of log-probabilities, and how many greedy labellings differ, of one utterance among 31 others."""
    lengths = rng.integers(1, longest + 1, BATCH_SIZE)
    size = int(lengths.max())
    features = torch.from_numpy(rng.standard_normal((BATCH_SIZE, size, network.config.num_mels)).astype(np.float32))
    one = int(rng.integers(BATCH_SIZE))
    with torch.inference_mode():
        together, output_lengths = network(features, torch.from_numpy(lengths))
        alone, _ = network(features[one : one + 1, : lengths[one]], torch.from_numpy(lengths[one : one + 1]))
    inside = together[one, : int(output_lengths[one])]
    texts = [collapse(rows.argmax(dim=-1).tolist()) for rows in (inside, alone[0])]
    return float((inside - alone[0]).abs().max()), int(texts[0] != texts[1])


if __name__ == "__main__":
    sys.exit(main())
