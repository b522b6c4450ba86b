# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The rows of the speed table: inference, latency, training, predictions, evaluation, loader."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import gpu_models as models
import numpy as np
import predictions
import torch
import torch.nn.functional as F
from gpu_measure import CUDA, DEVICE, Case, Work, clear, out_of_memory, synchronise
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.evaluation import IoUMetric
from mmseg.models.segmentors import SegTTAModel as StockSegTTAModel
from mmseg.registry import TRANSFORMS as STOCK_TRANSFORMS
from mmseg.structures import SegDataSample
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmseg_resnest.datasets.prepare.build_cache import build_cache
from mmseg_resnest.engine.label_predictions import predict_labels_only
from mmseg_resnest.evaluation import SegmentationMetric
from mmseg_resnest.kernels import gpu as kernels
from mmseg_resnest.models import SegTTAModel
from mmseg_resnest.registry import DATASETS

init_default_scope("mmseg_resnest")
os.environ.setdefault(kernels.SWITCH, "1")  # measured with and without
ROOT = Path(__file__).resolve().parents[1]
STACK, OURS = "MMSegmentation", "mmseg-resnest"
PLAIN = f"{OURS}, without Triton"
Cases = Iterator[Callable[[], Case]]


def _installed(*packages: str) -> str | None:
    """Why something cannot run, or None."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"{', '.join(missing)} not installed" if missing else None


class _Plainly:
    """Work with the kernels in Triton off."""

    def __init__(self, work: Any) -> None:
        self.work = work

    def __call__(self) -> Any:
        with kernels.turned_off():
            return self.work()

    def check(self) -> Any:
        with kernels.turned_off():
            return self.work.check() if hasattr(self.work, "check") else self.work()


def _with_plain(
    ways: dict[str, Callable[..., Work]], missing: dict[str, str]
) -> tuple[dict[str, Callable[..., Work]], dict[str, str]]:
    """Ours once more without the kernels in Triton, where ours is with them."""
    reason = _installed("triton") if CUDA else "kernels in Triton need a GPU"
    if reason:
        return ways, {**missing, PLAIN: reason}
    plain = {PLAIN: lambda *args: _Plainly(ways[OURS](*args))}
    return {**ways, **plain}, missing


def _autocast(dtype: torch.dtype | None) -> Any:
    return contextlib.nullcontext() if dtype is None else torch.autocast(DEVICE, dtype)


# --- inference: normalised images to labels


class _Labels:
    """A segmentor at work, from normalised images to labels at their size."""

    def __init__(self, predict: Any, scores: Any, images: Tensor, dtype: Any = None) -> None:
        self.predict, self.scores, self.images, self.dtype = predict, scores, images, dtype

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        with _autocast(self.dtype):
            labels = self.predict(self.images)
        return labels if isinstance(labels, Tensor) else _stack(labels)

    @torch.inference_mode()
    def check(self) -> tuple[Tensor, Tensor]:
        with _autocast(self.dtype):
            return self().cpu(), self.scores(self.images).float().cpu()


def _stack(samples: list[SegDataSample]) -> Tensor:
    return torch.cat([sample.pred_sem_seg.data for sample in samples])


def _compare_scores(expected: Any, result: Any) -> dict[str, float]:
    (labels, scores), (other_labels, other_scores) = expected, result
    error = float((other_scores - scores).norm() / scores.norm())
    return {
        "labels_equal": float((labels == other_labels).double().mean()),
        "scores_error": error,
        "agrees": float(error <= 0.05),  # bfloat16 keeps 8 bits; NaN never passes
    }


def _head_scores(model: Any, images: Tensor) -> Tensor:
    return model.decode_head(model.extract_feat(images))


def _segmentor(make: partial[nn.Module], images: Callable[[], Tensor], dtype: Any,
               channels_last: bool, compiled: bool) -> Work:  # fmt: skip
    model: Any = make().to(DEVICE)
    pixels = images()
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    if make.func is models.fast:
        pixels = pixels.bfloat16()
    if compiled:
        models.compile_parts(model)
    return _Labels(lambda x: model.predict(x, None), partial(_head_scores, model), pixels, dtype)


def _plain_network(make: Callable[[], nn.Module], images: Callable[[], Tensor]) -> Work:
    """Somebody else's network, compiled, in bfloat16: scores, resize, arg max."""
    model = torch.compile(make().to(DEVICE, memory_format=torch.channels_last).eval())
    pixels = images().contiguous(memory_format=torch.channels_last)

    def predict(x: Tensor) -> Tensor:
        return F.interpolate(model(x).float(), x.shape[2:], mode="bilinear").argmax(1)

    return _Labels(predict, model, pixels, torch.bfloat16)


def _random_images(batch: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, size, size, generator=generator).to(DEVICE)


def _inference_case(arch: str, batch: int, size: int, compiled: bool) -> Case:
    images = partial(_random_images, batch, size)
    stock, ours, fast = (partial(make, arch) for make in (models.stock, models.ours, models.fast))
    half = torch.bfloat16
    ways = {
        f"{STACK}, float32": partial(_segmentor, stock, images, None, False, False),
        f"{STACK}, bfloat16 autocast": partial(_segmentor, stock, images, half, False, False),
        f"{OURS}, float32": partial(_segmentor, ours, images, None, False, False),
        OURS: partial(_segmentor, fast, images, None, True, False),
    }
    missing = {}
    if compiled:
        ways[f"{OURS}, compiled"] = partial(_segmentor, fast, images, None, True, True)
        ways[f"{STACK}, compiled, bfloat16"] = partial(_segmentor, stock, images, half, True, True)
        others: dict[str, tuple[Any, tuple[str, ...]]] = {
            "authors' backbone, compiled": (models.AuthorsNetwork, ("resnest",)),
            "timm + smp, compiled": (
                models.timm_with_smp,
                ("timm", "segmentation_models_pytorch"),
            ),
        }
        for name, (make, packages) in others.items():
            reason = _installed(*packages)
            if reason:
                missing[name] = reason
            else:
                ways[name] = partial(_plain_network, partial(make, arch), images)
    reference = f"{STACK}, float32"
    ways, missing = _with_plain(ways, missing)
    return Case(
        name=f"{arch}, batch {batch}",
        what=f"DeepLabV3 {arch}, {batch} images of {size}x{size}, 150 classes, to labels",
        reference=reference,
        ways=ways,
        items=batch,
        compare=_compare_scores,
        count=partial(_segmentor, fast, images, None, False, False),
        least={(OURS, reference): 3.0, (OURS, f"{STACK}, bfloat16 autocast"): 1.5},
        missing=missing,
    )


def inference(toy: bool, options: Any) -> Cases:
    if toy:
        models.CHANNELS.update(decode_head=16, auxiliary_head=16)
        yield partial(_inference_case, "toy", 2, 64, False)
        return
    for arch in ("resnest50", "resnest101", "resnest269"):
        for batch in (1, 16, 64):
            yield partial(_inference_case, arch, batch, 512, options.compiled)


# --- latency of the backbones


def _classifier(make: Callable[[], nn.Module], images: Callable[[], Tensor], dtype: Any,
                compiled: bool) -> Work:  # fmt: skip
    model: Any = make().to(DEVICE).eval()
    pixels = images()
    if dtype is not None:
        model = models.half(model).to(memory_format=torch.channels_last)
        pixels = pixels.to(dtype, memory_format=torch.channels_last)
    if compiled:
        model = torch.compile(model)

    @torch.inference_mode()
    def work() -> Tensor:
        return model(pixels).float()

    return work


def _timm_model(name: str) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False)


def _compare_logits(expected: Tensor, result: Tensor) -> dict[str, float]:
    error = float((result - expected).norm() / expected.norm())
    return {"scores_error": error, "agrees": float(error <= 0.05)}


def _latency_case(name: str, make: Callable[[], nn.Module], size: int, batch: int,
                  compiled: bool) -> Case:  # fmt: skip
    images = partial(_random_images, batch, size)
    ways = {
        "float32": partial(_classifier, make, images, None, False),
        "bfloat16": partial(_classifier, make, images, torch.bfloat16, False),
    }
    if compiled:
        ways["bfloat16, compiled"] = partial(_classifier, make, images, torch.bfloat16, True)
    missing = {}
    if name.startswith("efficientnet") and (reason := _installed("timm")):
        ways, missing = {}, {name: reason}
    return Case(
        name=f"{name}, {size}",
        what=f"{name}, {batch} images of {size}x{size} to 1000 scores",
        reference="float32",
        ways=ways,
        items=batch,
        compare=_compare_logits,
        count=None if missing else partial(_classifier, make, images, torch.bfloat16, False),
        missing=missing,
    )


def latency(toy: bool, options: Any) -> Cases:
    if toy:
        yield partial(_latency_case, "toy", partial(models.Classifier, "toy"), 64, 2, False)
        return
    sizes = {"resnest50": 224, "resnest101": 256, "resnest200": 320, "resnest269": 416}
    for arch, size in sizes.items():
        yield partial(
            _latency_case, arch, partial(models.Classifier, arch), size, 16, options.compiled
        )
    for level, size in zip(range(2, 8), (260, 300, 380, 456, 528, 600), strict=True):
        name = f"efficientnet_b{level}"
        yield partial(_latency_case, name, partial(_timm_model, name), size, 16, options.compiled)


# --- a training step


@contextlib.contextmanager
def _deterministic(on: bool) -> Iterator[None]:
    if not on:
        yield
        return
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before


def _training_batch(batch: int, size: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, size, size), generator=generator, dtype=torch.uint8)
    samples = []
    for _ in range(batch):
        sample = SegDataSample(
            metainfo=dict.fromkeys(("img_shape", "ori_shape", "pad_shape"), (size, size))
        )
        coarse = torch.randint(0, models.CLASSES, (1, 8, 8), generator=generator)
        labels = F.interpolate(coarse[None].float(), (size, size), mode="nearest")[0].long()
        sample.gt_sem_seg = PixelData(data=labels.to(DEVICE))
        samples.append(sample)
    return {"inputs": list(images.to(DEVICE)), "data_samples": samples}


def _step(make: Callable[[], nn.Module], batch: int, size: int, dtype: Any,
          channels_last: bool, compiled: bool = False,
          deterministic: bool = False) -> Work:  # fmt: skip
    """Forward, backward and SGD with a learning rate of 0, so that every call does the same."""
    model: Any = make().to(DEVICE).train()
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    if compiled:
        models.compile_parts(model)
    data = _training_batch(batch, size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    # As AmpOptimWrapper does it: float16 is scaled, bfloat16 has no need to be.
    scaler = torch.amp.GradScaler(DEVICE, enabled=CUDA and dtype == torch.float16)

    def work() -> Tensor:
        with _deterministic(deterministic):
            with _autocast(dtype):
                inputs = model.data_preprocessor(dict(data), True)
                losses = model(**inputs, mode="loss")
            loss = sum(value for name, value in losses.items() if "loss" in name)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return loss.detach().float()

    return work


def _compare_loss(expected: Tensor, result: Tensor) -> dict[str, float]:
    error = float((result - expected).abs() / expected.abs())
    return {"loss_error": error, "agrees": float(error <= 0.02)}


def _steps(
    arch: str, size: int, compiled: bool
) -> tuple[dict[str, Callable[..., Work]], dict[str, str]]:
    """Ways of a training step by the batch, and those that cannot run here."""
    stock, ours = partial(models.stock, arch), partial(models.ours, arch)
    # A CPU's bfloat16 is slow, and there is nothing to see in it.
    amp, half = (torch.float16, torch.bfloat16) if CUDA else (None, None)
    ways: dict[str, Callable[..., Work]] = {
        f"{STACK}, AMP": lambda batch: _step(stock, batch, size, amp, False),
        OURS: lambda batch: _step(ours, batch, size, half, True),
        f"{OURS}, deterministic": lambda batch: _step(
            ours, batch, size, half, True, deterministic=True
        ),
    }
    if compiled:
        ways[f"{STACK}, compiled"] = lambda batch: _step(stock, batch, size, half, False, True)
        ways[f"{OURS}, compiled"] = lambda batch: _step(ours, batch, size, half, True, True)
    return _with_plain(ways, {})


def largest_batch(step: Callable[[int], Work], candidates: tuple[int, ...]) -> int:
    """The largest batch of the candidates, in ascending order, that a step fits the memory with.

    Found by halving; 0 where not even the first fits.
    """
    # What the weights of the other ways take when they are timed in turns.
    reserve = torch.empty(4 * 2**30 if CUDA else 0, dtype=torch.uint8, device=DEVICE)
    fitting, too_large = 0, len(candidates)
    while fitting < too_large:
        middle = (fitting + too_large) // 2
        if _fits(step, candidates[middle]):
            fitting = middle + 1
        else:
            too_large = middle
    del reserve
    return candidates[fitting - 1] if fitting else 0


def _fits(step: Callable[[int], Work], batch: int) -> bool:
    work = None
    try:
        work = step(batch)
        work()
        synchronise()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return False
    finally:
        del work
        clear()
    return True


def _training_case(arch: str, size: int, batch: int, names: list[str], compiled: bool,
                   what: str) -> Case:  # fmt: skip
    steps, missing = _steps(arch, size, compiled)
    steps = {name: way for name, way in steps.items() if name in names}
    reference = names[0]
    least = {(OURS, reference): 2.0} if OURS in names and reference != OURS else {}
    return Case(
        name=f"{arch}, batch {batch}{'' if len(names) > 1 else ', ' + names[0]}",
        what=f"DeepLabV3 {arch}, a step on {batch} crops of {size}x{size}: {what}",
        reference=reference,
        ways={name: partial(way, batch) for name, way in steps.items()},
        items=batch,
        compare=_compare_loss,
        count=partial(steps[names[0]], batch),
        least=least,
        missing=missing if len(names) > 1 else {},
    )


def training(toy: bool, options: Any) -> Cases:
    if toy:
        models.CHANNELS.update(decode_head=16, auxiliary_head=16)
    arches, size = (("toy",), 32) if toy else (("resnest50", "resnest101"), 480)
    candidates = (2,) if toy else (8, 16, 24, 32, 40, 48, 64, 80, 96, 112, 128, 160, 192)
    for arch in arches:
        if options.case and arch not in options.case:
            continue
        compiled = options.compiled and not toy
        steps, _ = _steps(arch, size, compiled)
        largest = {name: largest_batch(steps[name], candidates) for name in list(steps)[:2]}
        (stack, most), (ours, our_most) = largest.items()
        both = min(largest.values())
        if both:
            yield partial(
                _training_case, arch, size, both, list(steps), compiled, "the largest for both"
            )
        for name, batch in ((stack, most), (ours, our_most)):
            if batch > both:
                yield partial(
                    _training_case, arch, size, batch, [name], compiled, "the largest for this"
                )


# --- head scores to predictions and confusion matrix


def predictions_(toy: bool, options: Any) -> Cases:
    if toy:
        predictions.SIZES["toy"] = (5, (8, 10), (64, 80), (60, 75))
        predictions.CASES["toy, regions"] = ("toy", "regions", torch.float32)
    names = ["toy, regions"] if toy else list(predictions.COMPARISON.cases)
    for name in names:
        ways, missing = _with_plain(
            {STACK: partial(predictions.stack, name), OURS: partial(predictions.ours, name)}, {}
        )
        least = 0.9999 if predictions.CASES[name][2] == torch.float32 else 0.999
        yield partial(
            Case,
            name=name,
            what=predictions.COMPARISON.cases.get(name, "a toy"),
            reference=STACK,
            ways=ways,
            missing=missing,
            compare=lambda a, b, least=least: {"labels_equal": (share := predictions.agree(a, b)),
                                               "agrees": float(share >= least)},
            least={(OURS, STACK): 5.0},
        )  # fmt: skip


# --- evaluation, from files to scores


class MadeUp:
    """Images and label maps of one size in ADE20K's layout, as JPEG or PNG."""

    def __init__(self, count: int, size: tuple[int, int], classes: int, suffix: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.root, self.suffix = Path(self._folder.name), suffix
        rng = np.random.default_rng(0)
        for part in ("images", "labels"):
            (self.root / part).mkdir()
        for i in range(count):
            coarse = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            photo = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC).astype(np.int16)
            photo += rng.integers(-12, 13, (*size, 3), dtype=np.int16)  # grain, as photos have
            pixels = Image.fromarray(photo.clip(0, 255).astype(np.uint8))
            pixels.save(self.root / "images" / f"{i}{suffix}", quality=95)
            regions = rng.integers(0, classes + 1, (8, 10), dtype=np.uint8)
            label = cv2.resize(regions, size[::-1], interpolation=cv2.INTER_NEAREST)
            Image.fromarray(label).save(self.root / "labels" / f"{i}.png")

    def dataset(self, pipeline: list[dict[str, Any]]) -> Any:
        """Them as a data set."""
        return DATASETS.build(
            {
                "type": "mmseg.ADE20KDataset",
                "data_root": str(self.root),
                "data_prefix": {"img_path": "images", "seg_map_path": "labels"},
                "img_suffix": self.suffix,
                "pipeline": pipeline,
                "test_mode": True,
            }
        )


def _pipeline(
    size: tuple[int, int], ratios: tuple[float, ...] | None, scope: str
) -> list[dict[str, Any]]:
    """MMSegmentation's evaluation; transforms of a scope, or of the default one."""
    load: list[dict[str, Any]] = [{"type": "LoadImageFromFile"}]
    label: dict[str, Any] = {"type": "LoadAnnotations", "reduce_zero_label": True}
    if not ratios:
        resize = {"type": "Resize", "scale": size[::-1], "keep_ratio": True}
        return _scoped([*load, resize, label, {"type": "PackSegInputs"}], scope)
    resizes = [{"type": "Resize", "scale_factor": ratio, "keep_ratio": True} for ratio in ratios]
    flips = [{"type": "RandomFlip", "prob": p, "direction": "horizontal"} for p in (0.0, 1.0)]
    steps = [resizes, flips, [label], [{"type": "PackSegInputs"}]]
    return _scoped([*load, {"type": "TestTimeAug", "transforms": steps}], scope)


def _scoped(steps: Any, scope: str) -> Any:
    if not scope:
        return steps
    if isinstance(steps, list):
        return [_scoped(step, scope) for step in steps]
    step = {**steps, "type": f"{scope}.{steps['type']}"}
    if "transforms" in step:
        step["transforms"] = _scoped(step["transforms"], scope)
    return step


def _evaluation(arch: str, data: MadeUp, size: tuple[int, int], ratios: tuple[float, ...] | None,
                ours: bool, dtype: Any, workers: int) -> Work:  # fmt: skip
    scope = "" if ours else "mmseg"
    dataset = data.dataset(_pipeline(size, ratios, scope))
    loader = DataLoader(
        dataset, batch_size=1, num_workers=workers, collate_fn=pseudo_collate,
        persistent_workers=workers > 0, pin_memory=CUDA and ours,
    )  # fmt: skip
    model: Any = models.ours(arch) if ours else models.stock(arch)
    if ours:
        predict_labels_only(model)
    if ratios:
        model = (SegTTAModel if ours else StockSegTTAModel)(model)
    model = model.to(DEVICE).eval()
    if ours:
        model = model.to(memory_format=torch.channels_last)

    def work() -> Tensor:
        metric = SegmentationMetric() if ours else IoUMetric()
        metric.dataset_meta = dataset.metainfo
        labels = []
        with torch.inference_mode(), _autocast(dtype):
            for batch in loader:
                samples = model.test_step(batch)
                metric.process(batch, [sample.to_dict() for sample in samples])
                labels += [sample.pred_sem_seg.data.reshape(size) for sample in samples]
        metric.evaluate(len(dataset))
        return torch.stack(labels).cpu()

    return work


def _compare_labels(expected: Tensor, labels: Tensor) -> dict[str, float]:
    return {"labels_equal": float((expected == labels).double().mean())}


def _evaluation_case(arch: str, name: str, size: tuple[int, int], count: int,
                     ratios: tuple[float, ...] | None, workers: int) -> Case:  # fmt: skip
    data = MadeUp(count, size, models.CLASSES, ".jpg")
    make = partial(_evaluation, arch, data, size, ratios)
    views = f"{2 * len(ratios)} views" if ratios else "1 view"
    ways, missing = _with_plain(
        {
            STACK: partial(make, False, None, workers),
            OURS: partial(make, True, None, workers),
            f"{OURS}, bfloat16": partial(make, True, torch.bfloat16, workers),
        },
        {},
    )
    return Case(
        name=f"{name}, {'multi-scale + flip' if ratios else 'single scale'}",
        what=f"{count} images of {size[1]}x{size[0]}, {views} each, "
        f"DeepLabV3 {arch}, {workers} loading workers",
        reference=STACK,
        ways=ways,
        missing=missing,
        items=count,
        compare=_compare_labels,
        least={(OURS, STACK): 4.0 if ratios else 3.0},
    )


def evaluation(toy: bool, options: Any) -> Cases:
    if toy:
        models.CHANNELS.update(decode_head=16, auxiliary_head=16)
        yield partial(_evaluation_case, "toy", "toy", (32, 48), 1, (0.5, 1.0), 0)
        return
    workers = min(8, len(os.sched_getaffinity(0)))
    for ratios in (None, (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)):
        for name, size, count in (("ade20k", (512, 683), 32), ("cityscapes", (1024, 2048), 8)):
            yield partial(_evaluation_case, "resnest50", name, size, count, ratios, workers)


# --- loading


def _loading(data: MadeUp, steps: list[dict[str, Any]], stock: bool, cached: bool) -> Work:
    pipeline: list[Any] = [dict(step) for step in steps]
    if stock:
        for step in pipeline:
            step["type"] = STOCK_TRANSFORMS.get(step["type"])
    if cached:
        patterns = [("image", f"images/*{data.suffix}"), ("label", "labels/*.png")]
        build_cache(data.root, patterns, jobs=1)
    dataset = data.dataset(pipeline)

    def work() -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in a worker
        cv2.setNumThreads(0)
        np.random.seed(0)
        for index in range(len(dataset)):
            dataset[index]
        torch.set_num_threads(threads)

    return work


def _loader_case(name: str, config: str, size: tuple[int, int], count: int, suffix: str) -> Case:
    cfg = Config.fromfile(ROOT / "configs" / "openmmlab" / config)
    steps = cfg.train_dataloader.dataset.pipeline
    # Two folders: a cache beside the files would serve the way that is to read them.
    data, with_cache = (MadeUp(count, size, models.CLASSES, suffix) for _ in range(2))
    return Case(
        name=name,
        what=f"{count} {suffix[1:].upper()} images of {size[1]}x{size[0]} through the training "
        f"pipeline of configs/openmmlab/{config}, one core",
        reference=f"{STACK}, files",
        ways={
            f"{STACK}, files": partial(_loading, data, steps, True, False),
            f"{OURS}, files": partial(_loading, data, steps, False, False),
            f"{OURS}, cached": partial(_loading, with_cache, steps, False, True),
        },
        items=count,
        unit="images a core",
        least={(f"{OURS}, cached", f"{STACK}, files"): 2.0},
    )


def loader(toy: bool, options: Any) -> Cases:
    ade = "resnest_s101-d8_deeplabv3_4xb4-160k_ade20k-512x512.py"
    city = "resnest_s101-d8_deeplabv3_4xb2-80k_cityscapes-512x1024.py"
    if toy:
        yield partial(_loader_case, "toy", ade, (60, 80), 2, ".jpg")
        return
    yield partial(_loader_case, "ade20k", ade, (512, 683), 64, ".jpg")
    yield partial(_loader_case, "cityscapes", city, (1024, 2048), 16, ".png")


PARTS: dict[str, Callable[[bool, Any], Cases]] = {
    "inference": inference,
    "latency": latency,
    "training": training,
    "predictions": predictions_,
    "evaluation": evaluation,
    "loader": loader,
}
