#!/usr/bin/env bash
# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
#
# Evaluate on several GPUs (or, without GPUs, in several processes on the CPU).
#
#   bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]
#   bash tools/dist_test.sh RUN GPUS [arguments of test.py]
#
# More than one machine: run it on each with NNODES, NODE_RANK and MASTER_ADDR set, and the same PORT.
set -euo pipefail

tools=$(dirname "$0")
if [ $# -ge 2 ] && [[ $2 =~ ^[1-9][0-9]*$ ]] && [ ! -e "$2" ]; then
    . "$tools/_launch.sh"
    launch "$2" 0 "$tools/test.py" "$1" --launcher pytorch "${@:3}"
    exit
fi
if [ $# -lt 3 ] || ! [[ $3 =~ ^[1-9][0-9]*$ ]]; then
    echo "error: usage: dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]; GPUS is a number" >&2
    exit 2
fi
. "$tools/_launch.sh"
launch "$3" 0 "$tools/test.py" "$1" "$2" --launcher pytorch "${@:4}"
