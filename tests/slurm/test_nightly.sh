#!/usr/bin/env bash
# tests/launch/test_nightly.sh on a real Slurm of one node: every night is a job, as scrontab would run it, and steps of srun
# compute. Skipped (77) where Slurm cannot start.
set -euo pipefail
source=${DECANT_TEST_SOURCE:?}
slurm=$(mktemp -d)
"$source/tests/slurm/one_node" start "$slurm" || { status=$?; rm -rf "$slurm"; exit $status; }
trap '"$source/tests/slurm/one_node" stop "$slurm"; rm -rf "$slurm"' EXIT
export SLURM_CONF=$slurm/slurm.conf DECANT_TEST_SLURM=yes
bash "$source/tests/launch/test_nightly.sh"
