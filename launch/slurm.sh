#!/usr/bin/env bash
# Trains on GPUs of a SLURM cluster, one process per GPU, and queues itself again after the time limit.
#
#   DATA=/lustre/sa1b sbatch --nodes=4 launch/slurm.sh                  # from the root of the repository
#   CONFIG=configs/sa1b_vit_h.py sbatch --nodes=32 --gpus-per-node=4 --ntasks-per-node=4 launch/slurm.sh
#   sbatch launch/slurm.sh --config.train.num_steps=1000                # what follows goes to train.py
#
# Tasks of a node must see all its GPUs, because JAX gives GPU i to task i: ask for --gpus-per-node, never for
# --gpus-per-task.
#SBATCH --job-name=samjax
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=samjax-%j.log
set -euo pipefail

NAME=${NAME:-$SLURM_JOB_NAME}
CONFIG=${CONFIG:-configs/sa1b_vit_b.py}
SHARED=${SHARED:-$SLURM_SUBMIT_DIR}  # a folder that all nodes see: NFS, Lustre, ...
DATA=${DATA:-$SHARED/sa1b}           # images + JSON, or tar shards
CACHE=${CACHE:-$SHARED/cache}        # where they are prepared once
WORKDIR=${WORKDIR:-$SHARED/runs/$NAME}
PYTHON=${PYTHON:-.venv/bin/python}

cd "$SLURM_SUBMIT_DIR"
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY             # connections between the processes would go there
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"           # srun does not inherit it from sbatch
export PYTHONUNBUFFERED=1

# The first process that ends must not take the others down at once (--kill-on-bad-exit=0): they may be saving.
# One that hangs while the others are gone is ended after two minutes (--wait).
code=0
srun --kill-on-bad-exit=0 --wait=120 "$PYTHON" train.py --config "$CONFIG" --workdir "$WORKDIR" \
  --config.data.path="$DATA" --config.data.cache="$CACHE" --distributed --start-timeout 600 "$@" || code=$?

if [ "$code" = 75 ]; then  # stopped by SIGTERM, and saved
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
