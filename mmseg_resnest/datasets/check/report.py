# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The result of a check, as data and as text."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

from ...io.atomic import atomic_open
from ...io.text import printable
from .labels import class_counts
from .parts import Part
from .rules import RULES, Problem


@dataclass
class DataReport:
    """The result of a check.

    Attributes:
        problems: Errors first, then in the order of rules, splits and files.
        parts: The data sets that were checked.
        same: Splits whose files are those of another one, e.g. ``{"test": "val"}``.
        seconds: How long it took.
        workers: Processes that worked on it.
    """

    problems: list[Problem]
    parts: list[Part]
    same: dict[str, str]
    seconds: float
    workers: int

    @property
    def by_rule(self) -> dict[str, list[Problem]]:
        """The problems of each rule, errors first."""
        found: dict[str, list[Problem]] = {}
        for problem in self.problems:
            found.setdefault(problem.rule, []).append(problem)
        return found

    def class_table(self) -> dict[str, dict[str, Any]]:
        """Class names, (C,) pixels and files, ignored pixels and all that have labels, by split."""
        table: dict[str, dict[str, Any]] = {}
        for part in self.parts:
            pixels, files, rest = class_counts(part.counts, part.plan)
            entry = table.get(part.split)
            if entry is None or entry["classes"] != part.classes:
                entry = dict(classes=part.classes, pixels=0, files=0, ignored=0, labelled=0)
                table[part.split] = entry
            entry["pixels"] = entry["pixels"] + pixels
            entry["files"] = entry["files"] + files
            entry["ignored"] += rest
            read = [f.size for f in part.facts if f.raw_counts is not None and f.size is not None]
            entry["labelled"] += sum(width * height for width, height in read)
        return table

    def sizes(self, split: str) -> Counter[tuple[int, int]]:
        """How many images have each (width, height)."""
        return Counter(
            f.size for p in self.parts if p.split == split for f in p.facts if f.size is not None
        )

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        splits: dict[str, Any] = {}
        for split, entry in self.class_table().items():
            splits[split] = {
                "samples": sum(len(p.samples) for p in self.parts if p.split == split),
                "ignored_pixels": entry["ignored"],
                "classes": {
                    name: {"pixels": int(entry["pixels"][k]), "files": int(entry["files"][k])}
                    for k, name in enumerate(entry["classes"])
                },
                "sizes": {f"{w}x{h}": n for (w, h), n in self.sizes(split).most_common()},
            }
        return {
            "clean": not self.problems,
            "counts": {rule: len(found) for rule, found in self.by_rule.items()},
            "seconds": round(self.seconds, 3),
            "workers": self.workers,
            "same_files": self.same,
            "splits": splits,
            "problems": [p.as_dict() for p in self.problems],
        }


def print_report(report: DataReport, limit: int = 5) -> None:
    """Print what was found, at most ``limit`` problems of each rule."""
    for split, entry in report.class_table().items():
        sizes = report.sizes(split)
        common = ", ".join(f"{w}x{h}" for (w, h), _ in sizes.most_common(2))
        more = f" and {len(sizes) - 2} other sizes" if len(sizes) > 2 else ""
        pixels = int(entry["pixels"].sum())
        share = 100 * entry["ignored"] / max(1, entry["labelled"])
        seen = int((entry["pixels"] > 0).sum())
        labels = f"; {seen} of {len(entry['classes'])} classes occur, {share:.1f}% ignored"
        print(f"{split}: {sum(sizes.values()):,} images ({common}{more}){labels if pixels else ''}")
    for split, other in report.same.items():
        print(f"{split}: the files of {other}")
    for rule, problems in report.by_rule.items():
        print(f"\n{RULES[rule].title} ({rule}): {len(problems):,}")
        for problem in problems[:limit]:
            where = f"[{problem.split}] " if problem.split else ""
            print(f"  {where}{problem.message}")
        if len(problems) > limit:
            print(f"  ... and {len(problems) - limit:,} more")
    files = sum(len(part.samples) for part in report.parts)
    speed = files / report.seconds if report.seconds else 0
    errors = sum(p.severity == "error" for p in report.problems)
    counts = f"{errors:,} errors, {len(report.problems) - errors:,} warnings"
    cores = f"{report.workers} process{'es' if report.workers > 1 else ''}"
    print(
        f"\n{counts if report.problems else 'no problem'} in {files:,} images; "
        f"{report.seconds:.1f} s, {speed:.0f} images/s, {cores}"
    )


def write_fix_list(report: DataReport, path: str | os.PathLike[str]) -> None:
    """Write what to fix, one ``rule<TAB>file<TAB>remedy`` a line, atomically.

    File names are written with the bytes they have on disk; line breaks and tabs in them are
    written as a backslash and a letter.

    Raises:
        UserError: It cannot be written.
    """
    with atomic_open(path) as file:
        for problem in report.problems:
            name = problem.file.replace("\n", "\\n").replace("\t", "\\t")
            line = f"{problem.rule}\t{name}\t{printable(problem.remedy)}\n"
            file.write(line.encode("utf-8", "surrogateescape"))
