"""WikiText-2 and C4 as the GPTQ protocol takes them: which texts are joined, and which windows are drawn by a seed. Pure
but for reading the files; knows tokenizers only as functions from text to token ids.

Source: Frantar et al., "GPTQ" (2022), and the data functions that its authors, SqueezeLLM's and others share: windows are
drawn by Python's random.seed(seed) and random.randint, so that the same files and seed give the same windows here.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from token_files import TokenFileError, parquet_columns, parse_row, read_lines, read_text

Encode = Callable[[str], list[int]]

NEW_C4_DOCUMENTS = 1100


class JsonTexts(Sequence[str]):
    """The "text" of each line of JSON lines, parsed when it is asked for: C4's files have hundreds of thousands."""

    def __init__(self, path: Path) -> None:
        self.path, self.lines = path, read_lines(path)

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index):  # an index; slices are not needed
        text = parse_row(self.path, index + 1, self.lines[index]).get("text")
        if not isinstance(text, str):
            raise TokenFileError(f'{self.path}, line {index + 1}: has no "text"')
        return text


def texts_of_file(path: Path) -> Sequence[str]:
    """A file's texts in order: Parquet's or JSON's column "text", or the lines of WikiText's own files."""
    if path.suffix == ".parquet":
        columns = parquet_columns(path)
        if "text" not in columns:
            raise TokenFileError(f'{path}: has no column "text"')
        return columns["text"]
    if path.suffix in {".raw", ".txt", ".tokens"}:
        # As the data set's loader makes rows of lines: the line's end stays, lines of spaces become empty.
        return [line if line.strip() else "" for line in io.StringIO(read_text(path), newline="\n")]
    return JsonTexts(path)


def texts_of(paths: list[Path]) -> Sequence[str]:
    files = [texts_of_file(path) for path in paths]
    if any(len(texts) == 0 for texts in files):
        raise TokenFileError(f"{paths[[len(texts) for texts in files].index(0)]}: has no text")
    return files[0] if len(files) == 1 else [text for texts in files for text in texts]


def wikitext2(texts: Sequence[str], encode: Encode) -> np.ndarray:
    """One row of tokens: the whole split as one text."""
    return np.array(encode("\n\n".join(texts)), dtype=np.int32)


def windows_of_row(tokens: np.ndarray, length: int, sequences: int, seed: int) -> np.ndarray:
    """[sequences, length], drawn from one row: for calibrating on WikiText-2."""
    if len(tokens) <= length:
        raise TokenFileError(f"the text has {len(tokens)} tokens; drawing windows of {length} needs more")
    chance = random.Random(seed)
    starts = [chance.randint(0, len(tokens) - length - 1) for _ in range(sequences)]
    return np.stack([tokens[start : start + length] for start in starts])


def windows_of_documents(texts: Sequence[str], encode: Encode, length: int, sequences: int, seed: int) -> np.ndarray:
    """[sequences, length]: a document drawn until one is longer than the window, and a window drawn from it. Of a document
    that is just as long the published code cannot draw; here it is too short."""
    chance = random.Random(seed)
    too_short: set[int] = set()
    windows = []
    for _ in range(sequences):
        while True:
            index = chance.randint(0, len(texts) - 1)
            tokens = [] if index in too_short else encode(texts[index])
            if len(tokens) > length:
                break
            too_short.add(index)
            if len(too_short) == len(texts):
                raise TokenFileError(f"none of the {len(texts)} documents is longer than {length} tokens")
        start = chance.randint(0, len(tokens) - length - 1)
        windows.append(tokens[start : start + length])
    return np.array(windows, dtype=np.int32)


def new_c4(texts: Sequence[str], encode: Encode, length: int, sequences: int) -> np.ndarray:
    """[up to sequences, length]: the first documents as one text, its windows side by side."""
    joined = " ".join(texts[index] for index in range(min(NEW_C4_DOCUMENTS, len(texts))))
    tokens = np.array(encode(joined), dtype=np.int32)
    count = min(len(tokens) // length, sequences)
    if count == 0:
        raise TokenFileError(f"the first {NEW_C4_DOCUMENTS} documents have {len(tokens)} tokens, fewer than a window")
    return tokens[: count * length].reshape(count, length)
