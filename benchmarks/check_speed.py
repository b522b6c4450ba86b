# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""How long tools/check_data.py takes: real ADE20K samples, copied until there are many.

    python benchmarks/check_speed.py --images 20000 --data-root DIR

``DIR`` holds ``ade20k/ADEChallengeData2016`` with at least one validation sample. The copies go to
a temporary folder (about 45 KB a sample) and are removed.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmseg_resnest.datasets.check import check_data
from mmseg_resnest.engine.config import load_config

ROOT = Path(__file__).resolve().parents[1]
INSIDE = Path("ade20k", "ADEChallengeData2016")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--data-root", default=os.environ.get("MMSEG_RESNEST_DATA", "data"))
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--tmp", help="where the copies go")
    args = parser.parse_args()

    source = Path(args.data_root) / INSIDE
    images = sorted((source / "images" / "validation").glob("*.jpg"))
    if not images:
        sys.exit(f"error: {source} holds no validation image")
    with tempfile.TemporaryDirectory(dir=args.tmp) as folder:
        target = Path(folder) / INSIDE
        for kind in ("images", "annotations"):
            (target / kind / "validation").mkdir(parents=True)
        for i in range(args.images):
            image = images[i % len(images)]
            label = source / "annotations" / "validation" / f"{image.stem}.png"
            name = f"ADE_val_{i:08d}"
            shutil.copyfile(image, target / "images" / "validation" / f"{name}.jpg")
            shutil.copyfile(label, target / "annotations" / "validation" / f"{name}.png")
        cfg = load_config(ROOT / "configs" / "fcn_resnest50_ade20k.py", data_root=folder)
        report = check_data(cfg, ["val"], args.workers, ignore=["class_never"])
    found = {rule: len(problems) for rule, problems in report.by_rule.items()}
    sizes = ", ".join(f"{n:,} of {w}x{h}" for (w, h), n in report.sizes("val").most_common(3))
    print(
        f"{args.images:,} images ({sizes}): {report.seconds:.1f} s, "
        f"{args.images / report.seconds:.0f} images/s, {report.workers} processes, "
        f"{platform.processor() or platform.machine()}; found {found}"
    )
    copies = args.images - len(images)
    assert found == ({"duplicate_image": copies} if copies else {}), found


if __name__ == "__main__":
    main()
