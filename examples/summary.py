"""Shows what `decant inspect --json M.h5` says of a model as a table for people. Needs nothing but Python."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def number(report: dict[str, Any], key: str, form: str, scale: float = 1.0) -> str:
    """One figure, or a dash where the container has none (a run without validation, for one)."""
    value = report.get(key)
    return "-" if value is None else form.format(value * scale)


def table(report: dict[str, Any]) -> str:
    rows = [
        ("", "original", "decant"),
        ("bits a quantized weight", "16.00", number(report, "bits", "{:.2f}")),
        ("size of those weights", number(report, "quantized_weights", "{:.1f} MB", 2e-6),
         number(report, "quantized_bytes", "{:.1f} MB", 1e-6)),
        ("perplexity", number(report, "perplexity_original", "{:.3f}"),
         number(report, "perplexity_quantized", "{:.3f}")),
        ("loss increase, predicted", "", number(report, "predicted_loss_increase", "{:.4f}")),
        ("loss increase, measured", "", number(report, "measured_loss_increase", "{:.4f}")),
        ("KL divergence (nats a token)", "", number(report, "kl_divergence", "{:.4f}")),
        ("same most likely token", "", number(report, "top1_agreement", "{:.1f} %", 100)),
    ]  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(f"  {a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}".rstrip() for a, b, c in rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="summary.py", description="Shows decant inspect --json as a table.")
    parser.add_argument("report", metavar="FILE", type=Path, help="what `decant inspect --json M.h5` printed")
    print(table(json.loads(parser.parse_args().report.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
