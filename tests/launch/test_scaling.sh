#!/usr/bin/env bash
# tests/bench/scaling on the CPU: 1, 2 and 4 ranks, whether each has a core of its own or not, leave the same bytes; and where
# ranks share a GPU the table has no figures that would say nothing. The GPU is one that a script in nvidia-smi's place tells
# of; decant computes on the CPU.
set -euo pipefail
. "${DECANT_TEST_SOURCE:?}/tests/pipeline/command.sh"
python3 -c 'import numpy' 2>/dev/null || { echo "numpy is not here"; exit 77; }

mkdir "$work/bin"
cat >"$work/bin/nvidia-smi" <<'END'
#!/bin/bash
echo "A GPU, 81920 MiB"
END
cat >"$work/program" <<END
#!/bin/bash
[[ \$1 != plan ]] || echo "\$*" >>"$work/plans"
exec "$decant" "\${@/#cuda/cpu}"
END
chmod +x "$work/bin/nvidia-smi" "$work/program"

# scaling OPTIONS…: its table in $work/table, its figures in $work/figures.json.
scaling() {
  "$source/tests/bench/scaling" --shape tiny --layers 4 --sequences 2 --length 64 --ranks 1,2,4 --models "$work/models" \
    --work "$work/runs" --json "$work/figures.json" "$@" >"$work/table" 2>"$work/said" || fail "scaling $*: $(cat "$work/table" "$work/said")"
}

scaling --device cpu
python3 - "$work/figures.json" <<'PY' || fail "on the CPU: $(cat "$work/table")"
import json, os, sys
runs = json.load(open(sys.argv[1]))["shapes"]["tiny"]["runs"]
cores = os.cpu_count()
assert [run["ranks"] for run in runs] == [1, 2, 4]
assert [run.get("same_bytes") for run in runs] == [None, True, True]
for run in runs:
    assert run["sharers"] == -(-run["ranks"] // cores), run
    assert ("speed_up" in run) == ("rates" in run) == (run["ranks"] <= cores), run
PY

PATH=$work/bin:$PATH DECANT_PROGRAM=$work/program scaling --device cuda --keep -- --bit-widths 2,5
grep -q '^| ranks | ranks a GPU |' "$work/table" || fail "no column of ranks a GPU: $(cat "$work/table")"
grep -q 'Ranks that share a GPU wait for it' "$work/table" || fail "sharing is not told: $(cat "$work/table")"
grep -q '4 ranks on 1 GPU, which they share' "$work/said" || fail "sharing is not told while it runs: $(cat "$work/said")"
python3 - "$work/table" "$work/plans" <<'PY' || fail "one GPU: $(cat "$work/table" "$work/plans")"
import sys
table, plans = (open(path).read() for path in sys.argv[1:])
lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines() if line.startswith("|")]
rows = [dict(zip(lines[0], line)) for line in lines[2:]]
assert [row["ranks a GPU"] for row in rows] == ["1", "2", "4"]
for row in rows:
    told = {row[name] == "shared" for name in ("speed-up", "efficiency", "idle", "(predicted)")}
    assert told == {row["ranks"] != "1"}, row
    assert float(row["peak GB"]) > 0 and float(row["calibrate s"]) > 0, row
assert [row["same bytes"] for row in rows] == ["-", "yes", "yes"]
assert all("--bit-widths 2,5" in plan for plan in plans.splitlines()), plans
for ranks, share in ((1, 81920), (2, 40960), (4, 20480)):
    assert f"--ranks {ranks} " in plans and f"--device-memory {share}MiB" in plans, plans
PY

# A container that differs is told, and is a failure; so is a run that fails.
cat >"$work/program" <<END
#!/bin/bash
[[ \$1 != run || \${OMPI_COMM_WORLD_SIZE:-1} != 2 ]] || set -- "\$@" --levels lloyd
exec "$decant" "\$@"
END
! (DECANT_PROGRAM=$work/program scaling --device cpu --ranks 1,2) 2>/dev/null || fail "other bytes are no failure: $(cat "$work/table")"
grep -q '| NO |' "$work/table" || fail "other bytes are not told: $(cat "$work/table")"
! (scaling --device cpu --ranks 1,2 -- --replicas 2) 2>/dev/null || fail "a run that fails is no failure: $(cat "$work/table")"
grep -q '^| 1 | 1 | failed: exit status 2: decant: ' "$work/table" || fail "no reason: $(cat "$work/table")"
echo "scaling: passed"
