"""Put a trained English model and a language model into the package: tune the decoder and score both on dev manifests, write the card."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from asr.checkpoint import (
    G2P_NAME,
    LEXICON_NAME,
    LM_NAME,
    MODELS_DIR,
    RNNLM_NAME,
    load_model_folder,
    load_network,
    save_decoder_settings,
    save_model_folder,
)
from asr.decoder import DecoderConfig, in_search_order
from asr.evaluate import evaluate_manifest, results_table
from asr.lexicon import read_lexicon, write_lexicon
from asr.lm import load, save
from asr.rnnlm import load as load_rnnlm
from asr.rnnlm import save as save_rnnlm
from asr.transcribe import Transcriber, folder_lexicon, folder_lm, folder_rescorer
from asr.tune import tune

CARD = """# {name}

Writes down English speech: lower-case words, no punctuation, numbers spelled out. A stacked {directions} GRU with {layers} layers of {hidden} units a
direction on 80 log-mel bins, {parameters:,} parameters, trained with CTC and maximum mutual information to write letters and pronunciations on {hours} hours of openly licensed speech by
`recipes/english/train.py{option}` ({epochs} epochs, {steps} steps, seed {seed}, in the last of the runs that `recipes/{recipe}/README.md` tells of).

## Error rates

On the parts held out for development, which chose the weights among the run's epochs and the decoder's settings; no utterance of them was trained on, and no
speaker, except ljspeech's one voice. Measured by `scripts/ship_model.py` on {machine}.

With the language model (the default: beam search among {words:,} words as they sound):

{beam}

Greedy decoding (`--decoder greedy`: letter by letter):

{greedy}

The expected calibration error of the words' confidences is {calibration:.3f}, fitted on one half of the dev utterances and measured on the other.

## Language model

{lm}, trained by `asr lm train`{rnnlm} on 18 million words from about 240 public-domain books, none of which is read in LibriSpeech's dev and test sets, 6.1 million words of
modern prose (`recipes/english/text.py`), and the texts of the training speech.

## Data and attribution

| data | licence |
|---|---|
| LibriSpeech (Panayotov et al. 2015), 7 speakers of train-clean-100 and one utterance each of 228 others, some texts recovered by recognisers | CC BY 4.0 |
| Mozilla Common Voice 6.1 and 13.0, English, part of the texts recovered by recognisers | CC0 |
| LJSpeech, Keith Ito, LibriVox: 328 clips | public domain |
| LJSpeech sentences read by Philipp Matthes | Apache-2.0 |
| CMU ARCTIC (bdl, slt), Carnegie Mellon University | free use |
| kathleen, Rhasspy | CC0 |
| Asterisk core sounds, Allison Smith | CC BY-SA 3.0 |
| AN4, Carnegie Mellon University: its training part | BSD-like |
| speechocean762, SpeechOcean and Xiaomi: its adults and its children from 9 years on | free for commercial and other use |
| speech of the games Beneath a Steel Sky, Revolution Software, Flight of the Amazon Queen, John Passfield and Steven Stamatiadis, and Drascula, Alcachofa Soft | free to change and to pass on at cost |
| 2.2 hours said by Piper's synthetic voice en_US-joe-medium, Rhasspy (`recipes/english/synthetic.py`) | MIT |
| what whisper's tiny.en encoder, OpenAI, makes of the speech: foretold in training (`recipes/english/teacher.py`) | MIT |
| CMUdict, Carnegie Mellon University: pronunciations, and what other words sound like after a model of it | BSD-like |
| background noises of Google Speech Commands, mixed in | CC BY 4.0 |
| for the language model: WordNet 3.0, Princeton University: definitions and examples | WordNet licence |
| the same: Presidents' addresses on the State of the Union | CC0 |
| the same: some two hundred articles of the English Wikipedia, by their authors | CC BY-SA |
| the same: The Free On-line Dictionary of Computing, Denis Howe | GFDL |
| the same: the Jargon File 4.4.7 | public domain |
| the same: The Debian Administrator's Handbook, Raphaël Hertzog and Roland Mas | CC BY-SA 3.0 |
| the same: An Anarchist FAQ, its editorial collective | GPL-2 |
| the same: The World Factbook, Central Intelligence Agency, two editions | public domain |
| the same: essential-generators, Shane Mason: a chain of word triples, by what they say from articles of the English Wikipedia, by their authors | MIT, CC BY-SA |
| the same: GnuCash's tutorial and help, the GnuCash documentation team | GFDL |
| the same: the KStars handbook, its authors | GFDL |
| the same: Stellarium's sky cultures, its authors | GPL-2 |
| the same: texts of the games Cataclysm: Dark Days Ahead and FreeOrion, their contributors | CC BY-SA 3.0 |
| the same: texts of the games Endless Sky, Michael Zahniser and others (GPL-3), Freeciv and Dungeon Crawl Stone Soup, their teams | GPL-2, GPL-3 |

## What it is bad at

It has heard few hours: many words come out wrong. Words outside its lexicon never come out, unless they are given as hotwords; greedy decoding spells any. Expect many more errors with noise, distance, others
talking, even in the background, strong accents, children and spontaneous speech. Letters spelled one by one it knows from AN4 alone. Languages other than English are beyond it.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="model folder, such as runs/english/best")
    parser.add_argument("manifests", type=Path, nargs="+", help="dev manifests")
    parser.add_argument("--lm", type=Path, help="language model written by `asr lm train`")
    parser.add_argument("--rnnlm", type=Path, help="recurrent language model written by `asr lm train-recurrent`")
    parser.add_argument("--decoder-of", default="", metavar="MODEL", help="shipped model whose language model, lexicon and g2p this one uses, instead of its own")
    parser.add_argument("--lexicon", type=Path, help="for a network that writes pronunciations: written by recipes/english/lexicon.py")
    parser.add_argument("--g2p", type=Path, help="the model of letters and sounds that it wrote too")
    parser.add_argument("--tune", type=Path, nargs="+", required=True, help="dev manifests to tune the decoder on")
    parser.add_argument("--trials", type=int, default=60, help="decoder settings to try beside those in --out (default: %(default)s)")
    parser.add_argument("--beam-size", type=int, default=400, help="hypotheses kept (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=MODELS_DIR / "english", help="default: %(default)s")
    arguments = parser.parse_args()

    if bool(arguments.lm) == bool(arguments.decoder_of):
        parser.error("expected --lm or --decoder-of")
    folder = load_model_folder(arguments.model)
    network = load_network(folder)
    info = folder.info | ({"decoder_of": arguments.decoder_of} if arguments.decoder_of else {})

    def write(card: str) -> None:
        save_model_folder(
            arguments.out, network, features=folder.features, vocabulary=folder.vocabulary, sounds=folder.sounds, info=info, card=card
        )

    write("")
    lexicon = read_lexicon(arguments.lexicon) if arguments.lexicon else None
    if arguments.lm:
        save(in_search_order(load(arguments.lm), folder.sounds or folder.vocabulary, lexicon), arguments.out / LM_NAME)
    if lexicon:
        write_lexicon(lexicon, arguments.out / LEXICON_NAME)
    if arguments.g2p:
        save(load(arguments.g2p), arguments.out / G2P_NAME)
    if arguments.rnnlm:
        save_rnnlm(load_rnnlm(arguments.rnnlm), arguments.out / RNNLM_NAME)
    tuning = tune(arguments.out, arguments.tune, num_trials=arguments.trials, beam_size=arguments.beam_size)
    save_decoder_settings(arguments.out, tuning.settings)
    tables = {name: score(arguments.out, arguments.manifests, decoder) for name, decoder in {"beam": None, "greedy": DecoderConfig()}.items()}
    write(make_card(arguments.out, tables, tuning.calibration_error))
    print(tables["beam"], tables["greedy"], sep="\n\n")


def score(model: Path, manifests: Sequence[Path], decoder: DecoderConfig | None) -> str:
    """Return a table of the model's results, the manifests by their names."""
    transcriber = Transcriber(model, decoder=decoder)
    table = results_table([evaluate_manifest(transcriber, path) for path in manifests])
    for path in manifests:
        table = table.replace(str(path), path.stem)
    return table


def make_card(model: Path, tables: Mapping[str, str], calibration_error: float) -> str:
    folder = load_model_folder(model)
    lm, lexicon, rescorer = folder_lm(folder), folder_lexicon(folder), folder_rescorer(folder)
    rnnlm = f", and a GRU of {len(rescorer.words):,} words that ranks the best texts anew, by `asr lm train-recurrent`, both" if rescorer and folder.decoder.get("rescore_weight") else ""
    assert lm is not None, "tune found it"
    bidirectional = folder.network["bidirectional"]
    return CARD.format(
        name=model.name,
        directions="bidirectional" if bidirectional else "one-directional",
        recipe="english" if bidirectional else "streaming",
        option="" if bidirectional else " --live",
        words=len(lexicon.first) if lexicon else len(lm.words),
        layers=folder.network["num_layers"],
        hidden=folder.network["hidden_size"],
        parameters=folder.info["parameters"],
        hours=folder.info["training_hours"],
        epochs=folder.info["epochs"],
        steps=folder.info["steps"],
        seed=folder.info["seed"],
        machine=f"{os.cpu_count()} {platform.machine()} cores",
        lm=f"A word {lm.order}-gram of {sum(lm.num_ngrams):,} n-grams and {len(lm.words):,} words",
        rnnlm=rnnlm,
        calibration=calibration_error,
        **tables,
    )


if __name__ == "__main__":
    main()
