"""Train one epoch on parts of a manifest, each in a process of its own, and print where the time goes, how it grows with the hours, and the memory."""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asr.manifest import read_manifest, write_manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--hours", type=float, nargs="+", default=[0.25, 0.5, 1.0], help="of audio, an epoch each (default: 0.25 0.5 1)")
    parser.add_argument("--batch-seconds", type=float, default=100.0, help="seconds of audio a step (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=3, help="recurrent layers (default: %(default)s)")
    parser.add_argument("--hidden-size", type=int, default=256, help="units of a layer in each direction (default: %(default)s)")
    parser.add_argument("--precision", default="auto", help="of the products: auto, float32, bfloat16 or float16 (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes that read and augment speech (default: %(default)s)")
    arguments = parser.parse_args()
    utterances = sorted(read_manifest(arguments.manifest), key=lambda utterance: hash_of(utterance.id))
    print("| hours | steps | s an epoch | audio s a s | waiting for the loader | features, forward, loss | backward | optimiser, average | peak MB |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for hours in arguments.hours:
        with tempfile.TemporaryDirectory() as folder:
            part, seconds = [], 0.0
            for utterance in utterances:
                if seconds >= 3600 * hours:
                    break
                part.append(utterance)
                seconds += utterance.duration
            write_manifest(Path(folder) / "part.jsonl", part)
            context = multiprocessing.get_context("spawn")
            child = context.Process(target=run_epoch, args=(Path(folder), arguments))
            child.start()
            child.join()
            if child.exitcode:
                raise SystemExit(child.exitcode)
            figures = json.loads((Path(folder) / "figures.json").read_text())
        total = figures["epoch"]
        wait = 1 - (figures["forward"] + figures["backward"] + figures["update"]) / total
        shares = [f"{100 * share:.1f} %" for share in (wait, *(figures[name] / total for name in ("forward", "backward", "update")))]
        print(f"| {seconds / 3600:.2f} | {figures['steps']:.0f} | {total:.1f} | {seconds / total:.0f} | {' | '.join(shares)} | {figures['megabytes']:.0f} |", flush=True)


def hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def run_epoch(folder: Path, arguments: argparse.Namespace) -> None:
    """Train an epoch on part.jsonl and write figures.json: seconds of the epoch and of its parts, steps, peak memory without the loader's process."""
    import torch

    import asr.train
    from asr.model import ModelConfig
    from asr.train import TrainConfig, train

    seconds: defaultdict[str, float] = defaultdict(float)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*positional: Any, **named: Any) -> Any:
            with clock(seconds, name, arguments.device):
                return function(*positional, **named)

        return run

    asr.train._piece_loss = timed("forward", asr.train._piece_loss)
    asr.train._step = timed("step", asr.train._step)
    torch.Tensor.backward = timed("backward", torch.Tensor.backward)  # type: ignore[method-assign]
    asr.train._train_epoch = timed("epoch", asr.train._train_epoch)
    config = TrainConfig(
        train_manifests=(str(folder / "part.jsonl"),),
        model=ModelConfig(num_layers=arguments.layers, hidden_size=arguments.hidden_size),
        batch_s=arguments.batch_seconds,
        epochs=1,
        warmup_epochs=0.5,
        precision=arguments.precision,
        num_threads=arguments.threads,
        num_workers=arguments.workers,
        device=arguments.device,
    )
    result = train(config, folder / "run")
    figures = {
        **seconds,
        "update": seconds["step"] - seconds["forward"] - seconds["backward"],
        "steps": result.steps,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    (folder / "figures.json").write_text(json.dumps(figures))


@contextmanager
def clock(seconds: dict[str, float], name: str, device: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    if device != "cpu":
        import torch

        torch.cuda.synchronize()
    seconds[name] += time.perf_counter() - start


if __name__ == "__main__":
    main()
