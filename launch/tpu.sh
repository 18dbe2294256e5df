#!/usr/bin/env bash
# Runs the pipeline on a Cloud TPU slice, detached from this shell.
#
#   cp launch/env.sh.example launch/env.sh      # then fill it in
#   launch/tpu.sh create                        # asks for the TPU, waits until it is there
#   launch/tpu.sh setup                         # Python 3.12, jax[tpu], this checkout
#   launch/tpu.sh run --config=configs/imagenette.py --config.ipc=10
#   launch/tpu.sh logs | stop | fetch | delete
#
# --dry-run before the verb prints every command and runs none. With BUCKET set, `run` saves
# the work directory there every ten minutes and when it ends or is told to, and on a new
# machine brings it back first. So after a preemption: delete, create, setup, and the same
# `run` goes on.
# Slices of several machines run the same command on all of them, in a work directory on the
# file server SHARE, which stays when they go.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dry_run=
if [[ ${1:-} == --dry-run ]]; then
  dry_run=1
  shift
fi

die() {
  printf 'tpu.sh: %s\n' "$*" >&2
  exit 2
}

# Prints a command as it could be typed, then runs it.
show() {
  printf '+' >&2
  printf ' %q' "$@" >&2
  printf '\n' >&2
  [[ -n $dry_run ]] || "$@"
}

verb=${1:-}
[[ -n $verb ]] || die "which verb? create, setup, run, logs, stop, fetch or delete"
shift
env_file=${OT_DD_ENV:-$here/env.sh}
[[ -f $env_file ]] || die "$env_file is missing: copy launch/env.sh.example there and fill it in"
# shellcheck source=launch/env.sh.example
source "$env_file"
for name in PROJECT ZONE TPU ACCELERATOR; do
  [[ -n ${!name:-} ]] || die "$env_file does not set $name"
done
CAPACITY=${CAPACITY:-on-demand}
BUCKET=${BUCKET:-}

SHARE=${SHARE:-}

kind=${ACCELERATOR%-*} size=${ACCELERATOR##*-}
case $kind in
  v5litepod) default_runtime=v2-alpha-tpuv5-lite ;;
  v6e) default_runtime=v2-alpha-tpuv6e ;;
  v5p) default_runtime=v2-alpha-tpuv5 ;;
  v4) default_runtime=tpu-ubuntu2204-base ;;
  *) die "ACCELERATOR=$ACCELERATOR: must be v5litepod-N, v6e-N, v5p-N or v4-N" ;;
esac
[[ $size =~ ^[1-9][0-9]*$ ]] || die "ACCELERATOR=$ACCELERATOR: $size is no number of chips or cores"
# One machine has up to 8 chips of v5e and v6e, and 4 chips, 8 cores, of v4 and v5p.
workers=()
if ((size > 8)); then
  workers=(--worker=all --batch-size=all)
  [[ -n $SHARE ]] || die "ACCELERATOR=$ACCELERATOR has several machines: set SHARE to an NFS export that holds the work directory, such as 10.0.0.2:/ot_dd"
  [[ -z $BUCKET ]] || die "several machines keep their work directory on SHARE: leave BUCKET empty"
fi
RUNTIME=${RUNTIME:-$default_runtime}
where=(--project="$PROJECT" --zone="$ZONE")

# Runs a command line on every machine of the slice.
on_tpu() {
  show gcloud compute tpus tpu-vm ssh "$TPU" "${where[@]}" ${workers[@]+"${workers[@]}"} --command="$1"
}

# Prints the state of what `create` asks for.
request_state() {
  gcloud compute tpus queued-resources describe "$TPU" "${where[@]}" --format='value(state.state)'
}

create() {
  local capacity=()
  case $CAPACITY in
    on-demand) ;;
    spot) capacity=(--spot) ;;
    reserved) capacity=(--reserved) ;;
    *) die "CAPACITY=$CAPACITY: must be on-demand, spot or reserved" ;;
  esac
  # Asked for before, by a `create` that was interrupted while it waited: waits again.
  if [[ -n $dry_run ]] || ! request_state >/dev/null 2>&1; then
    show gcloud compute tpus queued-resources create "$TPU" "${where[@]}" \
      --node-id="$TPU" --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" \
      ${capacity[@]+"${capacity[@]}"}
  fi
  [[ -z $dry_run ]] || return 0
  local state='' failed=0
  until [[ $state == ACTIVE ]]; do
    if state=$(request_state); then
      failed=0
    else
      ((++failed < 5)) || die "gcloud does not say how $TPU is: launch/tpu.sh create waits again"
      state=unknown
    fi
    printf 'queued resource %s: %s\n' "$TPU" "$state" >&2
    case $state in
      ACTIVE) ;;
      FAILED | SUSPENDED | SUSPENDING) die "$TPU is $state: launch/tpu.sh delete, then create again" ;;
      *) sleep "${OT_DD_POLL:-20}" ;;
    esac
  done
}

setup() {
  local archive
  [[ -z $(git -C "$here/.." status --porcelain) ]] ||
    printf 'tpu.sh: what is not committed does not come along\n' >&2
  archive=$(mktemp -d)/ot-dd.tar.gz
  show git -C "$here/.." archive --format=tar.gz --output="$archive" HEAD
  show gcloud compute tpus tpu-vm scp "$archive" "$TPU:ot-dd.tar.gz" "${where[@]}" ${workers[@]+"${workers[0]}"}
  # The image's Python is 3.10: uv brings another, beside it.
  local share='' check='import jax; print(jax.devices())'
  if [[ -n $SHARE ]]; then
    # Without locks: those of a machine that is taken away would never be released. What was
    # not there is asked for again: another machine may have written it. A machine that has
    # just started holds apt's locks for its own updates.
    share="
command -v mount.nfs >/dev/null || for _ in \$(seq 60); do sudo apt-get -qq update && sudo apt-get -qq -o DPkg::Lock::Timeout=600 install -y nfs-common && break; sleep 10; done
mkdir -p out; mountpoint -q out || sudo mount -t nfs -o nolock,lookupcache=positive $(printf '%q' "$SHARE") out
sudo chown \$(id -u) out"
  fi
  # Devices are found when all machines ask for them together.
  ((size <= 8)) || check='import jax; jax.distributed.initialize(); print(jax.devices())'
  on_tpu 'set -e; mkdir -p ot-dd; tar -xzf ot-dd.tar.gz -C ot-dd; cd ot-dd'"$share"'
command -v ~/.local/bin/uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
~/.local/bin/uv venv --allow-existing --python 3.12 .venv
~/.local/bin/uv pip install -e . "jax[tpu]"
.venv/bin/python -c "'"$check"'"'
  rm -rf "$(dirname "$archive")"
}

# Prints the command that saves all of the work directory in a bucket.
save() {
  printf 'gcloud storage rsync -r --delete-unmatched-destination-objects out/run %s' "$1"
}

run() {
  [[ $# -gt 0 ]] || die "run needs the arguments of python -m ot_dd.distill, such as --config=configs/imagenette.py"
  local word words line
  for word in "$@"; do
    [[ $word != --workdir* ]] || die "run keeps everything in out/run there: leave out $word"
  done
  ((size <= 8)) || set -- --coordinator=auto "$@"
  words=$(printf ' %q' .venv/bin/python -m ot_dd.distill --workdir=out/run "$@")
  line="export JAX_COMPILATION_CACHE_DIR=\$HOME/.cache/jax"
  if [[ -n $BUCKET ]]; then
    local bucket
    bucket=$(printf '%q' "$BUCKET")
    # A new machine: what is in the bucket is brought back, and nothing begins without it.
    # Moved into place when it is whole, so that one that broke off is taken up again.
    line+="; if [ ! -e out/run/config.json ]; then if said=\$(gcloud storage ls $bucket 2>&1); then mkdir -p out/back && gcloud storage rsync -r $bucket out/back && rm -rf out/run && mv out/back out/run || exit 1; elif [[ \$said != *'matched no objects'* ]]; then printf '%s\n' \"\$said\"; exit 1; fi; fi"
    # Saved every ten minutes while the run lives, and once when it has ended: told to end, as
    # before a preemption, this shell waits for the program, which saves. What is gone here
    # goes there in the end, when nothing writes.
    line+="; (while sleep 600; do gcloud storage rsync -r out/run $bucket; done) & saver=\$!; trap : TERM"
    line+=";$words & run=\$!; wait \$run; status=\$?; while kill -0 \$run 2>/dev/null; do wait \$run; status=\$?; done"
    line+="; pkill -P \$saver; kill \$saver; wait \$saver; $(save "$bucket"); exit \$status"
  else
    line+=";$words"
  fi
  local mounted='' log=run.log
  # Which machine of several is the first process, and so prints, is not known here.
  [[ -z $SHARE ]] || log="out/logs/\$(hostname).log" mounted="mountpoint -q out || { echo 'out is not mounted: launch/tpu.sh setup' >&2; exit 1; }; mkdir -p out/logs && "
  on_tpu "cd ot-dd && mkdir -p out && ${mounted} { ! kill -0 \"\$(cat run.pid 2>/dev/null)\" 2>/dev/null || { echo 'a run is going on: launch/tpu.sh stop' >&2; exit 1; }; } && { setsid nohup bash -c $(printf '%q' "$line") >>$log 2>&1 </dev/null & echo \$! >run.pid; }"
}

logs() {
  workers=(--worker=0)
  if [[ -n $SHARE ]]; then
    on_tpu 'tail -n 100 -F ot-dd/out/logs/*.log'
  else
    on_tpu 'tail -n 100 -F ot-dd/run.log'
  fi
}

stop() {
  # The whole session of the run; a killed program leaves libtpu's lock behind.
  # shellcheck disable=SC2016 # expanded there
  local line='cd ot-dd; pid=$(cat run.pid) || exit 0; pkill -TERM -s "$pid"; for _ in $(seq 120); do pgrep -s "$pid" >/dev/null || break; sleep 0.5; done; pkill -KILL -s "$pid"; rm -f run.pid; rm -f /tmp/libtpu_lockfile || sudo rm -f /tmp/libtpu_lockfile'
  [[ -z $BUCKET ]] || line+="; $(save "$(printf '%q' "$BUCKET")")"
  on_tpu "$line"
}

fetch() {
  if [[ -n $BUCKET ]]; then
    show mkdir -p out/"$TPU"
    show gcloud storage rsync -r "$BUCKET" out/"$TPU"
  else
    local target
    target=out/$TPU-$(date +%Y%m%d-%H%M%S)
    show mkdir -p out
    show gcloud compute tpus tpu-vm scp --recurse "$TPU:ot-dd/out/run" "$target" "${where[@]}" --worker=0
  fi
}

delete() {
  show gcloud compute tpus queued-resources delete "$TPU" "${where[@]}" --force --quiet
}

[[ $verb == run || $# -eq 0 ]] || die "$verb takes no arguments, found $*; --dry-run stands before the verb"
case $verb in
  create | setup | run | logs | stop | fetch | delete) "$verb" "$@" ;;
  *) die "unknown verb $verb: create, setup, run, logs, stop, fetch or delete" ;;
esac
