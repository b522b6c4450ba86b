# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Layout conversion: every known layout in, the writable ones out, every key accounted for."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from user_errors import raises_user_error
from weight_names import (
    backbone,
    mmpretrain_name,
    openmmlab_name,
    published_segmentor,
    to_gluon,
)

from mmseg_resnest.models import ResNeSt
from mmseg_resnest.registry import MODELS
from mmseg_resnest.weights import (
    analyse,
    convert_state_dict,
    export_state_dict,
)
from mmseg_resnest.weights.state_dict import list_keys, unwrap_state_dict

HEADS = ("fcn", "psp", "deeplab", "enc")


def same(one, other) -> bool:
    """Same keys in the same order, types and bits."""
    return list(one) == list(other) and all(
        one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in one
    )


def without_classifier(state_dict):
    return {key: tensor for key, tensor in state_dict.items() if not key.startswith("fc.")}


# --- published ------------------------------------------------------------------------------


def test_left_out_classifier_is_said_in_one_line(logged):
    convert_state_dict(backbone(fc=True))
    convert_state_dict(backbone())
    assert len(logged) == 1
    assert "fc.weight, fc.bias" in logged[0] and "\n" not in logged[0]


@given(
    kind=st.sampled_from(HEADS),
    blocks=st.tuples(*[st.integers(1, 3)] * 4),
    counters=st.booleans(),
    auxiliary=st.booleans(),
    laterals=st.integers(0, 3),
    se=st.booleans(),
    wrap=st.sampled_from(["", "state_dict", "model"]),
    prefix=st.sampled_from(["", "module.", "module._orig_mod."]),
    half=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_segmentors_there_and_back(
    kind, blocks, counters, auxiliary, laterals, se, wrap, prefix, half
):
    source = published_segmentor(
        kind, auxiliary, blocks=blocks, counters=counters, laterals=laterals, se=se
    )
    if half:
        source = {k: v.half() if v.is_floating_point() else v for k, v in source.items()}
    record = {prefix + key: tensor for key, tensor in source.items()}
    ours = convert_state_dict({wrap: record, "epoch": 3} if wrap else record)
    assert same(convert_state_dict(ours), ours)
    back = export_state_dict(ours, "published")
    added = [key for key in back if key not in source]
    assert all(key.endswith("num_batches_tracked") and back[key] == 0 for key in added)
    assert bool(added) != counters
    assert same({key: back[key] for key in back if key in source}, source)
    # MMSegmentation's names, and ours
    there = export_state_dict(ours, "openmmlab")
    assert analyse(there).layout == "openmmlab"
    assert {key for key in there if not key.startswith("backbone.")} == {
        key for key in ours if not key.startswith("backbone.")
    }
    assert same(convert_state_dict(there), ours)
    assert same(export_state_dict(ours, "mmseg-resnest"), ours)


@given(
    blocks=st.tuples(*[st.integers(1, 12)] * 4),
    counters=st.booleans(),
    split=st.booleans(),
    fc=st.booleans(),
    layout=st.sampled_from(["published", "timm", "openmmlab", "mmseg-resnest"]),
)
@settings(max_examples=25, deadline=None)
def test_backbones_there_and_back(blocks, counters, split, fc, layout):
    source = backbone(blocks, counters, split, fc)
    ours = convert_state_dict(source)
    if counters:
        assert same(ours, without_classifier(source))
    there = export_state_dict(ours, layout)
    if layout == "openmmlab":
        assert list(there) == [openmmlab_name(key) for key in ours]
    else:
        assert list(there) == list(ours)
    assert same(convert_state_dict(there), ours)


# --- the other layouts ----------------------------------------------------------------------


@pytest.mark.parametrize("fc", [False, True])
@pytest.mark.parametrize("stem", ["modules", "sequential"])
def test_mmpretrain(stem, fc):
    source = {mmpretrain_name(key): tensor for key, tensor in backbone(fc=fc).items()}
    assert "backbone.layer1.0.downsample.0.weight" in source
    if stem == "sequential" and fc:
        source = {f"backbone.{openmmlab_name(key)}": v for key, v in backbone().items()}
        source.update({f"head.{k}": v for k, v in backbone(fc=True).items() if k[:3] == "fc."})
    found = analyse(source)
    assert found.layout == "mmpretrain"
    assert not found.is_segmentor
    assert found.left_out == (("head.fc.weight", "head.fc.bias") if fc else ())
    assert same(found.state_dict, backbone())


@pytest.mark.parametrize("split", [False, True])
def test_gluoncv_backbone(split):
    source = to_gluon(backbone(fc=True, split=split))
    assert "layer1.0.bn1.gamma" in source
    found = analyse(source)
    assert found.layout == "gluoncv"
    assert found.left_out == ("fc.weight", "fc.bias")
    expected = backbone(split=split)
    assert list(found.state_dict) == list(expected)
    for key, tensor in expected.items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(found.state_dict[key], tensor)


@pytest.mark.parametrize("kind", ["fcn", "deeplab"])
def test_gluoncv_segmentor(kind):
    published = published_segmentor(kind)
    source = to_gluon(published)
    assert analyse(source).layout == "gluoncv"
    result = convert_state_dict(source)
    expected = convert_state_dict(published)
    assert list(result) == list(expected)
    for key, tensor in expected.items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(result[key], tensor)


@pytest.mark.parametrize("norm", ["BN", "GN"])
@pytest.mark.parametrize(
    "arch", ["resnest14", "resnest50_fast_1s1x64d", "resnest50_fast_4s2x40d", "resnest269"]
)
def test_our_own_backbones(arch, norm):
    norm_cfg = dict(type="BN") if norm == "BN" else dict(type="GN", num_groups=8)
    with torch.device("meta"):
        model = ResNeSt(arch, norm_cfg=norm_cfg)
    source = {k: torch.zeros(()).expand(v.shape) for k, v in model.state_dict().items()}
    assert list(convert_state_dict(source)) == list(source)


def test_a_backbone_of_three_stages():
    with torch.device("meta"):
        model = ResNeSt("resnest14", out_indices=(0, 1, 2))
    keys = {f"backbone.{key}" for key in model.state_dict()}
    source = convert_state_dict(published_segmentor("fcn"))
    source = {k: v for k, v in source.items() if k in keys or not k.startswith("backbone.")}
    assert not any(key.startswith("backbone.layer4") for key in source)
    assert same(convert_state_dict(source), source)


@pytest.mark.parametrize("stem", ["ResNetV1c", "ResNet"])
def test_baselines_keep_their_names(stem):
    """The ResNet baselines are the stack's; its names are theirs, stem.* too."""
    with torch.device("meta"):
        model = MODELS.build(dict(type=f"mmseg.{stem}", depth=50))
    source = {
        f"backbone.{k}": torch.zeros(()).expand(v.shape) for k, v in model.state_dict().items()
    }
    head = convert_state_dict(published_segmentor("fcn"))
    source.update({k: v for k, v in head.items() if not k.startswith("backbone.")})
    assert same(convert_state_dict(source), source)
    assert same(export_state_dict(source, "openmmlab"), source)
    with raises_user_error("checkpoint", "layout published"):
        export_state_dict(source, "published")
    del source["backbone.layer2.0.bn1.running_var"]
    with raises_user_error("checkpoint", "state dict") as caught:
        convert_state_dict(source)
    assert "backbone.layer2.0.bn1.running_var" in caught.value.message


# --- every golden layout --------------------------------------------------------------------


def test_golden_layouts_convert_and_return(layouts, seeded_weights):
    from mmseg_resnest.models import resnest  # the architecture table names what must fit

    for name, layout in layouts.items():
        # numbers in the small tensors only: the large ones would take minutes to draw
        source = {
            key: torch.from_numpy(seeded_weights.seeded_tensor(key, tuple(shape)))
            if np.prod(shape) <= 512
            else torch.zeros(()).expand(shape)
            for key, shape in layout.items()
        }
        found = analyse(source)
        backbone_keys = {
            key.removeprefix("backbone."): tensor.shape
            for key, tensor in found.state_dict.items()
            if key.startswith("backbone.") or not found.is_segmentor
        }
        arch = name if not found.is_segmentor else name.split("_")[1]
        with torch.device("meta"):
            model = resnest.ResNeSt(arch)
        assert {k: v.shape for k, v in model.state_dict().items()} == backbone_keys, name
        back = export_state_dict(found.state_dict, "published")
        kept = {key: tensor for key, tensor in source.items() if key not in found.left_out}
        assert list(back) == list(kept), name
        assert all(back[key].data_ptr() == kept[key].data_ptr() for key in kept), name


# --- values ---------------------------------------------------------------------------------


def test_arrays_become_tensors_without_a_copy():
    source = {key: tensor.numpy() for key, tensor in backbone().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = convert_state_dict(source)
    for key, array in source.items():
        assert result[key].data_ptr() == array.ctypes.data
        assert np.array_equal(result[key].numpy(), array)
    assert result["bn1.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize("change", ["read-only", "big-endian", "reversed", "float64"])
def test_awkward_arrays(change):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    source = backbone()
    if change == "read-only":
        given_array = array.copy()
        given_array.flags.writeable = False
    elif change == "big-endian":
        given_array = array.astype(">f4")
    elif change == "reversed":
        given_array = array[::-1, ::-1]
    else:
        given_array = array.astype(np.float64)
    source["conv1.0.weight"] = given_array
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = convert_state_dict(source)["conv1.0.weight"]
    assert np.array_equal(result.numpy(), given_array)
    assert result.dtype == (torch.float64 if change == "float64" else torch.float32)


def test_types_are_kept_and_parameters_become_tensors():
    source = backbone()
    source["conv1.0.weight"] = source["conv1.0.weight"].bfloat16()
    source["conv1.3.weight"] = torch.nn.Parameter(source["conv1.3.weight"])
    source["bn1.num_batches_tracked"] = np.int64(7)
    result = convert_state_dict(source)
    assert result["conv1.0.weight"].dtype == torch.bfloat16
    assert type(result["conv1.3.weight"]) is torch.Tensor
    assert not result["conv1.3.weight"].requires_grad
    assert result["conv1.3.weight"].data_ptr() == source["conv1.3.weight"].data_ptr()
    assert result["bn1.num_batches_tracked"].dtype == torch.int64
    assert result["bn1.num_batches_tracked"] == 7


@pytest.mark.parametrize(
    "bad",
    [
        np.array(["text"], dtype=object),
        "text",
        None,
        torch.zeros(2, 2).to_sparse(),
        torch.zeros(2, device="meta"),
    ],
    ids=["objects", "text", "none", "sparse", "meta"],
)
def test_what_is_no_tensor_is_named(bad):
    source = {**backbone(), "conv1.0.weight": bad}
    with raises_user_error("checkpoint", "key conv1.0.weight"):
        convert_state_dict(source)


# --- what does not fit ----------------------------------------------------------------------

SOURCES = {
    "published": lambda: backbone(fc=True),
    "published deeplab": lambda: published_segmentor("deeplab"),
    "published psp": lambda: published_segmentor("psp"),
    "published enc": lambda: published_segmentor("enc", laterals=2),
    "ours": lambda: convert_state_dict(published_segmentor("deeplab")),
    "openmmlab": lambda: export_state_dict(
        convert_state_dict(published_segmentor("enc")), "openmmlab"
    ),
    "mmpretrain": lambda: {mmpretrain_name(k): v for k, v in backbone(fc=True).items()},
    "gluoncv": lambda: to_gluon(published_segmentor("deeplab")),
}


@pytest.mark.parametrize("name", SOURCES)
def test_any_missing_tensor_is_named(name):
    """Whatever single tensor a file lacks, the error names it as the file would."""
    source = SOURCES[name]()
    for key in source:
        if key.endswith("num_batches_tracked") or "fc." in key.replace(".conv2.fc", ""):
            continue  # made up for, or left out
        part = {k: v for k, v in source.items() if k != key}
        with raises_user_error("checkpoint", "state dict") as caught:
            convert_state_dict(part)
        assert key in str(caught.value), key


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize(
    "extra", ["who.knows.weight", "layer1.0.se.weight", "layer1.999999999.conv1.weight"]
)
def test_a_tensor_without_a_place_is_named(name, extra):
    source = SOURCES[name]()
    prefix = next(
        (p for p in ("pretrained.", "backbone.") if any(k.startswith(p) for k in source)), ""
    )
    for key in (extra, prefix + extra):
        with raises_user_error("checkpoint", "state dict") as caught:
            convert_state_dict({**source, key: torch.zeros(2)})
        assert key in str(caught.value)


def test_a_whole_missing_norm_stage_or_head_is_named():
    source = published_segmentor("psp")
    for lost, named in (
        ("head.conv5.2.", "head.conv5.2.running_mean"),
        ("pretrained.layer4.", "pretrained.layer4.0.conv3.weight"),
        ("pretrained.layer2.0.", "pretrained.layer2.0.conv2.fc2.bias"),
        ("head.", "head."),
        ("pretrained.", ""),
    ):
        part = {k: v for k, v in source.items() if not k.startswith(lost)}
        with raises_user_error("checkpoint", "state dict") as caught:
            convert_state_dict(part)
        assert named in str(caught.value)


def test_two_names_for_one_tensor():
    source = SOURCES["gluoncv"]()
    source["layer1.0.bn1.weight"] = source["layer1.0.bn1.gamma"]
    with raises_user_error("checkpoint") as caught:
        convert_state_dict(source)
    assert "layer1.0.bn1.weight" in caught.value.message
    source = {openmmlab_name(k): v for k, v in backbone().items()}
    source["conv1.0.weight"] = source["stem.0.weight"]
    with raises_user_error("checkpoint") as caught:
        convert_state_dict(source)
    assert "conv1.0.weight" in caught.value.message


@pytest.mark.parametrize(
    "record",
    [
        {"features.0.weight": torch.zeros(1), "classifier.weight": torch.zeros(1)},
        {"conv1.weight": torch.zeros(1), "layer1.1.conv1.weight": torch.zeros(1)},
        {"backbone.patch_embed.weight": torch.zeros(1)},
    ],
)
def test_another_network(record):
    with raises_user_error("checkpoint") as caught:
        convert_state_dict(record)
    assert next(iter(record)) in str(caught.value)


# --- export ---------------------------------------------------------------------------------


def test_export_refuses_what_a_layout_has_no_name_for():
    ours = convert_state_dict(published_segmentor("fcn"))
    with raises_user_error("checkpoint", "layout timm"):
        export_state_dict(ours, "timm")
    with raises_user_error("argument", "layout"):
        export_state_dict(ours, "keras")
    with raises_user_error("checkpoint", "state dict"):
        export_state_dict(published_segmentor("fcn"), "openmmlab")
    conv = {"decode_head.convs.1.conv.weight": torch.zeros(1, 1, 1, 1)}
    norm = {f"decode_head.convs.1.bn.{leaf}": torch.zeros(1) for leaf in ("weight", "bias")}
    with raises_user_error("checkpoint", "layout published") as caught:
        export_state_dict({**ours, **conv, **norm}, "published")
    assert "decode_head.convs.1.conv" in caught.value.message


@given(
    prefixes=st.lists(st.sampled_from(["module.", "_orig_mod."]), max_size=8).map("".join),
    keys=st.sets(st.sampled_from(["a", "b.weight", "module.c", "_orig_mod.d", ""]), min_size=1),
)
def test_prefixes_that_all_keys_have_are_taken_off(prefixes: str, keys: set[str]) -> None:
    def without(names: set[str]) -> set[str]:
        for prefix in ("module.", "_orig_mod."):
            if all(name.startswith(prefix) for name in names):
                return without({name[len(prefix) :] for name in names})
        return names

    found = unwrap_state_dict({prefixes + key: key for key in keys})
    assert set(found) == without(keys)
    assert all(name == key or key.endswith(f".{name}") for name, key in found.items())


def test_keys_are_bounded_and_shown_without_control_characters() -> None:
    with raises_user_error("checkpoint"):
        unwrap_state_dict({"module." * 342_858: torch.ones(1)})
    shown = list_keys(["\x1b]0;owned\x07", "b\r\nerror: other", "x" * 900, "\ud800"] * 9)
    assert shown.isprintable() and len(shown) < 4000
    assert shown.startswith(r"\x1b]0;owned\x07, b\r\nerror: other, xxx")
