# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# FCN over stages 2 to 4 at stride 8 (the skips of FCN-8s, arXiv 1411.4038) instead of a dilated
# backbone: a third of the work, for training from scratch on a CPU.
_base_ = "fcn.py"
model = dict(
    decode_head=dict(
        in_channels=[512, 1024, 2048],
        in_index=[1, 2, 3],
        input_transform="resize_concat",
        channels=128,
        kernel_size=1,
    ),
    auxiliary_head=dict(kernel_size=1),
)
