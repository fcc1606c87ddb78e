"""Takes the English prose out of the Debian Reference (package debian-reference-en) as two disjoint texts.

The book's plain text holds tables, commands and a table of contents between its paragraphs. Kept are whole sentences of
some length, one paragraph a line; the first part of the book becomes the text to calibrate on, the last third the text
to measure on. Needs nothing but Python.
"""

from __future__ import annotations

import argparse
import gzip
import re
from pathlib import Path

MIN_WORDS = 12
CALIBRATION_SHARE = 2 / 3


def paragraphs(book: str) -> list[str]:
    """The blocks of the book that read like prose, each joined to one line."""
    kept = []
    for block in re.split(r"\n\s*\n", book):
        lines = [line.strip() for line in block.splitlines()]
        text = " ".join(lines).removeprefix("* ")
        text = re.sub(r"(?<=\w/) (?=\w)", "", text)  # addresses and paths were broken after a slash
        starts_well = re.match(r"[A-Z][\w(),'’/-]* ", text)
        if starts_well and text[-1] in ".:" and len(text.split()) >= MIN_WORDS and "|" not in text:
            kept.append(text)
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(prog="prose.py", description="Splits a book's prose into two disjoint texts.")
    parser.add_argument("book", metavar="BOOK", type=Path, help="debian-reference.en.txt, .gz or plain")
    parser.add_argument("calibration", metavar="CALIBRATION", type=Path, help="text to write: the first two thirds")
    parser.add_argument("evaluation", metavar="EVALUATION", type=Path, help="text to write: the last third")
    options = parser.parse_args()

    data = options.book.read_bytes()
    if options.book.suffix == ".gz":
        data = gzip.decompress(data)
    kept = paragraphs(data.decode("utf-8"))
    cut = int(len(kept) * CALIBRATION_SHARE)
    for path, part in ((options.calibration, kept[:cut]), (options.evaluation, kept[cut:])):
        path.write_text("\n".join(part) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
