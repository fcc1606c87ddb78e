#!/usr/bin/env bash
# The same bytes however the job is laid out: any number of stages, more ranks than layers, layers that stay or are
# streamed one by one, and, for a fixed number of replicas, over different numbers of stages. All ranks share this machine's cores.
set -euo pipefail
. "${DECANT_TEST_SOURCE:?}/tests/pipeline/command.sh"

model=$source/tests/reference/llama_mha # three layers, five sequences
tokens=$model/tokens.npy

# made NAME RANKS OPTIONS…: a container of that name.
made() {
  local name=$1 ranks=$2
  shift 2
  mpirun -n "$ranks" "$decant" run --model "$model" --calibration "$tokens" --text "$tokens" --bits 5 --micro-batch 2 \
    --quiet --device cpu --output "$work/$name.h5" "$@" >"$work/$name.txt" || fail "$name on $ranks ranks"
  sed -i '/^$/,$d' "$work/$name.txt" # behind the empty line are speeds
  grep -q 'perplexity after' "$work/$name.txt" || fail "no result of $name: $(cat "$work/$name.txt")"
}

# same A B: the two containers, and what was printed about them, are the same.
same() {
  cmp "$work/$1.h5" "$work/$2.h5" || fail "$2 gives other bytes than $1"
  cmp "$work/$1.txt" "$work/$2.txt" || fail "$2 prints other results than $1"
}

# ---- stages: one to three layers each, and ranks without layers
made one 1
for ranks in 2 3 4 8; do
  made "stages$ranks" "$ranks" --replicas 1
  same one "stages$ranks"
done

# ---- replicas: the sums are added in another order, so the bytes are others, but the same for all grids of so many
for replicas in 2 3; do
  made "replicas$replicas" "$replicas" --replicas "$replicas"
  made "grid$replicas" $((2 * replicas)) --replicas "$replicas"
  same "replicas$replicas" "grid$replicas"
done
cmp -s "$work/one.h5" "$work/replicas2.h5" && fail "two replicas give the bytes of one: the test sees nothing"
made grid8 8 --replicas 2
same replicas2 grid8
made chosen 4
same replicas2 chosen || fail "four ranks on three layers are not two stages of two replicas"

made chosen8 8 # two stages of four replicas, of which one has no micro-batch

# ---- layers streamed one by one: the bytes of layers that stay, on any grid, with activations on disk or in memory
streamed=(--memory streamed)
for ranks in 1 2 3; do
  made "streamed$ranks" "$ranks" "${streamed[@]}"
  same one "streamed$ranks"
done
made streamed8 8 --replicas 1 "${streamed[@]}"
same one streamed8
made grid_streamed 6 --replicas 2 "${streamed[@]}"
same replicas2 grid_streamed
mkdir "$work/scratch"
made on_disk 2 "${streamed[@]}" --scratch "$work/scratch" --log "$work/log"
same one on_disk
grep -q '"memory":"streamed".*"on_disk":true' "$work/log" || fail "nothing was on disk: $(grep plan "$work/log")"
[[ -z $(ls "$work/scratch") ]] || fail "scratch files are left"
for form in sequence token; do
  made "resident_$form" 1 --fisher $form --memory resident
  made "streamed_$form" 2 --fisher $form --memory streamed
  same "resident_$form" "streamed_$form"
done
cmp -s "$work/streamed_sequence.h5" "$work/streamed_token.h5" && fail "--fisher changes nothing"

# ---- weights that lie at odd addresses of their file are copied, and stay where they are as layers pass
mkdir "$work/odd" && cp "$model/config.json" "$work/odd" && python3 - "$model" "$work/odd" <<'PY'
import sys
raw = open(sys.argv[1] + "/model.safetensors", "rb").read()
end = 8 + int.from_bytes(raw[:8], "little")
open(sys.argv[2] + "/model.safetensors", "wb").write((end - 7).to_bytes(8, "little") + raw[8:end] + b" " + raw[end:])
PY
for memory in resident streamed; do made "odd_$memory" 2 --model "$work/odd" --memory $memory; done
same one odd_resident
same one odd_streamed

# ---- several methods: what is kept of each matrix until the choice waits in host memory and comes back
made methods 1 --method kmeans,rtn,nf4
made methods_streamed 2 --method kmeans,rtn,nf4 --memory streamed
same methods methods_streamed

# ---- statistics made by replicas are those that a run makes itself
mpirun -n 4 "$decant" calibrate --model "$model" --calibration "$tokens" --micro-batch 2 --replicas 2 --quiet --device cpu \
  --output "$work/statistics.h5"
mpirun -n 3 "$decant" run --model "$model" --statistics "$work/statistics.h5" --text "$tokens" --bits 5 --quiet \
  --device cpu --output "$work/again.h5" >"$work/again.txt"
sed -i '/^$/,$d' "$work/again.txt"
same replicas2 again
mpirun -n 6 "$decant" calibrate --model "$model" --calibration "$tokens" --micro-batch 2 --replicas 2 --quiet --device cpu \
  --memory streamed --output "$work/streamed.h5"
cmp "$work/statistics.h5" "$work/streamed.h5" || fail "streamed statistics are others"

# ---- a failure on one replica ends all ranks, with one line
copy_with_nan "$model" "$work/nan"
# fails STATUS PATTERN RANKS OPTIONS…
fails() {
  local status=$1 pattern=$2 ranks=$3 got=0
  shift 3
  mpirun -n "$ranks" "$decant" run --calibration "$tokens" --bits 5 --micro-batch 2 --quiet --device cpu \
    --output "$work/no.h5" "$@" 2>"$work/err" || got=$?
  [[ $got == "$status" ]] || fail "'$*' on $ranks ranks gave $got: $(cat "$work/err")"
  [[ $(grep -c '^decant: ' "$work/err") == 1 ]] || fail "not one line: $(cat "$work/err")"
  grep -q -- "$pattern" "$work/err" || fail "'$*' does not say '$pattern': $(cat "$work/err")"
  [[ ! -e $work/no.h5 ]] || fail "a failed job left a file"
}
fails 3 'model.layers' 4 --model "$work/nan" --replicas 2
fails 3 'model.layers' 6 --model "$work/nan" --replicas 2 --memory streamed
fails 4 'no scratch file\|no file can be made there' 2 --model "$model" --memory streamed --scratch /proc
fails 4 'name a folder' 2 --model "$model" --memory resident --scratch "$work/absent"

# ---- grids that cannot be
fails 2 'replicas 2 does not divide the 3 ranks' 3 --model "$model" --replicas 2
fails 2 'only 3 micro-batches' 4 --model "$model" --replicas 4
echo "the same bytes: passed"
