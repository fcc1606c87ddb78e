"""What came out of a sweep: one table, one plot. Reads the members' results, never containers."""

from __future__ import annotations

import json
from pathlib import Path

import report_plots as plots
from sweep_plan import Member, Sweep

COLUMNS = ["bits", "perplexity_original", "perplexity_quantized", "kl_divergence", "measured_loss_increase",
           "predicted_loss_increase"]  # fmt: skip


def read_results(sweep: Sweep) -> dict[Member, dict[str, float]]:
    """Of the members that are done."""
    tasks = {member: sweep.member(member) for member in sweep.members}
    return {member: json.loads(task.product.read_text()) for member, task in tasks.items() if task.is_done}


def write_whole(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def make_table(sweep: Sweep, results: dict[Member, dict[str, float]]) -> str:
    """Tab-separated, a line a member; those that are not done say so."""
    lines = ["\t".join(["calibration", "sequences", "seed", "method", "bits_asked", *COLUMNS])]
    for member in sweep.members:
        found = results.get(member)
        figures = [f"{found[name]:.6g}" if name in found else "" for name in COLUMNS] if found else ["not done"]
        what = [member.calibration, str(member.sequences), str(member.seed), member.method, member.bits]
        lines.append("\t".join(what + figures))
    return "\n".join(lines) + "\n"


def make_plot(sweep: Sweep, results: dict[Member, dict[str, float]]) -> str:
    """Perplexity against calibration size: the mean over seeds with their whole spread as bars, and every seed's point."""
    figure, axes = plots.make_axes(8.4, 5.2)
    families: dict[tuple[str, str, str], dict[int, list[float]]] = {}
    for member, found in results.items():
        sizes = families.setdefault((member.calibration, member.method, member.bits), {})
        sizes.setdefault(member.sequences, []).append(found["perplexity_quantized"])
    for index, (family, sizes) in enumerate(sorted(families.items())):
        colour, marker = plots.COLOURS[index % len(plots.COLOURS)], plots.MARKERS[index % len(plots.MARKERS)]
        at = sorted(sizes)
        means = [sum(sizes[size]) / len(sizes[size]) for size in at]
        below = [mean - min(sizes[size]) for size, mean in zip(at, means)]
        above = [max(sizes[size]) - mean for size, mean in zip(at, means)]
        axes.errorbar(at, means, yerr=[below, above], color=colour, marker=marker, linewidth=1.4, capsize=3,
                      label="{}, {}, {} bits".format(*family))  # fmt: skip
        for size in at:
            axes.plot([size] * len(sizes[size]), sizes[size], linestyle="none", marker=".", color=colour, alpha=0.4)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sweep.sizes)
    plots.use_plain_logarithm(axes.xaxis)
    axes.set_xlabel("calibration sequences")
    axes.set_ylabel("perplexity")
    seeds = len(sweep.seeds)
    axes.set_title(f"mean of {seeds} seeds, bars from the least to the most" if seeds > 1 else "one seed", fontsize=10)
    plots.legend_below(figure, axes)
    return plots.to_svg(figure)


def gather(sweep: Sweep) -> tuple[int, int]:
    """Writes table.tsv and plot.svg; how many members are in them, of how many."""
    results = read_results(sweep)
    write_whole(sweep.output / "table.tsv", make_table(sweep, results))
    if results:
        write_whole(sweep.output / "plot.svg", make_plot(sweep, results))
    return len(results), len(sweep.members)
