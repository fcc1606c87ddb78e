"""What tests/bench/scaling makes of a job's log: figures of a run, their table, and rates for `decant plan`.

Pure: knows the events of --log (pipeline/report.c, pipeline/job_plan.c) and the JSON of `decant plan`, no files and no
processes. Seconds, bytes and shares throughout; a share is of 1.
"""

import json

GB = 1e9


def events(log: str) -> dict[str, list[dict]]:
    """The events of a log by name, in order. A line that was cut off when the job was stopped is left out."""
    found: dict[str, list[dict]] = {}
    for line in log.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        found.setdefault(event["event"], []).append(event)
    return found


def figures(log: str, ranks: int, program_s: float, container_bytes: int) -> dict:
    """One run's figures. Raises KeyError when the log has no calibrate, quantize or write event."""
    found = events(log)
    calibrate, quantize, write = (found[name][-1]["seconds"] for name in ("calibrate", "quantize", "write"))
    stages, plan, memory = found.get("idle", []), found.get("plan", []), found.get("memory", [])
    device = any(rank["planned_device_bytes"] for rank in memory)
    kind = "device" if device else "process"
    elapsed = max((stage["elapsed_s"] for stage in stages), default=calibrate)
    return {
        "ranks": ranks,
        "program_s": program_s,
        "fingerprint_s": sum(event["seconds"] for event in found.get("fingerprint", [])),
        "load_s": calibrate - elapsed,
        "calibrate_s": elapsed,
        "quantize_s": quantize,
        "write_s": write,
        "validate_s": sum(event["seconds"] for event in found.get("validate", [])),
        "busy_s": sum(stage["forward_s"] + stage["backward_s"] for stage in stages) or calibrate * ranks,
        "weights": found["quantize"][-1]["weights"],
        "container_bytes": container_bytes,
        "written_bytes_s": container_bytes / write if write > 0 else 0.0,
        "idle": [stage["idle_share"] for stage in stages],
        "filling_s": [stage["filling_s"] for stage in stages],
        "draining_s": [stage["draining_s"] for stage in stages],
        "idle_predicted": [stage["predicted"] for stage in stages],
        "memory_kind": kind,
        "memory_bytes": [rank[f"{kind}_bytes"] for rank in memory],
        "memory_planned_bytes": [rank[f"planned_{kind}_bytes"] for rank in memory],
        "memory": plan[-1]["memory"] if plan else "",
        "activations": ("keep" if plan[-1]["retain"] else "recompute") if plan else "",
        "micro_batch": plan[-1]["micro_batch"] if plan else 0,
    }


def work_s(run: dict) -> float:
    """What more ranks are to shorten: load, calibrate, quantize. Writing and validating are in the table beside it."""
    return run["load_s"] + run["calibrate_s"] + run["quantize_s"]


def compare(run: dict, reference: dict) -> None:
    """Adds speed-up and parallel efficiency against the run on the fewest ranks; of ranks that share their places neither."""
    if max(run["sharers"], reference["sharers"]) > 1:
        return
    run["speed_up"] = work_s(reference) / work_s(run)
    run["efficiency"] = run["speed_up"] * reference["ranks"] / run["ranks"]


def rates(run: dict, plan: dict) -> dict:
    """A rank's rates in this run, as `decant plan` takes them; plan is that of the same run. Writing is all ranks' rate."""
    return {
        "flop_s": sum(rank["flop"] for rank in plan["rank"]) / run["busy_s"],
        "quantized_s": run["weights"] / (run["quantize_s"] * run["ranks"]),
        "written_bytes_s": run["written_bytes_s"],
    }


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


COLUMNS = [
    "ranks", "ranks a {place}", "checksums s", "load s", "calibrate s", "(foreseen)", "quantize s", "write s", "validate s", "program s",
    "speed-up", "efficiency", "idle", "(predicted)", "peak GB", "(planned)", "written GB/s", "sent GB (planned)", "same bytes",
]  # fmt: skip


SHARED = "shared"
SHARED_NOTE = ("Ranks that share a {place} wait for it besides for each other: their speed-up, efficiency and idle shares say "
               "nothing and are left out, and nothing is foreseen of them. Their seconds are of work done side by side. "
               "Bytes, memory against the plan and what was sent hold as they stand.")  # fmt: skip


def header(place: str) -> str:
    """place: what a rank has of its own or shares, "GPU" or "core"."""
    return f"| {' | '.join(COLUMNS).format(place=place)} |\n|{' --- |' * len(COLUMNS)}"


def row(run: dict) -> str:
    """The peak is that of the rank that came closest to its plan, or went furthest beyond it."""
    pairs = list(zip(run["memory_bytes"], run["memory_planned_bytes"]))
    peak, planned = max(pairs, key=lambda pair: pair[0] / max(pair[1], 1), default=(0, 0))
    foreseen = run.get("calibrate_foreseen_s")
    alone = run["sharers"] == 1
    cells = [
        f"{run['ranks']}",
        f"{run['sharers']}",
        *(f"{run[name]:.2f}" for name in ("fingerprint_s", "load_s", "calibrate_s")),
        f"{foreseen:.2f}" if foreseen else "-" if alone else SHARED,
        *(f"{run[name]:.2f}" for name in ("quantize_s", "write_s", "validate_s", "program_s")),
        *([f"{run['speed_up']:.2f}", f"{run['efficiency']:.1%}"] if "speed_up" in run else [SHARED] * 2),
        *(f"{mean(run[name]):.3f}" if alone else SHARED for name in ("idle", "idle_predicted")),
        f"{peak / GB:.2f}",
        f"{planned / GB:.2f}",
        f"{run['written_bytes_s'] / GB:.2f}",
        f"{run['sent_bytes'] / GB:.2f}" if "sent_bytes" in run else "-",
        {True: "yes", False: "NO", None: "-"}[run.get("same_bytes")],
    ]
    return f"| {' | '.join(cells)} |"


def whole_model(ranks: int, plan: dict) -> str:
    """A line of the extrapolation: what `decant plan` says of the whole model at measured rates."""
    seconds = plan["seconds"]
    fits = "" if plan["fits"] else ", does not fit"
    stages = " | ".join(f"{seconds[name]:.1f}" for name in ("load", "calibrate", "quantize", "write"))
    return f"| {ranks} | {plan['memory']}, {plan['activations']}{fits} | {stages} | {sum(seconds.values()):.1f} |"


WHOLE_MODEL_HEADER = "| ranks | memory | load s | calibrate s | quantize s | write s | in all s |\n|" + " --- |" * 7
