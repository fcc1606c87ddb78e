#!/usr/bin/env bash
# Guided quantization end to end on a small model: the same bytes on any number of ranks, streamed or resident, from a
# statistics file or at once; it lowers its own objective; the container is read like k-means'; and what is refused.
set -euo pipefail
. "${DECANT_TEST_SOURCE:?}/tests/pipeline/command.sh"

model=$source/tests/reference/llama_mha
tokens=$model/tokens.npy
guided=(run --model "$model" --method guided --bit-widths 2,3 --bits 5.2 --guided-groups 3)

# ---- the same bytes, however they were made
for ranks in 1 2 3; do
  on $ranks "${guided[@]}" --calibration "$tokens" --output "$work/$ranks.h5"
  cmp "$work/1.h5" "$work/$ranks.h5" || fail "$ranks ranks give other bytes than 1"
done
on 2 "${guided[@]}" --calibration "$tokens" --memory streamed --output "$work/streamed.h5"
cmp "$work/1.h5" "$work/streamed.h5" || fail "streamed layers give other bytes"
on 2 calibrate --model "$model" --calibration "$tokens" --method guided --guided-groups 3 --output "$work/statistics.h5"
for memory in resident streamed; do # ranks without layers, too
  on 5 calibrate --model "$model" --calibration "$tokens" --method guided --guided-groups 3 --replicas 1 --memory $memory \
    --output "$work/statistics.5.$memory.h5"
  cmp "$work/statistics.h5" "$work/statistics.5.$memory.h5" || fail "other statistics on 5 ranks, $memory"
done
# the statistics that a job keeps for going on
on 5 "${guided[@]}" --calibration "$tokens" --replicas 1 --checkpoint-every 0 --log "$work/log" --output "$work/kept.h5"
grep -q '"event":"checkpoint","statistics":true' "$work/log" || fail "five ranks keep no statistics: $(cat "$work/log")"
on 2 "${guided[@]}" --statistics "$work/statistics.h5" --output "$work/statistics-run.h5"
"$decant" compare "$work/1.h5" "$work/statistics-run.h5" >/dev/null || fail "a statistics file gives another container"

# ---- two replicas hold half of the sequences each: sums in another order, the same quantization but for rounding
on 2 "${guided[@]}" --calibration "$tokens" --micro-batch 2 --replicas 2 --output "$work/replicas.h5"
on 4 "${guided[@]}" --calibration "$tokens" --micro-batch 2 --replicas 2 --output "$work/replicas4.h5"
cmp "$work/replicas.h5" "$work/replicas4.h5" || fail "4 ranks give other bytes than 2 with 2 replicas"

# ---- it is read like k-means: verified, validated the same on 1 and 2 ranks, and predicts what it stores
"$decant" verify "$work/1.h5" >/dev/null || fail "verify"
for ranks in 1 2; do
  on $ranks validate "$work/1.h5" --model "$model" --text "$tokens" --json | python3 -c '
import json, sys
found = json.load(sys.stdin)
print(found["kl_divergence"], found["perplexity_quantized"])' >"$work/validated.$ranks"
done
cmp "$work/validated.1" "$work/validated.2" || fail "validation depends on the ranks"
"$decant" inspect --json "$work/1.h5" >"$work/one.json"
"$decant" inspect --json "$work/replicas.h5" >"$work/replicas.json"
for rounds in 1 6; do
  on 1 run --model "$model" --method guided --bit-widths 2 --statistics "$work/statistics.h5" --guided-groups 3 \
    --guided-rounds $rounds --output "$work/rounds.$rounds.h5"
  "$decant" inspect --json "$work/rounds.$rounds.h5" >"$work/rounds.$rounds.json"
done
python3 - "$work" <<'PY'
import json, math, sys
read = lambda name: json.load(open(f"{sys.argv[1]}/{name}.json"))
one, replicas, few, many = map(read, ("one", "replicas", "rounds.1", "rounds.6"))
assert all(layer["method"] == "guided" for layer in one["layers"]), one
assert sum(layer["stored_bytes"] for layer in one["layers"]) == one["quantized_bytes"]
assert any(layer["sparse_count"] > 0 for layer in one["layers"])
assert math.isclose(one["predicted_loss_increase"], replicas["predicted_loss_increase"], rel_tol=1e-2), (one, replicas)
assert 0 < many["predicted_loss_increase"] < few["predicted_loss_increase"], (few, many)
PY

# ---- exported as k-means' layers are, with a sparse part and without
for name in 1 dense; do
  [[ $name == 1 ]] || on 1 "${guided[@]}" --sensitive 0 --outliers 0 --calibration "$tokens" --output "$work/dense.h5"
  "$decant" export "$work/$name.h5" --output "$work/exported.$name" --element f32 >/dev/null || fail "export"
  on 1 validate "$work/$name.h5" --text "$tokens" --json >"$work/container.json"
  on 1 run --model "$work/exported.$name" --method nf4 --text "$tokens" --output "$work/again.h5" --overwrite --json >"$work/folder.json"
  python3 - "$work" <<'PY'
import json, math, sys
read = lambda name: json.loads(open(f"{sys.argv[1]}/{name}.json").read().strip().splitlines()[-1])
inside, outside = read("container")["perplexity_quantized"], read("folder")["perplexity_original"]
assert math.isclose(inside, outside, rel_tol=1e-4), (inside, outside)
PY
  ! python3 -c 'import h5py, numpy, safetensors' 2>/dev/null || python3 - "$source/examples" "$work" "$name" <<'PY'
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import h5py, numpy as np
from read_container import read_layer
from safetensors.numpy import load_file
work, name = Path(sys.argv[2]), sys.argv[3]
exported = {}
for shard in (work / f"exported.{name}").glob("*.safetensors"):
    exported.update(load_file(shard))
with h5py.File(work / f"{name}.h5") as container:
    for layer in bytes(container["errors/layers"][:]).decode().split():
        assert container[layer]["levels"].dtype == np.uint8
        matrix = exported[layer if layer in exported else layer + ".weight"]
        assert np.allclose(read_layer(container, layer), matrix, rtol=1e-6, atol=0), layer
PY
done

# ---- sparse parts of its own: the budget decides how large, by the objective or by what each matrix alone does
own=(run --model "$model" --calibration "$tokens" --method guided --bit-widths 2,3 --guided-sparse 0,0.5,2 --guided-groups 3)
on 1 "${own[@]}" --bits 5.1 --output "$work/own.h5"
on 2 "${own[@]}" --bits 5.1 --memory streamed --output "$work/own.streamed.h5"
cmp "$work/own.h5" "$work/own.streamed.h5" || fail "sparse parts of its own give other bytes when streamed"
for ranks in 1 2; do
  on $ranks "${own[@]}" --bits 5.1 --sensitivity measured --sensitivity-sequences 2 --output "$work/measured.$ranks.h5"
done
cmp "$work/measured.1.h5" "$work/measured.2.h5" || fail "measured sensitivities of guided depend on the ranks"
for name in own measured.1; do
  "$decant" verify "$work/$name.h5" >/dev/null || fail "verify $name"
  "$decant" inspect --json "$work/$name.h5" >"$work/$name.json"
  "$decant" allocate "$work/$name.h5" --bits 5.1 --json >"$work/$name.again.json"
done
python3 - "$work" <<'PY'
import json, sys
read = lambda name: json.load(open(f"{sys.argv[1]}/{name}.json"))
for name in "own", "measured.1":
    made, again = read(name), read(name + ".again")
    assert ("predicted_from_sums" in made) == (name != "own") and made.get("predicted_from_sums", 1) > 0
    assert made["bits"] <= 5.1 and 0 < made["predicted_loss_increase"], made
    for layer, planned in zip(made["layers"], again["layers"]):
        fractions = [round(share * layer["weights"]) for share in (0, 0.005, 0.02)]
        assert layer["method"] == "guided" and layer["sparse_count"] in fractions, layer
        assert [layer[key] for key in ("bits", "sparse_count", "stored_bytes")] == \
            [planned[key] for key in ("bits", "sparse_count", "stored_bytes")], (layer, planned)
    assert name != "own" or len({layer["sparse_count"] > 0 for layer in made["layers"]}) == 2, "no choice was made"
PY

# ---- refused
on 1 calibrate --model "$model" --calibration "$tokens" --output "$work/plain.h5"
no=(run --model "$model" --method guided --bit-widths 3 --output "$work/no.h5" --device cpu --quiet)
expect 2 'calibration' "$decant" "${no[@]}"
expect 3 'calibrate --method guided' "$decant" "${no[@]}" --statistics "$work/plain.h5"
expect 3 'guided-groups 3' "$decant" "${no[@]}" --statistics "$work/statistics.h5" --guided-groups 2
expect 2 'guided-groups' "$decant" "${no[@]}" --calibration "$tokens" --guided-groups 0
[[ ! -e $work/no.h5 && ! -e $work/no.h5.partial ]] || fail "a refused job left a file"
echo "guided: passed"
