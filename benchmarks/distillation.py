# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""CamVid from scratch: ResNeSt-14 alone, and taught by a larger model, at equal iterations.

    MMSEG_RESNEST_DATA=DIR python benchmarks/distillation.py
    MMSEG_RESNEST_DATA=DIR python benchmarks/distillation.py --iters 360 --teacher-iters 720

All are trained from configs/fcn_resnest14_camvid.py: the teacher, with another backbone, once;
then for each seed the student alone and taught. Nothing is chosen by a score: compared are the last
weights, on the validation images. Each run has a folder in OUT that names what it is; the same
command goes on after an interruption, and with more seeds it trains those alone. Written are
OUT/NAME.json after each run, and OUT/table.md. --toy shrinks everything, for a test.
"""

from __future__ import annotations

import json
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

from harness import ROOT, arguments, machine

from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.model import build_model
from mmseg_resnest.engine.preemption import Preempted
from mmseg_resnest.engine.training import train
from mmseg_resnest.inference import load_segmentor
from mmseg_resnest.io.atomic import atomic_write
from mmseg_resnest.models import ARCHITECTURES

LOSSES = {"channel-wise": "ChannelWiseDivergence", "kl": "KLDivergence"}


def make_config(arch: str, iterations: int, toy: bool) -> Any:
    """The recipe with a backbone, so many iterations long."""
    cfg = load_config(ROOT / "configs" / "fcn_resnest14_camvid.py")
    warm_up, poly = cfg.param_scheduler
    warm_up.end = poly.begin = max(1, min(300, iterations // 20))
    poly.end = iterations + 1
    cfg.train_cfg.update(max_iters=iterations, val_interval=max(1, -(-iterations // 3)))
    cfg.model.backbone.arch = arch
    cfg.default_hooks.checkpoint.update(
        interval=max(1, iterations // 12), max_keep_ckpts=1, save_best=None
    )
    if toy:
        shrink(cfg)
    return cfg


def shrink(cfg: Any) -> None:
    """A model and images with which some iterations take seconds."""
    cfg.model.backbone.arch = {**ARCHITECTURES["resnest14"], "base_width": 8}
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.channels = 32
    sizes = {"size": (64, 48), "crop_size": (48, 64), "base_size": 64, "scale": (64, 48)}
    for name in ("train_dataloader", "val_dataloader"):
        cfg[name].num_workers = 0
        cfg[name].dataset.indices = 2
        for step in cfg[name].dataset.pipeline:
            step.update({key: size for key, size in sizes.items() if step.get(key)})
    cfg.train_dataloader.batch_size = 2


def run(
    cfg: Any, folder: Path, seed: int, teacher: Path | None = None, losses: str = "both"
) -> dict[str, Any]:
    """Train once, or go on with it; returns what ``folder.json`` holds when it is complete."""
    result = folder.with_name(f"{folder.name}.json")
    if not result.is_file():
        if teacher is not None:
            kinds = list(LOSSES.values()) if losses == "both" else [LOSSES[losses]]
            cfg.distillation = dict(
                teacher=str(teacher / "last.pth"), losses=[dict(type=kind) for kind in kinds]
            )
        open_model = partial(load_segmentor, device="cpu")
        done = train(cfg, folder, resume="auto", seed=seed, open_model=open_model)
        record = {
            "seed": seed,
            "max_iters": cfg.train_cfg.max_iters,
            "distillation": cfg.get("distillation"),
            "parameters": sum(p.numel() for p in build_model(cfg).parameters()),
            "seconds": done["seconds"],  # of the last start, if there were several
            "history": done["history"],
            "mIoU": done["history"][-1]["mIoU"],
            "machine": machine(),
        }
        atomic_write(result, json.dumps(record, indent=1) + "\n")
    return json.loads(result.read_text(encoding="utf-8"))


def table(name: str, teacher: dict[str, Any], alone: list[Any], taught: list[Any]) -> str:
    """The figures as Markdown; ``name`` is the teacher's backbone."""
    seeds = [one["seed"] for one in alone]
    titles = ["model", "M parameters", "iterations", *(f"seed {seed}" for seed in seeds), "mean"]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]

    def row(
        title: str, run: dict[str, Any], values: list[float], mean: str, sign: str = ""
    ) -> None:
        scores = [f"{value:{sign}.2f}" for value in values]
        scores += [""] * (len(seeds) - len(values))
        about = [f"{run['parameters'] / 1e6:.1f}", f"{run['max_iters']:,}"]
        lines.append(f"| {' | '.join([title, *about, *scores, mean])} |")

    def mean(values: list[float], sign: str = "") -> str:
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):{sign}.2f}{spread}"

    row(f"teacher, {name}", teacher, [teacher["mIoU"]], "")
    scores = [[one["mIoU"] for one in runs] for runs in (alone, taught)]
    row("student alone", alone[0], scores[0], mean(scores[0]))
    row("student taught", taught[0], scores[1], mean(scores[1]))
    more = [b - a for a, b in zip(*scores, strict=True)]
    row("difference", taught[0], more, mean(more, "+"), "+")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = arguments(__doc__)
    parser.add_argument("--iters", type=int, default=180, help="of the student (default: 180)")
    parser.add_argument(
        "--teacher-iters", type=int, default=360, help="of the teacher (default: 360)"
    )
    parser.add_argument(
        "--teacher-arch", choices=("resnest26", "resnest50"), default="resnest26",
        help="backbone of the teacher (default: resnest26)",
    )  # fmt: skip
    parser.add_argument("--losses", choices=("both", *LOSSES), default="both")
    parser.add_argument("--seed", action="append", type=int, help="default: 0, 1 and 2")
    parser.add_argument(
        "--out", type=Path, default=Path("work_dirs") / "distillation", metavar="DIR"
    )
    parser.add_argument("--toy", action="store_true", help="a tiny model and two images")
    args = parser.parse_args(argv)
    for name in ("iters", "teacher_iters"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: must be at least 1")
    args.out.mkdir(parents=True, exist_ok=True)
    large = args.out / f"{'toy_' * args.toy}{args.teacher_arch}_{args.teacher_iters}"
    found: dict[str, list[Any]] = {"alone": [], "taught": []}
    try:
        teacher = run(make_config(args.teacher_arch, args.teacher_iters, args.toy), large, seed=0)
        print(f"teacher: mIoU {teacher['mIoU']:.2f}", flush=True)
        for seed in dict.fromkeys(args.seed or (0, 1, 2)):
            for kind, runs in found.items():
                cfg = make_config("resnest14", args.iters, args.toy)
                name = f"{'toy_' * args.toy}resnest14_{args.iters}_{kind}_{seed}"
                if kind == "taught":
                    folder = args.out / f"{name}_by_{large.name}_{args.losses}"
                    runs.append(run(cfg, folder, seed, large, args.losses))
                else:
                    runs.append(run(cfg, args.out / name, seed))
                print(f"seed {seed}, {kind}: mIoU {runs[-1]['mIoU']:.2f}", flush=True)
            text = table(args.teacher_arch, teacher, *found.values())
            atomic_write(args.out / "table.md", text)
    except Preempted as stopped:
        print(f"{stopped}; the same command goes on", file=sys.stderr)
        return 75
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
