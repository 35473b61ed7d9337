"""Sound out of films and m4a: the same as was put in, refused where it is no sound, and never out of another file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from asr.audio import SAMPLE_RATE, AudioError, audio_duration_s, load_audio

av = pytest.importorskip("av")
EXAMPLE = Path(__file__).parent / "data" / "sense_and_sensibility.wav"


def encode(path: Path, codec: str, *, rate: int = SAMPLE_RATE, layout: str = "mono") -> Path:
    """Write the example as the sound track of a container."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = layout
        frame = av.AudioFrame.from_ndarray(load_audio(EXAMPLE)[None], "fltp", "mono")
        frame.sample_rate = SAMPLE_RATE
        queue = av.AudioFifo()
        resampler = av.AudioResampler(stream.format.name, layout, rate)
        for converted in [*resampler.resample(frame), *resampler.resample(None)]:
            queue.write(converted)
        size = stream.codec_context.frame_size or 1024
        while piece := queue.read(size, partial=True):
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return path


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return the highest normalised correlation over all shifts: a codec's delay is not always taken away."""
    size = len(a) + len(b)
    products = np.fft.irfft(np.fft.rfft(a, size) * np.conj(np.fft.rfft(b, size)), size)
    return float(products.max() / np.linalg.norm(a) / np.linalg.norm(b))


def test_flac_in_matroska_is_exact(tmp_path: Path) -> None:
    assert np.array_equal(load_audio(encode(tmp_path / "a.mkv", "flac")), load_audio(EXAMPLE))


@pytest.mark.parametrize(("name", "codec", "rate", "layout"), [("a.m4a", "aac", 44_100, "stereo"), ("a.webm", "libopus", 48_000, "mono")])
def test_lossy_sound_tracks_sound_the_same(tmp_path: Path, name: str, codec: str, rate: int, layout: str) -> None:
    path = encode(tmp_path / name, codec, rate=rate, layout=layout)
    waveform = load_audio(path)
    assert len(waveform) / SAMPLE_RATE == pytest.approx(5.3, abs=0.1) and audio_duration_s(path) == pytest.approx(5.3, abs=0.1)
    assert correlation(waveform, load_audio(EXAMPLE)) > 0.95
    assert np.array_equal(load_audio(path.read_bytes(), offset_s=2.0, duration_s=1.0), load_audio(path, offset_s=2.0, duration_s=1.0))


def test_a_part_is_the_same_as_out_of_the_whole(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mkv", "flac")
    assert np.array_equal(load_audio(path, offset_s=1.5, duration_s=2.0), load_audio(EXAMPLE)[24_000:56_000])


def test_a_truncated_film_is_an_error(tmp_path: Path) -> None:
    data = encode(tmp_path / "a.webm", "libopus", rate=48_000).read_bytes()
    with pytest.raises(AudioError, match="truncated"):
        load_audio(data[: len(data) // 2])


def test_a_film_without_sound_is_an_error(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 64
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")))
        container.mux(stream.encode(None))
    with pytest.raises(AudioError, match="no sound"):
        load_audio(tmp_path / "a.mp4")


@pytest.mark.parametrize("text", ["ffconcat version 1.0\nfile {}\n", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n"])
def test_play_lists_are_not_followed(tmp_path: Path, text: str) -> None:
    encode(tmp_path / "a.mp4", "aac")
    (tmp_path / "list").write_text(text.format("a.mp4"))
    with pytest.raises(AudioError, match="list: cannot be read as audio"):
        load_audio(tmp_path / "list")


def test_without_pyav_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    (tmp_path / "a.m4a").write_bytes(b"no audio")
    with pytest.raises(AudioError, match=r"pip install 'asr\[media\]'"):
        load_audio(tmp_path / "a.m4a")


def test_damaged_films_are_audio_errors_or_read(tmp_path: Path) -> None:
    data = encode(tmp_path / "a.m4a", "aac").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(data)
        for position in rng.integers(0, len(data), 20):
            damaged[position] = rng.integers(256)
        try:
            waveform = load_audio(bytes(damaged))
        except AudioError:
            continue
        assert waveform.dtype == np.float32 and np.isfinite(waveform).all()
