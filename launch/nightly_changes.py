"""What has changed since a night: the model against the container that was made of it, token files and settings against
the night's record. Reads checksums out of containers, never weights.

A model file with the size, the time of change and the inode that the record has is taken as unchanged without being read."""

from __future__ import annotations

import functools
import json
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py

STRETCH = 64 << 20


class NightError(Exception):
    """The night cannot go on; the message says why."""


def marks_of(model: Path) -> dict[str, list[int]]:
    """Size, time of change and inode of every file that decant reads of a model."""
    files = sorted([*model.glob("*.safetensors"), *model.glob("*.json")])
    return {path.name: [(at := path.stat()).st_size, at.st_mtime_ns, at.st_ino] for path in files}


def checksum_of(path: Path) -> int:
    with path.open("rb") as file:
        return checksum_of_part(file, 0, path.stat().st_size)


def checksum_of_part(file: Any, first: int, size: int) -> int:
    file.seek(first)
    checksum = 0
    while size > 0 and (block := file.read(min(size, STRETCH))):
        checksum = zlib.crc32(block, checksum)
        size -= len(block)
    return checksum


@functools.cache
def tensor_checksums(model: Path) -> dict[str, int]:
    """CRC-32 of the bytes of every tensor; read once a night, several tensors at a time."""
    places: dict[str, tuple[Path, int, int]] = {}
    for path in sorted(model.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                size = struct.unpack("<Q", file.read(8))[0]
                for name, about in json.loads(file.read(size)).items():
                    if name != "__metadata__":
                        first, end = about["data_offsets"]
                        places[name] = path, 8 + size + first, end - first
        except (OSError, ValueError, KeyError, struct.error) as error:
            raise NightError(f"{path}: {error}") from error
    if not places:
        raise NightError(f"{model} has no safetensors")
    with ThreadPoolExecutor() as pool:
        return dict(zip(places, pool.map(checksum_at, places.values()), strict=True))


def checksum_at(place: tuple[Path, int, int]) -> int:
    path, first, size = place
    with path.open("rb") as file:
        return checksum_of_part(file, first, size)


def container_checksums(path: Path) -> tuple[dict[str, int], int]:
    """Of the tensors that a container was made of, and of its config.json."""
    try:
        with h5py.File(path) as file:
            layers = bytes(file["errors/layers"][:]).decode().split()
            found = {f"{name}.weight": int(file[name].attrs["source_crc32"]) for name in layers}
            whole = [name for name, item in file.items() if isinstance(item, h5py.Dataset) and name != "config"]
            found.update({name: int(file[name].attrs["crc32"]) for name in whole})
            return found, int(file["config"].attrs["crc32"])
    except (OSError, KeyError) as error:
        raise NightError(f"{path}: {error}") from error


def changes_of_model(model: Path, container: Path, marks: dict[str, list[int]]) -> list[str]:
    """A line each; marks are those of the night that made the container."""
    if marks_of(model) == marks:
        return []
    then, config = container_checksums(container)
    now = tensor_checksums(model)
    changed = [f"{name} has changed" for name in now if name in then and now[name] != then[name]]
    changed += [f"{name} is new" for name in now if name not in then]
    changed += [f"{name} is gone" for name in then if name not in now]
    if checksum_of(model / "config.json") != config:
        changed.append("config.json has changed")
    return changed


def changes_of_record(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Of settings, token files and program."""
    changed = []
    for kind in ("settings", "tokens", "program"):
        for name in sorted(then[kind].keys() | now[kind].keys()):
            before, after = then[kind].get(name), now[kind].get(name)
            if before != after and kind == "tokens":
                changed += [f"{name} holds other tokens"] * (before is not None and after is not None)
            elif before != after:
                changed.append(f"{name}: {before} became {after}")
    return changed
