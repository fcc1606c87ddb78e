#!/usr/bin/env python3
"""Makes containers that lie, and containers of schema version 1: changes a container with h5py and seals it again.

usage: change_container.py IN.h5 OUT.h5 GROUP ATTRIBUTE VALUE    another value of an attribute, of the same type
       change_container.py IN.h5 OUT.h5 GROUP ATTRIBUTE none     without the attribute
       change_container.py IN.h5 OUT.h5 version-1                 as schema version 1 had it; k-means layers alone
The seal is that of io/container_seal.h.
"""

import shutil
import struct
import sys
import zlib

import h5py
import numpy as np


def change_attribute(file: h5py.File, group: str, name: str, value: str) -> None:
    attributes = file[group].attrs
    if value == "none":
        del attributes[name]
    elif isinstance(attributes[name], bytes):
        text = np.bytes_(value.encode() + b"\0")
        attributes.create(name, text, dtype=h5py.string_dtype("utf-8", len(text) + 1))
    else:
        attributes[name] = np.int64(int(value))


def make_version_1(file: h5py.File) -> None:
    errors = file["errors"]
    assert set(errors["methods"][:].tobytes().split()) == {b"kmeans"}
    bits = errors.create_dataset("bits", data=errors["code_bits"][:], track_times=False)
    bits.attrs["crc32"] = np.int64(zlib.crc32(bits[:].tobytes()))
    for name in ("methods", "code_bits", "dimension", "group", "sparse"):
        del errors[name]
    file.attrs["schema_version"] = np.int64(1)


def data_stretches(path: str) -> list[tuple[int, int]]:
    found = []

    def visit(_, thing):
        if isinstance(thing, h5py.Dataset) and thing.nbytes:
            found.append((thing.id.get_offset(), thing.id.get_offset() + thing.nbytes))

    with h5py.File(path) as file:
        file.visititems(visit)
    return sorted(found)


def seal(path: str) -> None:
    with open(path, "rb") as file:
        content = file.read()
    begins = [0] + [end for _, end in data_stretches(path)]
    ends = [begin for begin, _ in data_stretches(path)] + [len(content)]
    rest = [(begin, end) for begin, end in zip(begins, ends) if begin < end]
    tail = b"".join(struct.pack("<QQ", *stretch) for stretch in rest) + struct.pack("<QQ", len(rest), len(content))
    checksum = 0
    for begin, end in rest:
        checksum = zlib.crc32(content[begin:end], checksum)
    checksum = zlib.crc32(tail, checksum)
    with open(path, "ab") as file:
        file.write(tail + struct.pack("<Q", checksum) + b"decant sealed 1\n")


def main() -> None:
    if len(sys.argv) not in (4, 6):
        sys.exit(__doc__)
    shutil.copyfile(sys.argv[1], sys.argv[2])
    with h5py.File(sys.argv[2], "r+", libver=("v108", "v110")) as file:
        if sys.argv[3] == "version-1":
            make_version_1(file)
        else:
            change_attribute(file, *sys.argv[3:])
    seal(sys.argv[2])


if __name__ == "__main__":
    main()
