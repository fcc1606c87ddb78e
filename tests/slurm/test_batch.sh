#!/usr/bin/env bash
# launch/decant.sbatch on a real Slurm of one node: a job that runs through, one whose plan does not fit, bad input, a job
# that is signalled twice, leaves with 75, is requeued and ends with the undisturbed job's bytes, and a device that fails for
# good, for which a program stands in.
# Skipped (77) where Slurm cannot start.
set -euo pipefail
decant=${DECANT_PROGRAM:?} source=${DECANT_TEST_SOURCE:?}
work=$(mktemp -d)
"$source/tests/slurm/one_node" start "$work/slurm" || { status=$?; rm -rf "$work"; exit $status; }
trap '"$source/tests/slurm/one_node" stop "$work/slurm"; rm -rf "$work"' EXIT
export SLURM_CONF=$work/slurm/slurm.conf
cd "$work"

fail() {
  echo "FAILED: $*" >&2
  tail -n 30 ./*.log >&2
  exit 1
}

# The two lines that a user changes; the program is given through the environment.
sed 's/^#SBATCH --nodes.*/#SBATCH --nodes=1 --ntasks-per-node=2/' "$source/launch/decant.sbatch" >decant.sbatch
! cmp -s decant.sbatch "$source/launch/decant.sbatch" || fail "the marked line is not there"

model=$source/tests/reference/llama_mha
ini() { # NAME OUTPUT EXTRA…: a job file
  printf '%s\n' "model = $model" "calibration = $model/tokens.npy" "bits = 5" "micro-batch = 2" "device = cpu" "quiet = yes" \
    "output = $work/$2" "${@:3}" >"$1.ini"
}
submit() { # PROGRAM JOB: the job's number
  DECANT=$1 sbatch --parsable decant.sbatch "$2.ini"
}
# over JOB: whether it came to its end. One that waits for two minutes, having been requeued, is let start at once, but not in
# the second in which it was: Slurm holds its credentials void until that is over.
over() {
  local now
  now=$(scontrol show job "$1")
  [[ ! $now =~ JobState=(COMPLETED|FAILED|CANCELLED) ]] || return 0
  if [[ $now == *Reason=BeginTime* ]]; then sleep 1.1 && scontrol update JobId="$1" StartTime=now; fi
  return 1
}
ended() { until over "$1"; do sleep 0.1; done; }
# expect JOB STATUS PATTERN
expect() {
  ended "$1"
  local exit_code
  exit_code=$(scontrol show job "$1" | sed -n 's/.* ExitCode=\([0-9]*\):.*/\1/p')
  [[ $exit_code == "$2" ]] || fail "job $1 ended with $exit_code, not $2"
  grep -q -- "$3" "decant-$1.log" || fail "job $1 does not say '$3'"
  [[ ! -e decant-$1.failures ]] || fail "job $1 left its count of failures"
}
restarts() { scontrol show job "$1" | sed -n 's/.*Restarts=\([0-9]*\).*/\1/p'; }

# ---- runs through: the bytes of mpirun
ini plain plain.h5
job=$(submit "$decant" plain)
expect "$job" 0 'decant.sbatch: done'
grep -q '2 ranks: 2 stages' "decant-$job.log" || fail "no plan in the log"
mpirun -n 1 "$decant" run --config plain.ini --output "$work/mpirun.h5"
cmp plain.h5 mpirun.h5 || fail "Slurm gives other bytes than mpirun"

# ---- the plan refuses; bad input stops; neither is requeued
ini hopeless no.h5 'host-memory = 1M'
job=$(submit "$decant" hopeless)
expect "$job" 4 'nothing was started'
[[ $(restarts "$job") == 0 ]] || fail "a hopeless job was requeued"
ini bad no.h5 'text = absent.npy'
job=$(submit "$decant" bad)
expect "$job" 3 'absent.npy'
[[ $(restarts "$job") == 0 ]] || fail "a job with bad input was requeued"

# ---- signalled while it calibrates, twice: decant leaves with 75 each time, and ends with the undisturbed job's bytes
python3 -c 'import numpy as np; t = np.load("'"$model"'/tokens.npy"); np.save("long.npy", np.concatenate([np.roll(t, i, 1) for i in range(30)]))'
sed "s,^calibration.*,calibration = $work/long.npy,; /^micro-batch/d; /^quiet/d; /^output/d" plain.ini >long.ini
echo "micro-batch = 1" >>long.ini
mpirun -n 1 "$decant" run --config long.ini --quiet --output "$work/undisturbed.h5"
printf '%s\n' "checkpoint-every = 0" "output = $work/signalled.h5" >>long.ini
# signalled SIGNAL: once there is a checkpoint of this run; what --signal=B:USR1@120 sends ahead of the limit, or TERM, as on
# preemption. False when the job was over before.
signalled() {
  local mark
  mark=$(checkpoint)
  while [[ $(checkpoint) == "$mark" ]]; do
    ! over "$job" || return 1
    sleep 0.02
  done
  scancel --batch --signal="$1" "$job" || return 1
}
checkpoint() { stat -c %Y%i signalled.h5.work/calibration.h5 2>/dev/null || true; }
# requeued TIMES: it was, after decant left by itself. False when the signal came after the calibration, which it ends like
# any other program.
requeued() {
  until [[ $(restarts "$job") == "$1" ]]; do
    ! over "$job" || return 1
    sleep 0.05
  done
  [[ $(grep -c 'decant saved its work (75): back into the queue' "decant-$job.log") == "$1" ]]
}
for _ in {1..20}; do # the calibration may be over before the signal comes
  rm -rf signalled.h5*
  job=$(submit "$decant" long)
  if signalled USR1 && requeued 1 && signalled TERM && requeued 2; then break; fi
  scancel "$job" || true
  ended "$job"
done
expect "$job" 0 'decant saved its work (75): back into the queue'
[[ $(restarts "$job") == 2 ]] || fail "the signalled job was restarted $(restarts "$job") times, not twice"
[[ $(grep -c 'interrupted, can be resumed: ' "decant-$job.log") == 2 ]] || fail "decant did not leave by itself"
[[ $(grep -c 'going on after' "decant-$job.log") == 2 ]] || fail "decant began anew"
cmp undisturbed.h5 signalled.h5 || fail "the requeued job gives other bytes"
[[ ! -e signalled.h5.work ]] || fail "a complete job left its work directory"

# ---- a device that fails for good: three more times, then no more
cat >fails <<STANDIN
#!/bin/bash
[[ \$1 == run ]] || exec "$decant" "\$@"
[[ \$SLURM_PROCID != 0 ]] || echo run >>"$work/runs"
exit 5
STANDIN
chmod +x fails
ini failing no.h5
job=$(submit "$work/fails" failing)
expect "$job" 5 'for the last time'
[[ $(wc -l <runs) == 4 ]] || fail "the failing job ran $(wc -l <runs) times, not 4"
[[ ! -e no.h5 ]] || fail "a job that failed left an output"
echo "decant.sbatch: passed"
