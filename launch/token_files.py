"""What the scripts that make token files share: a model's tokenizer, rows of text out of local copies of data sets, and
files that appear whole or not at all. Knows nothing of what the tokens are for."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from tokenizers import Tokenizer


class TokenFileError(Exception):
    """A file that is not what it should be; the message names it, in one line."""


def load_tokenizer(model: Path) -> Tokenizer:
    path = model / "tokenizer.json"
    if not path.is_file():
        raise TokenFileError(f"{path} is not there: a Hugging Face folder with a fast tokenizer is needed")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers package raises plain Exception
        raise TokenFileError(f"{path}: {error}") from error
    # A tokenizer.json may ask for cutting or filling to a fixed length; neither serves here.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return file.read()
    except OSError as error:
        raise TokenFileError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TokenFileError(f"{path} is not UTF-8 text (byte {error.start})") from error


def read_lines(path: Path) -> list[bytes]:
    """The lines of a file, unpacked when its name ends in .gz."""
    try:
        opened: IO[bytes] = gzip.open(path) if path.suffix == ".gz" else path.open("rb")
        with opened as file:
            return [line for line in file if line.strip()]
    except (OSError, EOFError) as error:  # gzip's own errors are OSErrors without strerror
        raise TokenFileError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def parse_row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise TokenFileError(f"{path}, line {number}: is no JSON") from error
    if not isinstance(row, dict):
        raise TokenFileError(f"{path}, line {number}: is no JSON object")
    return row


def parquet_columns(path: Path) -> dict[str, list[Any]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise TokenFileError(f"{path}: pyarrow is needed to read it; .venv/bin/pip install pyarrow") from error
    try:
        return pyarrow.parquet.read_table(path).to_pydict()
    except (OSError, ValueError) as error:  # pyarrow's errors are both
        raise TokenFileError(f"{path}: {str(error).splitlines()[0]}") from error


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of JSON lines (also .gz), Parquet, or a .csv of question, choices and answer as MMLU's archive has them."""
    suffix = path.suffixes[-2] if path.suffix == ".gz" and len(path.suffixes) > 1 else path.suffix
    if suffix == ".parquet":
        columns = parquet_columns(path)
        for values in zip(*columns.values(), strict=True):
            yield dict(zip(columns, values, strict=True))
    elif suffix == ".csv":
        subject = path.stem.removesuffix("_test").removesuffix("_dev").removesuffix("_val")
        for number, fields in enumerate(csv.reader(io.StringIO(read_text(path), newline="")), 1):
            if len(fields) < 4:
                raise TokenFileError(f"{path}, question {number}: is no row of question, choices and answer")
            yield {"question": fields[0], "choices": fields[1:-1], "answer": fields[-1], "subject": subject}
    else:
        for number, line in enumerate(read_lines(path), 1):
            yield parse_row(path, number, line)


def save(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """The file has its name once it is complete."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            write(file)
        partial.replace(path)
    except OSError as error:
        raise TokenFileError(f"{path}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
