"""Facts about reading audio. Oracles: samples written by hand, tones whose frequency is known, broken files."""

from __future__ import annotations

import io
import os
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.audio import SAMPLE_RATE, AudioError, as_waveform, audio_duration_s, load_audio, read_blocks, write_wav


def tone(frequency: float, duration_s: float, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    t = np.arange(round(duration_s * sample_rate)) / sample_rate
    return (0.5 * np.sin(2 * np.pi * frequency * t)).astype(np.float32)


def test_a_wav_file_is_its_samples_over_32768(tmp_path: Path) -> None:
    samples = np.array([0, 1, -1, 32767, -32768, 100], np.int16)
    soundfile.write(tmp_path / "a.wav", samples, SAMPLE_RATE)
    waveform = load_audio(tmp_path / "a.wav")
    assert waveform.dtype == np.float32
    assert np.array_equal(waveform, samples.astype(np.float32) / 32768)


@pytest.mark.parametrize("sample_rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize(("name", "subtype"), [("a.wav", "PCM_16"), ("a.flac", "PCM_24"), ("a.ogg", "VORBIS"), ("a.mp3", "MPEG_LAYER_III")])
def test_a_tone_keeps_its_frequency_and_loudness_at_any_rate(tmp_path: Path, sample_rate: int, name: str, subtype: str) -> None:
    soundfile.write(tmp_path / name, tone(1000, 1.0, sample_rate), sample_rate, subtype=subtype)
    waveform = load_audio(tmp_path / name)
    assert abs(len(waveform) - SAMPLE_RATE) <= 1
    middle = waveform[4000:12000]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert np.argmax(spectrum) * SAMPLE_RATE / len(middle) == pytest.approx(1000, abs=2.5)
    assert np.sqrt(2) * middle.std() == pytest.approx(0.5, rel=0.05)


def test_opus_is_read(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.opus", tone(1000, 1.0, 48_000), 48_000, format="OGG", subtype="OPUS")
    assert len(load_audio(tmp_path / "a.opus")) == SAMPLE_RATE


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = tone(440, 0.1), np.zeros(1600, np.float32)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), SAMPLE_RATE, subtype="FLOAT")
    assert np.allclose(load_audio(tmp_path / "a.wav"), left / 2)


@pytest.mark.parametrize("sample_rate", [16_000, 44_100])
@pytest.mark.parametrize("block_s", [0.1, 0.37, 1.0, 5.0])
def test_blocks_together_are_the_whole(tmp_path: Path, sample_rate: int, block_s: float) -> None:
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-1, 1, sample_rate), sample_rate, subtype="FLOAT")
    blocks = list(read_blocks(tmp_path / "a.wav", block_s=block_s))
    assert np.allclose(np.concatenate(blocks), load_audio(tmp_path / "a.wav"), atol=1e-6)


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_a_part_is_that_part_of_the_whole(tmp_path: Path, name: str) -> None:
    soundfile.write(tmp_path / name, np.random.default_rng(0).uniform(-0.5, 0.5, 32_000), SAMPLE_RATE)
    whole = load_audio(tmp_path / name)
    assert np.array_equal(load_audio(tmp_path / name, offset_s=0.5, duration_s=0.25), whole[8000:12000])
    assert np.array_equal(load_audio(tmp_path / name, offset_s=1.5, duration_s=9.0), whole[24000:])
    assert np.array_equal(load_audio(tmp_path / name, duration_s=1e-9), whole[:1])


def test_path_bytes_and_file_object_give_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    write_wav(path, tone(440, 0.2))
    data = path.read_bytes()
    with open(path, "rb") as file:
        sources = [load_audio(str(path)), load_audio(data), load_audio(io.BytesIO(data)), load_audio(file)]
    assert all(np.array_equal(waveform, sources[0]) for waveform in sources)
    assert audio_duration_s(path) == audio_duration_s(data) == 0.2


def test_arrays_are_scaled_by_their_full_range() -> None:
    assert np.array_equal(as_waveform(np.array([-32768, 0, 16384], np.int16)), np.array([-1, 0, 0.5], np.float32))
    assert np.array_equal(as_waveform(np.array([0, 128, 192], np.uint8)), np.array([-1, 0, 0.5], np.float32))
    assert np.array_equal(as_waveform([[0.0, 1.0], [0.5, 0.5]]), np.array([0.5, 0.5], np.float32))
    assert len(as_waveform(tone(440, 1.0, 8000), 8000)) == SAMPLE_RATE


@pytest.mark.parametrize("array", [[], np.zeros((2, 2, 2)), ["a"], None, [[1, 2], [3]], np.zeros((2, 100)), [np.nan], [1e300]])
@pytest.mark.filterwarnings("ignore:overflow")
def test_arrays_that_are_no_audio_are_refused(array: object) -> None:
    with pytest.raises(AudioError, match="array"):
        as_waveform(array)


def test_less_than_a_sample_is_refused() -> None:
    with pytest.raises(AudioError, match="less than one"):
        as_waveform([0.5], 48_000)


def _wav_with(tmp_path: Path, position: int, value: bytes) -> Path:
    write_wav(tmp_path / "a.wav", tone(440, 0.1))
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[position : position + len(value)] = value
    (tmp_path / "a.wav").write_bytes(data)
    return tmp_path / "a.wav"


def test_broken_files_are_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("this is no audio")
    (tmp_path / "folder.wav").mkdir()
    soundfile.write(tmp_path / "none.wav", np.zeros(0), SAMPLE_RATE)
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), SAMPLE_RATE, subtype="FLOAT")
    os.mkfifo(tmp_path / "pipe.wav")
    reasons = {
        "missing.wav": "no such file",
        "empty.wav": "is empty",
        "text.wav": "cannot be read as audio",
        "folder.wav": "not a regular file",
        "pipe.wav": "not a regular file",
        "none.wav": "0 samples",
        "nan.wav": "not finite",
        "text.wav/a.wav": "cannot be opened",
        "x" * 300 + ".wav": "cannot be opened",
        "nul\0.wav": "cannot be opened",
    }
    for name, reason in reasons.items():
        with pytest.raises(AudioError, match=reason) as error:
            load_audio(tmp_path / name)
        assert name in str(error.value)


def test_a_file_without_permission_is_an_audio_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wav(tmp_path / "a.wav", tone(440, 0.1))

    def refuse(path: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(AudioError, match="Permission denied"):
        load_audio(tmp_path / "a.wav")


def test_absurd_headers_are_refused_or_not_believed(tmp_path: Path) -> None:
    with pytest.raises(AudioError):
        load_audio(_wav_with(tmp_path, 24, struct.pack("<I", 0)))  # sample rate
    with pytest.raises(AudioError, match="sample rate"):
        load_audio(_wav_with(tmp_path, 24, struct.pack("<I", 2_000_000_000)))
    with pytest.raises(AudioError):
        load_audio(_wav_with(tmp_path, 22, struct.pack("<H", 1000)))  # channels
    assert len(load_audio(_wav_with(tmp_path, 40, b"\xff\xff\xff\xff"))) == 1600  # length of the data
    assert audio_duration_s(tmp_path / "a.wav") == 0.1


def test_a_flac_header_that_claims_weeks_is_not_believed(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", tone(440, 0.5), SAMPLE_RATE)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[21], data[22:26] = data[21] | 0x0F, b"\xff" * 4  # 36 bits of STREAMINFO: the number of samples
    assert audio_duration_s(bytes(data)) == 0.5


@pytest.mark.parametrize(
    ("offset_s", "duration_s"), [(-1, 1), (np.nan, 1), (np.inf, 1), (0, 0), (0, -1), (0, np.nan), (0, np.inf), (5, 1), (1e300, 1)]
)
def test_absurd_parts_are_refused(tmp_path: Path, offset_s: float, duration_s: float) -> None:
    write_wav(tmp_path / "a.wav", tone(440, 0.1))
    with pytest.raises(AudioError, match=r"a\.wav"):
        load_audio(tmp_path / "a.wav", offset_s=offset_s, duration_s=duration_s)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_damaged_files_raise_nothing_but_audio_errors(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / name, rng.uniform(-0.5, 0.5, 8000), SAMPLE_RATE)
    data = (tmp_path / name).read_bytes()
    for _ in range(40):
        damaged = bytearray(data[: int(rng.integers(1, len(data) + 1))])
        for position in rng.integers(0, len(damaged), 5):
            damaged[position] = int(rng.integers(256))
        try:
            waveform = load_audio(bytes(damaged))
        except AudioError:
            continue
        assert len(waveform) and np.isfinite(waveform).all()


def test_writing_from_several_threads_leaves_one_whole_file_and_nothing_else(tmp_path: Path) -> None:
    waveform = tone(440, 1.0)
    threads = [threading.Thread(target=write_wav, args=(tmp_path / "a.wav", waveform)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.allclose(load_audio(tmp_path / "a.wav"), waveform, atol=1 / 32768)
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]
