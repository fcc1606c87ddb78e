#!/usr/bin/env bash
# A stock h5py decodes what decant wrote: the matrices it gives back are as far from the original as the container says.
set -euo pipefail
decant=${DECANT_PROGRAM:?} source=${DECANT_TEST_SOURCE:?}
python=$source/.venv/bin/python
[[ -x $python ]] || python=python3
"$python" -c 'import h5py, numpy' 2>/dev/null || { echo "h5py is not here"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
model=$source/tests/reference/llama_mha
for options in "--bit-widths 3" "--bits 6.5 --outliers 2% --sensitive 1%" "--bit-widths 8 --outliers 0 --sensitive 0" \
  "--method higgs --bit-widths 4 --seed 18446744073709551615" "--method higgs --bit-widths 2.67 --grid-dimension 3" \
  "--method higgs --bit-widths 3 --grid-dimension 1,4 --group 0,16,20 --bits 4.9" "--method rtn --bit-widths 5 --group 10" \
  "--method nf4" "--method kmeans,higgs,rtn,nf4 --bits 4.8 --group 0,24"; do
  # shellcheck disable=SC2086
  "$decant" run --model "$model" --calibration "$model/tokens.npy" $options --output "$work/m.h5" --overwrite --quiet \
    --device cpu
  PYTHONPATH=$source/examples "$python" - "$work/m.h5" "$model/model.safetensors" <<'PY'
import json, struct, sys
import h5py, numpy as np
from read_container import read_layer

raw = open(sys.argv[2], "rb").read()
size = struct.unpack("<Q", raw[:8])[0]
header = json.loads(raw[8 : 8 + size])
checked = 0
with h5py.File(sys.argv[1]) as container:
    for name in bytes(container["errors/layers"][:]).decode().split():
        entry = header[name + ".weight"]
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        original = np.frombuffer(raw[begin:end], "<f4").reshape(entry["shape"]).astype(np.float64)
        error = np.sum((original - read_layer(container, name)) ** 2) / np.sum(original**2)
        stored = container[name].attrs["relative_error"]
        assert abs(error - stored) <= 1e-4 * stored + 1e-12, (name, error, stored)
        checked += 1
assert checked == 21, checked
PY
done
echo "h5py reads what decant wrote"
