#!/usr/bin/env bash
# launch/nightly: a first night, one where nothing changed, one with files touched, nights with one tensor changed (that matrix
# alone is quantized again, and the container is that of a whole run with the same statistics), statistics made anew, a bad
# model that the gate refuses, a container that is damaged, a bad file, settings that cannot be read, nights that are interrupted
# and go on, retention, and the lock.
# tests/slurm/test_nightly.sh runs this as jobs of a real Slurm.
set -euo pipefail
decant=${DECANT_PROGRAM:?} source=${DECANT_TEST_SOURCE:?}
python=$source/.venv/bin/python
[[ -x $python ]] || python=python3
"$python" -c 'import h5py' 2>/dev/null || { echo "h5py is not here"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

fail() { echo "FAILED: $*" >&2; cat said night/report.txt night/*.log >&2; exit 1; }

# begin OPTIONS…: a night, here or as a job of Slurm; `job` is its number, what it says is in `said`.
begin() {
  : >asked
  got=
  while [[ $(printf '%(%s)T' -1) == "${ended-}" ]]; do sleep 0.01; done # nights are named by the second
  if [[ ${DECANT_TEST_SLURM-} ]]; then
    job=$(sbatch --parsable --ntasks=2 --output=said --wrap="exec $source/launch/nightly $work/nightly.ini $*")
  else
    "$source/launch/nightly" nightly.ini "$@" >said 2>&1 &
    job=$!
  fi
}
over() { [[ $(scontrol show job "$job") =~ JobState=(COMPLETED|FAILED|CANCELLED) ]]; } # a job of Slurm
# finish: its exit status in `got`.
finish() {
  got=0
  if [[ ${DECANT_TEST_SLURM-} ]]; then
    until over; do sleep 0.1; done
    got=$(scontrol show job "$job" | sed -n 's/.* ExitCode=\([0-9]*\):.*/\1/p')
  else
    wait "$job" || got=$?
  fi
  printf -v ended '%(%s)T' -1
}
asked() { grep -c "^$1 " asked || true; }
# night STATUS CALIBRATIONS RUNS PATTERN OPTIONS…: the exit status, how often decant was asked, a line of the report.
night() {
  local status=$1 calibrations=$2 runs=$3 pattern=$4
  shift 4
  begin "$@"
  finish
  [[ $got == "$status" ]] || fail "the night gave $got, not $status"
  [[ $(asked calibrate) == "$calibrations" && $(asked run) == "$runs" ]] || fail "decant was asked: $(cat asked)"
  grep -q -- "$pattern" said || fail "the night does not say '$pattern'"
}
says() { for pattern in "$@"; do grep -q -- "$pattern" said || fail "the night does not say '$pattern'"; done; }
containers() { find night -name '????-*.h5' ! -name '*.statistics.h5' | wc -l; }
change() { "$python" "$source/tests/pipeline/change_tensor.py" model "$@"; }
# whole NAME OPTIONS…: current.h5 is the container of a run by hand that takes nothing over.
whole() {
  mpirun -n 1 "$decant" run --model model --text model/tokens.npy --bits 6 --device cpu --quiet --output "$1.h5" "${@:2}" >/dev/null
  cmp night/current.h5 "$1.h5" || fail "not the container of decant run: $*"
}

cp -r "$source/tests/reference/llama_mha" model
cat >program <<STANDIN
#!/bin/bash
[[ \${OMPI_COMM_WORLD_RANK:-\${PMIX_RANK:-0}} != 0 ]] || echo "\$@" >>$work/asked
[[ ! -e $work/unlaunched || \$1 != run ]] || exit 0
exec "$decant" "\$@"
STANDIN
chmod +x program
cat >nightly.ini <<INI
model = $work/model
calibration = $work/model/tokens.npy
text = $work/model/tokens.npy
bits = 6
micro-batch = 1
device = cpu
quiet = yes
folder = $work/night
nights = 2
worse = 20
ranks = 2
decant = $work/program
INI

# ---- a setting that cannot be read costs no work
cp nightly.ini right.ini
for line in 'nights = many' 'worse = nan' 'refresh = all' 'ranks = 0' 'reuse = maybe'; do
  { grep -v "^${line%% *} " right.ini; echo "$line"; } >nightly.ini
  night 3 0 0 "nightly.ini: $line: is n"
done
cp right.ini nightly.ini

# ---- nightly.ini is read as decant reads a job file: a mark before UTF-8, other line ends, blanks, colons, comments, sections
{ printf '\xEF\xBB\xBF'; sed 's/^folder = /  folder: /; s/^nights = 2/&\t; of 7/; s/^worse = .*/[gate]\n&/; s/$/\r/' right.ini; } >nightly.ini
grep -q 'folder:' nightly.ini && grep -q 'gate' nightly.ini && grep -q 'of 7' nightly.ini || fail "not another job file: $(cat nightly.ini)"

# ---- the first night, and one where nothing has changed
night 0 1 1 'there is no container yet'
says 'statistics are made anew: there are none yet'
first=$(readlink night/current.h5)
whole plain --calibration model/tokens.npy --micro-batch 1
night 0 0 0 "nothing has changed since ${first%.h5}"
touch model/model.safetensors model/config.json
night 0 0 0 'nothing has changed'

# ---- a container that is damaged is not said to be as it should be
cp "night/$first" whole.h5
printf 'damaged' | dd of="night/$first" bs=1 seek=$(($(stat -c %s whole.h5) / 2)) conv=notrunc status=none
! cmp -s "night/$first" whole.h5 || fail "nothing is damaged"
night 3 0 0 'nothing has changed, but decant: .*current.h5'
cp whole.h5 "night/$first"
night 0 0 0 'nothing has changed since'

# ---- one tensor: that matrix, what gets other bits for it, and nothing else; the statistics are kept
change model.layers.1.mlp.up_proj.weight 'w * np.float32(1.25)'
night 0 0 1 'model.layers.1.mlp.up_proj.weight has changed'
[[ $(grep -c 'has changed$' said) == 1 ]] || fail "other tensors than the one"
says "statistics are kept, ${first%.h5}.statistics.h5: 1 of 30 tensors have changed since" \
  'quantized anew: model.layers.1.mlp.up_proj, its weights have changed'
[[ $(grep -c 'its weights' said) == 1 ]] || fail "other matrices than the one"
taken=$(sed -n 's/.*as before: \([0-9]*\) of 21 matrices.*/\1/p' said)
others=$(sed -n 's/.*quantized anew: \([0-9]*\) that get other bits.*/\1/p' said)
((taken + ${others:-0} == 20 && taken > 0)) || fail "$taken are as before, $others get other bits"
second=$(readlink night/current.h5)
[[ $second != "$first" && $(containers) == 2 ]] || fail "the second container is not there"
whole second --statistics "night/${first%.h5}.statistics.h5" --old-statistics
change model.norm.weight 'w * np.float32(1.001)' # one that is not quantized
night 0 0 1 'model.norm.weight has changed'
says 'as before: 21 of 21 matrices'
whole third --statistics "night/${first%.h5}.statistics.h5" --old-statistics
[[ $(containers) == 2 && ! -e night/$first ]] || fail "retention keeps other nights than the last two"

# ---- statistics are made anew when asked to, when too much has changed, and when tokens have
night 0 1 1 'new statistics are asked for' --refresh-statistics
says 'statistics are made anew: as was asked' 'everything is quantized anew: statistics_model_crc32'
whole refreshed --calibration model/tokens.npy --micro-batch 1
[[ $(find night -name '*.statistics.h5' | wc -l) == 1 ]] || fail "statistics of before are kept: $(ls night)"
for block in 0 1 2; do change model.layers.$block.mlp.down_proj.weight 'w * np.float32(1.01)'; done
change model.layers.0.self_attn.q_proj.weight 'w * np.float32(1.01)'
night 0 1 1 'statistics are made anew: 4 of 30 tensors have changed since, more than 10 %'
whole many --calibration model/tokens.npy --micro-batch 1
current=$(readlink night/current.h5)

# ---- what a full disk or a crash left of the notes of a night is told, in a line, and not as what the gate refuses
cp -a night night.before
: >"night/${current%.h5}.json"
night 3 0 0 "nightly: .*/night/${current%.h5}.json is damaged"
cp night.before/*.json night
: >night/begun.json
night 3 0 0 'nightly: .*/night/begun.json is damaged .*; without it the next call begins a night anew'
rm night/begun.json
night 0 0 0 'nothing has changed since'
: >"night/${current%.h5}.statistics.json"
change model.norm.weight 'w * np.float32(1.001)'
night 0 1 1 "statistics are made anew: ${current%.h5}.statistics.json is damaged"
rm -rf night && mv night.before night

# ---- retention when the clock was set back: the container that is kept is the one just made
mkdir later && for file in night/"${current%.h5}".*; do cp "$file" "later/2999-12-31T235959.${file#*.}"; done
for file in night/????-*; do [[ $file == *.log ]] || rm "$file"; done
cp later/* night
ln -sfn 2999-12-31T235959.h5 night/current.h5
sed -i "s/${current%.h5}.statistics.h5/2999-12-31T235959.statistics.h5/" night/2999-12-31T235959.json
sed -i 's/^nights = 2/nights = 1/' nightly.ini
night 0 0 1 'current.h5 is'
[[ $(containers) == 1 && $(readlink night/current.h5) != 2999* ]] || fail "not the night just made: $(ls -l night)"
"$decant" verify night/current.h5 >/dev/null || fail "current.h5 leads nowhere: $(ls -l night)"
sed -i 's/^nights = 1/nights = 2/' nightly.ini
change model.norm.weight 'w * np.float32(1.001)'
night 0 0 1 'current.h5 is'
current=$(readlink night/current.h5)

# ---- the gate
change model.norm.weight 'w * 10'
night 1 0 1 'refused, worse by more than 20 %: perplexity_quantized'
[[ $(readlink night/current.h5) == "$current" && $(containers) == 2 ]] || fail "a refused container has taken a place"
"$decant" verify night/current.h5 >/dev/null || fail "current.h5 was harmed"
night 0 0 0 'since this was refused'
night 0 0 1 'current.h5 is' --accept
[[ $(readlink night/current.h5) != "$current" ]] || fail "--accept keeps the old one"
current=$(readlink night/current.h5)

# ---- what cannot be
sed -i 's/^bits = .*/bits = 1.5/' nightly.ini # less than the smallest candidates
night 2 0 1 'decant ended with 2'
says 'bits: 6 became 1.5'
[[ $(readlink night/current.h5) == "$current" ]] || fail "a night that failed has changed current.h5"
[[ ! $(find night -name '*.ini' -o -name begun.json) ]] || fail "left over: $(ls night)"
sed -i 's/^bits = .*/bits = 6/' nightly.ini

# ---- interrupted while it calibrates: what was saved is gone on from, and the container is that of an undisturbed night
# interrupt FILE SIGNAL KEPT OPTIONS…: a night that was sent SIGNAL as soon as there was FILE, and that left with 75 and a file
# KEPT; one that had come further before the signal came is begun anew.
interrupt() {
  local file=$1 signal=$2 kept=$3 tries=0
  shift 3
  cp -a night night.before
  until begin "$@" && wait_for "$file" && tell "$signal" && finish && [[ $got == 75 ]] && compgen -G "$kept" >/dev/null; do
    [[ $got ]] || finish
    [[ $got == 0 || $got == 75 ]] || fail "an interrupted night gave $got"
    ((tries++ < 20)) || fail "the night is over before it can be interrupted"
    rm -r night && cp -a night.before night
  done
  rm -r night.before
}
# wait_for FILE: false when the night was over before.
wait_for() {
  until compgen -G "$1" >/dev/null; do
    if [[ ${DECANT_TEST_SLURM-} ]]; then ! over || return 1; else kill -0 "$job" 2>/dev/null || return 1; fi
    sleep 0.005
  done
}
tell() { if [[ ${DECANT_TEST_SLURM-} ]]; then scancel --batch --signal="$1" "$job"; else kill -"$1" "$job"; fi }
"$python" -c 'import numpy as np; t = np.load("model/tokens.npy"); np.save("long.npy", np.concatenate([np.roll(t, i, 1) for i in range(20)]))'
change model.norm.weight 'w / 10'
sed -i "s,^calibration = .*,calibration = $work/long.npy," nightly.ini
sed -i '/^quiet/d' nightly.ini
echo 'checkpoint-every = 0' >>nightly.ini
calibrating='night/*.statistics.h5.work/calibration.h5'
interrupt "$calibrating" USR1 "$calibrating"
says 'calibration holds other tokens' 'interrupted; the next call goes on'
[[ $(readlink night/current.h5) == "$current" ]] || fail "an interrupted night has changed current.h5"
night 0 1 1 'goes on where it was interrupted'
grep -q 'going on after\|going on from' night/*.log || fail "decant began anew"
whole long --calibration long.npy --micro-batch 1

# ---- interrupted after that: the statistics are not made again; and of no use once the model has changed
cp night/current.h5 before.h5
interrupt 'night/*T??????.h5.partial' TERM 'night/begun.json' --refresh-statistics
night 0 0 1 'statistics were made before the interruption'
cmp before.h5 night/current.h5 || fail "another container from the same model"
interrupt "$calibrating" USR1 "$calibrating" --refresh-statistics
change model.layers.2.mlp.up_proj.weight 'w * np.float32(1.05)'
night 0 0 1 'is of no use after what has changed since'
says 'quantized anew: model.layers.2.mlp.up_proj, its weights have changed'
[[ ! $(find night -name '*.work' -o -name '*.partial') ]] || fail "left over: $(ls night)"

# ---- a step that was not launched, for which srun may say 0: no container, and the next call goes on
touch unlaunched
change model.layers.1.mlp.gate_proj.weight 'w * np.float32(1.02)'
night 5 0 1 'decant ended with 5'
rm unlaunched
night 0 0 1 'goes on where it was interrupted'

# ---- a night that was killed when all but its last step was done: its container is not taken for an unfinished one
current=$(readlink night/current.h5)
echo "{\"night\": \"${current%.h5}\", \"record\": {}, \"refresh\": false}" >night/begun.json
night 0 0 0 'nothing has changed'
"$decant" verify night/current.h5 >/dev/null || fail "current.h5 was removed"
[[ ! -e night/begun.json ]] || fail "left over: $(ls night)"

# ---- everything anew; without statistics; the lock
if [[ ! ${DECANT_TEST_SLURM-} ]]; then
  echo 'reuse = no' >>nightly.ini
  change model.layers.0.mlp.up_proj.weight 'w * np.float32(1.02)'
  night 0 0 1 'up_proj.weight has changed'
  ! grep -q 'as before\|statistics' said || fail "reuse = no takes something over"
  whole anew --calibration long.npy --micro-batch 1
  [[ ! $(find night -name '*.statistics.*') ]] || fail "left over: $(ls night)"
  sed -i '/^reuse/d' nightly.ini
  sed -i '/^calibration/d; s/^bits = .*/method = nf4/' nightly.ini
  night 0 0 1 'everything is quantized anew: options' --accept # the gate would not have it
  change model.layers.0.mlp.up_proj.weight 'w * np.float32(1.05)'
  night 0 0 1 'as before: 20 of 21 matrices' --accept

  exec 9>night/lock
  flock 9
  night 75 0 0 'another night is at work'
  exec 9>&-
fi
echo "nightly: passed"
