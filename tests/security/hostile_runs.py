# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Changes that make a training checkpoint hostile; all of them are plain data."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sandbox import Sandbox

Record = dict[str, Any]
Change = Callable[[Record], Any]


def _part(record: Any, place: tuple[Any, ...]) -> Any:
    for step in place:
        record = record[step]
    return record


def _set(*place_and_value: Any) -> Change:
    """Change the value at a place; ``{code}`` and its like are filled in by the caller."""
    *place, key, value = place_and_value
    return lambda record: _part(record, tuple(place)).__setitem__(key, copy.deepcopy(value))


def _drop(*place: Any) -> Change:
    return lambda record: _part(record, place[:-1]).pop(place[-1])


def _group(key: str, value: Any) -> Change:
    return _set("optimizer", "param_groups", 0, key, value)


def _moments(key: str, value: Any) -> Change:
    def change(record: Record) -> None:
        for state in record["optimizer"]["state"].values():
            state[key] = value

    return change


def _more_groups(record: Record) -> None:
    groups = record["optimizer"]["param_groups"]
    groups.append(copy.deepcopy(groups[0]))


def _history(value: Any) -> Change:
    return _set("message_hub", "log_scalars", "train/loss", value)


def _info(key: str, value: Any) -> Change:
    return lambda record: record["message_hub"].setdefault("runtime_info", {}).update({key: value})


def _scheduler(key: str, value: Any) -> Change:
    return _set("param_schedulers", 0, key, value)


def _more_schedulers(record: Record) -> None:
    record["param_schedulers"] = record["param_schedulers"] * 3


_TERABYTE = torch.zeros(1).expand(1 << 37)
#: Fields of the wrong type or size: the run must be refused, by name.
REFUSED: dict[str, Change] = {
    "iteration of text": _set("meta", "iter", "6"),
    "negative iteration": _set("meta", "iter", -6),
    "iteration NaN": _set("meta", "iter", math.nan),
    "iteration 2^70": _set("meta", "iter", 2**70),
    "no iteration": _drop("meta", "iter"),
    "epoch of text": _set("meta", "epoch", "0"),
    "seed of text": _set("meta", "seed", "5"),
    "seed 2^70": _set("meta", "seed", 2**70),
    "meta of a list": _set("meta", [1]),
    "weights of text": _set("state_dict", "layers.0.weight", "text"),
    "weights of another shape": _set("state_dict", "layers.0.weight", torch.zeros(9, 9)),
    "weights on no device": _set(
        "state_dict", "layers.0.weight", torch.empty(6, 4, device="meta")
    ),
    "state dict of a list": _set("state_dict", [torch.ones(2)]),
    "optimiser of text": _set("optimizer", "AdamW"),
    "optimiser empty": _set("optimizer", {}),
    "optimiser of other groups": _more_groups,
    "optimiser of other shapes": _moments("exp_avg", torch.zeros(7, 7)),
    "optimiser of a terabyte": _moments("exp_avg", _TERABYTE),
    "optimiser step of text": _moments("step", "5"),
    "learning rate of text": _group("lr", "0.1"),
    "learning rate NaN": _group("lr", math.nan),
    "betas of text": _group("betas", "ab"),
    "message hub of a list": _set("message_hub", []),
    "runtime info of text": _set("message_hub", "runtime_info", "iter"),
    "histories of a list": _set("message_hub", "log_scalars", [1]),
    "history of text": _history("0.5"),
    "history of endless length": _history(
        {"log_history": torch.zeros(3), "count": torch.zeros(3), "max_length": "10"}
    ),
    "history of a terabyte": _history(
        {"log_history": _TERABYTE, "count": _TERABYTE, "max_length": 1 << 40}
    ),
    "schedules of text": _set("param_schedulers", "PolyLR"),
    "schedule of a list": _set("param_schedulers", 0, [1, 2]),
    "schedule position of text": _scheduler("last_step", "6"),
    "schedule values of text": _scheduler("base_values", "ab"),
    "more schedules": _more_schedulers,
}  # fmt: skip

#: Fields that a run does not need: refused by name, or dropped.
DROPPED: dict[str, Change] = {
    "config of Python": _set("meta", "config", "{code}\ngpu_ids = [0]\n"),
    "cfg of Python": _set("meta", "cfg", "{code}\ngpu_ids = [0]\n"),
    # Text that a resumed run would put into its own checkpoints as its config.
    "cfg of Python in the hub": _info("cfg", "{code}"),
    "config of a mapping": _set("meta", "config", {"custom_imports": {"imports": ["{module}"]}}),
    "config that imports": _set("meta", "config", "custom_imports = dict(imports=['{module}'])\n"),
    "experiment name that climbs": _set("meta", "experiment_name", "../../outside/x"),
    "world size of text": _set("meta", "world_size", "2"),
    "batch of 10^30": _set("meta", "total_batch", 10**30),
    "validation of text": _set("meta", "validation_pending", "yes"),
    "data set of numbers": _set("meta", "dataset_meta", {"classes": 5, "palette": "x"}),
    "unknown keys": _set("evil", {"__class__": "os.system"}),
    "hub runtime attributes": _info("__class__", "os.system"),
    "hub iteration of text": _info("iter", "6"),
    "hub best NaN": _info("best_score", math.nan),
    "hub resumed keys": _set("message_hub", "resumed_keys", {"train/loss": "os.system"}),
    "hub last checkpoint of a number": _info("last_ckpt", 5),
    "hub best checkpoint of a list": _info("best_ckpt", [1]),
    "optimiser attributes": _group("__class__", "os.system"),
    "optimiser switches": _group("fused", "yes"),
    "optimiser keys": _set("optimizer", "base_param_settings", {"params": "x"}),
    "optimiser scaler": _set("optimizer", "loss_scaler", {"scale": "x", "_growth_tracker": None}),
    "schedule method": _scheduler("step", "os.system"),
    "schedule class": _scheduler("__class__", "os.system"),
    "schedule end": _scheduler("end", 10**30),
    "schedule total": _scheduler("total_iters", 0),
    "no schedules": _drop("param_schedulers"),
    "averaged weights of text": _set("ema_state_dict", {"module.layers.0.weight": "text"}),
}


def checkpoint_with(box: Sandbox, valid: Path, change: Change) -> Path:
    """A copy of a training checkpoint with a change."""
    record = torch.load(valid, weights_only=True)
    change(record)
    for part, key in (("meta", "config"), ("meta", "cfg"), ("message_hub", "runtime_info")):
        if isinstance(record[part], dict) and key in record[part]:
            record[part][key] = box.fill(record[part][key])
    torch.save(record, box.files / "evil.pth")
    return box.files / "evil.pth"


#: File names that a checkpoint may claim as its own earlier files, to have them deleted.
DELETIONS = [
    "{outside}/weights.pth",
    "../../outside/weights.pth",
    "run/../../outside/weights.pth",
    "run/notes.txt",
    "run/my_weights.pth",
    "run/best_other.pth",
    "run/link.pth",
    "run/.hidden.part",
    "run/evil.pth",
    "",
    "..",
    "run/*",
    "run/\0",
    "x" * 5000,
]
