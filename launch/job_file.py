"""Reads a job file as decant does (pipeline/job_file.c): a `name = value` or `name: value` a line, blanks around both left
out; a comment is a line that begins with # or ;, and what follows a value behind a blank and a ;. Sections mean nothing, and of
two lines with one name the last counts."""

from __future__ import annotations

import re
from pathlib import Path


class JobFileError(Exception):
    """The file cannot be read; the message says where and why."""


def read_job_file(file: Path) -> dict[str, str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise JobFileError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise JobFileError(f"{file}: is no UTF-8 text: {error.reason} at byte {error.start}") from error
    given = {}
    for number, line in enumerate(lines, 1):
        text = re.split(r"\s;", line.strip())[0].strip()
        if not text or text[0] in "#;" or (text[0] == "[" and text[-1] == "]"):
            continue
        parts = re.split("[=:]", text, maxsplit=1)
        if len(parts) < 2:
            raise JobFileError(f"{file}, line {number}: expected `name = value`")
        given[parts[0].strip()] = parts[1].strip()
    return given
