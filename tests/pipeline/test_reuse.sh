#!/usr/bin/env bash
# decant run --reuse: what is taken over from an earlier container is what would come out the same, and the new container has
# the bytes of one that was made without; what is taken over is really used; what is not the same is not taken over.
set -euo pipefail
. "${DECANT_TEST_SOURCE:?}/tests/pipeline/command.sh"
model=$work/model
cp -r "$source/tests/reference/llama_mha" "$model" # three layers, 21 matrices
tokens=$model/tokens.npy
change() {
  compared=
  python3 "$source/tests/pipeline/change_tensor.py" "$model" "$@"
}

# reused RANKS EARLIER TAKEN OPTIONS…: a run with --reuse takes over TAKEN matrices and has the bytes of one without.
compared=
reused() {
  local ranks=$1 earlier=$2 taken=$3
  shift 3
  [[ $compared == "$*" ]] || on 1 run --model "$model" "$@" --output "$work/fresh.h5" --overwrite
  compared="$*"
  on "$ranks" run --model "$model" "$@" --reuse "$earlier" --log "$work/log" --output "$work/reused.h5" --overwrite
  cmp "$work/fresh.h5" "$work/reused.h5" || fail "'$*' on $ranks ranks: other bytes than without --reuse"
  grep '"event":"reuse"' "$work/log" | grep -q "\"taken\":$taken," || fail "'$*': not $taken taken over: $(grep reuse "$work/log")"
}
anew() { python3 -c '
import json, sys
print(*sorted(line["matrix"] for line in map(json.loads, open(sys.argv[1])) if line["event"] == "quantized_anew" and line["why"] == sys.argv[2]))' \
  "$work/log" "$1"; }

on 2 calibrate --model "$model" --calibration "$tokens" --output "$work/statistics.h5"
on 1 run --model "$model" --calibration "$tokens" --bits 5 --output "$work/first.h5" # in one go: the same container
statistics=(--statistics "$work/statistics.h5")

# ---- nothing has changed; another budget: what gets another candidate is quantized
for ranks in 1 3; do reused $ranks "$work/first.h5" 21 "${statistics[@]}" --bits 5; done
[[ -z $(anew weights)$(anew allocation) ]] || fail "quantized though nothing has changed"
reused 3 "$work/first.h5" '[0-9]*' "${statistics[@]}" --bits 4.8
others=$(anew allocation | wc -w)
grep -q "\"taken\":$((21 - others)),.*\"other_weights\":0,\"other_candidates\":$others," "$work/log" || fail "$(grep reuse "$work/log")"
((others > 0 && others < 21)) || fail "$others matrices with another candidate: choose another budget"

# ---- one tensor has changed: statistics of before are refused, and taken when asked to; that matrix alone is quantized, and
# what the allocation decides otherwise
changed=model.layers.1.mlp.up_proj
change $changed.weight 'w * np.float32(1.25)'
expect 3 'another model than .*--old-statistics' on 2 run --model "$model" "${statistics[@]}" --bits 5 --output "$work/no.h5"
old=("${statistics[@]}" --old-statistics)
for ranks in 2 5; do
  reused $ranks "$work/first.h5" '[0-9]*' "${old[@]}" --bits 5 --replicas 1
  [[ $(anew weights) == "$changed" ]] || fail "quantized for their weights: $(anew weights)"
done
reused 2 "$work/first.h5" '[0-9]*' "${old[@]}" --bits 5 --memory streamed --text "$tokens" >/dev/null
python3 - "$work" <<'PY' || fail "the container does not say from which weights its statistics are"
import h5py, sys
fresh, first = (h5py.File(f"{sys.argv[1]}/{name}.h5").attrs for name in ("fresh", "first"))
assert fresh["statistics_model_crc32"] == first["model_crc32"] != fresh["model_crc32"]
assert "statistics_model_crc32" not in first
PY
cp "$work/fresh.h5" "$work/second.h5"
reused 2 "$work/second.h5" 21 "${old[@]}" --bits 5 --text "$tokens" >/dev/null # the statistics are those of before in both
on 1 run --model "$model" "${old[@]}" --bit-widths 4 --output "$work/four.h5"
change $changed.weight 'w * np.float32(0.9)'
reused 3 "$work/four.h5" 20 "${old[@]}" --bit-widths 4
change model.norm.weight 'w * np.float32(1.1)' # no quantized one
reused 2 "$work/reused.h5" 21 "${old[@]}" --bit-widths 4

# ---- other methods, without statistics and mixed with k-means
on 2 calibrate --model "$model" --calibration "$tokens" --method guided --output "$work/guided.h5"
for options in "--statistics $work/guided.h5 --old-statistics --method kmeans,guided --guided-sparse 0,1 --bits 5.6" "--method higgs --bit-widths 4" "--method higgs,rtn,nf4 --bits 4.8 --grid-dimension 1,2 --group 0,16" \
  "${old[*]} --method kmeans,higgs,rtn --bits 5.6 --group 0,24"; do
  # shellcheck disable=SC2086 # several options in one word
  on 1 run --model "$model" $options --output "$work/other.h5" --overwrite
  change model.layers.2.self_attn.k_proj.weight 'w * np.float32(1.5)'
  # shellcheck disable=SC2086
  for ranks in 1 2; do reused $ranks "$work/other.h5" '[1-9][0-9]*' $options; done
  [[ $(anew weights) == model.layers.2.self_attn.k_proj ]] || fail "$options: quantized $(anew weights)"
done

# ---- what is there is used: other codes, with their checksums right, come out again
on 1 run --model "$model" "${old[@]}" --bits 5 --output "$work/good.h5"
forge() { # FILE PATH EXPRESSION: of the values, as `v`
  cp "$work/good.h5" "$1"
  python3 - "$source/tests/pipeline" "$@" <<'PY'
import sys, zlib
sys.path.insert(0, sys.argv[1])
import change_container, h5py, numpy as np
with h5py.File(sys.argv[2], "r+", libver=("v108", "v110")) as file:
    data = file[sys.argv[3]]
    data[...] = eval(sys.argv[4], {"v": data[...], "np": np})
    data.attrs["crc32"] = np.int64(zlib.crc32(data[...].tobytes()))
change_container.seal(sys.argv[2])
PY
}
forge "$work/forged.h5" model.layers.0.self_attn.q_proj/codes 'v ^ np.uint32(1)'
on 2 run --model "$model" "${old[@]}" --bits 5 --reuse "$work/forged.h5" --output "$work/taken.h5"
expect 3 'differ' "$decant" compare "$work/good.h5" "$work/taken.h5"
grep -q 'q_proj/codes' "$work/out" || fail "other datasets than the forged one differ: $(cat "$work/out")"

# ---- a table that says what no quantization comes to is found where a matrix gets another candidate; damage always
forge "$work/forged.h5" errors/predicted 'v * np.where(np.arange(v.shape[1]) > 2, 0.5, 2)'
expect 3 'not what this decant makes' on 2 run --model "$model" "${old[@]}" --bits 4.8 --reuse "$work/forged.h5" --output "$work/no.h5"
cp "$work/good.h5" "$work/damaged.h5"
python3 - "$work/damaged.h5" <<'PY'
import h5py, sys
with h5py.File(sys.argv[1]) as file:
    place = file["model.layers.1.mlp.down_proj/codes"].id.get_offset() + 5
with open(sys.argv[1], "r+b") as file:
    file.seek(place)
    byte = file.read(1)[0]
    file.seek(place)
    file.write(bytes([byte ^ 4]))
PY
expect 3 'down_proj/codes' on 2 run --model "$model" "${old[@]}" --bits 5 --reuse "$work/damaged.h5" --output "$work/no.h5"
[[ ! -e $work/no.h5 ]] || fail "a refused run left an output"

# ---- what is not the same is not taken over
nothing() { # PATTERN OPTIONS…: nothing is taken over from $earlier, and why
  local pattern=$1
  shift
  reused 2 "$earlier" 0 "$@"
  grep '"event":"reuse"' "$work/log" | grep -q -- "$pattern" || fail "'$*' does not say '$pattern': $(grep '"reuse"' "$work/log")"
}
earlier=$work/good.h5
nothing 'outliers=.* there, outliers=' "${old[@]}" --bits 5 --outliers 1%
nothing 'levels=exact there, levels=lloyd here' "${old[@]}" --bits 5 --levels lloyd
nothing 'bit-widths=' "${old[@]}" --bits 5 --bit-widths 2-5
on 1 run --model "$model" "${old[@]}" --method nf4 --output "$work/nf4.h5"
earlier=$work/nf4.h5
nothing 'made with statistics' --method nf4
earlier=$work/good.h5
on 1 calibrate --model "$model" --calibration "$tokens" --output "$work/new.h5"
nothing 'statistics_model_crc32: ' --statistics "$work/new.h5" --bits 5
on 1 calibrate --model "$model" --calibration "$tokens" --sequences 4 --output "$work/four_sequences.h5"
nothing 'calibration_crc32: ' --statistics "$work/four_sequences.h5" --bits 5
on 1 calibrate --model "$model" --calibration "$tokens" --fisher sequence --output "$work/sequence.h5"
on 1 run --model "$model" --statistics "$work/new.h5" --bits 5 --output "$work/good.h5" --overwrite
nothing 'fisher=token there, fisher=sequence here' --statistics "$work/sequence.h5" --bits 5
on 1 calibrate --model "$model" --calibration "$tokens" --micro-batch 1 --output "$work/one.h5"
nothing 'calibration_micro_batch: ' --statistics "$work/one.h5" --bits 5
python3 "$source/tests/pipeline/change_container.py" "$work/good.h5" "$work/older.h5" / program_version 0.0.9
earlier=$work/older.h5
nothing 'program_version: 0.0.9 there' --statistics "$work/new.h5" --bits 5

# ---- refused
expect 2 'needs --statistics, for --reuse' on 1 run --model "$model" --calibration "$tokens" --bits 5 --reuse "$work/first.h5" --output "$work/no.h5"
expect 2 'sensitivity fisher alone' on 1 run --model "$model" "${old[@]}" --bits 5 --sensitivity noise --reuse "$work/first.h5" --output "$work/no.h5"
expect 3 'absent.h5' on 2 run --model "$model" "${old[@]}" --bits 5 --reuse "$work/absent.h5" --output "$work/no.h5"
expect 3 'not a model' on 2 run --model "$model" "${old[@]}" --bits 5 --reuse "$work/statistics.h5" --output "$work/no.h5"
echo "reuse: passed"
