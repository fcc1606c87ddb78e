#!/usr/bin/env bash
# launch/decant.sbatch without Slurm, under mpirun: runs through, refuses what the plan refuses, and leaves with decant's own 75
# when it is signalled; the same command goes on, and ends with the undisturbed bytes. tests/slurm/test_batch.sh is its twin.
set -euo pipefail
export DECANT=${DECANT_PROGRAM:?} RANKS=2
source=${DECANT_TEST_SOURCE:?}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

fail() { echo "FAILED: $*" >&2; cat said >&2; exit 1; }
# batch STATUS PATTERN: here, in the background or not
batch() {
  local got=0
  "$source/launch/decant.sbatch" job.ini >said 2>&1 || got=$?
  [[ $got == "$1" ]] || fail "the job ended with $got, not $1"
  grep -q -- "$2" said || fail "the job does not say '$2'"
}

model=$source/tests/reference/llama_mha
python3 -c 'import numpy as np; t = np.load("'"$model"'/tokens.npy"); np.save("long.npy", np.concatenate([np.roll(t, i, 1) for i in range(10)]))'
printf '%s\n' "model = $model" "calibration = $work/long.npy" "bits = 5" "micro-batch = 1" \
  "device = cpu" "output = $work/job.h5" >job.ini
mpirun -n 1 "$DECANT" run --config job.ini --quiet --output "$work/undisturbed.h5"

batch 0 'decant.sbatch: done'
cmp job.h5 undisturbed.h5 || fail "other bytes than mpirun's"
batch 2 'stopped with 2' # the output exists
rm job.h5

echo 'checkpoint-every = 0' >>job.ini
got=0 tries=0
until [[ $got == 75 ]]; do # the job may be over before the signal comes
  [[ $got == 0 ]] || fail "a signalled job ended with $got"
  ((tries++ < 20)) || fail "the job is over before it can be signalled"
  rm -rf job.h5*
  "$source/launch/decant.sbatch" job.ini >said 2>&1 &
  while kill -0 $! 2>/dev/null && [[ ! -e job.h5.work/calibration.h5 ]]; do sleep 0.01; done
  kill -USR1 $! 2>/dev/null || true
  got=0
  wait $! || got=$?
done
grep -q 'decant saved its work (75); run it again to go on' said || fail "it does not say that it can go on"
[[ ! -e job.h5 ]] || fail "a signalled job left an output"
batch 0 'going on after'
cmp job.h5 undisturbed.h5 || fail "a job that went on gives other bytes"

# ---- a step that was not launched, for which srun may say 0, is a failure
rm job.h5
printf '#!/bin/bash\n[[ $1 == run ]] || exec %s "$@"\n' "$DECANT" >unlaunched
chmod +x unlaunched
DECANT=$work/unlaunched batch 5 'decant failed with 5'

# ---- a job file from an editor that ends lines otherwise, with a comment and a path that decant takes
cp job.ini unix.ini
rm -f job.h5
sed 's,^output = .*,output = job;1.h5 ; the container,; s/$/\r/' unix.ini >job.ini
batch 0 'decant.sbatch: done'
cmp 'job;1.h5' undisturbed.h5 || fail "other bytes by another job file"
cp unix.ini job.ini

# ---- under Slurm, whose programs others stand in for: three times back into the queue, and not for ever where that cannot be counted
mkdir bin
printf '#!/bin/bash\nshift\nexec mpirun -n 2 "$@"\n' >bin/srun
printf '#!/bin/bash\necho "$@" >>%s\n' "$work/requeued" >bin/scontrol
chmod +x bin/*
failing() { SLURM_JOB_ID=7 SLURM_NTASKS=2 PATH=$work/bin:$PATH DECANT=$work/unlaunched batch 5 "$1"; }
for _ in 1 2 3; do failing 'decant failed with 5: back into the queue'; done
failing 'for the last time; retried 3 times'
[[ $(cat requeued) == $'requeue 7\nrequeue 7\nrequeue 7' ]] || fail "went back into the queue otherwise: $(cat requeued)"
mkdir decant-7.failures # nothing can be written there
failing 'failed with 5, and cannot count that in'
[[ $(wc -l <requeued) == 3 ]] || fail "goes back into the queue without counting: $(cat requeued)"
rmdir decant-7.failures

echo 'host-memory = 1M' >>job.ini
batch 4 'nothing was started'
[[ ! -e job.h5 && $(compgen -G '*.failures' || true) == "" ]] || fail "left over: $(ls)"
echo "decant.sbatch without Slurm: passed"
