#!/usr/bin/env bash
# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
#
# Train on a Slurm cluster.
#
#   GPUS=8 bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG [WORK_DIR] [arguments of train.py]
#
# Two minutes before its time is up, or when it is pre-empted, the run saves and ends with code 75.
# It then goes on from there: in a batch job (sbatch, docs/distributed.md) the job is put back into
# the queue; started from a shell, srun is called again, MAX_RESTARTS times at most (default 100).
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
again=75 # exit code of a run that has saved and is to go on
asked=
trap 'asked=1' INT TERM USR1

# Started again by Slurm, train.py sees SLURM_RESTART_COUNT and resumes by itself.
resume=()
for ((restart = 0; ; restart++)); do
    code=0
    # SRUN_ARGS holds several words on purpose.
    # shellcheck disable=SC2086
    srun \
        --partition="$partition" \
        --job-name="$job" \
        --gres=gpu:"$per_node" \
        --ntasks="$gpus" \
        --ntasks-per-node="$per_node" \
        --cpus-per-task="${CPUS_PER_TASK:-5}" \
        --kill-on-bad-exit=1 \
        --signal=USR1@120 \
        ${SRUN_ARGS:-} \
        "${PYTHON:-python}" -u "$(dirname "$0")/train.py" "$config" "${work_dir[@]}" \
        --launcher slurm "$@" "${resume[@]}" &
    # A signal to this script ends `wait`, not srun, which has been sent it too or is told here.
    while true; do
        code=0
        wait $! || code=$?
        kill -0 $! 2>/dev/null || break
        kill -USR1 $! 2>/dev/null || true
    done
    if [ "$code" != "$again" ]; then
        exit "$code"
    fi
    if [ -n "${SLURM_JOB_ID:-}" ]; then
        scontrol requeue "$SLURM_JOB_ID" || echo "error: start it again with --resume" >&2
        exit "$code"
    fi
    if [ -n "$asked" ] || [ "$restart" -ge "${MAX_RESTARTS:-100}" ]; then
        exit "$code"
    fi
    resume=(--resume auto)
done
