#!/usr/bin/env bash
# Jobs whose layers are streamed, killed or interrupted, go on from OUTPUT.work, on the same or another number of ranks, and
# end with the bytes of an undisturbed one; what is damaged there is refused.
# DECANT_TEST_KILLS: how many kills at random moments (4), DECANT_TEST_SEED: which ones.
set -euo pipefail
. "${DECANT_TEST_SOURCE:?}/tests/pipeline/command.sh"
. "$source/tests/pipeline/interrupted.sh"

# Six layers: three, twice. 14 sequences, so 14 micro-batches of one.
model=$work/model tokens=$work/tokens.npy small=$source/tests/reference/llama_mha
mkdir "$model"
python3 - "$small" "$model" "$tokens" <<'PY'
import json, re, sys
import numpy as np
small, model, tokens = sys.argv[1:]
raw = open(small + "/model.safetensors", "rb").read()
size = int.from_bytes(raw[:8], "little")
header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
header.pop("__metadata__", None)
for name in list(header):
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    if layer:  # the same bytes again
        copy = dict(header[name], data_offsets=[end + len(data) for end in header[name]["data_offsets"]])
        header[f"model.layers.{int(layer[1]) + 3}." + name[layer.end() :]] = copy
for name in [name for name in header if not name.startswith("model.layers.")]:
    begin, end = header[name]["data_offsets"]
    header[name + ".unused"] = dict(header[name], data_offsets=[begin + len(data), end + len(data)])
text = json.dumps(header).encode()
open(model + "/model.safetensors", "wb").write(len(text).to_bytes(8, "little") + text + data + data)
config = json.load(open(small + "/config.json"))
config["num_hidden_layers"] = 6
json.dump(config, open(model + "/config.json", "w"))
five = np.load(small + "/tokens.npy")
np.save(tokens, np.concatenate([np.roll(five, shift, axis=1) for shift in range(3)])[:14])
PY
common=(--model "$model" --calibration "$tokens" --micro-batch 1 --device cpu)
run=(run "${common[@]}" --text "$small/tokens.npy" --bits 5)
streamed=(--memory streamed --replicas 1)
always=(--checkpoint-every 0)

through 1 "${run[@]}" --memory resident --output "$work/whole.h5"
through 2 calibrate "${common[@]}" --memory resident --replicas 2 --output "$work/statistics.h5"

# ---- checkpoints change nothing, and nothing is left of them
for ranks in 1 3 8; do
  through $ranks "${run[@]}" "${streamed[@]}" "${always[@]}" --log "$work/log" --output "$work/all.$ranks.h5"
  grep -q '"event":"checkpoint","boundaries":0,"backward":6,"of":6' "$work/log" || fail "no checkpoints: $(cat "$work/log")"
  cmp "$work/whole.h5" "$work/all.$ranks.h5" || fail "a streamed job with checkpoints on $ranks ranks gives other bytes"
  [[ ! -e $work/all.$ranks.h5.work ]] || fail "a complete job left its work directory, with $(ls -A "$work/all.$ranks.h5.work")"
done
(($(grep -c '"event":"checkpoint"' "$work/log") < 12)) || fail "eight ranks do not pass layers together"
through 1 "${run[@]}" "${streamed[@]}" --log "$work/log" --output "$work/none.h5"
! grep -q '"event":"checkpoint"' "$work/log" || fail "a short job saved something"

# The files of a kind in a work directory, by number, as "0 1 2".
numbers() { (cd "$1" && for file in "$2".*.h5; do [[ ! -e $file ]] || echo "${file//[^0-9]/ }"; done | awk '{ print $1 }' | sort -n | xargs); }

# killed_at FILE RANKS OUTPUT OPTIONS…: killed once FILE, which must come to be, is in its work directory; not through, and not
# with all of the gradients done unless FILE is the last of them.
killed_at() {
  local file=$1 ranks=$2 output=$3 tries=0
  shift 3
  until [[ -d $output.work && ! -e $output && -n $(numbers "$output.work" "${file%%.*}") ]] &&
    [[ $file == gradient.0.h5 || ! -e $output.work/gradient.0.h5 ]]; do
    ((tries++ < 20)) || fail "$output is over before it can be killed"
    rm -rf "$output"*
    begin "$ranks" "$output" "$@" "${always[@]}"
    wait_for "$output.work/$file" || true
    kill_all "$output"
    finish
  done
}

# ---- killed while layers go forward, while they go backward, and when all have: goes on, on any number of ranks
planned=$("$decant" plan --model "$model" --calibration "$tokens" --sequences 14 --window 37 --bits 5 --memory streamed --device cpu --json |
  python3 -c 'import json, sys; print(json.load(sys.stdin)["checkpoint_bytes"])')
for case in boundary.2:1:3 boundary.4:3:2 gradient.5:3:1 gradient.3:1:2 gradient.1:2:5 gradient.0:2:3; do
  IFS=: read -r file ranks others <<<"$case"
  file=$file.h5
  killed_at $file $ranks "$work/$file" "${run[@]}" "${streamed[@]}"
  held=$(cat "$work/$file.work"/*.h5* | wc -c)
  ((held <= planned)) || fail "$held bytes are in the work directory, $planned were planned"
  echo "killed at $file on $ranks: $held bytes; boundaries $(numbers "$work/$file.work" boundary); gradients $(numbers "$work/$file.work" gradient);" \
    "layers $(numbers "$work/$file.work" layer)"
  cp -r "$work/$file.work" "$work/on.h5.work"
  : >"$work/on.h5.work/boundary.9.h5.partial.locktest.0" # as a kill leaves it while MPI opens a file
  through "$others" "${run[@]}" "${streamed[@]}" --output "$work/on.h5"
  grep -q 'going on after' "$work/err" || fail "not resumed: $(cat "$work/err")"
  cmp "$work/whole.h5" "$work/on.h5" || fail "killed at $file, gone on with $others ranks: other bytes"
  [[ ! -e $work/on.h5.work ]] || fail "a complete job left its work directory, with $(ls -A "$work/on.h5.work")"
  rm "$work/on.h5"
done

# ---- what is there is used: other costs and activations, with their checksums right, give other bytes
cp -r "$work/gradient.3.h5.work" "$work/forged.h5.work"
python3 - "$source/tests/pipeline" "$work/forged.h5.work" <<'PY'
import glob, sys, zlib
sys.path.insert(0, sys.argv[1])
import change_container, h5py, numpy as np
for path in glob.glob(sys.argv[2] + "/layer.5.h5") + glob.glob(sys.argv[2] + "/boundary.0.h5"):
    with h5py.File(path, "r+", libver=("v108", "v110")) as file:
        data = file["model.layers.5.mlp.up_proj/costs" if "layer" in path else "replica0"]
        data[...] = data[...][::-1] * 3
        data.attrs["crc32"] = np.int64(zlib.crc32(data[...].tobytes()))
    change_container.seal(path)
PY
through 2 "${run[@]}" "${streamed[@]}" --output "$work/forged.h5"
cmp -s "$work/whole.h5" "$work/forged.h5" && fail "what a checkpoint holds is not used"

# ---- replicas, on disk, and `decant calibrate`
mkdir "$work/scratch"
killed_at gradient.3.h5 2 "$work/replicas.h5" calibrate "${common[@]}" --memory streamed --replicas 2
cp -r "$work/replicas.h5.work" "$work/first.work"
for ranks in 2 6; do
  rm -rf "$work/replicas.h5"*
  cp -r "$work/first.work" "$work/replicas.h5.work"
  expect 2 'there, replicas = 2; here, replicas = 1' on 2 calibrate "${common[@]}" --replicas 1 --output "$work/replicas.h5"
  through $ranks calibrate "${common[@]}" --memory streamed --scratch "$work/scratch" --replicas 2 --output "$work/replicas.h5"
  grep -q 'going on after' "$work/err" || fail "not resumed: $(cat "$work/err")"
  cmp "$work/statistics.h5" "$work/replicas.h5" || fail "statistics that went on with $ranks ranks are others"
done

# ---- every method: what is kept of each until the choice is saved, codes and rotations included
methods=(--method kmeans,guided,higgs,rtn,nf4 --bit-widths 2,3,4 --guided-sparse 0,1)
through 1 "${run[@]}" "${methods[@]}" --memory resident --output "$work/methods.h5"
killed_at gradient.4.h5 2 "$work/killed.h5" "${run[@]}" "${methods[@]}" "${streamed[@]}"
through 3 "${run[@]}" "${methods[@]}" "${streamed[@]}" --output "$work/killed.h5"
grep -q 'going on after' "$work/err" || fail "not resumed: $(cat "$work/err")"
cmp "$work/methods.h5" "$work/killed.h5" || fail "several methods, gone on with: other bytes"

# ---- signals: exit status 75, and the same command goes on; the last rank alone is told
for case in USR1:3:1 TERM:1:2 USR1:2:3; do
  IFS=: read -r signal ranks others <<<"$case"
  out=$work/$signal.$ranks.h5
  interrupted "$signal" boundary.1.h5 "$ranks" "$out" "${run[@]}" "${streamed[@]}" "${always[@]}"
  [[ -z $(find "$out.work" -name '*.partial') ]] || fail "an interrupted job left $(ls "$out.work")"
  through "$others" "${run[@]}" "${streamed[@]}" --output "$out"
  grep -q 'going on after' "$work/err" || fail "not resumed: $(cat "$work/err")"
  cmp "$work/whole.h5" "$out" || fail "a job that was interrupted gives other bytes"
done

# ---- the two orders do not go on from each other, say so, and remove what the other has left
cp -r "$work/gradient.3.h5.work" "$work/resident.h5.work"
through 2 "${run[@]}" --memory resident --replicas 1 --output "$work/resident.h5"
grep -q 'of no use with --memory resident' "$work/err" || fail "not told: $(cat "$work/err")"
cmp "$work/whole.h5" "$work/resident.h5" || fail "a resident job beside streamed work gives other bytes"
[[ ! -e $work/resident.h5.work ]] || fail "a complete job left its work directory, with $(ls -A "$work/resident.h5.work")"

# ---- damaged or missing work is refused and stays; --overwrite-work begins anew
damaged() { cp -r "$work/gradient.3.h5.work" "$1.work"; }
out=$work/damaged.h5
left=$(numbers "$work/gradient.3.h5.work" gradient)
((left > 0)) || fail "the case has no gradient: $left"
damaged "$out"
rm "$out.work/layer.5.h5"
expect 3 'layer.5.h5' on 2 "${run[@]}" "${streamed[@]}" --output "$out"
damaged "$out" && rm -r "$out.work" && damaged "$out"
truncate -s -100 "$out.work/gradient.$left.h5"
expect 3 '--overwrite-work' on 2 "${run[@]}" "${streamed[@]}" --output "$out"
for file in boundary.0.h5:replica0 "gradient.$left.h5:replica0" layer.5.h5:model.layers.5.mlp.up_proj/levels.1; do
  rm -r "$out.work" && damaged "$out"
  python3 - "$out.work/${file%%:*}" "${file#*:}" <<'PY'
import h5py, sys
with h5py.File(sys.argv[1]) as file:
    place = file[sys.argv[2]].id.get_offset() + 17
with open(sys.argv[1], "r+b") as file:
    file.seek(place)
    byte = file.read(1)[0]
    file.seek(place)
    file.write(bytes([byte ^ 4]))
PY
  before=$(cd "$out.work" && sha256sum ./*.h5)
  expect 3 "${file#*:}" on 2 "${run[@]}" "${streamed[@]}" --output "$out"
  [[ $(cd "$out.work" && sha256sum ./*.h5) == "$before" ]] || fail "refused work was changed"
done
rm "$out.work/boundary.0.h5"
expect 3 'boundary.0.h5 is missing' on 2 "${run[@]}" "${streamed[@]}" --output "$out"
expect 2 'there, bits = 5; here, bits = 6' on 2 "${run[@]}" "${streamed[@]}" --bits 6 --output "$out"
through 2 "${run[@]}" "${streamed[@]}" --overwrite-work --output "$out"
grep -q 'going on' "$work/err" && fail "--overwrite-work went on"
cmp "$work/whole.h5" "$out" || fail "--overwrite-work gives other bytes"

# ---- kills at random moments
python3 "$source/tests/pipeline/kill_loop.py" "${DECANT_TEST_KILLS:-4}" "${DECANT_TEST_SEED:-$RANDOM}" "$work/whole.h5" "$work/random.h5" 3,3,1,3,2 \
  "$decant" "${run[@]}" "${streamed[@]}" "${always[@]}"
echo "resumed streamed jobs: passed"
