#!/usr/bin/env python3
"""Changes one tensor of a model of F32 in model.safetensors, in place.

usage: change_tensor.py MODEL TENSOR EXPRESSION     of the array w of its values: 'w * 1.001'
"""

import json
import struct
import sys

import numpy as np


def main() -> None:
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    path = sys.argv[1] + "/model.safetensors"
    with open(path, "rb") as file:
        raw = bytearray(file.read())
    size = struct.unpack("<Q", raw[:8])[0]
    first, end = json.loads(raw[8 : 8 + size])[sys.argv[2]]["data_offsets"]
    old = np.frombuffer(bytes(raw[8 + size + first : 8 + size + end]), np.float32)
    new = eval(sys.argv[3], {"w": old, "np": np}).astype(np.float32)
    assert not np.array_equal(new, old)
    raw[8 + size + first : 8 + size + end] = new.tobytes()
    with open(path, "wb") as file:
        file.write(raw)


if __name__ == "__main__":
    main()
