#!/usr/bin/env bash
# Questions scored by log-likelihood: the scores of the original are those of transformers, the scores of the quantized
# model are those of the weights that it stands for, accuracy follows from them, and ranks, replicas and streaming change
# nothing. Bad files are refused in one line.
set -euo pipefail
. "${DECANT_TEST_SOURCE:?}/tests/pipeline/command.sh"
reference=$source/tests/reference questions=$source/tests/reference/questions.jsonl

for name in llama_gqa_tied mistral_window qwen2_biases opt_before opt_behind; do
  model=$reference/$name
  "$decant" run --model "$model" --method rtn --bit-widths 3 --text "$model/tokens.npy" --choices "$questions" \
    --output "$work/$name.h5" --log "$work/$name.log" --quiet --device cpu --json >"$work/$name.json"
  "$decant" export "$work/$name.h5" --output "$work/$name.f32" --model "$model" --element f32 >/dev/null
  "$decant" validate "$work/$name.h5" --model "$work/$name.f32" --choices "$questions" --log "$work/$name.f32.log" --quiet \
    --device cpu >/dev/null
  python3 - "$questions" "$reference/question_golden.json" "$work" "$name" <<'PY'
import json, sys
from collections import Counter
from pathlib import Path

questions = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
work, name = Path(sys.argv[3]), sys.argv[4]
golden = json.loads(Path(sys.argv[2]).read_text())[name]


def logged(path):
    return [event for event in map(json.loads, path.read_text().splitlines()) if event["event"] == "question"]


def furthest(left, right):
    return max(abs(a - b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True))


events, decoded = logged(work / f"{name}.log"), logged(work / f"{name}.f32.log")
original, quantized = ([event[f"scores_{model}"] for event in events] for model in ("original", "quantized"))
assert furthest(original, golden) < 1e-4, (name, "original", furthest(original, golden))
off = furthest(quantized, [event["scores_original"] for event in decoded])
assert off < 1e-4, (name, "quantized", off)
assert furthest(quantized, golden) > 1e-3, (name, "3 bits change nothing")

# Accuracy by another road: from the golden scores, and from the quantized model's logged ones.
report = json.loads((work / f"{name}.json").read_text())
assert "perplexity_quantized" in report
report = report["choices"]
for model, scores in (("original", golden), ("quantized", quantized)):
    right, right_by_length, asked = Counter(), Counter(), Counter()
    for question, values in zip(questions, scores, strict=True):
        lengths = question.get("lengths", [len(choice) for choice in question["choices"]])
        divided = [value / length for value, length in zip(values, lengths)]
        for subject in (question["subject"], None):
            asked[subject] += 1
            right[subject] += values.index(max(values)) == question["answer"]
            right_by_length[subject] += divided.index(max(divided)) == question["answer"]
    for subject in asked:
        told = report["subjects"][subject] if subject else report
        assert told["questions"] == asked[subject]
        assert abs(told[f"accuracy_{model}"] - right[subject] / asked[subject]) < 1e-8, (name, model, subject)
        assert abs(told[f"accuracy_by_length_{model}"] - right_by_length[subject] / asked[subject]) < 1e-8
PY
done

# The same scores, to the last bit, however the work is shared out; alone, and without an original.
model=$reference/llama_gqa_tied container=$work/llama_gqa_tied.h5
grep '"event":"question"' "$work/llama_gqa_tied.log" | sed 's/"time_s":[^,]*,//' >"$work/one"
validate=(validate "$container" --model "$model" --choices "$questions" --log "$work/log")
same() {
  grep '"event":"question"' "$work/log" | sed 's/"time_s":[^,]*,//' | cmp - "$work/one" || fail "$* gives other scores"
}
on 3 "${validate[@]}" >/dev/null && same 3 ranks
on 4 "${validate[@]}" --replicas 2 >/dev/null && same 2 replicas
on 6 "${validate[@]}" >/dev/null && same 6 ranks, more than layers
on 2 "${validate[@]}" --memory streamed >/dev/null && same streamed
on 1 validate "$container" --choices "$questions" --log "$work/log" >"$work/report"
sed -i 's/"scores_original":\[[^]]*\]/"scores_original":[]/' "$work/one"
same alone
grep -q '^all questions  *23 ' "$work/report" || fail "no accuracy is told: $(cat "$work/report")"
grep -q '^world history  *7 ' "$work/report" || fail "no accuracy of a subject is told: $(cat "$work/report")"

# Bad input.
expect 2 '--text or --choices' "$decant" validate "$container"
refused() {
  expect 3 "$1" "$decant" validate "$container" --choices "$work/bad.jsonl" --device cpu --quiet
  grep -q 'bad.jsonl' "$work/err" || fail "the file is not named: $(cat "$work/err")"
}
refused 'No such file'
printf '' >"$work/bad.jsonl" && refused 'has no question'
head -c 40 "$questions" >"$work/bad.jsonl" && refused 'line 1: is no JSON'
{ cat "$questions"; echo '{"context":[1],"choices":[[2],[112]],"answer":0}'; } >"$work/bad.jsonl"
refused 'line 24: a choice has a token outside the vocabulary of 112'
expect 3 'rank 0\|line 24' mpirun -n 2 "$decant" validate "$container" --choices "$work/bad.jsonl" --device cpu --quiet
echo "questions: passed"
