# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The loss of a training run's first iterations, of MMSegmentation and of this package.

    MMSEG_RESNEST_DATA=DIR python benchmarks/loss_curve.py [--iterations 200] [--seeds 5]

A small ResNeSt under DeepLabV3 at output stride 8 learns CamVid's images (DIR/camvid) with
MMSegmentation's augmentation. One variant is the stack's network, transforms and loss, the other
this package's as in a long run of tools/train.py. Runs of the same seed have the same weights, and
the same images and random numbers in the same order, so that they differ by rounding and by what
the variants compute differently. Runs of two seeds differ by chance, the noise that the difference
is compared with. Written are OUT/loss_curve.json and OUT/loss_curve.md.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import arguments, machine
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from models import deeplabv3, our_backbone, stock_backbone, training_steps
from numpy.typing import NDArray
from tqdm import tqdm

from mmseg_resnest.datasets import merge_steps
from mmseg_resnest.io.atomic import atomic_write
from mmseg_resnest.io.memory import keep_freed_memory
from mmseg_resnest.models import ARCHITECTURES, use_channels_last
from mmseg_resnest.registry import DATASETS, MODELS
from mmseg_resnest.weights import convert_state_dict

FOLDER = Path(__file__).resolve().parent
CROP, BATCH, CLASSES, WINDOW = (96, 128), 4, 11, 20
VARIANTS = ("MMSegmentation", "mmseg-resnest")
# Half the channels of ResNeSt-14; the stack has a width for more than one group only.
COLUMNS = {**ARCHITECTURES["resnest14"], "groups": 2, "base_width": 16, "stem_width": 16}


def make_model(variant: str, seed: int) -> Any:
    """The same weights for both variants."""

    def build(backbone: dict[str, Any], kind: str) -> Any:
        cfg = deeplabv3(backbone, kind, channels=64)
        cfg.data_preprocessor.size = CROP
        cfg.decode_head.num_classes = CLASSES
        return MODELS.build(cfg)

    init_default_scope("mmseg_resnest")
    torch.manual_seed(seed)
    stock = build(stock_backbone(COLUMNS, 14), "mmseg.EncoderDecoder")
    stock.init_weights()
    if variant == "MMSegmentation":
        return stock.train()
    model = build(our_backbone(COLUMNS), "mmseg_resnest.EncoderDecoder")
    model.load_state_dict(convert_state_dict(stock.state_dict()))
    use_channels_last(model)
    return model.train()


def make_data(variant: str, root: Path) -> Any:
    """CamVid's training images in one of the two pipelines."""
    steps = training_steps((240, 180), CROP)
    if variant == "MMSegmentation":
        for step in steps:
            step["type"] = f"mmseg.{step['type']}"
    else:
        steps = merge_steps(steps)
    cfg = dict(type="CamVidDataset", data_root=str(root / "camvid"), pipeline=steps)
    prefix = dict(img_path="train", seg_map_path="trainannot")
    return DATASETS.build(dict(cfg, data_prefix=prefix))


def curve(variant: str, seed: int, iterations: int, root: Path, bar: Any) -> list[float]:
    """The loss of each iteration."""
    model, data = make_model(variant, seed), make_data(variant, root)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    order = np.random.default_rng(seed)
    losses = []
    for i in range(iterations):
        share = min((i + 1) / 20, 1.0) * (1 - i / (iterations + 1)) ** 0.9
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * share
        samples = []
        for j, index in enumerate(order.choice(len(data), BATCH, replace=False)):
            np.random.seed(1_000_000 * seed + BATCH * i + j)
            random.seed(1_000_000 * seed + BATCH * i + j)
            samples.append(data[int(index)])
        batch = model.data_preprocessor(pseudo_collate(samples), True)
        torch.manual_seed(1_000_000 * seed + i)  # dropout
        terms = model(**batch, mode="loss")
        loss = sum(value for name, value in terms.items() if "loss" in name)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        bar.update()
    return losses


def compare(curves: NDArray[np.float64]) -> dict[str, Any]:
    """Compares the variants with the noise of the seeds; curves (2 variants, seeds, iterations).

    Returns:
        For windows of iterations the mean loss of each variant, the root mean square difference of
        two runs of one seed and of two runs of different seeds, the difference of the means and its
        standard error; ``paired``: over all iterations, the mean difference of the runs of a seed
        and its standard error.
    """
    variants, seeds, iterations = curves.shape
    windows = curves[:, :, : iterations // WINDOW * WINDOW]
    means = windows.reshape(variants, seeds, -1, WINDOW).mean(3)
    spread = means.std(1, ddof=1)  # (variants, windows)
    pairs = (curves[1] - curves[0]).mean(1)  # (seeds,)
    return {
        "window": WINDOW,
        "means": means.mean(1).tolist(),
        "same_seed": np.sqrt(((means[0] - means[1]) ** 2).mean(0)).tolist(),
        # The mean square difference of two draws is twice their variance.
        "other_seed": np.sqrt(2 * (spread**2).mean(0)).tolist(),
        "difference": (means[1].mean(0) - means[0].mean(0)).tolist(),
        "standard_error": np.sqrt((spread**2).sum(0) / seeds).tolist(),
        "paired": [float(pairs.mean()), float(pairs.std(ddof=1) / np.sqrt(seeds))],
    }


def markdown(result: dict[str, Any]) -> str:
    found = result["comparison"]
    lines = [
        f"| iterations | {' | '.join(result['variants'])} | difference of the means "
        "| standard error | two runs of one seed | two runs of different seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    keys = ("difference", "standard_error", "same_seed", "other_seed")
    for i, row in enumerate(zip(*found["means"], *(found[key] for key in keys), strict=True)):
        first = i * found["window"]
        cells = [
            f"{value:+.4f}" if j == len(VARIANTS) else f"{value:.4f}" for j, value in enumerate(row)
        ]
        lines.append(f"| {first + 1} to {first + found['window']} | {' | '.join(cells)} |")
    versions = ", ".join(" ".join(pair) for pair in result["machine"]["versions"].items())
    lines += [
        "",
        f"{result['seeds']} seeds; mean loss of {found['window']} iterations; the last two columns "
        "are root mean square differences. Over all iterations the runs of a seed differ by "
        f"{found['paired'][0]:+.4f}, with a standard error of {found['paired'][1]:.4f}. "
        f"{result['machine']['cpu']}, {versions}, commit {result['machine']['commit'][:12]}.",
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = arguments(__doc__)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=FOLDER / "results" / "curves", metavar="DIR")
    args = parser.parse_args(argv)
    if args.seeds < 2:
        parser.error(f"--seeds {args.seeds}: must be at least 2, which show the noise")
    if args.iterations < WINDOW:
        parser.error(f"--iterations {args.iterations}: must be at least {WINDOW}")
    root = Path(os.environ.get("MMSEG_RESNEST_DATA", ""))
    if not (root / "camvid" / "trainannot").is_dir():
        parser.error("MMSEG_RESNEST_DATA: must name a folder that holds camvid/ (data/README.md)")
    keep_freed_memory()
    curves = np.empty((2, args.seeds, args.iterations))
    with tqdm(total=curves.size, unit="it") as bar:
        for seed in range(args.seeds):
            for i, variant in enumerate(VARIANTS):
                curves[i, seed] = curve(variant, seed, args.iterations, root, bar)
    result = {
        "variants": VARIANTS,
        "seeds": args.seeds,
        "iterations": args.iterations,
        "comparison": compare(curves),
        "curves": np.round(curves, 5).tolist(),
        "machine": machine(),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    atomic_write(args.out / "loss_curve.json", json.dumps(result) + "\n")
    atomic_write(args.out / "loss_curve.md", markdown(result))
    print(markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
