#!/usr/bin/env python3
"""Checks the arrows between the rooms: which folder may include which, and who may know MPI, CUDA and HDF5.

usage: test_layout.py [SOURCE_FOLDER]
Reads #include lines only. Prints every include that is against the rules and exits 1 if there is one.
"""

import re
import sys
from pathlib import Path

ROOMS = ["base", "kernels", "io", "stages", "pipeline"]
MAY_INCLUDE = {
    "base": {"base"},
    "kernels": {"base", "kernels"},
    "io": {"base", "io"},
    "stages": {"base", "kernels", "io", "stages"},
    "pipeline": {"base", "kernels", "io", "stages", "pipeline"},
}
# Pattern of a library's headers, and the files that alone may include them (path prefixes).
LIBRARIES = {
    r"mpi\.h": ["base/ranks.", "io/container", "io/hdf5"],
    r"hdf5\.h|H5.*\.h": ["io/"],
    r"zlib\.h": ["io/"],
    r"cuda.*|cublas.*|cusparse.*|cub/.*|mma\.h": ["kernels/cuda/"],
    r"cblas\.h": ["kernels/cpu/"],
    r"omp\.h": ["kernels/cpu/", "kernels/cuda/"],
    r"getopt\.h": ["pipeline/options.c"],
}
# Within kernels, a backend's files are its own; everyone else sees backend.h.
PRIVATE = {"kernels/cpu/": ["kernels/cpu/"], "kernels/cuda/": ["kernels/cuda/"]}

INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]')


def complaints(root: Path) -> list[str]:
    found = []
    for room in ROOMS:
        for path in sorted((root / room).rglob("*")):
            if path.suffix not in {".c", ".h", ".cu", ".cuh"}:
                continue
            name = path.relative_to(root).as_posix()
            for number, line in enumerate(path.read_text().splitlines(), 1):
                if match := INCLUDE.match(line):
                    if reason := objection(name, room, match[1]):
                        found.append(f"{name}:{number}: includes {match[1]}: {reason}")
    return found


def objection(name: str, room: str, header: str) -> str | None:
    target = header.split("/")[0]
    if target in ROOMS and "/" in header:
        if target not in MAY_INCLUDE[room]:
            return f"{room} may not know {target}"
        for prefix, users in PRIVATE.items():
            if header.startswith(prefix) and not any(name.startswith(user) for user in users):
                return f"{prefix} is private; use kernels/backend.h"
    for pattern, users in LIBRARIES.items():
        if re.fullmatch(pattern, header) and not any(name.startswith(user) for user in users):
            return "only " + ", ".join(users) + " may"
    if room in {"pipeline"} and header.startswith("kernels/") and header != "kernels/backend.h":
        return "use kernels/backend.h"
    return None


def main() -> int:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[2]
    found = complaints(root)
    print("\n".join(found) if found else "every arrow is as drawn")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
