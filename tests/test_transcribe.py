"""The Transcriber: nothing is lost at cuts, batches change nothing, times lie where they should."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

import asr
from asr.audio import SAMPLE_RATE, AudioError, load_audio
from asr.checkpoint import save_decoder_settings, save_model_folder
from asr.ctc import CTCError
from asr.decoder import DecoderConfig
from asr.g2p import G2PError, train_g2p
from asr.lexicon import Lexicon, write_lexicon
from asr.lm import save as save_lm
from asr.lm import train as train_lm
from asr.logmel import FeatureConfig
from asr.model import AcousticModel, ModelConfig
from asr.text import ENGLISH, TextError
from asr.transcribe import MAX_PIECE_S, MIN_PIECE_S, Transcriber, cut_at_pauses
from asr.transcript import Segment

EXAMPLE = Path(__file__).parent / "data" / "sense_and_sensibility.wav"


@pytest.fixture(scope="module")
def transcriber(tmp_path_factory: pytest.TempPathFactory) -> Transcriber:
    """A network of random weights, so its words mean nothing, but it says many."""
    import torch

    torch.manual_seed(1)
    network = AcousticModel(ModelConfig(num_layers=1, hidden_size=16, conv_channels=16))
    with torch.no_grad():
        network.output.weight.mul_(20)
    folder = tmp_path_factory.mktemp("models") / "random"
    save_model_folder(folder, network, features=FeatureConfig(), vocabulary=ENGLISH, info={}, card="")
    return Transcriber(folder)


@pytest.fixture(scope="module")
def pronouncing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of random weights that writes pronunciations, with a lexicon, a language model and a model of letters and sounds."""
    import torch

    torch.manual_seed(1)
    sound = dict(a="@", c="k", i="I", k="k", m="m", s="s", t="t")
    lexicon = Lexicon(("cat", "mat", "matt", "sat", "it"), ("k@t", "m@t", "m@t", "s@t", "It"))
    network = AcousticModel(ModelConfig(num_layers=1, hidden_size=16, conv_channels=16, num_sounds=len(lexicon.sounds)))
    with torch.no_grad():
        network.output.weight.mul_(2)
    folder = tmp_path_factory.mktemp("models") / "pronouncing"
    save_model_folder(folder, network, features=FeatureConfig(), vocabulary=ENGLISH, sounds=lexicon.sounds, info={}, card="")
    write_lexicon(lexicon, folder / "lexicon.txt")
    save_lm(train_lm(["cat sat", "matt sat", "the mat"], order=2), folder / "lm.safetensors")
    save_lm(train_g2p([*zip(lexicon.words, lexicon.pronunciations, strict=True), *((a + b, sound[a] + sound[b]) for a in "acmst" for b in "aikst")]), folder / "g2p.safetensors")
    save_decoder_settings(folder, {"method": "beam", "alpha": 0.1, "beta": 12.0})
    return folder


def test_words_come_from_the_lexicon_with_times(pronouncing: Path) -> None:
    transcriber = Transcriber(pronouncing)
    segment = transcriber.transcribe(EXAMPLE).segments[0]
    words = [word.word for word in segment.words]
    assert len(words) > 2 and set(words) <= {"cat", "it", "mat", "matt", "sat"} and segment.text == " ".join(words)
    edges = [time for word in segment.words for time in (word.start, word.end)]
    assert edges == sorted(edges) and all(0 <= word.confidence <= 1 for word in segment.words)
    aligned = transcriber.align(EXAMPLE, "a cat that no lexicon has")  # letters are aligned, sounds are not needed
    assert [word.word for word in aligned.segments[0].words] == ["a", "cat", "that", "no", "lexicon", "has"]


def test_a_hotword_that_the_lexicon_lacks_is_pronounced_by_its_letters(pronouncing: Path) -> None:
    transcriber = Transcriber(pronouncing, hotwords={"tac": 200.0})
    assert transcriber.lexicon.all["tac"] == ["t@k"]
    assert "tac" in transcriber.transcribe(EXAMPLE).text.split()
    with pytest.raises(G2PError, match="zzz"):
        Transcriber(pronouncing, hotwords={"zzz": 200.0})


def test_greedy_decoding_spells(pronouncing: Path) -> None:
    assert set(Transcriber(pronouncing, decoder=DecoderConfig()).transcribe(EXAMPLE).text.split()) - {"cat", "it", "mat", "matt", "sat"}


@pytest.mark.parametrize("seconds", [0.01, 14.0, 20.0, 20.001, 95.0])
@pytest.mark.parametrize("block_s", [1.0, 7.3, 200.0])
def test_pieces_put_together_are_the_whole(seconds: float, block_s: float) -> None:
    waveform = np.random.default_rng(0).standard_normal(int(seconds * SAMPLE_RATE)).astype(np.float32)
    size = int(block_s * SAMPLE_RATE)
    pieces = list(cut_at_pauses(waveform[i : i + size] for i in range(0, len(waveform), size)))
    assert np.array_equal(np.concatenate(pieces), waveform)
    assert all(len(piece) <= MAX_PIECE_S * SAMPLE_RATE for piece in pieces)
    assert all(len(piece) >= MIN_PIECE_S * SAMPLE_RATE for piece in pieces[:-1])


def test_a_cut_goes_through_the_pause() -> None:
    waveform = np.random.default_rng(0).standard_normal(26 * SAMPLE_RATE).astype(np.float32)
    waveform[13 * SAMPLE_RATE : int(13.4 * SAMPLE_RATE)] = 0
    first, _ = cut_at_pauses([waveform])
    assert 13.0 <= len(first) / SAMPLE_RATE <= 13.4


def test_bytes_paths_files_and_arrays_give_the_same(transcriber: Transcriber) -> None:
    waveform, rate = soundfile.read(EXAMPLE, dtype="float32")
    expected = transcriber.transcribe(EXAMPLE)
    assert expected.text and str(expected) == expected.text
    for source in (str(EXAMPLE), EXAMPLE.read_bytes(), io.BytesIO(EXAMPLE.read_bytes())):
        assert transcriber.transcribe(source) == expected
    assert transcriber.transcribe(waveform, rate) == expected
    assert transcriber.transcribe(np.stack([waveform, waveform], axis=1), rate) == expected


def test_a_batch_gives_what_each_gives_alone(transcriber: Transcriber) -> None:
    waveform = load_audio(EXAMPLE)
    waveforms = [waveform, waveform[:9_000], np.tile(waveform, 12), waveform[:1], waveform[5_000:]]
    assert transcriber.transcribe_batch(waveforms) == [transcriber.transcribe(w) for w in waveforms]


def test_segments_and_words_lie_in_order_within_the_recording(transcriber: Transcriber) -> None:
    transcript = transcriber.transcribe(np.tile(load_audio(EXAMPLE), 25))
    assert transcript.duration == pytest.approx(25 * 5.3) and len(transcript.segments) >= 3
    assert transcript.segments[0].start == 0 and transcript.segments[-1].end == transcript.duration
    for before, after in zip(transcript.segments, transcript.segments[1:], strict=False):
        assert before.end == after.start
    for segment in transcript.segments:
        times = [time for word in segment.words for time in (word.start, word.end)]
        assert times == sorted(times)
        assert not times or (segment.start <= times[0] and times[-1] <= segment.end)


def test_segments_come_one_by_one_and_together_are_the_transcript(transcriber: Transcriber) -> None:
    waveform = np.tile(load_audio(EXAMPLE), 25)
    stream = transcriber.stream(waveform)
    first = next(stream)
    assert (first, *stream) == transcriber.transcribe(waveform).segments


def test_a_long_recording_has_the_words_of_its_pieces(transcriber: Transcriber) -> None:
    speech, pause = np.tile(load_audio(EXAMPLE), 3), np.zeros(5 * SAMPLE_RATE, np.float32)
    parts = [part for number in range(10) for part in (speech[number * 100 :], pause)]  # 3.5 minutes, none of the pieces the same
    transcript = transcriber.transcribe(np.concatenate(parts))
    spoken = [segment for segment in transcript.segments if segment.words]
    assert len(spoken) == 10 and transcript.duration == pytest.approx(sum(map(len, parts)) / SAMPLE_RATE, abs=0.002)
    waveform = np.concatenate(parts)
    for segment in spoken:
        piece = waveform[round(segment.start * SAMPLE_RATE) : round(segment.end * SAMPLE_RATE)]
        (alone,) = transcriber.transcribe_batch([piece])
        assert alone.text == segment.text and alone.words[0].start == pytest.approx(segment.words[0].start - segment.start, abs=0.002)


def test_skipped_silence_is_a_segment_without_words(transcriber: Transcriber) -> None:
    speech, pause = load_audio(EXAMPLE), np.zeros(10 * SAMPLE_RATE, np.float32)
    segments = transcriber.transcribe(np.concatenate([speech, pause, speech])).segments
    assert [bool(segment.words) for segment in segments] == [True, False, True]
    assert [segment.id for segment in segments] == [0, 1, 2]
    assert segments[0].end == segments[1].start <= 5.85 and segments[1].end == segments[2].start >= 14.7


def test_what_was_read_before_the_damage_is_recognised(transcriber: Transcriber) -> None:
    waveform = np.tile(load_audio(EXAMPLE), 8)

    def damaged() -> Iterator[np.ndarray]:
        yield waveform[:600_000]
        raise AudioError("damaged")

    events = list(transcriber.events([[waveform], damaged(), [waveform]]))
    by_number = [[event for number, event in events if number == i] for i in range(3)]
    assert by_number[0] == by_number[2] and by_number[0][-1] is None
    *segments, error = by_number[1]
    assert isinstance(error, AudioError)
    assert isinstance(segments[-1], Segment) and segments[-1].end == 37.5


def test_silence_has_a_transcript(transcriber: Transcriber) -> None:
    assert transcriber.transcribe(np.zeros(SAMPLE_RATE, np.float32)).duration == 1.0


def test_aligned_words_are_the_text_with_times_in_order(transcriber: Transcriber) -> None:
    transcript = transcriber.align(EXAMPLE, "Unless to be rather cold-hearted, and rather selfish, is to be ill disposed!")
    (segment,) = transcript.segments
    assert transcript.text == "unless to be rather cold hearted and rather selfish is to be ill disposed"
    times = [time for word in segment.words for time in (word.start, word.end)]
    assert times == sorted(times) and times[-1] <= 5.3


def test_a_text_that_does_not_fit_is_refused(transcriber: Transcriber) -> None:
    with pytest.raises(CTCError, match="frames"):
        transcriber.align(EXAMPLE, "word " * 100)
    with pytest.raises(TextError, match="7"):
        transcriber.align(EXAMPLE, "7 words")


def test_no_audio_is_an_error(transcriber: Transcriber) -> None:
    with pytest.raises(AudioError):
        transcriber.transcribe(np.zeros(0, np.float32))


def test_the_shipped_model_says_when_its_words_were_said() -> None:
    transcript = asr.load_model("english").align(EXAMPLE, "unless to be rather cold hearted and rather selfish is to be ill disposed")
    starts = {word.word: word.start for word in transcript.segments[0].words}
    expected = {"unless": 0.25, "cold": 1.4, "selfish": 2.95, "disposed": 4.45}
    assert {word: pytest.approx(start, abs=0.2) for word, start in expected.items()} == {word: starts[word] for word in expected}
