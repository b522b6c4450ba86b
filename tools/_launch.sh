# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# What dist_train.sh and dist_test.sh share: starts torchrun (mmseg_resnest_cli/torchrun.py).

# launch PROCESSES RESTARTS SCRIPT [ARGUMENTS]
launch() {
    local processes=$1 restarts=$2 nodes=${NNODES:-1} port=${PORT:-} python=${PYTHON:-python} cores
    local meet
    # torchrun would set this to 1, with a warning.
    cores=$(nproc 2>/dev/null || echo "$processes")
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}
    if [ "$nodes" = 1 ]; then
        # Any free port, so that several jobs fit on the machine.
        if [ -z "$port" ]; then
            port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
        fi
        meet=(
            --rdzv-backend=c10d --rdzv-endpoint="127.0.0.1:$port" --local-addr=127.0.0.1
            --rdzv-conf=is_host=true
        )
    else
        # All machines meet at the first one, and again whenever one was lost and is back.
        meet=(
            --rdzv-backend=c10d
            --rdzv-endpoint="${MASTER_ADDR:?set MASTER_ADDR to the name of the first machine}:${port:-29500}"
            --rdzv-id="${JOB_ID:-${SLURM_JOB_ID:-mmseg-resnest}}"
            --rdzv-conf="is_host=$([ "${NODE_RANK:-0}" = 0 ] && echo true || echo false),timeout=${JOIN_SECONDS:-900}"
        )
        if [ -n "${LOCAL_ADDR:-}" ]; then
            meet+=(--local-addr="$LOCAL_ADDR")
        fi
    fi
    # A store for each start: torchrun's own outlives the processes that it starts again, which then
    # find the addresses of the lost ones in it and wait for them for half an hour.
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    exec "$python" -m mmseg_resnest_cli.torchrun \
        --nnodes="$nodes" \
        "${meet[@]}" \
        --nproc-per-node="$processes" \
        --max-restarts="$restarts" \
        "${@:3}"
}
