#!/usr/bin/env bash
# launch/tokenize: plain text, and WikiText-2 and C4 as the GPTQ protocol takes them, on small copies of their files, against
# the published procedure written out with the global random generator.
set -euo pipefail
. "${DECANT_TEST_SOURCE:?}/tests/pipeline/command.sh"
python=$source/.venv/bin/python
[[ -x $python ]] || python=python3
"$python" -c 'import numpy, tokenizers' 2>/dev/null || { echo "numpy and tokenizers are not here"; exit 77; }

"$python" - "$work" <<'PY'
import gzip, json, random, sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

work = Path(sys.argv[1])
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
merges = [("t", "h"), ("th", "e")]
vocabulary = {symbol: index for index, symbol in enumerate(["<s>", *alphabet, "th", "the"])}
tokenizer = Tokenizer(models.BPE(vocabulary, merges))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
(work / "model").mkdir()
tokenizer.save(str(work / "model" / "tokenizer.json"))

chance = random.Random(8)
words = ["the", "other", "river", "thé", "über", "stone", "=", "\u2028", "they"]
texts = [" ".join(chance.choices(words, k=chance.randint(1, 40))) for _ in range(60)]
for name, part in (("train", texts[:40]), ("validation", texts[40:])):
    rows = "".join(json.dumps({"text": text, "url": "x", "timestamp": "y"}) + "\n" for text in part)
    (work / f"{name}.json.gz").write_bytes(gzip.compress(rows.encode()))
    (work / f"{name}.jsonl").write_text(rows)
lines = [" \n", " = Title = \n", " \n", *(f" {text} \n" for text in texts[:30]), " \n"]
(work / "wiki.test.raw").write_text("".join(lines))
(work / "rows.json").write_text(json.dumps([line if line.strip() else "" for line in lines]))
try:
    import pyarrow, pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": json.loads((work / "rows.json").read_text())}), work / "wiki.parquet")
except ImportError:
    print("pyarrow is not here: Parquet is not tested")
PY

make() { # make NAME OPTIONS...
  local name=$1
  shift
  "$source/launch/tokenize" --model "$work/model" --output "$work/$name.npy" "$@" >/dev/null
}
wiki=(--corpus wikitext2 --text "$work/wiki.test.raw")
make plain --text "$work/wiki.test.raw"
make plain-windows --text "$work/wiki.test.raw" --length 50 --sequences 3 --skip 7
make wiki "${wiki[@]}"
make wiki-bare "${wiki[@]}" --no-special-tokens
make wiki-windows "${wiki[@]}" --length 100
make wiki-drawn "${wiki[@]}" --length 100 --sequences 9 --seed 3
make c4 --corpus c4 --text "$work/validation.json.gz" --length 90 --sequences 16
make c4-json --corpus c4 --text "$work/validation.jsonl" --length 90 --sequences 16 --seed 0
make c4-train --corpus c4 --text "$work/train.json.gz" --length 120 --sequences 12 --seed 5
make c4-new --corpus c4-new --text "$work/validation.json.gz" --length 70 --sequences 4
if [[ -f $work/wiki.parquet ]]; then make wiki-parquet --corpus wikitext2 --text "$work/wiki.parquet"; fi

"$python" - "$work" <<'PY'
import gzip, json, random, sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

work = Path(sys.argv[1])
tokenizer = Tokenizer.from_file(str(work / "model" / "tokenizer.json"))


def documents(name):
    return [json.loads(line)["text"] for line in gzip.decompress((work / name).read_bytes()).splitlines()]


def ids(text, special=True):
    return tokenizer.encode(text, add_special_tokens=special).ids


def expect(name, expected):
    array = np.load(work / f"{name}.npy")
    assert array.dtype == np.int32 and np.array_equal(array, np.array(expected)), (name, array.shape, np.shape(expected))


text = (work / "wiki.test.raw").read_text()
plain = ids(text, special=False)
expect("plain", plain)
expect("plain-windows", np.reshape(plain[7:157], (3, 50)))

stream = ids("\n\n".join(json.loads((work / "rows.json").read_text())))
assert stream[0] == 0 and len(stream) > 600
expect("wiki", stream)
expect("wiki-bare", stream[1:])
expect("wiki-windows", np.reshape(stream[: len(stream) // 100 * 100], (-1, 100)))
random.seed(3)
starts = [random.randint(0, len(stream) - 100 - 1) for _ in range(9)]
expect("wiki-drawn", [stream[i : i + 100] for i in starts])
if (work / "wiki-parquet.npy").exists():
    expect("wiki-parquet", stream)


def draw(texts, length, sequences, seed):
    random.seed(seed)
    windows, rejected = [], 0
    for _ in range(sequences):
        while True:
            i = random.randint(0, len(texts) - 1)
            tokens = ids(texts[i])
            if len(tokens) > length:
                break
            rejected += 1
        i = random.randint(0, len(tokens) - length - 1)
        windows.append(tokens[i : i + length])
    assert rejected > 0, "the sample has no short documents"
    return windows


expect("c4", draw(documents("validation.json.gz"), 90, 16, 0))
expect("c4-json", draw(documents("validation.json.gz"), 90, 16, 0))
expect("c4-train", draw(documents("train.json.gz"), 120, 12, 5))
joined = ids(" ".join(documents("validation.json.gz")))
expect("c4-new", np.reshape(joined[: 4 * 70], (4, 70)))
PY

refused() {
  local pattern=$1
  shift
  echo before >"$work/bad.npy"
  if make bad "$@" 2>"$work/said"; then fail "'$*' is taken"; fi
  grep -q -- "$pattern" "$work/said" || fail "'$*' says: $(cat "$work/said")"
  [[ $(tail -n 1 "$work/said") == tokenize:* ]] || fail "'$*' says: $(cat "$work/said")"
  [[ $(cat "$work/bad.npy") == before ]] || fail "'$*' harmed what was there"
}
echo '{"texts": 1}' >"$work/other.jsonl"
head -c 100 "$work/train.json.gz" >"$work/cut.json.gz"
: >"$work/empty.jsonl"
refused 'none of the 20 documents is longer than 2048' --corpus c4 --text "$work/validation.json.gz"
refused 'line 1: has no "text"' --corpus c4 --text "$work/other.jsonl" --length 5
refused 'cut.json.gz: ' --corpus c4 --text "$work/cut.json.gz" --length 5
refused 'empty.jsonl: has no text' --corpus c4 --text "$work/empty.jsonl" --length 5
refused 'none.json.gz: No such file' --corpus c4 --text "$work/none.json.gz"
refused 'fewer than a window' --corpus c4-new --text "$work/validation.json.gz" --length 100000
refused 'drawing windows of 100000 needs more' "${wiki[@]}" --length 100000 --sequences 1 --seed 0
refused 'seed needs --sequences' "${wiki[@]}" --seed 0
refused 'need --corpus' --text "$work/wiki.test.raw" --seed 0
refused 'draws nothing' --corpus c4-new --text "$work/validation.json.gz" --seed 1
echo "tokenize: passed"
