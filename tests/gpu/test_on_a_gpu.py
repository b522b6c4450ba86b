# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What only a GPU can show: the same answers, exact resumption, mixed precision, no waiting."""

from __future__ import annotations

import contextlib
import copy
import json
import os
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before cuBLAS starts

import numpy as np
import pytest
import torch
from PIL import Image

import mmseg_resnest  # noqa: F401
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.training import train
from mmseg_resnest.kernels.predict import label_map, plain_label_map
from mmseg_resnest.kernels.resampling import Crop, Mirror, Resize
from mmseg_resnest.models import fold_for_inference
from mmseg_resnest.registry import MODELS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@contextlib.contextmanager
def _no_tf32():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """CamVid's layout: four images of noise over regions."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for folder in (split, f"{split}annot"):
            (root / "camvid" / folder).mkdir(parents=True)
        for index in range(4):
            label = rng.integers(0, 12, (6, 8), dtype=np.uint8).repeat(32, 0).repeat(32, 1)
            noise = rng.integers(0, 24, (*label.shape, 3))
            image = (20 * label[..., None] + noise).astype(np.uint8)
            Image.fromarray(image).save(root / "camvid" / split / f"{index}.png")
            Image.fromarray(label).save(root / "camvid" / f"{split}annot" / f"{index}.png")
    return root


def _config(data, iterations, **options):
    cfg = load_config(
        CONFIGS / "fcn_resnest14_camvid.py",
        {
            "train_cfg.max_iters": iterations,
            "train_cfg.val_interval": 100,
            "default_hooks.checkpoint.interval": 3,
            "default_hooks.checkpoint.max_keep_ckpts": 10,
            "train_dataloader.batch_size": 4,
            "train_dataloader.num_workers": 0,
            "val_dataloader.num_workers": 0,
            "train_dataloader.persistent_workers": False,
            "val_dataloader.persistent_workers": False,
            **options,
        },
        data,
    )
    return cfg


def _segmentor(precise=False):
    cfg = load_config(CONFIGS / "deeplabv3_resnest26_camvid.py")
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return (model.double() if precise else model).eval()


@pytest.mark.parametrize("kind", ["regions", "ties"])
def test_labels_are_those_of_the_plain_reference(kind):
    """The tiled labels on the GPU against every step on whole maps, in float64 on the CPU."""
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(2, 19, 33, 65, generator=generator)
    if kind == "ties":
        scores = (scores * 2).round()
    steps = [Resize((260, 520), True), Crop(3, 5, 2, 7), Mirror(1), Resize((300, 600), False)]
    expected = plain_label_map(scores.double(), steps)
    labels = label_map(scores.cuda(), steps)
    assert labels.is_cuda and labels.dtype == torch.int64
    equal = (labels.cpu() == expected).double().mean()
    assert equal >= (0.9999 if kind == "regions" else 0.99)


def test_the_network_computes_what_it_does_on_a_cpu():
    images = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), _no_tf32():
        model = _segmentor(precise=True)
        expected = model.decode_head(model.extract_feat(images.double()))
        model = model.float().cuda()
        scores = model.decode_head(model.extract_feat(images.cuda())).cpu().double()
        folded = fold_for_inference(copy.deepcopy(model))
        fast = folded.decode_head(folded.extract_feat(images.cuda())).cpu().double()
        half = model.to(memory_format=torch.channels_last)
        with torch.autocast("cuda", torch.bfloat16):
            rough = half.decode_head(half.extract_feat(images.cuda())).cpu().double()
    assert (scores - expected).norm() <= 1e-4 * expected.norm()
    assert (fast - expected).norm() <= 1e-4 * expected.norm()
    assert (rough - expected).norm() <= 0.05 * expected.norm()


def test_predictions_wait_for_nothing():
    """From images on the device to labels on the device without one synchronisation."""
    model = _segmentor().cuda()
    model.test_cfg["keep_scores"] = False
    images = torch.randn(2, 3, 96, 128, device="cuda")
    with torch.inference_mode():
        expected = [sample.pred_sem_seg.data for sample in model.predict(images)]
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            samples = model.predict(images)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for sample, labels in zip(samples, expected, strict=True):
        assert sample.pred_sem_seg.data.is_cuda
        assert torch.equal(sample.pred_sem_seg.data, labels)


@pytest.mark.parametrize("kind", ["AmpOptimWrapper", "BFloat16OptimWrapper"])
def test_mixed_precision_trains(kind, data, tmp_path):
    """Both kinds learn these images: finite weights, and a loss that falls."""
    cfg = _config(data, 40)
    cfg.optim_wrapper["type"] = kind
    cfg.default_hooks.logger.interval = 10
    train(cfg, work_dir=tmp_path)
    saved = torch.load(tmp_path / "iter_40.pth", weights_only=False)
    assert all(
        torch.isfinite(value).all()
        for value in saved["state_dict"].values()
        if value.is_floating_point()
    )
    (log,) = tmp_path.rglob("scalars.json")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 4 and losses[-1] < 0.8 * losses[0]


def test_a_resumed_run_is_the_same_bit_for_bit(data, tmp_path):
    """With deterministic algorithms: six iterations, and three, a new start, and three more."""
    engine = pytest.importorskip(
        "mmseg_resnest.engine.sampler", reason="this engine has no exact sampler"
    )
    assert engine.ExactSampler

    def run(folder, iterations, resume=None):
        cfg = _config(data, 6)
        cfg.randomness = {"seed": 0, "deterministic": True}
        cfg.env_cfg["cudnn_benchmark"] = False
        cfg.train_cfg.max_iters = iterations
        try:
            train(cfg, work_dir=tmp_path / folder, resume=resume, allow_changes=["train_cfg"])
        finally:
            torch.use_deterministic_algorithms(False)
            torch.backends.cudnn.deterministic = False

    run("whole", 6)
    run("parts", 3)
    run("parts", 6, resume="auto")
    states = [
        torch.load(tmp_path / folder / "iter_6.pth", weights_only=False, map_location="cpu")
        for folder in ("whole", "parts")
    ]
    for part in ("state_dict", "optimizer"):
        first, second = (torch.utils._pytree.tree_leaves(state[part]) for state in states)
        assert len(first) == len(second)
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
