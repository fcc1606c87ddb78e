#!/usr/bin/env bash
# decant plan: from a folder or a config.json alone, for people and as JSON, every exit status; and a job that its plan
# foresees not to fit ends before it begins.
set -euo pipefail
. "${DECANT_TEST_SOURCE:?}/tests/pipeline/command.sh"

large=$source/tests/pipeline/configs/llama_65b.json
model=$source/tests/reference/llama_mha
tokens=$model/tokens.npy
plan=("$decant" plan --model "$large" --window 2048 --bits 3.5 --bit-widths 2-4)

# ---- for people
"${plan[@]}" --ranks 8 --device-memory 80G >"$work/out"
[[ $(grep -cE '^ +[0-7] +[0-9]+-[0-9]+ +10 ' "$work/out") == 8 ]] || fail "not eight ranks of ten layers: $(cat "$work/out")"
grep -q 'fits 80.0 GiB' "$work/out" || fail "no verdict"
grep -q 'H100' "$work/out" || fail "does not say where its rates are from"
# what docs/planning.md shows is what is printed, and README.md's figures are those
"${plan[@]}" --host-memory 500G --device-memory 80G --ranks 8 >"$work/out"
sed -n '/^LlamaForCausalLM, 80 layers/,/^fits/p' "$source/docs/planning.md" >"$work/shown"
diff "$work/shown" "$work/out" >&2 || fail "docs/planning.md shows another plan"
for figure in "$(awk '$1 == 0 {print $5}' "$work/out") GiB of the device at most" "$(awk '$1 == 0 {print $(NF - 1)}' "$work/out") %,"; do
  grep -q -- "$figure" "$source/README.md" || fail "README.md does not say '$figure'"
done
"${plan[@]}" --ranks 64 >"$work/out"
grep -qE '^ +0-15 +0-31 +2 ' "$work/out" || fail "64 ranks: $(cat "$work/out")"
"$decant" plan --model "$model" --device cpu | grep -q 'no times' || fail "times on the CPU, where none were measured"
"$decant" plan --model "$model" --device cpu --teraflops 0.1 | grep -q 'expected seconds' || fail "a rate is not used"

"$decant" plan --model "$large" --window 2048 --bit-widths 3 --method guided --guided-groups 2 --ranks 8 \
  --device-memory 80G >"$work/out"
# 80 layers of 2 groups: 4 bytes x (6 x 8192^2 + 22016^2) a group
grep -q 'Hessians of guided: 567.91 GB, 7.10 GB a layer' "$work/out" || fail "Hessians are not stated: $(cat "$work/out")"

# ---- for programs: the sums agree with the parts
"${plan[@]}" --ranks 64 --replicas 8 --json >"$work/plan.json"
python3 - "$work/plan.json" <<'PY'
import json, sys
plan = json.load(open(sys.argv[1]))
ranks = plan["rank"]
assert plan["fits"] and plan["stages"] == 8 and plan["replicas"] == 8 and len(ranks) == 64
assert [r["rank"] for r in ranks] == list(range(64))
assert sum(r["layers"] for r in ranks) == 8 * 80 and sum(r["sequences"] for r in ranks if r["first_layer"] == 0) == 128
assert plan["quantized_weights"] == 80 * (4 * 8192**2 + 3 * 8192 * 22016)
assert plan["statistics_bytes"] >= 4 * plan["quantized_weights"]
for r in ranks:
    for kind in ("device_bytes", "host_bytes", "scratch_bytes"):
        assert r[kind] == max(stage[kind] for stage in r["stages"].values()), r
    assert r["stages"][r["device_peak_stage"]]["device_bytes"] == r["device_bytes"]
    parts = sum(value for key, value in r["calibration"].items())
    assert 0 <= r["stages"]["calibrate"]["device_bytes"] - parts < 64 << 20
    assert 0 <= r["idle_share"] < 1 and r["flop"] > 0
PY

# ---- sizes of files are those of a container of that shape
mpirun -n 2 "$decant" run --model "$model" --calibration "$tokens" --bit-widths 4 --output "$work/four.h5" --quiet --device cpu
"$decant" plan --model "$model" --bit-widths 4 --json --device cpu >"$work/plan.json"
python3 - "$work/plan.json" "$(stat -c %s "$work/four.h5")" <<'PY'
import json, sys
planned, size = json.load(open(sys.argv[1]))["container_bytes"], int(sys.argv[2])
assert abs(planned - size) < 0.05 * size, (planned, size)
PY

# ---- checkpoints: streamed, boundaries and levels; resident, twice the sums of each replica
for case in streamed:1:1 resident:2:2; do
  IFS=: read -r memory replicas ranks <<<"$case"
  "$decant" plan --model "$large" --bits 3.5 --memory $memory --ranks $ranks --replicas $replicas --sequences 100 --window 512 --device cpu \
    --host-memory 4000G --json >"$work/$memory.json"
done
python3 - "$work/streamed.json" "$work/resident.json" <<'PY'
import json, sys
streamed, resident = [json.load(open(path)) for path in sys.argv[1:]]
boundary = 4 * 100 * 512 * 8192
levels = 2 * sum(2**b for b in range(2, 7)) * 80 * (4 * 8192 + 2 * 22016 + 8192)
sparse = 4 * 0.0045 * streamed["quantized_weights"]
assert 0 < streamed["checkpoint_bytes"] - (82 * boundary + levels + sparse) < 64 << 20, (streamed, boundary, levels, sparse)
assert abs(resident["checkpoint_bytes"] / (2 * 2 * resident["statistics_bytes"]) - 1) < 1e-6, resident
PY
"$decant" plan --model "$large" --bits 3.5 --ranks 8 | grep -q 'checkpoints in OUTPUT.work: at most ' || fail "checkpoints are not told"

# ---- exit statuses
expect 4 'ranks, or --memory streamed' "${plan[@]}" --ranks 4 --memory resident
expect 4 'GiB of device memory' "${plan[@]}" --ranks 1 --device-memory 2G
{ "${plan[@]}" --ranks 4 --memory resident --json 2>/dev/null || true; } | python3 -c '
import json, sys
plan = json.load(sys.stdin)
assert not plan["fits"] and "ranks" in plan["advice"]' || fail "no JSON of a plan that does not fit"
expect 2 'divide' "${plan[@]}" --ranks 8 --replicas 3
expect 2 'device-memory' "${plan[@]}" --device-memory 80Q
for bits in 2.1 4; do # what the job refuses as it begins, in the same words
  small=(--model "$model" --bits $bits --device cpu)
  expect 2 "bits $bits cannot be kept" "$decant" run "${small[@]}" --calibration "$tokens" --quiet --output "$work/no.h5"
  cp "$work/err" "$work/refusal"
  expect 2 'the smallest candidates take' "$decant" plan "${small[@]}"
  diff "$work/refusal" "$work/err" || fail "plan does not refuse what run does"
done
expect 2 'size of 9000000000 bytes cannot be kept: .* the quantized layers alone take [0-9]* bytes' "${plan[@]}" --ranks 8 --size 9GB
"${plan[@]}" --ranks 8 --size 40GB >/dev/null || fail "a size that can be kept is refused"
expect 2 'model' "$decant" plan --ranks 2
expect 3 'config.json' "$decant" plan --model "$work/nothing"

# ---- a job that cannot fit ends before it begins, and says what would
expect 4 'what would fit' mpirun -n 2 "$decant" run --model "$model" --calibration "$tokens" --bits 5 --device cpu \
  --host-memory 40M --output "$work/no.h5" --quiet
[[ ! -e $work/no.h5 && ! -e $work/no.h5.partial ]] || fail "a job that cannot fit left a file"
mpirun -n 2 "$decant" run --model "$model" --calibration "$tokens" --bits 5 --device cpu --output "$work/yes.h5" --quiet \
  --log "$work/log.jsonl"
python3 - "$work/log.jsonl" <<'PY'
import json, sys
events = [json.loads(line) for line in open(sys.argv[1])]
planned = [event for event in events if event["event"] == "plan" and "process_bytes" in event]
measured = [event for event in events if event["event"] == "memory"]
assert len(planned) == len(measured) == 2, events
assert all(event["process_bytes"] > 0 for event in measured)
PY
echo "decant plan: passed"
