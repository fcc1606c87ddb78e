#!/usr/bin/env python3
"""What it costs to keep the Fisher sums of a model that has changed since: perplexities and seconds of a row a change.

usage: old_statistics.py --model DIR --calibration T.npy --text T.npy --work DIR [--bits B] [--changes LIST]
                         [-- OPTIONS of decant]

A change MATRICES:PERCENT adds normal noise to so many matrices of linear layers, of so many per cent of their standard
deviation. Each
changed model is quantized twice: with sums made from it (fresh) and with those of the model before (kept; together with
--reuse of its container). DECANT_PROGRAM is the program. Needs NumPy; the model is one safetensors file.
"""

import argparse
import json
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path

import numpy as np

CHANGES = "1:2 7:2 21:2 21:10 210:2 210:10"


def decant(*words: object) -> float:
    begin = time.monotonic()
    program = os.environ.get("DECANT_PROGRAM", "decant")
    subprocess.run([program, *map(str, words), "--quiet"], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - begin


def figures(container: Path) -> dict[str, float]:
    program = os.environ.get("DECANT_PROGRAM", "decant")
    return json.loads(subprocess.run([program, "inspect", "--json", container], check=True, capture_output=True).stdout)


def to_floats(raw: bytes, dtype: str) -> np.ndarray:
    if dtype == "BF16":
        return (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, {"F16": np.float16, "F32": np.float32}[dtype]).astype(np.float32)


def from_floats(values: np.ndarray, dtype: str) -> bytes:
    if dtype == "BF16":  # rounded to nearest, ties to even
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).tobytes()
    return values.astype({"F16": np.float16, "F32": np.float32}[dtype]).tobytes()


def add_noise(source: Path, target: Path, matrices: int, size: float) -> None:
    """A copy of the model with that many matrices changed, evenly spread over its blocks."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    path = target / "model.safetensors"
    random = np.random.default_rng(0)
    with path.open("r+b") as file:
        header_bytes = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(header_bytes))
        names = sorted(name for name in header if name.endswith("_proj.weight"))
        for name in [names[i * len(names) // matrices] for i in range(matrices)]:
            first, end = header[name]["data_offsets"]
            file.seek(8 + header_bytes + first)
            weights = to_floats(file.read(end - first), header[name]["dtype"])
            changed = weights + np.float32(size * weights.std()) * random.standard_normal(len(weights), np.float32)
            file.seek(8 + header_bytes + first)
            file.write(from_floats(changed, header[name]["dtype"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "calibration", "text", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--bits", default="3.25")
    parser.add_argument("--changes", default=CHANGES)
    parser.add_argument("options", nargs="*")
    given = parser.parse_args()
    work = given.work
    work.mkdir(parents=True, exist_ok=True)

    def calibrate(model: Path, name: str) -> float:
        words = ["--model", model, "--calibration", given.calibration, "--output", work / name, "--overwrite"]
        return decant("calibrate", *words, *given.options)

    def run(model: Path, statistics: str, name: str, *more: object) -> float:
        words = ["--model", model, "--statistics", work / statistics, "--text", given.text, "--bits", given.bits]
        return decant("run", *words, "--output", work / name, "--overwrite", *more, *given.options)

    seconds = calibrate(given.model, "before.statistics.h5"), run(given.model, "before.statistics.h5", "before.h5")
    before = figures(work / "before.h5")
    print(f"{given.bits} bits; before: {before['perplexity_original']:.4f} -> {before['perplexity_quantized']:.4f}; "
          f"calibrate {seconds[0]:.1f} s, run {seconds[1]:.1f} s")  # fmt: skip
    print("| matrices changed | by | original | fresh | kept | calibrate s | run s, fresh | run s, kept | as before |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for matrices, size in ((int(one.split(":")[0]), float(one.split(":")[1]) / 100) for one in given.changes.split()):
        model = work / "changed"
        add_noise(given.model, model, matrices, size)
        calibrated_s = calibrate(model, "fresh.statistics.h5")
        fresh_s = run(model, "fresh.statistics.h5", "fresh.h5")
        log = work / "log"
        kept_s = run(model, "before.statistics.h5", "kept.h5", "--old-statistics", "--reuse", work / "before.h5", "--log", log)
        fresh, kept = figures(work / "fresh.h5"), figures(work / "kept.h5")
        reuse = next(line for line in map(json.loads, log.read_text().splitlines()) if line["event"] == "reuse")
        print(f"| {matrices} | {100 * size:g} % | {fresh['perplexity_original']:.4f} | {fresh['perplexity_quantized']:.4f} | "
              f"{kept['perplexity_quantized']:.4f} | {calibrated_s:.1f} | {fresh_s:.1f} | {kept_s:.1f} | {reuse['taken']} |",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
