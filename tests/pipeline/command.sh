# What the tests of the program share; they source it. Gives them $decant, $source, the tree, and $work, a folder that goes
# when the test ends.
decant=${DECANT_PROGRAM:?} source=${DECANT_TEST_SOURCE:?}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMPI_MCA_rmaps_base_oversubscribe=1 OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

fail() { echo "FAILED: $*" >&2; exit 1; }

# on RANKS ARGUMENTS…: decant under mpirun, quiet.
on() {
  local ranks=$1
  shift
  mpirun -n "$ranks" "$decant" "$@" --quiet --device cpu
}

# expect STATUS PATTERN COMMAND…: the exit status, and one line on stderr that says why.
expect() {
  local status=$1 pattern=$2 got=0
  shift 2
  "$@" >"$work/out" 2>"$work/err" || got=$?
  [[ $got == "$status" ]] || fail "'$*' gave $got, not $status: $(cat "$work/err")"
  [[ $(grep -c '^decant: ' "$work/err") == 1 ]] || fail "'$*' did not print one line: $(cat "$work/err")"
  grep -q -- "$pattern" "$work/err" || fail "'$*' does not say '$pattern': $(cat "$work/err")"
}

# copy_with_nan MODEL FOLDER: a model with one weight that is no number, in model.layers.1.mlp.up_proj.
copy_with_nan() {
  mkdir "$2" && cp "$1"/config.json "$2" && python3 - "$1" "$2" <<'PY'
import json, struct, sys
raw = bytearray(open(sys.argv[1] + "/model.safetensors", "rb").read())
size = struct.unpack("<Q", raw[:8])[0]
entry = json.loads(raw[8 : 8 + size])["model.layers.1.mlp.up_proj.weight"]
begin = 8 + size + entry["data_offsets"][0]
raw[begin + 40 : begin + 44] = struct.pack("<f", float("nan"))
open(sys.argv[2] + "/model.safetensors", "wb").write(raw)
PY
}
