"""Small bit-allocation problems with their optimum by trying every choice.

    pip install numpy
    python3 tests/reference/make_allocation_golden.py [--output FILE]

allocation_golden.json: {"instances": [{"budget": B, "classes": [[{"bytes": b, "error": e}, ...], ...], "best_error": E,
"best_bytes": S}, ...]}. One option is chosen from every class; the bytes together may not exceed the budget; E is the
least sum of errors and S the fewest bytes that reach it; both are null when not even the smallest options fit.
Errors are whole multiples of 1/1024, so that sums are exact in any order and E can be compared with ==.

The committed file was made with Python 3.11.7 and numpy 2.4.6.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

SEED = 30
CLASSES = 8
OPTIONS = 5
ERROR_UNIT = 1 / 1024

# Budgets as a fraction of the way from all the smallest options to all the largest ones. Below 0 nothing fits, at 0
# exactly one size does, from 1 on everything does.
FRACTIONS = (-0.2, -0.001, 0, 0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 1, 1.5)


def best(sizes: np.ndarray, errors: np.ndarray, budget: int) -> tuple[int, int] | None:
    """Least error in units, and the fewest bytes with it, over all OPTIONS ** CLASSES choices."""
    total_size = total_error = np.zeros(1, dtype=np.int64)
    for size, error in zip(sizes, errors, strict=True):
        total_size = np.add.outer(total_size, size).ravel()
        total_error = np.add.outer(total_error, error).ravel()
    fits = total_size <= budget
    if not fits.any():
        return None
    least = total_error[fits].min()
    return int(least), int(total_size[fits & (total_error == least)].min())


def make_instance(generator: np.random.Generator, fraction: float, scale: int) -> dict[str, Any]:
    # Larger is mostly better, as with bits, but options may also be dominated or equal.
    parameters = generator.integers(1, 10, size=(CLASSES, 1))
    sizes = scale * parameters * np.arange(2, 2 + OPTIONS) + generator.integers(0, scale, size=(CLASSES, OPTIONS))
    sensitivity = generator.chisquare(2, size=(CLASSES, 1))
    errors = 100000 * sensitivity * 4.0 ** -np.arange(OPTIONS) * generator.uniform(0.3, 2, size=(CLASSES, OPTIONS))
    errors = errors.round().astype(np.int64)
    sizes[0, 1], errors[0, 1] = sizes[0, 0], errors[0, 0]

    smallest, largest = int(sizes.min(axis=1).sum()), int(sizes.max(axis=1).sum())
    budget = smallest + int(np.floor(fraction * (largest - smallest)))
    optimum = best(sizes, errors, budget)
    return {
        "budget": budget,
        "classes": [
            [{"bytes": int(b), "error": float(e * ERROR_UNIT)} for b, e in zip(size, error, strict=True)]
            for size, error in zip(sizes, errors, strict=True)
        ],
        "best_error": None if optimum is None else optimum[0] * ERROR_UNIT,
        "best_bytes": None if optimum is None else optimum[1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Write small allocation problems and their optimum.")
    beside = Path(__file__).resolve().parent / "allocation_golden.json"
    parser.add_argument("--output", type=Path, default=beside, help="default: beside this file")
    output: Path = parser.parse_args().output

    generator = np.random.default_rng(SEED)
    # Every second problem has few distinct sizes, so that many choices tie.
    instances = [make_instance(generator, f, scale=1 if i % 2 else 1000) for i, f in enumerate(FRACTIONS)]
    lines = ",\n".join(json.dumps(instance) for instance in instances)
    output.write_text(f'{{"instances": [\n{lines}\n]}}\n')
    for instance in instances:
        print(f"budget {instance['budget']}: error {instance['best_error']} with {instance['best_bytes']} bytes")


if __name__ == "__main__":
    main()
