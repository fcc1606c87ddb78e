#!/usr/bin/env bash
# Killed jobs on OPT, whose blocks have biases, learned positions and norms before or behind their halves, go on to the bytes
# of an undisturbed one: resident and streamed, on other numbers of ranks. What they share with other families is in
# test_resume.sh and test_resume_streamed.sh. DECANT_TEST_KILLS: how many kills at random moments (2), DECANT_TEST_SEED: which.
set -euo pipefail
. "${DECANT_TEST_SOURCE:?}/tests/pipeline/command.sh"
. "$source/tests/pipeline/interrupted.sh"

tokens=$work/tokens.npy # 14 sequences, so 14 micro-batches of one
for name in opt_before opt_behind; do
  model=$source/tests/reference/$name
  python3 - "$model/tokens.npy" "$tokens" <<'PY'
import sys
import numpy as np
five = np.load(sys.argv[1])
np.save(sys.argv[2], np.concatenate([np.roll(five, shift, axis=1) for shift in range(3)])[:14])
PY
  run=(run --model "$model" --calibration "$tokens" --text "$model/tokens.npy" --micro-batch 1 --bits 8 --bit-widths 2-8 --device cpu)
  rm -f "$work/whole.h5"
  through 1 "${run[@]}" --output "$work/whole.h5"
  for memory in resident streamed; do
    killed=("${run[@]}" --memory $memory --replicas 1 --checkpoint-every 0) out=$work/$memory.h5
    saved=calibration.h5
    [[ $memory == resident ]] || saved=boundary.1.h5
    until [[ -e $out.work/$saved && ! -e $out ]]; do
      rm -rf "$out"*
      begin 2 "$out" "${killed[@]}"
      wait_for "$out.work/$saved" || true
      kill_all "$out"
      finish
    done
    for ranks in 1 3; do
      cp -r "$out.work" "$work/resumed.h5.work"
      through $ranks "${killed[@]}" --output "$work/resumed.h5"
      grep -q 'going on after' "$work/err" || fail "$name, $memory: not resumed: $(cat "$work/err")"
      cmp "$work/whole.h5" "$work/resumed.h5" || fail "$name, $memory: a job that went on with $ranks ranks gives other bytes"
      rm -r "$work"/resumed.h5*
    done
    rm -r "$out"*
    python3 "$source/tests/pipeline/kill_loop.py" "${DECANT_TEST_KILLS:-2}" "${DECANT_TEST_SEED:-$RANDOM}" "$work/whole.h5" \
      "$work/random.h5" 3,3,1,3,2 "$decant" "${killed[@]}"
    rm -rf "$work"/random.h5*
  done
done
echo "resumed OPT jobs: passed"
