#!/usr/bin/env bash
# Weights that a method may stumble over: rows of zeros, constant rows, rows of fewer values than levels, matrices of zeros,
# and Fisher sums that are zero because of them, come out as they were; weights that are no numbers are refused by name; so
# are tokens outside of the vocabulary.
set -euo pipefail
. "${DECANT_TEST_SOURCE:?}/tests/pipeline/command.sh"
python3 -c 'import h5py' 2>/dev/null || { echo "h5py is not here"; exit 77; }
model=$source/tests/reference/llama_mha tokens=$source/tests/reference/llama_mha/tokens.npy

# change FOLDER CODE: a copy of the model in which CODE changed the tensors, by name in `t`.
change() {
  mkdir "$1" && cp "$model/config.json" "$1" && python3 - "$model/model.safetensors" "$1/model.safetensors" "$2" <<'PY'
import json, struct, sys
import numpy as np
raw = bytearray(open(sys.argv[1], "rb").read())
size = struct.unpack("<Q", raw[:8])[0]
t = {}
for name, entry in json.loads(raw[8 : 8 + size]).items():
    if name != "__metadata__":
        assert entry["dtype"] == "F32"
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        t[name.removesuffix(".weight")] = np.frombuffer(memoryview(raw)[begin:end], "<f4").reshape(entry["shape"])
exec(sys.argv[3])
open(sys.argv[2], "wb").write(raw)
PY
}

# ---- rows that are easy. Without o_proj nothing flows back to q, k and v of its block: their Fisher sums are zero.
change "$work/easy" '
up = t["model.layers.1.mlp.up_proj"]
up[0] = 0
up[1] = 0.5
up[2] = np.resize([-0.25, 0.125, 0.75], up.shape[1])
up[3] = 0
up[3, 7] = -0.375
t["model.layers.0.self_attn.o_proj"][:] = 0
'
for method in kmeans rtn nf4 higgs kmeans,rtn,nf4,higgs; do
  bits=(--bit-widths 4)
  [[ $method != nf4 ]] || bits=()
  [[ $method != *,* ]] || bits=(--bits 4.8)
  on 2 run --model "$work/easy" --calibration "$tokens" --text "$tokens" --method "$method" "${bits[@]}" --overwrite \
    --output "$work/easy.h5" >"$work/result" || fail "$method stumbles"
  PYTHONPATH=$source/examples python3 - "$work" "$method" <<'PY' || fail "$method: $(cat "$work/result")"
import sys
import h5py, numpy as np
from read_container import read_layer
with h5py.File(sys.argv[1] + "/easy.h5") as container:
    for name in bytes(container["errors/layers"][:]).decode().split():
        assert np.isfinite(read_layer(container, name)).all(), name
        assert np.isfinite(container[name].attrs["relative_error"]), name
    up = read_layer(container, "model.layers.1.mlp.up_proj")
    assert (up[0] == 0).all(), up[0]
    assert (read_layer(container, "model.layers.0.self_attn.o_proj") == 0).all()
    # A rotation spreads a row over all values, and a grid has none where a row needs them.
    exact = container["model.layers.1.mlp.up_proj"].attrs["method"][:6] == b"kmeans"
    if exact:
        assert (up[1] == 0.5).all() and set(up[2]) == {-0.25, 0.125, 0.75}, up[1:3]
        assert up[3, 7] == -0.375 and (np.delete(up[3], 7) == 0).all(), up[3]
    else:
        assert abs(up[1] - 0.5).max() < 0.2, up[1]
    for key in "perplexity_original", "perplexity_quantized", "kl_divergence":
        assert np.isfinite(container.attrs[key]), key
PY
done

# ---- no numbers
cases=0
while IFS='|' read -r value place method; do
  change "$work/bad.$((++cases))" "t['model.layers.1.mlp.up_proj'][$place] = $value"
  expect 3 'model.layers.1.mlp.up_proj.*row 3, column 5' on 3 run --model "$work/bad.$cases" --method "$method" --bit-widths 4 \
    --calibration "$tokens" --output "$work/no.h5"
done <<'CASES'
np.nan|3, 5|rtn
np.inf|3, 5|kmeans
-np.inf|3, 5|higgs
CASES

# ---- below F16: a matrix of which nothing is left is told with its name, once, by rank 0; one of zeros loses nothing
change "$work/tiny" "
for name in 'model.layers.1.mlp.up_proj', 'model.layers.2.self_attn.q_proj': t[name] *= 1e-9
t['model.layers.0.self_attn.o_proj'][:] = 0"
for method in kmeans rtn nf4 higgs; do
  for name in tiny easy; do
    bits=(--bit-widths 4)
    [[ $method != nf4 ]] || bits=()
    mpirun -n 2 "$decant" run --model "$work/$name" --calibration "$tokens" --method $method "${bits[@]}" --device cpu --overwrite \
      --output "$work/tiny.h5" >"$work/result" 2>"$work/said" || fail "$method: $name is refused"
    grep 'next to nothing is left' "$work/said" >"$work/warned" || true
    if [[ $name == tiny ]]; then
      [[ $(wc -l <"$work/warned") == 1 ]] || fail "$method: not one warning of what is lost: $(cat "$work/said")"
      grep -q 'warning: model.layers.1.mlp.up_proj and 1 more: .*relative error 1.00' "$work/warned" || fail "$(cat "$work/warned")"
    else
      [[ ! -s $work/warned ]] || fail "$method: a warning of a matrix of zeros: $(cat "$work/warned")"
    fi
  done
done

# ---- beyond F16, in which levels are stored: an outlier as well, which the sparse part would hold; 65504 is the last
change "$work/wide" "t['model.layers.1.mlp.up_proj'][3, 5] = -70000"
change "$work/widest" "t['model.layers.1.mlp.up_proj'][3, 5] = -65504"
for method in kmeans rtn higgs nf4; do
  expect 3 'up_proj.weight: the weight at row 3, column 5 is -70000, beyond the 65504 of F16' on 2 run --model "$work/wide" \
    --method $method --bit-widths 4 --calibration "$tokens" --output "$work/no.h5"
done
on 2 run --model "$work/widest" --method kmeans --bit-widths 4 --calibration "$tokens" --output "$work/widest.h5" >"$work/result"
PYTHONPATH=$source/examples python3 - "$work/widest.h5" <<'PY'
import sys
import h5py
from read_container import read_layer
with h5py.File(sys.argv[1]) as container:
    value = read_layer(container, "model.layers.1.mlp.up_proj")[3, 5]
    assert abs(value + 65504) < 32, value
PY
# What an outlier misses of its level is F16 too, so weights of one row are not farther apart where some are kept apart.
change "$work/apart" "t['model.layers.1.mlp.up_proj'][3, 5:7] = 40000, -40000"
expect 3 'up_proj.weight: the weights at row 3, columns 6 and 5 are -40000 and 40000, farther apart than the 65504 of F16' \
  on 2 run --model "$work/apart" --method kmeans --bit-widths 4 --calibration "$tokens" --output "$work/no.h5"
for options in "kmeans --sensitive 0 --outliers 0" rtn higgs; do
  # shellcheck disable=SC2086 # a method and its options
  on 2 run --model "$work/apart" --bit-widths 4 --calibration "$tokens" --overwrite --output "$work/apart.h5" --method $options \
    >"$work/result" || fail "$options holds weights that are far apart"
done
for tensor in model.norm model.embed_tokens model.layers.2.input_layernorm; do
  change "$work/$tensor" "t['$tensor'].reshape(-1)[3] = np.nan"
  expect 3 'no number\|not finite\|is not a number' on 3 run --model "$work/$tensor" --method kmeans --bit-widths 4 \
    --calibration "$tokens" --output "$work/no.h5"
done

# ---- what is not quantized is no number, or F32 does not hold what comes of it: every method, calibrating alone, measuring
# and validating end with one line and no figures. Fisher sums may leave F32 where the loss does not.
change "$work/norm" "t['model.norm'][3] = np.nan"
change "$work/large" "t['lm_head'] *= 1e20"
change "$work/sums" "t['model.layers.1.mlp.up_proj'] *= 1e30"
printf '{"context": [1, 2], "choices": [[3], [4]], "answer": 1}\n' >"$work/questions.jsonl"
nan='norm/model.safetensors: model.norm.weight: the value at row 0, column 3 is not finite'
for method in kmeans rtn; do
  expect 3 "$nan" on 3 run --model "$work/norm" --method "$method" --bit-widths 4 --calibration "$tokens" --output "$work/no.h5"
done
expect 3 'up_proj.weight: the weight at row 0, column 0 is .*e+.*, beyond the 65504 of F16' on 2 run --model "$work/sums" \
  --method rtn --bit-widths 4 --calibration "$tokens" --output "$work/no.h5"
expect 3 'model.layers.*: a Fisher sum is not finite' on 2 run --model "$work/large" --method rtn --bit-widths 4 \
  --calibration "$tokens" --output "$work/no.h5"
expect 3 'model.layers.*: a Fisher sum is not finite.* no number or too large' on 2 run --model "$work/norm" --method rtn \
  --bit-widths 4 --calibration "$tokens" --memory streamed --output "$work/no.h5"
expect 3 "$nan" on 2 calibrate --model "$work/norm" --calibration "$tokens" --output "$work/no.h5"
for name in sums large; do
  expect 3 'model.layers.*: a Fisher sum is not finite' on 2 calibrate --model "$work/$name" --calibration "$tokens" --output "$work/no.h5"
  [[ ! -e $work/no.h5 ]] || fail "statistics that are no numbers were written"
done
expect 3 "$nan" on 2 run --model "$work/norm" --method rtn --bits 6 --sensitivity measured --output "$work/no.h5"
expect 3 "$nan" on 2 run --model "$work/norm" --calibration "$tokens" --bits 5 --micro-batch 1 --checkpoint-every 0 --output "$work/no.h5"
[[ ! -e $work/no.h5.work ]] || fail "Fisher sums that are no numbers are kept for the job that goes on"
for name in norm large; do
  on 2 run --model "$work/$name" --method rtn --bit-widths 4 --output "$work/$name.h5" >"$work/result" || fail "$name is refused"
  expect 3 "$name.h5: the perplexity is not finite" on 2 validate "$work/$name.h5" --text "$tokens" --json
  [[ ! -s $work/out ]] || fail "figures that are no numbers were printed: $(cat "$work/out")"
done
expect 3 "$nan" on 2 validate "$work/norm.h5" --model "$work/norm" --text "$tokens"
expect 3 'large: the perplexity is not finite' on 2 validate "$work/large.h5" --model "$work/large" --text "$tokens"
expect 3 "$nan" on 2 validate "$work/norm.h5" --model "$work/norm" --choices "$work/questions.jsonl"
expect 3 'norm.h5: the log-likelihood of a choice is not finite' on 2 validate "$work/norm.h5" --choices "$work/questions.jsonl"

# ---- tokens that follow from logits that are no numbers are no result either: behind the prompt, and behind a token of 40
prompt=$work/prompt.npy
python3 -c 'import sys, numpy as np; np.save(sys.argv[1], np.array([[3, 1, 4]], np.int32))' "$prompt"
on 1 run --model "$model" --method rtn --bit-widths 4 --output "$work/good.h5" >"$work/result"
on 1 generate "$work/good.h5" --prompt "$prompt" --new-tokens 1 --json >"$work/result"
next=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["quantized"]["tokens"][0][0])' <"$work/result")
((next != 3 && next != 1 && next != 4)) || fail "the token behind the prompt is in the prompt"
change "$work/beyond" "t['lm_head'] *= 1e38"
change "$work/later" "t['model.embed_tokens'][$next] = np.nan"
for name in beyond later; do
  on 1 run --model "$work/$name" --method rtn --bit-widths 4 --output "$work/$name.h5" >"$work/result" || fail "$name is refused"
done
for name in norm beyond later; do
  expect 3 "$name.h5: a logit is not finite" on 1 generate "$work/$name.h5" --prompt "$prompt" --new-tokens 40 --json
  [[ ! -s $work/out ]] || fail "tokens of logits that are no numbers were printed: $(cat "$work/out")"
done
on 1 generate "$work/later.h5" --prompt "$prompt" --new-tokens 1 >"$work/result" || fail "a token that nothing asks for is in the way"
expect 3 'beyond.h5: a logit is not finite' on 1 generate "$work/beyond.h5" --model "$work/beyond" --prompt "$prompt"
expect 3 "$nan" on 1 generate "$work/norm.h5" --model "$work/norm" --prompt "$prompt"

# ---- tensors with the name of a part of the container, of a layer or beneath one, or beneath another tensor: told before the
# work, which ends at a damaged weight here. Each is an empty tensor more.
copy_with_nan "$model" "$work/named"
mv "$work/named/model.safetensors" "$work/unnamed"
named() {
  python3 - "$work/unnamed" "$work/named/model.safetensors" "$1" <<'PY'
import json, struct, sys
raw = open(sys.argv[1], "rb").read()
size = struct.unpack("<Q", raw[:8])[0]
header = json.loads(raw[8 : 8 + size]) | {sys.argv[3]: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
open(sys.argv[2], "wb").write(struct.pack("<Q", len(text)) + text + raw[8 + size :])
PY
}
for name in config errors/layers allocation grids/higgs_2_256 sensitivity model.layers.0.mlp.up_proj \
  model.layers.0.mlp.up_proj/codes model.norm.weight/more; do
  named "$name"
  expect 3 "named/model.safetensors: tensor $name cannot be in a container" on 2 run --model "$work/named" --method rtn \
    --bit-widths 4 --output "$work/no.h5"
done
for name in configuration model/more model.layers.0.mlp.up_proj.more; do
  named "$name"
  expect 3 'row 0, column 10 is not finite' on 2 run --model "$work/named" --method rtn --bit-widths 4 --output "$work/no.h5"
done

# ---- tokens outside of the vocabulary
python3 - "$tokens" "$work" <<'PY'
import sys
import numpy as np
tokens = np.load(sys.argv[1])
for name, value in {"beyond": 1 << 20, "negative": -1}.items():
    changed = tokens.copy()
    changed[1, 4] = value
    np.save(f"{sys.argv[2]}/{name}.npy", changed)
PY
for name in beyond negative; do
  expect 3 "$name.npy: token 4 of sequence 1 is .*outside the vocabulary" on 2 run --model "$model" --calibration "$work/$name.npy" \
    --bits 5 --output "$work/no.h5"
  expect 3 "$name.npy: token 4 of sequence 1 is .*outside the vocabulary" on 2 run --model "$model" --calibration "$tokens" \
    --text "$work/$name.npy" --bits 5 --output "$work/no.h5"
done
[[ ! -e $work/no.h5 && ! -e $work/no.h5.partial ]] || fail "a refused job left a file"
echo "strange weights: passed"
