"""Facts about live recognition: pieces give what the whole gives, words come soon, and pauses end utterances."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import librosa
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import spoken_tones, write_tones

from asr import encoder
from asr.audio import SAMPLE_RATE, load_audio, write_wav
from asr.checkpoint import load_model_folder, load_network, save_model_folder
from asr.cli import main
from asr.features import LogMel
from asr.logmel import FeatureConfig, LogMelStream, log_mel, num_frames
from asr.model import AcousticModel, ModelConfig
from asr.stream import LiveError, LiveRecogniser, Result, _Steps, load_streaming_network, microphone, paced
from asr.text import ENGLISH
from asr.transcribe import Transcriber
from asr.wer import count_word_errors

EXAMPLE = Path(__file__).parent / "data" / "sense_and_sensibility.wav"
RUNNING = FeatureConfig(normalisation="running")
TONES = FeatureConfig(normalisation="running", num_mels=40, prior_frames=20)
TEXTS = ["go forward", "ten meters", "stop"]
LETTER_S = 0.09  # of spoken_tones


def pieces(waveform: np.ndarray, *, seed: int) -> list[np.ndarray]:
    """Cut at random, pieces of no and of one sample among them."""
    rng = np.random.default_rng(seed)
    cuts = np.sort(np.concatenate([rng.integers(0, len(waveform), 40), [0, 1, 1, len(waveform)]]))
    return [waveform[a:b] for a, b in pairwise(cuts)]


def silence(seconds: float) -> np.ndarray:
    """The noise that is under spoken_tones."""
    return 0.003 * np.random.default_rng(0).standard_normal(round(SAMPLE_RATE * seconds)).astype(np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A one-directional model that has learnt to say each letter 80 to 120 ms after its tone has begun, whatever silence came before."""
    torch.manual_seed(0)
    network = AcousticModel(ModelConfig(num_mels=40, num_layers=1, hidden_size=64, conv_channels=64, dropout=0.0, bidirectional=False))
    optimiser = torch.optim.Adam(network.parameters(), lr=4e-3)
    log_mels, rng = LogMel(TONES), np.random.default_rng(0)
    weight = torch.tensor([1.0] + [8.0] * 28)  # most frames are blank
    for step in range(150):
        batch, labels = [], torch.zeros(len(TEXTS), 80, dtype=torch.int64)
        for row, text in enumerate(TEXTS):
            lead_s = rng.uniform(0, 1)
            batch.append(torch.from_numpy(np.concatenate([silence(lead_s), spoken_tones(text, seed=step), silence(0.7)])))
            for letter, token in enumerate(ENGLISH.encode(text)):
                labels[row, int((lead_s + LETTER_S * (letter + 1) + 0.08) / 0.04) + 1] = token
        features, lengths = log_mels(torch.nn.utils.rnn.pad_sequence(batch, batch_first=True), torch.tensor([len(x) for x in batch]))
        log_probs, _ = network(features, lengths)
        optimiser.zero_grad()
        torch.nn.functional.nll_loss(log_probs.flatten(0, 1), labels[:, : log_probs.shape[1]].flatten(), weight=weight).backward()
        optimiser.step()
    path = tmp_path_factory.mktemp("tones") / "model"
    save_model_folder(path, network, features=TONES, vocabulary=ENGLISH, info={}, card="")
    return path


def listen(model: Path | str, blocks: Sequence[np.ndarray], *, whole: bool = False) -> list[tuple[float, Result]]:
    """Return each result with the seconds of audio that had been heard."""
    recogniser = LiveRecogniser(Transcriber(model), None if whole else load_streaming_network(model))
    results, num_samples = [], 0
    for block in blocks:
        num_samples += len(block)
        results += [(num_samples / SAMPLE_RATE, result) for result in recogniser.push(block)]
    return results + [(num_samples / SAMPLE_RATE, result) for result in recogniser.finish()]


def texts(results: Sequence[tuple[float, Result]]) -> list[str]:
    return [result.segment.text for _, result in results if result.final]


def blocks_of(waveform: np.ndarray, seconds: float = 0.1) -> list[np.ndarray]:
    size = round(seconds * SAMPLE_RATE)
    return [waveform[i : i + size] for i in range(0, len(waveform), size)]


@pytest.mark.parametrize("num_samples", [1, 255, 256, 257, 8000, 84_800])
def test_features_of_pieces_are_those_of_the_whole(num_samples: int) -> None:
    waveform = load_audio(EXAMPLE)[:num_samples]
    stream = LogMelStream(RUNNING)
    found = np.concatenate([*(stream.push(piece) for piece in pieces(waveform, seed=num_samples)), stream.push(waveform[:0], last=True)])
    whole, _ = LogMel(RUNNING)(torch.from_numpy(waveform)[None], torch.tensor([num_samples]))
    assert found.shape == (num_frames(num_samples, RUNNING), 80)
    assert np.abs(found - log_mel(waveform, RUNNING)).max() < 1e-5
    assert np.abs(found - whole[0].numpy()).max() < 1e-4


def test_the_live_model_that_ships_hears_in_pieces_what_it_hears_in_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    waveform = np.concatenate([load_audio(EXAMPLE), silence(1.0)])
    network = load_streaming_network("english-live")
    assert network is not None
    features = log_mel(waveform, load_model_folder("english-live").features)
    features = features[: len(features) // 8 * 8]
    whole, _ = encoder.step(network, features)
    first, state = encoder.step(network, features[:40])
    second, _ = encoder.step(network, features[40:], state)
    assert np.abs(np.concatenate([first, second]) - whole).max() < 1e-5
    found = listen("english-live", blocks_of(waveform))
    reference = "unless to be rather cold hearted and rather selfish is to be ill disposed"
    assert count_word_errors(reference, " ".join(texts(found))).rate < 0.6
    assert any(not result.final and result.segment.text for _, result in found)
    monkeypatch.setattr(Transcriber, "new_search", lambda self: None)
    assert listen("english-live", blocks_of(waveform)) == found  # each time searched from the utterance's beginning


def test_running_normalisation_is_that_of_the_frames_so_far_with_the_prior_s_before_them() -> None:
    waveform = load_audio(EXAMPLE)
    power = librosa.feature.melspectrogram(
        y=waveform, sr=16_000, n_fft=512, win_length=400, hop_length=160, n_mels=80, fmin=20, fmax=8000,
        center=True, pad_mode="constant", power=2.0, htk=True, norm=None,
    )  # fmt: skip
    logs = np.log(np.maximum(power.T, RUNNING.log_floor))  # (M, T) -> (T, M)
    prior = np.repeat([[-6.0 - 4.0], [-6.0 + 4.0]], 50, axis=0) * np.ones(80)  # 100 frames of mean -6 and deviation 4
    found = log_mel(waveform, RUNNING)
    for t in (0, 1, 50, 530):
        past = np.concatenate([prior, logs[: t + 1]])
        assert np.abs((logs[t] - past.mean(axis=0)) / past.std(axis=0) - found[t]).max() < 1e-3


def test_what_comes_later_changes_no_feature() -> None:
    waveform = load_audio(EXAMPLE)
    short, long = (log_mel(waveform[:n], RUNNING) for n in (32_000, len(waveform)))
    num_same = (32_000 - 200) // 160  # frames whose window ends before the cut
    assert np.array_equal(short[:num_same], long[:num_same])


def test_padding_changes_no_running_feature() -> None:
    waveform = torch.from_numpy(load_audio(EXAMPLE))
    batch = torch.stack([torch.cat([waveform, torch.ones(20_000)]), torch.cat([waveform, torch.zeros(20_000)])])
    features, lengths = LogMel(RUNNING)(batch, torch.tensor([len(waveform)] * 2))
    assert torch.equal(features[0], features[1]) and not features[0, int(lengths[0]) :].any()


@pytest.mark.parametrize("subsampling", [(2, 1), (4, 1), (8, 2)])
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn_tanh"])
def test_log_probs_of_pieces_are_those_of_the_whole(cell: str, subsampling: tuple[int, int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    factor, outputs = subsampling
    config = ModelConfig(cell=cell, bidirectional=False, num_layers=2, hidden_size=16, conv_channels=16, subsampling=factor, outputs_per_frame=outputs)
    save_model_folder(tmp_path / "model", AcousticModel(config), features=RUNNING, vocabulary=ENGLISH, info={}, card="")
    network, streaming = load_network(load_model_folder(tmp_path / "model")), load_streaming_network(tmp_path / "model", "float32")
    assert streaming is not None
    for num_samples in (1, 5000, 40_321):
        waveform = load_audio(EXAMPLE)[:num_samples]
        steps = _Steps(streaming, RUNNING)
        for piece in pieces(waveform, seed=num_samples):
            steps.push(piece, last=False)
        steps.push(waveform[:0], last=True)
        features = torch.from_numpy(log_mel(waveform, RUNNING))
        with torch.inference_mode():
            whole, lengths = network(features[None], torch.tensor([len(features)]))
        found = steps.log_probs(num_samples)
        assert found.shape == (int(lengths[0]), 29)
        assert np.abs(found - whole[0].numpy()).max() < 1e-5


def test_a_stream_of_any_pieces_gives_the_whole_file_s_text(model: Path) -> None:
    for index, text in enumerate(TEXTS):
        waveform = spoken_tones(text, seed=index)
        assert texts(listen(model, pieces(waveform, seed=index))) == [text] == [Transcriber(model).transcribe(waveform).text]


def test_words_appear_within_half_a_second_of_their_end(model: Path) -> None:
    for index, text in enumerate(TEXTS):
        results = listen(model, blocks_of(spoken_tones(text, seed=index)))
        for number, word in enumerate(text.split()):
            end_s = LETTER_S * (1 + len(" ".join(text.split()[: number + 1])))
            seen_s = next(heard_s for heard_s, result in results if result.segment.text.split()[number : number + 1] == [word])
            assert seen_s - end_s < 0.5


@pytest.mark.parametrize("whole", [False, True])
def test_pauses_end_utterances_and_times_count_from_the_start(model: Path, whole: bool) -> None:
    spoken = [spoken_tones(text, seed=index) for index, text in enumerate(TEXTS)]
    stream = np.concatenate([silence(2.0), *(part for waveform in spoken for part in (waveform, silence(2.0)))])
    results = listen(model, blocks_of(stream), whole=whole)
    finals = [(heard_s, result.segment) for heard_s, result in results if result.final]
    assert [segment.text for _, segment in finals] == TEXTS
    start_s = 2.0
    for (heard_s, segment), waveform in zip(finals, spoken, strict=True):
        end_s = start_s + len(waveform) / SAMPLE_RATE
        assert segment.start <= start_s + LETTER_S and end_s - LETTER_S <= segment.end <= heard_s <= end_s + 0.8
        assert start_s <= segment.words[0].start and segment.words[-1].end <= end_s + 0.2
        start_s = end_s + 2.0
    assert [segment.id for _, segment in finals] == [0, 1, 2]


def test_without_a_pause_every_sample_is_in_one_utterance(model: Path) -> None:
    waveform = np.concatenate([spoken_tones("stop ten meters", seed=i)[1000:-1000] for i in range(20)])
    segments = [result.segment for _, result in listen(model, blocks_of(waveform)) if result.final]
    assert len(segments) > 1 and segments[0].start == 0 and segments[-1].end == pytest.approx(len(waveform) / SAMPLE_RATE, abs=1e-3)
    for before, after in pairwise(segments):
        assert before.end == after.start and before.end - before.start <= 20


def test_silence_and_noise_without_end_give_nothing_and_hold_nothing(model: Path) -> None:
    recogniser = LiveRecogniser(Transcriber(model), load_streaming_network(model))
    rng = np.random.default_rng(0)
    for level in (0.0, 0.001):
        for _ in range(60):
            assert not recogniser.push((level * rng.standard_normal(SAMPLE_RATE)).astype(np.float32))
    assert sum(map(len, recogniser._windows)) <= SAMPLE_RATE
    assert not recogniser.finish()


def test_a_model_for_whole_utterances_is_not_stepped(tmp_path: Path) -> None:
    for name, bidirectional, features in [("both", True, RUNNING), ("utterance", False, FeatureConfig()), ("live", False, RUNNING)]:
        network = AcousticModel(ModelConfig(num_layers=1, hidden_size=8, conv_channels=8, bidirectional=bidirectional))
        save_model_folder(tmp_path / name, network, features=features, vocabulary=ENGLISH, info={}, card="")
        assert load_model_folder(tmp_path / name).features == features
        assert (load_streaming_network(tmp_path / name) is not None) == (name == "live")
    with pytest.raises(ValueError, match="running"):
        LogMelStream(FeatureConfig())


@pytest.mark.parametrize("wrong", [{"normalisation": "batch"}, {"prior_frames": 0}, {"prior_std": 0.0}, {"prior_mean": float("nan")}])
def test_priors_that_normalise_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FeatureConfig(**wrong)  # type: ignore[arg-type]


def test_a_file_is_played_at_its_pace() -> None:
    start = time.monotonic()
    blocks = list(paced(EXAMPLE, speed=10.0))
    assert time.monotonic() - start >= 0.53
    assert np.array_equal(np.concatenate(blocks), load_audio(EXAMPLE))


def test_listen_prints_an_utterance_a_line(model: Path, tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", np.concatenate([spoken_tones("go forward"), silence(1.0), spoken_tones("stop", seed=2)]))
    arguments = ["listen", "--model", str(model), "--file", str(tmp_path / "a.wav"), "--speed", "50"]
    plain, rows = (CliRunner().invoke(main, [*arguments, *more]) for more in ([], ["--format", "json", "--precision", "float32"]))
    assert (plain.exit_code, plain.stdout) == (0, "go forward\nstop\n")
    finals = [row for row in map(json.loads, rows.stdout.splitlines()) if row["final"]]
    assert [row["text"] for row in finals] == ["go forward", "stop"] and all(row["time"] > 0 for row in finals)


def test_one_directional_training_gives_a_model_that_streams(tmp_path: Path) -> None:
    manifest = write_tones(tmp_path, ("yes", "no"))
    options = ["--one-directional", "--epochs", "1", "--hidden", "8", "--layers", "1", "--threads", "1", "--workers", "0"]
    result = CliRunner().invoke(main, ["train", "--train", str(manifest), "--out", str(tmp_path / "run"), *options])
    assert result.exit_code == 0, result.output
    assert load_streaming_network(tmp_path / "run" / "best") is not None
    assert load_network(load_model_folder(tmp_path / "run" / "best")).config.bidirectional is False


def test_a_missing_microphone_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    result = CliRunner().invoke(main, ["listen"])
    assert result.exit_code == 1 and "asr[live]" in result.stderr and "Traceback" not in result.output


def test_a_microphone_of_any_rate_is_heard_at_16_khz(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: dict[str, Any] = {}

    @contextlib.contextmanager
    def input_stream(*, callback: Any, **settings: Any) -> Iterator[None]:
        opened.update(settings)
        tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000).astype(np.float32)
        for block in tone.reshape(10, -1, 1):
            callback(block, len(block), None, SimpleNamespace(input_overflow=False))
        yield

    driver = SimpleNamespace(query_devices=lambda *_: {"default_samplerate": 48_000.0}, InputStream=input_stream, PortAudioError=OSError)
    monkeypatch.setitem(sys.modules, "sounddevice", driver)
    waveform = next(microphone("3"))
    assert opened["device"] == 3 and opened["samplerate"] == 48_000
    assert 14_000 < len(waveform) <= 16_000  # the resampler still holds the last of it
    spectrum = np.abs(np.fft.rfft(waveform[:14_000] * np.hanning(14_000)))
    assert spectrum.argmax() * SAMPLE_RATE / 14_000 == pytest.approx(440, abs=2) and np.abs(waveform).max() == pytest.approx(0.5, abs=0.02)


def test_no_microphone_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class PortAudioError(Exception):
        pass

    def query_devices(*_: Any) -> Any:
        raise PortAudioError("Error querying device -1")

    monkeypatch.setitem(sys.modules, "sounddevice", SimpleNamespace(query_devices=query_devices, PortAudioError=PortAudioError))
    with pytest.raises(LiveError, match="querying device -1"):
        next(microphone())
