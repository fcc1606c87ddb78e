#!/usr/bin/env python3
"""Reads a decant container with h5py and NumPy alone: turns a quantized layer back into a matrix.

usage: read_container.py M.h5 [LAYER]
Without LAYER lists the layers; with it prints the layer's shape, bits and a corner of the matrix.
"""

import sys

import h5py
import numpy as np


def unpack_codes(planes: np.ndarray, columns: int) -> np.ndarray:
    """Codes [rows, columns] from bit planes U32 [rows, bits, words]: bit j % 32 of word j / 32 of plane b is bit b."""
    rows, bits, _ = planes.shape
    as_bytes = planes.astype("<u4").view(np.uint8).reshape(rows, bits, -1)
    plane_bits = np.unpackbits(as_bytes, axis=2, bitorder="little")[:, :, :columns]
    return sum(plane_bits[:, b].astype(np.uint16) << b for b in range(bits))


def read_layer(container: h5py.File, name: str) -> np.ndarray:
    """The weight matrix F32 [rows, columns] of a quantized layer: levels by code, plus the sparse part."""
    layer = container[name]
    columns = int(layer.attrs["columns"])
    codes = unpack_codes(layer["codes"][:], columns)
    weight = np.take_along_axis(layer["levels"][:].astype(np.float32), codes.astype(np.int64), axis=1)
    if "sparse" in layer:
        offsets = layer["sparse/row_offsets"][:]
        rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        weight[rows, layer["sparse/columns"][:]] += layer["sparse/values"][:].astype(np.float32)
    return weight


def main() -> None:
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    with h5py.File(sys.argv[1]) as container:
        if len(sys.argv) == 2:
            print(bytes(container["errors/layers"][:]).decode(), end="")
            return
        weight = read_layer(container, sys.argv[2])
        print(f"{weight.shape[0]} x {weight.shape[1]}, {container[sys.argv[2]].attrs['bits']} bits")
        print(weight[:4, :6])


if __name__ == "__main__":
    main()
