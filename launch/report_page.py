"""The report's page: sections of text, tables and plots in one HTML text. Knows records and plots, no files."""

from __future__ import annotations

import html
from collections.abc import Sequence

import report_plots as plots
from report_records import Container, Log

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff; max-width: 68rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; } h2 { font-size: 1.2rem; margin: 2.6rem 0 .4rem; } h3 { font-size: 1rem; margin: 1.4rem 0 .2rem; font-weight: 600; }
p { max-width: 46rem; margin: .3rem 0 .8rem; color: #444; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #e6e6e6; white-space: nowrap; }
th { border-bottom: 2px solid #bbb; font-weight: 600; } th:first-child, td:first-child, td.text, th.text { text-align: left; }
td.best { font-weight: 700; }
svg { max-width: 100%; height: auto; display: block; }
footer { margin: 3rem 0 1rem; font-size: .8rem; color: #777; }
"""


def cell(value: float | None, form: str, scale: float = 1.0) -> str:
    return "–" if value is None else form.format(value * scale)


def section(title: str, text: str, *parts: str) -> str:
    return f"<h2>{html.escape(title)}</h2>\n<p>{html.escape(text)}</p>\n" + "\n".join(parts)


def summary_table(containers: Sequence[Container]) -> str:
    heads = ["container", "method", "bits", "size", "perplexity", "KL", "same top",
             "predicted", "measured", "loss by sums", "loss measured"]  # fmt: skip
    rows = []
    for c in sorted(containers, key=lambda c: (c.family, c.bits)):
        cells = [cell(c.bits, "{:.3f}"), cell(c.quantized_bytes, "{:.1f} MB", 1e-6), cell(c.perplexity, "{:.3f}"),
                 cell(c.divergence, "{:.4f}"), cell(c.top1, "{:.1f} %", 100), cell(c.predicted, "{:.4f}"),
                 cell(c.came_true, "{:.4f}"), cell(c.predicted_from_sums, "{:.4f}"),
                 cell(c.measured, "{:.4f}")]  # fmt: skip
        rows.append(
            f'<tr><td>{html.escape(c.name)}</td><td class="text">{html.escape(c.family)}</td>'
            + "".join(f"<td>{text}</td>" for text in cells)
            + "</tr>"
        )
    head = "".join(f'<th class="{"text" if i < 2 else ""}">{html.escape(h)}</th>' for i, h in enumerate(heads))
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def quality_sections(containers: Sequence[Container]) -> list[str]:
    sections = []
    if any(c.perplexity is not None for c in containers):
        sections.append(
            section(
                "Perplexity against size",
                "Lower and further left is better. Dashed lines give every matrix the same width; solid ones are the "
                "allocator's choice. The axis is logarithmic.",
                plots.plot_perplexity(containers),
            )
        )
    if any(c.predicted and c.came_true and c.predicted > 0 and c.came_true > 0 for c in containers):
        picture, pearson = plots.plot_prediction(containers)
        said = "" if pearson is None else f" Their correlation (Pearson) over these containers is {pearson:.3f}."
        sections.append(
            section(
                "Predicted and measured",
                "Each point is a container: its loss increase, or its KL divergence where sensitivities were measured by that; on the dotted line the prediction is exact. Predictions hold for small "
                "increases and fail where a model breaks, at the upper right." + said,
                picture,
            )
        )
    return sections


def layer_sections(containers: Sequence[Container]) -> list[str]:
    if not containers:
        return []
    parts = []
    for c in sorted(containers, key=lambda c: (c.family, c.bits)):
        parts.append(f"<h3>{html.escape(c.name)}: {html.escape(c.family)}, {c.bits:.3f} bits</h3>")
        if not c.is_uniform:
            parts.append(plots.plot_allocation(c))
        parts.append(plots.plot_errors(c))
    text = (
        "Where the allocator spent the bits (tables and sparse part included; not shown where all are alike), and the "
        "relative squared error of what is stored, not weighted by sensitivity."
    )
    return [section("Matrix by matrix", text, *parts)]


def job_sections(logs: dict[str, Log]) -> list[str]:
    with_ranks = [log for log in logs.values() if log.ranks]
    if not with_ranks:
        return []
    parts = [
        f"<h3>{html.escape(log.name)}</h3>{plots.plot_time(log)}{plots.plot_memory(log)}"
        for log in sorted(with_ranks, key=lambda log: log.name)
    ]
    return [section("Time and memory", "By stage and rank, as the job's log tells them.", *parts)]


def render(title: str, containers: Sequence[Container], logs: dict[str, Log]) -> str:
    """The whole page. Order: the table, quality, layers, the job."""
    body = [f"<h1>{html.escape(title)}</h1>"]
    if containers:
        original = next((c.perplexity_original for c in containers if c.perplexity_original is not None), None)
        count = f"{len(containers)} container" + ("s" if len(containers) != 1 else "")
        said = "" if original is None else f"; the 16-bit model's perplexity on the same text is {original:.3f}"
        body += [f"<p>{count}{said}. Bits are a weight's share of everything stored; predicted and measured are in nats a token: the loss increase, or the KL divergence where sensitivities were measured by that. Beside these stands the loss increase that Fisher sums, or Hessians of guided, predict for the same choice, and the one that was measured.</p>", summary_table(containers)]
    body += quality_sections(containers) + layer_sections(containers) + job_sections(logs)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n<body>\n'
        + "\n".join(body)
        + "\n<footer>Made by launch/report from decant's containers and logs.</footer>\n</body></html>\n"
    )
