#!/usr/bin/env bash
# Where outputs go: deep in folders, on any number of ranks, resident and streamed; never in the place of what is no file, or is read;
# too few files that may be open; work directories behind links; logs, which cost no other file; and results, on a full disk.
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
mkdir "$folder/model" && cp "$model/model.safetensors" "$folder/model"
sed 's/"rope_theta": 250000.0/"rope_theta": 10000.0/' "$model/config.json" >"$folder/model/config.json"
expect 3 'rope_theta; name the one that it was made of, or none$' "$decant" validate "$deep" --model "$folder/model" --text "$tokens" \
  --device cpu --quiet
expect 2 'a path of at most 1023 bytes' "$decant" "${run[@]}" --output "${deep}oo"
# ---- what is no file is not replaced, and no work is done before that is told
for part in 2 3; do
  on 1 calibrate --model "$model" --calibration "$tokens" --sequences $part --output "$work/statistics.$part.h5"
done
mkdir "$work/folder.h5" && mkfifo "$work/pipe.h5"
for place in folder pipe; do
  for command in run calibrate; do
    job=($command --model "$model" --calibration "$tokens" --bits 5 --device cpu --quiet --log "$work/log" --output "$work/$place.h5")
    for options in "" --overwrite; do
      expect 2 "$place.h5: exists and is no file, so it is not replaced" "$decant" "${job[@]}" $options
      ! grep -q '"event":"calibrate"' "$work/log" || fail "$command calibrates before it looks at $place.h5"
    done
  done
  expect 2 "$place.h5: exists and is no file" "$decant" merge "$work"/statistics.{2,3}.h5 --overwrite --output "$work/$place.h5"
done
[[ -d $work/folder.h5 && -p $work/pipe.h5 ]] || fail "what is no file was replaced"

# ---- too many open files are told as such, by every command, and leave nothing: neither half an output nor a job's work
few() { bash -c 'ulimit -n "$0" && exec "$@"' "$@"; } # few FILES COMMAND…: with at most so many open
"$decant" export "$work/plain.h5" --output "$work/exported" >"$work/result"
cp -r "$work/exported" "$work/exported.before"
told=0
for files in {3..12}; do # how many a process begins with is the caller's, and the first are its libraries'
  for command in "export $work/plain.h5 --output $work/exported --overwrite" "export $work/plain.h5 --output $work/another" \
    "compare $work/plain.h5 $work/plain.h5"; do
    got=0
    # shellcheck disable=SC2086 # a command and its options
    few $files "$decant" $command >"$work/out" 2>"$work/err" || got=$?
    if [[ $got == 4 ]]; then
      expect 4 'too many open files: .*; raise the limit of this process (ulimit -n)' few $files "$decant" $command
      told=$((told + 1))
    elif [[ $got != 0 ]]; then
      grep -q 'error while loading shared libraries' "$work/err" || fail "$command, $files open files: $got: $(cat "$work/err")"
    elif [[ $command == *another ]]; then
      diff -r "$work/exported.before" "$work/another" || fail "$files open files: other exported files"
      rm -r "$work/another"
    fi
    diff -r "$work/exported.before" "$work/exported" || fail "$command, $files open files: an earlier output is another"
    [[ ! -e $work/exported.partial && ! -e $work/another.partial && ! -e $work/another ]] || fail "$command, $files open files: a folder is left"
  done
done
((told >= 3)) || fail "too many open files were met $told times"
[[ $got == 0 ]] || fail "a command needs more than 12 open files"
for ranks in "" "mpirun -n 2"; do
  for files in 9 14 16; do
    # shellcheck disable=SC2086 # several words each
    expect 4 "too many open files: a rank may have $files open at once.*(ulimit -n)" $ranks \
      bash -c 'ulimit -n "$0" && exec "$@"' $files "$decant" "${run[@]}" --output "$work/few.h5" --quiet --device cpu
    [[ ! -e $work/few.h5.work && ! -e $work/few.h5.partial ]] || fail "$files open files: work is left"
  done
done
few 32 "$decant" "${run[@]}" --output "$work/few.h5" --quiet --device cpu >"$work/result" || fail "a job alone needs more than 32 files"
cmp "$work/plain.h5" "$work/few.h5" || fail "other bytes with few files"

# ---- a link counts as what stands there, wherever it leads, and goes when it is replaced
ln -s nowhere.h5 "$work/link.h5"
expect 2 'link.h5: exists already' on 2 "${run[@]}" --log "$work/log" --output "$work/link.h5"
! grep -q '"event":"calibrate"' "$work/log" || fail "calibrated before the link was seen"
on 2 "${run[@]}" --output "$work/link.h5" --overwrite
cmp "$work/plain.h5" "$work/link.h5" && [[ ! -L $work/link.h5 && ! -e $work/nowhere.h5 ]] || fail "a link is not replaced"
# ---- nor is what the job reads, under whatever name; but a container that it takes matrices from
cp "$tokens" "$work/tokens.npy" && ln -s tokens.npy "$work/same.npy"
cp "$work/statistics.2.h5" "$work/statistics.h5"
inputs=(--model "$model" --bits 5 --device cpu --quiet --overwrite)
expect 2 'tokens.npy: is what --calibration reads' "$decant" calibrate "${inputs[@]}" --calibration "$work/same.npy" --output "$work/tokens.npy"
expect 2 'tokens.npy: is what --text reads' "$decant" "${run[@]}" "${inputs[@]}" --text "$work/tokens.npy" --output "$work/tokens.npy"
expect 2 'tokens.npy: is what --choices reads' "$decant" "${run[@]}" "${inputs[@]}" --choices "$work/tokens.npy" --output "$work/tokens.npy"
expect 2 'statistics.h5: is what --statistics reads' "$decant" run "${inputs[@]}" --statistics "$work/statistics.h5" --output "$work/statistics.h5"
cmp "$tokens" "$work/tokens.npy" && cmp "$work/statistics.2.h5" "$work/statistics.h5" || fail "an input was replaced"
on 2 run "${inputs[@]}" --statistics "$work/statistics.h5" --output "$work/reused.h5"
on 2 run "${inputs[@]}" --statistics "$work/statistics.h5" --reuse "$work/reused.h5" --output "$work/reused.h5"

# ---- a work directory that was moved to another disk, which is gone
ln -s "$work/gone" "$work/moved.h5.work"
expect 4 'moved.h5.work: a link to where nothing is' timeout 60 "$decant" "${run[@]}" --device cpu --quiet --output "$work/moved.h5"
mkdir "$work/gone"
on 2 "${run[@]}" --checkpoint-every 0 --output "$work/moved.h5"
cmp "$work/plain.h5" "$work/moved.h5" || fail "a work directory behind a link"
[[ -L $work/moved.h5.work && ! $(ls "$work/gone") ]] || fail "left behind the link: $(ls "$work/gone")"
# ---- a log takes the place of an earlier log alone, and not before a job has something to say
cp "$work/plain.h5" "$work/earlier.h5" && cp "$model/config.json" "$work/config.json"
for taken in earlier.h5 config.json; do
  expect 2 "$taken: exists and is no log" on 2 validate "$work/plain.h5" --text "$tokens" --log "$work/$taken"
done
cmp "$work/plain.h5" "$work/earlier.h5" && cmp "$model/config.json" "$work/config.json" || fail "a log took the place of a file"
"$decant" "${run[@]}" --device cpu --quiet --output "$work/logged.h5" --log "$work/logged.jsonl"
cp "$work/logged.jsonl" "$work/first.jsonl"
expect 2 'exists already' "$decant" "${run[@]}" --device cpu --quiet --output "$work/logged.h5" --log "$work/logged.jsonl"
cmp "$work/first.jsonl" "$work/logged.jsonl" || fail "a job that was refused emptied the log of the one before"
# ---- results that a full disk does not take are no success, wherever they are printed; the container is whole all the same
full() { "$@" >/dev/full; }
expect 4 'the results cannot be written' full "$decant" "${run[@]}" --text "$tokens" --device cpu --quiet --output "$work/full.h5"
"$decant" verify "$work/full.h5" >/dev/null || fail "results that cannot be written harm the container"
for command in --help --version "plan --model $model" "inspect $work/plain.h5" "inspect $work/plain.h5 --json" "verify $work/plain.h5" \
  "compare $work/plain.h5 $work/plain.h5" "allocate $work/plain.h5 --sweep 4:8:1" \
  "validate $work/plain.h5 --text $tokens --device cpu --quiet" "generate $work/plain.h5 --prompt $tokens --new-tokens 2 --device cpu --quiet"; do
  expect 4 'the results cannot be written' full "$decant" $command
done
echo "places of outputs: passed"
