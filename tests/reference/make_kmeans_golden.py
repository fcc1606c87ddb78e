"""Optimal costs of weighted one-dimensional k-means, for decant's dynamic program over sorted weights.

    pip install numpy safetensors ckwrap kmeans1d        (the last two only for --check)
    python3 tests/reference/make_kmeans_golden.py [--output FILE] [--check]

kmeans_golden.safetensors holds rows of several kinds and lengths, one after another:

    values   f32 [total]        unsorted, as a row of a weight matrix would be
    weights  f32 [total]        >= 0; a value of weight 0 does not count; a row whose weights are all 0 has weights 1
    offsets  i64 [rows + 1]     row r is offsets[r] .. offsets[r + 1]
    cost     f64 [rows, 16]     cost[r, k - 1] = least sum of weight * (value - nearest of k centres)^2

The costs come from the plain O(k n^2) dynamic program in 80-bit floats (x86-64). The cost of every interval of sorted
values is built by adding one value after another to a running mean, so that no large sums are subtracted.
--check compares them with two published implementations: ckwrap 1.2.3 (Ckmeans.1d.dp, weighted) and, where all weights
are equal, kmeans1d 0.5.0.

The committed file was made with Python 3.11.7, numpy 2.4.6 and safetensors 0.8.0.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as safetensors_bytes

MAXIMUM_K = 16
SEED = 20

# Allowed difference from the published implementations, which work in float64, relative to the row's cost at k = 1.
CHECK_TOLERANCE = 1e-12

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
LongArray = NDArray[np.longdouble]
Row = tuple[Float32Array, Float32Array]
Generator = np.random.Generator


def fisher(generator: Generator, n: int) -> NDArray[np.float64]:
    """Heavy-tailed and as small as real Fisher sums: the square of a chi-squared variable."""
    return 1e-9 * generator.chisquare(1, n) ** 2


def single(values: NDArray[np.float64], weights: NDArray[np.float64]) -> Row:
    return values.astype(np.float32), weights.astype(np.float32)


def normal_uniform(generator: Generator, n: int) -> Row:
    return single(0.02 * generator.standard_normal(n), np.ones(n))


def normal_heavy_tailed(generator: Generator, n: int) -> Row:
    return single(0.02 * generator.standard_normal(n), fisher(generator, n))


def half_of_weights_zero(generator: Generator, n: int) -> Row:
    weights = fisher(generator, n)
    weights[generator.permutation(n)[: n // 2]] = 0
    return single(generator.standard_normal(n), weights)


def all_weights_zero(generator: Generator, n: int) -> Row:
    return single(generator.standard_normal(n), np.zeros(n))


def few_distinct(generator: Generator, n: int) -> Row:
    distinct = generator.standard_normal(11)
    return single(generator.choice(distinct, n), fisher(generator, n))


def constant(generator: Generator, n: int) -> Row:
    return single(np.full(n, generator.standard_normal()), fisher(generator, n))


def float16_duplicates(generator: Generator, n: int) -> Row:
    """Weights that were quantized before: an integer times one scale, in float16."""
    values = np.round(20 * generator.standard_normal(n)) * 0.0031
    return single(values.astype(np.float16).astype(np.float64), fisher(generator, n))


def large_offset(generator: Generator, n: int) -> Row:
    return single(1000 + generator.standard_normal(n), fisher(generator, n))


ROWS: tuple[tuple[Callable[[Generator, int], Row], tuple[int, ...]], ...] = (
    (normal_uniform, (1, 2, 16, 33, 100, 576, 697)),
    (normal_heavy_tailed, (3, 15, 17, 64, 255, 700)),
    (half_of_weights_zero, (1, 2, 31, 129, 300, 640)),
    (all_weights_zero, (1, 16, 47, 250)),
    (few_distinct, (8, 48, 200, 512)),
    (constant, (1, 5, 300)),
    (float16_duplicates, (16, 40, 128, 576, 699)),
    (large_offset, (4, 18, 63, 128, 500)),
)


def counted(values: Float32Array, weights: Float32Array) -> Row:
    """The part of a row that counts, sorted by value."""
    if not weights.any():
        weights = np.ones_like(weights)
    values, weights = values[weights > 0], weights[weights > 0]
    order = np.argsort(values, kind="stable")
    return values[order], weights[order]


def interval_costs(x: LongArray, w: LongArray) -> LongArray:
    """cost[i, j] = sum over i..j of w * (x - their weighted mean)^2; infinite for i > j."""
    n = len(x)
    cost = np.full((n, n), np.inf, dtype=np.longdouble)
    mass, mean, total = (np.zeros(n, dtype=np.longdouble) for _ in range(3))
    for j in range(n):
        # All intervals i..j at once: each takes in x[j].
        started = slice(0, j + 1)
        mass[started] += w[j]
        distance = x[j] - mean[started]
        mean[started] += distance * w[j] / mass[started]
        total[started] += w[j] * distance * (x[j] - mean[started])
        cost[started, j] = total[started]
    return cost


def optimal_costs(values: Float32Array, weights: Float32Array) -> Float64Array:
    """Least cost for k = 1 .. MAXIMUM_K centres."""
    x, w = (part.astype(np.longdouble) for part in counted(values, weights))
    interval = interval_costs(x, w)
    best = interval[0]  # best[j]: x[0..j] with k centres
    result = [best[-1]]
    for _ in range(1, MAXIMUM_K):
        # The last cluster is i..j; what is before it has one centre less. With i = 0 a centre stays unused.
        before = np.concatenate(([np.longdouble(0)], best[:-1]))
        best = (before[:, None] + interval).min(axis=0)
        result.append(best[-1])
    return np.array(result, dtype=np.float64)


def check(values: Float32Array, weights: Float32Array, cost: Float64Array) -> float:
    """Largest difference from the published implementations, relative to the cost at k = 1."""
    import ckwrap
    import kmeans1d

    x, w = (part.astype(np.float64) for part in counted(values, weights))
    # A constant row costs nothing, but its float64 mean is off by a rounding.
    scale = cost[0] + np.finfo(np.float64).eps * (w @ x**2)
    worst = 0.0
    # ckwrap wants k to be at most the number of distinct values.
    for k in range(1, min(MAXIMUM_K, len(np.unique(x))) + 1):
        assignments = [np.asarray(ckwrap.ckmeans(x, k, weights=w, method="quadratic").labels)]
        if np.all(w == w[0]):
            assignments.append(np.array(kmeans1d.cluster(x, k).clusters))
        for labels in assignments:
            # Judge the clusters found, not the library's own sum.
            found = 0.0
            for label in np.unique(labels):
                members, mass = x[labels == label], w[labels == label]
                found += float(mass @ (members - np.average(members, weights=mass)) ** 2)
            worst = max(worst, abs(found - cost[k - 1]) / scale)
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description="Write rows and their optimal weighted k-means costs.")
    beside = Path(__file__).resolve().parent / "kmeans_golden.safetensors"
    parser.add_argument("--output", type=Path, default=beside, help="default: beside this file")
    parser.add_argument("--check", action="store_true", help="compare with ckwrap and kmeans1d")
    options = parser.parse_args()
    if np.finfo(np.longdouble).nmant < 63:
        raise SystemExit("the committed costs need 80-bit floats, which this machine does not have")

    generator = np.random.default_rng(SEED)
    kinds = [(make, n) for make, lengths in ROWS for n in lengths]
    rows = [make(generator, n) for make, n in kinds]
    costs = [optimal_costs(*row) for row in rows]
    tensors = {
        "values": np.concatenate([values for values, _ in rows]),
        "weights": np.concatenate([weights for _, weights in rows]),
        "offsets": np.cumsum([0] + [len(values) for values, _ in rows], dtype=np.int64),
        "cost": np.stack(costs),
    }
    options.output.write_bytes(safetensors_bytes(tensors))

    for (make, n), row, cost in zip(kinds, rows, costs, strict=True):
        print(f"{make.__name__} n={n}: cost {cost[0]:.6e} {cost[3]:.6e} {cost[15]:.6e} at k = 1, 4, 16")
        if options.check:
            difference = check(*row, cost)
            print(f"    differs by {difference:.1e} from the published implementations")
            if difference > CHECK_TOLERANCE:
                raise SystemExit("not the optimum")
    print(f"{len(rows)} rows, {options.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
