#!/usr/bin/env bash
# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
#
# Train on several GPUs (or, without GPUs, in several processes on the CPU).
#
#   bash tools/dist_train.sh CONFIG GPUS [arguments of train.py]
#
# More than one machine: run it on each with NNODES, NODE_RANK and MASTER_ADDR set, and the same PORT.
set -euo pipefail

if [ $# -lt 2 ] || ! [[ $2 =~ ^[1-9][0-9]*$ ]]; then
    echo "error: usage: dist_train.sh CONFIG GPUS [arguments of train.py]; GPUS is a number" >&2
    exit 2
fi
tools=$(dirname "$0")
. "$tools/_launch.sh"
launch "$2" "$tools/train.py" "$1" --launcher pytorch "${@:3}"
