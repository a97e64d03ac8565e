#!/usr/bin/env bash
# Trains on one Cloud TPU slice over ssh: a systemd service on every host, which keeps running when ssh ends.
#
#   export PROJECT=my-project ZONE=us-west4-a TYPE=v5litepod-16 NFS=10.0.0.2:/share
#   launch/tpu_vm.sh create                               # the slice
#   launch/tpu_vm.sh start --config.train.num_steps=1000  # this commit to every host; also resumes
#   launch/tpu_vm.sh watch | stop | delete                # stop saves first
#   DRY_RUN=1 launch/tpu_vm.sh start                      # prints what it would do
#
# `on_host` is what it runs on each host: mount, install, start the service.
set -euo pipefail
cd "$(dirname "$0")/.."

PROJECT=${PROJECT:-}
ZONE=${ZONE:-us-west4-a}
NAME=${NAME:-samjax}
TYPE=${TYPE:-v5litepod-16}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}  # software of the hosts; docs/launch.md says which goes with TYPE
PRICE=${PRICE---spot}                    # --spot, --reserved, or nothing for on demand
CONFIG=${CONFIG:-configs/sa1b_vit_b.py}
NFS=${NFS:-}                             # HOST:/SHARE of a Filestore instance, mounted at SHARED
SHARED=${SHARED:-/mnt/samjax}
DATA=${DATA:-$SHARED/sa1b}
CACHE=${CACHE:-$SHARED/cache}
WORKDIR=${WORKDIR:-$SHARED/runs/$NAME}

run() {
  if [ -n "${DRY_RUN:-}" ]; then printf '%q ' "$@" && echo; else "$@"; fi
}

quoted() {  # arguments as a shell would read them again
  [ $# = 0 ] || printf '%q ' "$@"
}

tpu() {  # tpu COMMAND ARGUMENTS...
  run gcloud compute tpus tpu-vm "$1" "$NAME" --project="$PROJECT" --zone="$ZONE" "${@:2}"
}

start() {
  local settings
  code=$(mktemp --suffix=.tar.gz)
  trap 'rm -f "$code"' EXIT
  git archive --format=tar.gz --output="$code" HEAD
  run gcloud compute tpus tpu-vm scp "$code" "$NAME:samjax.tar.gz" --project="$PROJECT" --zone="$ZONE" --worker=all
  settings=$(quoted NAME="$NAME" CONFIG="$CONFIG" NFS="$NFS" SHARED="$SHARED" DATA="$DATA" CACHE="$CACHE" \
    WORKDIR="$WORKDIR")
  tpu ssh --worker=all --command="sudo mkdir -p /opt/samjax && sudo tar xzf samjax.tar.gz -C /opt/samjax && \
sudo env HOME=/root $settings bash /opt/samjax/launch/tpu_vm.sh on_host $(quoted "$@")"
}

on_host() {
  if ! mountpoint -q "$SHARED"; then
    [ -n "$NFS" ] || { echo "error: set NFS, or mount storage that all hosts see at $SHARED" >&2 && exit 1; }
    run apt-get -qq -o DPkg::Lock::Timeout=600 update
    run apt-get -qq -o DPkg::Lock::Timeout=600 install -y nfs-common
    run mkdir -p "$SHARED"
    run mount -t nfs "$NFS" "$SHARED"
  fi
  if ! command -v uv >/dev/null; then  # the hosts' own Python is older than 3.11
    run bash -c 'curl -LsSf https://astral.sh/uv/install.sh | env UV_INSTALL_DIR=/usr/local/bin sh'
  fi
  [ -e .venv ] || run uv venv --quiet --python 3.11 .venv
  run uv pip install --quiet --python .venv/bin/python -r requirements.txt 'jax[tpu]'
  run systemctl stop samjax 2>/dev/null || true
  run systemctl reset-failed samjax 2>/dev/null || true
  # It is restarted 30 s after it ends, unless by success or `systemctl stop`, at most ten times an hour.  Port 8476,
  # because JAX's default port is closed between the hosts of some slices.
  run systemd-run --unit=samjax --working-directory="$PWD" \
    --setenv=HOME=/root --setenv=PYTHONUNBUFFERED=1 --setenv=JAX_COORDINATOR_PORT=8476 \
    -p Restart=on-failure -p RestartSec=30 -p StartLimitIntervalSec=3600 -p StartLimitBurst=10 \
    -p KillMode=mixed -p TimeoutStopSec=120 \
    "$PWD/.venv/bin/python" train.py --config "$CONFIG" --workdir "$WORKDIR" \
    --config.data.path="$DATA" --config.data.cache="$CACHE" --distributed --start-timeout 900 "$@"
}

case ${1:-} in
  create) tpu create --accelerator-type="$TYPE" --version="$RUNTIME" ${PRICE:+"$PRICE"} ;;
  start | on_host) "$@" ;;
  watch) tpu ssh --worker=0 --command='sudo journalctl --unit=samjax --lines=100 --follow --output=cat' ;;
  stop) tpu ssh --worker=all --command='sudo systemctl stop samjax' ;;
  delete) tpu delete --quiet ;;
  *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
