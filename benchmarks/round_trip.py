# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""docs/custom_data.md done on all of CamVid: each form and back, every pixel compared.

    python benchmarks/round_trip.py data/camvid

Runs the tutorial's commands on the training and validation images of the folder, in a temporary
folder, for each form. Exit code 0: no pixel changed (void comes back as 255), 1: some did.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SPLITS = ("train", "val")
VOID, IGNORED = 11, 255
# The form to export, and what `custom` then reads of each split's folder.
FORMS: dict[str, dict[str, str]] = {
    "index": {},
    "labelme": {"source": ""},
    "coco": {"source": "annotations.json"},
    "coco-rle": {"source": "annotations.json"},
    "coco-rle-list": {"source": "annotations.json"},
    "colour": {"source": "masks", "images": "images"},
}


def class_list() -> str:
    """The tutorial's class list, from its text."""
    text = (ROOT / "docs" / "custom_data.md").read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    start = next(i for i, line in enumerate(lines) if line.startswith("Sky "))
    end = next(i for i, line in enumerate(lines) if line.startswith("__ignore__"))
    return "\n".join(lines[start : end + 1]) + "\n"


def tool(*args: object) -> None:
    command = [sys.executable, str(ROOT / "tools" / "prepare_data.py"), *map(str, args)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(f"{' '.join(command)}\n{run.stdout}{run.stderr}")


def there_and_back(form: str, camvid: Path, work: Path, classes: Path) -> Path:
    """Exports CamVid in a form and prepares it from that; returns the folder of the label maps."""
    sources: list[object] = []
    for split, option in zip(SPLITS, ("", "val-"), strict=True):
        images, labels = camvid / split, camvid / f"{split}annot"
        parts = {"source": labels, "images": images}
        if form != "index":
            out = work / form / split
            tool("export", "--format", form, "--classes", classes, "--images", images,
                 "--labels", labels, "--out", out)  # fmt: skip
            parts = {key: out / name for key, name in FORMS[form].items()}
        for key, path in parts.items():
            sources += [f"--{option}{key}", path]
    tool("custom", "--name", "mine", "--format", form.split("-")[0], "--classes", classes,
         "--root", work / form / "data", "--config-dir", work / form, *sources)  # fmt: skip
    return work / form / "data" / "mine" / "annotations"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("camvid", type=Path, help="CamVid's folder, see data/README.md")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS, help="default: all")
    args = parser.parse_args()
    camvid = args.camvid.resolve()
    files = [file for split in SPLITS for file in sorted((camvid / f"{split}annot").glob("*.png"))]
    if not files:
        sys.exit(f"error: {camvid} holds no label maps; see data/README.md")
    wrong = 0
    print(f"{'form':<14} {'maps':>5} {'pixels':>12} {'changed':>8} {'seconds':>8}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        classes = Path(folder, "camvid_classes.txt")
        classes.write_text(class_list(), encoding="utf-8")
        for form in args.forms:
            start = time.monotonic()
            made = there_and_back(form, camvid, Path(folder), classes)
            seconds = time.monotonic() - start
            pixels = changed = 0
            for file in files:
                before = np.asarray(Image.open(file))
                after = np.asarray(Image.open(made / file.name))
                pixels += before.size
                changed += int((np.where(before == VOID, IGNORED, before) != after).sum())
            print(f"{form:<14} {len(files):>5} {pixels:>12,} {changed:>8,} {seconds:>8.1f}",
                  flush=True)  # fmt: skip
            wrong += changed
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
