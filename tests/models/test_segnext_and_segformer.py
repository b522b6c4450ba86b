# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""SegNeXt and SegFormer: the stack's networks and recipes, trained, evaluated and exported here."""

from __future__ import annotations

import copy
import functools
import inspect
import sys
from pathlib import Path
from typing import Any

import mmseg
import numpy as np
import onnxruntime
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "inference"))

from small_models import balanced, blobs

from mmseg_resnest import load_segmentor
from mmseg_resnest.engine.checkpoint import load_weights
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.export import compare, export_model
from mmseg_resnest.export.publish import publish
from mmseg_resnest.registry import MODELS
from mmseg_resnest.weights import catalogue

ROOT = Path(__file__).resolve().parents[2]
STOCK = Path(mmseg.__file__).parent / ".mim" / "configs"
SIZES = dict(segnext="tsbl", segformer="024")
MODEL_NAMES = [
    f"{head}_{'mscan' if head == 'segnext' else 'mitb'}{size}"
    for head, sizes in SIZES.items()
    for size in sizes
]
ADE20K = [f"{name}_ade20k" for name in MODEL_NAMES]
CITYSCAPES = [f"{name}_cityscapes" for name in MODEL_NAMES]
SMALL = ["segnext_mscant_camvid", "segformer_mitb0_camvid"]
LARGE = ("mscanb", "mscanl", "mitb4", "mitb2")


def quick_first(names: list[str]) -> list[Any]:
    """The large ones are left to ``make test-long``."""
    return [
        pytest.param(name, marks=pytest.mark.long if any(large in name for large in LARGE) else ())
        for name in names
    ]


@functools.cache
def _load(name: str) -> Config:
    return load_config(ROOT / "configs" / f"{name}.py")


def load(name: str, short: bool = False) -> Config:
    """A copy of a config, without weights to start from; ``short``: with a block a stage."""
    cfg = copy.deepcopy(_load(name))
    cfg.model.backbone.init_cfg = None
    cfg.model.data_preprocessor.size = (64, 96)
    if short:
        key = "depths" if cfg.model.backbone.type == "MSCAN" else "num_layers"
        cfg.model.backbone[key] = [1, 1, 1, 1]
        cfg.test_dataloader.dataset.pipeline[1].scale = (96, 96)
    return cfg


def stock_config(name: str) -> Config:
    head, backbone, data = name.split("_")
    part = f"mscan-{backbone[5:]}" if head == "segnext" else f"mit-{backbone[3:]}"
    size = "1024x1024" if data == "cityscapes" else "512x512"
    (file,) = (STOCK / head).glob(f"*_{part}_*{data}-{size}.py")
    return Config.fromfile(file)


def without(node: Any, *keys: str) -> dict[str, Any]:
    return {key: value for key, value in dict(node).items() if key not in keys}


@pytest.mark.parametrize("name", [*ADE20K, *(n for n in CITYSCAPES if n.startswith("segformer"))])
def test_a_config_is_the_stack_s_own(name: str) -> None:
    """Same network, schedule, augmentation and evaluation; one total batch for 1 or 8 GPUs."""
    theirs, ours = stock_config(name), _load(name)
    with DefaultScope.overwrite_default_scope("mmseg"):
        stock = mmseg.registry.MODELS.get(theirs.model.backbone.type)
    assert issubclass(MODELS.get(ours.model.backbone.type), stock)
    usual = {key: p.default for key, p in inspect.signature(stock).parameters.items()}
    built = [{**usual, **without(c.model.backbone, "norm_cfg", "init_cfg")} for c in (ours, theirs)]
    assert without(built[0], "norm_cfg", "init_cfg") == without(built[1], "norm_cfg", "init_cfg")
    ham = dict(MD_S=1, MD_R=16, train_steps=6, eval_steps=7, inv_t=100, rand_init=True)
    mine, stock_head = (dict(cfg.model.decode_head) for cfg in (ours, theirs))
    for head in (mine, stock_head) if "segnext" in name else ():
        head["ham_kwargs"] = {**ham, **head["ham_kwargs"]}
    assert mine == stock_head
    assert ours.model.test_cfg == theirs.model.test_cfg
    mine, before = (dict(cfg.model.data_preprocessor) for cfg in (ours, theirs))
    assert {**mine, "size": tuple(mine["size"])} == {**before, "size": tuple(before["size"])}

    devices = 1 if "segnext" in name else 8
    assert ours.total_batch_size == devices * theirs.train_dataloader.batch_size
    assert ours.optim_wrapper == theirs.optim_wrapper
    assert ours.param_scheduler == theirs.param_scheduler
    assert ours.train_cfg == theirs.train_cfg and ours.tta_model == theirs.tta_model
    for key in ("train_dataloader", "val_dataloader", "test_dataloader"):
        steps = [
            [without(step, "reduce_zero_label") for step in cfg[key].dataset.pipeline]
            for cfg in (ours, theirs)
        ]
        assert steps[0] == steps[1]
    start = next(e for e in catalogue().values() if e.name == _start(name))
    assert theirs.model.backbone.init_cfg.checkpoint in start.urls
    if data := next((e for e in catalogue().values() if e.config == f"configs/{name}.py"), None):
        assert data.name == f"openmmlab/{name}" and data.arch == start.arch


def _start(name: str) -> str:
    return str(_load(name).model.backbone.init_cfg.checkpoint)


def test_segnext_on_cityscapes_is_that_of_its_authors() -> None:
    """Their configs: crops and windows of 1024, batches of 8, the rest as on ADE20K."""
    for name in (n for n in CITYSCAPES if n.startswith("segnext")):
        cfg, ade20k = _load(name), _load(name.replace("cityscapes", "ade20k"))
        assert cfg.model.backbone == ade20k.model.backbone
        heads = [without(one.model.decode_head, "num_classes") for one in (cfg, ade20k)]
        assert heads[0] == heads[1] and cfg.model.decode_head.num_classes == 19
        window = dict(mode="slide", crop_size=(1024, 1024), stride=(768, 768))
        assert cfg.model.test_cfg == window and cfg.crop_size == (1024, 1024)
        assert cfg.total_batch_size == 8 and cfg.optim_wrapper == ade20k.optim_wrapper
        assert cfg.param_scheduler == ade20k.param_scheduler


@pytest.mark.parametrize("name", quick_first(ADE20K))
def test_every_tensor_of_the_zoo_has_its_place(name: str, tmp_path: Path) -> None:
    """A file in the layout of the stack's own network, read as the tools read it: equal scores."""
    theirs, ours = stock_config(name).model, _load(name).model
    for part in (theirs, copy.deepcopy(ours)):
        part.pop("data_preprocessor")
        part.backbone.init_cfg = None
    theirs.pretrained = None
    if "norm_cfg" in theirs.decode_head and theirs.decode_head.norm_cfg.type == "SyncBN":
        theirs.decode_head.norm_cfg.type = "BN"  # the stack's SyncBN does not run on a CPU
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmseg"):
        stock = mmseg.registry.MODELS.build(theirs).eval()
    model = load_segmentor(load(name), None, "cpu").model
    with torch.no_grad():
        for value in stock.state_dict().values():
            if value.is_floating_point() and value.ndim == 1:
                value.add_(torch.rand_like(value), alpha=0.1)
    file = tmp_path / "zoo.pth"
    torch.save({"meta": {}, "state_dict": stock.state_dict()}, file)
    load_weights(model, file)
    images = torch.randn(2, 3, 64, 96)
    if "segnext" in name:  # the stack draws its bases at each call
        bases = model.decode_head.hamburger.ham.bases_at_rest
        stock.decode_head.hamburger.ham._build_bases = lambda B, *_, **__: bases.repeat(B, 1, 1)
    with torch.no_grad():
        wanted, found = (net._forward(images) for net in (stock, model))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", quick_first([*ADE20K, *CITYSCAPES[::4], *SMALL]))
def test_a_training_step_and_a_prediction(name: str) -> None:
    """Every parameter learns; predictions have the image's own size and do not change."""
    cfg = load(name)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        model = MODELS.build(cfg.model)
        model.init_weights()
        model.train(True)
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    classes = cfg.model.decode_head.num_classes
    images = list(torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8))
    samples = []
    for _ in images:
        sample = SegDataSample(metainfo=dict(img_shape=(64, 96), ori_shape=(64, 96)))
        sample.gt_sem_seg = PixelData(data=torch.randint(classes, (1, 64, 96)))
        samples.append(sample)
    batch = model.data_preprocessor(dict(inputs=images, data_samples=samples), True)
    loss, _ = model.parse_losses(model(**batch, mode="loss"))
    loss.backward()
    assert torch.isfinite(loss)
    assert [key for key, value in model.named_parameters() if value.grad is None] == []
    wrapper.step()
    model.eval()
    samples[0].set_metainfo(dict(img_shape=(64, 96), ori_shape=(50, 75)))
    state = torch.get_rng_state()
    with torch.no_grad():
        two = [
            model.test_step(dict(inputs=images[:1], data_samples=[samples[0].clone()]))[0]
            for _ in range(2)
        ]
    assert two[0].pred_sem_seg.data.shape == (1, 50, 75)
    torch.testing.assert_close(*(one.seg_logits.data for one in two), rtol=0, atol=0)
    assert torch.equal(state, torch.get_rng_state())


def test_the_bases_of_segnext_are_drawn_in_training_only() -> None:
    """Alone or in a batch, in 32 bits or under autocast, and not part of a checkpoint."""
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        head = dict(
            load("segnext_mscant_camvid").model.decode_head,
            loss_decode=dict(type="CrossEntropyLoss"),
        )
        fixed = MODELS.build(dict(head, ham_kwargs=dict(MD_R=16, rand_init=False)))
        first, second = (MODELS.build(head) for _ in range(2))
    assert not [key for key in first.state_dict() if "bases" in key]
    hams = [one.hamburger.ham for one in (first, second)]
    x = torch.rand(3, 256, 7, 9)
    for ham in hams:
        ham.eval()
    torch.testing.assert_close(hams[0](x), hams[1](x), rtol=0, atol=0)
    torch.testing.assert_close(hams[0](x)[1:2], hams[0](x[1:2]), rtol=1e-5, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(hams[0](x), hams[1](x), rtol=0, atol=0)
        assert hams[0](x).dtype == torch.float32
    few = (torch.rand(1, 256, 3) @ torch.rand(1, 3, 63)).view(1, 256, 7, 9)
    assert (hams[0](few) - few).square().mean() < 0.5 * few.var()
    hams[0].train()
    assert not torch.equal(hams[0](x), hams[0](x))
    ham = fixed.hamburger.ham.train()
    assert torch.equal(ham(x), ham(x))


@pytest.mark.parametrize(
    ("name", "processing"),
    [
        (SMALL[0], False),
        pytest.param(SMALL[0], True, marks=pytest.mark.long),
        (SMALL[1], False),
        pytest.param(SMALL[1], True, marks=pytest.mark.long),
    ],
)
def test_exported_files_give_the_same_labels_at_any_size(
    name: str, processing: bool, tmp_path: Path
) -> None:
    model = balanced(load_segmentor(load(name, short=True), None, "cpu"))
    path = export_model(model, tmp_path / "model.onnx", processing)
    images = [blobs(97, 133, 1), blobs(64, 64, 2), blobs(70, 160, 3)]
    agreement = compare(model, load_segmentor(path), images)
    assert agreement.good, agreement
    if not processing:
        session = onnxruntime.InferenceSession(path)
        for shape in ((1, 3, 64, 80), (3, 3, 96, 160)):
            batch = torch.randn(shape, generator=torch.Generator().manual_seed(1))
            with torch.inference_mode():
                want = model.model.encode_decode(batch, [dict(img_shape=shape[2:])] * shape[0])
            got = session.run(None, {"images": batch.numpy()})[0]
            np.testing.assert_allclose(got, want.numpy(), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("name", SMALL)
def test_a_published_folder_holds_them(name: str, tmp_path: Path) -> None:
    model = balanced(load_segmentor(load(name, short=True), None, "cpu"))
    publish(model, tmp_path / "hub")
    image = blobs(70, 90, 1)
    again = load_segmentor(tmp_path / "hub", device="cpu")
    np.testing.assert_array_equal(again(image).labels, model(image).labels)


@pytest.mark.long
@pytest.mark.parametrize("suffix", [".xml", ".torchscript", ".pt2"])
@pytest.mark.parametrize("name", SMALL)
def test_other_formats(name: str, suffix: str, tmp_path: Path) -> None:
    if suffix == ".xml":
        pytest.importorskip("openvino", reason="not among the pins: its wheel is large")
    model = balanced(load_segmentor(load(name, short=True), None, "cpu"))
    path = export_model(model, tmp_path / f"model{suffix}")
    agreement = compare(model, load_segmentor(path, trust=True), [blobs(97, 133, 1)])
    assert agreement.good, agreement


@pytest.mark.long
@pytest.mark.parametrize("name", ADE20K)
def test_every_model_is_exported(name: str, tmp_path: Path) -> None:
    model = balanced(load_segmentor(load(name), None, "cpu"))
    path = export_model(model, tmp_path / "model.onnx")
    agreement = compare(model, load_segmentor(path), [blobs(97, 133, 1)])
    assert agreement.good, agreement
