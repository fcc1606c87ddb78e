#!/usr/bin/env bash
# A stock h5py reads a container: types, shapes, attributes, checksums. Skipped where there is no h5py.
set -euo pipefail
source=${DECANT_TEST_SOURCE:-$(dirname "$0")/../..}
python=
for candidate in "$source/.venv/bin/python" python3; do
  if "$candidate" -c 'import h5py, numpy' 2>/dev/null; then python=$candidate; break; fi
done
[ -n "$python" ] || { echo "h5py is not here"; exit 77; }
program=$(dirname "$DECANT_PROGRAM")/tests/test_ranks_container
[ -x "$program" ] || program=$(dirname "$DECANT_PROGRAM")/test_ranks_container
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
mpirun --oversubscribe -n 2 "$program" write "$folder/model.h5" 0

"$python" - "$folder/model.h5" <<'PYTHON'
import sys
import zlib

import h5py
import numpy

expected = {
    "model.layers.0.mlp.up_proj/codes": ("<u4", (7, 3, 5)),
    "model.layers.0.mlp.up_proj/levels": ("<f2", (7, 8)),
    "model.layers.0.mlp.up_proj/sparse/row_offsets": ("<i8", (8,)),
    "model.layers.0.mlp.up_proj/sparse/columns": ("<u2", (0,)),
    "model.layers.0.mlp.up_proj/sparse/values": ("<f2", (0, 4)),
    "config": ("|u1", (333,)),
    "model.embed_tokens.weight": ("<u2", (11, 13)),
    "errors": ("<f8", (2, 3, 1, 4)),
    "count": ("<i4", ()),
    "norm": ("<f4", (300,)),
    "model.layers.0.mlp.up_proj.bias": ("<f4", (7,)),
}
with h5py.File(sys.argv[1]) as file:
    found = {}
    file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
    assert set(found) == set(expected), set(found) ^ set(expected)
    for name, (kind, shape) in expected.items():
        data = found[name][()]
        assert found[name].dtype == numpy.dtype(kind), (name, found[name].dtype)
        assert found[name].shape == shape, (name, found[name].shape)
        assert zlib.crc32(numpy.ascontiguousarray(data).tobytes()) == found[name].attrs["crc32"], name
    assert found["model.embed_tokens.weight"].attrs["element"] == b"BF16"
    assert file.attrs["format"] == b"decant" and file.attrs["schema_version"] == 2
    assert file["model.layers.0.mlp.up_proj"].attrs["bits"] == -3
    assert file.attrs["measured"] == 18.463
    # The type is the very one that h5py makes for float16.
    with h5py.File("twin", "w", driver="core", backing_store=False) as other:
        twin = other.create_dataset("x", data=numpy.zeros(1, numpy.float16))
        assert twin.id.get_type().equal(found["model.layers.0.mlp.up_proj/levels"].id.get_type())
print(f"{len(expected)} datasets as h5py sees them")
PYTHON
