#!/usr/bin/env bash
# Several processes on this machine, as on the hosts of a pod: to try a config, or for
# machines with several accelerators.
#
#   launch/local.sh [--processes=2] [--devices=4] [--dry-run] --config=configs/digits.py ...
#
# --devices: CPU devices of each process (0: whatever each process finds). Everything
# else goes to python -m ot_dd.distill. Ctrl-C or SIGTERM ends all of them.
set -euo pipefail
cd "$(dirname "$0")/.."

processes=2 devices=0 dry=0 rest=()
for argument in "$@"; do
  case "$argument" in
    --processes=*) processes="${argument#*=}" ;;
    --devices=*) devices="${argument#*=}" ;;
    --dry-run) dry=1 ;;
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) rest+=("$argument") ;;
  esac
done
if ! [[ "$processes $devices" =~ ^[1-9][0-9]*\ (0|[1-9][0-9]*)$ ]]; then
  echo "local.sh: --processes is 1 or more and --devices 0 or more, found '$processes'" \
    "and '$devices'" >&2
  exit 2
fi

python="${PYTHON:-.venv/bin/python}"
port="${PORT:-$("$python" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')}"
if [ "$devices" -gt 0 ]; then
  export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES="$devices"
fi

pids=() killer=
# Asks all to end, and after a while no longer asks: one that waits for a lost one hears
# nothing.
end() {
  kill -TERM "${pids[@]}" 2>/dev/null || true
  if [ -n "$killer" ]; then return; fi
  (trap 'kill $!' TERM; sleep "${GRACE:-60}" & wait $! && kill -KILL "${pids[@]}") >/dev/null 2>&1 &
  killer=$!
}
trap end INT TERM
# Once all have ended, their numbers may be somebody else's.
trap 'if [ -n "$killer" ]; then kill "$killer" 2>/dev/null || true; fi' EXIT
for ((id = 0; id < processes; id++)); do
  command=("$python" -m ot_dd.distill ${rest[@]+"${rest[@]}"}
    "--coordinator=localhost:$port" "--num_processes=$processes" "--process_id=$id")
  printf '+ %s\n' "$(printf '%q ' "${command[@]}")" >&2
  if [ "$dry" -eq 0 ]; then
    "${command[@]}" &
    pids+=("$!")
  fi
done

status=0
while [ "${#pids[@]}" -gt 0 ]; do
  code=0 ended=
  wait -n -p ended "${pids[@]}" || code=$?
  [ -n "${ended:-}" ] || continue # a signal ended the wait, not a process
  left=()
  for pid in "${pids[@]}"; do
    [ "$pid" = "$ended" ] || left+=("$pid")
  done
  pids=(${left[@]+"${left[@]}"})
  # One that failed leaves the others waiting for it.
  if [ "$code" -ne 0 ] && [ "$status" -eq 0 ]; then
    status="$code"
    if [ "${#pids[@]}" -gt 0 ]; then end; fi
  fi
done
exit "$status"
