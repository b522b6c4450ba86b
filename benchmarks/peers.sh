#!/bin/sh
# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# Compares with timm and segmentation_models_pytorch, which need a torchvision and the torch of its
# build: makes an environment of its own for them (5.5 GB), and runs backbone, inference, training.
#
#   benchmarks/peers.sh DIR [OPTION ...]     DIR is made once; options are those of benchmarks/run.py
#
# An installation that was interrupted starts again. PYTHON names another Python than python3.
set -eu
case "${1:--}" in -*) sed -n '3,9s/^# \{0,1\}//p' "$0"; exit 2 ;; esac
dir=$1
shift
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
if [ ! -e "$dir/installed" ]; then
    "${PYTHON:-python3}" -m venv --clear "$dir"
    grep -v '^torch==' "$root/requirements.txt" > "$dir/without-torch.txt"
    # As in the Makefile: torch after mmcv, which would compile operators beside it.
    install() { "$dir/bin/python" -m pip --disable-pip-version-check install "$@"; }
    install --no-deps -r "$dir/without-torch.txt"
    install torch==2.14.1 torchvision==0.29.1
    install --no-deps timm==1.0.31 segmentation-models-pytorch==0.6.0 openvino==2026.4.1
    install --no-deps --no-build-isolation -e "$root"
    touch "$dir/installed"
fi
exec "$dir/bin/python" "$root/benchmarks/run.py" backbone inference training "$@"
