# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# What dist_train.sh and dist_test.sh share: starts torchrun (tools/_torchrun.py).

# launch PROCESSES SCRIPT [ARGUMENTS]
launch() {
    local processes=$1 nodes=${NNODES:-1} port=${PORT:-} python=${PYTHON:-python} cores
    if [ -z "$port" ]; then
        # One machine: any free port, so that several jobs fit on it. Several: all need the same.
        port=29500
        if [ "$nodes" = 1 ]; then
            port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
        fi
    fi
    # torchrun would set this to 1, with a warning.
    cores=$(nproc 2>/dev/null || echo "$processes")
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}
    exec "$python" "$(dirname "$0")/_torchrun.py" \
        --nnodes="$nodes" \
        --node-rank="${NODE_RANK:-0}" \
        --master-addr="${MASTER_ADDR:-127.0.0.1}" \
        --master-port="$port" \
        --nproc-per-node="$processes" \
        "${@:2}"
}
