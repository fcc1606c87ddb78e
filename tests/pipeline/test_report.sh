#!/usr/bin/env bash
# The report holds what the containers and logs hold: every container's figures in the table, a plot of each kind, and no
# address that a browser would fetch.
set -euo pipefail
decant=${DECANT_PROGRAM:?} source=${DECANT_TEST_SOURCE:?}
python=$source/.venv/bin/python
[[ -x $python ]] || python=python3
"$python" -c 'import h5py, matplotlib' 2>/dev/null || { echo "h5py and matplotlib are not here"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
model=$source/tests/reference/llama_mha

for bits in 3 6.5; do
  widths=--bits
  [[ $bits == 3 ]] && widths=--bit-widths
  mpirun -n 2 "$decant" run --model "$model" --calibration "$model/tokens.npy" --text "$model/tokens.npy" $widths "$bits" \
    --output "$work/m$bits.h5" --log "$work/m$bits.jsonl" --quiet --device cpu --json >"$work/m$bits.json"
done
"$source/launch/report" "$work"/*.h5 "$work"/*.jsonl --output "$work/r.html" --title "two containers"
"$python" - "$work" <<'PY'
import json, re, sys
from pathlib import Path

work = Path(sys.argv[1])
page = (work / "r.html").read_text()
body = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
assert not re.search(r'(src|href)="(?!#|data:)', body) and "<script" not in body, "the page fetches something"
for bits in ("3", "6.5"):
    result = json.loads((work / f"m{bits}.json").read_text())
    assert f"<td>{result['perplexity_quantized']:.3f}</td>" in page, bits
    assert f"<td>{result['bits']:.3f}</td>" in page, bits
    assert f"<td>{result['measured_loss_increase']:.4f}</td>" in page, bits
# perplexity, prediction; errors of both and the allocation of one; time and memory of both
assert page.count("<svg") == 2 + 3 + 4, page.count("<svg")
PY

# A container without prediction and Fisher sums has its place too.
"$decant" run --model "$model" --method higgs --bit-widths 4 --text "$model/tokens.npy" --output "$work/h.h5" --quiet --device cpu >/dev/null
"$source/launch/report" "$work"/*.h5 --output "$work/r.html" >/dev/null
grep -q '<td class="text">higgs, uniform</td>' "$work/r.html"

# Statistics that lie beside containers are left out, and told.
"$decant" calibrate --model "$model" --calibration "$model/tokens.npy" --output "$work/s.h5" --quiet --device cpu
cp "$work/r.html" "$work/without.html"
"$source/launch/report" "$work"/*.h5 --output "$work/r.html" >/dev/null 2>"$work/said"
grep -q 's.h5 is left out: it holds statistics' "$work/said" && cmp "$work/r.html" "$work/without.html"

# What is no container or no log is told in one line, and harms no page that exists.
cp "$work/r.html" "$work/before.html"
echo nonsense >"$work/x.h5"
if "$source/launch/report" "$work/x.h5" --output "$work/r.html" 2>"$work/said"; then exit 1; fi
grep -q 'x.h5' "$work/said" && [[ $(wc -l <"$work/said") == 1 ]]
if "$source/launch/report" "$model/tokens.npy" --output "$work/r.html" 2>"$work/said"; then exit 1; fi
cmp "$work/r.html" "$work/before.html"
echo "the report holds what the containers hold"
