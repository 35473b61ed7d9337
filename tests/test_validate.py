"""The validator finds each fault of a manifest by its line, and nothing in a sound one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.corpora.validate import Finding, validate_manifest
from asr.manifest import ManifestError
from asr.text import Vocabulary

RATE = 16_000


def write_audio(path: Path, duration_s: float, *, peak: float = 0.3) -> Path:
    soundfile.write(path, peak * np.sin(np.arange(round(duration_s * RATE))), RATE)
    return path


def write_manifest(folder: Path, *rows: dict[str, object] | str) -> Path:
    path = folder / "manifest.jsonl"
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def row(folder: Path, name: str = "a.wav", **changes: object) -> dict[str, object]:
    """Return a sound line: two seconds of audio, three words."""
    if not (folder / name).exists():
        write_audio(folder / name, 2.0)
    return {"audio_filepath": name, "duration": 2.0, "text": "one two three", "id": name} | changes


def test_a_sound_manifest_has_no_findings(tmp_path: Path) -> None:
    assert validate_manifest(write_manifest(tmp_path, row(tmp_path, "a.wav"), row(tmp_path, "b.wav"))) == []


@pytest.mark.parametrize(
    ("changes", "problem", "severity"),
    [
        ({"audio_filepath": "absent.wav"}, "missing file", "error"),
        ({"text": "  "}, "the text is empty", "error"),
        ({"text": "room 101"}, "'0' (U+0030), '1' (U+0031)", "error"),
        ({"text": "one  two three "}, "not normalised", "warning"),
        ({"duration": 2.06}, "wrong duration", "error"),
        ({"offset": 0.5, "duration": 1.6}, "wrong duration", "error"),
        ({"duration": 1.9}, "wrong duration", "warning"),
        ({"duration": 0.05, "offset": 0.1, "text": "a"}, "too short", "error"),
        ({"text": "a b c d e f g h i j k l m n"}, "7.0 words a second", "warning"),
        ({"duration": -1}, "'duration' must be a positive", "error"),
        ({"text": 5}, "'text' must be a string", "error"),
    ],
)
def test_each_fault_is_found_on_its_line_and_alone(
    tmp_path: Path, changes: dict[str, object], problem: str, severity: str
) -> None:
    findings = validate_manifest(write_manifest(tmp_path, row(tmp_path, "a.wav"), row(tmp_path, "b.wav", **changes)))
    (finding,) = findings
    assert (finding.line, finding.severity) == (2, severity)
    assert problem in finding.problem


def test_durations_may_be_50_ms_off(tmp_path: Path) -> None:
    assert validate_manifest(write_manifest(tmp_path, row(tmp_path, duration=2.04))) == []
    assert validate_manifest(write_manifest(tmp_path, row(tmp_path, duration=1.96))) == []


def test_a_text_must_fit_its_frames_with_a_blank_between_repeats(tmp_path: Path) -> None:
    # 2 s are 201 frames of 10 ms, 51 after subsampling by 4.
    assert validate_manifest(write_manifest(tmp_path, row(tmp_path, text="ab" * 25 + "a"))) == []
    for text, num_needed in (("ab" * 26, 52), ("ab" * 25 + "b", 52), ("a" * 26 + "b", 52)):
        (finding,) = validate_manifest(write_manifest(tmp_path, row(tmp_path, text=text)))
        assert f"needs {num_needed} frames for CTC, its audio has 51" in finding.problem
    assert validate_manifest(write_manifest(tmp_path, row(tmp_path, text="ab" * 26)), frame_s=0.02) == []


def test_long_audio_and_few_words_are_warnings(tmp_path: Path) -> None:
    write_audio(tmp_path / "long.wav", 41.0)
    findings = validate_manifest(write_manifest(tmp_path, row(tmp_path, "long.wav", duration=41.0)))
    assert [finding.severity for finding in findings] == ["warning", "warning"]
    assert [finding.problem.split(":")[0].split(",")[0] for finding in findings] == ["0.07 words a second", "long"]


def test_unreadable_damaged_and_silent_audio_are_found(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("not audio")
    (tmp_path / "empty.wav").write_bytes(b"")
    write_audio(tmp_path / "whole.flac", 2.0)
    data = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "damaged.flac").write_bytes(data[: len(data) // 2])
    write_audio(tmp_path / "silent.wav", 2.0, peak=0.0)
    names = ("text.wav", "empty.wav", "damaged.flac", "silent.wav")
    findings = validate_manifest(write_manifest(tmp_path, *(row(tmp_path, name) for name in names)))
    assert [(finding.line, finding.severity) for finding in findings] == [
        (1, "error"),
        (2, "error"),
        (3, "error"),
        (4, "warning"),
    ]
    assert [finding.problem.split(":")[0] for finding in findings[:2]] == ["unreadable", "unreadable"]
    assert "silent" in findings[3].problem


def test_parts_of_one_recording_are_no_repeats_unless_they_overlap(tmp_path: Path) -> None:
    first, second = row(tmp_path, duration=1.0, id="u1"), row(tmp_path, duration=1.0, offset=1.0, id="u2")
    assert validate_manifest(write_manifest(tmp_path, first, second)) == []
    (finding,) = validate_manifest(write_manifest(tmp_path, first, second | {"offset": 0.5}))
    assert (finding.line, finding.severity) == (2, "warning")
    assert "the audio is that of line 1 too" in finding.problem


def test_repeated_ids_are_errors(tmp_path: Path) -> None:
    findings = validate_manifest(write_manifest(tmp_path, row(tmp_path), row(tmp_path, "b.wav", id="a.wav")))
    assert findings == [Finding(2, "a.wav", "the id is that of line 1 too", "error")]


def test_lines_that_are_no_utterances_are_reported_and_the_others_still_checked(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, row(tmp_path), "{not json", "[1]", "", row(tmp_path, "b.wav", text=""))
    findings = validate_manifest(manifest)
    assert [finding.line for finding in findings] == [2, 3, 4, 5]
    assert str(manifest) not in findings[0].problem


def test_without_a_vocabulary_letters_of_any_script_pass_and_punctuation_does_not(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, row(tmp_path, text="grüße 42"), row(tmp_path, "b.wav", text="what is it?"))
    (finding,) = validate_manifest(manifest, vocabulary=None)
    assert (finding.line, finding.severity) == (2, "error")
    assert "'?' (U+003F)" in finding.problem
    german = Vocabulary.from_texts(["grüße 42 what is it"])
    assert [f.line for f in validate_manifest(manifest, vocabulary=german)] == [2]


def test_a_manifest_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="cannot be read"):
        validate_manifest(tmp_path / "absent.jsonl")
