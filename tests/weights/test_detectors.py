# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Published detectors convert: every tensor accounted for, there and back.

tests/detect/test_published.py loads them into the configs' detectors and compares outputs.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from published_detectors import (
    AUTHORS,
    MMDET,
    SMALL,
    detectron2_shapes,
    marked,
    mmdet_shapes,
    our_shapes,
    seeded,
)
from test_convert_checkpoint import run  # noqa: F401  a fixture
from user_errors import raises_user_error

from mmseg_resnest.models import ResNeSt
from mmseg_resnest.weights import (
    analyse,
    convert_state_dict,
    export_state_dict,
    load_checkpoint,
)

SOURCES = {
    **{name: ("detectron2", detectron2_shapes(d), our_shapes(d)) for name, d in AUTHORS.items()},
    **{
        f"openmmlab/{name}": ("openmmlab", mmdet_shapes(d), our_shapes(d))
        for name, d in MMDET.items()
    },
}


def is_constant(key: str) -> bool:
    return "pixel_" in key or "cell_anchors" in key


@pytest.mark.parametrize("name", SOURCES)
def test_every_tensor_finds_its_place(name):
    layout, shapes, expected = SOURCES[name]
    source = marked(shapes)
    found = analyse({"model": source, "iteration": 89999})
    assert (found.layout, found.kind) == (layout, "detector")
    ours = found.state_dict
    assert {key: tuple(value.shape) for key, value in ours.items()} == expected
    assert set(found.left_out) == {key for key in source if is_constant(key)}
    # each of the source's tensors is there; what else there is are counters and mask heads
    kept = {key: value for key, value in source.items() if not is_constant(key)}
    theirs = {value.data_ptr() for value in kept.values()}
    assert theirs == {v.data_ptr() for k, v in ours.items() if k not in found.added}
    assert all(key.endswith("num_batches_tracked") and ours[key] == 0 for key in found.added)
    back = export_state_dict(ours, layout)
    assert {key: back[key].data_ptr() for key in kept} == {k: v.data_ptr() for k, v in kept.items()}
    assert all(key in kept or key.endswith("num_batches_tracked") for key in back)
    again = convert_state_dict(back)
    assert list(again) == list(convert_state_dict(ours)) == list(ours)
    assert all(again[key].data_ptr() == ours[key].data_ptr() for key in ours)


def test_the_names_of_some_tensors():
    """By hand, of the authors' Cascade Mask R-CNN."""
    source = marked(detectron2_shapes(AUTHORS["cascade_mask_rcnn_resnest50"]))
    ours = convert_state_dict(source)
    up = "backbone.bottom_up."
    for theirs, name in {
        f"{up}stem.conv1_3.norm.running_var": "backbone.bn1.running_var",
        f"{up}res3.0.shortcut.weight": "backbone.layer2.0.downsample.1.weight",
        f"{up}res5.2.conv2.fc2.bias": "backbone.layer4.2.conv2.fc2.bias",
        f"{up}res4.5.conv3.norm.bias": "backbone.layer3.5.bn3.bias",
        "backbone.fpn_lateral2.weight": "neck.lateral_convs.0.conv.weight",
        "backbone.fpn_output5.norm.weight": "neck.fpn_convs.3.bn.weight",
        "proposal_generator.rpn_head.anchor_deltas.bias": "rpn_head.rpn_reg.bias",
        "roi_heads.box_head.2.conv4.norm.bias": "roi_head.bbox_head.2.shared_convs.3.bn.bias",
        "roi_heads.box_head.0.fc1.weight": "roi_head.bbox_head.0.shared_fcs.0.weight",
        "roi_heads.box_predictor.1.cls_score.bias": "roi_head.bbox_head.1.fc_cls.bias",
        "roi_heads.mask_head.deconv.weight": "roi_head.mask_head.1.upsample.weight",
        "roi_heads.mask_head.mask_fcn1.weight": "roi_head.mask_head.2.convs.0.conv.weight",
    }.items():
        assert ours[name].data_ptr() == source[theirs].data_ptr(), name


@pytest.mark.parametrize("layout", ["detectron2", "openmmlab"])
def test_what_is_missing_or_left_over_is_named(layout):
    small = replace(SMALL, stages=2)
    source = marked(detectron2_shapes(small) if layout == "detectron2" else mmdet_shapes(small))
    for key in source:
        if is_constant(key) or key.endswith("num_batches_tracked"):
            continue
        with raises_user_error("checkpoint", "state dict") as caught:
            convert_state_dict({k: v for k, v in source.items() if k != key})
        assert key in caught.value.message, key
    for key in ("roi_heads.keypoint_head.score_lowres.weight", "neck.fpn_convs.0.gn.weight",
                "backbone.bottom_up.res3.1.conv2_offset.weight", "rpn_head.who.bias",
                "roi_head.bbox_head.fc_reg.scale", "backbone.fpn_lateral1.weight"):  # fmt: skip
        with raises_user_error("checkpoint", "state dict") as caught:
            convert_state_dict({**source, key: torch.zeros(2)})
        assert key in caught.value.message
    for lost in ("roi_head", "backbone.", "rpn_head", "proposal_generator", "neck"):
        part = {k: v for k, v in source.items() if not k.startswith(lost)}
        if len(part) < len(source):
            with raises_user_error("checkpoint", "state dict"):
                convert_state_dict(part)


def test_deformable_convolutions_are_said():
    source = marked(detectron2_shapes(AUTHORS["faster_rcnn_resnest50"]))
    source["backbone.bottom_up.res3.0.conv2_offset.weight"] = torch.zeros(54, 64, 3, 3)
    with raises_user_error("checkpoint") as caught:
        convert_state_dict(source)
    assert "without deformable convolutions" in caught.value.message


def test_stages_with_mask_heads_of_their_own_have_no_place_in_detectron2():
    ours = marked(our_shapes(AUTHORS["cascade_mask_rcnn_resnest50"]))
    with raises_user_error("checkpoint", "layout detectron2") as caught:
        export_state_dict(ours, "detectron2")
    assert "roi_head.mask_head.1.convs.0.conv.weight" in caught.value.message
    for layout in ("published", "timm"):
        with raises_user_error("checkpoint", f"layout {layout}"):
            export_state_dict(ours, layout)


@pytest.mark.parametrize("file", ["detector", "openmmlab", "backbone", "backbone without prefix"])
def test_the_backbone_serves_a_segmentation_config(file, tmp_path):
    """Of a detector, and of the authors' ImageNet backbones for detection."""
    if file == "openmmlab":
        source = seeded(mmdet_shapes(SMALL))
    else:
        source = seeded(detectron2_shapes(SMALL))
    if file.startswith("backbone"):
        up = "backbone.bottom_up."
        start = up if file.endswith("prefix") else ""
        source = {k.removeprefix(start): v for k, v in source.items() if k.startswith(up)}
    torch.save({"model": source}, path := tmp_path / "detector.pth")
    init = dict(type="Pretrained", checkpoint=str(path))
    for more in ({}, dict(prefix="backbone") if file == "openmmlab" else {}):
        model = ResNeSt("resnest14", output_stride=8, init_cfg={**init, **more})
        model.init_weights()
        ours = convert_state_dict(source)
        for key, value in model.state_dict().items():
            wanted = ours.get(f"backbone.{key}", ours.get(key))
            assert torch.equal(value, wanted), key


def test_a_file_is_converted_by_the_command(run, tmp_path):  # noqa: F811
    source = seeded(detectron2_shapes(SMALL))
    torch.save({"model": source, "iteration": 89999}, tmp_path / "theirs.pth")
    code, out, _ = run(tmp_path / "theirs.pth", tmp_path / "ours.pth")
    assert code == 0
    assert "detector in layout detectron2" in out
    assert "left out (constants of the config): pixel_mean, pixel_std" in out
    ours = load_checkpoint(tmp_path / "ours.pth")
    assert {k: tuple(v.shape) for k, v in ours.items()} == our_shapes(SMALL)
    code, out, _ = run(tmp_path / "ours.pth", tmp_path / "back.pth", "--layout", "detectron2")
    assert code == 0 and "tensors in layout detectron2" in out
    back = load_checkpoint(tmp_path / "back.pth")
    assert all(torch.equal(back[k], v) for k, v in source.items() if not is_constant(k))
