#!/usr/bin/env bash
# Disks that are really full: outputs on small file systems in memory, of ever more bytes. A job either comes to its end, or
# ends with status 4 and one line, and leaves nothing but its work directory. Mounting needs root; skipped without.
set -euo pipefail
. "${DECANT_TEST_SOURCE:?}/tests/pipeline/command.sh"
[[ -z ${DECANT_TEST_SANITIZED:-} ]] || { echo "one build is enough"; exit 77; }
disk=$work/disk
mkdir "$disk"
mount -t tmpfs -o size=64k tmpfs "$disk" 2>/dev/null || { echo "file systems cannot be mounted here"; exit 77; }
trap 'umount "$disk"; rm -rf "$work"' EXIT
model=$source/tests/reference/llama_mha
run=(run --model "$model" --calibration "$model/tokens.npy" --text "$model/tokens.npy" --bits 5 --micro-batch 1)
on 3 "${run[@]}" --output "$work/whole.h5" >/dev/null
told=0 whole=0
for kilobytes in 0 8 40 120 200 280 400 700 1500; do
  umount "$disk"
  mount -t tmpfs -o "size=$((kilobytes + 4))k" tmpfs "$disk"
  got=0
  on 3 "${run[@]}" --checkpoint-every 0 --output "$disk/m.h5" >"$work/out" 2>"$work/err" || got=$?
  if [[ $got == 0 ]]; then
    cmp "$work/whole.h5" "$disk/m.h5" || fail "$kilobytes kB: other bytes"
    whole=$((whole + 1))
  else
    [[ $got == 4 ]] || fail "$kilobytes kB gave $got: $(cat "$work/err")"
    [[ $(grep -c '^decant: ' "$work/err") == 1 ]] || fail "$kilobytes kB: not one line: $(cat "$work/err")"
    grep -q "$disk/m.h5" "$work/err" || fail "$kilobytes kB: the line names no file: $(cat "$work/err")"
    told=$((told + 1))
  fi
  others=$(cd "$disk" && find . -type f ! -name m.h5 ! -path './m.h5.work/lock' ! -path './m.h5.work/head' \
    ! -path './m.h5.work/calibration.h5' ! -path './m.h5.work/statistics.h5')
  [[ -z $others ]] || fail "$kilobytes kB: left over: $others"
  [[ $got == 0 || ! -e $disk/m.h5 ]] || fail "$kilobytes kB: there is an output"
done
((told > 0 && whole > 0)) || fail "all disks were full, or none: $told, $whole"
echo "full disks: passed; $told told, $whole large enough"
