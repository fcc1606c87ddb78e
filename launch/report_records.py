"""What the report knows of a container and of a log, read once and kept as plain records. Knows HDF5 and JSON; knows
nothing of how they are shown."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py


class RecordError(Exception):
    """A file that is not what it should be; the message names it."""


class NoModelError(RecordError):
    """A file of decant's that holds no model: there is nothing to show of it."""


@dataclass(frozen=True)
class Layer:
    """One quantized matrix."""

    name: str  # model.layers.3.self_attn.q_proj
    block: int  # 3
    kind: str  # q_proj
    weights: int
    method: str
    code_bits: float  # of the codes alone, a weight
    bits: float  # of everything stored for it, a weight
    relative_error: float


@dataclass(frozen=True)
class Container:
    """One container's own account of itself; None where it has none."""

    name: str
    options: dict[str, str]
    bits: float
    quantized_bytes: int
    perplexity: float | None
    perplexity_original: float | None
    divergence: float | None
    top1: float | None
    predicted: float | None
    predicted_from_sums: float | None  # the loss increase by Fisher sums or Hessians, where sensitivities were measured
    measured: float | None
    layers: list[Layer] = field(repr=False)

    @property
    def methods(self) -> list[str]:
        return sorted({layer.method for layer in self.layers})

    @property
    def is_uniform(self) -> bool:
        """Every matrix by the same method at the same code width."""
        return len({(layer.method, layer.code_bits) for layer in self.layers}) == 1

    @property
    def predicts_divergence(self) -> bool:
        """The prediction follows from sensitivities measured by the KL divergence, so it speaks of that."""
        measured = self.options.get("sensitivity", "fisher") != "fisher"
        return measured and self.options.get("sensitivity-measure", "kl") == "kl"

    @property
    def came_true(self) -> float | None:
        """What the prediction is to be compared with: the measured KL divergence or loss increase."""
        return self.divergence if self.predicts_divergence else self.measured

    @property
    def family(self) -> str:
        """Containers that differ in size alone share this; it names a line of the plot."""
        parts = [" + ".join(self.methods)]
        if "kmeans" in self.methods or "guided" in self.methods:
            share = sum(percent(self.options.get(name, "0")) for name in ("sensitive", "outliers"))
            parts.append(f"{share:g} % sparse" if share > 0 else "dense")
            parts.append(f"{self.options.get('fisher', 'token')} Fisher")
        groups = self.options.get("group", "0")
        if groups != "0" and set(self.methods) & {"higgs", "rtn"}:
            parts.append(f"groups of {groups}")
        sensitivity = self.options.get("sensitivity", "fisher")
        parts.append("uniform" if self.is_uniform else "allocated" + ("" if sensitivity == "fisher" else f" by {sensitivity}"))
        return ", ".join(parts)


@dataclass(frozen=True)
class RankTime:
    """One rank in one stage of the job."""

    stage: str
    rank: int
    seconds: float
    host_peak_bytes: int
    device_peak_bytes: int


@dataclass(frozen=True)
class Log:
    """A job's log: the figures of every stage and rank."""

    name: str
    ranks: list[RankTime]
    events: list[dict[str, Any]] = field(repr=False)


def percent(text: str) -> float:
    return float(text.rstrip("%") or 0)


def text_of(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def number_or_none(attributes: Any, name: str) -> float | None:
    value = attributes.get(name)
    return None if value is None or not math.isfinite(value) else float(value)


def read_layer(container: h5py.File, name: str) -> Layer:
    attributes = container[name].attrs
    block = re.search(r"\.(\d+)\.", name)
    weights = int(attributes["rows"]) * int(attributes["columns"])
    return Layer(
        name=name,
        block=int(block[1]) if block else 0,
        kind=name.rsplit(".", 1)[-1],
        weights=weights,
        method=text_of(attributes["method"]),
        code_bits=float(attributes["bits"] if "bits" in attributes else attributes["code_bits"] / attributes["dimension"]),
        bits=8 * int(attributes["stored_bytes"]) / weights,
        relative_error=float(attributes["relative_error"]),
    )


def read_container(path: Path) -> Container:
    try:
        with h5py.File(path) as file:
            about = file.attrs
            if text_of(about.get("format", "")) != "decant":
                raise RecordError(f"{path} is no container of decant")
            if (kind := text_of(about.get("kind", ""))) != "model":
                raise NoModelError(f"{path} is left out: it holds {kind}, not a model")
            names = bytes(file["errors/layers"][:]).decode().split()
            return Container(
                name=path.stem,
                options=dict(word.split("=", 1) for word in text_of(about["options"]).split() if "=" in word),
                bits=float(about["bits"]),
                quantized_bytes=int(about["quantized_bytes"]),
                perplexity=number_or_none(about, "perplexity_quantized"),
                perplexity_original=number_or_none(about, "perplexity_original"),
                divergence=number_or_none(about, "kl_divergence"),
                top1=number_or_none(about, "top1_agreement"),
                predicted=number_or_none(about, "predicted_loss_increase"),
                predicted_from_sums=number_or_none(about, "predicted_from_sums"),
                measured=number_or_none(about, "measured_loss_increase"),
                layers=[read_layer(file, name) for name in names],
            )
    except (OSError, KeyError) as error:
        raise RecordError(f"{path}: {error}") from error


def read_log(path: Path) -> Log:
    events: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise RecordError(f"{path}, line {number}: {error}") from error
    ranks = [
        RankTime(e["stage"], e["rank"], e["seconds"], e["host_peak_bytes"], e["device_peak_bytes"])
        for e in events
        if e.get("event") == "rank"
    ]
    return Log(path.stem, ranks, events)
