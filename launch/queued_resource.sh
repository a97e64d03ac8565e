#!/usr/bin/env bash
# Trains on Cloud TPU slices as queued resources: starts when they are available, and again after preemption.
#
#   export PROJECT=my-project ZONE=us-west4-a TYPE=v5litepod-256 SLICES=1 NFS=10.0.0.2:/share BUCKET=gs://my-bucket
#   launch/queued_resource.sh create --config.train.num_steps=1000  # queues; the hosts start to train when they boot
#   launch/queued_resource.sh keep --config.train.num_steps=1000    # the same, and again after each preemption
#   launch/queued_resource.sh state | watch | stop | delete         # stop saves first
#   DRY_RUN=1 launch/queued_resource.sh create                      # prints what it would do
#
# The hosts take the code of this commit from BUCKET and run `launch/tpu_vm.sh on_host`.
set -euo pipefail
cd "$(dirname "$0")/.."

PROJECT=${PROJECT:-}
ZONE=${ZONE:-us-west4-a}
NAME=${NAME:-samjax}
TYPE=${TYPE:-v5litepod-16}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}  # software of the hosts; docs/launch.md says which goes with TYPE
SLICES=${SLICES:-1}
PRICE=${PRICE---spot}                    # --spot, --reserved, or nothing for on demand
BUCKET=${BUCKET:-gs://$PROJECT-samjax}   # carries the code
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

queue() {  # queue COMMAND ARGUMENTS...
  run gcloud compute tpus queued-resources "$1" "$NAME" --project="$PROJECT" --zone="$ZONE" "${@:2}"
}

startup() {  # the script that every host runs as root when it boots
  cat <<SCRIPT
#!/usr/bin/env bash
set -euo pipefail
export HOME=/root
mkdir -p /opt/samjax
gcloud storage cat $(quoted "$BUCKET/$NAME.tar.gz") | tar xz -C /opt/samjax
exec env $(quoted NAME="$NAME" CONFIG="$CONFIG" NFS="$NFS" SHARED="$SHARED" DATA="$DATA" CACHE="$CACHE" \
    WORKDIR="$WORKDIR") bash /opt/samjax/launch/tpu_vm.sh on_host $(quoted "$@")
SCRIPT
}

create() {
  local nodes
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  git archive --format=tar.gz --output="$folder/code.tar.gz" HEAD
  startup "$@" >"$folder/startup.sh"
  run gcloud storage cp "$folder/code.tar.gz" "$BUCKET/$NAME.tar.gz" --project="$PROJECT"
  nodes=(--node-id="$NAME")
  [ "$SLICES" = 1 ] || nodes=(--node-count="$SLICES" --node-prefix="$NAME")
  queue create --accelerator-type="$TYPE" --runtime-version="$RUNTIME" "${nodes[@]}" ${PRICE:+"$PRICE"} \
    --metadata-from-file=startup-script="$folder/startup.sh"
}

state() {
  queue describe --format='value(state.state)'
}

keep() {
  local now
  while true; do
    now=$(state 2>&1) || true
    echo "$(date +%FT%T) $now"
    case $now in
      *NOT_FOUND*) create "$@" ;;
      SUSPENDED | FAILED) queue delete --force --quiet && continue ;;
    esac
    sleep 300
  done
}

case ${1:-} in
  create | startup | state | keep) "$@" ;;
  watch)
    queue ssh --node=0 --worker=0 \
      --command='sudo journalctl --unit=samjax --unit=google-startup-scripts --lines=100 --follow --output=cat'
    ;;
  stop) queue ssh --node=all --worker=all --command='sudo systemctl stop samjax' ;;
  delete) queue delete --force --quiet ;;
  *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
