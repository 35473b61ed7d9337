"""What becomes of odd, damaged and hostile audio: samples or an AudioError, never a crash, a hang, or gigabytes.

The oracles are the samples that the files were written from. Run as a program, this file reads mutated files: SEED COUNT.
"""

from __future__ import annotations

import faulthandler
import io
import os
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.audio import SAMPLE_RATE, AudioError, audio_duration_s, load_audio, read_blocks

# libsndfile's format and subtype, and the file's suffix
ENCODINGS = (
    ("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "IMA_ADPCM"), ("WAV", "MS_ADPCM"), ("WAV", "ULAW"), ("WAV", "GSM610"),
    ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_16"), ("AU", "ULAW"), ("CAF", "ALAC_16"),
)  # fmt: skip
TRUNCATED = "truncated|damaged|cannot be read"


def speech_like(num_samples: int, seed: int = 0) -> np.ndarray:
    """Return noise whose loudness comes and goes (N,), so that a variable bit rate varies."""
    rng = np.random.default_rng(seed)
    return 0.2 * rng.standard_normal(num_samples) * (0.02 + np.sin(np.arange(num_samples) / 3000) ** 2)


def encoded(samples: np.ndarray, sample_rate: int = SAMPLE_RATE, format: str = "WAV", subtype: str = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, sample_rate, format=format, subtype=subtype)
    return buffer.getvalue()


def wav_of(data: bytes, *, code: int = 1, channels: int = 1, rate: int = SAMPLE_RATE, bits: int = 16, claimed: int | None = None) -> bytes:
    """Return a wav file spelt by hand around the bytes of its samples."""
    claimed = len(data) if claimed is None else claimed
    step = channels * bits // 8
    fmt = struct.pack("<HHIIHH", code, channels, rate, rate * step & 0xFFFFFFFF, step, bits)
    return b"RIFF" + struct.pack("<I", min(36 + claimed, 0xFFFFFFFF)) + b"WAVEfmt \x10\0\0\0" + fmt + b"data" + struct.pack("<I", claimed) + data


def flac_of_unknown_length(samples: np.ndarray) -> bytes:
    """As an encoder writes it to a pipe: no number of samples (36 bits) and no checksum in STREAMINFO."""
    data = bytearray(encoded(samples, format="FLAC"))
    data[21:42] = bytes([data[21] & 0xF0]) + bytes(20)
    return bytes(data)


def mp3_frames(data: bytes) -> list[int]:
    """Return where the frames of a 16 kHz MPEG-2 layer III file start; the first holds the Xing tag."""
    kbps = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
    starts = [0]
    while starts[-1] + 4 <= len(data):
        header = struct.unpack(">I", data[starts[-1] : starts[-1] + 4])[0]
        starts.append(starts[-1] + 72_000 * kbps[header >> 12 & 15] // SAMPLE_RATE + (header >> 9 & 1))
    return starts[:-1]


def mp3_without_tag() -> bytes:
    """Return frames from the largest of the first fifty on: libsndfile guesses the length from it, far too short."""
    data = encoded(speech_like(80_000), format="MP3", subtype="MPEG_LAYER_III")
    starts = mp3_frames(data)[1:50]
    return data[max(pairwise(starts), key=lambda ends: ends[1] - ends[0])[0] :]


def ogg_pages(data: bytes) -> list[int]:
    return [i for i in range(len(data)) if data[i : i + 4] == b"OggS"]


def two_ogg_streams() -> bytes:
    return b"".join(encoded(speech_like(8000, seed), format="OGG", subtype="VORBIS") for seed in (1, 2))


SOUND = speech_like(16_000)
PCM = (SOUND * 32767).astype("<i2").tobytes()

# What a file holds -> the number of samples that load_audio returns, or the reason in its AudioError.
MATRIX: dict[str, tuple[Callable[[], bytes], int | str]] = {
    "empty": (lambda: b"", "is empty"),
    "one byte": (lambda: b"R", "cannot be read"),
    "zeros": (lambda: bytes(100_000), "cannot be read|sample rate"),
    "html": (lambda: b"<html>404 Not Found</html>" * 50, "cannot be read"),
    "png": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(500), "cannot be read"),
    "header only": (lambda: wav_of(b""), "0 samples"),
    "header only, length claimed": (lambda: wav_of(b"", claimed=32_000), "truncated|0 samples"),
    "half a header": (lambda: wav_of(PCM)[:20], "cannot be read"),
    "one sample": (lambda: wav_of(b"\1\0"), 1),
    "half a sample": (lambda: wav_of(b"\1"), "0 samples"),
    "shorter than a window": (lambda: wav_of(PCM[:200]), 100),
    "silence": (lambda: wav_of(bytes(32_000)), 16_000),
    "constant": (lambda: wav_of(b"\xff\x3f" * 16_000), 16_000),
    "clipped": (lambda: wav_of(b"\xff\x7f\x00\x80" * 8000), 16_000),
    "NaN": (lambda: wav_of(np.array([0, np.nan], "<f4").tobytes(), code=3, bits=32), "not finite"),
    "infinity": (lambda: wav_of(np.array([0, np.inf], "<f4").tobytes(), code=3, bits=32), "not finite"),
    "beyond float32": (lambda: wav_of(np.array([0, 1e300], "<f8").tobytes(), code=3, bits=64), "not finite"),
    "denormal": (lambda: wav_of(np.full(1000, 1e-42, "<f4").tobytes(), code=3, bits=32), 1000),
    "8 bit": (lambda: wav_of(bytes(range(256)) * 4, bits=8), 1024),
    "24 bit": (lambda: encoded(SOUND, subtype="PCM_24"), 16_000),
    "32 bit": (lambda: encoded(SOUND, subtype="PCM_32"), 16_000),
    "float32": (lambda: encoded(SOUND, subtype="FLOAT"), 16_000),
    "float64": (lambda: encoded(SOUND, subtype="DOUBLE"), 16_000),
    "u-law": (lambda: encoded(SOUND, subtype="ULAW"), 16_000),
    "a-law": (lambda: encoded(SOUND, subtype="ALAW"), 16_000),
    "GSM": (lambda: encoded(SOUND[:3200], subtype="GSM610"), 3200),
    "sphere": (lambda: encoded(SOUND, format="NIST"), 16_000),
    "RF64": (lambda: encoded(SOUND, format="RF64"), 16_000),
    "2 channels": (lambda: wav_of(PCM, channels=2), 8000),
    "8 channels": (lambda: wav_of(PCM, channels=8), 2000),
    "no channel": (lambda: wav_of(PCM, channels=0), "cannot be read|channels"),
    "1000 channels": (lambda: wav_of(PCM, channels=1000), "cannot be read|channels"),
    "8 kHz": (lambda: wav_of(PCM, rate=8000), 32_000),
    "11.025 kHz": (lambda: wav_of(PCM, rate=11_025), 23_220),
    "44.1 kHz": (lambda: wav_of(PCM, rate=44_100), 5805),
    "192 kHz": (lambda: wav_of(PCM, rate=192_000), 1333),
    "0 Hz": (lambda: wav_of(PCM, rate=0), "sample rate|cannot be read"),
    "1 Hz": (lambda: wav_of(PCM, rate=1), "sample rate"),
    "4 GHz": (lambda: wav_of(PCM, rate=4_000_000_000), "sample rate|cannot be read"),
    "unknown coding": (lambda: wav_of(PCM, code=0x7777), "cannot be read"),
    "0 bits": (lambda: wav_of(PCM, bits=0), "cannot be read"),
    "wav of a pipe, length 0": (lambda: wav_of(PCM, claimed=0), "0 samples"),
    "wav of a pipe, length 2^32": (lambda: wav_of(PCM, claimed=0xFFFFFFFF), 16_000),
    "wav of a pipe, length 2^31": (lambda: wav_of(PCM, claimed=0x7FFFFFFF - 36), 16_000),
    "wav and rubbish behind": (lambda: wav_of(PCM) + b"rubbish" * 100, 16_000),
    "truncated wav": (lambda: wav_of(PCM)[:-10_000], "truncated"),
    "truncated adpcm": (lambda: encoded(SOUND, subtype="IMA_ADPCM")[:-2000], "truncated"),
    "truncated aiff": (lambda: encoded(SOUND, format="AIFF")[:-10_000], "truncated"),
    "truncated W64": (lambda: encoded(SOUND, format="W64")[:-10_000], "truncated"),
    "truncated au": (lambda: encoded(SOUND, format="AU")[:-10_000], "truncated"),
    "truncated RF64": (lambda: encoded(SOUND, format="RF64")[:-10_000], "truncated"),
    "truncated flac": (lambda: encoded(SOUND, format="FLAC")[:-5000], "damaged"),
    "truncated ogg": (lambda: encoded(SOUND, format="OGG", subtype="VORBIS")[:-1000], "truncated"),
    "truncated opus": (lambda: encoded(SOUND, format="OGG", subtype="OPUS")[:-1000], "truncated"),
    "ogg cut in a page's name": (lambda: encoded(two := SOUND, format="OGG", subtype="OPUS")[: ogg_pages(encoded(two, format="OGG", subtype="OPUS"))[-1] + 2], "truncated"),
    "truncated mp3": (lambda: encoded(SOUND, format="MP3", subtype="MPEG_LAYER_III")[:-1000], "truncated"),
    "mp3": (lambda: encoded(SOUND, format="MP3", subtype="MPEG_LAYER_III"), 16_000),
    "mp3 and its tag behind": (lambda: encoded(SOUND, format="MP3", subtype="MPEG_LAYER_III") + b"TAG" + bytes(125), 16_000),
    "mp3 behind its tag": (lambda: b"ID3\4\0\0\0\0\2\0" + bytes(256) + encoded(SOUND, format="MP3", subtype="MPEG_LAYER_III"), 16_000),
    "two mp3 joined": (lambda: 2 * encoded(SOUND, format="MP3", subtype="MPEG_LAYER_III"), "goes on for about"),
    "mp3 of variable rate without its tag": (mp3_without_tag, "goes on for about"),
    "two ogg joined": (two_ogg_streams, "several ogg streams"),
    "flac of a pipe": (lambda: flac_of_unknown_length(SOUND), 16_000),
    "truncated flac of a pipe": (lambda: flac_of_unknown_length(SOUND)[:-5000], "damaged"),
    "ogg without a page": (lambda: b"OggS" + bytes(10), "truncated"),
}  # fmt: skip


@pytest.mark.parametrize("case", MATRIX)
def test_odd_files_have_the_documented_result(tmp_path: Path, case: str) -> None:
    make, expected = MATRIX[case]
    path = tmp_path / "a.mp3"  # the wrong suffix for most: what is in a file counts, not its name
    path.write_bytes(make())
    started = time.process_time()
    if isinstance(expected, int):
        waveform = load_audio(path)
        assert len(waveform) == expected and waveform.dtype == np.float32 and np.isfinite(waveform).all()
        assert audio_duration_s(path) == pytest.approx(expected / SAMPLE_RATE, abs=1.5 / SAMPLE_RATE)
        assert np.array_equal(load_audio(path.read_bytes()), waveform)
    else:
        with pytest.raises(AudioError, match=expected) as error:
            load_audio(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
        if path.stat().st_size:
            with pytest.raises(AudioError, match=expected):
                load_audio(io.BytesIO(path.read_bytes()))
    assert time.process_time() - started < 2


def test_odd_paths_have_the_documented_result(tmp_path: Path) -> None:
    for name in ("ünïcödé 音声 \U0001f399.wav", " .wav", "-rf", "a\nb.wav", "%s%n.wav"):
        (tmp_path / name).write_bytes(wav_of(PCM))
        assert len(load_audio(tmp_path / name)) == 16_000
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    (tmp_path / "gone.wav").symlink_to("nowhere.wav")
    for name, reason in {"loop.wav": "cannot be opened", "gone.wav": "no such file", ".": "regular", "/dev/zero": "regular", "/dev/null": "regular"}.items():
        with pytest.raises(AudioError, match=reason):
            load_audio(tmp_path / name)


def test_a_file_without_permission_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav_of(PCM))
    path.chmod(0)
    root = os.geteuid() == 0
    for folder in [tmp_path, *tmp_path.parents][:-2] if root else []:
        folder.chmod(folder.stat().st_mode | 0o055)
    try:
        os.seteuid(65_534) if root else None  # root may read everything
        with pytest.raises(AudioError, match=r"a\.wav: cannot be opened \(Permission denied\)"):
            load_audio(path)
    finally:
        os.seteuid(0) if root else None


@pytest.mark.parametrize(("format", "subtype"), ENCODINGS)
def test_a_whole_file_of_any_length_is_not_taken_for_a_truncated_one(format: str, subtype: str) -> None:
    for num_samples in (1, 100, 576, 5000, 16_001, 40_000):
        data = encoded(speech_like(num_samples), format=format, subtype=subtype)
        found = len(load_audio(data))
        assert num_samples <= found < num_samples + 2048 if "ADPCM" in subtype or subtype == "GSM610" else found == num_samples


@pytest.mark.parametrize(("format", "subtype"), ENCODINGS)
def test_no_truncation_loses_a_tenth_of_a_second_in_silence(format: str, subtype: str) -> None:
    samples = speech_like(48_000)
    data = encoded(samples, format=format, subtype=subtype)
    for share in (0.3, 0.5, 0.77, 0.95):
        try:
            waveform = load_audio(data[: int(share * len(data))])
        except AudioError:
            continue
        assert len(waveform) > len(samples) - 1600


# --- bombs ------------------------------------------------------------------------------------------------------------------------

UNDER_LIMIT = r"""
import re, sys
sys.path.insert(0, ROOT)
import numpy, soundfile, soxr
from asr.audio import AudioError, load_audio, read_blocks
print(sum(len(block) for block in read_blocks(PATH)))
try:
    print(len(load_audio(PATH)))
except AudioError as error:
    print(error)
print(int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) // 1024)
"""


def read_under_limit(path: Path) -> list[str]:
    """Return the lines of a process that reads the file by blocks and at once: samples, samples or error, its largest memory in MB."""
    code = UNDER_LIMIT.replace("ROOT", repr(str(Path(__file__).parents[1]))).replace("PATH", repr(str(path)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    return done.stdout.splitlines()


def test_many_channels_at_a_high_rate_stay_small(tmp_path: Path) -> None:
    with soundfile.SoundFile(tmp_path / "a.flac", "w", 192_000, 8) as file:
        for _ in range(8):
            file.write(np.zeros((192_000, 8), np.int16))
    assert (tmp_path / "a.flac").stat().st_size < 2e6
    by_blocks, at_once, megabytes = read_under_limit(tmp_path / "a.flac")
    assert int(by_blocks) == int(at_once) == 8 * SAMPLE_RATE
    assert int(megabytes) < 500


@pytest.mark.slow
def test_ten_hours_in_two_megabytes_are_read_by_blocks_and_refused_at_once(tmp_path: Path) -> None:
    with soundfile.SoundFile(tmp_path / "a.flac", "w", SAMPLE_RATE, 1) as file:
        for _ in range(600):
            file.write(np.zeros(60 * SAMPLE_RATE, np.int16))
    assert (tmp_path / "a.flac").stat().st_size < 2e6
    by_blocks, at_once, megabytes = read_under_limit(tmp_path / "a.flac")
    assert int(by_blocks) == 36_000 * SAMPLE_RATE
    assert "more than 2 hours" in at_once
    assert int(megabytes) < 1500
    print(f"{megabytes} MB")


# --- mutated files ----------------------------------------------------------------------------------------------------------------


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Return the file with bytes changed, mostly in its header, a stretch cut out, doubled or zeroed, or its end cut off."""
    damaged = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        start, size = int(rng.integers(len(damaged))), int(rng.integers(1, 400))
        kind = int(rng.integers(6))
        if kind <= 1:
            for position in rng.integers(0, 100 if kind else len(damaged), 4):
                damaged[position % len(damaged)] = int(rng.choice([0, 0x7F, 0x80, 0xFF, rng.integers(256)]))
        elif kind == 2:
            damaged[start : start + size] = b""
        elif kind == 3:
            damaged[start:start] = damaged[start : start + size]
        elif kind == 4:
            damaged[start : start + size] = bytes(min(size, len(damaged) - start))
        else:
            damaged = damaged[: max(1, start)]
        damaged = damaged or bytearray(b"\0")
    return bytes(damaged)


def read_mutated(seed: int, count: int) -> None:
    """Read mutated files; a case that takes 10 s, uses 2 GB or raises anything but AudioError ends the process."""
    resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))
    rng = np.random.default_rng(seed)
    whole = [encoded(speech_like(6000), format=format, subtype=subtype) for format, subtype in ENCODINGS]
    read = 0
    for number in range(count):
        faulthandler.dump_traceback_later(10, exit=True)
        data = mutated(whole[number % len(whole)], rng)
        try:
            waveform = load_audio(data)
        except AudioError:
            continue
        assert len(waveform) and np.isfinite(waveform).all()
        read += 1
    print(f"{count} files: {read} read, {count - read} refused")


def run_mutations(count: int, *, timeout_s: float) -> str:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, __file__, "0", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout_s, env=environment, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return done.stdout.strip()


def test_three_hundred_mutated_files_neither_crash_nor_hang() -> None:
    assert run_mutations(300, timeout_s=120).startswith("300 files")


@pytest.mark.slow
def test_ten_thousand_mutated_files_neither_crash_nor_hang() -> None:
    print(run_mutations(10_000, timeout_s=1200))


def test_blocks_of_a_damaged_file_end_in_an_audio_error_after_what_is_sound(tmp_path: Path) -> None:
    data = bytearray(encoded(speech_like(80_000), format="FLAC"))
    data[len(data) // 2] ^= 255
    (tmp_path / "a.flac").write_bytes(data)
    blocks = read_blocks(tmp_path / "a.flac", block_s=0.5)
    found = [len(next(blocks)) for _ in range(3)]
    assert found == [8000] * 3
    with pytest.raises(AudioError, match=r"damaged after [12]\.\d s"):
        list(blocks)


if __name__ == "__main__":
    read_mutated(int(sys.argv[1]), int(sys.argv[2]))
