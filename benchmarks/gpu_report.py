# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Tables of what benchmarks/gpu.py has measured."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def described_machine() -> dict[str, Any]:
    """What the figures come from, also where there is no git and no repository."""
    import harness

    if shutil.which("git") is None:
        harness._git = lambda *arguments: ""
    described = harness.machine()
    described["commit"] = described["commit"] or os.environ.get("BENCHMARK_COMMIT", "")
    return described


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 10 else f"{seconds:.1f} s"


def _bytes(count: float | None) -> str:
    if count is None:
        return "not known"
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _ratio(summary: dict[str, Any]) -> str:
    return f"{summary['median']:.2f} ({summary['low']:.2f} to {summary['high']:.2f})"


def _compared(figures: dict[str, float] | None) -> str:
    if not figures:
        return ""
    words = []
    if "labels_equal" in figures:
        words.append(f"{100 * figures['labels_equal']:.3f} % of labels equal")
    for key, name in (("scores_error", "scores"), ("loss_error", "loss")):
        if key in figures:
            words.append(f"{name} off by {figures[key]:.1e}")
    if not figures.get("agrees", 1.0):
        words.append("**does not agree**")
    return ", ".join(words)


def _aims(case: dict[str, Any]) -> list[str]:
    """Whether each aim of a case is reached, and by which bound it is limited."""
    lines = []
    for way, other, least in case["least"]:
        figures = case["ways"].get(way)
        if figures is None or other not in figures.get("speed", {}):
            lines.append(f"aim {least:g} x {other}: not measured")
            continue
        speed = figures["speed"][other]["median"]
        words = f"aim {least:g} x {other}: {speed:.2f}, {'reached' if speed >= least else 'missed'}"
        if speed < least and "floor_seconds" in figures:
            bound = case["ways"][other]["seconds"]["median"] / figures["floor_seconds"]
            words += f" (the {figures['bound_by']} allow no more than {bound:.2f})"
        lines.append(words)
    return lines


def markdown(result: dict[str, Any]) -> str:
    """One part as a section."""
    machine, bounds = result["machine"], result["ceilings"]
    device = machine["gpu"] or f"CPU {machine['cpu']} (no GPU)"
    lines = [f"## {result['part'].capitalize()}, {device}", "", f"`{result['command']}`", ""]
    if result["toy"]:
        lines += ["Toy size: the figures show that it runs, nothing else.", ""]
    lines += [
        f"Ceilings measured here: copy {bounds['bytes_per_second'] / 1e12:.3g} TB/s (read and "
        f"written), bfloat16 product {bounds['operations_per_second'] / 1e12:.3g} TFLOP/s.",
        "",
    ]
    for name, case in result["cases"].items():
        lines += [f"### {name}", "", f"{case['what']}.", ""]
        if "counted" in case:
            counted = case["counted"]
            lines += [
                f"{counted['operations'] / 1e9:.4g} GFLOP; {_bytes(counted['bytes'])} moved by "
                f"products and convolutions, {_bytes(counted['bytes_op_by_op'])} operation by "
                "operation.",
                "",
            ]
        if not case["ways"]:
            lines += [f"- Not run: {what}: {why}." for what, why in case["not_run"].items()]
            lines.append("")
            continue
        lines += [
            f"| way | time | {case['unit']}/s | times as fast | share of the floor | "
            "memory of a call | peak with weights | compared |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for way, figures in case["ways"].items():
            if "seconds" not in figures:
                continue
            speed = figures["speed"].get(case["reference"])
            share = ""
            if "share" in figures:
                share = f"{100 * figures['share']:.0f} % ({figures['bound_by']})"
            cells = [
                way,
                _time(figures["seconds"]["median"]),
                f"{figures['per_second']:.4g}",
                "1" if way == case["reference"] or speed is None else _ratio(speed),
                share,
                _bytes(figures["extra_bytes"]),
                _bytes(figures["peak_bytes"]),
                _compared(figures.get("compared")),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
        lines += [f"- {line}" for line in _aims(case)]
        if "cores" in case:
            cores = ", ".join(f"{way} {count:.1f}" for way, count in case["cores"].items())
            lines.append(f"- cores for {case['rate']:g} images/s: {cores}")
        lines += [f"- Not run: {what}: {why}." for what, why in case["not_run"].items()]
        lines.append("")
    lines += [f"- Not run: {what}: {why}." for what, why in result["not_run"].items()]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines.append(
        f"- {device}, {_bytes(machine['gpu_memory'])} of memory, CUDA {machine['cuda']}; "
        f"{machine['cpu']}, {machine['cores']} cores. {versions}. Commit "
        f"{machine['commit'][:12] or 'not known'}."
    )
    return "\n".join(lines) + "\n"
