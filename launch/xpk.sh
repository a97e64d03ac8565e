#!/usr/bin/env bash
# Trains on a GKE cluster that xpk made.  This machine needs `pip install xpk`, kubectl, gcloud and docker.
#
#   export PROJECT=my-project ZONE=us-west4-a CLUSTER=my-cluster TYPE=v5litepod-256 SLICES=1
#   launch/xpk.sh image                                # builds this folder as IMAGE and pushes it
#   launch/xpk.sh start --config.train.num_steps=1000  # also resumes, after `delete`
#   launch/xpk.sh state | watch | delete
#   DRY_RUN=1 launch/xpk.sh start                      # prints what it would do
set -euo pipefail
cd "$(dirname "$0")/.."

PROJECT=${PROJECT:-}
ZONE=${ZONE:-us-west4-a}
CLUSTER=${CLUSTER:-samjax}
NAME=${NAME:-samjax}
TYPE=${TYPE:-v5litepod-16}
SLICES=${SLICES:-1}
IMAGE=${IMAGE:-us-docker.pkg.dev/$PROJECT/samjax/samjax:latest}
STORAGE=${STORAGE:-samjax}         # a storage that xpk attached to the cluster, see docs/launch.md
MAX_RESTARTS=${MAX_RESTARTS:-20}
RESTART_ON=${RESTART_ON:-1,75}     # 75: stopped by SIGTERM, and saved; 1: an error, such as a lost host
PRIORITY=${PRIORITY:-medium}
CONFIG=${CONFIG:-configs/sa1b_vit_b.py}
SHARED=${SHARED:-/mnt/samjax}      # where STORAGE is mounted
DATA=${DATA:-$SHARED/sa1b}
CACHE=${CACHE:-$SHARED/cache}
WORKDIR=${WORKDIR:-$SHARED/runs/$NAME}

run() {
  if [ -n "${DRY_RUN:-}" ]; then printf '%q ' "$@" && echo; else "$@"; fi
}

cluster=(--cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE")

start() {
  local command
  # exec: SIGTERM reaches Python, not a shell around it.
  command="exec $(printf '%q ' python train.py --config "$CONFIG" --workdir "$WORKDIR" \
    --config.data.path="$DATA" --config.data.cache="$CACHE" --distributed --start-timeout 900 "$@")"
  run xpk workload create "${cluster[@]}" --workload="$NAME" --tpu-type="$TYPE" --num-slices="$SLICES" \
    --docker-image="$IMAGE" ${STORAGE:+--storage="$STORAGE"} --priority="$PRIORITY" --command="$command" \
    --max-restarts="$MAX_RESTARTS" --restart-on-exit-codes="$RESTART_ON" \
    --termination-grace-period-seconds=120
}

case ${1:-} in
  image) run docker build -f launch/Dockerfile -t "$IMAGE" . && run docker push "$IMAGE" ;;
  start) "$@" ;;
  state) run xpk workload list "${cluster[@]}" --filter-by-job="$NAME" ;;
  watch)  # the first host of the first slice
    labels=jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0
    run kubectl logs --follow --tail=100 --selector="jobset.sigs.k8s.io/jobset-name=$NAME,$labels"
    ;;
  delete) run xpk workload delete "${cluster[@]}" --workload="$NAME" ;;
  *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
