# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What a config's model costs: parameters, floating-point operations, memory, images a second."""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from ..datasets import leaf_datasets
from ..errors import UserError
from ..models import input_channels, overlaps
from ..registry import type_name
from .checkpoint import load_weights
from .config import require, require_segmentation
from .forecast import watched
from .hooks import describe_model, print_header
from .label_predictions import predict_labels_only
from .launch import describe_device
from .model import build_model
from .preflight import check_checkpoint, check_device
from .resolve import enable_amp

_WARM_UP = 2


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Numbers of parameters: ``all``, of each part, and ``trained``."""
    counts = {"all": sum(p.numel() for p in model.parameters())}
    for name, part in model.named_children():
        counts[name] = sum(p.numel() for p in part.parameters())
    counts["trained"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {name: count for name, count in counts.items() if count or name == "all"}


def count_flops(model: nn.Module, shape: Sequence[int]) -> int:
    """Floating-point operations of one image (height, width) through backbone and head.

    Matrix products and convolutions are counted by their formula, with a multiplication and an
    addition as two operations: half of it is the multiply-adds that papers often call FLOPs.
    """
    bare = copy.deepcopy(model).to("meta").eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        bare(torch.empty(1, input_channels(model) or 3, *shape, device="meta"), mode="tensor")
    return counter.get_total_flops()


def default_shape(cfg: Config) -> tuple[int, int]:
    """The size that a config trains on: its crop's, or 512 x 512 where it does not crop."""
    dataset = (cfg.get("train_dataloader") or {}).get("dataset") or {}
    pipelines = [dataset.get("pipeline", ())]  # a wrapper's changes what comes from those inside
    pipelines += [leaf.get("pipeline", ()) for leaf in leaf_datasets(dataset)]
    for step in (step for pipeline in pipelines for step in pipeline):
        if type_name(step.get("type", "")) == "RandomCrop":
            size = step["crop_size"]
            height, width = (size, size) if isinstance(size, int) else size
            return int(height), int(width)
    return 512, 512


def _measure(
    step: Callable[[], object], images: int, device: torch.device, seconds: float, what: str
) -> dict[str, Any]:
    """Run a step again and again; images a second from the median time."""

    def timed() -> float:
        begin = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin

    for _ in range(_WARM_UP):
        timed()
    times: list[float] = []
    end = time.monotonic() + seconds
    with (
        tqdm(desc=what, disable=None, leave=False, unit=" runs", file=sys.stderr) as bar,
        watched(device.type == "cuda", device) as all_runs,
    ):
        while len(times) < 3 or time.monotonic() <= end:
            times.append(timed())
            bar.update()
    return {
        "batch": images,
        "runs": len(times),
        "images_per_second": images / statistics.median(times),
        "slowest_images_per_second": images / max(times),
        "fastest_images_per_second": images / min(times),
        "memory_bytes": all_runs.peak,
    }


def benchmark(
    cfg: Config,
    shape: tuple[int, int] | None = None,
    batch_size: int = 1,
    device: str | None = None,
    amp: bool = False,
    training: bool = False,
    seconds: float = 10,
    checkpoint: str | None = None,
) -> dict[str, Any]:
    """Measure the model of a checked config.

    Images are random ones in memory: reading and augmenting files is not measured. Testing goes
    from pixels to label map by the config's ``model.test_cfg``. A training step is forward,
    backward and the optimizer's step.

    Args:
        cfg: The config.
        shape: Height and width of the images; None: :func:`default_shape`.
        batch_size: Images that go through the network together.
        device: E.g. ``cpu`` or ``cuda:1``; None is the GPU if there is one.
        amp: Train in mixed precision.
        training: Measure training steps too.
        seconds: How long each of the two is measured; at least three runs.
        checkpoint: Weights; None: random ones, which take the same time.

    Returns:
        ``parameters``, ``flops``, ``shape``, ``device``, ``testing`` and ``training`` (None if
        not measured), each with ``images_per_second`` (the median; also ``slowest_`` and
        ``fastest_``), ``memory_bytes`` (the peak of tensors on a GPU, or of the process on a CPU),
        ``precision``, ``batch`` and ``runs``.
    """
    require(cfg, ("model",), "measuring a model")
    require_segmentation(cfg, "benchmark")
    if batch_size < 1:
        raise UserError("argument", f"--batch-size {batch_size}", "must be at least 1")
    height, width = shape or default_shape(cfg)
    if min(height, width) < 32:
        raise UserError("argument", f"--shape {height} {width}", "must be at least 32 x 32 pixels")
    where = check_device(device)
    if training:
        require(cfg, ("optim_wrapper",), "measuring training")
        if batch_size < 2:
            raise UserError("argument", "--train", "batch norm needs --batch-size 2 or more")
    if checkpoint is not None:
        check_checkpoint(checkpoint, "--checkpoint")
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmseg")):
        precision = "float32"
        if amp:
            cfg = copy.deepcopy(cfg)
            precision = enable_amp(cfg, torch.cuda.is_available())
        model = build_model(cfg)
        if checkpoint is not None:
            load_weights(model, checkpoint)
        result: dict[str, Any] = {
            "config": cfg.filename,
            "model": describe_model(model, cfg, None),
            "shape": [height, width],
            "device": describe_device(),
            "parameters": count_parameters(model),
            "flops": count_flops(model, (height, width)),
        }
        if where.type == "cuda":
            result["device"] = torch.cuda.get_device_name(where)
        predict_labels_only(model)
        model.to(where).eval()
        size = (batch_size, input_channels(model) or 3, height, width)
        inputs = list(torch.randint(0, 256, size, dtype=torch.uint8))
        classes = int(cast(Any, model).decode_head.num_classes)
        samples = [_sample(height, width, classes, overlaps(model)) for _ in inputs]
        batch = {"inputs": inputs, "data_samples": samples}

        def test() -> None:
            with torch.inference_mode():
                # Copies: predictions are written into the samples.
                cast(Any, model).test_step({**batch, "data_samples": [s.clone() for s in samples]})

        def train() -> None:
            cast(Any, model).train_step(batch, optimizer)

        result["testing"] = _measure(test, batch_size, where, seconds, "testing")
        result["testing"]["precision"] = "float32"
        result["training"] = None
        if training:
            optimizer = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))
            model.train()
            result["training"] = _measure(train, batch_size, where, seconds, "training")
            result["training"]["precision"] = precision
    return result


def _sample(height: int, width: int, classes: int, overlap: bool) -> SegDataSample:
    """Random labels, with what the stack wants to know of an image."""
    size = (height, width)
    sample = SegDataSample(metainfo={"ori_shape": size, "img_shape": size, "pad_shape": size})
    labels = torch.randint(0, max(classes, 2), (1, *size))
    if overlap:
        labels = torch.randint(0, 2, (classes, *size), dtype=torch.uint8)
    sample.gt_sem_seg = PixelData(data=labels)
    return sample


def print_benchmark(result: Mapping[str, Any]) -> None:
    """Print what :func:`benchmark` returned."""
    counts = dict(result["parameters"])
    total, trained = counts.pop("all"), counts.pop("trained", 0)
    height, width = result["shape"]
    flops = result["flops"]
    some = f", {trained:,} of them trained" if trained < total else ""
    rows = [
        ("model", result["model"]),
        ("config", str(result["config"])),
        ("device", result["device"]),
        ("parameters", f"{total:,}{some}"),
        ("", ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in counts.items())),
        ("FLOPs", f"{flops / 1e9:.2f} G for an image of {height} x {width} "
                  f"({flops / 2e9:.2f} G multiply-adds)"),
    ]  # fmt: skip
    for what in ("testing", "training"):
        if run := result[what]:
            median, *ends = (
                run[f"{kind}images_per_second"] for kind in ("", "slowest_", "fastest_")
            )
            rows += [
                (what, f"{median:.2f} images/s in batches of {run['batch']}, {run['precision']} "
                       f"(median of {run['runs']} runs; {ends[0]:.2f} to {ends[1]:.2f})"),
                ("", f"peak memory {run['memory_bytes'] / 2**20:,.0f} MiB"),
            ]  # fmt: skip
    print_header(rows)
