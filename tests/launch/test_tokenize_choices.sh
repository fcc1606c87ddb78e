#!/usr/bin/env bash
# launch/tokenize-choices: the prompts byte by byte under a tokenizer whose tokens are bytes, examples, lengths, where a
# choice begins when a token reaches over its border, and files that are not as they should be.
set -euo pipefail
. "${DECANT_TEST_SOURCE:?}/tests/pipeline/command.sh"
python=$source/.venv/bin/python
[[ -x $python ]] || python=python3
"$python" -c 'import tokenizers' 2>/dev/null || { echo "tokenizers is not here"; exit 77; }

"$python" - "$work" <<'PY'
import json, sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

work = Path(sys.argv[1])
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())


def save(folder, merges):
    vocabulary = {symbol: index for index, symbol in enumerate(["<s>", *alphabet, *("".join(m) for m in merges)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    (work / folder).mkdir()
    tokenizer.save(str(work / folder / "tokenizer.json"))


save("bytes", [])
save("merged", [(":", "Ġ")])  # ": " is one token
questions = [
    {"question": " How many? ", "choices": ["one", "two", "three"], "answer": 1, "subject": "high_school_counting"},
    {"question": "Wo?", "choices": ["dä", "dort"], "answer": "A", "subject": "orte"},
]
examples = [
    {"question": f"Example {i}?", "choices": ["ja", "nein"], "answer": i % 2, "subject": s}
    for s in ("orte", "high_school_counting") for i in range(3)
]
for name, rows in (("test", questions), ("dev", examples)):
    (work / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
(work / "orte_test.csv").write_text('"Wo, bitte?",hier,"dort, ""da""",B\n')
PY

make() { "$source/launch/tokenize-choices" --questions "$work/test.jsonl" --output "$work/q.jsonl" "$@"; }
make --model "$work/bytes" >/dev/null && mv "$work/q.jsonl" "$work/zero.jsonl"
make --model "$work/bytes" --no-special-tokens --examples "$work/dev.jsonl" --shots 2 >/dev/null && mv "$work/q.jsonl" "$work/two.jsonl"
make --model "$work/bytes" --form texts >/dev/null && mv "$work/q.jsonl" "$work/texts.jsonl"
make --model "$work/merged" >/dev/null && mv "$work/q.jsonl" "$work/merged.jsonl"
make --model "$work/bytes" --examples "$work/dev.jsonl" --shots 3 --length 200 >"$work/said" && mv "$work/q.jsonl" "$work/short.jsonl"
grep -q '2 questions have fewer than 3 examples' "$work/said" || fail "$(cat "$work/said")"
make --model "$work/bytes" --length 30 >"$work/said" && mv "$work/q.jsonl" "$work/cut.jsonl"
grep -q '2 questions are longer than 30' "$work/said" || fail "$(cat "$work/said")"
"$source/launch/tokenize-choices" --model "$work/bytes" --questions "$work/orte_test.csv" --output "$work/csv.jsonl" >/dev/null

"$python" - "$work" <<'PY'
import json, sys
from pathlib import Path

from tokenizers import Tokenizer

work = Path(sys.argv[1])


def read(name, folder="bytes"):
    tokenizer = Tokenizer.from_file(str(work / folder / "tokenizer.json"))
    rows = [json.loads(line) for line in (work / f"{name}.jsonl").read_text().splitlines()]
    return rows, lambda ids: tokenizer.decode(ids, skip_special_tokens=False)


def expect(actual, expected):
    assert actual == expected, f"{actual!r} is not {expected!r}"


head = "The following are multiple choice questions (with answers) about high school counting.\n\n"
first = "How many?\nA. one\nB. two\nC. three\nAnswer:"
rows, text = read("zero")
expect(len(rows), 2)
expect(rows[0]["context"][0], 0)
expect(text(rows[0]["context"][1:]), head + first)
expect([text(c) for c in rows[0]["choices"]], [" A", " B", " C"])
expect((rows[0]["lengths"], rows[0]["answer"], rows[0]["subject"]), ([1, 1, 1], 1, "high_school_counting"))
expect((rows[1]["lengths"], rows[1]["answer"], rows[1]["subject"]), ([1, 1], 0, "orte"))

rows, text = read("two")
shots = "".join(f"Example {i}?\nA. ja\nB. nein\nAnswer: {'AB'[i]}\n\n" for i in range(2))
expect(text(rows[0]["context"]), head + shots + first)
expect(text(rows[1]["context"]), head.replace("high school counting", "orte") + shots + "Wo?\nA. dä\nB. dort\nAnswer:")

rows, text = read("texts")
expect(text(rows[1]["context"][1:]), "Question: Wo?\nAnswer:")
expect([text(c) for c in rows[1]["choices"]], [" dä", " dort"])
expect(rows[1]["lengths"], [2, 4])  # characters, not bytes

rows, text = read("merged", "merged")
expect(text(rows[0]["context"][1:]), (head + first)[:-1])
expect([text(c) for c in rows[0]["choices"]], [": A", ": B", ": C"])

rows, text = read("short")
expect(text(rows[1]["context"][1:]).count("Example"), 2)
for row in rows:
    assert len(row["context"]) + max(map(len, row["choices"])) <= 200

rows, text = read("cut")
expect(text(rows[0]["context"]), (head + first)[-28:])

rows, text = read("csv")
expect(text(rows[0]["context"][1:]).splitlines()[2:], ["Wo, bitte?", "A. hier", 'B. dort, "da"', "Answer:"])
expect((rows[0]["answer"], rows[0]["subject"]), (1, "orte"))
PY

refused() {
  local pattern=$1
  shift
  echo before >"$work/q.jsonl"
  if make --model "$work/bytes" "$@" 2>"$work/said"; then fail "'$*' is taken"; fi
  [[ $(wc -l <"$work/said") == 1 ]] && grep -q -- "$pattern" "$work/said" || fail "'$*' says: $(cat "$work/said")"
  [[ $(cat "$work/q.jsonl") == before ]] || fail "'$*' harmed what was there"
  [[ $(find "$work" -maxdepth 1 -name '.q*') == '' ]] || fail "'$*' left something behind"
}
echo '{"question": "x", "choices": ["a"], "answer": 0}' >"$work/one.jsonl"
echo '{"question": "x", "choices": ["a", "b"], "answer": 2}' >"$work/answer.jsonl"
echo '{"question": "x"' >"$work/json.jsonl"
refused 'one.jsonl, question 1: has 1 choices' --questions "$work/one.jsonl"
refused 'answer.jsonl, question 1: "answer"' --questions "$work/answer.jsonl"
refused 'json.jsonl, line 1: is no JSON' --questions "$work/json.jsonl"
refused 'none.jsonl: No such file' --questions "$work/none.jsonl"
refused '3 examples of high_school_counting, --shots 4' --examples "$work/dev.jsonl" --shots 4
echo "tokenize-choices: passed"
