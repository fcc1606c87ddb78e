#!/usr/bin/env bash
# What commands make of OPT, with norms before and behind the halves of a block: statistics, merged ones too, give what a
# whole job gives; validation does not depend on the ranks; methods of all kinds; and sequences end where positions do.
# Losses, ranks and streaming are in test_families.sh, exports in test_export.sh.
set -euo pipefail
. "${DECANT_TEST_SOURCE:?}/tests/pipeline/command.sh"

one() { "$decant" "$@" --quiet --device cpu; }

for name in opt_before opt_behind; do
  model=$source/tests/reference/$name
  tokens=$model/tokens.npy
  run=(run --model "$model" --bits 8 --bit-widths 2-8)

  # ---- statistics, and validation on 1 and 2 ranks
  one "${run[@]}" --calibration "$tokens" --output "$work/one.h5"
  on 2 calibrate --model "$model" --calibration "$tokens" --output "$work/statistics.h5"
  one "${run[@]}" --statistics "$work/statistics.h5" --output "$work/from.h5"
  "$decant" compare "$work/one.h5" "$work/from.h5" >/dev/null || fail "$name: statistics give another container"
  "$decant" verify "$work/one.h5" >/dev/null || fail "$name: verify"
  "$decant" inspect "$work/one.h5" | grep -q 'model.decoder.layers.1.self_attn.out_proj' || fail "$name: inspect"
  for ranks in 1 2; do
    on $ranks validate "$work/one.h5" --model "$model" --text "$tokens" --json |
      python3 -c 'import json, sys; found = json.load(sys.stdin); print(found["kl_divergence"], found["perplexity_quantized"])' \
        >"$work/validated.$ranks"
  done
  cmp "$work/validated.1" "$work/validated.2" || fail "$name: validation depends on the ranks"

  # ---- parts of the calibration, merged on any number of ranks; and all of it as one long row, for below
  python3 - "$tokens" "$work" <<'PY'
import sys
raw = open(sys.argv[1], "rb").read()
header, row = raw.index(b"\n") + 1, 4 * 37
assert b"(5, 37)" in raw[:header] and len(raw) == header + 5 * row
for name, shape, first, end in ("a", b"(2, 37)", 0, 2), ("b", b"(3, 37)", 2, 5), ("row", b"(185,) ", 0, 5):
    data = raw[header + first * row : header + end * row]
    open(f"{sys.argv[2]}/{name}.npy", "wb").write(raw[:header].replace(b"(5, 37)", shape) + data)
PY
  for part in a b; do one calibrate --model "$model" --calibration "$work/$part.npy" --output "$work/$part.h5"; done
  for ranks in 1 2; do on $ranks merge "$work/a.h5" "$work/b.h5" --output "$work/merged.$ranks.h5"; done
  cmp "$work/merged.1.h5" "$work/merged.2.h5" || fail "$name: merging depends on the ranks"
  one "${run[@]}" --statistics "$work/merged.1.h5" --output "$work/merged.h5"

  # ---- a row that is shorter than one window is told with the option that makes windows shorter
  expect 3 'row.npy: its 185 tokens are fewer than one window of 186; take more of them, or a smaller --window$' \
    one "${run[@]}" --calibration "$work/row.npy" --window 186 --output "$work/long.h5"
  expect 3 'fewer than one window of 2048; take more of them, or a smaller --validation-window$' \
    one validate "$work/one.h5" --text "$work/row.npy"

  # ---- 96 positions are learned: one more is refused
  expect 3 'has learned 96 positions .*; take a smaller --window$' one "${run[@]}" --calibration "$work/row.npy" --window 97 --output "$work/long.h5"
  expect 3 'has learned 96 positions' "$decant" plan --model "$model" --ranks 2 --window 97
  expect 3 'has learned 96 positions .*; take a smaller --validation-window$' one validate "$work/one.h5" --model "$model" --text "$work/row.npy" --validation-window 97
  [[ ! -e $work/long.h5 ]] || fail "$name: a refused job left a file"
  one validate "$work/one.h5" --model "$model" --text "$work/row.npy" --validation-window 96 >/dev/null

  # ---- machines whose files differ: other sequences, of which one rank would refuse its own; the same tokens in other windows
  each=("$decant" calibrate --model "$model" --output "$work/differ.h5" --quiet --device cpu)
  for windows in "97 37" "37 97" "5 37"; do
    expect 3 'row.npy is not the same on rank [12] and rank 0' timeout 60 mpirun \
      -n 1 "${each[@]}" --calibration "$work/row.npy" --window "${windows% *}" : \
      -n 1 "${each[@]}" --calibration "$work/row.npy" --window "${windows#* }"
  done
  rm "$work"/*
done

expect 3 'config.json is not the same on rank [12] and rank 0' timeout 60 mpirun \
  -n 1 "${each[@]}" --calibration "$source/tests/reference/opt_before/tokens.npy" : \
  -n 1 "${each[@]}" --calibration "$source/tests/reference/opt_before/tokens.npy" --model "$source/tests/reference/opt_before"

# ---- other methods, and sensitivities measured on the model
model=$source/tests/reference/opt_behind
one run --model "$model" --method guided --bit-widths 2,3 --bits 8 --calibration "$model/tokens.npy" --text "$model/tokens.npy" \
  --output "$work/guided.h5" >/dev/null
one run --model "$model" --method higgs,rtn --bits 5 --sensitivity measured --sensitivity-sequences 2 \
  --calibration "$model/tokens.npy" --text "$model/tokens.npy" --output "$work/measured.h5" >/dev/null
echo "opt: passed"
