# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# The baseline without split attention: ResNet-101.
_base_ = "resnet50.py"
backbone = dict(depth=101, init_cfg=dict(checkpoint="open-mmlab://detectron2/resnet101_caffe"))
