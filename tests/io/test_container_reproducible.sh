#!/usr/bin/env bash
# The same contents give the same bytes on 1, 2, 3 and 4 ranks, whichever rank writes what, and at another time.
set -euo pipefail
program=$(dirname "$DECANT_PROGRAM")/tests/test_ranks_container
[ -x "$program" ] || program=$(dirname "$DECANT_PROGRAM")/test_ranks_container
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT

for ranks in 1 2 3 4; do
  for shift in 0 1; do
    mpirun --oversubscribe -n "$ranks" "$program" write "$folder/$ranks.$shift.h5" "$shift"
  done
done
[ "$(find "$folder" -name '*.h5' | wc -l)" = 8 ]
for file in "$folder"/*.h5; do
  cmp "$folder/1.0.h5" "$file"
done
[ -z "$(find "$folder" -name '*.partial')" ]
# A test that sees no difference must be able to see one.
mpirun --oversubscribe -n 2 "$program" write "$folder/other.h5" 0 different
if cmp -s "$folder/1.0.h5" "$folder/other.h5"; then
  echo "another text gives the same bytes"
  exit 1
fi
echo "8 containers of $(stat -c %s "$folder/1.0.h5") bytes are the same"
