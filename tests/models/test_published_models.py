# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The published configs against an independent implementation: scores, losses, gradients, a step.

Both sides compute in float64, so that only what is different differs.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from published_reference import HEADS, IGNORED, PublishedModel

from mmseg_resnest.engine.checkpoint import load_weights
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.models import ARCHITECTURES
from mmseg_resnest.registry import MODELS
from mmseg_resnest.weights import convert_state_dict, load_into

CONFIGS = Path(__file__).parents[2] / "configs"
EXACT = 1e-10  # of the largest magnitude
FLOAT32 = 1e-5  # the stack's binary cross entropy rounds to float32


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config_model(name: str, reference: PublishedModel, arch, classes=None, **head):
    """The model of a config with another backbone and the reference's weights, and its config."""
    cfg = load_config(CONFIGS / f"{name}.py")
    cfg.model.backbone.update(arch=arch, init_cfg=None)
    cfg.model.decode_head.update(head)
    if classes is not None:
        cfg.model.decode_head.num_classes = cfg.model.auxiliary_head.num_classes = classes
    with DefaultScope.overwrite_default_scope("mmseg_resnest"), torch.device("meta"):
        model = MODELS.build(cfg.model)
    model.double().to_empty(device="cpu")
    model.data_preprocessor.to("cpu")
    load_into(model, convert_state_dict(reference.state_dict()))
    return model, cfg


def assert_close(
    found: torch.Tensor, wanted: torch.Tensor, what: str, tolerance: float = EXACT
) -> None:
    assert found.shape == wanted.shape, what
    # 1e-12: the gradient of a bias before a norm is zero but for rounding
    bound = tolerance * wanted.abs().max() + 1e-12
    assert (found - wanted).abs().max() <= bound, what


def batch_of(count: int, height: int, width: int, classes: int):
    """Normalised images, labels (one image with few classes, an edge ignored), data samples."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    images = torch.randn(count, 3, height, width, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (count, height, width), generator=generator)
    labels[0] %= 3
    labels[:, :, -7:] = IGNORED
    meta = dict(img_shape=(height, width), ori_shape=(height, width))
    parts = [PixelData(data=image[None].clone()) for image in labels]
    samples = [SegDataSample(metainfo=meta, gt_sem_seg=part) for part in parts]
    return images, labels, samples


@pytest.mark.parametrize("head", HEADS)
def test_a_training_step(head):
    """Losses, every gradient, the running statistics and the updated weights of one iteration.

    Dropout is on, with one seed on both sides: the masks are the same only if it sits in the same
    places and drops values, or whole channels, as published.
    """
    arch = {**ARCHITECTURES["resnest14"], "base_width": 16, "stem_width": 8}
    tolerance = FLOAT32 if head == "encnet" else EXACT
    reference = PublishedModel(head, arch, 150).train()
    model, cfg = config_model(f"{head}_resnest50_ade20k", reference, arch)
    model.train()
    images, labels, samples = batch_of(3, 25, 33, 150)

    torch.manual_seed(5)
    wanted = reference.losses(images, labels)
    torch.manual_seed(5)
    found = model.loss(images, samples)
    names = {"main": "decode.loss_ce", "aux": "aux.loss_ce", "se": "decode.loss_se"}
    assert {key for key in found if "loss" in key} == {names[key] for key in wanted}
    for key, value in wanted.items():
        assert_close(found[names[key]], value, key, tolerance)

    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    total, _ = model.parse_losses(found)
    assert_close(total, sum(wanted.values()), "total", tolerance)
    total.backward()
    sum(wanted.values()).backward()
    parameters = dict(reference.named_parameters())
    gradients = {
        name: parameters[name].grad if name in parameters else buffer
        for name, buffer in reference.state_dict().items()
    }
    gradients = convert_state_dict(gradients)
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, gradients[name], f"gradient of {name}", tolerance)

    # SGD as published: weight decay 1e-4 on everything, heads at ten times the rate of 0.01.
    optimizer.step()
    with torch.no_grad():
        for name, parameter in parameters.items():
            rate = 0.01 if name.startswith("pretrained.") else 0.1
            parameter -= rate * (parameter.grad + 1e-4 * parameter)
    after = convert_state_dict(reference.state_dict())
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            assert_close(value, after[name], f"after the step: {name}", tolerance)


ARCHES = st.fixed_dictionaries(
    {
        "blocks": st.tuples(*[st.integers(1, 2)] * 4),
        "radix": st.sampled_from([1, 2, 4]),
        "groups": st.sampled_from([1, 2]),
        "base_width": st.sampled_from([16, 40]),
        "stem_width": st.sampled_from([8, 32]),
        "avd_first": st.booleans(),
    }
)


@pytest.mark.long
@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    head=st.sampled_from(["fcn", "pspnet", "deeplabv3", "encnet", "encnet lateral"]),
    arch=ARCHES,
    classes=st.integers(2, 200),
    count=st.integers(1, 3),
    height=st.integers(1, 49),
    width=st.integers(1, 49),
)
def test_other_depths_classes_batches_and_sizes(head, arch, classes, count, height, width):
    head, _, lateral = head.partition(" ")
    reference = PublishedModel(head, arch, classes, **({"lateral": True} if lateral else {})).eval()
    options = {"add_lateral": True} if lateral else {}
    model, _ = config_model(f"{head}_resnest50_ade20k", reference, arch, classes, **options)
    model.eval()
    images = batch_of(count, height, width, classes)[0]
    with torch.no_grad():
        scores, presence, auxiliary = reference(images)
        features = model.extract_feat(images)
        found = model.decode_head(features)
        if presence is not None:
            assert_close(found[1], presence, "presence of classes")
        metas = [dict(ori_shape=(height, width), img_shape=(height, width))] * count
        assert_close(model.inference(images, metas), scores, "scores")
        found = torch.nn.functional.interpolate(
            model.auxiliary_head(features), (height, width), mode="bilinear", align_corners=True
        )
        assert_close(found, auxiliary, "auxiliary scores")
        assert torch.equal(model.inference(images, metas).argmax(1), scores.argmax(1))


def test_published_weights_load_whole_where_training_starts() -> None:
    """With the head too, whose names only a conversion finds; the backbone's are the model's."""
    published = PublishedModel("fcn", ARCHITECTURES["resnest14"], 5)
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        cfg = load_config(CONFIGS / "fcn_resnest50_ade20k.py").model
        cfg.backbone.arch = "resnest14"
        for head in (cfg.decode_head, cfg.auxiliary_head):
            head.num_classes = 5
        model = MODELS.build(cfg)
    for start_training in (True, False):
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, -7)
        load_weights(model, published.state_dict(), start_training)
        assert not any((parameter == -7).all() for parameter in model.parameters())
