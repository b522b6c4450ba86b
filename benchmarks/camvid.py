# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""CamVid from scratch: train a recipe, evaluate its best weights, and write what came out.

    MMSEG_RESNEST_DATA=DIR python benchmarks/camvid.py --recipe resnest50 --seed 0 --seed 1
    MMSEG_RESNEST_DATA=DIR python benchmarks/camvid.py --recipe resnet50 --iterations 6000

The recipes differ in the backbone alone (configs/deeplabv3plus_RECIPE_camvid.py). The weights with
the best validation are evaluated on the validation images and, where they are in the data folder,
on the 233 test images, single-scale and multi-scale; nothing is chosen by the test images. Written
is OUT/RECIPE-SEED.json at the end of each run. --toy shortens and shrinks everything, for a CPU.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from harness import ROOT, arguments, machine

from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.testing import evaluate
from mmseg_resnest.engine.training import train
from mmseg_resnest.io.atomic import atomic_write
from mmseg_resnest.models import ARCHITECTURES

RECIPES = ("resnest50", "resnet50")
VALIDATIONS = 12


def make_config(recipe: str, iterations: int | None, toy: bool) -> Any:
    """The config of a recipe, so many iterations long (None: as it says)."""
    cfg = load_config(ROOT / "configs" / f"deeplabv3plus_{recipe}_camvid.py")
    if iterations is not None:
        set_length(cfg, iterations, VALIDATIONS)
    cfg.default_hooks.checkpoint.update(save_best="mIoU", interval=cfg.train_cfg.max_iters)
    if toy:
        shrink(cfg, recipe)
    return cfg


def set_length(cfg: Any, iterations: int, validations: int) -> None:
    """Let a run of a config with warm-up and poly have so many iterations and validations."""
    warm_up, poly = cfg.param_scheduler
    warm_up.end = poly.begin = max(1, min(300, iterations // 20))
    poly.end = iterations + 1
    cfg.train_cfg.update(max_iters=iterations, val_interval=max(1, -(-iterations // validations)))


def shrink(cfg: Any, recipe: str) -> None:
    """A model and images with which some iterations take seconds on a CPU."""
    heads = cfg.model.decode_head, cfg.model.auxiliary_head
    if recipe == "resnest50":
        cfg.model.backbone.arch = {**ARCHITECTURES["resnest14"], "base_width": 8}
    else:
        cfg.model.backbone.base_channels = 8
        heads[0].update(in_channels=256, c1_in_channels=32)
        heads[1].in_channels = 128
    for head in heads:
        head.channels = 32
    if not torch.cuda.is_available():
        cfg.optim_wrapper.type = "OptimWrapper"  # a CPU's bfloat16 is slow
    sizes = {"size": (64, 48), "crop_size": (48, 64), "base_size": 64, "scale": (64, 48)}
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        cfg[name].num_workers = 0
        cfg[name].dataset.indices = 2
        for step in cfg[name].dataset.pipeline:
            step.update({key: size for key, size in sizes.items() if step.get(key)})
    cfg.train_dataloader.batch_size = 2
    cfg.tta_model.update(base_size=64, crop_size=64, scales=(0.75, 1.0))


def run(recipe: str, seed: int, iterations: int | None, toy: bool) -> dict[str, Any]:
    """Train and evaluate once."""
    cfg = make_config(recipe, iterations, toy)
    record: dict[str, Any] = {
        "recipe": recipe, "seed": seed, "max_iters": cfg.train_cfg.max_iters, "toy": toy,
        "machine": machine(), "evaluations": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="camvid-") as folder:
        trained = train(cfg, Path(folder) / "run", seed=seed)
        record |= {"seconds": trained["seconds"], "history": trained.get("history", [])}
        best = next((Path(folder) / "run").glob("best_mIoU_iter_*.pth"))
        record["best_iteration"] = int(best.stem.rsplit("_", 1)[1])
        splits = {"validation": ("val", "valannot"), "test": ("test", "testannot")}
        root = Path(cfg.test_dataloader.dataset.data_root)
        for split, (images, labels) in splits.items():
            if not ((root / images).is_dir() and (root / labels).is_dir()):
                continue
            one = copy.deepcopy(cfg)
            one.test_dataloader.dataset.data_prefix = {"img_path": images, "seg_map_path": labels}
            one.custom_hooks = []  # the best weights are the averaged ones
            for name, tta in (("single-scale", False), ("multi-scale", True)):
                scores = evaluate(one, best, Path(folder) / f"{split}-{name}", tta)
                record["evaluations"][f"{split}, {name}"] = {
                    key: scores[key] for key in ("mIoU", "mAcc", "pixAcc", "classes", "images")
                }
    return record


def main(argv: list[str] | None = None) -> int:
    parser = arguments(__doc__)
    parser.add_argument("--recipe", action="append", choices=RECIPES, help="default: resnest50")
    parser.add_argument("--seed", action="append", type=int, help="default: 0")
    parser.add_argument("--iterations", type=int, help="default: the config's")
    parser.add_argument("--out", type=Path, default=Path("work_dirs") / "camvid", metavar="DIR")
    parser.add_argument("--toy", action="store_true", help="4 iterations of a tiny model")
    args = parser.parse_args(argv)
    if args.iterations is not None and args.iterations < 1:
        parser.error(f"--iterations {args.iterations}: must be at least 1")
    args.out.mkdir(parents=True, exist_ok=True)
    for recipe in args.recipe or ["resnest50"]:
        for seed in args.seed or [0]:
            record = run(recipe, seed, 4 if args.toy else args.iterations, args.toy)
            atomic_write(args.out / f"{recipe}-{seed}.json", json.dumps(record, indent=1) + "\n")
            scores = ", ".join(f"{k} {v['mIoU']:.2f}" for k, v in record["evaluations"].items())
            print(f"{recipe}, seed {seed}: {record['seconds']:.0f} s, mIoU: {scores}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
