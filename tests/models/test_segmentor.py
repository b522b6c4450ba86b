# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The segmentor's test modes, what it makes of bad configs, and its data samples."""

import copy
from collections import OrderedDict

import pytest
import torch
from mmengine.registry import DefaultScope
from mmseg.models.decode_heads import FCNHead
from mmseg.models.segmentors import EncoderDecoder as StockEncoderDecoder
from tiny_models import MEAN, STD, batch_of, built, metas_of, seeded_images, tiny_config
from user_errors import raises_user_error

from mmseg_resnest.models import EncoderDecoder, ResNeSt
from mmseg_resnest.registry import MODELS

MULTI = {
    "mode": "multi_scale_grid",
    "scales": (0.5, 1.25),
    "base_size": 40,
    "crop_size": 24,
    "window_batch_size": 4,
}
SLIDE = {"mode": "slide", "crop_size": (24, 24), "stride": (16, 16)}


def test_train_and_eval_can_be_chained():
    model = built()
    assert isinstance(model, EncoderDecoder)
    assert model.train() is model and model.backbone.training
    assert model.eval() is model and not model.backbone.conv1.training


@pytest.mark.parametrize("test_cfg", [{"mode": "whole"}, SLIDE])
@torch.no_grad()
def test_stock_modes_give_what_the_stock_class_gives(test_cfg):
    ours = built(test_cfg)
    stock = built(test_cfg, type="mmseg.EncoderDecoder")
    assert type(stock) is StockEncoderDecoder
    stock.load_state_dict(ours.state_dict())
    images = seeded_images(2)
    expected = stock.inference(images, metas_of(images))
    assert torch.equal(ours.inference(images, metas_of(images)), expected)


@pytest.mark.parametrize("test_cfg", [None, {}, {"crop_size": 24}])
@torch.no_grad()
def test_without_a_mode_the_whole_image_is_scored(test_cfg):
    model = built(test_cfg)
    images = seeded_images()
    expected = model.encode_decode(images, metas_of(images))
    assert torch.equal(model.inference(images, metas_of(images)), expected)
    model.test_cfg = test_cfg  # as a tool may set it later
    assert torch.equal(model.inference(images, metas_of(images)), expected)


def test_a_batch_is_scored_image_by_image():
    model = built(MULTI)
    images = seeded_images(3)
    metas = metas_of(images)
    before = copy.deepcopy(metas)
    scores = model.inference(images, metas)
    assert metas == before
    assert scores.shape == (3, 4, 37, 53)
    assert not scores.requires_grad
    for image, score in zip(images, scores, strict=True):
        alone = model.inference(image[None], metas_of(image[None]))
        assert torch.equal(alone[0], score)
    assert not torch.equal(scores[0], scores[1])


@pytest.mark.parametrize(
    ("preprocessor", "expected"),
    [
        ({}, [-m / s for m, s in zip(MEAN, STD, strict=True)]),
        ({"mean": [100.0], "std": [50.0]}, [-2.0, -2.0, -2.0]),
        ({"mean": None, "std": None}, [0.0, 0.0, 0.0]),
    ],
)
def test_padding_is_the_normalised_value_of_black(preprocessor, expected):
    """The network sees a window whose padding is what a black pixel becomes."""
    model = built({**MULTI, "scales": (1.0,), "base_size": 10}, preprocessor)
    seen = []
    model.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    images = seeded_images(1, 10, 7)
    model.inference(images, metas_of(images))
    window, mirrored = seen
    assert window.shape == (1, 3, 24, 24)
    assert torch.equal(window[:, :, :10, :7], images)
    black = torch.tensor(expected)
    assert torch.allclose(window[0, :, 10:, :], black[:, None, None].expand(-1, 14, 24))
    assert torch.allclose(window[0, :, :, 7:], black[:, None, None].expand(-1, 24, 17))
    assert torch.equal(mirrored, window.flip(3))
    # The data preprocessor itself, given a black image
    batch = {"inputs": [torch.zeros(3, 4, 4, dtype=torch.uint8)]}
    assert torch.allclose(model.data_preprocessor(batch)["inputs"][0, :, 0, 0], black)


def test_autocast_sums_in_float32():
    model = built(MULTI)
    images = seeded_images()
    exact = model.inference(images, metas_of(images))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = model.inference(images, metas_of(images))
    assert scores.dtype == torch.float32
    assert torch.allclose(scores, exact, rtol=0.1)
    assert not torch.equal(scores, exact)


@pytest.mark.parametrize("test_cfg", [{"mode": "whole"}, SLIDE, MULTI])
@torch.no_grad()
def test_labels_have_the_original_size(test_cfg):
    model = built(test_cfg)
    for ori_shape in [(37, 53), (74, 100)]:
        batch = batch_of(37, 53, count=2, ori_shape=ori_shape)
        results = model.test_step(batch)
        assert len(results) == 2
        for result in results:
            labels, scores = result.pred_sem_seg.data, result.seg_logits.data
            assert labels.shape == (1, *ori_shape)
            assert labels.dtype == torch.int64
            assert scores.shape == (4, *ori_shape)
            assert torch.equal(labels[0], scores.argmax(0))


@torch.no_grad()
def test_scores_of_the_original_size_are_not_copied():
    model = built(MULTI)
    scores = torch.rand(2, 4, 37, 53)
    samples = batch_of(37, 53, count=2)["data_samples"]
    stock_samples = StockEncoderDecoder.postprocess_result(model, scores, copy.deepcopy(samples))
    results = model.postprocess_result(scores, samples)
    for score, result, stock in zip(scores, results, stock_samples, strict=True):
        assert result.seg_logits.data.data_ptr() == score.data_ptr()
        assert torch.equal(result.seg_logits.data, stock.seg_logits.data)
        assert torch.equal(result.pred_sem_seg.data, stock.pred_sem_seg.data)
        assert result.pred_sem_seg.data.dtype == stock.pred_sem_seg.data.dtype


@pytest.mark.parametrize("keep_scores", [True, False])
@torch.no_grad()
def test_predict_without_data_samples(keep_scores):
    model = built({**MULTI, "keep_scores": keep_scores})
    images = seeded_images(2)
    scores = model.inference(images, metas_of(images))
    for score, result in zip(scores, model.predict(images), strict=True):
        assert torch.equal(result.pred_sem_seg.data[0], score.argmax(0))
        assert not keep_scores or torch.equal(result.seg_logits.data, score)


@torch.no_grad()
def test_padding_of_the_data_preprocessor_takes_no_part():
    """The scores of an image do not depend on its being padded for a size divisor."""
    plain = built(MULTI)
    padded = built(MULTI, {"test_cfg": {"size_divisor": 32}})
    padded.load_state_dict(plain.state_dict())
    (expected,) = plain.test_step(batch_of(37, 53))
    (result,) = padded.test_step(batch_of(37, 53))
    assert tuple(result.img_padding_size) == (0, 11, 0, 27)
    assert torch.allclose(result.seg_logits.data, expected.seg_logits.data, rtol=1e-6)
    assert torch.equal(result.pred_sem_seg.data, expected.pred_sem_seg.data)


@pytest.mark.parametrize(
    ("test_cfg", "key"),
    [
        ({"mode": "multi_scale"}, "mode"),
        ({"mode": None}, "mode"),
        ({"mode": "whole", "keep_scores": 1}, "keep_scores"),
        ({"mode": "whole", "strid": 3}, "strid"),
        ({**MULTI, "crop_size": 0}, "crop_size"),
        ({**MULTI, "stride": (16, 16)}, "stride"),
        ({**SLIDE, "stride": 16}, "stride"),
        ({**SLIDE, "stride": (16, 25)}, "stride"),
        ({**SLIDE, "crop_size": (24, 0)}, "crop_size"),
        ({"mode": "slide", "stride": (16, 16)}, "crop_size"),
    ],
)
def test_bad_test_cfg_names_its_key(test_cfg, key):
    code = "config-key" if key in ("strid", "stride") else "config-value"
    code = "config-value" if test_cfg["mode"] == "slide" else code
    with raises_user_error(code, f"model.test_cfg.{key}"):
        built(test_cfg)
    model = built()
    model.test_cfg = test_cfg
    images = seeded_images()
    with raises_user_error(code, f"model.test_cfg.{key}"):
        model.inference(images, metas_of(images))


def test_a_single_output_has_no_multi_scale_evaluation():
    head = {"num_classes": 2, "out_channels": 1, "threshold": 0.5}
    head["loss_decode"] = {"type": "CrossEntropyLoss", "use_sigmoid": True}
    model = built(MULTI, head=head)
    with raises_user_error("config-conflict", "model.test_cfg.mode"):
        model.predict(seeded_images())
    model.test_cfg = {"mode": "whole"}
    batch = batch_of(37, 53)
    with torch.no_grad():
        (result,) = model.test_step(batch)
    labels = result.pred_sem_seg.data
    assert labels.shape == (1, 37, 53)
    assert torch.equal(labels, (result.seg_logits.data > 0.5).to(labels))


@pytest.mark.parametrize("test_cfg", [{"mode": "whole"}, SLIDE, MULTI])
@pytest.mark.parametrize("align_corners", [True, False])
@torch.no_grad()
def test_labels_without_scores_are_the_same(test_cfg, align_corners):
    """With padding at the right and below, mirrored, at another size, and without any of it."""
    preprocessor = {"test_cfg": {"size_divisor": 32}}
    model = built(test_cfg, preprocessor, head={"align_corners": align_corners})
    for ori_shape in [(37, 53), (74, 100)]:
        for flip in ({}, {"flip": True, "flip_direction": "horizontal"}):
            batch = batch_of(37, 53, count=2, ori_shape=ori_shape)
            for sample in batch["data_samples"]:
                sample.set_metainfo(flip)
            model.test_cfg = {**test_cfg, "keep_scores": True}
            expected = model.test_step(copy.deepcopy(batch))
            model.test_cfg = {**test_cfg, "keep_scores": False}
            results = model.test_step(batch)
            for result, stock in zip(results, expected, strict=True):
                assert "seg_logits" not in result
                assert torch.equal(result.pred_sem_seg.data, stock.pred_sem_seg.data)
                assert result.pred_sem_seg.data.dtype == stock.pred_sem_seg.data.dtype


class FlippingHead(FCNHead):
    """A head that does something of its own between its scores and the image."""

    def predict_by_feat(self, seg_logits, batch_img_metas):
        return super().predict_by_feat(seg_logits, batch_img_metas).flip(1)


ENC = {"type": "EncHead", "in_channels": [8], "in_index": [0], "num_codes": 4}


@pytest.mark.parametrize(
    "head", [{"type": FlippingHead}, {**ENC, "use_se_loss": True}, {**ENC, "use_se_loss": False}]
)
@torch.no_grad()
def test_labels_of_heads_that_do_more(head):
    """A second output, or a step of its own."""
    model = built(head=head)
    batch = batch_of(37, 53, ori_shape=(50, 70))
    (expected,) = model.test_step(copy.deepcopy(batch))
    model.test_cfg.keep_scores = False
    (result,) = model.test_step(batch)
    assert torch.equal(result.pred_sem_seg.data, expected.pred_sem_seg.data)


def test_parts_are_found_here_first_without_a_default_scope(monkeypatch):
    config = tiny_config(backbone={"type": "ResNeSt", "arch": "resnest14"})
    config["decode_head"].update(in_channels=2048, in_index=3)
    monkeypatch.setattr(DefaultScope, "_instance_dict", OrderedDict())
    model = MODELS.build(config)
    assert DefaultScope.get_current_instance() is None
    assert isinstance(model.backbone, ResNeSt)
