"""Facts about manifests, reading utterances and batches."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.audio import AudioError, write_wav
from asr.augment import AugmentConfig
from asr.data import SpeechDataset, collate, epoch_batches, utterance_seed
from asr.manifest import ManifestError, Utterance, read_manifest, read_utterance, write_manifest
from asr.text import ENGLISH, TextError

GOOD = '{"audio_filepath": "a.wav", "duration": 1.5, "text": "hello"}'


def manifest(tmp_path: Path, data: str | bytes) -> Path:
    path = tmp_path / "m.jsonl"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_relative_paths_are_relative_to_the_manifest_and_the_id_is_the_stem(tmp_path: Path) -> None:
    (utterance,) = read_manifest(manifest(tmp_path, GOOD))
    assert utterance == Utterance(str(tmp_path / "a.wav"), 1.5, "hello", id="a")
    (utterance,) = read_manifest(manifest(tmp_path, GOOD.replace("a.wav", "/x/../y/a.wav")))
    assert utterance.audio_filepath == "/y/a.wav"


@pytest.mark.parametrize("ending", ["\n", "\r\n", ""])
def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path, ending: str) -> None:
    second = GOOD.replace("a.wav", "b.wav").replace("hello", "école")
    utterances = read_manifest(manifest(tmp_path, b"\xef\xbb\xbf" + (GOOD + (ending or "\n") + second + ending).encode()))
    assert [utterance.id for utterance in utterances] == ["a", "b"]
    assert utterances[1].text == "école"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{not json}", "not a JSON object"),
        ("", "not a JSON object"),
        ("[1, 2]", "found list"),
        ("[" * 100_000, "not a JSON object"),
        (b"\xff\xfe{}", "not UTF-8"),
        ('{"duration": 1, "text": "a"}', "'audio_filepath' is missing"),
        ('{"audio_filepath": "a.wav", "text": "a"}', "'duration' is missing"),
        ('{"audio_filepath": "a.wav", "duration": 1}', "'text' is missing"),
        ('{"audio_filepath": "", "duration": 1, "text": "a"}', "not a path"),
        ('{"audio_filepath": "a\\u0000", "duration": 1, "text": "a"}', "not a path"),
        ('{"audio_filepath": 7, "duration": 1, "text": "a"}', "must be a string"),
        ('{"audio_filepath": "a", "duration": "1", "text": "a"}', "must be a number"),
        ('{"audio_filepath": "a", "duration": true, "text": "a"}', "must be a number"),
        ('{"audio_filepath": "a", "duration": NaN, "text": "a"}', "positive number"),
        ('{"audio_filepath": "a", "duration": Infinity, "text": "a"}', "positive number"),
        ('{"audio_filepath": "a", "duration": 0, "text": "a"}', "positive number"),
        ('{"audio_filepath": "a", "duration": -1, "text": "a"}', "positive number"),
        ('{"audio_filepath": "a", "duration": 1' + "0" * 400 + ', "text": "a"}', "too large"),
        ('{"audio_filepath": "a", "duration": 1, "text": "a", "offset": -1}', "'offset'"),
        ('{"audio_filepath": "a", "duration": 1, "text": "a", "offset": NaN}', "'offset'"),
        ('{"audio_filepath": "a", "duration": 1, "text": null}', "'text' is missing"),
    ],
)
def test_bad_lines_are_named_by_file_and_number(tmp_path: Path, line: str | bytes, reason: str) -> None:
    data = GOOD.encode() + b"\n" + (line if isinstance(line, bytes) else line.encode()) + b"\n" + GOOD.encode()
    with pytest.raises(ManifestError, match=reason) as error:
        read_manifest(manifest(tmp_path, data))
    assert "m.jsonl:2:" in str(error.value)


def test_an_empty_or_missing_manifest_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="empty"):
        read_manifest(manifest(tmp_path, ""))
    with pytest.raises(ManifestError, match="cannot be read"):
        read_manifest(tmp_path / "missing.jsonl")
    with pytest.raises(ManifestError, match="cannot be read"):
        read_manifest(tmp_path)


def test_a_manifest_written_and_read_is_the_same_and_moves_with_its_folder(tmp_path: Path) -> None:
    inside = Utterance(str(tmp_path / "one" / "wavs" / "a.wav"), 1.25, "a 'quoted' é", offset=0.5, speaker="s", id="x")
    outside = Utterance("/elsewhere/b.wav", 2.0, "b", id="b")
    write_manifest(tmp_path / "one" / "m.jsonl", [inside, outside])
    assert read_manifest(tmp_path / "one" / "m.jsonl") == [inside, outside]
    rows = [json.loads(line) for line in (tmp_path / "one" / "m.jsonl").read_text().splitlines()]
    assert rows[0]["audio_filepath"] == "wavs/a.wav" and rows[1]["audio_filepath"] == "/elsewhere/b.wav"
    (tmp_path / "one").rename(tmp_path / "two")
    assert read_manifest(tmp_path / "two" / "m.jsonl")[0].audio_filepath == str(tmp_path / "two" / "wavs" / "a.wav")
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["m.jsonl"]


RAMP = (np.arange(32_000) % 1000 / 1000).astype(np.float32)


@pytest.mark.parametrize(
    ("offset", "duration", "first", "last"),
    [
        (0.0, 2.0, 0, 32_000),
        (0.0, 1.9999, 0, 32_000),  # a whole file, its duration rounded
        (0.0, 2.01, 0, 32_000),
        (0.0, 0.5, 0, 8_000),  # the first part of a longer file
        (0.5, 0.25, 8_000, 12_000),
        (1.5, 0.5, 24_000, 32_000),
    ],
)
def test_an_utterance_is_its_part_of_the_file(tmp_path: Path, offset: float, duration: float, first: int, last: int) -> None:
    write_wav(tmp_path / "a.wav", RAMP)
    waveform = read_utterance(Utterance(str(tmp_path / "a.wav"), duration, "a", offset=offset))
    assert len(waveform) == last - first
    assert np.allclose(waveform, RAMP[first:last], atol=1e-4)


def test_unreadable_audio_names_utterance_and_file(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"'u7'.*gone\.wav"):
        read_utterance(Utterance(str(tmp_path / "gone.wav"), 1.0, "a", id="u7"))


def test_texts_outside_the_vocabulary_name_the_utterance() -> None:
    with pytest.raises(TextError, match=r"'u7' \(/a\.wav\).*'4'"):
        SpeechDataset([Utterance("/a.wav", 1.0, "a4", id="u7")], ENGLISH)


def test_the_seed_of_an_item_alone_decides_its_augmentation(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", RAMP)
    utterances = [Utterance(str(tmp_path / "a.wav"), 2.0, "a", id="a")]
    dataset = SpeechDataset(utterances, ENGLISH, augment=AugmentConfig(noise_probability=1.0))
    plain = SpeechDataset(utterances, ENGLISH)
    assert np.array_equal(dataset[0, 1][0], dataset[0, 1][0])
    assert not np.array_equal(dataset[0, 1][0], dataset[0, 2][0])
    assert np.array_equal(plain[0, 1][0], plain[0, 2][0])
    slow = SpeechDataset(utterances, ENGLISH, augment=AugmentConfig(speeds=(1.5,)), fastest_speeds=[1.2])
    assert len(slow[0, 1][0]) == 32_000


def test_other_utterances_are_heard_in_the_background_as_loud_as_was_asked_for(tmp_path: Path) -> None:
    times = np.arange(32_000) / 16_000
    for hz in (300, 400, 500):
        write_wav(tmp_path / f"{hz}.wav", (0.001 * hz * np.sin(2 * np.pi * hz * times)).astype(np.float32))
    utterances = [Utterance(str(tmp_path / f"{hz}.wav"), 2.0, "a", id=str(hz)) for hz in (300, 400, 500)]
    plain = SpeechDataset(utterances, ENGLISH)[1, 0][0]
    augment = AugmentConfig(speeds=(1.0,), speech_probability=1.0, speech_snr_db=(10.0, 10.0))
    dataset = SpeechDataset(utterances, ENGLISH, augment=augment)
    heard = set()
    for seed in range(30):
        added = dataset[1, seed][0] - plain
        assert 10 * np.log10(np.mean(plain**2) / np.mean(added**2)) == pytest.approx(10, abs=0.1)
        heard |= set(np.flatnonzero(np.abs(np.fft.rfft(added)) > 100) / 2)
    assert {300, 500} <= heard <= {300, 400, 500}
    assert np.array_equal(dataset[1, 7][0], dataset[1, 7][0])


def test_collate_pads_with_zeros_and_keeps_the_lengths() -> None:
    frames = np.ones((2, 4), np.float16)
    batch = collate([(np.ones(3, np.float32), [1, 2], [], frames[:1], "a"), (np.ones(5, np.float32), [3], [4, 5], frames, "b")])
    assert batch.waveforms.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch.waveform_lengths.tolist() == [3, 5] and batch.waveform_lengths.dtype == torch.int64
    assert batch.tokens.tolist() == [[1, 2], [3, 0]] and batch.token_lengths.tolist() == [2, 1]
    assert batch.sounds.tolist() == [[0, 0], [4, 5]] and batch.sound_lengths.tolist() == [0, 2]
    assert batch.teacher.tolist() == [[[1.0] * 4, [0.0] * 4], [[1.0] * 4] * 2] and batch.teacher_lengths.tolist() == [1, 2]
    assert batch.names == ("a", "b")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 40), min_size=1, max_size=80), st.floats(1, 100), st.integers(0, 5))
def test_an_epoch_has_every_utterance_once_within_the_budget(durations: list[float], batch_s: float, epoch: int) -> None:
    batches = epoch_batches(durations, batch_s, seed=1, epoch=epoch)
    assert sorted(index for batch in batches for index in batch) == list(range(len(durations)))
    for batch in batches:
        longest = max(durations[index] for index in batch)
        assert len(batch) == 1 or longest * len(batch) <= batch_s
    assert batches == epoch_batches(durations, batch_s, seed=1, epoch=epoch)


def test_epochs_and_seeds_differ_and_padding_is_little() -> None:
    durations = np.random.default_rng(0).uniform(1, 15, 500).tolist()
    first = epoch_batches(durations, 100, seed=0, epoch=0)
    assert first != epoch_batches(durations, 100, seed=0, epoch=1) != epoch_batches(durations, 100, seed=1, epoch=1)
    padded = sum(len(batch) * max(durations[i] for i in batch) for batch in first)
    assert padded < 1.2 * math.fsum(durations)


def test_utterance_seeds_differ_in_every_part() -> None:
    seeds = {utterance_seed(seed, epoch, index) for seed in range(5) for epoch in range(5) for index in range(40)}
    assert len(seeds) == 1000
    assert utterance_seed(1, 2, 3) == utterance_seed(1, 2, 3)
