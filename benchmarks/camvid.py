# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""CamVid from scratch on a CPU: mIoU for the time, under this package's recipe and under others.

    MMSEG_RESNEST_DATA=DIR python benchmarks/camvid.py RECIPE --iterations N [--seed S]
    python benchmarks/camvid.py --table

RECIPE is one of
    resnest14, resnest26, resnest50, resnet50
            configs/fcn_resnest14_camvid.py, and it with other backbones; with --teacher RUN, the
            folder of another run, taught by that
    MMSegmentation
            its FCN with ResNeSt-50 at output stride 8, its augmentation (scaled by 0.5 to 2,
            mirrored, recoloured, crops of 360x480), two crops, SGD with a rate of 0.01, poly
    segmentation_models_pytorch
            its U-Net with ResNet-34, eight crops of 320x320 of the same augmentation; Dice loss,
            Adam with a rate of 0.0002 and a cosine to 0.00001, as in its CamVid example; needs the
            environment of benchmarks/peers.sh

All start from random weights. A run has a folder OUT/NAME and writes OUT/NAME.json: mIoU on the 101
validation images after each third. Nothing is chosen by a score. --seconds measures an iteration
instead, on a machine that does nothing else, for the minutes of the table. After an interruption
the same command goes on. Written by --table are OUT/camvid.md and OUT/camvid.png. --toy shrinks
model and images, for a test.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import mmseg
import torch
from harness import ROOT, arguments, machine
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.datasets import BaseSegDataset
from models import training_steps

from mmseg_resnest.datasets import CamVidDataset
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.model import build_model
from mmseg_resnest.engine.preemption import Preempted
from mmseg_resnest.engine.training import train
from mmseg_resnest.evaluation import read_scalars
from mmseg_resnest.inference import load_segmentor
from mmseg_resnest.io.atomic import atomic_write
from mmseg_resnest.models import ARCHITECTURES
from mmseg_resnest.registry import DATASETS, MODELS

SMP = "segmentation_models_pytorch"
OWN, PEERS = ("resnest14", "resnest26", "resnest50", "resnet50"), ("MMSegmentation", SMP)
BASELINES = {"resnest50": "resnet50"}  # whose difference is shown
SEEDS = 3
STUDENT_T = 4.303  # two-sided 95 % of the differences of three seeds


class Clock(Hook):
    """Keeps the mIoU of each validation, and the seconds of each iteration."""

    priority = "LOWEST"

    seconds: list[float]
    curve: list[dict[str, float]]

    def before_train(self, runner: Any) -> None:
        """Start, or go on: a checkpoint is written before the validation of its iteration."""
        hub = runner.message_hub
        self.seconds, self.curve = hub.get_info("clock", ([], []))
        hub.update_info("clock", (self.seconds, self.curve))  # is kept in checkpoints
        loop = runner.train_loop
        if runner.iter and (runner.iter % loop.val_interval == 0 or runner.iter == loop.max_iters):
            runner.val_loop.run()
        self.started = time.perf_counter()

    def after_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        """Count an iteration, with the wait for its images."""
        now = time.perf_counter()
        self.seconds.append(now - self.started)
        self.started = now

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Add a score; the time of the validation does not count."""
        self.curve.append({"iteration": runner.iter, "mIoU": float((metrics or {})["mIoU"])})
        self.started = time.perf_counter()


@DATASETS.register_module()
class StockCamVid(BaseSegDataset):
    """MMSegmentation's data set of files; class 11, void, is ignored."""

    METAINFO = CamVidDataset.METAINFO

    @classmethod
    def get_label_map(cls, new_classes: Any = None) -> dict[int, int]:
        """Of void."""
        return {len(cls.METAINFO["classes"]): 255}


@MODELS.register_module()
class SmpUnet(BaseModel):
    """The package's U-Net with its defaults, behind MMEngine's interface."""

    def __init__(self, data_preprocessor: Any, classes: int) -> None:
        super().__init__(data_preprocessor)
        package = importlib.import_module(SMP)
        self.net = package.Unet(encoder_weights=None, classes=classes)
        self.dice = package.losses.DiceLoss("multiclass", ignore_index=255)

    def forward(self, inputs: Any, data_samples: Any, mode: str = "tensor") -> Any:
        """The loss, or the samples with their labels."""
        scores = self.net(inputs)
        if mode == "loss":
            labels = torch.cat([one.gt_sem_seg.data for one in data_samples])
            return {"loss": self.dice(scores, labels)}
        for one, image in zip(data_samples, scores, strict=True):
            height, width = one.ori_shape
            labels = image.argmax(0, keepdim=True)[:, :height, :width]  # without the padding
            one.pred_sem_seg = PixelData(data=labels)
        return data_samples


def stock(recipe: str, iterations: int) -> Config:
    """A config for MMEngine's runner: MMSegmentation's model or the U-Net."""
    base = Path(mmseg.__file__).parent / ".mim" / "configs" / "_base_"
    model = Config.fromfile(base / "models" / "fcn_r50-d8.py").model
    data = Path(os.environ["MMSEG_RESNEST_DATA"], "camvid")
    classes = len(StockCamVid.METAINFO["classes"])
    optimizer = dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=0.0005)
    schedule = dict(type="PolyLR", eta_min=1e-4, power=0.9, end=iterations, by_epoch=False)
    batch, crop, width = 2, (360, 480), 480
    if recipe == SMP:
        batch, crop = 8, (320, 320)
        images = dict(model.data_preprocessor, size=crop, test_cfg=dict(size_divisor=32))
        model = dict(type="mmseg_resnest.SmpUnet", data_preprocessor=images, classes=classes)
        optimizer = dict(type="Adam", lr=2e-4)
        schedule = dict(type="CosineAnnealingLR", T_max=iterations, eta_min=1e-5, by_epoch=False)
    else:
        norm = dict(type="BN", requires_grad=True)
        model.update(pretrained=None)
        model.data_preprocessor.size = crop
        model.backbone.update(
            type="ResNeSt", stem_channels=64, radix=2, reduction_factor=4, avg_down_stride=True,
            norm_cfg=norm,
        )  # fmt: skip
        for head in (model.decode_head, model.auxiliary_head):
            head.update(num_classes=classes, norm_cfg=norm)

    def loader(part: str, steps: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        prefix = dict(img_path=part, seg_map_path=f"{part}annot")
        images = dict(type="mmseg_resnest.StockCamVid", data_prefix=prefix, data_root=str(data))
        suffix = next((data / part).iterdir()).suffix
        images.update(img_suffix=suffix, seg_map_suffix=".png", pipeline=steps)
        return dict(num_workers=2, persistent_workers=True, dataset=images, **options)

    checkpoint = dict(type="CheckpointHook", by_epoch=False, max_keep_ckpts=1, save_last=False)
    shown = [dict(type=f"Load{what}") for what in ("ImageFromFile", "Annotations")]
    endless = dict(type="InfiniteSampler", shuffle=True)
    each = dict(type="DefaultSampler", shuffle=False)
    return Config(
        dict(
            default_scope="mmseg",
            model=model,
            train_dataloader=loader(
                "train", training_steps((width, 360), crop), sampler=endless, batch_size=batch
            ),
            val_dataloader=loader(
                "val", [*shown, dict(type="PackSegInputs")], sampler=each, batch_size=1
            ),
            optim_wrapper=dict(type="OptimWrapper", optimizer=optimizer),
            param_scheduler=[schedule],
            train_cfg=dict(type="IterBasedTrainLoop", max_iters=iterations),
            val_cfg=dict(type="ValLoop"),
            val_evaluator=dict(type="IoUMetric", iou_metrics=["mIoU"]),
            default_hooks=dict(checkpoint=dict(checkpoint, interval=max(1, iterations // 9))),
            custom_hooks=[],
        )
    )


def ours(recipe: str, iterations: int, teacher: Path | None = None) -> Config:
    """The package's config, with another backbone or a teacher."""
    cfg = load_config(ROOT / "configs" / "fcn_resnest14_camvid.py")
    warm_up, poly = cfg.param_scheduler
    warm_up.end = poly.begin = max(1, iterations // 20)
    poly.end = iterations + 1
    cfg.train_cfg.max_iters = iterations
    every = max(1, iterations // 12)
    cfg.default_hooks.checkpoint.update(interval=every, max_keep_ckpts=1, save_best=None)
    if recipe == "resnet50":
        stock = load_config(ROOT / "configs" / "deeplabv3plus_resnet50_camvid.py").model.backbone
        cfg.model.backbone = dict(stock, strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1))
    else:
        cfg.model.backbone.arch = recipe
    if teacher is not None:
        losses = [dict(type=kind) for kind in ("ChannelWiseDivergence", "KLDivergence")]
        cfg.distillation = dict(teacher=str(teacher / "last.pth"), losses=losses)
    return cfg


def shrink(cfg: Any) -> None:
    """A model and images with which some iterations take seconds."""
    if "arch" in cfg.model.backbone:
        cfg.model.backbone.arch = {**ARCHITECTURES["resnest14"], "base_width": 8}
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.channels = 32
    sizes = {"size": (64, 48), "crop_size": (48, 64), "base_size": 64, "scale": (64, 48)}
    for name in ("train_dataloader", "val_dataloader"):
        cfg[name].update(num_workers=0, persistent_workers=False)
        cfg[name].dataset.indices = 2
        for step in cfg[name].dataset.pipeline:
            step.update({key: size for key, size in sizes.items() if step.get(key)})
    cfg.train_dataloader.batch_size = 2


def run(args: argparse.Namespace) -> None:
    """Train once, or go on with it, and write the file of the run."""
    own = args.recipe not in PEERS
    if own:
        cfg = ours(args.recipe, args.iterations, args.teacher)
    else:
        cfg = stock(args.recipe, args.iterations)
    if args.toy:
        shrink(cfg)
    cfg.train_cfg.val_interval = -(-args.iterations // 3)
    if args.seconds:
        cfg.default_hooks.checkpoint.interval = -1  # iterations with a checkpoint are not timed
        if own:
            cfg.log_processor.window_size = 1  # nor those behind a validation, by the median
        else:
            cfg.train_cfg.val_begin = args.iterations + 1  # a validation takes minutes
    name = f"{args.recipe}{'_taught' * bool(args.teacher)}_{args.iterations}_"
    name += "seconds" if args.seconds else str(args.seed)
    file = args.out / f"{name}.json"
    if file.is_file():
        return
    folder = args.out / name
    if own:
        cfg.default_hooks.logger.interval = 1 if args.seconds else min(20, args.iterations)
        open_model = partial(load_segmentor, device="cpu")
        done = train(cfg, folder, resume="auto", seed=args.seed, open_model=open_model)
        seconds = [*read_scalars(folder, done["run_id"])["time"].values]
        curve = [{key: row[key] for key in ("iteration", "mIoU")} for row in done["history"]]
        model = build_model(cfg)
    else:
        clock = Clock()
        cfg.update(work_dir=str(folder), randomness=dict(seed=args.seed), resume=True)
        runner = Runner.from_cfg(cfg)
        runner.register_hook(clock)
        runner.train()
        seconds, curve, model = clock.seconds, clock.curve, runner.model
    result = {
        "recipe": name.rsplit("_", 2)[0],
        "iterations": args.iterations,
        "seed": args.seed,
        "parameters": sum(one.numel() for one in model.parameters()),
        # The first iterations load code and wait for the loader.
        "seconds": statistics.median(seconds[len(seconds) // 3 :]),
        "curve": curve,
        "machine": machine(),
    }
    atomic_write(file, json.dumps(result, indent=1) + "\n")


Runs = dict[tuple[str, int], list[dict[str, Any]]]


def read(out: Path) -> Runs:
    """The runs of each recipe and length, by seed."""
    runs: Runs = {}
    for file in sorted(out.glob("*_[0-9].json")):
        one = json.loads(file.read_text())
        runs.setdefault((one["recipe"], one["iterations"]), []).append(one)
    for file in out.glob("*_seconds.json"):
        timed = json.loads(file.read_text())
        for (recipe, _), some in runs.items():
            for row in (row for one in some for row in one["curve"] if recipe == timed["recipe"]):
                row["minutes"] = row["iteration"] * timed["seconds"] / 60
    return runs


def table(runs: Runs) -> str:
    """Markdown: mIoU of the seeds at each validation, and what pairs of recipes differ by."""
    titles = ("recipe", "M parameters", "iterations", "minutes", "seeds", "mean")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for (recipe, _), some in runs.items():
        for rows in zip(*(one["curve"] for one in some), strict=True):
            scores = [row["mIoU"] for row in rows]
            each = ", ".join(f"{score:.2f}" for score in scores)
            minutes = f"{rows[0]['minutes']:.1f}" if "minutes" in rows[0] else ""
            cells = [recipe, f"{some[0]['parameters'] / 1e6:.1f}", f"{rows[0]['iteration']:,}"]
            cells += [minutes, each, f"{statistics.mean(scores):.2f}"]
            lines.append(f"| {' | '.join(cells)} |")
    for (recipe, count), some in runs.items():
        other = runs.get((BASELINES.get(recipe, recipe.removesuffix("_taught")), count), some)
        ends = [{one["seed"]: one["curve"][-1]["mIoU"] for one in each} for each in (some, other)]
        if other is not some and ends[0].keys() == ends[1].keys() and len(ends[0]) == SEEDS:
            more = [score - ends[1][seed] for seed, score in ends[0].items()]
            mean, half = statistics.mean(more), STUDENT_T * statistics.stdev(more) / SEEDS**0.5
            each = ", ".join(f"{one:+.2f}" for one in more)
            lines += [
                "",
                f"{recipe} less {other[0]['recipe']}, {count} iterations: {each}; mean {mean:+.2f}"
                f", 95 % interval {mean - half:+.2f} to {mean + half:+.2f} (Student's t, paired).",
            ]
    return "\n".join(lines) + "\n"


def draw(runs: Runs, file: Path) -> None:
    """Scores over minutes: the mean of the seeds, and their range."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="minutes of training", ylabel="mIoU, 101 validation images")
    for (recipe, _), some in runs.items():
        rows = list(zip(*(one["curve"] for one in some), strict=True))
        if "minutes" not in rows[0][0]:
            continue
        minutes = [row[0]["minutes"] for row in rows]
        scores = [[one["mIoU"] for one in row] for row in rows]
        (line,) = axes.plot(minutes, [*map(statistics.mean, scores)], marker="o", label=recipe)
        low, high = [*map(min, scores)], [*map(max, scores)]
        axes.fill_between(minutes, low, high, color=line.get_color(), alpha=0.2)
    if axes.lines:
        figure.legend(loc="outside upper center", ncols=3)
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)


def main(argv: list[str] | None = None) -> int:
    parser = arguments(__doc__)
    parser.add_argument("recipe", choices=(*OWN, *PEERS), nargs="?")
    parser.add_argument("--iterations", type=int, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--teacher", type=Path, metavar="RUN")
    parser.add_argument("--seconds", action="store_true", help="measure an iteration")
    parser.add_argument("--table", action="store_true", help="of the runs that are there")
    parser.add_argument("--toy", action="store_true", help="a tiny model and two images")
    parser.add_argument("--out", type=Path, default=Path("work_dirs") / "camvid", metavar="DIR")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.recipe:
        if args.iterations is None or args.iterations < 1:
            parser.error("--iterations: must be at least 1")
        try:
            run(args)
        except Preempted as stopped:
            print(f"{stopped}; the same command goes on", file=sys.stderr)
            return 75
    if args.table:
        runs = read(args.out)
        atomic_write(args.out / "camvid.md", table(runs))
        draw(runs, args.out / "camvid.png")
        print(table(runs), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
