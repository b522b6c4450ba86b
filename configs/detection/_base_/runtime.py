# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# What every detector shares: the loop, exact resume and what a run saves.
_base_ = "../../_base_/iterations.py"
visualizer = dict(type="mmdet.DetLocalVisualizer")
default_hooks = dict(checkpoint=dict(save_best="coco/bbox_mAP"))
