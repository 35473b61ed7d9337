"""The corpus readers, each on a miniature of its corpus' own layout, and downloads from a server on this machine."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.corpora import Archive, CorpusError, fetch
from asr.corpora.an4 import download_an4, prepare_an4
from asr.corpora.folder import prepare_folder
from asr.corpora.kaldi import prepare_kaldi
from asr.corpora.librispeech import ARCHIVES, EXPECTED, download_librispeech, prepare_librispeech
from asr.corpora.ljspeech import download_ljspeech, prepare_ljspeech
from asr.corpora.pack import prepare_noise, prepare_pack
from asr.corpora.table import prepare_table
from asr.manifest import Utterance, read_manifest

RATE = 16_000


def tone(duration_s: float, frequency: float = 440.0, rate: int = RATE) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * frequency * np.arange(round(duration_s * rate)) / rate)).astype(np.float32)


def write_audio(path: Path, duration_s: float = 0.5, *, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(duration_s, rate=rate), rate)
    return path


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def by_id(manifest: Path) -> dict[str, Utterance]:
    return {utterance.id: utterance for utterance in read_manifest(manifest)}


def audio_bytes(duration_s: float, *, format: str, subtype: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(duration_s), RATE, format=format, subtype=subtype)
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


# LibriSpeech


def librispeech(root: Path, part: str = "dev-clean") -> Path:
    chapter = root / "LibriSpeech" / part / "84" / "121123"
    for number, duration_s in enumerate((0.5, 0.75)):
        write_audio(chapter / f"84-121123-000{number}.flac", duration_s)
    write_text(
        chapter / "84-121123.trans.txt", "84-121123-0000 GO DO YOU HEAR\n84-121123-0001 BUT IN LESS THAN FIVE MINUTES\n"
    )
    return root / "LibriSpeech"


def test_librispeech_gives_a_manifest_a_part_with_speakers_texts_and_durations(tmp_path: Path) -> None:
    root = librispeech(tmp_path)
    librispeech(tmp_path, "train-clean-100")
    manifests = prepare_librispeech(root, tmp_path / "manifests", expected=None)
    assert set(manifests) == {"dev-clean", "train-clean-100"}
    assert manifests["dev-clean"] == tmp_path / "manifests" / "librispeech_dev-clean.jsonl"
    utterances = by_id(manifests["dev-clean"])
    assert utterances["84-121123-0000"].text == "go do you hear"
    assert utterances["84-121123-0000"].speaker == "84"
    assert utterances["84-121123-0001"].duration == pytest.approx(0.75)
    assert utterances["84-121123-0001"].audio_filepath == str(root / "dev-clean/84/121123/84-121123-0001.flac")
    assert prepare_librispeech(tmp_path, tmp_path / "again", parts=["dev-clean"], expected=None).keys() == {"dev-clean"}


def test_librispeech_with_utterances_lacking_is_an_error_that_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"dev-clean 2 of 2703 .*--partial"):
        prepare_librispeech(librispeech(tmp_path), tmp_path / "manifests")
    assert not (tmp_path / "manifests").exists()
    with pytest.raises(CorpusError, match="test-other"):
        prepare_librispeech(tmp_path, tmp_path / "manifests", parts=["test-other"])


def test_librispeech_counts_are_the_published_ones() -> None:
    assert EXPECTED["train-clean-100"] + EXPECTED["train-clean-360"] + EXPECTED["train-other-500"] == 281_241
    assert set(ARCHIVES) == set(EXPECTED)


def test_librispeech_missing_audio_and_missing_text_are_both_listed(tmp_path: Path) -> None:
    root = librispeech(tmp_path)
    chapter = root / "dev-clean/84/121123"
    (chapter / "84-121123-0000.flac").unlink()
    write_audio(chapter / "84-121123-0007.flac")
    with pytest.raises(
        CorpusError, match=r"(?s)1 missing audio, 1 missing text.*trans.txt:1: missing.*84-121123-0007.flac: missing"
    ):
        prepare_librispeech(root, tmp_path / "manifests", expected=None)


# LJSpeech


def ljspeech(root: Path, lines: list[str]) -> Path:
    write_text(root / "metadata.csv", "\n".join(lines) + "\n")
    for line in lines:
        write_audio(root / "wavs" / f"{line.split('|')[0]}.wav", 0.2, rate=22_050)
    return root


def test_ljspeech_takes_the_normalised_column_as_it_is_read_aloud(tmp_path: Path) -> None:
    lines = [
        'LJ001-0007|the "42-line Bible" of 1455,|the "forty-two line Bible" of fourteen fifty-five,',
        "LJ002-0014|and Mr. Neild [the visitor] was told|and Mr. Neild [the visitor] was told",
        "LJ016-0257|a raison d'être.|a raison d'être.",
    ]
    manifests = prepare_ljspeech(ljspeech(tmp_path / "LJSpeech-1.1", lines), tmp_path, expected=None)
    texts = {u.id: u.text for manifest in manifests.values() for u in read_manifest(manifest)}
    assert texts == {
        "LJ001-0007": "the forty two line bible of fourteen fifty five",
        "LJ002-0014": "and mister neild the visitor was told",
        "LJ016-0257": "a raison d'etre",
    }


def test_ljspeech_split_of_a_clip_does_not_depend_on_the_other_clips(tmp_path: Path) -> None:
    lines = [f"LJ001-{number:04d}|word|word" for number in range(150)]
    whole = prepare_ljspeech(ljspeech(tmp_path / "whole", lines), tmp_path / "m1", expected=None)
    half = prepare_ljspeech(ljspeech(tmp_path / "half", lines[::2]), tmp_path / "m2", expected=None)
    splits = {u.id: split for split, manifest in whole.items() for u in read_manifest(manifest)}
    assert len(splits) == 150
    assert {"train", "dev", "test"} == set(splits.values())
    assert all(splits[u.id] == split for split, manifest in half.items() for u in read_manifest(manifest))


def test_ljspeech_with_clips_lacking_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="1 of 13100"):
        prepare_ljspeech(ljspeech(tmp_path / "corpus", ["LJ001-0001|a|a"]), tmp_path)


def test_ljspeech_line_without_three_fields_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"metadata.csv:2: malformed line"):
        prepare_ljspeech(ljspeech(tmp_path / "corpus", ["LJ001-0001|a|a", "LJ001-0002|b"]), tmp_path, expected=None)


# AN4


def an4(root: Path, suffix: str) -> Path:
    ids = {"train": ("an4_clstk/fash", "an251-fash-b"), "test": ("an4test_clstk/fcaw", "an406-fcaw-b")}
    texts = {"train": "<s> RUBOUT G M E F THREE NINE </s> (an251-fash-b)\n", "test": "GO FORTY (an406-fcaw-b)\n"}
    for split, (folder, id) in ids.items():
        write_text(root / "etc" / f"an4_{split}.fileids", f"{folder}/{id}\n")
        write_text(root / "etc" / f"an4_{split}.transcription", texts[split])
        path = root / "wav" / folder / f"{id}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".raw":
            path.write_bytes((tone(0.5) * 32767).astype(">i2").tobytes())
        else:
            soundfile.write(path, tone(0.5), RATE, format="NIST" if suffix == ".sph" else "WAV", subtype="PCM_16")
    return root


@pytest.mark.parametrize("suffix", [".raw", ".sph", ".wav"])
def test_an4_is_read_in_each_of_its_forms(tmp_path: Path, suffix: str) -> None:
    manifests = prepare_an4(an4(tmp_path / "an4", suffix), tmp_path / "m", expected=None)
    (train,), (test,) = read_manifest(manifests["train"]), read_manifest(manifests["test"])
    assert (train.id, train.speaker, train.text) == ("an251-fash-b", "fash", "rubout g m e f three nine")
    assert (test.id, test.speaker, test.text) == ("an406-fcaw-b", "fcaw", "go forty")
    assert train.duration == pytest.approx(0.5)
    samples, rate = soundfile.read(train.audio_filepath, dtype="int16")
    assert rate == RATE
    np.testing.assert_allclose(samples / 32768, tone(0.5), atol=2 / 32768)


def test_an4_raw_samples_survive_bit_for_bit(tmp_path: Path) -> None:
    root = an4(tmp_path / "an4", ".raw")
    original = np.frombuffer((root / "wav/an4_clstk/fash/an251-fash-b.raw").read_bytes(), ">i2")
    (train,) = read_manifest(prepare_an4(root, tmp_path / "m", expected=None)["train"])
    assert np.array_equal(soundfile.read(train.audio_filepath, dtype="int16")[0], original)


def test_an4_raw_in_the_wrong_byte_order_is_an_error(tmp_path: Path) -> None:
    root = an4(tmp_path / "an4", ".raw")
    path = root / "wav/an4_clstk/fash/an251-fash-b.raw"
    path.write_bytes(np.frombuffer(path.read_bytes(), ">i2").byteswap().tobytes())
    with pytest.raises(CorpusError, match="little-endian"):
        prepare_an4(root, tmp_path / "m", expected=None)


def test_an4_must_have_948_and_130_utterances(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="train 1 of 948, test 1 of 130"):
        prepare_an4(an4(tmp_path / "an4", ".wav"), tmp_path / "m")


def test_an4_without_its_lists_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"an4_train.transcription: no such file"):
        prepare_an4(tmp_path, tmp_path / "m")


# A folder of one's own


def test_folder_reads_a_text_beside_each_file_and_subfolders_as_speakers(tmp_path: Path) -> None:
    root = tmp_path / "speech"
    write_audio(root / "anna" / "one.wav", 0.5)
    write_text(root / "anna" / "one.txt", "Hello there,\nAnna!\n")
    write_audio(root / "bob" / "two.flac", 0.25, rate=44_100)
    write_text(root / "bob" / "two.lab", "It's Bob.")
    write_text(root / "README.txt", "not a transcript 123")
    manifests = prepare_folder(root, tmp_path / "m", dev_fraction=0)
    assert manifests == {"train": tmp_path / "m" / "folder_train.jsonl"}
    utterances = by_id(manifests["train"])
    assert utterances["anna/one.wav"].text == "hello there anna"
    assert utterances["anna/one.wav"].speaker == "anna"
    assert utterances["bob/two.flac"].text == "it's bob"
    assert utterances["bob/two.flac"].duration == pytest.approx(0.25)


def test_folder_reads_a_transcripts_file_with_a_speaker_column(tmp_path: Path) -> None:
    root = tmp_path / "speech"
    for name in ("a/one.wav", "a/two.wav", "b/one.wav"):
        write_audio(root / name)
    write_text(root / "transcripts.tsv", "a/one\tfirst\tanna\ntwo.wav\tsecond\tbob\nb/one.wav\tthird\n")
    utterances = by_id(prepare_folder(root, tmp_path / "m", dev_fraction=0)["train"])
    assert [(u.text, u.speaker) for u in utterances.values()] == [("first", "anna"), ("second", "bob"), ("third", "b")]


def test_folder_reads_the_last_column_of_metadata_csv(tmp_path: Path) -> None:
    write_audio(tmp_path / "s" / "wavs" / "x.wav")
    write_text(tmp_path / "s" / "metadata.csv", "x|In 1455|In fourteen fifty-five\n")
    (utterance,) = read_manifest(prepare_folder(tmp_path / "s", tmp_path / "m", dev_fraction=0)["train"])
    assert utterance.text == "in fourteen fifty five"


def test_folder_lists_all_that_is_wrong_at_once_and_writes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "speech"
    for number in range(12):
        write_audio(root / f"quiet{number}.wav")
    write_text(root / "lonely.txt", "words without audio")
    write_text(root / "broken.wav", "this is not audio")
    write_text(root / "broken.txt", "words")
    write_audio(root / "digits.wav")
    write_text(root / "digits.txt", "call 911")
    with pytest.raises(CorpusError) as caught:
        prepare_folder(root, tmp_path / "m")
    message = str(caught.value)
    for part in ("1 missing audio", "12 missing text", "1 unknown characters", "1 unreadable audio", "... and 5 more"):
        assert part in message
    assert "spell digits" in message
    assert not (tmp_path / "m").exists()


def test_folder_unknown_characters_are_named_with_file_and_remedy(tmp_path: Path) -> None:
    write_audio(tmp_path / "s" / "a.wav")
    write_audio(tmp_path / "s" / "b.wav")
    write_text(tmp_path / "s" / "transcripts.tsv", "a\tfine\nb\tcall 91 über\n")
    with pytest.raises(
        CorpusError, match=r"(?s)spell digits.*transcripts.tsv:2: unknown characters \('1', '9', 'ü' in"
    ):
        prepare_folder(tmp_path / "s", tmp_path / "m")
    manifests = prepare_folder(tmp_path / "s", tmp_path / "m", dev_fraction=0, vocabulary=None)
    assert by_id(manifests["train"])["b.wav"].text == "call 91 über"


@pytest.mark.parametrize("tag", ["<unk>", "[noise]"])
def test_tags_in_a_text_are_an_error_because_the_normalisation_would_keep_their_letters(
    tmp_path: Path, tag: str
) -> None:
    write_audio(tmp_path / "s" / "a.wav")
    write_text(tmp_path / "s" / "a.txt", f"words {tag} words")
    with pytest.raises(CorpusError, match="mark-up"):
        prepare_folder(tmp_path / "s", tmp_path / "m")


def test_folder_two_audio_files_for_one_text_are_an_error(tmp_path: Path) -> None:
    write_audio(tmp_path / "s" / "a.wav")
    write_audio(tmp_path / "s" / "a.flac")
    write_text(tmp_path / "s" / "a.txt", "words")
    with pytest.raises(CorpusError, match="named twice"):
        prepare_folder(tmp_path / "s", tmp_path / "m")


def test_folder_ambiguous_names_are_an_error(tmp_path: Path) -> None:
    write_audio(tmp_path / "s" / "x" / "a.wav")
    write_audio(tmp_path / "s" / "y" / "a.wav")
    write_text(tmp_path / "s" / "transcripts.tsv", "a\twords\n")
    with pytest.raises(CorpusError, match=r"may be x/a.wav, y/a.wav"):
        prepare_folder(tmp_path / "s", tmp_path / "m")


def make_speakers(root: Path, sizes: dict[str, int]) -> Path:
    for speaker, size in sizes.items():
        for number in range(size):
            write_audio(root / speaker / f"{number}.wav", 0.1)
            write_text(root / speaker / f"{number}.txt", "word")
    return root


def test_folder_holds_out_whole_speakers_when_there_are_four(tmp_path: Path) -> None:
    root = make_speakers(tmp_path / "s", {"a": 5, "b": 5, "c": 5, "d": 5, "e": 5})
    manifests = prepare_folder(root, tmp_path / "m", dev_fraction=0.2)
    train = {u.speaker for u in read_manifest(manifests["train"])}
    dev = {u.speaker for u in read_manifest(manifests["dev"])}
    assert len(dev) == 1
    assert train | dev == set("abcde")
    assert not train & dev


def test_folder_one_large_speaker_is_not_held_out_for_a_small_dev_part(tmp_path: Path) -> None:
    root = make_speakers(tmp_path / "s", {"a": 20, "b": 2, "c": 2, "d": 2})
    for seed in range(5):
        manifests = prepare_folder(root, tmp_path / "m", dev_fraction=0.1, seed=seed)
        assert len(read_manifest(manifests["dev"])) <= 4


def test_folder_with_few_speakers_holds_out_the_fraction_and_the_same_each_time(tmp_path: Path) -> None:
    root = make_speakers(tmp_path / "s", {"a": 10, "b": 10})
    first = prepare_folder(root, tmp_path / "m1", dev_fraction=0.1)
    again = prepare_folder(root, tmp_path / "m2", dev_fraction=0.1)
    other = prepare_folder(root, tmp_path / "m3", dev_fraction=0.1, seed=7)
    assert len(read_manifest(first["dev"])) == 2
    assert len(read_manifest(first["train"])) == 18
    assert read_manifest(first["dev"]) == read_manifest(again["dev"])
    assert by_id(first["dev"]).keys() != by_id(other["dev"]).keys()


def test_folder_without_audio_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no audio files"):
        prepare_folder(tmp_path, tmp_path / "m")
    with pytest.raises(CorpusError, match="no such folder"):
        prepare_folder(tmp_path / "absent", tmp_path / "m")


# Packs


def pack(folder: Path, **changes: object) -> Path:
    name = "tiny"
    rows: list[dict[str, object]] = [
        {
            "audio_filepath": f"{name}/a.opus",
            "duration": 0.5,
            "text": "one",
            "speaker": "s1",
            "id": "a",
            "split": "train",
            "tier": 1,
        },
        {
            "audio_filepath": f"{name}/b.opus",
            "duration": 0.5,
            "text": "two",
            "speaker": "s1",
            "id": "b",
            "split": "train",
            "tier": 3,
        },
        {
            "audio_filepath": f"{name}/c.flac",
            "duration": 0.25,
            "text": "three",
            "speaker": "s2",
            "id": "c",
            "split": "test",
        },
    ]
    rows[0] |= changes
    members = {
        f"{name}/a.opus": audio_bytes(0.5, format="OGG", subtype="OPUS"),
        f"{name}/b.opus": audio_bytes(0.5, format="OGG", subtype="OPUS"),
        f"{name}/c.flac": audio_bytes(0.25, format="FLAC", subtype="PCM_16"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_tar(folder / f"{name}.tar", members)
    write_text(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_pack_is_decoded_once_to_16_bit_wav(tmp_path: Path) -> None:
    manifests = prepare_pack(pack(tmp_path / "p"), tmp_path / "m", name="tiny")
    assert manifests == {"train": tmp_path / "m" / "tiny_train.jsonl", "test": tmp_path / "m" / "tiny_test.jsonl"}
    train, test = by_id(manifests["train"]), by_id(manifests["test"])
    assert (train["a"].text, train["a"].speaker) == ("one", "s1")
    info = soundfile.info(train["a"].audio_filepath)
    assert (info.format, info.subtype, info.samplerate) == ("WAV", "PCM_16", RATE)
    assert train["a"].duration == pytest.approx(0.5, abs=0.02)
    samples = soundfile.read(test["c"].audio_filepath)[0]
    np.testing.assert_allclose(samples, tone(0.25), atol=2 / 32768)


def test_pack_keeps_what_a_first_run_decoded_and_fills_in_what_is_lacking(tmp_path: Path) -> None:
    train = prepare_pack(pack(tmp_path / "p"), tmp_path / "m", name="tiny")["train"]
    kept, lost = (Path(utterance.audio_filepath) for utterance in read_manifest(train))
    soundfile.write(kept, tone(0.1), RATE)
    lost.unlink()
    durations = [u.duration for u in read_manifest(prepare_pack(tmp_path / "p", tmp_path / "m", name="tiny")["train"])]
    assert durations == pytest.approx([0.1, 0.5], abs=0.02)


def test_pack_leaves_out_lines_above_the_tier(tmp_path: Path) -> None:
    manifests = prepare_pack(pack(tmp_path / "p"), tmp_path / "m", name="tiny", max_tier=2)
    assert by_id(manifests["train"]).keys() == {"a"}
    assert by_id(manifests["test"]).keys() == {"c"}  # it has no tier


def test_pack_leaves_out_children(tmp_path: Path) -> None:
    folder = pack(tmp_path / "p")
    rows = [json.loads(line) for line in (folder / "tiny.jsonl").read_text().splitlines()]
    for row, age in zip(rows, ("15", "16", "fifties"), strict=True):
        row["age"] = age
    write_text(folder / "tiny.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    manifests = prepare_pack(folder, tmp_path / "m", name="tiny", min_age=16)
    assert by_id(manifests["train"]).keys() == {"b"}
    assert by_id(manifests["test"]).keys() == {"c"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio_filepath": "tiny/absent.opus"}, "missing audio"),
        ({"audio_filepath": "../../etc/passwd"}, "path inside the tar"),
        ({"audio_filepath": "/etc/passwd"}, "path inside the tar"),
        ({"text": "route 66"}, r"tiny.jsonl:1: unknown characters \('6'"),
        ({"text": "?!"}, "missing text"),
        ({"split": "../train"}, "'split' must be one of"),
        ({"audio_filepath": "tiny/b.opus"}, "tiny.jsonl:2: named twice"),
    ],
)
def test_pack_with_a_bad_line_is_an_error_and_writes_no_manifest(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(CorpusError, match=message):
        prepare_pack(pack(tmp_path / "p", **changes), tmp_path / "m", name="tiny")
    assert not list((tmp_path / "m").glob("*.jsonl"))


def test_pack_with_damaged_audio_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    folder = pack(tmp_path / "p")
    good = audio_bytes(0.5, format="OGG", subtype="OPUS")
    write_tar(folder / "tiny.tar", {"tiny/a.opus": b"garbage" * 99, "tiny/b.opus": good, "tiny/c.flac": good})
    with pytest.raises(CorpusError, match=r"tiny.jsonl:1: unreadable audio \(tiny/a.opus"):
        prepare_pack(folder, tmp_path / "m", name="tiny")
    with pytest.raises(CorpusError, match=r"none.jsonl: no such file"):
        prepare_pack(folder, tmp_path / "m", name="none")


def test_noise_pack_becomes_wav_files(tmp_path: Path) -> None:
    write_tar(tmp_path / "noise.tar", {"noise/tap.opus": audio_bytes(1.0, format="OGG", subtype="OPUS")})
    (path,) = prepare_noise(tmp_path, tmp_path / "out")
    assert path == tmp_path / "out" / "tap.wav"
    assert soundfile.info(path).duration == pytest.approx(1.0, abs=0.02)


# Kaldi


def kaldi(folder: Path, **files: str) -> Path:
    write_audio(folder / "rec1.wav", 2.0)
    write_audio(folder / "rec2.wav", 1.0)
    contents = {
        "wav_scp": "u1 rec1.wav\nu2 rec2.wav\n",
        "text": "u1 HELLO WORLD\nu2 IT'S ME\n",
        "utt2spk": "u1 anna\nu2 bob\n",
    }
    for name, text in (contents | files).items():
        write_text(folder / name.replace("_", "."), text)
    return folder


def test_kaldi_folder_becomes_a_manifest_named_after_it(tmp_path: Path) -> None:
    manifests = prepare_kaldi(kaldi(tmp_path / "data" / "train"), tmp_path / "m")
    assert manifests == {"train": tmp_path / "m" / "kaldi_train.jsonl"}
    utterances = by_id(manifests["train"])
    assert (utterances["u1"].text, utterances["u1"].speaker) == ("hello world", "anna")
    assert utterances["u2"].duration == pytest.approx(1.0)
    kaldi(tmp_path / "data" / "dev")
    assert prepare_kaldi(tmp_path / "data", tmp_path / "m").keys() == {"train", "dev"}


def test_kaldi_segments_become_offsets(tmp_path: Path) -> None:
    folder = kaldi(
        tmp_path / "train",
        wav_scp="r1 rec1.wav\nr2 rec2.wav\n",
        segments="u1 r1 0.5 1.25\nu2 r1 1.25 -1\nu3 r2 0.0 1.02\n",
        text="u1 a\nu2 b\nu3 c\n",
    )
    utterances = by_id(prepare_kaldi(folder, tmp_path / "m")["train"])
    assert (utterances["u1"].offset, utterances["u1"].duration) == pytest.approx((0.5, 0.75))
    assert (utterances["u2"].offset, utterances["u2"].duration) == pytest.approx((1.25, 0.75))
    assert utterances["u3"].duration == pytest.approx(1.0)  # 20 ms beyond the end are rounding
    assert utterances["u2"].audio_filepath == str(folder / "rec1.wav")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"wav_scp": "u1 sph2pipe -f wav x.sph |\nu2 rec2.wav\n"},
            r"wav.scp:1: malformed line \(a command, not a file",
        ),
        ({"wav_scp": "u1 absent.wav\nu2 rec2.wav\n"}, "wav.scp:1: missing audio"),
        ({"wav_scp": "u1 rec1.wav\n"}, "text:2: missing audio"),
        ({"text": "u1 hello\n"}, "no line for u2"),
        ({"text": "u1\nu2 b\n"}, "text:1: missing text"),
        ({"text": "u1 a\nu1 b\nu2 c\n"}, "text:2: named twice"),
        ({"segments": "u1 u1 0.5 9.0\nu2 u2 0 1\n"}, "segments:1: malformed line"),
        ({"segments": "u1 u1 x y\nu2 u2 0 1\n"}, "segments:1: malformed line"),
        ({"segments": "u1 u9 0 1\nu2 u2 0 1\n"}, "recording u9 is not in wav.scp"),
        ({"text": "u1 HELLO <unk>\nu2 b\n"}, "mark-up"),
    ],
)
def test_kaldi_folder_with_a_fault_is_an_error_that_names_the_line(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    with pytest.raises(CorpusError, match=message):
        prepare_kaldi(kaldi(tmp_path / "train", **files), tmp_path / "m")
    assert not (tmp_path / "m").exists()


# Tables


def test_common_voice_table_is_read_with_its_clips_folder_and_bare_quotation_marks(tmp_path: Path) -> None:
    root = tmp_path / "en"
    write_audio(root / "clips" / "cv_1.mp3", 1.0)
    write_audio(root / "clips" / "cv_2.mp3", 1.0)
    header = "client_id\tpath\tsentence_id\tsentence\tup_votes\n"
    write_text(root / "train.tsv", header + 'f00\tcv_1.mp3\tx\t"Who is it?\t2\n')
    write_text(root / "test.tsv", header + "f01\tcv_2.mp3\ty\tNobody.\t2\n")
    write_text(root / "validated.tsv", "not read\n")
    manifests = prepare_table(root, tmp_path / "m", name="common_voice")
    assert manifests.keys() == {"train", "test"}
    (utterance,) = read_manifest(manifests["train"])
    assert (utterance.text, utterance.speaker, utterance.id) == ("who is it", "f00", "cv_1")
    assert utterance.duration == pytest.approx(1.0, abs=0.1)


def test_csv_table_with_quoted_commas_and_durations(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", 0.5)
    table = write_text(tmp_path / "mine.csv", 'file,transcript,duration\na.wav,"Well, yes",0.5\n')
    (utterance,) = read_manifest(prepare_table(table, tmp_path / "m")["mine"])
    assert (utterance.text, utterance.duration) == ("well yes", 0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,words\na.wav,hello\n", "mine.csv:1: expected a header"),
        ("audio,text\nb.wav,hello\n", "mine.csv:2: missing audio"),
        ("audio,text\na.wav,hello,more\n", "mine.csv:2: malformed line"),
        ("audio,text\na.wav,hello\na.wav,hello\n", "mine.csv:3: named twice"),
        ("audio,text\na.wav,room 5\n", "mine.csv:2: unknown characters"),
        ("audio,text\na.wav,\n", "mine.csv:2: missing text"),
        ("audio,text,duration\na.wav,hello,long\n", "mine.csv:2: malformed line"),
        ('audio,text\na.wav,"hello\n', "not valid CSV"),
        ("", "empty"),
    ],
)
def test_table_with_a_fault_is_an_error_that_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    write_audio(tmp_path / "a.wav")
    with pytest.raises(CorpusError, match=message):
        prepare_table(write_text(tmp_path / "mine.csv", text), tmp_path / "m")


# Downloads


class Server:
    """Serves byte strings by path, with ranges; `cut` bytes break off the next whole answer."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.ranges: list[str | None] = []
        self.cut: int | None = None
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.http.server_port}{path}"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                data, wanted = server.files.get(self.path), self.headers.get("Range")
                server.ranges.append(wanted)
                if data is None:
                    self.send_error(404)
                    return
                first = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
                if first >= len(data):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(data)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206 if wanted else 200)
                self.send_header("Content-Length", str(len(data) - first))
                self.end_headers()
                stop, server.cut = server.cut, None
                self.wfile.write(data[first:stop])

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        return Handler


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


def tar_of(folder: Path, *, compress: Callable[[bytes], bytes] = gzip.compress) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(folder, arcname=folder.name)
    return compress(buffer.getvalue())


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def served(server: Server, data: bytes, name: str, folder: str) -> Archive:
    server.files[f"/{name}"] = data
    return Archive(server.url(f"/{name}"), folder, sha256(data))


def test_librispeech_is_downloaded_checked_unpacked_and_prepared(tmp_path: Path, server: Server) -> None:
    write_text(librispeech(tmp_path / "source") / "README.TXT", "about")
    archive = served(server, tar_of(tmp_path / "source" / "LibriSpeech"), "dev-clean.tar.gz", "LibriSpeech/dev-clean")
    root = download_librispeech(tmp_path / "down", ["dev-clean"], archives={"dev-clean": archive})
    assert root == tmp_path / "down" / "LibriSpeech"
    assert (root / "README.TXT").is_file()
    assert len(read_manifest(prepare_librispeech(root, tmp_path / "m", expected=None)["dev-clean"])) == 2
    num_requests = len(server.ranges)
    download_librispeech(tmp_path / "down", ["dev-clean"], archives={"dev-clean": archive})
    assert len(server.ranges) == num_requests  # what is there is not fetched again


def test_a_second_part_joins_the_first(tmp_path: Path, server: Server) -> None:
    archives = {}
    for part in ("dev-clean", "test-clean"):
        data = tar_of(librispeech(tmp_path / part, part))
        archives[part] = served(server, data, f"{part}.tar.gz", f"LibriSpeech/{part}")
    root = download_librispeech(tmp_path / "down", ["dev-clean", "test-clean"], archives=archives)
    assert prepare_librispeech(root, tmp_path / "m", expected=None).keys() == {"dev-clean", "test-clean"}


def test_ljspeech_and_an4_are_downloaded(tmp_path: Path, server: Server) -> None:
    data = tar_of(ljspeech(tmp_path / "LJSpeech-1.1", ["LJ001-0001|a|a"]), compress=bz2.compress)
    root = download_ljspeech(tmp_path / "down", archive=served(server, data, "LJSpeech-1.1.tar.bz2", "LJSpeech-1.1"))
    assert prepare_ljspeech(root, tmp_path / "m", expected=None)
    server.files["/an4_raw.bigendian.tar.gz"] = tar_of(an4(tmp_path / "an4", ".raw"))
    root = download_an4(tmp_path / "down", archive=Archive(server.url("/an4_raw.bigendian.tar.gz"), "an4"))
    assert prepare_an4(root, tmp_path / "m", expected=None).keys() == {"train", "test"}


def test_a_corrupted_download_is_an_error_and_leaves_nothing_that_looks_complete(
    tmp_path: Path, server: Server
) -> None:
    data = tar_of(librispeech(tmp_path / "source"))
    archive = served(server, data, "dev-clean.tar.gz", "LibriSpeech/dev-clean")
    server.files["/dev-clean.tar.gz"] = data[:100] + bytes([data[100] ^ 1]) + data[101:]
    with pytest.raises(CorpusError, match=r"damaged, its sha256 is .* download .* again"):
        fetch(archive, tmp_path / "down")
    assert list((tmp_path / "down").iterdir()) == []
    server.files["/dev-clean.tar.gz"] = data
    assert fetch(archive, tmp_path / "down").is_dir()


def test_a_corrupted_archive_without_a_checksum_is_an_error_too(tmp_path: Path, server: Server) -> None:
    data = tar_of(an4(tmp_path / "an4", ".raw"))
    for damaged in (data[: len(data) // 2], data[:-50] + bytes(50), data[:200] + bytes(300) + data[500:]):
        server.files["/an4.tar.gz"] = damaged
        with pytest.raises(CorpusError, match="cannot be unpacked"):
            fetch(Archive(server.url("/an4.tar.gz"), "an4"), tmp_path / "down")
        assert list((tmp_path / "down").iterdir()) == []


def test_an_interrupted_download_goes_on_where_it_stopped(tmp_path: Path, server: Server) -> None:
    data = tar_of(librispeech(tmp_path / "source"))
    server.cut = 1_000
    assert fetch(served(server, data, "d.tar.gz", "LibriSpeech/dev-clean"), tmp_path / "down").is_dir()
    assert server.ranges == [None, "bytes=1000-"]
    assert (tmp_path / "down" / "d.tar.gz").read_bytes() == data


def test_a_part_left_by_an_earlier_run_is_completed(tmp_path: Path, server: Server) -> None:
    data = tar_of(librispeech(tmp_path / "source"))
    archive = served(server, data, "d.tar.gz", "LibriSpeech/dev-clean")
    for num_there in (1, len(data) - 1, len(data), len(data) + 5):  # the last is longer than the file: start anew
        folder = tmp_path / str(num_there)
        folder.mkdir()
        (folder / "d.tar.gz.part").write_bytes((data + bytes(5))[:num_there])
        assert fetch(archive, folder).is_dir()
        assert (folder / "d.tar.gz").read_bytes() == data


def test_a_missing_file_and_a_silent_server_are_errors(tmp_path: Path, server: Server) -> None:
    with pytest.raises(CorpusError, match="404"):
        fetch(Archive(server.url("/absent.tar.gz"), "x"), tmp_path)
    with pytest.raises(CorpusError, match="run it again"):
        fetch(Archive("http://127.0.0.1:1/x.tar.gz", "x"), tmp_path)
    with pytest.raises(CorpusError, match="no part 'dev'"):
        download_librispeech(tmp_path, ["dev"])


def test_a_damaged_archive_from_elsewhere_is_noticed(tmp_path: Path, server: Server) -> None:
    archive = served(server, tar_of(librispeech(tmp_path / "source")), "d.tar.gz", "LibriSpeech/dev-clean")
    (tmp_path / "d.tar.gz").write_bytes(b"half of it")
    with pytest.raises(CorpusError, match="delete it"):
        fetch(archive, tmp_path)


@pytest.mark.parametrize("name", ["../outside.txt", "an4/../../outside.txt", "/outside.txt"])
def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path, server: Server, name: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for member in ("an4/etc/x", name):
            info = tarfile.TarInfo(member)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"evil"))
    server.files["/a.tar.gz"] = buffer.getvalue()
    with contextlib.suppress(CorpusError):
        fetch(Archive(server.url("/a.tar.gz"), "an4"), tmp_path / "deep" / "down")
    outside = [path for path in tmp_path.rglob("outside.txt") if not path.is_relative_to(tmp_path / "deep" / "down")]
    assert not outside
    assert not Path("/outside.txt").exists()


def test_an_archive_with_another_folder_in_it_is_an_error(tmp_path: Path, server: Server) -> None:
    server.files["/a.tar.gz"] = gzip.compress(b"")
    with pytest.raises(CorpusError):
        fetch(Archive(server.url("/a.tar.gz"), "an4"), tmp_path / "down")
    data = tar_of(make_speakers(tmp_path / "other", {"a": 1}))
    with pytest.raises(CorpusError, match="expected the folder an4"):
        fetch(served(server, data, "b.tar.gz", "an4"), tmp_path / "down")


# What the readers have in common

Prepare = Callable[[Path, Path], dict[str, Path]]


@pytest.mark.parametrize(
    "prepare",
    [
        lambda root, out: prepare_pack(pack(root), out, name="tiny"),
        lambda root, out: prepare_folder(make_speakers(root, {"a": 4}), out),
        lambda root, out: prepare_kaldi(kaldi(root), out),
        lambda root, out: prepare_an4(an4(root, ".raw"), out, expected=None),
    ],
)
def test_preparing_twice_writes_the_same_manifests(tmp_path: Path, prepare: Prepare) -> None:
    first = {split: path.read_bytes() for split, path in prepare(tmp_path / "c", tmp_path / "m").items()}
    assert first
    assert {split: path.read_bytes() for split, path in prepare(tmp_path / "c", tmp_path / "m").items()} == first
