"""Facts about bulk transcription: two workers of a local Ray give the texts that one Transcriber gives, and a second run only what is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from asr.audio import load_audio, write_wav
from asr.manifest import Utterance, write_manifest
from asr.transcribe import Transcriber

pytest.importorskip("ray", reason="needs the extra bulk")
pytestmark = pytest.mark.slow  # Ray takes long to start

ROOT = Path(__file__).parents[1]
SPEECH = Path(__file__).parent / "data" / "sense_and_sensibility.wav"


def _run(shards: list[Path], out: Path) -> tuple[int, str]:
    command = [sys.executable, ROOT / "recipes" / "bulk" / "transcribe.py", *shards, "--out", out, "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local"}, timeout=300)
    return done.returncode, done.stdout.splitlines()[-1] if done.stdout else done.stderr


def test_two_workers_transcribe_shards_and_a_second_run_only_what_is_missing(tmp_path: Path) -> None:
    waveform = load_audio(SPEECH)
    texts = {}
    transcriber = Transcriber(num_threads=1)
    for number, part in enumerate((waveform[:40_000], waveform[40_000:], waveform[:60_000])):
        path = tmp_path / f"{number}.wav"
        write_wav(path, part)
        texts[str(path)] = transcriber.transcribe(path).text
    utterances = [Utterance(path, load_audio(path).size / 16_000, "") for path in texts]
    shards = [tmp_path / "shards" / f"{name}.jsonl" for name in ("a", "b", "c")]
    write_manifest(shards[0], utterances[:2])
    write_manifest(shards[1], utterances[2:])
    write_manifest(shards[2], [Utterance(str(tmp_path / "none.wav"), 1.0, ""), utterances[0]])
    out = tmp_path / "out"
    assert _run(shards[:2], out) == (0, "2 shards done, 0 were there; 3 utterances, 0.00 h, 0 errors")
    rows = [json.loads(line) for shard in shards[:2] for line in (out / shard.name).read_text().splitlines()]
    assert {row["audio_filepath"]: row["pred_text"] for row in rows} == texts
    before = {shard: (out / shard.name).stat().st_mtime_ns for shard in shards[:2]}
    assert _run(shards, out) == (1, "1 shards done, 2 were there; 2 utterances, 0.00 h, 1 errors")
    assert {shard: (out / shard.name).stat().st_mtime_ns for shard in shards[:2]} == before
    bad, good = (json.loads(line) for line in (out / "c.jsonl").read_text().splitlines())
    assert "none.wav" in bad["error"] and "pred_text" not in bad
    assert good["pred_text"] == texts[good["audio_filepath"]]
