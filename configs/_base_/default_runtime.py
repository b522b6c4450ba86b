# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# What every run shares and no result depends on.
default_scope = "mmseg_resnest"
# dist_cfg (the backend) is left to the tools: nccl on GPUs, gloo on a CPU.
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
)
visualizer = dict(
    type="SegLocalVisualizer", vis_backends=[dict(type="LocalVisBackend")], name="visualizer"
)
log_processor = dict(by_epoch=False)
log_level = "INFO"
load_from = None
resume = False
randomness = dict(seed=0)
