#!/usr/bin/env bash
# Where outputs go: deep in folders, on any number of ranks, resident and streamed.
set -euo pipefail
. "${DECANT_TEST_SOURCE:?}/tests/pipeline/command.sh"
model=$source/tests/reference/llama_mha tokens=$source/tests/reference/llama_mha/tokens.npy
run=(run --model "$model" --calibration "$tokens" --bits 5)
on 1 "${run[@]}" --output "$work/plain.h5"

# ---- a path that fills what an option takes; every file that MPI opens has a longer one
folder=$work
while ((${#folder} < 900)); do folder=$folder/$(printf 'd%.0s' {1..90}); done
mkdir -p "$folder"
deep=$folder/$(printf 'o%.0s' $(seq $((1022 - ${#folder}))))
for ranks in 1 2; do
  on $ranks "${run[@]}" --checkpoint-every 0 --output "$deep" --overwrite || fail "$ranks ranks: a path of ${#deep} bytes"
  cmp "$work/plain.h5" "$deep" || fail "$ranks ranks: other bytes where the path is long"
done
on 2 "${run[@]}" --checkpoint-every 0 --memory streamed --output "$deep" --overwrite || fail "streamed: a path of ${#deep} bytes"
cmp "$work/plain.h5" "$deep" || fail "streamed: other bytes where the path is long"
"$decant" verify "$deep" >/dev/null || fail "verify: a path of ${#deep} bytes"
[[ $(ls "$folder" | wc -l) == 1 ]] || fail "left beside the output: $(ls "$folder")"
expect 2 'a path of at most 1023 bytes' "$decant" "${run[@]}" --output "${deep}oo"
echo "places of outputs: passed"
