#!/usr/bin/env bash
# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
#
# Train on a Slurm cluster.
#
#   GPUS=8 bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG [WORK_DIR] [arguments of train.py]
#
# Environment: GPUS (in all, default 4), GPUS_PER_NODE (at most 8 of them), CPUS_PER_TASK (default
# 5), SRUN_ARGS (more arguments of srun, e.g. "--time=48:00:00 --exclusive").
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "error: usage: slurm_train.sh PARTITION JOB_NAME CONFIG [WORK_DIR] [arguments of train.py]" >&2
    exit 2
fi
if ! command -v srun >/dev/null; then
    echo "error: srun is not there: this is no Slurm machine; use tools/dist_train.sh" >&2
    exit 2
fi
partition=$1 job=$2 config=$3
shift 3
work_dir=()
if [ $# -gt 0 ] && [ "${1:0:1}" != "-" ]; then
    work_dir=(--work-dir "$1")
    shift
fi
gpus=${GPUS:-4}
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}

# SRUN_ARGS holds several words on purpose.
# shellcheck disable=SC2086
exec srun \
    --partition="$partition" \
    --job-name="$job" \
    --gres=gpu:"$per_node" \
    --ntasks="$gpus" \
    --ntasks-per-node="$per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$(dirname "$0")/train.py" "$config" "${work_dir[@]}" --launcher slurm "$@"
