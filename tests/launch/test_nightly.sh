#!/usr/bin/env bash
# launch/nightly: a first night, one where nothing changed, one with files touched, one with one tensor changed, a bad model
# that the gate refuses, a bad file, retention, and the lock.
set -euo pipefail
decant=${DECANT_PROGRAM:?} source=${DECANT_TEST_SOURCE:?}
python=$source/.venv/bin/python
[[ -x $python ]] || python=python3
"$python" -c 'import h5py' 2>/dev/null || { echo "h5py is not here"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

fail() { echo "FAILED: $*" >&2; cat said night/report.txt >&2; exit 1; }

# night STATUS RUNS PATTERN OPTIONS…: the exit status, how many times decant quantized, a line of the report.
night() {
  local status=$1 runs=$2 pattern=$3 got=0
  shift 3
  : >asked
  sleep 1.1 # nights are named by the second
  "$source/launch/nightly" nightly.ini "$@" >said 2>&1 || got=$?
  [[ $got == "$status" ]] || fail "the night gave $got, not $status"
  [[ $(grep -c '^run ' asked || true) == "$runs" ]] || fail "decant quantized other than $runs times: $(cat asked)"
  grep -q -- "$pattern" said || fail "the night does not say '$pattern'"
}
containers() { find night -name '????-*.h5' | wc -l; }
# change NAME HOW: a tensor's bytes, by a Python expression of the array of F32
change() {
  "$python" - "$1" "$2" <<'PY'
import json, struct, sys
import numpy as np
path = "model/model.safetensors"
raw = bytearray(open(path, "rb").read())
size = struct.unpack("<Q", raw[:8])[0]
first, end = json.loads(raw[8 : 8 + size])[sys.argv[1]]["data_offsets"]
old = np.frombuffer(bytes(raw[8 + size + first : 8 + size + end]), np.float32)
new = eval(sys.argv[2], {"w": old, "np": np}).astype(np.float32)
assert not np.array_equal(new, old)
raw[8 + size + first : 8 + size + end] = new.tobytes()
open(path, "wb").write(raw)
PY
}

cp -r "$source/tests/reference/llama_mha" model
cat >program <<STANDIN
#!/bin/bash
[[ \${OMPI_COMM_WORLD_RANK:-0} != 0 ]] || echo "\$@" >>$work/asked
exec "$decant" "\$@"
STANDIN
chmod +x program
cat >nightly.ini <<INI
model = $work/model
calibration = $work/model/tokens.npy
text = $work/model/tokens.npy
bits = 6
device = cpu
quiet = yes
folder = $work/night
nights = 2
worse = 20
ranks = 2
decant = $work/program
INI

night 0 1 'there is no container yet'
first=$(readlink night/current.h5)
mpirun -n 1 "$decant" run --model model --calibration model/tokens.npy --text model/tokens.npy --bits 6 --device cpu --quiet \
  --output plain.h5 >/dev/null
cmp night/current.h5 plain.h5 || fail "not the container of decant run"

night 0 0 "nothing has changed since ${first%.h5}"
touch model/model.safetensors model/config.json
night 0 0 'nothing has changed'

change model.layers.1.mlp.up_proj.weight 'w * np.float32(1.001)'
night 0 1 'model.layers.1.mlp.up_proj.weight has changed'
[[ $(grep -c 'has changed$' said) == 1 ]] || fail "other tensors than the one"
second=$(readlink night/current.h5)
[[ $second != "$first" && $(containers) == 2 ]] || fail "the second container is not there"
change model.norm.weight 'w * np.float32(1.001)' # one that is not quantized
night 0 1 'model.norm.weight has changed'
[[ $(containers) == 2 && ! -e night/$first ]] || fail "retention keeps other nights than the last two"
current=$(readlink night/current.h5)

change model.norm.weight 'w * 10'
night 1 1 'refused, worse by more than 20 %: perplexity_quantized'
[[ $(readlink night/current.h5) == "$current" && $(containers) == 2 ]] || fail "a refused container has taken a place"
"$decant" verify night/current.h5 >/dev/null || fail "current.h5 was harmed"
night 0 0 'since this was refused'
night 0 1 'current.h5 is' --accept
[[ $(readlink night/current.h5) != "$current" ]] || fail "--accept keeps the old one"
current=$(readlink night/current.h5)

sed -i 's/^bits = .*/bits = 1.5/' nightly.ini # less than the smallest candidates
night 2 1 'decant ended with 2'
grep -q 'bits: 6 became 1.5' said || fail "no reason"
[[ $(readlink night/current.h5) == "$current" ]] || fail "a night that failed has changed current.h5"
sed -i 's/^bits = .*/bits = 6/' nightly.ini

flock night/lock sleep 3 &
sleep 0.3
night 75 0 'another night is at work'
wait
echo "nightly: passed"
