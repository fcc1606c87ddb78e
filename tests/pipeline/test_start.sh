#!/usr/bin/env bash
# Started by nobody, a process starts no daemon of Open MPI's; under mpirun ranks find each other, and a command of one process
# says that it is one.
set -euo pipefail
. "${DECANT_TEST_SOURCE:?}/tests/pipeline/command.sh"
unset OMPI_MCA_ess_singleton_isolated
model=$source/tests/reference/llama_mha

job() { "${@:2}" "$decant" run --model "$model" --calibration "$model/tokens.npy" --bits 5 --device cpu --output "$work/$1.h5" --log "$work/$1.jsonl" 2>"$work/$1.err"; }

# Where OPAL_BINDIR holds no orted, a process that wants one ends in MPI_Init.
mkdir "$work/bin"
if job daemon env OPAL_BINDIR="$work/bin" OMPI_MCA_ess_singleton_isolated=0; then
  echo "this MPI starts no daemon for a process of its own"
else
  [[ ! -e $work/daemon.h5 ]] || fail "a job without MPI wrote"
fi
job alone env OPAL_BINDIR="$work/bin" || fail "alone, it wants a daemon: $(cat "$work/alone.err")"
grep -q 'on 1 rank,' "$work/alone.err" || fail "alone: $(cat "$work/alone.err")"
for ranks in 1 2; do
  job $ranks mpirun -n $ranks || fail "$ranks under mpirun: $(cat "$work/$ranks.err")"
  grep -q "on $ranks rank" "$work/$ranks.err" || fail "$ranks under mpirun: $(cat "$work/$ranks.err")"
  cmp "$work/alone.h5" "$work/$ranks.h5" || fail "other bytes on $ranks ranks"
done

# ---- commands of one process
container=$work/alone.h5
while read -r -a command; do
  mpirun -n 1 "$decant" "${command[@]}" >"$work/out" 2>"$work/err" || fail "one ${command[0]} under mpirun: $(cat "$work/err")"
  [[ ${command[0]} != export ]] || rm -r "$work/exported"
  expect 2 'this command is one process, and 3 were started; start it without mpirun or srun' mpirun -n 3 "$decant" "${command[@]}"
  [[ ! -s $work/out ]] || fail "three times ${command[0]}: $(cat "$work/out")"
done <<COMMANDS
export $container --output $work/exported
inspect $container
verify $container
compare $container $container
allocate $container --bits 5
plan --model $model --ranks 2
COMMANDS
[[ ! -e $work/exported && ! -e $work/exported.partial ]] || fail "a refused export left a folder"
echo "start: passed"
