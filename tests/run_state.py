# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What a training run has come to, for comparing two runs bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

# Seconds, and where files lie, differ between runs that compute the same.
_TIMES = ("time", "data_time", "eta", "seconds")
_PLACES = ("cfg", "experiment_name", "last_ckpt", "best_ckpt", "mmengine_version", "config")


def load(path: Path) -> dict[str, Any]:
    """A checkpoint, read by torch alone as tensors and plain data."""
    return torch.load(path, map_location="cpu", weights_only=True)


def final_state(work_dir: Path) -> dict[str, Any]:
    """Weights, optimiser, schedules, averages, histories, scores and log lines of a run."""
    newest = Path((work_dir / "last_checkpoint").read_text())
    record = load(work_dir / newest.name)
    meta = record.pop("meta")
    results = json.loads((work_dir / "results.json").read_text())
    best = load(work_dir / results["best_checkpoint"])
    return {
        "file": newest.name,
        "meta": {key: meta[key] for key in ("iter", "epoch", "seed", "total_batch")},
        **record,
        "best": best["state_dict"],
        "best_file": results["best_checkpoint"],
        "results.json": {key: value for key, value in results.items() if key != "run_id"},
        "log": logged(work_dir),
    }


def logged(work_dir: Path) -> dict[str, dict[str, Any]]:
    """The lines of scalars.json of every start of a run; of a step done twice, the later ones."""
    lines: dict[str, dict[str, Any]] = {}
    for path in sorted(work_dir.glob("*/vis_data/scalars.json")):
        for line in path.read_text().splitlines():
            values = json.loads(line)
            kind = "val" if "mIoU" in values else "train"
            lines[f"{kind} {values['step']}"] = values
    return lines


def differences(first: Any, second: Any, name: str = "") -> list[str]:
    """Where two states differ, by name; times and places are left out."""
    key = name.rsplit("/", 1)[-1]
    if key in _TIMES or key in _PLACES:
        return []
    if isinstance(first, dict) and isinstance(second, dict):
        found = [
            f"{name}/{key}: only one run has it"
            for key in first.keys() ^ second.keys()
            if key not in _TIMES and key not in _PLACES
        ]
        for key in first.keys() & second.keys():
            found += differences(first[key], second[key], f"{name}/{key}")
        return found
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        if len(first) != len(second):
            return [f"{name}: {len(first)} and {len(second)} entries"]
        pairs = zip(first, second, strict=True)
        return [d for i, (a, b) in enumerate(pairs) for d in differences(a, b, f"{name}/{i}")]
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        same = first.dtype == second.dtype and torch.equal(first, second)
        # NaN equals itself here: what counts are bits.
        same = same or (
            first.isnan().any() and torch.equal(first.nan_to_num(), second.nan_to_num())
        )
        return [] if same else [f"{name}: tensors differ"]
    if isinstance(first, float) and isinstance(second, float) and first != first:
        return [] if second != second else [f"{name}: {first} and {second}"]
    return [] if first == second else [f"{name}: {first!r} and {second!r}"]
