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
  mpirun -n "$ranks" "$decant" "$@" >/dev/null 2>"$work/err" || fail "'$*' failed: $(cat "$work/err")"
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
  mpirun -n "$ranks" "$decant" "$@" --output "$running" >/dev/null 2>"$work/err" &
  job=$!
}

# finish: its exit status in `got`, once no rank of it is left.
finish() {
  local alone=0
  while kill -0 "$job" 2>/dev/null; do
    if [[ -n $(processes "$running") ]]; then alone=0; fi
    # mpirun may outlive ranks that were killed as they started, deaf to SIGTERM (docs/reliability.md)
    ((alone++ < 1000)) || kill -KILL "$job" 2>/dev/null || true
    sleep 0.03
  done
  got=0
  wait "$job" || got=$?
  while [[ -n $(processes "$running") ]]; do sleep 0.01; done
  running=
}

# wait_for FILE: false when the job was over before.
wait_for() {
  while [[ ! -e $1 ]]; do
    kill -0 "$job" 2>/dev/null || return 1
    sleep 0.002
  done
}

# interrupted SIGNAL FILE RANKS OUTPUT ARGUMENTS…: a job whose last rank alone was sent the signal once FILE was in its work
# directory, and which then saved and left with 75. The calibration may be over when the signal comes, which then ends the job
# at once, or comes too late for that: such jobs are begun anew.
interrupted() {
  local signal=$1 file=$2 ranks=$3 output=$4 tries=0
  shift 4
  until begin "$ranks" "$output" "$@" && wait_for "$output.work/$file" && tell_last "$signal" && finish && [[ $got == 75 ]] &&
    grep -q 'interrupted, can be resumed: ' "$work/err"; do
    [[ -z $running ]] || finish
    [[ $got == 0 || $got == 75 ]] || fail "SIG$signal on $ranks ranks gave $got: $(cat "$work/err")"
    ((tries++ < 20)) || fail "SIG$signal on $ranks ranks does not interrupt the job: $(cat "$work/err")"
    rm -rf "$output"*
  done
  [[ ! -e $output ]] || fail "an interrupted job left an output"
}

# interrupted_late SIGNAL PATTERN RANKS OUTPUT ARGUMENTS…: a job all of whose ranks were sent the signal once the pattern was in its
# log, and which left with 75 at once.
interrupted_late() {
  local signal=$1 pattern=$2 ranks=$3 output=$4 tries=0
  shift 4
  until rm -f "$output.log" && begin "$ranks" "$output" "$@" --log "$output.log" && wait_for_event "$output.log" "$pattern" &&
    tell_all "$signal" && finish && [[ $got == 75 ]]; do
    [[ -z $running ]] || finish
    [[ $got == 0 ]] || fail "SIG$signal at $pattern on $ranks ranks gave $got: $(cat "$work/err")"
    ((tries++ < 20)) || fail "SIG$signal at $pattern on $ranks ranks does not interrupt the job: $(cat "$work/err")"
    rm -rf "$output"*
  done
  [[ $(grep -c '^decant: interrupted, can be resumed: the same command goes on' "$work/err") == 1 ]] ||
    fail "SIG$signal at $pattern is not told once: $(cat "$work/err")"
  [[ ! -e $output ]] || fail "an interrupted job left an output"
}
wait_for_event() {
  until grep -qs "$2" "$1"; do
    kill -0 "$job" 2>/dev/null || return 1
    sleep 0.002
  done
}
tell_all() { for process in $(processes "$running"); do kill -"$1" "$process" 2>/dev/null || true; done; }
tell_last() { kill -"$1" "$(processes "$running" | tail -n 1)" 2>/dev/null; }
