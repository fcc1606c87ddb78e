"""The report's plots, each a function from records to an SVG text. Knows matplotlib; knows nothing of files or of the
page around it."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter
from report_records import Container, Log

# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D00"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]

plt.rcParams.update(
    {
        "svg.hashsalt": "decant",
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e4e4e4",
        "grid.linewidth": 0.7,
        "axes.axisbelow": True,
        "legend.frameon": False,
    }
)


def to_svg(figure: Figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = out.getvalue()
    return text[text.index("<svg") :]


def make_axes(width: float, height: float) -> tuple[Figure, Axes]:
    return plt.subplots(figsize=(width, height), layout="constrained")


def legend_below(figure: Figure, axes: Axes, columns: int = 2) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9)


def use_plain_logarithm(axis: matplotlib.axis.Axis) -> None:
    """Logarithmic ticks as plain numbers."""
    formatter = ScalarFormatter()
    formatter.set_scientific(False)
    axis.set_major_formatter(formatter)
    axis.set_minor_formatter(NullFormatter())


def by_family(containers: Iterable[Container]) -> dict[str, list[Container]]:
    families: dict[str, list[Container]] = {}
    for container in containers:
        families.setdefault(container.family, []).append(container)
    return {name: sorted(members, key=lambda c: c.bits) for name, members in sorted(families.items())}


def plot_perplexity(containers: Sequence[Container]) -> str:
    """Perplexity against stored bits a weight, a line for each way to quantize."""
    figure, axes = make_axes(8.4, 5.2)
    measured = [c for c in containers if c.perplexity is not None]
    for index, (family, members) in enumerate(by_family(measured).items()):
        axes.plot(
            [c.bits for c in members],
            [c.perplexity for c in members],
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            linewidth=1.4,
            linestyle="--" if members[0].is_uniform else "-",
            label=family,
        )
    originals = {round(c.perplexity_original, 3) for c in measured if c.perplexity_original is not None}
    for original in originals:
        axes.axhline(original, color="#777777", linewidth=1, linestyle=":")
        axes.annotate(f"16 bits: {original:.2f}", (0, original), xycoords=("axes fraction", "data"), xytext=(4, 3),
                      textcoords="offset points", fontsize=9, color="#555555")  # fmt: skip
    axes.set_yscale("log")
    lowest = min([c.perplexity for c in measured] + list(originals))
    highest = max(c.perplexity for c in measured)
    if highest < 12 * lowest:
        axes.set_yticks(np.unique(np.round(np.geomspace(lowest, highest, 7), 1)))
    use_plain_logarithm(axes.yaxis)
    axes.set_xlabel("bits a weight, of everything that is stored")
    axes.set_ylabel("perplexity")
    legend_below(figure, axes)
    return to_svg(figure)


def plot_prediction(containers: Sequence[Container]) -> tuple[str, float | None]:
    """What was measured against what was predicted, a loss increase or a KL divergence, a point a container; and their
    Pearson correlation, of three or more."""
    known = [c for c in containers if c.predicted is not None and c.came_true is not None]
    known = [c for c in known if c.predicted > 0 and c.came_true > 0]
    figure, axes = make_axes(6.2, 5.2)
    for index, (family, members) in enumerate(by_family(known).items()):
        axes.plot([c.predicted for c in members], [c.came_true for c in members], linestyle="none",
                  color=COLOURS[index % len(COLOURS)], marker=MARKERS[index % len(MARKERS)], label=family)  # fmt: skip
    values = [v for c in known for v in (c.predicted, c.came_true)]
    ends = [min(values) / 1.3, max(values) * 1.3]
    axes.plot(ends, ends, color="#777777", linewidth=1, linestyle=":")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(ends)
    axes.set_ylim(ends)
    axes.set_aspect("equal")
    axes.set_xlabel("predicted (nats a token)")
    axes.set_ylabel("measured")
    legend_below(figure, axes, columns=1)
    pearson = None
    if len(known) >= 3:
        pearson = float(np.corrcoef([c.predicted for c in known], [c.came_true for c in known])[0, 1])
    return to_svg(figure), pearson


def grid_of(container: Container, value: str) -> tuple[list[str], np.ndarray]:
    """[kinds, blocks] of one figure of every layer; NaN where a block has no such layer."""
    kinds = list(dict.fromkeys(layer.kind for layer in container.layers))
    blocks = 1 + max(layer.block for layer in container.layers)
    grid = np.full((len(kinds), blocks), np.nan)
    for layer in container.layers:
        grid[kinds.index(layer.kind), layer.block] = getattr(layer, value)
    return kinds, grid


def plot_heat_map(container: Container, value: str, label: str, limits: tuple[float, float] | None = None) -> str:
    """One figure of every matrix: a row a kind of matrix, a column a block. Without limits the scale is logarithmic."""
    kinds, grid = grid_of(container, value)
    figure, axes = make_axes(max(5.0, 2.2 + 0.22 * grid.shape[1]), 0.9 + 0.32 * len(kinds))
    if limits:
        norm = Normalize(limits[0], max(limits[1], float(np.nanmax(grid))))
    else:
        norm = LogNorm(max(float(np.nanmin(grid)), 1e-12), max(float(np.nanmax(grid)), 2e-12))
    image = axes.imshow(grid, aspect="auto", cmap="viridis" if limits else "magma_r", norm=norm)
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_xticks(range(0, grid.shape[1], 5 if grid.shape[1] > 12 else 1))
    axes.set_xlabel("block")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label=label, pad=0.015)
    return to_svg(figure)


def plot_allocation(container: Container) -> str:
    return plot_heat_map(container, "bits", "bits a weight", (2, 6))


def plot_errors(container: Container) -> str:
    return plot_heat_map(container, "relative_error", "‖w − ŵ‖² / ‖w‖²")


def plot_time(log: Log) -> str:
    """Seconds of every stage, a bar a rank."""
    stages = list(dict.fromkeys(r.stage for r in log.ranks))
    ranks = sorted({r.rank for r in log.ranks})
    figure, axes = make_axes(7.6, 1.2 + 0.28 * len(ranks))
    left = np.zeros(len(ranks))
    for index, stage in enumerate(stages):
        seconds = np.array([sum(r.seconds for r in log.ranks if (r.stage, r.rank) == (stage, rank)) for rank in ranks])
        axes.barh(range(len(ranks)), seconds, left=left, color=COLOURS[index % len(COLOURS)], label=stage, height=0.7)
        left += seconds
    axes.set_yticks(range(len(ranks)), [f"rank {rank}" for rank in ranks])
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.grid(axis="y", visible=False)
    legend_below(figure, axes, columns=max(1, len(stages)))
    return to_svg(figure)


def plot_memory(log: Log) -> str:
    """Peak memory of every rank, host and device."""
    ranks = sorted({r.rank for r in log.ranks})
    host = [max(r.host_peak_bytes for r in log.ranks if r.rank == rank) / 2**30 for rank in ranks]
    device = [max(r.device_peak_bytes for r in log.ranks if r.rank == rank) / 2**30 for rank in ranks]
    figure, axes = make_axes(7.6, 1.2 + 0.42 * len(ranks))
    places = np.arange(len(ranks))
    axes.barh(places - 0.18, device, height=0.34, color=COLOURS[0], label="device")
    axes.barh(places + 0.18, host, height=0.34, color=COLOURS[4], label="host")
    axes.set_yticks(places, [f"rank {rank}" for rank in ranks])
    axes.invert_yaxis()
    axes.set_xlabel("GiB at the peak")
    axes.grid(axis="y", visible=False)
    legend_below(figure, axes)
    return to_svg(figure)
