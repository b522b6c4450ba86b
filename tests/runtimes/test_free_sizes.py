# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Layers whose sizes an exporter would fix compute the same on any size; what exporters print."""

from __future__ import annotations

import copy
import ctypes
from pathlib import Path

import pytest
import torch
from mmseg.models.utils import Upsample
from small_models import small_config
from torch import Tensor, nn
from user_errors import raises_user_error

from mmseg_resnest import load_segmentor
from mmseg_resnest.inference.engine import choose_engine
from mmseg_resnest.runtimes import Choice
from mmseg_resnest.runtimes.files import write_onnx
from mmseg_resnest.runtimes.free_sizes import keep_sizes_free


class Crossing(nn.Module):
    """Attention of one sequence to a part of it."""

    def __init__(self, **options: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, **options)

    def forward(self, x: Tensor) -> Tensor:
        few = x[:, :3] if self.attention.batch_first else x[:3]
        mixed: Tensor = self.attention(query=x, key=few, value=few)[0]
        return mixed


LAYERS = {
    "sequence first": lambda: Crossing(),
    "batch first, without biases": lambda: Crossing(batch_first=True, bias=False),
    "encoder": lambda: nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_traced_attention_takes_sequences_of_any_length(name: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]().eval().requires_grad_(False)
    free = copy.deepcopy(layer)
    keep_sizes_free(free)
    traced = torch.jit.trace(free, torch.randn(5, 7, 16), check_trace=False)
    for shape in ((5, 7, 16), (4, 9, 16)):
        x = torch.randn(shape)
        torch.testing.assert_close(traced(x), layer(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("factor", [2, 4.0])
def test_a_traced_map_is_enlarged_by_its_own_size(factor: float) -> None:
    """As HRNet and the heads FPNHead and SETRUPHead do it."""
    layer = nn.Sequential(Upsample(scale_factor=factor, mode="bilinear", align_corners=False))
    free = copy.deepcopy(layer)
    keep_sizes_free(free)
    traced = torch.jit.trace(free, torch.randn(1, 2, 5, 7), check_trace=False)
    for shape in ((1, 2, 5, 7), (3, 2, 4, 9)):
        x = torch.randn(shape)
        torch.testing.assert_close(traced(x), layer(x))


def test_a_unet_is_computed_on_all_sizes_that_it_takes(capfd: pytest.CaptureFixture[str]) -> None:
    """It takes multiples of 16 alone; of other images an error is raised, and nothing printed."""
    pytest.importorskip("onnxruntime")
    cfg = small_config()
    cfg.model.backbone = dict(type="UNet", base_channels=4)
    cfg.model.decode_head.update(in_channels=4, in_index=4)
    torch.manual_seed(0)
    segmentor = load_segmentor(cfg, None, "cpu")
    images = [torch.randn(2, 3, 64, 80), torch.randn(1, 3, 48, 176)]
    with torch.no_grad():
        wanted = [segmentor.model.own_logits(some) for some in images]
        choose_engine(segmentor, Choice("onnxruntime"), lambda line: None)
        for some, scores in zip(images, wanted, strict=True):
            torch.testing.assert_close(segmentor.model.logits(some), scores, atol=1e-4, rtol=1e-4)
        capfd.readouterr()
        with raises_user_error("model", "engine onnxruntime"):
            segmentor.model.logits(torch.randn(1, 3, 70, 61))
    assert capfd.readouterr() == ("", "")


class _Unknown(nn.Module):
    """An operation that ONNX does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.i1(x)


def test_an_exporter_that_fails_prints_no_graph(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnx")
    free = {0: "batch", 2: "height", 3: "width"}
    with pytest.raises(Exception, match="i1"):
        write_onnx(
            _Unknown(), torch.randn(1, 3, 8, 9), tmp_path / "a.onnx", free, ("scores", free), {}, 3
        )
    ctypes.CDLL(None).fflush(None)  # what C++ has printed
    assert capfd.readouterr() == ("", "")
