#!/usr/bin/env python3
"""Measures what zlib would make of a container's datasets, kind by kind: ratio and speed on one core, beside the rate
at which the disk takes the bytes as they are.

usage: compression.py [--most MEGABYTES] [--work DIRECTORY] CONTAINER
Takes up to --most MB of each kind. "shuffled" puts the bytes of equal place together first, as HDF5's shuffle filter
does. Needs NumPy and h5py.
"""

import argparse
import os
import tempfile
import time
import zlib
from collections import defaultdict

import h5py
import numpy as np

LEVELS = (1, 6)


def kind_of(name: str) -> str | None:
    if name.startswith(("errors/", "allocation/")) or name == "config":
        return None
    part = name.split("/")[-1]
    inside = {"codes", "levels", "level_exponents", "row_offsets", "columns", "values"}
    return part if part in inside else "whole tensors"


def collect(path: str, most: int) -> tuple[dict[str, list[np.ndarray]], dict[str, int]]:
    samples, totals, sampled = defaultdict(list), defaultdict(int), defaultdict(int)

    def visit(name: str, item: object) -> None:
        kind = kind_of(name) if isinstance(item, h5py.Dataset) else None
        if kind is None:
            return
        size = item.size * item.dtype.itemsize
        totals[kind] += size
        if sampled[kind] < most:
            data = item[()].reshape(-1)[: (most - sampled[kind]) // item.dtype.itemsize]
            samples[kind].append(data)
            sampled[kind] += data.nbytes

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return samples, totals


def shuffled(data: np.ndarray) -> bytes:
    width = data.dtype.itemsize
    return data.view(np.uint8).reshape(-1, width).T.tobytes()


def measure(chunks: list[bytes], level: int) -> tuple[float, float, float]:
    """Compressed share of the bytes, and MB/s in and out."""
    size = sum(map(len, chunks))
    start = time.perf_counter()
    packed = [zlib.compress(chunk, level) for chunk in chunks]
    middle = time.perf_counter()
    for chunk in packed:
        zlib.decompress(chunk)
    end = time.perf_counter()
    return sum(map(len, packed)) / size, size / 1e6 / (middle - start), size / 1e6 / (end - middle)


def disk_rate(data: bytes, directory: str) -> float:
    """MB/s of write() and fsync(), the best of three."""
    best = 0.0
    for _ in range(3):
        with tempfile.NamedTemporaryFile(dir=directory) as file:
            start = time.perf_counter()
            for _ in range(8):
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
            best = max(best, 8 * len(data) / 1e6 / (time.perf_counter() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=16, help="MB of each kind")
    parser.add_argument("--work", help="directory on the disk to measure; the container's own")
    parser.add_argument("container")
    options = parser.parse_args()
    samples, totals = collect(options.container, options.most * 10**6)
    whole = sum(totals.values())
    print(f"{'':28}{'of the file':>12}" + "".join(f"{f'level {level}':>12}{'in MB/s':>9}{'out MB/s':>9}" for level in LEVELS))
    saved = {level: 0.0 for level in LEVELS}
    seconds = {level: 0.0 for level in LEVELS}
    for kind in sorted(samples, key=lambda name: -totals[name]):
        for name, pack in ((kind, lambda data: data.tobytes()), (f"{kind}, shuffled", shuffled)):
            chunks = [pack(data) for data in samples[kind] if data.nbytes]
            line = f"{name:28}{totals[kind] / whole:12.2%}"
            for level in LEVELS:
                share, rate_in, rate_out = measure(chunks, level)
                line += f"{share:12.3f}{rate_in:9.0f}{rate_out:9.0f}"
                if name == kind:
                    saved[level] += (1 - share) * totals[kind] / whole
                    seconds[level] += totals[kind] / 1e6 / rate_in
            print(line, flush=True)
    data = b"".join(chunk.tobytes() for chunk in samples["codes"])
    rate = disk_rate(data, options.work or os.path.dirname(os.path.abspath(options.container)))
    print(f"the disk takes {rate:.0f} MB/s: {whole / 1e6 / rate:.2f} s for the {whole / 1e6:.0f} MB as they are")
    for level in LEVELS:
        print(f"level {level} of everything saves {saved[level]:.2%} and takes one core {seconds[level]:.1f} s")


if __name__ == "__main__":
    main()
