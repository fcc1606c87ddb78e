#!/usr/bin/env bash
# Squared gradients of another program as statistics: PyTorch's sums (tests/reference) give the run that decant's own
# sums give, up to their rounding; decant's own, sent around through safetensors, give the same bytes; what is no sum of
# squares is refused.
set -euo pipefail
decant=${DECANT_PROGRAM:?} source=${DECANT_TEST_SOURCE:?}
python=$source/.venv/bin/python
"$python" -c 'import h5py, numpy' 2>/dev/null || python=python3
"$python" -c 'import h5py, numpy' 2>/dev/null || { echo "h5py is not here"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

fail() { echo "FAILED: $*" >&2; exit 1; }

# refused STATUS PATTERN FOLDER [OPTION…]
refused() {
  local status=$1 pattern=$2 folder=$3 got=0
  shift 3
  "$decant" import-statistics --model "$model" --gradients "$folder" --output "$work/no.h5" "$@" >"$work/out" 2>"$work/err" || got=$?
  [[ $got == "$status" && $(wc -l <"$work/err") == 1 ]] || fail "$folder: $got and $(cat "$work/err")"
  grep -q -- "$pattern" "$work/err" || fail "$folder: '$(cat "$work/err")' does not say '$pattern'"
  [[ ! -e $work/no.h5 && ! -e $work/no.h5.partial ]] || fail "$folder: a file was left"
}

model=$source/tests/reference/llama_mha
cat >"$work/make.py" <<'PY'
"""make.py OUT STATISTICS.h5|GOLDEN.safetensors [TENSOR VALUE|drop|shape|zero]: the sums as a model's tensors, two shards."""
import json, struct, sys
from pathlib import Path
import h5py, numpy as np

def write(path, tensors):
    header, data = {}, b""
    for name, (kind, array) in tensors.items():
        raw = array.tobytes()
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)

folder, sums = Path(sys.argv[1]), {}
if sys.argv[2].endswith(".h5"):
    with h5py.File(sys.argv[2]) as file:
        file.visititems(lambda path, thing: sums.update({path[: -len("/fisher")]: thing[:]}) if path.endswith("/fisher") else None)
else:
    raw = Path(sys.argv[2]).read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    for name, entry in json.loads(raw[8 : 8 + size]).items():
        if name.startswith("fisher_sequence."):
            begin, end = (8 + size + offset for offset in entry["data_offsets"])
            sums[name.split(".", 1)[1].removesuffix(".weight")] = np.frombuffer(raw[begin:end], "<f4").reshape(entry["shape"])
assert len(sums) == 21, list(sums)
tensors = {name + ".weight": ("F32", np.array(array, "<f4")) for name, array in sums.items()}
tensors["model.embed_tokens.weight"] = ("F32", -np.ones((4, 4), "<f4"))  # not squared there, and not read
if len(sys.argv) > 3:
    name, value = sys.argv[3:]
    array = tensors[name][1]
    if value == "drop":
        del tensors[name]
    elif value == "shape":
        tensors[name] = ("F32", array[:-1])
    elif value == "zero":
        array[:] = 0
    else:
        array[2, 7] = float(value)
folder.mkdir()
names = sorted(tensors)
for i, part in enumerate((names[:9], names[9:])):
    write(folder / f"part{i}.safetensors", {name: tensors[name] for name in part})
(folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {name: f"part{int(i >= 9)}.safetensors" for i, name in enumerate(names)}}))
PY
"$decant" calibrate --model "$model" --calibration "$model/tokens.npy" --fisher sequence --micro-batch 1 --output "$work/own.h5" --quiet --device cpu
shape=$("$python" -c 'import numpy, sys; print(*numpy.load(sys.argv[1]).shape)' "$model/tokens.npy")
counts=(--sequences "${shape% *}" --window "${shape#* }")

# ---- around: the same sums, the same plan
"$python" "$work/make.py" "$work/gradients" "$work/own.h5"
"$decant" import-statistics --model "$model" --gradients "$work/gradients" "${counts[@]}" --output "$work/imported.h5"
"$decant" compare "$work/own.h5" "$work/imported.h5" >/dev/null || fail "other sums"
"$decant" verify "$work/imported.h5" >/dev/null
mpirun -n 2 "$decant" import-statistics --model "$model" --gradients "$work/gradients" "${counts[@]}" --output "$work/two.h5" --quiet
cmp "$work/imported.h5" "$work/two.h5" || fail "two ranks give other bytes"
for name in own imported; do
  "$decant" run --model "$model" --statistics "$work/$name.h5" --bits 6 --output "$work/$name.model.h5" --quiet --device cpu
done
"$decant" compare "$work/own.model.h5" "$work/imported.model.h5" >/dev/null || fail "another model"
"$decant" inspect "$work/imported.model.h5" --json >"$work/inspected"
grep -q '"calibration_loss":[[:space:]]*null' "$work/inspected" || fail "a loss that nobody knows"

# ---- PyTorch's own sums
golden=$(ls "$model"/golden/*.safetensors | head -1)
"$python" "$work/make.py" "$work/pytorch" "$golden"
"$decant" import-statistics --model "$model" --gradients "$work/pytorch" "${counts[@]}" --output "$work/pytorch.h5"
"$decant" run --model "$model" --statistics "$work/pytorch.h5" --bit-widths 3 --output "$work/pytorch.model.h5" --quiet --device cpu
"$decant" run --model "$model" --statistics "$work/own.h5" --bit-widths 3 --output "$work/own3.model.h5" --quiet --device cpu
for name in pytorch own3; do
  "$decant" inspect "$work/$name.model.h5" --json | "$python" -c 'import json, sys; print(json.load(sys.stdin)["predicted_loss_increase"])' >"$work/$name.predicted"
done
"$python" -c 'import sys; a, b = (float(open(p).read()) for p in sys.argv[1:]); assert abs(a - b) < 1e-3 * b, (a, b)' "$work/pytorch.predicted" "$work/own3.predicted"

# ---- refused
tensor=model.layers.1.mlp.up_proj.weight
n=0
for case in "-1e-9|\[2, 7\] = -1e-09 is negative.*squared" "nan|\[2, 7\] = nan is not finite" "inf|\[2, 7\] = inf is not finite" \
  "drop|$tensor" "shape|$tensor" "zero|zero throughout"; do
  n=$((n + 1))
  "$python" "$work/make.py" "$work/bad$n" "$work/own.h5" "$tensor" "${case%%|*}"
  refused 3 "$tensor.*" "$work/bad$n" --sequences 4
  refused 3 "${case#*|}" "$work/bad$n" --sequences 4
done
refused 3 'is negative' "$model" --sequences 4 # the weights themselves: of both signs, as gradients are
refused 3 'absent' "$work/absent" --sequences 4
refused 2 'sequences' "$work/gradients"
echo "import of statistics: passed"
