#!/usr/bin/env bash
# A sample of the fault sweep: in every stage, on every rank, memory runs out once, and every other kind of fault comes once.
# DECANT_TEST_FAULTS: that many faults of each kind, in each stage, on each rank, of each job, instead.
set -euo pipefail
. "${DECANT_TEST_SOURCE:?}/tests/pipeline/command.sh"
[[ -z ${DECANT_TEST_SANITIZED:-} ]] || { echo "sanitizers bear no preloaded library"; exit 77; }
python3 "$source/tests/faults/sweep.py" --program "$decant" --inject "$1" --model "$source/tests/reference/llama_mha" \
  --folder "$work" --each "${DECANT_TEST_FAULTS:-0}"
