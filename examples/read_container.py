#!/usr/bin/env python3
"""Reads a decant container with h5py and NumPy alone: turns a quantized layer back into a matrix.

usage: read_container.py M.h5 [LAYER]
Without LAYER lists the layers; with it prints the layer's shape, method, bits and a corner of the matrix.
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


def mix(x: int) -> int:
    """The finalizer of splitmix64."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def column_signs(seed: int, columns: int) -> np.ndarray:
    """The random signs +1 and -1 of a rotated layer's columns: 64 columns a random word."""
    odd = 0x9E3779B97F4A7C15
    row = mix(mix((seed + odd) % 2**64) ^ odd)
    words = [mix(row ^ (word + 1) * odd % 2**64) for word in range((columns + 63) // 64)]
    bits = np.array([words[column // 64] >> (column % 64) & 1 for column in range(columns)])
    return np.where(bits == 1, -1, 1).astype(np.float32)


def rotate(rows: np.ndarray, size: int) -> np.ndarray:
    """Every `size` columns times the orthonormal Walsh-Hadamard matrix, which is its own inverse."""
    hadamard = np.ones((1, 1), np.float32)
    while len(hadamard) < size:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    pieces = rows.reshape(len(rows), -1, size) @ (hadamard / np.float32(np.sqrt(size)))
    return pieces.reshape(rows.shape)


def read_grid_layer(container: h5py.File, name: str) -> np.ndarray:
    """A layer whose rows lie on a grid: points by code, scaled and shifted by group, rotated back."""
    layer = container[name]
    columns, dimension = int(layer.attrs["columns"]), int(layer.attrs["dimension"])
    points = container[layer.attrs["grid"].decode()][:]
    codes = unpack_codes(layer["codes"][:], -(-columns // dimension))
    group = np.arange(codes.shape[1]) * dimension // int(layer.attrs["group"])
    weight = points[codes] * layer["scales"][:].astype(np.float32)[:, group, None]
    if "offsets" in layer:
        weight += layer["offsets"][:].astype(np.float32)[:, group, None]
    weight = weight.reshape(len(weight), -1)[:, :columns]
    if (size := int(layer.attrs["rotation"])) > 1:
        weight = rotate(weight, size) * column_signs(int(layer.attrs["seed"]) % 2**64, columns)
    return weight


def read_layer(container: h5py.File, name: str) -> np.ndarray:
    """The weight matrix F32 [rows, columns] of a quantized layer: levels by code plus the sparse part, or a grid's."""
    layer = container[name]
    if "grid" in layer.attrs:
        return read_grid_layer(container, name)
    columns = int(layer.attrs["columns"])
    codes = unpack_codes(layer["codes"][:], columns)
    levels = layer["levels"][:].astype(np.float32)
    if "level_exponents" in layer:
        levels = (levels - 128) * 2.0 ** (layer["level_exponents"][:].astype(np.float32)[:, None] - 24)
    weight = np.take_along_axis(levels, codes.astype(np.int64), axis=1)
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
        method, bits = container[sys.argv[2]].attrs["method"].decode(), container[sys.argv[2]]["codes"].shape[1]
        print(f"{weight.shape[0]} x {weight.shape[1]}, {method}, codes of {bits} bits")
        print(weight[:4, :6])


if __name__ == "__main__":
    main()
