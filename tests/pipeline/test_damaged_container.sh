#!/usr/bin/env bash
# Containers that are damaged, cut, foreign, or lie behind a seal that is right: verify, validate, export, inspect and allocate
# say so in one line with status 3, whatever they read of it; none crashes, hangs or leaves a folder.
# That every single byte is covered: tests/ranks/test_container_damage.c.
set -euo pipefail
. "${DECANT_TEST_SOURCE:?}/tests/pipeline/command.sh"
python3 -c 'import h5py' 2>/dev/null || { echo "h5py is not here"; exit 77; }
model=$source/tests/reference/llama_mha
on 1 run --model "$model" --calibration "$model/tokens.npy" --bits 5 --method kmeans,higgs --output "$work/good.h5"
on 1 calibrate --model "$model" --calibration "$model/tokens.npy" --output "$work/statistics.h5"

# refuses FILE COMMAND…: each of the commands does, in one line.
refuses() {
  local file=$1 command got
  shift
  for command in "$@"; do
    case $command in
      validate) set -- validate "$file" --text "$model/tokens.npy" --device cpu --quiet ;;
      export) set -- export "$file" --output "$work/exported" ;;
      allocate) set -- allocate "$file" --bits 5 ;;
      *) set -- "$command" "$file" ;;
    esac
    got=0
    timeout 60 "$decant" "$@" >"$work/out" 2>"$work/err" || got=$?
    [[ $got == 3 ]] || fail "${lie:-} $* gave $got: $(cat "$work/err")"
    [[ $(grep -c '^decant: ' "$work/err") == 1 && $(wc -l <"$work/err") == 1 ]] || fail "$*: $(cat "$work/err")"
    [[ ! -e $work/exported && ! -e $work/exported.partial ]] || fail "$* left a folder"
  done
}
all=(verify validate export inspect allocate)

# ---- flipped bytes, wherever they are; inspect and allocate read the tables alone
bytes=$(stat -c %s "$work/good.h5")
for part in $(seq 0 12); do
  python3 - "$work" $((part * (bytes - 1) / 12)) <<'PY'
import sys
raw = bytearray(open(sys.argv[1] + "/good.h5", "rb").read())
raw[int(sys.argv[2])] ^= 1 << int(sys.argv[2]) % 8
open(sys.argv[1] + "/flipped.h5", "wb").write(raw)
PY
  refuses "$work/flipped.h5" verify export validate
done

# ---- cut, grown, empty, foreign
head -c $((bytes / 2)) "$work/good.h5" >"$work/half.h5"
head -c $((bytes - 1)) "$work/good.h5" >"$work/shorter.h5"
{ cat "$work/good.h5"; echo; } >"$work/longer.h5"
: >"$work/empty.h5"
python3 - "$source/tests/pipeline" "$work" <<'PY'
import sys
sys.path.insert(0, sys.argv[1])
import change_container, h5py, numpy as np
for name in "foreign", "foreign_sealed":
    with h5py.File(f"{sys.argv[2]}/{name}.h5", "w", libver=("v108", "v110")) as file:
        file["weights"] = np.arange(100, dtype="<f4")
change_container.seal(f"{sys.argv[2]}/foreign_sealed.h5")
PY
mkdir "$work/folder.h5" && mkfifo "$work/pipe.h5"
for name in half shorter longer empty foreign foreign_sealed folder pipe absent; do refuses "$work/$name.h5" "${all[@]}"; done
refuses "$work/statistics.h5" validate export inspect allocate
refuses "$model/model.safetensors" "${all[@]}"

# ---- lies behind a right seal and right checksums
layer=model.layers.1.mlp.up_proj
lie() {
  python3 - "$source/tests/pipeline" "$work" "$layer" "$1" <<'PY'
import json, sys, zlib
sys.path.insert(0, sys.argv[1])
import change_container, h5py, numpy as np, shutil
work, name, lie = sys.argv[2:]
path = work + "/lie.h5"
shutil.copy(work + "/good.h5", path)
with h5py.File(path, "r+", libver=("v108", "v110")) as file:
    def put(where, data):
        old = {key: value for key, value in file[where].attrs.items()}
        del file[where]
        made = file.create_dataset(where, data=data, track_times=False)
        for key, value in old.items():
            made.attrs[key] = value
        made.attrs["crc32"] = np.int64(zlib.crc32(np.ascontiguousarray(data).tobytes()))
    def change_config(**values):
        return np.frombuffer(json.dumps(dict(json.loads(file["config"][:].tobytes()), **values)).encode(), "u1")
    kmeans = next(n for n in file["errors/layers"][:].tobytes().decode().split() if file[n].attrs["method"][:6] == b"kmeans" and "sparse" in file[n])
    higgs = next((n for n in file["errors/layers"][:].tobytes().decode().split() if file[n].attrs["method"][:5] == b"higgs"), None)
    assert higgs, "make the container one of both methods"
    exec({
        "version": "file.attrs['schema_version'] = np.int64(99)",
        "bits": "file[kmeans].attrs['bits'] = np.int64(40)",
        "fewer_bits": "file[kmeans].attrs['bits'] = np.int64(file[kmeans].attrs['bits'] - 1)",
        "method": "file[kmeans].attrs['method'] = np.bytes_(b'magic')",
        "no_method": "del file[kmeans].attrs['method']",
        "codes": "put(kmeans + '/codes', file[kmeans]['codes'][:-1])",
        "codes_type": "put(kmeans + '/codes', file[kmeans]['codes'][:].astype('<i4'))",
        "levels": "put(kmeans + '/levels', file[kmeans]['levels'][:, :-1])",
        "columns": "put(kmeans + '/sparse/columns', file[kmeans]['sparse/columns'][:] + 60000)",
        "offsets": "put(kmeans + '/sparse/row_offsets', file[kmeans]['sparse/row_offsets'][:][::-1])",
        "values": "put(kmeans + '/sparse/values', file[kmeans]['sparse/values'][:-1])",
        "no_codes": "del file[kmeans + '/codes']",
        "rotation": "file[higgs].attrs['rotation'] = np.int64(3)",
        "dimension": "file[higgs].attrs['dimension'] = np.int64(1 << 40)",
        "group": "file[higgs].attrs['group'] = np.int64(-1)",
        "grid": "file[higgs].attrs['grid'] = np.bytes_(b'/config')",
        "scales": "put(higgs + '/scales', file[higgs]['scales'][:-1])",
        "norm": "put('model.norm.weight', file['model.norm.weight'][:-1])",
        "config": "put('config', np.frombuffer(b'{\"architectures\":[1]}', 'u1'))",
        "layers": "put('config', change_config(num_hidden_layers=4))",
        "many_layers": "put('config', change_config(num_hidden_layers=1 << 30))",
        "width": "put('config', change_config(intermediate_size=100))",
    }[lie])
change_container.seal(path)
PY
}
for lie in version bits fewer_bits method no_method codes codes_type levels columns offsets values no_codes rotation dimension group \
  grid scales norm config layers many_layers width; do
  lie "$lie"
  refuses "$work/lie.h5" validate
  # A configuration that cannot be read may be that of an architecture that decant does not know.
  [[ $lie == config || $lie == many_layers ]] || refuses "$work/lie.h5" verify export
  got=0 # tables that are true: there may well be nothing to find
  timeout 60 "$decant" inspect "$work/lie.h5" >"$work/out" 2>"$work/err" || got=$?
  [[ $got == 0 || $got == 3 ]] || fail "inspect: $lie gave $got: $(cat "$work/err")"
done
echo "damaged and lying containers: passed"
