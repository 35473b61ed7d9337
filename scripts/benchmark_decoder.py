"""Measure the decoder of a model with a language model on dev manifests, beside ctc-beam-decoder, which spells, and the flashlight decoder of
torchaudio, which like ours looks for words as they sound, and print a Markdown report.

One process on one core; times are CPU times. Nothing is fitted here: weights and calibration are the model folder's.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from asr.audio import SAMPLE_RATE
from asr.checkpoint import find_model
from asr.ctc import collapse
from asr.decoder import DecoderConfig, beam_search, decode
from asr.lexicon import Lexicon
from asr.lm import LN_10, LanguageModel, train, write_arpa
from asr.manifest import read_manifest, read_utterance
from asr.text import BLANK, Vocabulary, normalise
from asr.transcribe import Transcriber
from asr.transcript import Word
from asr.wer import (
    CONFIDENCE,
    NUM_RESAMPLES,
    ErrorCounts,
    align_words,
    count_word_errors,
    expected_calibration_error,
    reliability,
)

PEER, LEXICON_PEER = "ctc-beam-decoder", "flashlight"
SMALL = Vocabulary((BLANK, " ", "a", "b"))
MAX_FRAMES = 5  # 4 ** 5 paths of the small cases can be listed
EXACT: dict[str, Any] = {
    "beam_size": 2000,
    "num_best": 2000,
    "beam_threshold": math.inf,
    "token_threshold": -math.inf,
    "blank_threshold": 1.0,
}
TOLERANCE = 1e-5
NUM_SMALL_MODELS = 20
BEAM_SIZES = (10, 100, 400)
AGREEMENT_BEAM = 100
OUR_THRESHOLDS = {"beam_prune_logp": -15.0, "token_min_logp": -5.0}  # in ctc-beam-decoder's names
WIDE_THRESHOLDS = {"beam_prune_logp": -20.0, "token_min_logp": -9.0}
AGREEMENT_BEAMS = ((100, OUR_THRESHOLDS, 100), (400, WIDE_THRESHOLDS, 100))  # ours, flashlight's
NUM_HOTWORDS, HOTWORD_WEIGHT = 1000, 8.0
PEER_UTTERANCES = 10  # with so many phrases it is slow
CLOSE_S = 0.040
FIRST_DECODE = """
import sys, time
import numpy as np
from asr.checkpoint import load_model_folder
from asr.decoder import decode
from asr.transcribe import folder_decoder, folder_lexicon, folder_lm
folder, log_probs = load_model_folder(sys.argv[1]), np.load(sys.argv[2])
start = time.process_time()
lm, lexicon = folder_lm(folder), folder_lexicon(folder)
loaded = time.process_time()
decode(log_probs, folder.vocabulary, folder_decoder(folder), lm=lm, lexicon=lexicon, sounds=folder.sounds)
print(loaded - start, time.process_time() - loaded)
"""


@dataclass(frozen=True)
class DevSet:
    """The utterances of a manifest and what the network says of them."""

    name: str
    waveforms: tuple[np.ndarray, ...]
    references: tuple[str, ...]
    log_probs: tuple[np.ndarray, ...]

    @property
    def duration_s(self) -> float:
        return sum(map(len, self.waveforms)) / SAMPLE_RATE


def main() -> int:
    arguments = parse_arguments()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    transcriber = Transcriber(arguments.model, num_threads=1)
    if transcriber.lm is None:
        print(f"{arguments.model}: expected a tuned model with a language model; run asr lm tune first", file=sys.stderr)
        return 1
    dev = [dev_set(transcriber, path, num_utterances=arguments.utterances) for path in arguments.manifests]
    unseen = [dev_set(transcriber, path, num_utterances=arguments.utterances) for path in arguments.unseen]
    print(introduction(transcriber, [*dev, *unseen]), flush=True)
    is_exact, text = exactness(arguments.cases, arguments.seed)
    print(text, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        peer, text = load_peer(transcriber, Path(folder))
        print(text, flush=True)
        if peer is not None:
            print(agreement(transcriber, [*dev, *unseen], peer=peer), flush=True)
        flashlight = load_flashlight(transcriber, Path(folder))
        if flashlight is not None:
            print(flashlight_agreement(transcriber, [*dev, *unseen], flashlight), flush=True)
        print(speed(transcriber, dev[0], peer=peer, flashlight=flashlight, num_runs=arguments.runs), flush=True)
        print(hotword_cost(transcriber, dev[0], peer=peer, num_runs=arguments.runs, seed=arguments.seed), flush=True)
        print(start_up(arguments.model, dev[0], folder=Path(folder), num_runs=arguments.runs), flush=True)
    print(gain(transcriber, dev, unseen=unseen, seed=arguments.seed), flush=True)
    print(word_times(transcriber, [*dev, *unseen]), flush=True)
    print(calibration(transcriber, dev, unseen=unseen, plot=arguments.plot), flush=True)
    return int(not is_exact)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifests", type=Path, nargs="+", help="dev manifests; speed is measured on the first")
    parser.add_argument("--model", default="english", help="a shipped model's name or a folder (default: %(default)s)")
    parser.add_argument("--unseen", type=Path, nargs="+", default=[], help="manifests that the decoder was not tuned on")
    parser.add_argument("--utterances", type=int, help="take only so many of each manifest, spread over it")
    parser.add_argument("--cases", type=int, default=2000, help="small random cases (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="runs of each timing, after one to warm up (default: %(default)s)")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the reliability diagram here")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    return parser.parse_args()


def dev_set(transcriber: Transcriber, path: Path, *, num_utterances: int | None) -> DevSet:
    utterances = read_manifest(path)
    if num_utterances is not None and num_utterances < len(utterances):
        utterances = [utterances[i] for i in np.linspace(0, len(utterances) - 1, num_utterances).astype(int)]
    waveforms = tuple(read_utterance(utterance) for utterance in utterances)
    references = tuple(normalise(utterance.text) for utterance in utterances)
    return DevSet(path.stem, waveforms, references, tuple(transcriber.log_probs(waveforms)))


def introduction(transcriber: Transcriber, sets: Sequence[DevSet]) -> str:
    decoder, lm = transcriber.decoder, transcriber.lm
    assert lm is not None
    sizes = ", ".join(f"{s.name} ({len(s.references)} utterances, {s.duration_s / 60:.1f} min)" for s in sets)
    return (
        f"# Decoder benchmark: {transcriber.name}\n\nOne core, CPU times. {lm.order}-gram of {sum(lm.num_ngrams):,} n-grams"
        f" and {len(lm.words):,} words; alpha {decoder.alpha}, beta {decoder.beta}, unknown penalty {decoder.unknown_penalty},"
        f" beam {decoder.beam_size}.\nManifests: {sizes}."
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def word_errors(references: Sequence[str], texts: Sequence[str]) -> list[ErrorCounts]:
    return [count_word_errors(reference, text) for reference, text in zip(references, texts, strict=True)]


def word_error_rate(references: Sequence[str], texts: Sequence[str]) -> float:
    return sum(word_errors(references, texts), ErrorCounts()).rate


# --- exactness -------------------------------------------------------------------------------------------------------


def exactness(num_cases: int, seed: int) -> tuple[bool, str]:
    """Compare a search that leaves nothing out with the sum over all paths, all texts and their scores."""
    rng = np.random.default_rng(seed)
    models = [small_model(rng) for _ in range(NUM_SMALL_MODELS)]
    equal, largest = {"no": 0, "with": 0}, 0.0
    for case in range(num_cases):
        logits = rng.normal(0, 1.5, (int(rng.integers(1, MAX_FRAMES + 1)), len(SMALL)))
        log_probs = (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)
        totals = all_labellings(log_probs)
        alpha, beta, penalty = (float(x) for x in rng.uniform(0, (1.5, 3, 5)))
        weights: dict[str, Any] = {"alpha": alpha, "beta": beta, "unknown_penalty": penalty}
        for kind, lm in {"no": None, "with": models[case % len(models)]}.items():
            found = {h.text: h.score for h in beam_search(log_probs, SMALL, **EXACT, lm=lm, **weights)}
            expected = scored_texts(totals, DecoderConfig(**weights), lm=lm)
            same_texts = found.keys() == expected.keys() and next(iter(found)) == max(expected, key=expected.__getitem__)
            difference = max(abs(found[text] - expected[text]) for text in expected) if same_texts else math.inf
            largest = max(largest, difference)
            equal[kind] += difference < TOLERANCE
    rows = [[f"{kind} language model", f"{count} of {num_cases}"] for kind, count in equal.items()]
    text = table(["cases of up to 5 frames and 4 tokens", "equal to enumeration: best text, all texts, all scores"], rows)
    return set(equal.values()) == {num_cases}, f"\n## Exactness\n\n{text}\n\nLargest difference of a score: {largest:.1e}."


def small_model(rng: np.random.Generator) -> LanguageModel:
    words = ["".join(letters) for n in (1, 2, 3) for letters in itertools.product("ab", repeat=n)]
    known = rng.choice(words, 6, replace=False)
    return train([" ".join(rng.choice(known, int(rng.integers(1, 5)))) for _ in range(8)], order=int(rng.integers(2, 5)))


def all_labellings(log_probs: np.ndarray) -> dict[tuple[int, ...], float]:
    """Return ln p of every token sequence: the sum over all V ** T' paths."""
    num_frames, size = log_probs.shape
    paths = np.array(list(itertools.product(range(size), repeat=num_frames)))  # (P, T')
    scores = log_probs.astype(np.float64)[np.arange(num_frames), paths].sum(axis=1)
    parts: defaultdict[tuple[int, ...], list[float]] = defaultdict(list)
    for path, score in zip(paths.tolist(), scores.tolist(), strict=True):
        parts[tuple(collapse(path))].append(score)
    return {tokens: float(np.logaddexp.reduce(part)) for tokens, part in parts.items()}


def scored_texts(
    totals: Mapping[tuple[int, ...], float], config: DecoderConfig, *, lm: LanguageModel | None
) -> dict[str, float]:
    """Return the score of every text; of several spellings (spaces at the ends or doubled) that of the best."""
    scores: dict[str, float] = {}
    for tokens, total in totals.items():
        text = " ".join(SMALL.decode(tokens).split())
        scores[text] = max(total, scores.get(text, -math.inf))
    texts = list(scores)
    bonuses = language_scores(texts, config, lm=lm)
    return {text: scores[text] + float(bonus) for text, bonus in zip(texts, bonuses, strict=True)}


def language_scores(texts: Sequence[str], config: DecoderConfig, *, lm: LanguageModel | None) -> np.ndarray:
    """Return what a text scores beside ln p of its tokens, by the definition in beam_search."""
    if lm is None:
        return np.zeros(len(texts))
    bonuses = [
        sum(config.beta - config.unknown_penalty * (word not in lm.word_ids) for word in text.split()) for text in texts
    ]
    scores: np.ndarray = config.alpha * lm.score_sentences(texts) + bonuses
    return scores


# --- the peer --------------------------------------------------------------------------------------------------------


def load_peer(transcriber: Transcriber, folder: Path) -> tuple[Any, str]:
    """Return the other decoder with the same language model and weights, None if it is not installed, and what to say of it.

    It scores a word alpha ln(10) (log10 p(word) + unk_score_offset if it is unknown) + beta, the sentence's end alpha ln(10)
    log10 p(</s>): ours, if the offset is -unknown_penalty / (alpha ln(10)). Two things differ on the way, not at the end: it
    charges an unknown beginning of a word the offset itself, and does not look ahead in the language model.
    """
    try:
        from ctc_beam_decoder import build_ctcdecoder
    except ImportError:
        return None, f"\n{PEER} is not installed, so it is skipped: pip install {PEER}==0.2.0"
    lm, decoder = transcriber.lm, transcriber.decoder
    assert lm is not None
    path = folder / "model.arpa"
    write_arpa(lm, path)
    start = time.process_time()
    peer = build_ctcdecoder(
        ["", *transcriber.vocabulary.tokens[1:]],  # "" is its blank
        kenlm_model_path=str(path),
        alpha=decoder.alpha,
        beta=decoder.beta,
        unk_score_offset=-decoder.unknown_penalty / (decoder.alpha * LN_10) if decoder.alpha else 0.0,
    )
    return peer, f"\n{PEER} has the same language model, as ARPA (loaded in {time.process_time() - start:.1f} s), and weights."


def agreement(transcriber: Transcriber, sets: Sequence[DevSet], *, peer: Any) -> str:
    """Compare the best texts and, where they differ, the score that beam_search's definition gives to each."""
    log_probs = [x for one in sets for x in one.log_probs]
    config = replace(transcriber.decoder, beam_size=AGREEMENT_BEAM)
    log_probs = [np.ascontiguousarray(x[:, : len(transcriber.vocabulary)]) for x in log_probs]
    ours = [our_text(transcriber, x, config=config, spelled=True) for x in log_probs]
    listed = [peer.decode_beams(x, beam_width=AGREEMENT_BEAM, **OUR_THRESHOLDS) for x in log_probs]
    best = [beams[0] if beams else ("", None, [], 0.0, 0.0) for beams in listed]
    decoded = [peer.decode(x, beam_width=AGREEMENT_BEAM) for x in log_probs]
    rows = []
    for name, theirs in {"decode_beams(), our thresholds": [b[0] for b in best], "decode(), its own": decoded}.items():
        pairs = zip(log_probs, ours, theirs, strict=True)
        leads = [0.0 if ours == theirs else lead(transcriber, x, ours=ours, theirs=theirs) for x, ours, theirs in pairs]
        num_equal = sum(our == their for our, their in zip(ours, theirs, strict=True))
        num_worse = sum(value < -TOLERANCE for value in leads)
        num_better = sum(value > TOLERANCE for value in leads)
        either = percent(1 - num_worse / len(ours))
        rows.append([name, percent(num_equal / len(ours)), str(num_better), str(num_worse), either])
    header = [f"beam {AGREEMENT_BEAM}, {len(ours)} utterances", "equal text", "our score better", "worse", "equal or not worse"]
    scores = language_scores([beam[0] for beam in best], config, lm=transcriber.lm)
    differences = [abs(beam[4] - beam[3] - s) for beam, s in zip(best, scores, strict=True) if beam[0]]
    note = (
        f"Scores of differing texts are ln p of the text, over all its paths, and what the language model adds, which {PEER}"
        f" computes alike: the largest difference is {max(differences, default=0.0):.0e}."
    )
    return f"\n## Agreement with {PEER}\n\n{table(header, rows)}\n\n{note}"


def our_text(
    transcriber: Transcriber,
    log_probs: np.ndarray,
    *,
    config: DecoderConfig,
    hotwords: Mapping[str, float] | None = None,
    spelled: bool = False,
) -> str:
    """Return the best text. spelled: by its letters, even where the model has a lexicon."""
    lexicon = None if spelled else transcriber.lexicon
    return decode(log_probs, transcriber.vocabulary, config, lm=transcriber.lm, lexicon=lexicon, sounds=transcriber.sounds, hotwords=hotwords).text


def lead(transcriber: Transcriber, log_probs: np.ndarray, *, ours: str, theirs: str) -> float:
    """Return by how much our text scores more, each text summed over all its paths, nothing left out."""
    acoustic = [log_likelihood(log_probs, transcriber.vocabulary.encode(text)) for text in (ours, theirs)]
    first, second = np.array(acoustic) + language_scores([ours, theirs], transcriber.decoder, lm=transcriber.lm)
    return float(first - second)


def log_likelihood(log_probs: np.ndarray, tokens: Sequence[int]) -> float:
    """Return ln p(tokens | log_probs), in double precision."""
    import torch
    from torch.nn import functional as F

    frames = torch.from_numpy(log_probs).double().unsqueeze(1)  # (T', V) -> (T', B = 1, V)
    lengths = torch.tensor([len(frames)]), torch.tensor([len(tokens)])
    return -float(F.ctc_loss(frames, torch.tensor([tokens], dtype=torch.int64), *lengths, reduction="sum"))


# --- the peer with a lexicon -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flashlight:
    """torchaudio's flashlight decoder with our lexicon, language model and weights, made anew for each beam."""

    settings: Mapping[str, Any]
    lexicon: Lexicon  # without words that the language model does not know
    decoders: dict[int, Any] = field(default_factory=dict)

    def decode(self, sounds: np.ndarray, *, beam_size: int) -> tuple[str, list[int]]:
        """Return the best text of log-probabilities (T', S) and the sounds of its path, collapsed."""
        import torch
        from torchaudio.models.decoder import ctc_decoder

        if beam_size not in self.decoders:
            self.decoders[beam_size] = ctc_decoder(beam_size=beam_size, **self.settings)
        best = self.decoders[beam_size](torch.from_numpy(sounds)[None])[0]
        return (" ".join(best[0].words), collapse(best[0].tokens.tolist())) if best else ("", [])


def load_flashlight(transcriber: Transcriber, folder: Path) -> Flashlight | None:
    """Return it, None if it is not installed or the model has no lexicon.

    It scores a word alpha ln(10) log10 p(word) + beta, sums the paths of prefixes with one future (log_add), and ends a word at a space only.
    """
    lm, lexicon, sounds, decoder = transcriber.lm, transcriber.lexicon, transcriber.sounds, transcriber.decoder
    if importlib.util.find_spec("flashlight") is None:
        print(f"\n{LEXICON_PEER} is not installed, so it is skipped: pip install flashlight-text")
        return None
    if lm is None or lexicon is None or sounds is None:
        return None
    known = Lexicon(*zip(*((w, p) for w, p in zip(lexicon.words, lexicon.pronunciations, strict=True) if w in lm.word_ids), strict=True))
    write_arpa(lm, folder / "flashlight.arpa")
    lines = (f"{word} {' '.join(way)} |\n" for word, way in zip(known.words, known.pronunciations, strict=True))
    (folder / "flashlight.txt").write_text("".join(lines))
    return Flashlight(
        {
            "lexicon": str(folder / "flashlight.txt"),
            "tokens": ["-", *("|" if token == " " else token for token in sounds.tokens[1:])],
            "lm": str(folder / "flashlight.arpa"),
            "beam_threshold": -OUR_THRESHOLDS["beam_prune_logp"],
            "lm_weight": decoder.alpha * LN_10,
            "word_score": decoder.beta,
            "unk_score": -math.inf,
            "log_add": True,
            "blank_token": "-",
            "sil_token": "|",
        },
        known,
    )


def flashlight_agreement(transcriber: Transcriber, sets: Sequence[DevSet], flashlight: Flashlight) -> str:
    """Compare the best texts and, where they differ, the score of each: ln p of its sounds, over all their paths, and what its words score."""
    size, sounds, lm, config = len(transcriber.vocabulary), transcriber.sounds, transcriber.lm, transcriber.decoder
    assert sounds is not None and lm is not None
    space = np.full((1, len(sounds)), -30.0, np.float32)  # after the last frame, so that the last word ends for both
    space[0, sounds.tokens.index(" ")] = 0.0
    log_probs = [np.concatenate([x[:, size:], space]) for one in sets for x in one.log_probs]
    weights: dict[str, Any] = {"lm": lm, "alpha": config.alpha, "beta": config.beta, "lexicon": flashlight.lexicon}
    rows = []
    for ours, thresholds, theirs in AGREEMENT_BEAMS:
        pruning: dict[str, Any] = {"beam_threshold": -thresholds["beam_prune_logp"], "token_threshold": thresholds["token_min_logp"]}
        start = time.process_time()
        found = [beam_search(x, sounds, beam_size=ours, **weights, **pruning)[0] for x in log_probs]
        middle = time.process_time()
        others = [flashlight.decode(x, beam_size=theirs) for x in log_probs]
        seconds = middle - start, time.process_time() - middle
        num_equal = num_worse = 0
        for x, hypothesis, (text, tokens) in zip(log_probs, found, others, strict=True):
            if hypothesis.text == text:
                num_equal += 1
                continue
            tokens = tokens[next((i for i, token in enumerate(tokens) if sounds.tokens[token] != " "), 0) :]
            scores = [log_likelihood(x, path) + language_scores([words], config, lm=lm)[0] for words, path in ((hypothesis.text, hypothesis.tokens), (text, tokens))]
            num_worse += scores[0] < scores[1] - TOLERANCE
        rates = [percent(word_error_rate([r for one in sets for r in one.references], texts)) for texts in ([h.text for h in found], [text for text, _ in others])]
        shares = (num_equal / len(found), 1 - num_worse / len(found))
        rows.append([f"{ours} (thresholds {', '.join(f'{value:g}' for value in thresholds.values())}), {theirs}", *map(percent, shares), *rates, f"{seconds[1] / seconds[0]:.2f} times as fast"])
    header = [f"beams of asr, {LEXICON_PEER}; {len(log_probs)} utterances", "equal text", "equal or better score", "WER, asr", f"WER, {LEXICON_PEER}", "asr is"]
    return f"\n## Agreement with {LEXICON_PEER}\n\n{table(header, rows)}"


# --- speed -----------------------------------------------------------------------------------------------------------


def timed(
    decoders: Mapping[str, Callable[[np.ndarray], str]], log_probs: Sequence[np.ndarray], *, num_runs: int
) -> dict[str, tuple[float, list[str]]]:
    """Return name -> (median CPU seconds for all of log_probs, texts); the decoders take turns, after one run to warm up."""
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    texts: dict[str, list[str]] = {}
    for _ in range(num_runs + 1):
        for name, read in decoders.items():
            start = time.process_time()
            texts[name] = [read(x) for x in log_probs]
            seconds[name].append(time.process_time() - start)
    return {name: (float(np.median(times[1:])), texts[name]) for name, times in seconds.items()}


def speed(transcriber: Transcriber, dev: DevSet, *, peer: Any, flashlight: Flashlight | None, num_runs: int) -> str:
    size = len(transcriber.vocabulary)
    decoders: dict[str, Callable[[np.ndarray], str]] = {
        "asr greedy": partial(our_text, transcriber, config=DecoderConfig("greedy"))
    }
    for beam_size in BEAM_SIZES:
        config = replace(transcriber.decoder, beam_size=beam_size)
        decoders[f"asr beam {beam_size}"] = partial(our_text, transcriber, config=config)
        if peer is not None:
            decoders[f"{PEER} beam {beam_size}"] = lambda x, n=beam_size: peer.decode(np.ascontiguousarray(x[:, :size]), beam_width=n)  # type: ignore[misc]
        if transcriber.lexicon is not None:
            decoders[f"asr, spelled, beam {beam_size}"] = partial(our_text, transcriber, config=config, spelled=True)
        if flashlight is not None:
            decoders[f"{LEXICON_PEER} beam {beam_size}"] = lambda x, n=beam_size: flashlight.decode(np.ascontiguousarray(x[:, size:]), beam_size=n)[0]  # type: ignore[misc]
    measured = {
        name: (10_000 * seconds / dev.duration_s, word_error_rate(dev.references, texts))  # ms per 10 s of audio
        for name, (seconds, texts) in timed(decoders, dev.log_probs, num_runs=num_runs).items()
    }
    rows = []
    for name, (ms, rate) in measured.items():
        other = measured.get(name.replace("asr", PEER)) if name.startswith("asr") else None
        rows.append([name, f"{ms:.2f}", percent(rate), f"{other[0] / ms:.2f} times as fast" if other else ""])
    header = [f"{dev.name}, median of {num_runs} runs", "ms per 10 s of audio", "WER", f"against {PEER}, same beam"]
    return f"\n## Speed\n\n{table(header, rows)}{''.join(at_equal_wer(measured, name) for name in (PEER, LEXICON_PEER))}"


def at_equal_wer(measured: dict[str, tuple[float, float]], peer: str) -> str:
    """Say how much faster our fastest beam is that is no worse than the peer's best."""
    theirs = [(rate, ms, name) for name, (ms, rate) in measured.items() if name.startswith(peer)]
    if not theirs:
        return ""
    rate, their_ms, their_name = min(theirs)
    ours = [(ms, name) for name, (ms, r) in measured.items() if name.startswith("asr beam") and r <= rate]
    if not ours:
        return f"\n\nNo beam of ours reaches the WER of {their_name}, {percent(rate)}."
    ms, name = min(ours)
    return (
        f"\n\nAt equal WER: {name} is {their_ms / ms:.2f} times as fast as {their_name}, the best"
        f" of its beams, with WER {percent(measured[name][1])} against {percent(rate)}."
    )


def hotword_cost(transcriber: Transcriber, dev: DevSet, *, peer: Any, num_runs: int, seed: int) -> str:
    """Time decoding with and without phrases of one and two words, drawn from the language model's that the lexicon has too, if there is one."""
    lm, vocabulary = transcriber.lm, transcriber.vocabulary
    assert lm is not None
    known = lm.words if transcriber.lexicon is None else set(lm.words) & transcriber.lexicon.first.keys()
    words = sorted(word for word in known if len(word) >= 5 and not vocabulary.unknown(word))
    drawn = np.random.default_rng(seed).choice(words, 3 * NUM_HOTWORDS // 2, replace=False).tolist()
    phrases = drawn[: NUM_HOTWORDS // 2]
    phrases += [f"{a} {b}" for a, b in zip(drawn[len(phrases) :: 2], drawn[len(phrases) + 1 :: 2], strict=True)]
    read = partial(our_text, transcriber, config=transcriber.decoder)
    both = {"without": read, "with": partial(read, hotwords=dict.fromkeys(phrases, HOTWORD_WEIGHT))}
    rows = [cost_row("asr", both, dev, num_runs=num_runs)]
    if peer is not None:
        some = replace(dev, waveforms=dev.waveforms[:PEER_UTTERANCES], log_probs=dev.log_probs[:PEER_UTTERANCES])
        some = replace(some, log_probs=tuple(np.ascontiguousarray(x[:, : len(vocabulary)]) for x in some.log_probs))
        plain = partial(peer.decode, beam_width=transcriber.decoder.beam_size)
        both = {"without": plain, "with": partial(plain, hotwords=phrases, hotword_weight=HOTWORD_WEIGHT)}
        rows.append(cost_row(f"{PEER}, {len(some.log_probs)} utterances, one run", both, some, num_runs=1))
    header = [f"{len(phrases):,} phrases, beam {transcriber.decoder.beam_size}", "ms per 10 s without", "with", "cost"]
    return f"\n## Hotwords\n\n{table(header, rows)}"


def cost_row(name: str, decoders: Mapping[str, Callable[[np.ndarray], str]], dev: DevSet, *, num_runs: int) -> list[str]:
    results = timed(decoders, dev.log_probs, num_runs=num_runs)
    before, after = (10_000 * results[key][0] / dev.duration_s for key in ("without", "with"))  # ms per 10 s of audio
    return [name, f"{before:.2f}", f"{after:.2f}", f"{100 * (after / before - 1):+.1f} %"]


def start_up(model: str, dev: DevSet, *, folder: Path, num_runs: int) -> str:
    """Time what beam search adds to a fresh process: the language model, its lexicon, the search, and decoding one utterance."""
    path = folder / "log_probs.npy"
    np.save(path, dev.log_probs[0])
    command = [sys.executable, "-c", FIRST_DECODE, str(find_model(model)), str(path)]
    runs = [subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() for _ in range(num_runs)]
    load_s, decode_s = np.median(np.array(runs, float), axis=0)
    return (
        f"\n## Start-up\n\nA fresh process spends {load_s + decode_s:.3f} s more: {load_s:.3f} s to load the language model,"
        f" {decode_s:.3f} s for the lexicon, the machine code and the first utterance"
        f" ({len(dev.waveforms[0]) / SAMPLE_RATE:.1f} s). Median of {num_runs}."
    )


# --- quality ---------------------------------------------------------------------------------------------------------


def gain(transcriber: Transcriber, dev: Sequence[DevSet], *, unseen: Sequence[DevSet], seed: int) -> str:
    rows = []
    groups = [[one] for one in (*dev, *unseen)] + [group for group in (dev, unseen) if len(group) > 1]
    for group in groups:
        references = [reference for one in group for reference in one.references]
        log_probs = [x for one in group for x in one.log_probs]
        greedy = word_errors(references, [our_text(transcriber, x, config=DecoderConfig("greedy")) for x in log_probs])
        beam = word_errors(references, [our_text(transcriber, x, config=transcriber.decoder) for x in log_probs])
        change, low, high = relative_change(greedy, beam, seed=seed)
        rates = [percent(sum(counts, ErrorCounts()).rate) for counts in (greedy, beam)]
        name = group[0].name if len(group) == 1 else "all, dev" if group is dev else "all, unseen"
        rows.append([name + marked(group[0], unseen), *rates, f"{change:+.1f} % [{low:+.1f}, {high:+.1f}]"])
    header = ["manifest", "WER greedy", f"WER beam {transcriber.decoder.beam_size} + LM", "relative [95 %]"]
    note = f"Paired bootstrap over utterances, {NUM_RESAMPLES} resamples. Weights are tuned on dev manifests, not on those marked unseen."
    return f"\n## Gain\n\n{table(header, rows)}\n\n{note}"


def marked(one: DevSet, unseen: Sequence[DevSet]) -> str:
    return " (unseen)" if any(one is other for other in unseen) else ""


def relative_change(before: Sequence[ErrorCounts], after: Sequence[ErrorCounts], *, seed: int) -> tuple[float, float, float]:
    """Return the change of the error rate in percent and its interval; one draw of utterances serves both sides."""
    errors = np.array([[counts.errors for counts in side] for side in (before, after)])  # (2, U)
    drawn = np.random.default_rng(seed).integers(0, errors.shape[1], (NUM_RESAMPLES, errors.shape[1]))
    sums = np.concatenate([errors.sum(axis=1)[:, None], errors[:, drawn].sum(axis=2)], axis=1)  # (2, 1 + R)
    changes = 100 * (sums[1] / np.maximum(sums[0], 1) - 1)
    low, high = np.quantile(changes[1:], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(changes[0]), float(low), float(high)


def recognised_words(transcriber: Transcriber, dev: DevSet) -> Iterator[tuple[int, Word, int | None]]:
    """Yield utterance, word and, if the word is right, its place in the reference."""
    for index, (reference, log_probs) in enumerate(zip(dev.references, dev.log_probs, strict=True)):
        segment = transcriber.recognise(log_probs, 0, 0.0, len(dev.waveforms[index]) / SAMPLE_RATE)
        words, place = iter(segment.words), 0
        for expected, found in align_words(reference, segment.text):
            if found is not None:
                yield index, next(words), place if found == expected else None
            place += expected is not None


def word_times(transcriber: Transcriber, sets: Sequence[DevSet]) -> str:
    rows = []
    for dev in sets:
        aligned = [
            transcriber.align(waveform, reference).segments[0].words
            for waveform, reference in zip(dev.waveforms, dev.references, strict=True)
        ]
        differences = np.array(
            [
                (abs(word.start - aligned[index][place].start), abs(word.end - aligned[index][place].end))
                for index, word, place in recognised_words(transcriber, dev)
                if place is not None
            ]
        ).reshape(-1, 2)
        for name, column in zip(("starts", "ends"), differences.T, strict=True):
            median, most = 1000 * np.quantile(column, [0.5, 0.9]) if len(column) else (math.nan, math.nan)
            close = float((column <= CLOSE_S + 1e-6).mean()) if len(column) else math.nan
            rows.append([f"{dev.name}, {name} of {len(column)} words", f"{median:.0f}", f"{most:.0f}", percent(close)])
    header = ["right words", "median, ms", "90th percentile, ms", f"within {1000 * CLOSE_S:.0f} ms"]
    note = "Against the forced alignment of the reference by the same network."
    return f"\n## Word times\n\n{table(header, rows)}\n\n{note}"


def calibration(
    transcriber: Transcriber, dev: Sequence[DevSet], *, unseen: Sequence[DevSet], plot: Path | None
) -> str:
    """Judge the words' confidences as they are stored, and what they would be without calibration."""
    rows, curves = [], {}
    stored = transcriber.decoder
    for one in (*dev, *unseen):
        name = one.name + marked(one, unseen)
        confidences, right = confidences_of(transcriber, one)
        transcriber.decoder = replace(stored, confidence_slope=0.0, confidence_offset=0.0)
        plain, _ = confidences_of(transcriber, one)
        transcriber.decoder = stored
        errors = [f"{expected_calibration_error(x, right):.3f}" for x in (plain, confidences)]
        means = [f"{x.mean() if len(x) else math.nan:.3f}" for x in (confidences, right)]
        rows.append([name, str(len(right)), *errors, *means])
        curves[name] = confidences, right
    header = ["manifest", "words", "error, uncalibrated", "error, calibrated", "mean confidence", "share right"]
    note = (
        "Expected calibration error. The stored calibration was fitted on dev manifests, so that only those marked unseen judge it."
        if stored.confidence_slope
        else "Expected calibration error. The model folder stores no calibration."
    )
    if plot is not None:
        draw_reliability(curves, plot)
        note += f" Reliability diagram: {plot.name}."
    return f"\n## Confidence\n\n{table(header, rows)}\n\n{note}"


def confidences_of(transcriber: Transcriber, dev: DevSet) -> tuple[np.ndarray, np.ndarray]:
    """Return the confidence of each recognised word and 1 if it is right, else 0."""
    words = [(word.confidence, place is not None) for _, word, place in recognised_words(transcriber, dev)]
    confidences, right = np.array(words, float).reshape(-1, 2).T
    return confidences, right


def draw_reliability(curves: dict[str, tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    """Draw the share of right words over the mean confidence in each bin; the size of a point is that of its bin."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 5))
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="perfect")
    for name, (confidences, right) in curves.items():
        counts, means, shares = reliability(confidences, right)
        there = counts > 0
        x, y = means[there], shares[there]
        (line,) = axes.plot(x, y, label=f"{name}: {expected_calibration_error(confidences, right):.3f}")
        axes.scatter(x, y, s=400 * counts[there] / counts.sum(), color=line.get_color())
    axes.set(xlabel="confidence", ylabel="share of words that are right", xlim=(0, 1), ylim=(0, 1))
    axes.legend(title="expected calibration error")
    figure.savefig(path, dpi=150, bbox_inches="tight")


if __name__ == "__main__":
    sys.exit(main())
