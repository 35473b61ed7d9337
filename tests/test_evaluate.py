"""Facts about evaluating a manifest, with a transcriber that tells utterances apart by the level of their samples."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from asr.audio import SAMPLE_RATE
from asr.evaluate import (
    EvaluationError,
    evaluate_manifest,
    frequent_confusions,
    results_table,
    worst_utterances,
)

REFERENCES = ["The cat sat.", "a big dog barked", "yes", "it's a fine day", ""]
HYPOTHESES = ["the cap sat", "a dog barked loudly", "yes", "it's a fine day", "uh"]
DURATIONS_S = [0.3, 0.5, 0.1, 0.4, 0.2]


@dataclass(frozen=True)
class Recognised:
    text: str


@dataclass
class LevelTranscriber:
    """Says the k-th text for a waveform of level (k + 1) / 16; keeps the batches it was given."""

    texts: Sequence[str] = tuple(HYPOTHESES)
    name: str = "level"
    decoder_settings: dict[str, Any] = field(default_factory=lambda: {"beam_size": 4})
    batches: list[list[float]] = field(default_factory=list)

    def transcribe_batch(self, waveforms: list[np.ndarray], /) -> list[Recognised]:
        self.batches.append([len(waveform) / SAMPLE_RATE for waveform in waveforms])
        return [Recognised(self.texts[_level(waveform)]) for waveform in waveforms]


class FragileTranscriber(LevelTranscriber):
    """Fails on the waveform of level 3, alone or in company."""

    def transcribe_batch(self, waveforms: list[np.ndarray], /) -> list[Recognised]:
        if any(_level(waveform) == 3 for waveform in waveforms):
            raise RuntimeError("singular matrix")
        return super().transcribe_batch(waveforms)


class SmallTranscriber(LevelTranscriber):
    """Cannot take more than two waveforms."""

    def transcribe_batch(self, waveforms: list[np.ndarray], /) -> list[Recognised]:
        if len(waveforms) > 2:
            raise MemoryError
        return super().transcribe_batch(waveforms)


class ForgetfulTranscriber(LevelTranscriber):
    def transcribe_batch(self, waveforms: list[np.ndarray], /) -> list[Recognised]:
        return super().transcribe_batch(waveforms)[:-1]


class SlowTranscriber(LevelTranscriber):
    def transcribe_batch(self, waveforms: list[np.ndarray], /) -> list[Recognised]:
        time.sleep(0.15)
        return super().transcribe_batch(waveforms)


def _level(waveform: np.ndarray) -> int:
    assert waveform.dtype == np.float32 and waveform.ndim == 1
    return round(float(np.median(waveform)) * 16) - 1


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    rows = []
    for k, (text, duration) in enumerate(zip(REFERENCES, DURATIONS_S, strict=True)):
        soundfile.write(tmp_path / f"u{k}.wav", np.full(round(duration * SAMPLE_RATE), (k + 1) / 16), SAMPLE_RATE)
        row = {"audio_filepath": f"u{k}.wav", "duration": duration, "text": text}
        rows.append(row | {"speaker": f"s{k % 2}", "id": f"u{k}"})
    return _write(tmp_path / "test.jsonl", rows)


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _rows(manifest: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in manifest.read_text().splitlines()]


def test_counts_are_those_made_by_hand(manifest: Path) -> None:
    # cat -> cap; big deleted, loudly inserted; uh inserted where nothing is said; 3 + 4 + 1 + 4 words
    words = evaluate_manifest(LevelTranscriber(), manifest).words
    assert (words.substitutions, words.deletions, words.insertions, words.reference_length) == (1, 1, 2, 12)


def test_results_are_in_manifest_order_whatever_the_batches(manifest: Path) -> None:
    whole, single = LevelTranscriber(), LevelTranscriber()
    result = evaluate_manifest(whole, manifest)
    assert [utterance.id for utterance in result.utterances] == ["u0", "u1", "u2", "u3", "u4"]
    assert [utterance.hypothesis for utterance in result.utterances] == HYPOTHESES
    assert evaluate_manifest(single, manifest, batch_seconds=0.01).utterances == result.utterances
    assert (len(whole.batches), len(single.batches)) == (1, 5)


def test_batches_hold_like_lengths_and_padded_stay_within_their_seconds(manifest: Path) -> None:
    transcriber = LevelTranscriber()
    evaluate_manifest(transcriber, manifest, batch_seconds=0.8)
    assert transcriber.batches == [[0.5], [0.4, 0.3], [0.2, 0.1]]


def test_both_sides_are_normalised_the_same_way(manifest: Path) -> None:
    shouting = LevelTranscriber([text.upper() + "!" for text in REFERENCES])
    assert evaluate_manifest(shouting, manifest).words.errors == 0
    assert evaluate_manifest(shouting, manifest, normalise=str).words.errors > 0


def test_offset_and_duration_choose_the_part_of_the_file(tmp_path: Path) -> None:
    levels = np.repeat([1 / 16, 2 / 16, 3 / 16], SAMPLE_RATE // 2)
    soundfile.write(tmp_path / "long.wav", levels, SAMPLE_RATE)
    rows = [
        {"audio_filepath": "long.wav", "duration": 0.5, "offset": 0.5 * k, "text": text} for k, text in enumerate("cba")
    ]
    result = evaluate_manifest(LevelTranscriber(["c", "b", "a"]), _write(tmp_path / "m.jsonl", rows))
    assert result.words.hits == 3
    assert [utterance.duration for utterance in result.utterances] == [0.5] * 3


def test_json_has_the_promised_keys_and_only_finite_numbers(manifest: Path) -> None:
    result = evaluate_manifest(LevelTranscriber(), manifest)
    row = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert (row["manifest"], row["model"], row["decoder_settings"]) == (str(manifest), "level", {"beam_size": 4})
    assert (row["num_utterances"], row["num_words"]) == (5, 12)
    assert (row["substitutions"], row["deletions"], row["insertions"]) == (1, 1, 2)
    assert row["wer"] == pytest.approx(4 / 12)
    assert row["wer_interval"][0] <= row["wer"] <= row["wer_interval"][1]
    assert row["cer_interval"][0] <= row["cer"] <= row["cer_interval"][1]
    assert row["duration_s"] == pytest.approx(sum(DURATIONS_S))
    assert row["rtf"] == pytest.approx(row["processing_s"] / row["duration_s"])
    assert [utterance["errors"] for utterance in row["utterances"]] == [1, 2, 0, 0, 1]
    assert row["utterances"][0] == {
        "id": "u0",
        "speaker": "s0",
        "duration": 0.3,
        "reference": "the cat sat",
        "hypothesis": "the cap sat",
        "num_words": 3,
        "errors": 1,
        "substitutions": 1,
        "deletions": 0,
        "insertions": 0,
        "audio_filepath": str(manifest.parent / "u0.wav"),
        "offset": 0.0,
        "words": [],
    }


def test_manifest_without_a_spoken_word_has_a_finite_rate(manifest: Path) -> None:
    silent = [row | {"text": ""} for row in _rows(manifest)]
    row = evaluate_manifest(LevelTranscriber(), _write(manifest, silent)).to_json()
    assert (row["wer"], row["num_words"], row["insertions"]) == (13, 0, 13)
    assert all(math.isfinite(bound) for bound in row["wer_interval"] + row["cer_interval"])


def test_rtf_counts_the_transcribers_time(manifest: Path) -> None:
    start = time.perf_counter()
    result = evaluate_manifest(SlowTranscriber(), manifest)
    assert 0.15 <= result.rtf * sum(DURATIONS_S) <= time.perf_counter() - start


def test_transcriber_without_decoder_settings_is_taken(manifest: Path) -> None:
    transcriber = LevelTranscriber()
    del transcriber.decoder_settings
    assert evaluate_manifest(transcriber, manifest).to_json()["decoder_settings"] == {}


def test_missing_file_is_an_error_with_the_manifests_line(manifest: Path) -> None:
    (manifest.parent / "u2.wav").unlink()
    with pytest.raises(EvaluationError, match=r"test\.jsonl:3 \(u2\): .*u2\.wav: no such file"):
        evaluate_manifest(LevelTranscriber(), manifest)


def test_truncated_file_is_an_error_and_not_a_short_hypothesis(manifest: Path) -> None:
    soundfile.write(manifest.parent / "u1.wav", np.full(2000, 2 / 16), SAMPLE_RATE)
    with pytest.raises(EvaluationError, match=r"test\.jsonl:2 \(u1\): .* has 0\.12 s .* the manifest says 0\.50 s"):
        evaluate_manifest(LevelTranscriber(), manifest)


def test_utterance_that_fails_in_a_batch_is_named(manifest: Path) -> None:
    with pytest.raises(EvaluationError, match=r"^[^,]*:4 \(u3\): cannot be transcribed \(singular matrix\)$"):
        evaluate_manifest(FragileTranscriber(), manifest)


def test_batch_that_is_only_too_large_says_so(manifest: Path) -> None:
    with pytest.raises(EvaluationError, match=r"though each can alone \(MemoryError\); lower batch_seconds"):
        evaluate_manifest(SmallTranscriber(), manifest)


def test_missing_result_is_an_error(manifest: Path) -> None:
    with pytest.raises(EvaluationError, match="expected 5 results from level, found 4"):
        evaluate_manifest(ForgetfulTranscriber(), manifest)


def test_wrong_settings_are_refused_before_anything_is_read(manifest: Path) -> None:
    transcriber = LevelTranscriber()
    with pytest.raises(EvaluationError, match="batch_seconds"):
        evaluate_manifest(transcriber, manifest, batch_seconds=0.0)
    with pytest.raises(EvaluationError, match="num_resamples"):
        evaluate_manifest(transcriber, manifest, num_resamples=0)
    assert not transcriber.batches


def test_interval_over_speakers_needs_speakers(manifest: Path) -> None:
    low, high = evaluate_manifest(LevelTranscriber(), manifest, interval_over="speakers").wer_interval
    assert [low, high] == pytest.approx([2 / 8, 2 / 4])  # s0: 2 errors in 4 words; s1: 2 in 8
    rows = _rows(manifest)
    del rows[1]["speaker"]
    with pytest.raises(EvaluationError, match=r"test\.jsonl:2 \(u1\): no speaker"):
        evaluate_manifest(LevelTranscriber(), _write(manifest, rows), interval_over="speakers")


def test_table_has_a_row_a_manifest_and_a_total_of_all_utterances(manifest: Path) -> None:
    result = evaluate_manifest(LevelTranscriber(), manifest)
    header, rule, row = results_table([result]).split("\n")
    assert header == "| manifest | utterances | words | WER % [95 %] | CER % [95 %] | sub | del | ins | RTF |"
    assert rule.count("|") == row.count("|") == header.count("|")
    assert row.startswith(f"| {manifest} | 5 | 12 | 33.33 [")
    assert "| 1 | 1 | 2 |" in row
    *_, total = results_table([result, result]).split("\n")
    assert total.startswith("| total | 10 | 24 | 33.33 [")
    assert "| 2 | 2 | 4 |" in total


def test_worst_utterances_come_first_and_right_ones_not_at_all(manifest: Path) -> None:
    result = evaluate_manifest(LevelTranscriber(), manifest)
    assert worst_utterances(result, 2) == (
        "u1 (speaker s1, 0.50 s) %WER 50.00 [ 2 / 4, 1 ins, 1 del, 0 sub ]\n"
        "REF:  a big dog barked ******\n"
        "HYP:  a *** dog barked loudly\n"
        "Eval:   D              I\n"
        "\n"
        "u4 (speaker s0, 0.20 s) %WER 100.00 [ 1 / 0, 1 ins, 0 del, 0 sub ]\n"
        "REF:  **\n"
        "HYP:  uh\n"
        "Eval: I"
    )
    assert len(worst_utterances(result).split("\n\n")) == 3


def test_frequent_confusions_name_the_words(manifest: Path) -> None:
    report = frequent_confusions(evaluate_manifest(LevelTranscriber(), manifest))
    assert report.split("\n") == [
        "substitutions: 1, 1 different",
        "     1  cat -> cap",
        "deletions: 1, 1 different",
        "     1  big",
        "insertions: 2, 2 different",
        "     1  loudly",
        "     1  uh",
    ]
