#!/usr/bin/env bash
# decant generate: the original's tokens are those that transformers generates, the quantized model's are those of the
# weights that it stands for, several prompts and one token as a prompt; bad input is refused in one line.
set -euo pipefail
. "${DECANT_TEST_SOURCE:?}/tests/pipeline/command.sh"
reference=$source/tests/reference

for name in llama_gqa_tied mistral_window qwen2_biases opt_before opt_behind; do
  model=$reference/$name method=(--method rtn)
  [[ $name == qwen2_biases ]] && method=(--method kmeans --calibration "$model/tokens.npy" --outliers 2%)
  "$decant" run --model "$model" "${method[@]}" --bit-widths 3 --output "$work/$name.h5" --quiet --device cpu >/dev/null
  "$decant" export "$work/$name.h5" --output "$work/$name.f32" --model "$model" --element f32 >/dev/null
  for weights in "$model" "$work/$name.f32"; do
    "$decant" generate "$work/$name.h5" --model "$weights" --prompt "$reference/prompts.npy" --new-tokens 24 --quiet --json \
      --device cpu --log "$work/log" >"$work/$(basename "$weights").json"
  done
  grep -q '"event":"generate"' "$work/log" || fail "nothing is logged"
  "$decant" generate "$work/$name.h5" --prompt "$reference/prompts.npy" --new-tokens 24 --quiet --device cpu >"$work/alone"
  python3 - "$reference/generation_golden.json" "$work" "$name" <<'PY'
import json, sys
from pathlib import Path

work, name = Path(sys.argv[2]), sys.argv[3]
golden = json.loads(Path(sys.argv[1]).read_text())[name]
told, decoded = (json.loads((work / f"{folder}.json").read_text()) for folder in (name, f"{name}.f32"))
assert told["prompts"] == len(golden) == 3 and told["new_tokens"] == 24, told
assert told["original"]["tokens"] == golden, (name, told["original"]["tokens"], golden)
assert told["quantized"]["tokens"] == decoded["original"]["tokens"] == decoded["quantized"]["tokens"], name
assert decoded["same_tokens"] == 3 * 24
assert told["quantized"]["tokens"] != golden, f"{name}: 3 bits change nothing"
agreed = sum(
    next((i for i, (a, b) in enumerate(zip(x, y)) if a != b), 24) for x, y in zip(golden, told["quantized"]["tokens"])
)
assert told["same_tokens"] == agreed, (told["same_tokens"], agreed)
for model in ("original", "quantized"):
    assert told[model]["tokens_per_second"] > 0 and told[model]["prompt_tokens_per_second"] > 0
lines = (work / "alone").read_text().splitlines()
assert lines[2] == "prompt 3, quantized: " + " ".join(map(str, told["quantized"]["tokens"][2])), lines
PY
done

# One token as a prompt, one as an answer: the first of what follows in a longer run.
container=$work/llama_gqa_tied.h5
npy() { # npy FILE TOKEN...
  python3 - "$@" <<'PY'
import struct, sys
tokens = [int(token) for token in sys.argv[2:]]
header = f"{{'descr': '<i4', 'fortran_order': False, 'shape': ({len(tokens)},), }}".encode()
header += b" " * (-(len(header) + 11) % 64) + b"\n"
data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + struct.pack(f"<{len(tokens)}i", *tokens)
open(sys.argv[1], "wb").write(data)
PY
}
npy "$work/one.npy" 7
"$decant" generate "$container" --prompt "$work/one.npy" --new-tokens 1 --quiet --device cpu --json >"$work/one.json"
"$decant" generate "$container" --prompt "$work/one.npy" --new-tokens 9 --quiet --device cpu --json >"$work/nine.json"
python3 - "$work/one.json" "$work/nine.json" <<'PY'
import json, sys
one, nine = (json.load(open(path))["quantized"]["tokens"][0] for path in sys.argv[1:])
assert len(one) == 1 and len(nine) == 9 and one == nine[:1], (one, nine)
PY

generate=("$decant" generate "$container" --device cpu --quiet)
expect 2 'needs --prompt' "${generate[@]}"
expect 2 'new-tokens' "${generate[@]}" --prompt "$work/one.npy" --new-tokens 0
expect 2 'takes one rank' mpirun -n 2 "${generate[@]}" --prompt "$work/one.npy"
expect 3 'none.npy: No such file' "${generate[@]}" --prompt "$work/none.npy"
npy "$work/empty.npy"
expect 3 'empty.npy: has no token' "${generate[@]}" --prompt "$work/empty.npy"
npy "$work/high.npy" 1 112
expect 3 'outside the vocabulary of 112' "${generate[@]}" --prompt "$work/high.npy"
expect 3 'is no' "$decant" generate "$work/one.npy" --prompt "$work/one.npy" --device cpu --quiet
echo "generate: passed"
