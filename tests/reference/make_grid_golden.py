"""Golden numbers for the grid kernels' tests, from the definitions alone; prints C initializers.

    python3 tests/reference/make_grid_golden.py

signs: the random sign of some columns; noise: standard normal numbers of (seed, row, column). Both are functions of
splitmix64's finalizer (Steele, Lea, Flood 2014); the noise is the Box-Muller transform of its bits, in float64.

errors: the mean square error of a coordinate of the shipped grids (stages/grids) on standard normal variables. One
dimension by the error function; two by a product of 4001-point midpoint rules on [-8, 8]; three and four, where a rule
would be too large, by 4 million random tuples, which gives about three digits.

The numbers in tests/kernels/test_grid_noise.c and tests/stages/test_grid_tables.c were made with Python 3.11.7 and
numpy 2.4.6.
"""

import math
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MASK = (1 << 64) - 1
ODD = 0x9E3779B97F4A7C15
GRIDS = Path(__file__).resolve().parents[2] / "stages" / "grids"


def mix(x: int) -> int:
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & MASK
    return x ^ x >> 31


def bits_at(seed: int, a: int, b: int) -> int:
    bits = mix((seed + ODD) & MASK)
    bits = mix(bits ^ ((a + 1) * ODD & MASK))
    return mix(bits ^ ((b + 1) * ODD & MASK))


def sign(seed: int, column: int) -> int:
    return bits_at(seed, 0, column // 64) >> column % 64 & 1


def normal(seed: int, row: int, column: int) -> float:
    bits = bits_at(seed, row, column // 2)
    radius = math.sqrt(-2 * math.log(((bits >> 32) + 0.5) / 2**32))
    angle = 2 * math.pi * ((bits & 0xFFFFFFFF) >> 8) / 2**24
    return radius * (math.cos(angle) if column % 2 == 0 else math.sin(angle))


def read_grids(dimension: int) -> dict[int, NDArray[np.float64]]:
    text = (GRIDS / f"points_{dimension}.inc").read_text()
    tables = re.findall(r"points_\d_(\d+)\[\] = \{([^}]*)\}", text)
    return {
        int(bits): np.array([float(x) for x in body.replace("\n", "").split(",") if x]).reshape(-1, dimension)
        for bits, body in tables
    }


def density(x: float) -> float:
    return math.exp(-0.5 * x * x) / math.sqrt(2 * math.pi) if math.isfinite(x) else 0.0


def error_of_line(levels: NDArray[np.float64]) -> float:
    """Sum over intervals of the integral of (x - c)^2 phi, in closed form."""
    borders = [-math.inf, *((levels[1:] + levels[:-1]) / 2).tolist(), math.inf]
    total = 0.0
    for c, a, b in zip(levels.tolist(), borders[:-1], borders[1:]):
        mass = 0.5 * (math.erfc(a / math.sqrt(2)) - math.erfc(b / math.sqrt(2)))
        moment = density(a) - density(b)
        square = mass + (a * density(a) if math.isfinite(a) else 0) - (b * density(b) if math.isfinite(b) else 0)
        total += square - 2 * c * moment + c * c * mass
    return total


def nearest_distances(points: NDArray[np.float64], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared distance of each place to the nearest point, by brute force."""
    half_norms = 0.5 * np.sum(points**2, axis=1)
    out = np.empty(len(places))
    for first in range(0, len(places), 4096):
        part = places[first : first + 4096]
        out[first : first + 4096] = np.sum(part**2, axis=1) - 2 * np.max(part @ points.T - half_norms, axis=1)
    return out


def error_of_plane(points: NDArray[np.float64], steps: int) -> float:
    axis = (np.arange(steps) + 0.5) * (16 / steps) - 8
    weights = np.exp(-0.5 * axis**2)
    weights /= weights.sum()
    total = 0.0
    for x, weight in zip(axis, weights):
        if weight < 1e-12:
            continue
        line = np.stack([np.full(steps, x), axis], axis=1)
        total += weight * float(weights @ nearest_distances(points, line))
    return total / 2


def error_of_space(points: NDArray[np.float64], count: int) -> float:
    places = np.random.default_rng(5).standard_normal((count, points.shape[1]))
    return float(nearest_distances(points, places).mean()) / points.shape[1]


def main() -> None:
    columns = [0, 1, 2, 3, 63, 64, 65, 100, 575, 11007]
    print("signs of seed 12345, columns", columns, [sign(12345, c) for c in columns])
    places = [(7, 0, 0), (7, 0, 1), (7, 0, 2), (7, 3, 4), (7, 3, 5), (8, 0, 0), (2**63 + 5, 1000, 6), (7, 2, 4)]
    for seed, row, column in places:
        print(f"{{{seed}u, {row}, {column}, {normal(seed, row, column):.9f}}},")
    for dimension in (1, 2, 3, 4):
        for bits, points in read_grids(dimension).items():
            if dimension == 1:
                error = error_of_line(points[:, 0])
            elif dimension == 2:
                error = error_of_plane(points, 4001 if bits <= 8 else 2001)
            else:
                error = error_of_space(points, 1 << 22 if bits <= 10 else 1 << 20)
            print(f"{{{dimension}, {bits}, {error:.6g}}},", flush=True)


if __name__ == "__main__":
    main()
