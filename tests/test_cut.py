"""Facts about cutting utterances at their pauses. The words' times are given by hand, or by a model that ships."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.audio import SAMPLE_RATE, load_audio
from asr.cut import SHORTEST_S, choose_cuts, cut_manifest, pauses
from asr.decoder import DecoderConfig
from asr.manifest import Utterance, read_manifest, read_utterance, write_manifest
from asr.transcribe import Transcriber
from asr.transcript import Word

EXAMPLE = Path(__file__).parent / "data" / "sense_and_sensibility.wav"
TEXT = "unless to be rather cold hearted and rather selfish is to be ill disposed"


def test_a_pause_is_where_there_is_no_word_and_no_sound() -> None:
    waveform = np.random.default_rng(0).normal(0, 0.1, 4 * SAMPLE_RATE).astype(np.float32)
    waveform[int(0.9 * SAMPLE_RATE) : int(1.5 * SAMPLE_RATE)] *= 0.001
    words = [Word("a", 0.1, 0.8, 1.0), Word("b", 1.6, 2.2, 1.0), Word("c", 2.8, 3.9, 1.0)]  # it is loud between b and c
    ((number, seconds),) = pauses(waveform, words)
    assert number == 1
    assert 0.95 <= seconds <= 1.45


@pytest.mark.parametrize(
    ("places", "longest_s", "expected"),
    [
        ([], 5.0, []),
        ([(1, 2.0), (2, 5.0), (3, 8.0)], 20.0, []),
        ([(1, 2.0), (2, 5.0), (3, 8.0)], 6.0, [(2, 5.0)]),
        ([(1, 2.0), (2, 5.0), (3, 8.0)], 3.0, [(1, 2.0), (2, 5.0), (3, 8.0)]),
        ([(1, 0.5 * SHORTEST_S)], 3.0, []),
    ],
)
def test_cuts_halve_until_pieces_are_short_enough(places: list[tuple[int, float]], longest_s: float, expected: list[tuple[int, float]]) -> None:
    assert choose_cuts(places, 10.0, longest_s) == expected


def test_pieces_have_all_words_and_all_samples_in_their_order(tmp_path: Path) -> None:
    pause = np.zeros(SAMPLE_RATE, np.float32)
    waveform = load_audio(EXAMPLE)
    spoken = np.concatenate([waveform, pause, waveform, pause, waveform])

    soundfile.write(tmp_path / "a.wav", spoken, SAMPLE_RATE, subtype="FLOAT")
    whole = Utterance(str(tmp_path / "a.wav"), len(spoken) / SAMPLE_RATE, " ".join([TEXT] * 3), id="a")
    short = Utterance(str(EXAMPLE), len(waveform) / SAMPLE_RATE, TEXT, id="b")
    write_manifest(tmp_path / "whole.jsonl", [whole, short])
    transcriber = Transcriber("english", decoder=DecoderConfig())
    assert cut_manifest(tmp_path / "whole.jsonl", tmp_path / "cut.jsonl", transcriber, longest_s=short.duration + 1.5) == 1
    *pieces, last = read_manifest(tmp_path / "cut.jsonl")
    assert last == short
    assert [piece.text for piece in pieces] == [TEXT] * 3
    assert [piece.id for piece in pieces] == ["a-1", "a-2", "a-3"]
    np.testing.assert_array_equal(np.concatenate([read_utterance(piece) for piece in pieces]), spoken)
    assert json.loads((tmp_path / "cut.jsonl").read_text().splitlines()[1])["offset"] > 0
