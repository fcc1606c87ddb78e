#!/usr/bin/env bash
# Jobs that are killed or interrupted go on from OUTPUT.work, on the same or another number of ranks, and end with the
# bytes of an undisturbed one; work that belongs to another job, or is damaged, is refused; two jobs on one output are too.
# DECANT_TEST_KILLS: how many kills at random moments (4), DECANT_TEST_SEED: which ones.
set -euo pipefail
. "${DECANT_TEST_SOURCE:?}/tests/pipeline/command.sh"
. "$source/tests/pipeline/interrupted.sh"

model=$source/tests/reference/llama_mha # three layers
tokens=$work/tokens.npy                 # 14 sequences, so 14 micro-batches of one
python3 - "$model/tokens.npy" "$tokens" <<'PY'
import sys
import numpy as np
five = np.load(sys.argv[1])
np.save(sys.argv[2], np.concatenate([np.roll(five, shift, axis=1) for shift in range(3)])[:14])
PY
common=(--model "$model" --calibration "$tokens" --micro-batch 1 --device cpu)
run=(run "${common[@]}" --text "$model/tokens.npy" --bits 5)
always=(--checkpoint-every 0)

through 1 "${run[@]}" --output "$work/whole.h5"
[[ ! -e $work/whole.h5.work ]] || fail "a complete job left its work directory, with $(ls -A "$work/whole.h5.work")"

# ---- checkpoints change nothing
through 3 "${run[@]}" "${always[@]}" --log "$work/log" --output "$work/checkpoints.h5"
(($(grep -c '"event":"checkpoint"' "$work/log") > 3)) || fail "no checkpoints: $(cat "$work/log")"
cmp "$work/whole.h5" "$work/checkpoints.h5" || fail "a job with checkpoints gives other bytes"
[[ ! -e $work/checkpoints.h5.work ]] || fail "a complete job left its work directory, with $(ls -A "$work/checkpoints.h5.work")"

# ---- killed after the first checkpoint; goes on, on any number of ranks
until [[ -e $work/first.h5.work/calibration.h5 && ! -e $work/first.h5 ]]; do
  rm -rf "$work"/first.h5*
  begin 2 "$work/first.h5" "${run[@]}" "${always[@]}"
  wait_for "$work/first.h5.work/calibration.h5" || true
  kill_all "$work/first.h5"
  finish
done
for ranks in 1 3 5; do
  cp -r "$work/first.h5.work" "$work/resumed.$ranks.h5.work"
  through $ranks "${run[@]}" --replicas 1 --output "$work/resumed.$ranks.h5"
  grep -q 'going on after' "$work/err" || fail "not resumed: $(cat "$work/err")"
  cmp "$work/whole.h5" "$work/resumed.$ranks.h5" || fail "a job that went on with $ranks ranks gives other bytes"
  [[ ! -e $work/resumed.$ranks.h5.work ]] || fail "a complete job left its work directory, with $(ls -A "$work/resumed.$ranks.h5.work")"
done

# ---- what is there is used: other sums, with their checksums right, give other bytes
cp -r "$work/first.h5.work" "$work/forged.h5.work"
python3 - "$source/tests/pipeline" "$work/forged.h5.work/calibration.h5" <<'PY'
import sys, zlib
sys.path.insert(0, sys.argv[1])
import change_container, h5py, numpy as np
with h5py.File(sys.argv[2], "r+", libver=("v108", "v110")) as file:
    sums = file["replica0/model.layers.1.mlp.up_proj/fisher"]
    sums[...] = sums[...][::-1] * 3
    sums.attrs["crc32"] = np.int64(zlib.crc32(sums[...].tobytes()))
change_container.seal(sys.argv[2])
PY
through 2 "${run[@]}" --output "$work/forged.h5"
cmp -s "$work/whole.h5" "$work/forged.h5" && fail "what a checkpoint holds is not used"

# ---- killed once calibration is finished: it is not done again
until [[ -e $work/late.h5.work/statistics.h5 ]]; do
  rm -rf "$work"/late.h5*
  begin 2 "$work/late.h5" "${run[@]}" "${always[@]}"
  wait_for "$work/late.h5.work/statistics.h5" || true
  kill_all "$work/late.h5"
  finish
done
[[ ! -e $work/late.h5.work/calibration.h5.partial ]] || fail "sums of unfinished calibration are kept beside the finished ones"
through 3 "${run[@]}" --log "$work/late.log" --output "$work/late.h5"
grep -q 'calibration is finished already' "$work/err" || fail "calibration was done again: $(cat "$work/err")"
cmp "$work/whole.h5" "$work/late.h5" || fail "a job that went on after calibration gives other bytes"
python3 -c 'import json, sys; [json.loads(line, parse_constant=int) for line in open(sys.argv[1])]' "$work/late.log" ||
  fail "the log is not JSON: $(cat "$work/late.log")"

# ---- replicas go on as replicas, on other numbers of stages; `decant calibrate` too, and with Hessians
common+=(--method guided --guided-groups 2)
through 2 calibrate "${common[@]}" --replicas 2 --output "$work/statistics.h5"
until [[ -e $work/replicas.h5.work/calibration.h5 && ! -e $work/replicas.h5 ]]; do
  rm -rf "$work"/replicas.h5*
  begin 4 "$work/replicas.h5" calibrate "${common[@]}" --replicas 2 "${always[@]}"
  wait_for "$work/replicas.h5.work/calibration.h5" || true
  kill_one "$work/replicas.h5"
  finish
done
expect 2 'there, replicas = 2; here, replicas = 1' on 2 calibrate "${common[@]}" --replicas 1 --output "$work/replicas.h5"
through 2 calibrate "${common[@]}" --replicas 2 --output "$work/replicas.h5"
grep -q 'going on after' "$work/err" || fail "not resumed: $(cat "$work/err")"
cmp "$work/statistics.h5" "$work/replicas.h5" || fail "statistics of replicas that went on are others"

# ---- signals: exit status 75, and the same command goes on; the last rank alone is told
for case in USR1:3:1 TERM:1:2; do
  IFS=: read -r signal ranks others <<<"$case"
  out=$work/$signal.h5
  interrupted "$signal" calibration.h5 "$ranks" "$out" "${run[@]}" "${always[@]}"
  through "$others" "${run[@]}" --output "$out"
  cmp "$work/whole.h5" "$out" || fail "a job that was interrupted gives other bytes"
done

# ---- signals after calibration: the job leaves at once with the same status, and goes on
for case in USR1:write:quantize:3:2 TERM:validate:write:2:3; do
  IFS=: read -r signal stage before ranks others <<<"$case"
  out=$work/$stage.h5
  interrupted_late "$signal" "\"event\":\"$before\"" "$ranks" "$out" "${run[@]}" "${always[@]}"
  [[ -e $out.work/statistics.h5 ]] || fail "a job that was interrupted in $stage has kept nothing"
  through "$others" "${run[@]}" --output "$out"
  grep -q 'calibration is finished already' "$work/err" || fail "calibration was done again: $(cat "$work/err")"
  cmp "$work/whole.h5" "$out" || fail "a job that was interrupted in $stage gives other bytes"
done

# ---- work of another job, or damaged, is refused and stays; --overwrite-work begins anew
out=$work/first.h5 before=$(cd "$work/first.h5.work" && sha256sum calibration.h5 head)
python3 - "$tokens" "$work/other.npy" <<'PY'
import sys
import numpy as np
np.save(sys.argv[2], np.roll(np.load(sys.argv[1]), 1, axis=0))
PY
mkdir "$work/other" && cp "$model/config.json" "$work/other" && python3 - "$model" "$work/other" <<'PY'
import sys
raw = bytearray(open(sys.argv[1] + "/model.safetensors", "rb").read())
header = int.from_bytes(raw[:8], "little")
import json
begin = 8 + header + json.loads(raw[8 : 8 + header])["model.layers.2.mlp.up_proj.weight"]["data_offsets"][0]
raw[begin] ^= 1
open(sys.argv[2] + "/model.safetensors", "wb").write(raw)
PY
expect 2 'there, bits = 5; here, bits = 5.5' on 2 "${run[@]}" --bits 5.5 --output "$out"
expect 2 'fisher = ' on 2 "${run[@]}" --fisher sequence --output "$out"
expect 2 'calibration_crc32 = ' on 2 "${run[@]}" --calibration "$work/other.npy" --output "$out"
expect 2 'model_crc32 = ' on 2 "${run[@]}" --model "$work/other" --output "$out"
for case in config other_tensors; do # what no linear layer's checksum knows of
  cp -r "$model" "$work/$case"
  [[ $case == config ]] && sed -i 's/"rope_theta": 250000/"rope_theta": 10000/' "$work/$case/config.json"
  [[ $case == config ]] || python3 "$source/tests/pipeline/change_tensor.py" "$work/$case" model.norm.weight 'w * 2'
  ! cmp -s "$model/config.json" "$work/$case/config.json" || ! cmp -s "$model/model.safetensors" "$work/$case/model.safetensors" ||
    fail "nothing has changed in $work/$case"
  for ranks in 1 3; do expect 2 "there, ${case}_crc32 = .*; here, ${case}_crc32 = " on $ranks "${run[@]}" --model "$work/$case" --replicas 1 --output "$out"; done
done
cp -r "$out.work" "$work/older.h5.work"
python3 - "$work/older.h5.work/head" <<'PY'
import re, sys, zlib
text = re.sub("(?m)^program_version = .*$", "program_version = 0.0.1", open(sys.argv[1]).read())
text = text[: text.index("checksum = ")]
open(sys.argv[1], "w").write(text + "checksum = %08x\n" % zlib.crc32(text.encode()))
PY
expect 2 'there, program_version = 0.0.1; here, program_version = ' on 2 "${run[@]}" --output "$work/older.h5"
expect 2 'command = calibrate' on 1 calibrate "${common[@]}" --output "$out"
[[ $(cd "$out.work" && sha256sum calibration.h5 head) == "$before" ]] || fail "refused work was changed"
cp -r "$out.work" "$work/torn.h5.work"
truncate -s -100 "$work/torn.h5.work/calibration.h5"
expect 3 '--overwrite-work' on 2 "${run[@]}" --output "$work/torn.h5"
cp "$out.work/calibration.h5" "$work/torn.h5.work"
python3 - "$work/torn.h5.work/calibration.h5" <<'PY'
import h5py, sys
with h5py.File(sys.argv[1]) as file:
    place = file["replica0/model.layers.0.mlp.up_proj/fisher"].id.get_offset() + 17
with open(sys.argv[1], "r+b") as file:
    file.seek(place)
    byte = file.read(1)[0]
    file.seek(place)
    file.write(bytes([byte ^ 4]))
PY
expect 3 'model.layers.0.mlp.up_proj/fisher is damaged' on 2 "${run[@]}" --output "$work/torn.h5"
sed -i 's/bits = 5$/bits = 6/' "$work/torn.h5.work/head"
expect 2 'head is damaged' on 2 "${run[@]}" --output "$work/torn.h5"
through 2 "${run[@]}" --overwrite-work --output "$work/torn.h5"
grep -q 'going on' "$work/err" && fail "--overwrite-work went on"
cmp "$work/whole.h5" "$work/torn.h5" || fail "--overwrite-work gives other bytes"

# ---- two jobs on one output
flock --no-fork "$out.work/lock" sleep infinity & # one process, so that nothing holds the lock once it is killed
holder=$!
while flock -n "$out.work/lock" true; do sleep 0.01; done
printf 'process 4711 on there' >"$out.work/lock"
expect 2 'in use by another job, process 4711 on there' on 2 "${run[@]}" --output "$out"
kill $holder
wait $holder || true

until begin 2 "$work/two.h5" "${run[@]}" "${always[@]}" && wait_for "$work/two.h5.work/calibration.h5" &&
  holders=$(processes "$work/two.h5") && kill -STOP $holders && [[ ! -e $work/two.h5 ]]; do
  kill_all "$work/two.h5" # it was over before another could begin
  finish
  rm -rf "$work"/two.h5*
done
cp "$work/two.h5.work/lock" "$work/holder"
expect 2 "in use by another job, $(<"$work/holder")" on 2 "${run[@]}" --output "$work/two.h5"
grep -qw "$(awk '{ print $2 }' "$work/holder")" <<<"$holders" || fail "the lock names $(<"$work/holder"), the job is $holders"
kill -CONT $holders
finish
[[ $got == 0 ]] || fail "the job beside which another was refused ends with $got"
cmp "$work/whole.h5" "$work/two.h5" || fail "the job beside which another was refused gives other bytes"

# ---- kills at random moments, of one rank, of all, and of mpirun too, until the job is through
python3 "$source/tests/pipeline/kill_loop.py" "${DECANT_TEST_KILLS:-4}" "${DECANT_TEST_SEED:-$RANDOM}" "$work/whole.h5" "$work/random.h5" 3,3,1,3,2 \
  "$decant" "${run[@]}" --replicas 1 "${always[@]}"
echo "resumed jobs: passed"
