# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The result of a check as one HTML page."""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...io.atomic import atomic_write
from ...io.bit_planes import index_sets
from ...io.image_files import data_uri
from ...io.text import printable
from ..transforms.multilabel import label_bits
from .labels import class_counts
from .parts import Part
from .plan import load
from .report import DataReport
from .rules import RULES
from .sample import SampleFacts

# (image, label, palette) -> the image with the label's colours on it
Draw = Callable[[Any, Any, Sequence[Sequence[int]]], NDArray[np.uint8]]

_THUMBNAIL = 240  # pixels, the long edge of a sample on the page


def write_report(
    report: DataReport,
    path: str | os.PathLike[str],
    title: str,
    draw: Draw,
    samples: int = 24,
) -> None:
    """Write one HTML page that needs no other file, atomically.

    It shows the problems, how frequent each class is, the image sizes and ``samples`` labelled
    samples; ``draw`` lays a label map's colours over an image.

    Raises:
        UserError: The page cannot be written.
    """
    page = _PAGE.format(
        title=html.escape(title),
        problems=_problem_list(report),
        classes=_class_bars(report),
        sizes=_size_plot(report),
        samples=_contact_sheet(report, draw, samples),
    )
    atomic_write(path, page)


def _problem_list(report: DataReport, limit: int = 200) -> str:
    if not report.problems:
        return "<p>No problem found.</p>"
    blocks = []
    for rule, problems in report.by_rule.items():
        rows = "".join(
            "<tr>"
            + "".join(
                f"<td>{html.escape(printable(text))}</td>"
                for text in (p.split, p.file, p.what, p.remedy)
            )
            + "</tr>"
            for p in problems[:limit]
        )
        more = f"<p>... and {len(problems) - limit:,} more</p>" if len(problems) > limit else ""
        blocks.append(
            f"<details{' open' if len(problems) <= 5 else ''}>"
            f"<summary class={problems[0].severity}>"
            f"{html.escape(RULES[rule].title)}: {len(problems):,}</summary>"
            f"<p>{html.escape(RULES[rule].effect)}</p><table><tr><th>split</th>"
            "<th>file</th><th>problem</th><th>what to do</th></tr>"
            f"{rows}</table>{more}</details>"
        )
    return "\n".join(blocks)


def _class_bars(report: DataReport) -> str:
    blocks = []
    for split, entry in report.class_table().items():
        pixels, files = entry["pixels"], entry["files"]
        total = int(pixels.sum())
        if not total:
            continue
        if any(part.plan.planes for part in report.parts if part.split == split):
            total = max(entry["labelled"] - entry["ignored"], 1)  # of overlapping classes a sum
        top = int(pixels.max())
        rows = "".join(
            f"<tr><td>{k}</td><td>{html.escape(name)}</td><td class=n>{100 * n / total:.3f}%</td>"
            f"<td class=n>{files[k]:,}</td><td class=bar><div style='width:{100 * n / top:.2f}%'>"
            "</div></td></tr>"
            for k, (name, n) in enumerate(zip(entry["classes"], pixels.tolist(), strict=True))
        )
        blocks.append(
            f"<h3>{split}</h3><table class=classes><tr><th></th><th>class</th><th>pixels</th>"
            f"<th>images</th><th></th></tr>{rows}</table>"
        )
    return "\n".join(blocks) or "<p>No label maps.</p>"


def _size_plot(report: DataReport) -> str:
    """Width against height, one dot a size, as SVG."""
    blocks = []
    for split in dict.fromkeys(part.split for part in report.parts):
        sizes = report.sizes(split)
        if not sizes:
            continue
        wide = max(w for w, _ in sizes)
        high = max(h for _, h in sizes)
        scale = 260 / max(wide, high)
        most = max(sizes.values())
        dots = "".join(
            f"<circle cx='{w * scale:.1f}' cy='{260 - h * scale:.1f}' "
            f"r='{2 + 6 * (n / most) ** 0.5:.1f}'><title>{w}x{h}: {n:,}</title></circle>"
            for (w, h), n in sizes.most_common(2000)
        )
        narrow, low = min(w for w, _ in sizes), min(h for _, h in sizes)
        blocks.append(
            f"<figure><svg viewBox='-4 -4 272 272' width=272>"
            f"<path d='M0 0V260H260' fill=none stroke='#888'/>{dots}</svg><figcaption>{split}: "
            f"{sum(sizes.values()):,} images, {len(sizes):,} sizes; width {narrow} to {wide}, "
            f"height {low} to {high}</figcaption></figure>"
        )
    return "<div class=row>" + "\n".join(blocks) + "</div>"


def _contact_sheet(report: DataReport, draw: Draw, samples: int) -> str:
    parts = [p for p in report.parts if p.samples]
    figures = []
    for part in parts:
        count = min(len(part.samples), max(1, samples // len(parts)))
        for i in sorted({round(x) for x in np.linspace(0, len(part.samples) - 1, count)}):
            figures.append(_thumbnail(part, i, part.facts[i], draw))
    return "<div class=row>" + "\n".join(f for f in figures if f) + "</div>"


def _thumbnail(part: Part, index: int, facts: SampleFacts, draw: Draw) -> str:
    """One sample as a figure, or nothing where it cannot be read."""
    if facts.size is None:
        return ""
    sample = part.samples[index]
    image = np.ascontiguousarray(part.plan.reader.load_sample(sample).picture)
    picture = _small(image, Image.Resampling.BOX)
    if facts.raw_counts is not None:
        results = load(part.plan.label, {**sample, "seg_fields": []})
        labels, palette = results["gt_seg_map"], part.palette
        if part.plan.planes is not None:
            (labels,), _, palette = index_sets([label_bits(results)], part.classes, palette)
        labels = np.where(labels < len(palette), labels, 255).astype(np.uint8)
        if labels.shape == image.shape[:2]:
            labels = _small(labels, Image.Resampling.NEAREST)
            picture = np.concatenate([picture, draw(picture, labels, palette)], axis=1)
    present = ""
    if facts.raw_counts is not None:
        seen, _, _ = class_counts([facts.raw_counts], part.plan)
        present = ", ".join(part.classes[k] for k in np.argsort(-seen)[:6] if seen[k])
    name = html.escape(printable(os.path.basename(sample["img_path"])))
    return (
        f"<figure><img src='{data_uri(Image.fromarray(picture), 'JPEG', quality=80)}'>"
        f"<figcaption>{part.split}: {name}<br>{html.escape(present)}</figcaption></figure>"
    )


def _small(array: NDArray[np.uint8], resample: Image.Resampling) -> NDArray[np.uint8]:
    picture = Image.fromarray(array)
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL), resample, reducing_gap=None)
    return np.asarray(picture)


_PAGE = """<!doctype html>
<html lang=en><meta charset=utf-8><title>{title}</title>
<style>
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 2em; color: #202124; }}
table {{ border-collapse: collapse; }} td, th {{ padding: 1px 8px; text-align: left;
vertical-align: top; }} .n {{ text-align: right; }} .bar {{ width: 300px; }}
.bar div {{ background: #1d4ed8; height: 10px; margin-top: 4px; }}
.row {{ display: flex; flex-wrap: wrap; gap: 16px; }} figure {{ margin: 0; }}
figcaption {{ max-width: 480px; color: #555; font-size: 12px; }}
circle {{ fill: #1d4ed8; fill-opacity: .5; }} summary {{ cursor: pointer; padding: 4px 0; }}
.error {{ color: #b42318; }} .warning {{ color: #8a5a00; }}
</style>
<h1>{title}</h1>
<h2>Problems</h2>
{problems}
<h2>Samples</h2>
{samples}
<h2>Image sizes</h2>
{sizes}
<h2>Class frequencies</h2>
{classes}
</html>
"""
