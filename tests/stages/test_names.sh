#!/usr/bin/env bash
# Tensors with names as long as they may be pass into a container and out again, one byte more is refused before any work.
# Built with AddressSanitizer this sees to the list of names, too, in which such a name leaves no byte free.
set -euo pipefail
. "${DECANT_TEST_SOURCE:?}/tests/pipeline/command.sh"

# make_model FOLDER LAYER_BYTES TENSOR_BYTES: one linear layer and one vector, with names of so many bytes.
make_model() {
  mkdir "$1" && python3 - "$@" <<'PY'
import json, struct, sys
folder, layer, tensor = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
header = json.dumps({
    "a" * layer + ".weight": {"dtype": "F16", "shape": [4, 32], "data_offsets": [0, 256]},
    "n" * tensor: {"dtype": "F16", "shape": [32], "data_offsets": [256, 320]}}).encode()
data = struct.pack("<160e", *(0.01 * (i % 17 - 8) for i in range(160)))
open(folder + "/model.safetensors", "wb").write(struct.pack("<Q", len(header)) + header + data)
PY
}
quantize=(run --method rtn --bit-widths 4)

make_model "$work/long" 127 254
on 1 "${quantize[@]}" --model "$work/long" --output "$work/long.h5"
"$decant" verify "$work/long.h5" >/dev/null
on 1 export "$work/long.h5" --model "$work/long" --output "$work/exported"
python3 - "$work/exported/model.safetensors" <<'PY'
import json, struct, sys
raw = open(sys.argv[1], "rb").read()
header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
assert set(header) == {"__metadata__", "a" * 127 + ".weight", "n" * 254}, sorted(header)
PY

make_model "$work/longer" 127 255
expect 3 "no container can have a tensor named nnnn" on 1 "${quantize[@]}" --model "$work/longer" --output "$work/longer.h5"
[[ ! -e $work/longer.h5 && ! -e $work/longer.h5.partial ]] || fail "a container was begun"
echo "names: passed"
