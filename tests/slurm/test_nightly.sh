#!/usr/bin/env bash
# launch/nightly as a job of a real Slurm of one node, as scrontab would run it: a first night through srun, with the bytes
# of mpirun, and one where nothing changed. Skipped (77) where Slurm cannot start.
set -euo pipefail
decant=${DECANT_PROGRAM:?} source=${DECANT_TEST_SOURCE:?}
python=$source/.venv/bin/python
[[ -x $python ]] || python=python3
"$python" -c 'import h5py' 2>/dev/null || { echo "h5py is not here"; exit 77; }
work=$(mktemp -d)
"$source/tests/slurm/one_node" start "$work/slurm" || { status=$?; rm -rf "$work"; exit $status; }
trap '"$source/tests/slurm/one_node" stop "$work/slurm"; rm -rf "$work"' EXIT
export SLURM_CONF=$work/slurm/slurm.conf
cd "$work"

model=$source/tests/reference/llama_mha
printf '%s\n' "model = $model" "calibration = $model/tokens.npy" "bits = 6" "device = cpu" "quiet = yes" >job.ini
{ cat job.ini; printf '%s\n' "folder = $work/night" "decant = $decant"; } >nightly.ini
night() { sbatch --wait --ntasks=2 --output=night.log --wrap="exec $source/launch/nightly $work/nightly.ini" >/dev/null; }

night || { cat night.log night/*.log >&2; exit 1; }
mpirun -n 1 "$decant" run --config job.ini --output "$work/plain.h5"
cmp plain.h5 night/current.h5
night || { cat night.log >&2; exit 1; }
grep -q 'nothing has changed' night.log
[[ $(find night -name '????-*.h5' | wc -l) == 1 ]]
echo "nightly under Slurm: passed"
