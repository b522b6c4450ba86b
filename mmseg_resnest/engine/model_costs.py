# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the models of the package cost: counted figures of all, and what this machine has measured.

The counted ones are in ``model_costs.json``, so that a list of models needs no library;
``mmseg-resnest make-model-zoo --costs`` writes it.
"""

from __future__ import annotations

import copy
import datetime
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from ..errors import UserError
from ..io.atomic import atomic_write
from ..io.json_files import read_json
from ..io.waiting_lock import wait_for_folder
from ..models import input_channels
from ..weights import cache_folder
from .benchmark import count_flops, count_parameters
from .forecast import saved_tensors
from .model import build_model

COSTS_FILE = Path(__file__).with_name("model_costs.json")
#: Height and width of the images that all models are compared with.
SIZE = (512, 512)
#: Where the cache folder keeps what was measured: host -> config -> testing and training.
MEASURED_FILE = "benchmarks.json"


def kept_for_backward(model: nn.Module, shape: Sequence[int]) -> int:
    """Bytes of the feature maps that training keeps for its backward pass, float32, one image.

    Counted in the forward pass of backbone and heads (the losses need some score maps more), of
    two images (height, width), since batch norms need them, without computing anything.
    """
    bare: Any = copy.deepcopy(model).to("meta").train()
    images = torch.empty(2, input_channels(model) or 3, *shape, device="meta")
    with saved_tensors(bare) as saved:
        features = bare.extract_feat(images)
        heads = [bare.decode_head, getattr(bare, "auxiliary_head", None)]
        scores = [head(features) for head in heads if head is not None]
    del scores
    return saved.bytes // 2


def model_costs(cfg: Config) -> dict[str, Any]:
    """The row of a config in ``model_costs.json``.

    Returns:
        ``parameters``, of the whole model; ``flops``, of an image of 512x512
        (:func:`~.benchmark.count_flops`); ``kept``, :func:`kept_for_backward` of it, bytes; and
        ``start``, the name of the weights that the backbone starts from, or None.
    """
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmseg")):
        with torch.device("meta"):
            model = build_model(cfg)
        start = (cfg.model.backbone.get("init_cfg") or {}).get("checkpoint")
        return {
            "parameters": count_parameters(model)["all"],
            "flops": count_flops(model, SIZE),
            "kept": kept_for_backward(model, SIZE),
            "start": start,
        }


def costs_text(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The text of ``model_costs.json``, a line for each config."""
    lines = [f"{json.dumps(name)}: {json.dumps(dict(row))}" for name, row in rows.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def keep_benchmark(name: str, result: Mapping[str, Any]) -> Path | None:
    """Keep what :func:`~.benchmark.benchmark` measured of a config in the cache folder.

    ``mmseg-resnest models`` shows it. Kept are measurements of one image of 512x512, and training
    steps of such images.

    Args:
        name: Of the config, as ``mmseg-resnest configs`` lists it.
        result: What was measured.

    Returns:
        The file; None where the measurement is of other images or the file cannot be written.
    """
    if tuple(result["shape"]) != SIZE:
        return None
    when = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    found = {
        what: {**result[what], "device": result["device"], "date": when}
        for what in ("testing", "training")
        if result[what] and (what == "training" or result[what]["batch"] == 1)
    }
    if not found:
        return None
    folder = cache_folder()
    file = folder / MEASURED_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with wait_for_folder(folder):
            try:
                kept = read_json(file, str(file)) if file.is_file() else {}
            except UserError:
                kept = {}  # damaged: what it held can be measured again
            if not isinstance(kept, dict):
                kept = {}
            here = kept.setdefault(platform.node(), {})
            here[name] = {**here.get(name, {}), **found}
            atomic_write(file, json.dumps(kept, indent=1) + "\n")
    except OSError:
        return None
    return file
