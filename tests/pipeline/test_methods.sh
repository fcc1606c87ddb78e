#!/usr/bin/env bash
# Methods beside k-means, end to end on small models: the same bytes on any number of ranks, data-free runs that need no
# text, mixtures, sizes and errors as stored, containers that lie, and what is refused before the work.
set -euo pipefail
. "${DECANT_TEST_SOURCE:?}/tests/pipeline/command.sh"

# validated RANKS ARGUMENTS…: what `decant validate` measures of quality, without what the models take to run.
validated() {
  on "$@" --json | python3 -c '
import json, sys
keys = "windows targets perplexity_quantized perplexity_original kl_divergence top1_agreement measured_loss_increase".split()
found = json.load(sys.stdin)
print(json.dumps({key: found[key] for key in keys if key in found}))'
}

model=$source/tests/reference/llama_mha
tokens=$model/tokens.npy

# ---- data-free: no calibration, no text, the same bytes on 1, 2, 3 ranks; validation reads the packed form
for options in "--method higgs --bit-widths 4" "--method rtn --bit-widths 3 --group 16" "--method nf4" \
  "--method higgs,rtn,nf4 --bits 4.8 --grid-dimension 1,2 --group 0,16"; do
  # shellcheck disable=SC2086 # several options in one word
  for ranks in 1 2 3; do
    on $ranks run --model "$model" $options --output "$work/$ranks.h5" --overwrite
    cmp "$work/1.h5" "$work/$ranks.h5" || fail "$options: $ranks ranks give other bytes than 1"
  done
  "$decant" verify "$work/1.h5" >/dev/null || fail "$options: verify"
  validated 1 validate "$work/1.h5" --model "$model" --text "$tokens" >"$work/one.json"
  validated 2 validate "$work/1.h5" --model "$model" --text "$tokens" >"$work/two.json"
  cmp "$work/one.json" "$work/two.json" || fail "$options: validation depends on the ranks"
  "$decant" inspect --json "$work/1.h5" >"$work/inspected.json"
  python3 - "$work/inspected.json" "$work/one.json" "$options" <<'PY'
import json, sys
found, measured = (json.load(open(path)) for path in sys.argv[1:3])
assert "predicted_loss_increase" not in found and "calibration_sequences" not in found, found
assert sum(layer["stored_bytes"] for layer in found["layers"]) == found["quantized_bytes"]
assert all(layer["method"] in sys.argv[3] and layer["sparse_count"] == 0 for layer in found["layers"]), found
assert 0 < measured["kl_divergence"] < 1 and measured["top1_agreement"] > 0.2, measured
PY
done
on 1 run --model "$model" --method higgs --bit-widths 4 --output "$work/seed0.h5"
on 1 run --model "$model" --method higgs --bit-widths 4 --seed 9 --output "$work/seed9.h5"
expect 3 'differ' "$decant" compare "$work/seed0.h5" "$work/seed9.h5"
on 1 run --model "$model" --method rtn --bit-widths 3 --output "$work/rtn.h5"
expect 3 'differ' "$decant" compare "$work/seed0.h5" "$work/rtn.h5"
for line in "grids/higgs_2_256: only in $work/seed0.h5" "model.layers.0.mlp.up_proj/offsets: only in $work/rtn.h5" \
  "model.layers.0.mlp.up_proj/codes: another type or shape"; do
  grep -qxF "/$line" "$work/out" || fail "compare does not say $line: $(cat "$work/out")"
done

# ---- a mixture with k-means and Fisher sums: no worse a prediction than any of its parts, on any number of ranks
on 2 calibrate --model "$model" --calibration "$tokens" --output "$work/statistics.h5"
mixed=(run --model "$model" --statistics "$work/statistics.h5" --bits 5.6 --group 0,24)
for method in kmeans higgs rtn kmeans,higgs,rtn,nf4; do
  for ranks in 1 3; do
    on $ranks "${mixed[@]}" --method $method --text "$tokens" --output "$work/$method.$ranks.h5" >/dev/null
  done
  cmp "$work/$method.1.h5" "$work/$method.3.h5" || fail "$method: 3 ranks give other bytes than 1"
  "$decant" inspect --json "$work/$method.1.h5" >"$work/$method.json"
done
python3 - "$work" <<'PY'
import json, sys
found = {name: json.load(open(f"{sys.argv[1]}/{name}.json")) for name in ("kmeans", "higgs", "rtn", "kmeans,higgs,rtn,nf4")}
mixture = found.pop("kmeans,higgs,rtn,nf4")
assert len({layer["method"] for layer in mixture["layers"]}) > 1, mixture
for name, one in found.items():
    assert mixture["predicted_loss_increase"] <= one["predicted_loss_increase"], (name, mixture, one)
PY
"$decant" allocate "$work/kmeans,higgs,rtn,nf4.1.h5" --bits 4.5 --json | python3 -c '
import json, sys
plan = json.load(sys.stdin)
assert 4.2 < plan["bits"] <= 4.5 and len({layer["method"] for layer in plan["layers"]}) > 1, plan'

# ---- a container that lies is refused in one line; one of schema version 1, k-means alone, is read
python=$source/.venv/bin/python
"$python" -c 'import h5py' 2>/dev/null || python=python3
if "$python" -c 'import h5py' 2>/dev/null; then
  change() { "$python" "$source/tests/pipeline/change_container.py" "$@"; }
  lies() { # lies PATTERN ATTRIBUTE VALUE: of one layer of a HIGGS container
    change "$work/seed0.h5" "$work/lie.h5" /model.layers.1.mlp.up_proj "$2" "$3"
    expect 3 "$1" "$decant" validate "$work/lie.h5" --text "$tokens" --device cpu --quiet
  }
  change "$work/seed0.h5" "$work/true.h5" /model.layers.1.mlp.up_proj rotation 8
  "$decant" validate "$work/true.h5" --text "$tokens" --device cpu --quiet >/dev/null || fail "sealed again, but refused"
  for rotation in 3 0 -8 4096; do lies 'no power of two' rotation "$rotation"; done
  for group in 0 -1 1000; do lies 'groups of' group "$group"; done
  lies 'scales' group 7
  lies 'codes of' code_bits 13
  lies 'grids/' code_bits 7
  lies 'grids/' dimension 1
  lies 'no method' method gptq
  lies 'absent' grid /absent
  on 1 run --model "$model" --statistics "$work/statistics.h5" --bits 5 --output "$work/new.h5"
  change "$work/new.h5" "$work/old.h5" version-1
  for version in old new; do
    "$decant" allocate "$work/$version.h5" --bits 4.8 --json >"$work/$version.plan" || fail "allocate $version"
    validated 1 validate "$work/$version.h5" --text "$tokens" >"$work/$version.json"
  done
  grep -v file_bytes_at_most "$work/old.plan" | cmp - <(grep -v file_bytes_at_most "$work/new.plan") || fail "version 1 gives another allocation"
  cmp "$work/old.json" "$work/new.json" || fail "version 1 gives another perplexity"
fi

# ---- a model of an architecture that decant does not know: data-free, matrix by matrix; never with data
mkdir "$work/foreign" "$work/bare"
python3 - "$work/foreign" <<'PY'
import json, random, struct, sys
random.seed(5)
shapes = {"wte.weight": [40, 24], "h.0.attn.c_attn.weight": [24, 72], "h.0.mlp.c_fc.weight": [24, 96], "h.0.mlp.c_fc.bias": [96],
          "h.1.attn.c_attn.weight": [24, 72], "h.1.mlp.c_fc.weight": [24, 97], "ln_f.weight": [24]}
header, data = {}, b""
for name, shape in shapes.items():
    count = shape[0] * (shape[1] if len(shape) > 1 else 1)
    header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + 4 * count]}
    data += struct.pack(f"<{count}f", *(random.gauss(0, 0.02) for _ in range(count)))
text = json.dumps(header).encode()
open(sys.argv[1] + "/model.safetensors", "wb").write(struct.pack("<Q", len(text)) + text + data)
json.dump({"architectures": ["GPT2LMHeadModel"], "n_layer": 2}, open(sys.argv[1] + "/config.json", "w"))
PY
cp "$work/foreign/model.safetensors" "$work/bare"
for folder in foreign bare; do
  for ranks in 1 3; do
    on $ranks run --model "$work/$folder" --method higgs,rtn,nf4 --bits 5 --output "$work/$folder.$ranks.h5"
  done
  cmp "$work/$folder.1.h5" "$work/$folder.3.h5" || fail "$folder: 3 ranks give other bytes than 1"
  [[ $("$decant" inspect "$work/$folder.1.h5" | grep -c '^h\.') == 4 ]] || fail "$folder: not all matrices"
  "$decant" verify "$work/$folder.1.h5" >/dev/null || fail "$folder: verify"
done
foreign=(run --model "$work/foreign" --method higgs --bits 5 --output "$work/no.h5")
expect 3 'GPT2LMHeadModel\|hidden_size' "$decant" "${foreign[@]}" --text "$tokens"
expect 3 'GPT2LMHeadModel\|hidden_size' "$decant" "${foreign[@]}" --calibration "$tokens"
expect 3 'hidden_size' "$decant" validate "$work/foreign.1.h5" --text "$tokens" --device cpu

# ---- refused before the work
run=(run --model "$model" --output "$work/no.h5")
expect 2 'calibration' "$decant" "${run[@]}" --method kmeans,higgs --bits 5
expect 2 '3 bits' "$decant" "${run[@]}" --method nf4 --bit-widths 3,4 --bits 5
expect 2 'method' "$decant" "${run[@]}" --method gptq --bits 5
expect 2 'grid-dimension' "$decant" "${run[@]}" --method higgs --grid-dimension 5 --bits 5
expect 2 'bits' "$decant" "${run[@]}" --method higgs
expect 2 'smallest' on 2 "${run[@]}" --method higgs --bits 2.1
[[ ! -e $work/no.h5 && ! -e $work/no.h5.partial ]] || fail "a refused job left a file"
echo "methods: passed"
