"""Which Fisher sums a night quantizes with: those of an earlier night, or new ones, and why.

Sums of a matrix depend on all tensors of the model, so none are exact once one has changed. The rule: they are kept while
tokens, calibration options and decant are the same, the model has the same tensors and config, and no more than `refresh`
per cent of its tensors have other bytes than when the sums were made. docs/cluster.md says what that costs.

The sums lie in NIGHT.statistics.h5, and what they were made from in NIGHT.statistics.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# Options of decant that decide the bits of Fisher sums.
DECISIVE = ["calibration", "sequences", "window", "micro-batch", "fisher", "replicas", "device", "full-floats"]


def are_wanted(settings: dict[str, str]) -> bool:
    """Does decant calibrate by itself, with what nightly.ini says?"""
    return bool(settings.get("calibration")) and "statistics" not in settings


def can_reuse(settings: dict[str, str]) -> bool:
    """Measured sensitivities depend on the whole model: nothing is taken over then, and statistics need no file."""
    return settings.get("sensitivity", "fisher") == "fisher"


def describe(record: dict[str, Any], tensors: dict[str, int], config: int) -> dict[str, Any]:
    """What sums made tonight are made from."""
    given = record["settings"]
    settings = {name: given[name] for name in DECISIVE if name in given}
    if "guided" in given.get("method", ""):  # Hessians beside the sums
        settings["guided-groups"] = given.get("guided-groups", "as it is")
    made_from = {"settings": settings, "tokens": record["tokens"].get("calibration"), "program": record["program"]}
    return {"made from": made_from, "config": config, "tensors": tensors}


def record_of(statistics: Path) -> Path:
    return statistics.with_suffix(".json")


def why_anew(statistics: Path | None, now: dict[str, Any], refresh: float) -> tuple[str, str]:
    """Why these sums will not do, or "", and then how far the model has moved since."""
    if not statistics or not statistics.exists() or not record_of(statistics).exists():
        return "there are none yet", ""
    try:
        then = json.loads(record_of(statistics).read_text(encoding="utf-8"))
    except ValueError:
        return f"{record_of(statistics).name} is damaged", ""
    if then["made from"] != json.loads(json.dumps(now["made from"])):
        return "tokens, calibration options or decant are others", ""
    if then["config"] != now["config"] or then["tensors"].keys() != now["tensors"].keys():
        return "the model has another config or other tensors", ""
    changed = sum(then["tensors"][name] != checksum for name, checksum in now["tensors"].items())
    share = f"{changed} of {len(now['tensors'])} tensors have changed since"
    if 100 * changed > refresh * len(now["tensors"]):
        return f"{share}, more than {refresh:g} %", ""
    return "", share
