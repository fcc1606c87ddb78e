#!/usr/bin/env bash
# Every C, CUDA and header file is formatted as .clang-format says (version 14, whose output others may not match).
set -euo pipefail
cd "$(dirname "$0")/../.."
for program in clang-format-14 clang-format; do
  if command -v $program >/dev/null && $program --version | grep -q 'version 14\.'; then break; fi
  program=
done
[ -n "$program" ] || { echo "clang-format 14 is not here"; exit 77; }
find base io kernels stages pipeline tests -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' | sort |
  xargs "$program" --dry-run -Werror
