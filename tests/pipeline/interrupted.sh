# What the tests of killed and interrupted jobs share; they source it after command.sh. It ends what they leave running.
running=
cleanup() {
  [[ -z $running ]] || kill_all "$running"
  kill $(jobs -p) 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT

# through RANKS ARGUMENTS…: a job that comes to its end; what it tells is in err.
through() {
  local ranks=$1
  shift
  timeout 120 mpirun -n "$ranks" "$decant" "$@" >/dev/null 2>"$work/err" || fail "'$*' failed: $(cat "$work/err")"
}

# The processes of decant that write an output, mpirun left out.
processes() { pgrep -f "^$decant .*--output $1( |\$)" || true; }

# kill_all OUTPUT, kill_one OUTPUT: SIGKILL to every rank, or to one of them.
kill_all() { for process in $(processes "$1"); do kill -KILL "$process" 2>/dev/null || true; done; }
kill_one() { kill -KILL "$(processes "$1" | shuf -n 1)" 2>/dev/null || true; }

# begin RANKS OUTPUT ARGUMENTS…: in the background; `job` is mpirun's process.
begin() {
  local ranks=$1
  running=$2
  shift 2
  # mpirun may outlive ranks that were killed as they started, deaf to SIGTERM (docs/reliability.md)
  timeout -s KILL 60 mpirun -n "$ranks" "$decant" "$@" --output "$running" >/dev/null 2>"$work/err" &
  job=$!
}

# finish: its exit status in `got`, once no rank of it is left.
finish() {
  got=0
  wait "$job" || got=$?
  for _ in $(seq 1000); do
    [[ -n $(processes "$running") ]] || break
    sleep 0.01
  done
  running=
}

# wait_for FILE: false when the job was over before.
wait_for() {
  while [[ ! -e $1 ]]; do
    kill -0 "$job" 2>/dev/null || return 1
    sleep 0.002
  done
}
