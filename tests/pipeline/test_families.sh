#!/usr/bin/env bash
# The whole job on a small model of every family: the losses are those of transformers, the container has every norm and
# bias that it needs to be read as a model, and neither ranks nor streaming change a byte. Configs of the real models are
# planned.
set -euo pipefail
. "${DECANT_TEST_SOURCE:?}/tests/pipeline/command.sh"

for name in llama3_scaled mistral_window qwen2_biases qwen3_norms opt_before opt_behind; do
  model=$source/tests/reference/$name
  # Widths up to 8 without a sparse part: the quantized model must be close to the original.
  run=(run --replicas 1 --model "$model" --calibration "$model/tokens.npy" --text "$model/tokens.npy" --bits 8.9
       --bit-widths 2-8 --sensitive 0 --outliers 0)
  on 1 "${run[@]}" --output "$work/$name.h5" >"$work/result"
  python3 - "$model" "$work/result" <<'PY'
import json, math, re, struct, sys
model, result = sys.argv[1], open(sys.argv[2]).read()
golden = open(f"{model}/golden/model.safetensors", "rb").read()
header_bytes = struct.unpack_from("<Q", golden)[0]
begin, end = json.loads(golden[8:8 + header_bytes])["loss"]["data_offsets"]
losses = struct.unpack_from(f"<{(end - begin) // 4}f", golden, 8 + header_bytes + begin)
expected = math.exp(sum(losses) / len(losses))
perplexity = float(re.search(r"perplexity before +([\d.]+)", result)[1])
divergence = float(re.search(r"KL divergence +([\d.]+)", result)[1])
assert abs(perplexity - expected) < 1e-5 * expected, (model, perplexity, expected)
assert 0 < divergence < 0.1, (model, divergence)
PY
  on 2 "${run[@]}" --output "$work/two.h5" >"$work/result"
  cmp "$work/$name.h5" "$work/two.h5" || fail "$name: 2 ranks give other bytes than 1"
  on 1 "${run[@]}" --memory streamed --output "$work/streamed.h5" >"$work/result"
  cmp "$work/$name.h5" "$work/streamed.h5" || fail "$name: a streamed job gives other bytes"
  rm "$work/two.h5" "$work/streamed.h5"
done

for config in "$source"/tests/pipeline/configs/*.json; do
  "$decant" plan --model "$config" --ranks 8 --device-memory 80G --window 2048 --bits 3.5 --bit-widths 2-4 >"$work/plan" ||
    fail "no plan of $config"
  grep -q 'fits 80.0 GiB' "$work/plan" || fail "$config does not fit: $(cat "$work/plan")"
done
echo "families: passed"
