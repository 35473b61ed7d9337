"""Transcribe an archive with Ray Data: manifest shards in, the same shards with `pred_text` out; a shard is written whole or not at all.

    python recipes/bulk/transcribe.py shards/*.jsonl --out transcripts --workers 2

What is already in the output folder is not done again, so a run that was killed is started again with the same command.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from asr.audio import AudioError
from asr.manifest import Utterance, read_manifest, read_utterance
from asr.storage import write_atomically
from asr.transcribe import Transcriber

GROUP_S = 120.0  # seconds of audio recognised together


class Worker:
    """One actor: a model, loaded once, that transcribes shard after shard on one core."""

    def __init__(self, model: str, out: str) -> None:
        self.transcriber = Transcriber(model, num_threads=1)
        self.out = Path(out)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Transcribe the shards in the column `shard`; return their numbers of utterances and errors and seconds of audio."""
        counts = [self._transcribe_shard(Path(shard)) for shard in batch["shard"]]
        utterances, errors, seconds = (np.array(column) for column in zip(*counts, strict=True))
        return batch | {"utterances": utterances, "errors": errors, "seconds": seconds}

    def _transcribe_shard(self, shard: Path) -> tuple[int, int, float]:
        utterances = read_manifest(shard)
        rows: list[dict[str, Any]] = []
        for group in _groups(utterances):
            rows += self._transcribe_group(group)
        write_atomically(self.out / shard.name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
        return len(rows), sum("error" in row for row in rows), sum(utterance.duration for utterance in utterances)

    def _transcribe_group(self, group: list[Utterance]) -> list[dict[str, Any]]:
        """Return a row an utterance: its keys in the manifest and `pred_text`, or `error` where the audio cannot be read."""
        rows: list[dict[str, Any]] = [dataclasses.asdict(utterance) for utterance in group]
        waveforms, found = [], []
        for utterance, row in zip(group, rows, strict=True):
            try:
                waveforms.append(read_utterance(utterance))
                found.append(row)
            except AudioError as error:
                row["error"] = str(error)
        for row, transcript in zip(found, self.transcriber.transcribe_batch(waveforms) if waveforms else [], strict=True):
            row["pred_text"] = transcript.text
        return rows


def _groups(utterances: list[Utterance]) -> list[list[Utterance]]:
    groups: list[list[Utterance]] = [[]]
    for utterance in utterances:
        if groups[-1] and sum(u.duration for u in groups[-1]) + utterance.duration > GROUP_S:
            groups.append([])
        groups[-1].append(utterance)
    return groups


def transcribe_shards(shards: list[Path], out: Path, *, model: str = "english", num_workers: int = 2) -> dict[str, float]:
    """Transcribe the shards that are not in `out` yet; return the sums of what the workers counted. Raises ValueError for shards of one name."""
    if len({shard.name for shard in shards}) < len(shards):
        raise ValueError("two shards have the same name; their transcripts would be one file")
    import ray  # the extra 'bulk'; not needed for --help

    missing = [{"shard": str(shard.resolve())} for shard in shards if not (out / shard.name).exists()]
    totals = {"shards": float(len(missing)), "utterances": 0.0, "errors": 0.0, "seconds": 0.0}
    if missing:
        dataset = ray.data.from_items(missing, override_num_blocks=len(missing))
        done = dataset.map_batches(Worker, fn_constructor_args=(model, str(out.resolve())), batch_size=1, concurrency=num_workers, num_cpus=1)
        for row in done.iter_rows():
            totals |= {key: totals[key] + float(row[key]) for key in ("utterances", "errors", "seconds")}
    return totals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="+", type=Path, help="manifests (JSONL); their names are those of the transcripts")
    parser.add_argument("--out", required=True, type=Path, help="folder for the transcripts, on a disk that all workers see")
    parser.add_argument("--model", default="english", help="a shipped model's name, or a model folder that all workers see")
    parser.add_argument("--workers", type=int, default=2, help="actors, one core each")
    options = parser.parse_args()
    totals = transcribe_shards(options.shards, options.out, model=options.model, num_workers=options.workers)
    skipped = len(options.shards) - int(totals["shards"])
    print(f"{totals['shards']:.0f} shards done, {skipped} were there; {totals['utterances']:.0f} utterances, {totals['seconds'] / 3600:.2f} h, {totals['errors']:.0f} errors")
    sys.exit(1 if totals["errors"] else 0)


if __name__ == "__main__":
    main()
