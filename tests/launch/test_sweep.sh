#!/usr/bin/env bash
# launch/sweep with six members, one of which fails at first: the others are done, the table says which is not, and the same
# command runs that one alone. A member's figures are those of decant by hand. tests/slurm/test_sweep.sh runs this on Slurm.
set -euo pipefail
decant=${DECANT_PROGRAM:?} source=${DECANT_TEST_SOURCE:?}
python=$source/.venv/bin/python
[[ -x $python ]] || python=python3
"$python" -c 'import numpy, matplotlib' 2>/dev/null || { echo "numpy and matplotlib are not here"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

fail() { echo "FAILED: $*" >&2; exit 1; }

sweep() { # here, or on Slurm, whose last job gathers
  [[ ${DECANT_TEST_SLURM-} ]] || { "$source/launch/sweep" sweep.ini --local; return; }
  "$source/launch/sweep" sweep.ini >submitted
  local last
  last=$(sed -n 's/^table and plot: job //p' submitted)
  until [[ $(scontrol show job "$last") =~ JobState=(FAILED|CANCELLED)|Reason=DependencyNeverSatisfied ]]; do
    [[ $(scontrol show job "$last") != *JobState=COMPLETED* ]] || return 0
    sleep 0.1
  done
  squeue >&2
  fail "the sweep does not end: $(cat submitted out/*.log)"
}

model=$source/tests/reference/llama_mha
# decant, with a list of what it is asked, that fails as long as there is a file `broken`.
cat >program <<STANDIN
#!/bin/bash
[[ \${OMPI_COMM_WORLD_RANK:-\${PMIX_RANK:-0}} != 0 ]] || echo "\$@" >>$work/asked
[[ ! -e $work/broken || "\$*" != *seed1-3-kmeans* ]] || exit 3
exec "$decant" "\$@"
STANDIN
chmod +x program
cat >sweep.ini <<INI
model = $model
text = $model/tokens.npy
calibration = $model/tokens.npy
sequences = 1 3
seed = 0 1 2
bits: 5 5 ; one value
  output = out
[sets]
ranks = 2
slurm = --ntasks=2
decant = $work/program
device = cpu
micro-batch = 1
checkpoint-every = 7
INI
asked() { grep -cE "^$1( |\$)" asked || true; }

touch broken
if sweep 2>said; then [[ ${DECANT_TEST_SLURM-} ]] || fail "a sweep with a failed member ends with 0"; fi
[[ $(asked calibrate) == 6 && $(asked merge) == 3 && $(asked run) == 6 ]] || fail "ran $(cat asked)"
[[ $(wc -l <out/table.tsv) == 7 && $(grep -c 'not done' out/table.tsv) == 1 ]] || fail "table: $(cat out/table.tsv)"
grep -qP '^tokens\t3\t1\tkmeans\t5\tnot done' out/table.tsv || fail "another member is missing: $(cat out/table.tsv)"
before=$(grep -v 'not done' out/table.tsv)

rm broken asked
sweep
[[ $(wc -l <asked) == 1 && $(cat asked) == *seed1-3-kmeans* ]] || fail "not the failed member alone: $(cat asked)"
! grep -q 'not done' out/table.tsv || fail "still not done: $(cat out/table.tsv)"
[[ $(grep -vP '^tokens\t3\t1\t' out/table.tsv) == "$before" ]] || fail "members that were done have changed"
grep -q '<svg' out/plot.svg || fail "no plot"

# When work is saved is said to every run, and changes no product.
[[ $(grep -lx 'checkpoint-every = 7' out/parts/*.ini out/members/*.ini | wc -l) == 12 ]] ||
  fail "checkpoint-every is not passed on: $(grep -L '^checkpoint-every' out/*/*.ini)"
sed -i 's/^checkpoint-every.*/checkpoint-every = 9/' sweep.ini
rm asked
sweep
[[ ! -e asked ]] || fail "made again for another checkpoint-every: $(cat asked)"

# ---- by hand: three sequences in the order that seed 2 draws, two runs of calibrate, merged
"$python" - "$model/tokens.npy" <<'PY'
import sys
import numpy as np
tokens = np.load(sys.argv[1])
order = np.random.default_rng(2).permutation(5)
np.save("one.npy", tokens[order[:1]])
np.save("two.npy", tokens[order[1:3]])
PY
for part in one two; do
  mpirun -n 1 "$decant" calibrate --model "$model" --calibration $part.npy --micro-batch 1 --device cpu --quiet --output $part.h5
done
mpirun -n 1 "$decant" merge one.h5 two.h5 --quiet --output hand.h5
mpirun -n 1 "$decant" run --model "$model" --statistics hand.h5 --text "$model/tokens.npy" --bits 5 --seed 2 --device cpu --quiet \
  --json --output hand_model.h5 >hand.json
"$python" - <<'PY'
import csv, json
hand = json.load(open("hand.json"))
rows = list(csv.DictReader(open("out/table.tsv"), delimiter="\t"))
row, = [r for r in rows if (r["sequences"], r["seed"]) == ("3", "2")]
for name in "bits", "perplexity_quantized", "kl_divergence", "measured_loss_increase":
    assert row[name] == f"{hand[name]:.6g}", (name, row[name], hand[name])
assert len({r["perplexity_quantized"] for r in rows}) > 1, "all members are alike"
PY

# ---- guided takes Hessians with the sums, merged ones too; what the other methods make of these is as it was
if [[ ! ${DECANT_TEST_SLURM-} ]]; then
  sed -e '/^\(seed\|micro-batch\|output\) =/d' sweep.ini >guided.ini
  printf 'method = kmeans guided\noutput = guided\nguided-groups = 2\nmicro-batch = 1\nseed = 2\n' >>guided.ini
  "$source/launch/sweep" guided.ini --local >said 2>&1 || fail "a sweep with guided: $(cat said guided/members/*.log)"
  "$python" - <<'PY'
import csv
def members(name):
    rows = list(csv.DictReader(open(name), delimiter="\t"))
    return {(row["method"], row["sequences"]): row["perplexity_quantized"] for row in rows if row["seed"] == "2"}
whole, guided = members("out/table.tsv"), members("guided/table.tsv")
assert set(guided) == {(method, size) for method in ("kmeans", "guided") for size in "13"}, guided
assert all(guided["kmeans", size] == whole["kmeans", size] != guided["guided", size] for size in "13"), (whole, guided)
PY
  rm -f asked && touch asked
fi

# ---- what an interrupted calibration has saved is gone on from, and is in nobody's way once options are others
if [[ ! ${DECANT_TEST_SLURM-} ]]; then
  "$python" -c 'import numpy as np; t = np.load("'"$model"'/tokens.npy"); np.save("long.npy", np.concatenate([np.roll(t, i, 1) for i in range(20)]))'
  printf '#!/bin/bash\n[[ $1 != calibrate || ! -e %s ]] || echo $$ >%s\nexec %s "$@" --checkpoint-every 0\n' "$work/signal" "$work/rank" "$decant" >slow
  chmod +x slow
  sed -e 's/^calibration.*/calibration = long.npy/; s/^sequences.*/sequences = 100/; s/^seed.*/seed = 0/; s/^ *output.*/output = long/' \
    -e "s/^ranks.*/ranks = 1/; s,^decant.*,decant = $work/slow," sweep.ini >long.ini
  begin() { # an interrupted sweep
    local tries=0
    until [[ -d long/parts/long-seed0-0to100.h5.work ]]; do
      ((tries++ < 20)) || fail "the calibration is over before it can be interrupted"
      rm -rf long rank && touch signal
      "$source/launch/sweep" long.ini --local >said 2>&1 &
      until [[ -e long/parts/long-seed0-0to100.h5.work/calibration.h5 ]] || ! kill -0 $! 2>/dev/null; do sleep 0.002; done
      kill -USR1 "$(cat rank)" 2>/dev/null || true
      wait $! || true
    done
    rm signal
  }
  begin
  "$source/launch/sweep" long.ini --local >said 2>&1 || fail "an interrupted sweep does not go on: $(cat said long/*/*.log)"
  rm -rf long
  begin
  sed -i 's/^micro-batch.*/micro-batch = 2/' long.ini
  "$source/launch/sweep" long.ini --local >said 2>&1 || fail "saved work of other options is in the way: $(cat said long/*/*.log)"
  [[ ! $(find long -name '*.begun' -o -name '*.work') ]] || fail "left over: $(find long)"
fi

# ---- nothing to do; other calibration options make everything anew; what cannot be is refused in one line
rm -f asked
sweep
[[ ! -e asked ]] || fail "what was done is done again: $(cat asked)"
if [[ ! ${DECANT_TEST_SLURM-} ]]; then
  echo 'fisher = sequence' >>sweep.ini
  sweep
  [[ $(asked calibrate) == 6 && $(asked merge) == 3 && $(asked run) == 6 ]] || fail "ran $(cat asked)"
fi
sed -i 's/^sequences.*/sequences = 1 6/' sweep.ini
if "$source/launch/sweep" sweep.ini --local 2>said; then fail "more sequences than there are"; fi
[[ $(wc -l <said) == 1 && $(cat said) == *'has 5 sequences'* ]] || fail "$(cat said)"
for line in 'seed = 0 -1' 'ranks = all' 'ranks = 0' 'ranks = 1 2'; do
  { grep -v "^${line%% *} \|^sequences " sweep.ini; echo "$line"; echo 'sequences = 2'; } >wrong.ini
  if "$source/launch/sweep" wrong.ini --local 2>said; then fail "'$line' is taken"; fi
  [[ $(wc -l <said) == 1 && $(cat said) == sweep:*"${line%% *}"* ]] || fail "$(cat said)"
done
echo "sweep: passed"
