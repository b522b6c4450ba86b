# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Peak memory of the published multi-scale evaluation of one large image on a CPU.

    python benchmarks/evaluation_memory.py
    python benchmarks/evaluation_memory.py --arch resnest14 --windows 1

Each row is a process of its own that builds a published config's model with random weights and
labels one random image: with the largest scale alone, with all scales, and with several windows in
a batch. The peak is the process's high-water mark, Python and torch included.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def measure(
    config: str, arch: str, size: list[int], scales: list[float], windows: int
) -> dict[str, float]:
    """Peak memory in GiB, of it before the image, and seconds, in this process."""
    import torch
    from mmengine.registry import init_default_scope
    from mmseg.structures import SegDataSample

    from mmseg_resnest.engine.config import load_config
    from mmseg_resnest.registry import MODELS

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    init_default_scope("mmseg_resnest")
    cfg = load_config(ROOT / "configs" / f"{config}.py")
    cfg.model.backbone.update(arch=arch, init_cfg=None)
    settings = dict(cfg.tta_model, scales=tuple(scales), window_batch_size=windows)
    model = MODELS.build({**settings, "module": cfg.model}).eval()
    width, height = size
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    sample = SegDataSample(metainfo=dict(ori_shape=(height, width), img_shape=(height, width)))
    before, start = peak(), time.monotonic()
    with torch.no_grad():
        (result,) = model.test_step({"inputs": [image], "data_samples": [sample]})
    assert result.pred_sem_seg.data.shape == (1, height, width)
    return {"peak": peak(), "before": before, "seconds": time.monotonic() - start}


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="fcn_resnest50_ade20k", help="a published config")
    parser.add_argument("--arch", default="resnest50", help="in place of the config's backbone")
    parser.add_argument("--size", type=int, nargs=2, default=(2048, 1024), metavar=("W", "H"))
    parser.add_argument("--windows", type=int, nargs="+", default=[1, 4], help="windows in a batch")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(**json.loads(args.measure))))
        return
    print("| scales | windows in a batch | peak GiB | before the image GiB | seconds |")
    print("|---|---:|---:|---:|---:|")
    rows = [(SCALES[-1:], args.windows[0]), *((SCALES, windows) for windows in args.windows)]
    for scales, windows in rows:
        job = dict(
            config=args.config, arch=args.arch, size=args.size, scales=scales, windows=windows
        )
        command = [sys.executable, "-W", "ignore", __file__, "--measure", json.dumps(job)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"| {', '.join(map(str, scales))} | {windows} | {found['peak']:.2f} | "
            f"{found['before']:.2f} | {found['seconds']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
