"""A small matrix through guided quantization (LNQ, algorithm 1 of arXiv 2505.07004, with GuidedQuant's Hessians), in float64.

    pip install numpy safetensors
    python3 tests/reference/make_guided_golden.py [--output FILE]

guided_golden.safetensors:

    gradient  f32 [24, 10]     output gradients of 24 tokens
    input     f32 [24, 40]     inputs of the same tokens
    weight    f32 [10, 40]
    start     f16 [10, 4]      levels to start from, ascending
    offsets   u32 [11]         sparse pattern, CSR by row
    columns   u32 [count]
    hessian   f32 [3, 40, 40]  of three groups of output channels: rows 0-2, 3-5, 6-9
    levels    f16 [10, 4]      after three rounds of least squares and four sweeps, damping 1 % of the mean diagonal
    codes     u8  [10, 40]
    objective f64 [4, 10]      (w - q)' (H + damping) (w - q) at the start and after each round

Every decision (a code, a rounded level) has a margin that arithmetic in float32 cannot cross; the script takes the first
seed that has it. The committed file was made with Python 3.11.7, numpy 2.4.6 and safetensors 0.8.0.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as safetensors_bytes

TOKENS, ROWS, COLUMNS, GROUPS, LEVELS = 24, 10, 40, 3, 4
ROUNDS, SWEEPS, DAMPING = 3, 4, 0.01
MARGIN = 1e-3  # of the distance between levels; of a unit in the last place of a level

Array = NDArray[np.float64]


class NoMargin(Exception):
    """A decision is too close to call."""


def nearest(levels: Array, value: float) -> int:
    distances = np.abs(levels - value)
    order = np.argsort(distances, kind="stable")
    if distances[order[1]] - distances[order[0]] < MARGIN * (levels[-1] - levels[0]):
        raise NoMargin
    return int(order[0])


def rounded(levels: Array) -> Array:
    near = levels.astype(np.float16).astype(np.float64)
    unit = np.spacing(np.abs(levels).astype(np.float16)).astype(np.float64)
    if np.any(np.abs(np.abs(levels - near) / unit - 0.5) < MARGIN * 10):
        raise NoMargin
    return near


def guide_row(
    weight: Array, hessian: Array, levels: Array, sparse: NDArray[np.bool_]
) -> tuple[Array, NDArray[np.uint8], list[float]]:
    dense = ~sparse
    damped = hessian + DAMPING * np.mean(np.diag(hessian)) * np.eye(COLUMNS)
    root = np.linalg.cholesky(damped)
    codes = np.array([nearest(levels, w) for w in weight], dtype=np.uint8)

    def missing() -> Array:
        return np.where(dense, weight - levels[codes], 0.0)

    def objective() -> float:
        return float(missing() @ damped @ missing())

    objectives = [objective()]
    for _ in range(ROUNDS):
        assignment = np.zeros((COLUMNS, LEVELS))
        assignment[np.arange(COLUMNS), codes] = dense
        change = np.linalg.lstsq(root.T @ assignment, root.T @ missing(), rcond=None)[0]
        before, old = objective(), levels
        levels = rounded(levels + change)
        if objective() >= before:
            levels = old
        order = np.argsort(levels, kind="stable")
        codes = np.argsort(order)[codes].astype(np.uint8)
        levels = levels[order]
        for _ in range(SWEEPS):
            for j in np.flatnonzero(dense):
                delta = missing()
                best = weight[j] - delta[j] + (damped[j] @ delta) / damped[j, j]
                codes[j] = nearest(levels, best)
        objectives.append(objective())
    return levels, codes, objectives


def make(seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    mixing = generator.standard_normal((COLUMNS, COLUMNS)) / 4 + np.eye(COLUMNS)
    inputs = (generator.standard_normal((TOKENS, COLUMNS)) @ mixing).astype(np.float32)
    gradients = (1e-3 * generator.standard_normal((TOKENS, ROWS))).astype(np.float32)
    weights = (0.05 * generator.standard_normal((ROWS, COLUMNS))).astype(np.float32)
    sparse = generator.random((ROWS, COLUMNS)) < 0.03
    start = np.quantile(weights.astype(np.float64), [0.1, 0.35, 0.65, 0.9], axis=1).T.astype(np.float16)
    ends = [ROWS * k // GROUPS for k in range(GROUPS + 1)]
    x = inputs.astype(np.float64)
    hessians = []
    for first, end in itertools.pairwise(ends):
        saliency = np.mean(gradients[:, first:end].astype(np.float64) ** 2, axis=1)
        hessians.append(x.T @ (saliency[:, None] * x))
    group_of = np.searchsorted(ends, np.arange(ROWS), side="right") - 1
    hessian = np.stack(hessians).astype(np.float32)
    rows = [
        guide_row(
            weights[i].astype(np.float64),
            hessian[group_of[i]].astype(np.float64),
            start[i].astype(np.float64),
            sparse[i],
        )
        for i in range(ROWS)
    ]
    return {
        "gradient": gradients,
        "input": inputs,
        "weight": weights,
        "start": start,
        "offsets": np.cumsum([0, *sparse.sum(axis=1)], dtype=np.uint32),
        "columns": np.concatenate([np.flatnonzero(row) for row in sparse]).astype(np.uint32),
        "hessian": hessian,
        "levels": np.stack([levels for levels, _, _ in rows]).astype(np.float16),
        "codes": np.stack([codes for _, codes, _ in rows]),
        "objective": np.array([objectives for _, _, objectives in rows]).T,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    beside = Path(__file__).with_name("guided_golden.safetensors")
    parser.add_argument("--output", type=Path, default=beside, help="default: beside this file")
    options = parser.parse_args()
    for seed in range(10000):
        try:
            tensors = make(seed)
        except NoMargin:
            continue
        options.output.write_bytes(safetensors_bytes({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}))
        print(f"seed {seed}: objectives {tensors['objective'].sum(axis=1)}")
        return
    raise SystemExit("no seed has the margin")


if __name__ == "__main__":
    main()
