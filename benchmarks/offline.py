# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Packs what a machine without a network needs to run the benchmarks: wheels and CamVid.

    python benchmarks/offline.py --out offline --data-root data

On that machine, in a copy of the repository that holds the folder:

    bash benchmarks/offline.sh offline OUT gpu.py --part inference --case resnest50

The folder holds wheels/ (of what requirements.txt pins, what a PyTorch image lacks), camvid/ (the
image and label files as they are; test images only with --test) and CONTENTS.txt. What is packed
runs on any Python from 3.10 of this processor; PyTorch, NumPy, OpenCV, Pillow, SciPy and Matplotlib
are the machine's own. It stops if the folder is larger than --limit.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What a usual PyTorch image lacks of what mmseg_resnest and benchmarks/ import.
LACKING = [
    "addict", "cityscapesscripts", "ftfy", "onedl-mmcv", "onedl-mmengine", "onedl-mmsegmentation",
    "platformdirs", "prettytable", "pyquaternion", "resnest", "termcolor", "wcwidth", "yapf",
]  # fmt: skip
# Compared with, not needed.
BESIDE = ("segmentation-models-pytorch==0.6.0",)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(names: list[str]) -> list[str]:
    """The pins of requirements.txt for some packages, without markers."""
    found: dict[str, str] = {}
    for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines():
        pin = line.split("#")[0].split(";")[0].strip()
        if pin:
            # Of two lines by Python's age the newer one comes first.
            found.setdefault(normal(pin.split("==")[0]), pin)
    missing = [name for name in names if normal(name) not in found]
    if missing:
        sys.exit(f"error: --add {missing[0]}: requirements.txt does not pin it")
    return [found[normal(name)] for name in names]


def fetch(wanted: list[str], folder: Path, optional: bool = False) -> list[str]:
    """Wheels of some pins; source packages are built. Pins that could not be had, if optional."""
    folder.mkdir(parents=True, exist_ok=True)
    # mmcv would compile its operators if it saw a compiler and torch.
    environment = {**os.environ, "MMCV_WITH_OPS": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    left_out = []
    for pin in wanted:
        done = subprocess.run(
            [*command, str(folder), "--no-build-isolation", pin],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode and optional:
            left_out.append(pin)
        elif done.returncode:
            words = [line for line in done.stderr.splitlines() if "ERROR" in line]
            sys.exit(f"error: {pin}: {words[-1] if words else 'pip wheel failed'}")
    for wheel in folder.glob("*.whl"):
        if not wheel.name.endswith("-none-any.whl") and "-abi3-" not in wheel.name:
            sys.exit(
                f"error: {wheel.name}: is for one version of Python; leave its package out with "
                "--have if the other machine has it"
            )
    return left_out


def copy_camvid(source: Path, folder: Path, test: bool, images: int | None) -> int:
    """Copy the splits; the number of images."""
    count = 0
    for split in ("train", "val", *(["test"] if test else [])):
        photos = sorted(path for path in (source / split).glob("*") if path.suffix != ".txt")
        if not photos:
            sys.exit(f"error: --data-root: {source / split} holds no images (data/README.md)")
        for photo in photos[:images]:
            label = source / f"{split}annot" / f"{photo.stem}.png"
            if not label.is_file():
                sys.exit(f"error: {label}: is missing, the label map of {photo}")
            for path in (photo, label):
                target = folder / path.parent.name / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
            count += 1
    return count


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("offline"), metavar="DIR")
    parser.add_argument("--data-root", type=Path, help="the folder that holds camvid/")
    parser.add_argument("--test", action="store_true", help="the 233 test images too")
    parser.add_argument("--images", type=int, help="only so many of each split")
    parser.add_argument(
        "--have", action="append", default=[], metavar="NAME", help="a package to leave out"
    )
    parser.add_argument(
        "--add", action="append", default=[], metavar="NAME", help="a package to pack as well"
    )
    parser.add_argument("--limit", type=float, default=60, help="MiB in all (default: 60)")
    args = parser.parse_args(argv)
    if args.out.exists() and not (args.out / "CONTENTS.txt").is_file() and any(args.out.iterdir()):
        parser.error(f"--out {args.out}: is not empty and was not made by this script")
    have = {normal(name) for name in args.have}
    wanted = pins([name for name in [*LACKING, *args.add] if normal(name) not in have])
    # Made beside its place, so that an interrupted packing leaves no folder that looks whole.
    args.out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{args.out.name}-", dir=args.out.parent))
    try:
        fetch(wanted, work / "wheels")
        left_out = fetch(list(BESIDE), work / "wheels", optional=True)
        count = 0
        if args.data_root is not None:
            count = copy_camvid(args.data_root / "camvid", work / "camvid", args.test, args.images)
        files = sorted(path for path in work.rglob("*") if path.is_file())
        size = sum(path.stat().st_size for path in files) / 2**20
        if size > args.limit:
            sys.exit(f"error: --limit {args.limit:g}: {size:.1f} MiB were packed")
        wheels = [path.name for path in files if path.suffix == ".whl"]
        text = "\n".join([f"{count} images of CamVid", *wheels]) + "\n"
        (work / "CONTENTS.txt").write_text(text, encoding="utf-8")
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        (work / "COMMIT").write_text(commit.stdout, encoding="utf-8")
        if args.out.exists():
            shutil.rmtree(args.out)
        work.chmod(0o755)
        work.rename(args.out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{args.out}: {len(wheels)} wheels, {count} images, {size:.1f} MiB")
    for pin in left_out:
        print(f"left out, because it could not be had: {pin}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
