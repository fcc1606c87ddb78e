#!/usr/bin/env bash
# Measured sensitivities end to end on small models: the same bytes on any number of ranks, a job that was killed goes on
# from its journal and ends with the same bytes, a foreign journal is not believed, and none is left behind.
set -euo pipefail
. "${DECANT_TEST_SOURCE:?}/tests/pipeline/command.sh"

# on RANKS ARGUMENTS…: decant under mpirun; what it says on the way is in $work/err.
on() {
  local ranks=$1
  shift
  mpirun -n "$ranks" "$decant" "$@" --device cpu 2>"$work/err" || { cat "$work/err" >&2; return 1; }
}

model=$source/tests/reference/llama_mha
tokens=$model/tokens.npy
run=(run --replicas 1 --model "$model" --calibration "$tokens" --bits 5)

# ---- the same bytes on any number of ranks; each way gives another file
for way in noise measured; do
  for ranks in 1 2 3 4; do
    on $ranks "${run[@]}" --sensitivity $way --output "$work/$way.$ranks.h5"
    cmp "$work/$way.1.h5" "$work/$way.$ranks.h5" || fail "$way: $ranks ranks give other bytes than 1"
  done
  "$decant" verify "$work/$way.1.h5" >/dev/null
done
on 2 "${run[@]}" --sensitivity measured --memory streamed --output "$work/streamed.h5"
cmp "$work/measured.1.h5" "$work/streamed.h5" || fail "streamed layers give other bytes"
grep -q 'Pearson' "$work/err" || fail "prediction was not compared with measurement"
on 2 "${run[@]}" --sensitivity measured --sensitivity-measure loss --output "$work/loss.h5"
"$decant" compare "$work/measured.1.h5" "$work/loss.h5" >"$work/out" 2>&1 && fail "--sensitivity-measure changes nothing"
grep -q '^/sensitivity/value: other contents' "$work/out" || fail "compare: $(cat "$work/out")"
[[ -z $(ls "$work" | grep partial) ]] || fail "a journal was left behind"

# ---- what the container says
"$decant" inspect "$work/noise.1.h5" | grep -Eq '^sensitivity_kind +noise$' || fail "inspect"
"$decant" inspect --json "$work/noise.1.h5" >"$work/noise.json"
"$decant" inspect --json "$work/measured.1.h5" >"$work/measured.json"
python3 - "$work" <<'PY'
import json, sys
import h5py, numpy as np
work = sys.argv[1]
for way in ("noise", "measured"):
    said = json.load(open(f"{work}/{way}.json"))["sensitivity"]
    file = h5py.File(f"{work}/{way}.1.h5")
    found, predicted, relative = file["sensitivity"], file["errors/predicted"][...], file["errors/relative"][...]
    value, alone, candidate = (found[name][...] for name in ("value", "alone", "candidate"))
    assert said["kind"] == way and said["sequences"] == 5 and said["length"] == 37, said
    if way == "noise":
        t = found["noise"][...]
        slope = found["noised"][...] @ t**2 / (t**4).sum()
        np.testing.assert_allclose(value, np.maximum(slope, 0), rtol=1e-12)
        np.testing.assert_allclose(predicted, value[:, None] * relative, rtol=1e-12)
        assert (candidate >= 0).sum() == 8 == said["compared"], candidate
    else:
        assert (candidate == 1).all() and said["compared"] == 21
        np.testing.assert_array_equal(value, alone)
        np.testing.assert_allclose(predicted[:, 1], value, rtol=1e-12)
    assert (alone[candidate >= 0] > 0).all() and (alone[candidate < 0] == 0).all()
PY

# ---- a job that was killed goes on, on another number of ranks too; what its journal says is used
cat >"$work/forge.py" <<'PY'
import sys, zlib
path, head, value = sys.argv[1:]
line = f"0 {value}"
open(path, "w").write(f"{head}\n{line} {zlib.crc32(line.encode()):08x}\n")
PY
long=("${run[@]}" --sensitivity noise --noise-levels 16)
on 1 "${long[@]}" --output "$work/whole.h5"
journal=$work/killed.h5.sensitivity.partial
lines=0
until ((lines > 20)); do # it may be over before it is killed
  rm -f "$work"/killed.h5*
  "$decant" "${long[@]}" --quiet --device cpu --output "$work/killed.h5" >/dev/null 2>&1 &
  killed=$!
  while kill -0 $killed 2>/dev/null && { [[ ! -e $journal ]] || (($(wc -l <"$journal") <= 20)); }; do sleep 0.001; done
  kill -KILL $killed 2>/dev/null || true
  wait $killed 2>/dev/null || true
  [[ -e $work/killed.h5 || ! -e $journal ]] || lines=$(wc -l <"$journal")
done
for ranks in 1 2; do
  cp "$journal" "$work/resumed.$ranks.h5.sensitivity.partial"
  printf '5 0x1.8' >>"$work/resumed.$ranks.h5.sensitivity.partial" # torn
  on $ranks "${long[@]}" --output "$work/resumed.$ranks.h5"
  grep -q "^decant: $((lines - 1)) of 344 measurements are there already" "$work/err" || fail "not resumed: $(cat "$work/err")"
  cmp "$work/whole.h5" "$work/resumed.$ranks.h5" || fail "a job that went on gives other bytes"
done
python3 "$work/forge.py" "$work/forged.h5.sensitivity.partial" "$(head -n 1 "$journal")" 0x1.9p+6
on 2 "${long[@]}" --output "$work/forged.h5"
"$decant" compare "$work/whole.h5" "$work/forged.h5" >"$work/out" 2>&1 && fail "the journal's values are not used"
grep -q '^/sensitivity/noised: other contents' "$work/out" || fail "compare: $(cat "$work/out")"
python3 "$work/forge.py" "$work/foreign.h5.sensitivity.partial" "decant sensitivity 1 00000000 344" 0x1.9p+6
on 2 "${long[@]}" --output "$work/foreign.h5"
grep -q 'of another job' "$work/err" || fail "a foreign journal was not told of: $(cat "$work/err")"
cmp "$work/whole.h5" "$work/foreign.h5" || fail "a foreign journal was believed"
for other in "--sensitivity-sequences 2" "--seed 1" "--sensitivity-measure loss"; do
  python3 "$work/forge.py" "$work/other.h5.sensitivity.partial" "$(head -n 1 "$journal")" 0x1.9p+6
  on 2 "${long[@]}" $other --overwrite --output "$work/other.h5"
  grep -q 'of another job' "$work/err" || fail "with $other the journal of a job without was believed: $(cat "$work/err")"
done
cp -r "$model" "$work/renormed" && python3 "$source/tests/pipeline/change_tensor.py" "$work/renormed" model.norm.weight 'w * 2'
cp "$journal" "$work/renormed.h5.sensitivity.partial" # of the same matrices, between other norms
on 2 "${long[@]}" --model "$work/renormed" --output "$work/renormed.h5"
grep -q 'of another job' "$work/err" || fail "the journal of a model with another norm was not told of: $(cat "$work/err")"
rm "$journal"
rm -f "$work"/killed.h5.partial

# ---- without calibration tokens: random ones, from the seed
on 2 calibrate --model "$model" --calibration "$tokens" --output "$work/statistics.h5"
random=(run --model "$model" --statistics "$work/statistics.h5" --window 37 --sensitivity-sequences 3 --bits 5 --sensitivity noise)
on 1 "${random[@]}" --output "$work/random.1.h5"
grep -q 'random tokens' "$work/err" || fail "random tokens were not told of"
on 3 "${random[@]}" --output "$work/random.3.h5"
cmp "$work/random.1.h5" "$work/random.3.h5" || fail "random tokens depend on the ranks"
on 1 "${random[@]}" --seed 1 --output "$work/random.seed.h5"
cmp -s "$work/random.1.h5" "$work/random.seed.h5" && fail "--seed changes nothing"

# ---- a container that cannot be validated is kept, and its journal is over. In /proc no file can be made, which only a
# validation that is streamed finds out when the statistics are there; who is not root is refused at once
expect 4 'no scratch file\|no file can be made there' "$decant" "${run[@]}" --statistics "$work/statistics.h5" --sensitivity measured \
  --text "$tokens" --memory streamed --scratch /proc --quiet --device cpu --output "$work/kept.h5"
(($(id -u) != 0)) || "$decant" verify "$work/kept.h5" >/dev/null || fail "a container that could not be validated was not kept"
[[ -z $(ls "$work" | grep partial) ]] || fail "a journal was left behind"
echo "measured sensitivities: passed"
