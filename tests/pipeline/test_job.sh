#!/usr/bin/env bash
# The whole job end to end on small models: the same bytes on any number of ranks, statistics used again, every command,
# every documented exit status, and nothing left behind by a job that failed or was killed.
set -euo pipefail
. "${DECANT_TEST_SOURCE:?}/tests/pipeline/command.sh"
. "$source/tests/pipeline/interrupted.sh"

model=$source/tests/reference/llama_mha
tokens=$model/tokens.npy
# Five sequences: two micro-batches of two and one of one.
run=(run --model "$model" --calibration "$tokens" --text "$tokens" --bits 5 --micro-batch 2)

# ---- the same bytes on any number of ranks up to one a layer, threads or none, kept or recomputed
on 1 "${run[@]}" --output "$work/1.h5" >"$work/result"
grep -q 'perplexity after' "$work/result" || fail "no result: $(cat "$work/result")"
for ranks in 2 3; do
  on $ranks "${run[@]}" --output "$work/$ranks.h5" >/dev/null
  cmp "$work/1.h5" "$work/$ranks.h5" || fail "$ranks ranks give other bytes than 1"
done
on 2 "${run[@]}" --output "$work/recompute.h5" --activations recompute --threads 2 >/dev/null
cmp "$work/1.h5" "$work/recompute.h5" || fail "recomputed activations give other bytes"
on 2 "${run[@]}" --output "$work/sequence.h5" --fisher sequence >/dev/null
cmp -s "$work/1.h5" "$work/sequence.h5" && fail "--fisher changes nothing"
for other in llama_gqa_tied llama_bf16_headdim; do
  folder=$source/tests/reference/$other
  for ranks in 1 3; do
    on $ranks run --replicas 1 --model "$folder" --calibration "$folder/tokens.npy" --text "$folder/tokens.npy" --bits 6 \
      --output "$work/$other.$ranks.h5" >/dev/null
  done
  cmp "$work/$other.1.h5" "$work/$other.3.h5" || fail "$other: 3 ranks give other bytes than 1"
done

# ---- statistics are used again, to the same model
on 2 calibrate --model "$model" --calibration "$tokens" --micro-batch 2 --output "$work/statistics.h5"
on 3 run --model "$model" --statistics "$work/statistics.h5" --text "$tokens" --bits 5 --output "$work/again.h5" >/dev/null
cmp "$work/1.h5" "$work/again.h5" || fail "statistics from a file give other bytes"
on 2 run --model "$model" --method nf4 --output "$work/nf4.h5" >/dev/null # data-free: without a fingerprint
python3 - "$work" "$model" <<'PY' || fail "checksums of the model"
import h5py, json, sys, zlib
raw = open(sys.argv[2] + "/model.safetensors", "rb").read()
begin = 8 + int.from_bytes(raw[:8], "little")
entries = json.loads(raw[8:begin])
files = {name: h5py.File(f"{sys.argv[1]}/{name}.h5") for name in ("statistics", "1", "nf4")}
model = 0
for layer in bytes(files["1"]["errors/layers"][()]).decode().split():
    first, end = entries[layer + ".weight"]["data_offsets"]
    own = zlib.crc32(raw[begin + first : begin + end])
    for name in ("1", "nf4"):
        assert files[name][layer].attrs["source_crc32"] == own, (name, layer)
    model = zlib.crc32(own.to_bytes(4, "little"), model)
for name, file in files.items():
    assert file.attrs["model_crc32"] == model, name
PY

# ---- a job file says the same as the command line, which wins
printf 'micro-batch = 2\nmodel = %s\ncalibration = %s\nbits = 4\ntext = %s\n' "$model" "$tokens" "$tokens" >"$work/job.ini"
on 2 run --config "$work/job.ini" --bits 5 --output "$work/config.h5" >/dev/null
cmp "$work/1.h5" "$work/config.h5" || fail "the job file gives other bytes"

# ---- looking at it
"$decant" inspect "$work/1.h5" | grep -q 'model.layers.2.mlp.down_proj' || fail "inspect"
"$decant" inspect --json "$work/1.h5" | python3 -c '
import json, sys
found = json.load(sys.stdin)
assert found["bits"] <= 5 and len(found["layers"]) == 21, found
assert sum(layer["stored_bytes"] for layer in found["layers"]) == found["quantized_bytes"]
assert found["perplexity_quantized"] > 1 and found["perplexity_original"] > 1'
"$decant" verify "$work/1.h5" | grep -q 'every checksum is right' || fail "verify"
"$decant" compare "$work/1.h5" "$work/3.h5" >/dev/null || fail "compare finds a difference where there is none"
expect 3 'differ' "$decant" compare "$work/1.h5" "$work/sequence.h5"
"$decant" allocate "$work/1.h5" --bits 4.8 --json | python3 -c '
import json, sys
assert 4.6 < json.load(sys.stdin)["bits"] <= 4.8'
"$decant" allocate "$work/1.h5" --sweep 4:8:0.5 --json | python3 -c '
import json, sys
points = json.load(sys.stdin)
kept = [point for point in points if point["kept"]]
assert len(points) == 9 and 0 < len(kept) < 9, points
assert all(point["bits"] <= point["budget_bits"] for point in kept)
assert all(a["predicted_loss_increase"] >= b["predicted_loss_increase"] for a, b in zip(kept, kept[1:]))'
for size in 258000 260kB 260KiB 300000; do
  bytes=$(python3 -c 'import sys; print(sys.argv[1].replace("kB", "000").replace("260KiB", "266240"))' $size)
  "$decant" allocate "$work/1.h5" --size $size --json | python3 -c '
import json, sys
assert json.load(sys.stdin)["file_bytes_at_most"] <= int(sys.argv[1])' "$bytes"
  on 2 run --model "$model" --calibration "$tokens" --size $size --output "$work/size.h5" --overwrite
  (($(stat -c %s "$work/size.h5") <= bytes)) || fail "--size $size: the file has $(stat -c %s "$work/size.h5") bytes"
done
"$decant" allocate "$work/1.h5" --bits 4.8 | grep -q 'warning: .*validate before use' || fail "no warning"
on 2 validate "$work/1.h5" --model "$model" --text "$tokens" --json >"$work/two.json"
on 1 validate "$work/1.h5" --model "$model" --text "$tokens" --json >"$work/one.json"
python3 - "$work/one.json" "$work/two.json" "$model/model.safetensors" <<'PY' || fail "validation depends on the ranks, or does not say what the models take"
import json, os, struct, sys
one, two = (json.load(open(path)) for path in sys.argv[1:3])
with open(sys.argv[3], "rb") as model:  # header's length, header, tensors
    tensors = os.path.getsize(sys.argv[3]) - 8 - struct.unpack("<Q", model.read(8))[0]
for found in one, two:  # what was timed, and memory, which ranks share out
    assert found.pop("decode_batch") == [1, 2, 4, 8, 16], found
    for model in "original", "quantized":
        speeds = found.pop("decode_tokens_per_second_" + model)
        assert len(speeds) == 5 and all(speed > 0 for speed in speeds), speeds
    assert found["weight_bytes_original"] == tensors > found["weight_bytes_quantized"] > 0, found
    assert found.pop("device_peak_bytes") > found["weight_bytes_quantized"] / 2, found
assert one == two, (one, two)
PY
on 2 validate "$work/1.h5" --text "$tokens" >"$work/alone" || fail "validate without the original"
grep -q 'perplexity after' "$work/alone" || fail "validate without the original"
grep -q 'decode products, batch 16 .* tokens/s' "$work/alone" || fail "no speed: $(cat "$work/alone")"
# ---- a container beside another model than its own, told apart by what they compute
mkdir "$work/other" && cp "$model/model.safetensors" "$work/other"
sed 's/"rope_theta": 250000.0/"rope_theta": 10000.0/' "$model/config.json" >"$work/other/config.json"
expect 3 '1.h5 is not of the model .*other: .* differ in rope_theta' on 2 validate "$work/1.h5" --model "$work/other" --text "$tokens"
expect 3 '1.h5 is not of the model .*llama_gqa_tied: ' on 1 generate "$work/1.h5" --model "$source/tests/reference/llama_gqa_tied" \
  --prompt "$tokens"
# ---- fewer sequences or windows than asked for are told
for asked in 5 6; do
  mpirun -n 2 "$decant" "${run[@]}" --device cpu --sequences $asked --validation-windows $asked --output "$work/asked.h5" --overwrite \
    >/dev/null 2>"$work/said"
  cmp "$work/1.h5" "$work/asked.h5" || fail "--sequences $asked of 5 gives other bytes than all"
  count=$(grep -cE 'warning: .*tokens.npy: holds 5 (sequences|validation windows), of the 6 asked for' "$work/said") || true
  [[ $count == $((asked == 6 ? 2 : 0)) ]] || fail "--sequences $asked of 5 is told $count times: $(cat "$work/said")"
done

# ---- sequences of 37 tokens, longer than the model's positions
for case in "llama_mha 36 yes" "llama_mha 37 no" "llama_linear 9 yes" "llama_linear 10 no"; do # linear: times four
  read -r other positions warns <<<"$case"
  mkdir "$work/short" && cp "$source/tests/reference/$other"/{config.json,model.safetensors,tokens.npy} "$work/short"
  sed -i "s/\"max_position_embeddings\": 128/\"max_position_embeddings\": $positions/" "$work/short/config.json"
  mpirun -n 2 "$decant" calibrate --model "$work/short" --calibration "$work/short/tokens.npy" --device cpu \
    --output "$work/short.h5" --overwrite 2>"$work/said"
  count=$(grep -c 'warning: .*tokens.npy: sequences of 37 tokens, but the model was made for .* positions' "$work/said") || true
  [[ $count == $([[ $warns == yes ]] && echo 1 || echo 0) ]] || fail "$case: $(cat "$work/said")"
  rm -r "$work/short"
done

if ! nvidia-smi >/dev/null 2>&1; then
  "$decant" validate "$work/1.h5" --text "$tokens" --device auto >/dev/null 2>"$work/fallback"
  grep -q 'computing on the CPU' "$work/fallback" || fail "--device auto falls back to the CPU without a word"
fi
on 2 "${run[@]}" --output "$work/logged.h5" --log "$work/log.jsonl" >/dev/null
python3 -c '
import json, sys
events = [json.loads(line) for line in open(sys.argv[1])]
stages = {event.get("event") for event in events}
assert {"fingerprint", "calibrate", "quantize", "allocate", "write", "validate", "rank"} <= stages, stages
assert {event["rank"] for event in events if event["event"] == "rank"} == {0, 1}
# Behind its last forward pass the last stage waits for nobody.
first, last = (event for event in events if event["event"] == "idle")
assert last["filling_s"] >= 0 and last["draining_s"] == 0, (first, last)
for stage in first, last:
    parts = sum(stage[part] for part in ("forward_s", "backward_s", "filling_s", "draining_s"))
    assert 0 < parts <= stage["elapsed_s"] + 0.001, stage' "$work/log.jsonl"

# ---- exit statuses and messages; nothing is harmed
before=$(sha256sum "$work/1.h5")
expect 2 'exists' on 2 "${run[@]}" --output "$work/1.h5"
[[ $(sha256sum "$work/1.h5") == "$before" ]] || fail "an existing output was harmed"
expect 2 'no command' "$decant" frobnicate
expect 2 'smallest' "$decant" allocate "$work/1.h5" --bits 4.5
expect 2 'bits' "$decant" "${run[@]}" --bits many --output "$work/no.h5"
expect 2 'calibration' "$decant" run --model "$model" --bits 5 --output "$work/no.h5"
expect 2 'smallest' on 2 "${run[@]}" --size 100kB --output "$work/no.h5"
expect 2 'smallest' "$decant" allocate "$work/1.h5" --size 100kB
expect 2 'smallest' on 2 "${run[@]}" --bits 1.5 --output "$work/no.h5"
expect 3 'config.json' on 2 run --model "$work/nothing" --calibration "$tokens" --bits 5 --output "$work/no.h5"
expect 3 'tokens' on 2 run --model "$model" --calibration "$work/absent_tokens.npy" --bits 5 --output "$work/no.h5"
expect 3 'HDF5' "$decant" inspect "$tokens"
expect 3 'statistics' "$decant" inspect "$work/statistics.h5"
expect 3 'model' on 2 run --model "$model" --statistics "$work/1.h5" --bits 5 --output "$work/no.h5"
expect 4 'rite' on 2 "${run[@]}" --output "$work/absent/no.h5"
if ! nvidia-smi >/dev/null 2>&1; then
  expect 5 'CUDA' mpirun -n 2 "$decant" "${run[@]}" --device cuda --output "$work/no.h5"
fi
copy_with_nan "$model" "$work/nan"
expect 3 'model.layers.1.mlp.up_proj' on 3 run --model "$work/nan" --method rtn --bit-widths 4 --output "$work/no.h5"
expect 3 'another model than .*nan' on 3 run --model "$work/nan" --statistics "$work/statistics.h5" --bits 5 \
  --output "$work/no.h5"
python3 "$source/tests/pipeline/change_container.py" "$work/statistics.h5" "$work/old_statistics.h5" / model_crc32 none
expect 3 'old_statistics.h5 does not say which model' on 2 run --model "$model" --statistics "$work/old_statistics.h5" \
  --bits 5 --output "$work/no.h5"
[[ ! -e $work/no.h5 && ! -e $work/no.h5.partial ]] || fail "a failed job left a file"

# ---- a killed job leaves no final name, and the next one is not disturbed by what it left
begin 2 "$work/killed.h5" "${run[@]}" --device cpu
wait_for "$work/killed.h5.work/lock" || true # all ranks are there
kill -KILL "$job" 2>/dev/null || true
kill_all "$work/killed.h5"
finish
[[ ! -e $work/killed.h5 ]] || cmp "$work/1.h5" "$work/killed.h5" || fail "a killed job left a broken container"
on 2 "${run[@]}" --output "$work/killed.h5" --overwrite >/dev/null
cmp "$work/1.h5" "$work/killed.h5" || fail "a job after a killed one gives other bytes"
echo "the whole job: passed"
