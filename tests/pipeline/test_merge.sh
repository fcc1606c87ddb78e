#!/usr/bin/env bash
# `decant merge`: the sums of disjoint parts are those of one run within the bound of stages/merge.h, the same bytes on any
# number of ranks; the checksum is that of all tokens, the loss the mean; and what does not belong together is refused.
set -euo pipefail
decant=${DECANT_PROGRAM:?} source=${DECANT_TEST_SOURCE:?}
python=$source/.venv/bin/python
[[ -x $python ]] || python=python3
"$python" -c 'import h5py' 2>/dev/null || { echo "h5py is not here"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() { echo "FAILED: $*" >&2; exit 1; }

on() {
  local ranks=$1
  shift
  mpirun -n "$ranks" "$decant" "$@" --quiet --device cpu
}

# refused STATUS PATTERN FILE…: merging gives that exit status and one line that says why, and leaves no file.
refused() {
  local status=$1 pattern=$2 got=0
  shift 2
  on 2 merge "$@" --output "$work/no.h5" 2>"$work/err" || got=$?
  [[ $got == "$status" ]] || fail "merge $* gave $got, not $status: $(cat "$work/err")"
  [[ $(grep -c '^decant: ' "$work/err") == 1 ]] || fail "merge $* did not print one line: $(cat "$work/err")"
  grep -q -- "$pattern" "$work/err" || fail "merge $* does not say '$pattern': $(cat "$work/err")"
  [[ ! -e $work/no.h5 && ! -e $work/no.h5.partial ]] || fail "merge $* left a file"
}

model=$source/tests/reference/llama_mha
# Three parts of 1, 2 and 2 sequences of the five; whole: all of them.
"$python" - "$model/tokens.npy" "$work" <<'PY'
import sys
import numpy as np
tokens = np.load(sys.argv[1])
assert tokens.shape[0] == 5, tokens.shape
for name, rows in {"whole": tokens, "a": tokens[:1], "b": tokens[1:3], "c": tokens[3:], "short": tokens[:2, :-1]}.items():
    np.save(f"{sys.argv[2]}/{name}.npy", rows)
PY
calibrate() { # NAME TOKENS OPTIONS…
  local name=$1 tokens=$2
  shift 2
  on 1 calibrate --model "$model" --calibration "$work/$tokens.npy" --method guided --guided-groups 2 --micro-batch 1 \
    --output "$work/$name.h5" "$@"
}

for form in token sequence; do
  for part in whole a b c; do calibrate $form.$part $part --fisher $form; done
  for ranks in 1 2 3; do
    on $ranks merge "$work/$form".{a,b,c}.h5 --output "$work/$form.merged$ranks.h5"
    cmp "$work/$form.merged1.h5" "$work/$form.merged$ranks.h5" || fail "$ranks ranks give other bytes than 1"
  done
  "$decant" verify "$work/$form.merged1.h5" >/dev/null
  # In two steps: the list of parts and everything but roundings are the same.
  on 2 merge "$work/$form".{a,b}.h5 --output "$work/$form.ab.h5"
  on 2 merge "$work/$form".{ab,c}.h5 --output "$work/$form.steps.h5"
  "$python" - "$work/$form" <<'PY'
import sys
import h5py
import numpy as np

def sums(file):
    found = {}
    file.visititems(
        lambda path, item: found.update({path: item[:].astype(np.float64)}) if path.endswith(("/fisher", "/hessian")) else None)
    return found

whole = h5py.File(sys.argv[1] + ".whole.h5")
expected = sums(whole)
tokens = int(whole.attrs["sequences"] * whole.attrs["length"])
bound = 2 * tokens * 2.0**-24
assert len(expected) == 42
parts = [h5py.File(f"{sys.argv[1]}.{part}.h5") for part in "abc"]
for name in "merged1", "steps":
    merged = h5py.File(f"{sys.argv[1]}.{name}.h5")
    for key in "calibration_crc32", "sequences", "length", "fisher", "model_crc32", "micro_batch":
        assert merged.attrs[key] == whole.attrs[key], (key, merged.attrs[key], whole.attrs[key])
    assert abs(merged.attrs["loss"] / whole.attrs["loss"] - 1) < 1e-12
    assert merged["parts"][:].tolist() == [[int(p.attrs["calibration_crc32"]), int(p.attrs["sequences"])] for p in parts]
    found, worst = sums(merged), 0.0
    assert found.keys() == expected.keys()
    for path, sum in expected.items():
        difference = np.abs(found[path] - sum)
        if path.endswith("/hessian"):  # terms of both signs: a bound by the diagonal's, |H_ij| <= sqrt(H_ii H_jj)
            diagonal = np.sqrt(np.einsum("gii->gi", sum))
            sum = diagonal[:, :, None] * diagonal[:, None, :]
        assert (difference <= bound * sum).all(), (path, (difference / sum).max(), bound)
        worst = max(worst, float((difference[sum > 0] / sum[sum > 0]).max()))
        if name == "merged1":  # and nothing else than the parts' sum, rounded once
            exact = np.float32(np.sum([p[path][:].astype(np.float64) for p in parts], axis=0))
            assert (exact == found[path]).all(), path
    print(f"{sys.argv[1].rsplit('/')[-1]} {name}: worst relative difference {worst:.2e}, bound {bound:.2e}")
PY
done

# Merged statistics serve like any others.
on 2 run --model "$model" --statistics "$work/token.merged1.h5" --bits 5 --output "$work/m.h5"
on 1 run --model "$model" --statistics "$work/token.whole.h5" --bits 5 --output "$work/w.h5"
"$python" - "$work" <<'PY'
import sys
import h5py
m, w = (h5py.File(f"{sys.argv[1]}/{name}.h5").attrs for name in "mw")
assert m["calibration_crc32"] == w["calibration_crc32"] and m["calibration_sequences"] == 5
assert abs(m["predicted_loss_increase"] / w["predicted_loss_increase"] - 1) < 1e-3
PY

# ---- what does not belong together
refused 3 'already in the sum' "$work"/token.{a,b,a}.h5
refused 3 'already in the sum' "$work"/token.{merged1,b}.h5
refused 3 'differ in --fisher' "$work"/token.a.h5 "$work/sequence.b.h5"
calibrate short short
refused 3 'sequences of' "$work/token.c.h5" "$work/short.h5"
other=$source/tests/reference/llama_gqa_tied
on 1 calibrate --model "$other" --calibration "$other/tokens.npy" --output "$work/other.h5"
refused 3 'two models' "$work/token.a.h5" "$work/other.h5"
# One weight of one matrix changed makes another model.
mkdir "$work/changed" && cp "$model/config.json" "$work/changed" && "$python" - "$model" "$work/changed" <<'PY'
import json, struct, sys
raw = bytearray(open(sys.argv[1] + "/model.safetensors", "rb").read())
size = struct.unpack("<Q", raw[:8])[0]
begin = 8 + size + json.loads(raw[8 : 8 + size])["model.layers.1.mlp.up_proj.weight"]["data_offsets"][0]
raw[begin] ^= 1
open(sys.argv[2] + "/model.safetensors", "wb").write(raw)
PY
on 2 calibrate --model "$work/changed" --calibration "$work/b.npy" --micro-batch 1 --output "$work/changed.h5"
refused 3 'two models' "$work/token.a.h5" "$work/changed.h5"
refused 3 'not statistics' "$work/token.a.h5" "$work/m.h5"
cp "$work/token.b.h5" "$work/damaged.h5" && "$python" - "$work/damaged.h5" <<'PY'
import sys
import h5py
with h5py.File(sys.argv[1]) as file:
    place = file["model.layers.1.mlp.up_proj/fisher"].id.get_offset() + 101
with open(sys.argv[1], "r+b") as file:
    file.seek(place)
    byte = file.read(1)[0]
    file.seek(place)
    file.write(bytes([byte ^ 1]))
PY
refused 3 'damaged.h5: dataset /model.layers.1.mlp.up_proj/fisher is damaged' "$work/token.a.h5" "$work/damaged.h5"
# set_sum FILE COPY VALUE: whole by its checksums, with VALUE as a sum of one matrix.
set_sum() {
  cp "$1" "$2" && PYTHONPATH=$source/tests/pipeline "$python" - "$2" "$3" <<'PY'
import sys, zlib
import change_container, h5py
with h5py.File(sys.argv[1], "r+", libver=("v108", "v110")) as file:
    sums = file["model.layers.1.mlp.up_proj/fisher"]
    sums[3, 5] = float(sys.argv[2])
    sums.attrs["crc32"] = type(sums.attrs["crc32"])(zlib.crc32(sums[:].tobytes()))
change_container.seal(sys.argv[1])
PY
}
for part in a b; do set_sum "$work/token.$part.h5" "$work/near.$part.h5" 3e38; done
set_sum "$work/token.b.h5" "$work/inf.h5" inf
on 2 merge "$work/near.a.h5" "$work/token.b.h5" --output "$work/near.h5"
"$decant" verify "$work/near.h5" >/dev/null
place='/model.layers.1.mlp.up_proj/fisher is not finite in F32 at row 3, column 5'
refused 3 "the sum of all files: $place; merge fewer files" "$work"/near.{a,b}.h5 "$work/token.c.h5"
refused 3 "inf.h5: $place; make the file again" "$work"/token.a.h5 "$work/inf.h5"
refused 2 'two statistics files' "$work/token.a.h5"
before=$(sha256sum "$work/token.ab.h5") got=0
on 2 merge "$work"/token.{a,c}.h5 --output "$work/token.ab.h5" 2>/dev/null || got=$?
[[ $got == 2 && $(sha256sum "$work/token.ab.h5") == "$before" ]] || fail "an existing output was harmed"
echo "merge: passed"
