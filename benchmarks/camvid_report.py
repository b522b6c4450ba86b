# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The page, the curves and the comparisons of CamVid runs, from what benchmarks/camvid.py wrote."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from gpu_report import write

TITLES = {
    "resnest50": "ResNeSt-50",
    "resnet50": "ResNet-50",
    "stack": "MMSegmentation's ResNeSt-50",
}
MARK = 66.9  # FC-DenseNet103 on the test images, arXiv 1611.09326


def read(folders: list[Path]) -> list[dict[str, Any]]:
    """The runs in some folders, by recipe and seed; searches are left out."""
    files = sorted(path for folder in folders for path in folder.glob("*.json"))
    runs = [json.loads(path.read_text("utf-8")) for path in files]
    runs = [run for run in runs if "history" in run and not run.get("candidate")]
    return sorted(runs, key=lambda run: (list(TITLES).index(run["recipe"]), run["seed"]))


def what_does_not_belong(runs: list[dict[str, Any]]) -> str | None:
    """Why runs cannot be compared with one another, or None."""
    if not runs:
        return "no run in it"
    names = [f"{run['recipe']}, seed {run['seed']}" for run in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        return f"two runs of {twice}; leave one out"
    if len({run["toy"] for run in runs}) > 1:
        return "runs of toy size among others; leave them out"
    machines = sorted({str(run["machine"]["gpu"] or run["machine"]["cpu"]) for run in runs})
    if len(machines) > 1:
        return f"runs of several devices ({', '.join(machines)}); compare those of one"
    return None


def seconds_to(run: dict[str, Any], score: float) -> float | None:
    """Seconds until a validation first reached a mIoU, validations included."""
    return next((one["seconds"] for one in run["history"] if one["mIoU"] >= score), None)


def spread(values: list[float]) -> str:
    """Mean and, of several, the standard deviation of a sample."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def _runs_table(runs: list[dict[str, Any]]) -> list[str]:
    ways = list(dict.fromkeys(way for run in runs for way in run["evaluations"]))
    lines = [
        f"| recipe | seed | iterations | batch | seconds | {' | '.join(ways)} |",
        "|---" * (5 + len(ways)) + "|",
    ]
    for run in runs:
        scores = [
            f"{run['evaluations'][way]['mIoU']:.2f}" if way in run["evaluations"] else ""
            for way in ways
        ]
        lines.append(
            f"| {TITLES[run['recipe']]} | {run['seed']} | {run['iterations_done']:,} | "
            f"{run['batch']} | {run['seconds']:.0f} | {' | '.join(scores)} |"
        )
    return lines


def _comparison(runs: list[dict[str, Any]], recipe: str, other: str) -> list[str]:
    """Two recipes: final mIoU on the validation images, and time to the lower of the two."""
    ours = [run for run in runs if run["recipe"] == recipe]
    theirs = [run for run in runs if run["recipe"] == other]
    if not ours or not theirs:
        return []
    finals = [
        [max(one["mIoU"] for one in run["history"]) for run in group] for group in (ours, theirs)
    ]
    goal = min(statistics.mean(values) for values in finals)
    words = []
    for group in (ours, theirs):
        times = [seconds_to(run, goal) for run in group]
        reached = [value for value in times if value is not None]
        missed = f", {len(times) - len(reached)} of {len(times)} never" if None in times else ""
        words.append((f"{spread(reached)} s" if reached else "never") + missed)
    return [
        f"## {TITLES[recipe]} and {TITLES[other]}",
        "",
        f"| | best mIoU on the validation images | time to {goal:.2f} |",
        "|---|---|---|",
        f"| {TITLES[recipe]}, {len(ours)} seeds | {spread(finals[0])} | {words[0]} |",
        f"| {TITLES[other]}, {len(theirs)} seeds | {spread(finals[1])} | {words[1]} |",
        "",
    ]


def _class_table(runs: list[dict[str, Any]]) -> list[str]:
    """IoU of each class, mean over the seeds of the main recipe."""
    chosen = [run for run in runs if run["recipe"] == "resnest50"]
    way = next(
        (way for way in ("test, multi-scale", "validation, multi-scale")
         if any(way in run["evaluations"] for run in chosen)), None,
    )  # fmt: skip
    tables = [run["evaluations"][way].get("classes") for run in chosen if way] if way else []
    tables = [table for table in tables if table]
    if not tables:
        return []
    lines = [f"## Classes, {TITLES['resnest50']}, {way}", "", "| class | IoU |", "|---|---|"]
    for rows in zip(*tables, strict=True):
        values = [row["IoU"] for row in rows if row["IoU"] is not None]
        lines.append(f"| {rows[0]['name']} | {spread(values) if values else ''} |")
    return [*lines, ""]


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """MIoU on the validation images by minutes, a line for each run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for index, recipe in enumerate(TITLES):
        for number, run in enumerate(run for run in runs if run["recipe"] == recipe):
            axes.plot(
                [one["seconds"] / 60 for one in run["history"]],
                [one["mIoU"] for one in run["history"]],
                color=f"C{index}",
                label=TITLES[recipe] if number == 0 else None,
            )
    axes.set_xlabel("minutes, validations included")
    axes.set_ylabel("mIoU, 101 validation images")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def write_page(folders: list[Path], page: Path) -> int:
    """Write the page and, beside it in images/, the curves; 2 if the runs do not make one."""
    runs = read(folders)
    reason = what_does_not_belong(runs)
    if reason:
        print(f"error: {', '.join(map(str, folders))}: {reason}", file=sys.stderr)
        return 2
    image = page.parent / "images" / f"{page.stem}.png"
    draw(runs, image)
    machine = runs[0]["machine"]
    commits = dict.fromkeys(run["machine"]["commit"][:12] or "not known" for run in runs)
    lines = [
        "# CamVid from scratch on a GPU",
        "",
        "Made by `python benchmarks/camvid.py report` from runs of the commands at the end. 367 "
        "training images, no pre-training; weights are chosen by the mIoU on the 101 validation "
        "images alone. mIoU in percent, standard deviations over the seeds.",
        "",
    ]
    if any(run["toy"] for run in runs):
        lines += ["Toy size: the figures show that it runs, nothing else.", ""]
    tested = [
        run["evaluations"][way]["mIoU"]
        for run in runs
        if run["recipe"] == "resnest50"
        for way in ("test, multi-scale",)
        if way in run["evaluations"]
    ]
    if tested:
        lines += [
            f"On the 233 test images, multi-scale: {spread(tested)} (published without "
            f"pre-training: FC-DenseNet103 {MARK}).",
            "",
        ]
    else:
        lines += ["The 233 test images were not there; they are evaluated apart.", ""]
    lines += ["## Runs", "", *_runs_table(runs), "", f"![mIoU by time](images/{image.name})", ""]
    lines += _comparison(runs, "resnest50", "stack") + _comparison(runs, "resnest50", "resnet50")
    lines += _class_table(runs)
    lines += ["## Commands", ""]
    lines += [f"- `{command}`" for command in dict.fromkeys(run["command"] for run in runs)]
    lines += [
        "",
        f"{machine['gpu'] or 'No GPU'}, {machine['cpu']}, {machine['cores']} cores; "
        + ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        + f". Commit {' and '.join(commits)}.",
    ]
    write(page, "\n".join(lines) + "\n")
    print(page)
    return 0
