#!/usr/bin/env bash
# What leaves a container: plain weights that equal the NumPy decoding and give the container's perplexity, in decant and
# in transformers; SqueezeLLM's packing, unpacked by a decoder of its own; folders that appear whole or not at all.
set -euo pipefail
decant=${DECANT_PROGRAM:?} source=${DECANT_TEST_SOURCE:?}
python=$source/.venv/bin/python
"$python" -c 'import h5py, numpy' 2>/dev/null || python=python3
"$python" -c 'import h5py, numpy' 2>/dev/null || { echo "h5py is not here"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONPATH=$source/examples:$source/examples/python

fail() { echo "FAILED: $*" >&2; exit 1; }

# expect STATUS PATTERN COMMAND…: the exit status, and one line on stderr that says why.
expect() {
  local status=$1 pattern=$2 got=0
  shift 2
  "$@" >"$work/out" 2>"$work/err" || got=$?
  [[ $got == "$status" ]] || fail "'$*' gave $got, not $status: $(cat "$work/err")"
  [[ $(wc -l <"$work/err") == 1 ]] || fail "'$*' did not print one line: $(cat "$work/err")"
  grep -q -- "$pattern" "$work/err" || fail "'$*' does not say '$pattern': $(cat "$work/err")"
}

run() { "$decant" run --quiet --device cpu --overwrite "$@"; }

# perplexity KEY COMMAND…: of its JSON.
perplexity() {
  local key=$1
  shift
  "$@" --json | "$python" -c "import json, sys; print(repr(json.load(sys.stdin)['$key']))"
}

# near A B RELATIVE
near() { "$python" -c "import sys; a, b, t = map(float, sys.argv[1:]); sys.exit(abs(a - b) > t * abs(b))" "$@"; }

# ---- plain weights: every method, every kind of model
for case in "llama_mha|--bits 6.5 --outliers 2% --sensitive 1%" "llama_gqa_tied|--bit-widths 3" \
  "llama_bf16_headdim|--bit-widths 4" "llama_mha|--method kmeans,higgs,rtn,nf4 --bits 4.8 --group 0,24" \
  "llama_bf16_headdim|--method higgs --bit-widths 3 --seed 5" "llama_mha|--method rtn --bit-widths 5 --group 10"; do
  model=$source/tests/reference/${case%%|*}
  # shellcheck disable=SC2086 # several options in one word
  run --model "$model" --calibration "$model/tokens.npy" ${case#*|} --output "$work/m.h5"
  for element in f32 f16 bf16 auto; do
    "$decant" export "$work/m.h5" --output "$work/$element" --element $element --overwrite --shard-size 60kB >"$work/said"
  done
  grep -q 'no tokenizer files' "$work/said" || fail "nothing is said of the tokenizer"
  cmp "$model/config.json" "$work/auto/config.json" || fail "${case%%|*}: config.json"
  "$python" - "$work" "$model" <<'PY'
import json, struct, sys
from pathlib import Path
import h5py, numpy as np
from read_container import read_layer

def load(folder):
    """All tensors of a folder as (type, array); BF16 as the upper half of F32."""
    found, shards = {}, set()
    index = folder / "model.safetensors.index.json"
    map_ = json.loads(index.read_text())["weight_map"] if index.exists() else None
    for path in sorted(folder.glob("*.safetensors")):
        raw = path.read_bytes()
        size = struct.unpack("<Q", raw[:8])[0]
        header = json.loads(raw[8 : 8 + size])
        assert size % 8 == 0 and header.pop("__metadata__") == {"format": "pt"}
        end = 0
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            data, shape = raw[8 + size + begin : 8 + size + end], entry["shape"]
            if entry["dtype"] == "BF16":
                array = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
            else:
                array = np.frombuffer(data, {"F16": "<f2", "F32": "<f4"}[entry["dtype"]])
            assert name not in found and (map_ is None or map_[name] == path.name)
            found[name] = entry["dtype"], array.reshape(shape)
        assert 8 + size + end == len(raw), path
        shards.add(path.name)
    assert map_ is None or (set(map_) == set(found) and set(map_.values()) == shards and len(shards) > 1)
    return found

def to_bf16(x):
    bits = x.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)

work, model = Path(sys.argv[1]), Path(sys.argv[2])
exported = {element: load(work / element) for element in ("f32", "f16", "bf16", "auto")}
original = {}
for path in model.glob("*.safetensors"):
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    original |= {k: (v["dtype"], raw[8 + size + v["data_offsets"][0] : 8 + size + v["data_offsets"][1]], v["shape"])
                 for k, v in json.loads(raw[8 : 8 + size]).items() if k != "__metadata__"}
with h5py.File(work / "m.h5") as container:
    layers = bytes(container["errors/layers"][:]).decode().split()
    for name in layers:
        expected, tensor = read_layer(container, name), name + ".weight"
        kind, weight = exported["f32"][tensor]
        assert kind == "F32" and weight.shape == expected.shape
        if container[name].attrs.get("rotation", 1) > 1:  # sums in another order
            assert np.abs(weight - expected).max() <= 1e-6 * np.abs(expected).max(), name
        else:
            assert np.array_equal(weight.view(np.uint32), expected.astype(np.float32).view(np.uint32)), name
        assert exported["f16"][tensor][0] == "F16" and exported["bf16"][tensor][0] == "BF16"
        assert np.array_equal(exported["f16"][tensor][1], weight.astype(np.float16)), name
        assert np.array_equal(exported["bf16"][tensor][1], to_bf16(weight)), name
        assert exported["auto"][tensor][0] == ("BF16" if "bf16" in model.name else "F16"), exported["auto"][tensor][0]
    for found in exported.values():
        assert set(found) == set(original), set(found) ^ set(original)
        for name in set(original) - {layer + ".weight" for layer in layers}:
            kind, data, shape = original[name]
            raw = found[name][1] if kind != "BF16" else (found[name][1].view(np.uint32) >> 16).astype(np.uint16)
            assert found[name][0] == kind and list(found[name][1].shape) == shape and raw.tobytes() == data, name
PY
  expected=$(perplexity perplexity_quantized "$decant" validate "$work/m.h5" --text "$model/tokens.npy" --quiet --device cpu)
  for element in f32 auto; do
    got=$(perplexity perplexity_original run --model "$work/$element" --method nf4 --text "$model/tokens.npy" --output "$work/x.h5")
    tolerance=$([[ $element == f32 ]] && echo 1e-6 || echo 1e-3)
    near "$got" "$expected" $tolerance || fail "$case: perplexity $got of the $element export, $expected of the container"
  done
done

# ---- what transformers makes of a folder, and of a container through examples/python
in_transformers() { # in_transformers CONTAINER FOLDER TOKENS PERPLEXITY
  "$python" -c 'import torch, transformers' 2>/dev/null || return 0
  "$python" - "$@" <<'PY'
import math, sys
import numpy as np, torch
from load_into_transformers import load
from transformers import AutoModelForCausalLM
tokens, expected = torch.from_numpy(np.load(sys.argv[3]).astype(np.int64)), float(sys.argv[4])
for model in (AutoModelForCausalLM.from_pretrained(sys.argv[2], dtype=torch.float32), load(sys.argv[1])):
    with torch.no_grad():
        losses = [model(row[None], labels=row[None]).loss.item() for row in tokens]
    perplexity = math.exp(sum(losses) / len(losses))
    assert abs(perplexity - expected) < 1e-4 * expected, (perplexity, expected)
PY
}
for name in llama_gqa_tied llama_bf16_headdim llama_mha opt_before opt_behind; do
  folder=$source/tests/reference/$name
  run --model "$folder" --calibration "$folder/tokens.npy" --method kmeans,higgs --bits 6.5 --output "$work/$name.h5"
  "$decant" export "$work/$name.h5" --output "$work/load-$name" --element f32 >/dev/null
  expected=$(perplexity perplexity_quantized "$decant" validate "$work/$name.h5" --text "$folder/tokens.npy" --quiet --device cpu)
  in_transformers "$work/$name.h5" "$work/load-$name" "$folder/tokens.npy" "$expected"
done

# ---- a folder appears whole or not at all, and harms nobody's
export_="$decant export $work/m.h5 --output $work/folder"
$export_ >/dev/null
cp -r "$work/folder" "$work/first"
expect 2 'overwrite' $export_
$export_ --overwrite --element f32 >/dev/null
cmp -s "$work/folder/model.safetensors" "$work/first/model.safetensors" && fail "not replaced"
mkdir "$work/folder.partial" && touch "$work/folder.partial/decant_export.json" "$work/folder.partial/rest"
$export_/ --overwrite >/dev/null
diff -r "$work/folder" "$work/first" || fail "the same export gives other bytes"
[[ ! -e $work/folder.partial ]] || fail "remains of an export"
mkdir "$work/own" && echo mine >"$work/own/notes"
expect 2 'no earlier export' "$decant" export "$work/m.h5" --output "$work/own" --overwrite
[[ $(cat "$work/own/notes") == mine ]] || fail "somebody's folder was changed"
mkdir "$work/folder/sub"
expect 2 'no earlier export' $export_ --overwrite
rmdir "$work/folder/sub"
mkdir "$work/new.partial" && echo mine >"$work/new.partial/notes"
expect 2 'no earlier export' "$decant" export "$work/m.h5" --output "$work/new"
[[ $(cat "$work/new.partial/notes") == mine && ! -e $work/new ]] || fail "somebody's folder was changed"
expect 4 'cannot be made' "$decant" export "$work/m.h5" --output "$work/absent/folder"
mkdir "$work/tokenizer" && echo '{"a":1}' >"$work/tokenizer/tokenizer.json" && : >"$work/tokenizer/merges.txt"
$export_ --overwrite --model "$work/tokenizer" >"$work/said"
! grep -q tokenizer "$work/said" || fail "$(cat "$work/said")"
cmp "$work/tokenizer/tokenizer.json" "$work/folder/tokenizer.json"
[[ -f $work/folder/merges.txt ]] || fail "an empty file was not copied"
expect 3 'absent: is no folder; --model names' "$decant" export "$work/m.h5" --output "$work/no" --model "$work/absent"
expect 3 'config.json: is no folder; --model names' "$decant" export "$work/m.h5" --output "$work/no" --model "$model/config.json"
expect 3 'm.h5 is not of the model .*opt_before: their configurations differ' "$decant" export "$work/m.h5" --output "$work/no" \
  --model "$source/tests/reference/opt_before"
[[ ! -e $work/no && ! -e $work/no.partial ]] || fail "a refused export left a folder"
"$decant" export "$work/m.h5" --output "$work/yes" --model "$model" >/dev/null
echo mine >"$work/file" && ln -s "$work/yes" "$work/link"
for place in file link; do
  expect 2 "$place: exists and is no folder, so it is not replaced" "$decant" export "$work/m.h5" --output "$work/$place"
done
[[ $(cat "$work/file") == mine ]] || fail "somebody's file was changed"

# ---- a damaged container: one line, exit status 3, and no folder
for path in model.layers.1.mlp.up_proj/codes model.layers.0.self_attn.q_proj/scales model.norm.weight config grids/rtn_1_32; do
  cp "$work/m.h5" "$work/damaged.h5"
  "$python" - "$work/damaged.h5" "$path" <<'PY'
import sys
import h5py
with h5py.File(sys.argv[1]) as container:
    offset = container[sys.argv[2]].id.get_offset()
with open(sys.argv[1], "r+b") as file:
    file.seek(offset)
    byte = file.read(1)[0]
    file.seek(offset)
    file.write(bytes([byte ^ 1]))
PY
  expect 3 "$path is damaged" "$decant" export "$work/damaged.h5" --output "$work/none"
  [[ ! -e $work/none && ! -e $work/none.partial ]] || fail "$path: a damaged container left a folder"
done
"$decant" calibrate --model "$model" --calibration "$model/tokens.npy" --output "$work/statistics.h5" --quiet --device cpu
for command in "export --output $work/none" "validate --text $model/tokens.npy" "generate --prompt $model/tokens.npy" "allocate --bits 4"; do
  # shellcheck disable=SC2086 # a command and its options
  expect 3 'statistics.h5 holds statistics, not a model' "$decant" ${command%% *} "$work/statistics.h5" ${command#* } --quiet --device cpu
done

# ---- a limit of the size of a file is met as a full disk is
(ulimit -f 8 && expect 4 'safetensors: .*File too large' "$decant" export "$work/m.h5" --output "$work/none" --overwrite)
[[ ! -e $work/none && ! -e $work/none.partial ]] || fail "a limit of files' size left a folder"

# ---- SqueezeLLM's packing, of a model whose channels are multiples of 32
"$python" - "$work/wide" <<'PY'
import json, struct, sys
from pathlib import Path
import numpy as np
folder, random = Path(sys.argv[1]), np.random.default_rng(3)
folder.mkdir()
hidden, intermediate, vocabulary = 64, 96, 50
shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
for layer in range(2):
    block = f"model.layers.{layer}."
    shapes |= {f"{block}self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
    shapes |= {f"{block}mlp.gate_proj.weight": (intermediate, hidden), f"{block}mlp.up_proj.weight": (intermediate, hidden),
               f"{block}mlp.down_proj.weight": (hidden, intermediate)}
    shapes |= {f"{block}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
header, data = {}, b""
for name, shape in shapes.items():
    weight = np.ones(shape) if len(shape) == 1 else random.standard_t(4, shape) * 0.1
    raw = weight.astype("<f2").tobytes()
    header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
    data += raw
text = json.dumps(header).encode()
(folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
(folder / "config.json").write_text(json.dumps({
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": intermediate,
    "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": vocabulary, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128, "tie_word_embeddings": False, "torch_dtype": "float16"}))
np.save(folder / "tokens.npy", random.integers(0, vocabulary, (4, 32), dtype=np.int32))
PY
wide=(--model "$work/wide" --calibration "$work/wide/tokens.npy" --output "$work/wide.h5")
for options in "--bit-widths 3" "--bit-widths 4 --outliers 2%" "--bit-widths 4 --outliers 0 --sensitive 0"; do
  # shellcheck disable=SC2086
  run "${wide[@]}" $options
  "$decant" export "$work/wide.h5" --format squeezellm --output "$work/squeezellm" --overwrite >/dev/null
  "$python" - "$work" <<'PY'
import json, struct, sys
from pathlib import Path
import h5py, numpy as np
from read_container import read_layer, unpack_codes

def unpack_3(word, channel):
    """Input channel 0 … 31 of the three words that hold 32 of 3 bits, as the published layout tells it."""
    w = [int(x) & 0xFFFFFFFF for x in word]
    if channel <= 9:
        return w[0] >> 3 * channel & 7
    if channel == 10:
        return w[0] >> 30 & 3 | (w[1] & 1) << 2
    if channel <= 20:
        return w[1] >> 1 + 3 * (channel - 11) & 7
    if channel == 21:
        return w[1] >> 31 & 1 | (w[2] & 3) << 1
    return w[2] >> 2 + 3 * (channel - 22) & 7

def unpack(qweight, bits):
    words, outputs = qweight.shape
    codes = np.zeros((outputs, words * 32 // bits), np.int64)
    for o in range(outputs):
        for j in range(codes.shape[1]):
            if bits == 4:
                codes[o, j] = (int(qweight[j // 8, o]) & 0xFFFFFFFF) >> 4 * (j % 8) & 15
            else:
                codes[o, j] = unpack_3(qweight[j // 32 * 3 : j // 32 * 3 + 3, o], j % 32)
    return codes

work = Path(sys.argv[1])
raw = (work / "squeezellm/model.safetensors").read_bytes()
size = struct.unpack("<Q", raw[:8])[0]
header = json.loads(raw[8 : 8 + size])
types = {"I32": "<i4", "F32": "<f4", "F16": "<f2", "I64": "<i8"}
tensors = {k: np.frombuffer(raw[8 + size + v["data_offsets"][0] : 8 + size + v["data_offsets"][1]], types[v["dtype"]]).reshape(v["shape"])
           for k, v in header.items() if k != "__metadata__"}
bits = json.loads((work / "squeezellm/quant_config.json").read_text())["wbits"]
with h5py.File(work / "wide.h5") as container:
    for name in bytes(container["errors/layers"][:]).decode().split():
        layer = container[name]
        rows, columns = int(layer.attrs["rows"]), int(layer.attrs["columns"])
        assert layer.attrs["bits"] == bits
        qweight, table = tensors.pop(name + ".qweight"), tensors.pop(name + ".lookup_table")
        assert qweight.shape == (columns // 32 * bits, rows) and qweight.dtype == np.int32
        codes = unpack(qweight, bits)
        assert np.array_equal(codes, unpack_codes(layer["codes"][:], columns)), name
        assert table.dtype == np.float32 and np.array_equal(table, layer["levels"][:].astype(np.float32)), name
        weight = np.take_along_axis(table, codes, axis=1)
        if layer.attrs["sparse_count"]:
            starts, cols, vals = (tensors.pop(f"{name}.{part}") for part in ("rows", "cols", "vals"))
            assert starts.dtype == cols.dtype == np.int32 and vals.dtype == np.float32
            assert tensors.pop("sparse_threshold." + name) == len(vals) == starts[-1] == layer.attrs["sparse_count"]
            for row in range(rows):
                for k in range(starts[row], starts[row + 1]):
                    weight[row, cols[k]] += vals[k]
        assert np.array_equal(weight, read_layer(container, name)), name
assert set(tensors) == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"} | {
    f"model.layers.{i}.{n}_layernorm.weight" for i in (0, 1) for n in ("input", "post_attention")}, set(tensors)
PY
done
if "$python" -c 'import torch, safetensors' 2>/dev/null; then
  run "${wide[@]}" --bit-widths 4
  "$decant" export "$work/wide.h5" --format squeezellm --output "$work/squeezellm" --overwrite --shard-size 20kB >/dev/null
  "$python" "$source/examples/python/squeezellm_checkpoint.py" "$work/squeezellm" "$work/packed.pt"
  "$python" - "$work/packed.pt" "$work/wide.h5" <<'PY'
import sys
import h5py, numpy as np, torch
state = torch.load(sys.argv[1], weights_only=True)
with h5py.File(sys.argv[2]) as container:
    for name in bytes(container["errors/layers"][:]).decode().split():
        assert type(state["sparse_threshold." + name]) is int and state[name + ".qweight"].dtype == torch.int32
        assert np.array_equal(state[name + ".vals"].numpy(), container[name]["sparse/values"][:].astype(np.float32)), name
PY
fi
squeezellm() { expect 3 "$1" "$decant" export "$2" --format squeezellm --output "$work/none"; }
run "${wide[@]}" --bit-widths 2; squeezellm '3 or 4 bits' "$work/wide.h5"
run "${wide[@]}" --bit-widths 3,4 --bits 6; squeezellm 'one width' "$work/wide.h5"
run "${wide[@]}" --method higgs --bit-widths 4; squeezellm 'kmeans or guided' "$work/wide.h5"
run --model "$model" --calibration "$model/tokens.npy" --bit-widths 4 --output "$work/m.h5"; squeezellm 'multiples of 32' "$work/m.h5"
[[ ! -e $work/none && ! -e $work/none.partial ]] || fail "a refused export left a folder"
expect 2 'output' "$decant" export "$work/m.h5"
expect 2 'format' "$decant" export "$work/m.h5" --format gguf --output "$work/none"
echo "export: passed"
