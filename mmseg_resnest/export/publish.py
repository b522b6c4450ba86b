# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A trained model as a folder for a hub: weights, config, classes, metrics and a model card."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from mmengine.config import Config

from ..datasets import leaf_datasets
from ..engine.config import config_as_text
from ..engine.latest import written_by
from ..errors import UserError
from ..evaluation.results_file import read_results_file
from ..inference import Segmentor, load_segmentor
from ..inference.record import FORMAT, MAX_RECORD_BYTES, check_published, plain_model
from ..io.atomic import atomic_write
from ..io.checks import NotAllowed
from ..io.text import printable
from ..registry import type_name
from ..version import __version__
from ..weights import save_state_dict
from ..weights.hashes import hex_digests
from ..weights.hub import CONFIG_FILE, SUMS_FILE, WEIGHTS_FILE, sums_of
from .network import ONLY_KNOWN_PARTS, reading

__all__ = ["CARD_FILE", "FILES", "TRAINING_CONFIG_FILE", "publish", "read_results"]

CARD_FILE = "README.md"
TRAINING_CONFIG_FILE = "training_config.py"
#: What a published folder holds, and a list of their SHA-256 sums.
FILES = (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, TRAINING_CONFIG_FILE)
_OF_THIS_MACHINE = ("work_dir", "load_from", "resume", "distillation")
_METRICS = {"mIoU": "mean_iou", "pixAcc": "pixel_accuracy", "mAcc": "mean_accuracy"}


def read_results(
    path: str | os.PathLike[str], checkpoint: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Scores from a ``results.json`` of ``mmseg-resnest test``.

    Raises:
        UserError: It is not one, or is of other weights than ``checkpoint``, as far as both say of
            which run and iteration they are.

    Returns:
        ``mIoU``, ``pixAcc``, ``mAcc`` in percent, as far as they are there, ``images``, ``tta``
        and ``IoU``, the IoU of each class by name.
    """
    result = read_results_file(path)
    scored = result.get("run_id"), result.get("iteration")
    written = None if checkpoint is None else written_by(Path(checkpoint))
    if written is not None and None not in scored and written != scored:
        message = f"is not of {checkpoint}, but of iteration {scored[1]} of "
        message += "that run" if written[0] == scored[0] else "another run"
        raise UserError("config-conflict", f"--results {path}", f"{message}; test this checkpoint")
    if "classes" not in result:
        raise UserError(
            "run", path, "has no key classes; name the results.json that mmseg-resnest test wrote"
        )
    scores = {k: float(result[k]) for k in _METRICS if result.get(k) is not None}
    more = {"images": result.get("images"), "tta": bool(result.get("tta"))}
    return {**scores, **more, "IoU": {c["name"]: c["IoU"] for c in result["classes"]}}


def publish(
    model: Segmentor,
    folder: str | os.PathLike[str],
    name: str | None = None,
    licence: str = "other",
    results: Mapping[str, Any] | None = None,
    force: bool = False,
    use: str | None = None,
) -> dict[str, Any]:
    """Write a folder that can be uploaded to a hub and loaded with ``load_segmentor(folder)``.

    ``model.safetensors`` has the weights that segmenting needs, ``config.json`` the model, classes,
    colours, metrics and the weights' SHA-256, ``README.md`` the model card with the front matter
    that hubs read, ``training_config.py`` the whole config, ``SHA256SUMS`` the hash of each file.

    Args:
        model: The model.
        folder: Its folder; made.
        name: In the card; the folder's name if None.
        licence: Identifier of the weights' licence in the card, e.g. ``apache-2.0``.
        results: What :func:`read_results` returned.
        force: Replace a folder that :func:`publish` wrote.
        use: By which name the card says that it is loaded; None: by the folder's.

    Returns:
        ``folder``, ``files`` (name to bytes) and ``sha256``.

    Raises:
        UserError: The folder exists or cannot be written, or a published model may not have a part
            or an argument of this one.
    """
    target = Path(folder)
    if target.exists() and not (force and (target / CONFIG_FILE).is_file()):
        raise UserError(
            "output-exists", target,
            "already exists; give another name, or --force to replace a folder of this tool",
        )  # fmt: skip
    there = {one.name for one in target.iterdir()} if target.exists() else set()
    if others := there - {*FILES, SUMS_FILE}:
        said = f"holds {min(others)}, which this tool did not write; move it, or give another name"
        raise UserError("output-exists", target, said)
    title = name or target.name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name[:50]}.") as part:
            built = Path(part) / "model"
            built.mkdir()
            digest = _write(model, built, title, licence, results, use)
            files = {file.name: file.stat().st_size for file in sorted(built.iterdir())}
            if target.exists():
                shutil.move(target, Path(part) / "old")
            os.replace(built, target)
    except OSError as error:
        raise UserError(
            "not-writable", target, f"cannot be written ({error.strerror or error})"
        ) from error
    return {"folder": target, "files": files, "sha256": digest}


def _write(
    model: Segmentor,
    folder: Path,
    title: str,
    licence: str,
    results: Mapping[str, Any] | None,
    use: str | None,
) -> str:
    state = model.model.state_dict()
    state = {k: v for k, v in state.items() if not k.startswith("auxiliary_head.")}
    parameters = sum(p.numel() for k, p in model.model.named_parameters() if k in state)
    record = {
        "format": FORMAT,
        "library_name": "mmseg-resnest",
        "version": __version__,
        "name": title,
        "sha256": "0" * 64,
        "parameters": parameters,
        "classes": list(model.classes),
        "palette": [list(colour) for colour in model.palette],
        "metrics": dict(results or {}),
        "model": plain_model(_model_config(model.cfg), model.cfg.get("default_scope", "mmseg")),
        **reading(model),
    }
    try:
        check_published(record)
    except NotAllowed as error:
        of_data = error.key.startswith(("loading", "pipeline"))
        place = "test_dataloader.dataset." if of_data else ""
        message = f"{error.reason}; {ONLY_KNOWN_PARTS}"
        raise UserError("export", f"config key {place}{error.key}", message) from error
    weights = save_state_dict(state, folder / WEIGHTS_FILE)
    with open(weights, "rb") as file:
        digest = hex_digests(file, "sha256")[0]
    record["sha256"] = digest
    text = json.dumps(record, indent=1) + "\n"
    if len(text.encode()) > MAX_RECORD_BYTES:
        raise UserError(
            "too-large", folder / CONFIG_FILE, f"would exceed {MAX_RECORD_BYTES:,} bytes"
        )
    atomic_write(folder / CONFIG_FILE, text)
    training = Config({k: v for k, v in model.cfg.to_dict().items() if k not in _OF_THIS_MACHINE})
    atomic_write(folder / TRAINING_CONFIG_FILE, config_as_text(training))
    atomic_write(folder / CARD_FILE, model_card(model, title, licence, record, use))
    atomic_write(folder / SUMS_FILE, sums_of(folder, FILES))
    return digest


def _model_config(cfg: Config) -> dict[str, Any]:
    model = Config(dict(model=cfg.model)).to_dict()["model"]
    if cfg.get("data_preprocessor") is not None:
        model.setdefault("data_preprocessor", Config(dict(cfg.data_preprocessor)).to_dict())
    return model


def model_card(
    model: Segmentor,
    title: str,
    licence: str,
    record: Mapping[str, Any],
    use: str | None = None,
) -> str:
    """The text of ``README.md``: YAML front matter, and a page for people."""
    metrics = record["metrics"]
    name, data = printable(title), printable(_dataset_name(model.cfg))
    dataset = _markdown(data)
    front: dict[str, Any] = {
        "library_name": "mmseg-resnest",
        "pipeline_tag": "image-segmentation",
        "license": printable(licence),
        "tags": ["semantic-segmentation", "resnest", "mmsegmentation", "pytorch"],
    }
    scores = [k for k in _METRICS if k in metrics]
    if scores:
        measured = [{"type": _METRICS[k], "name": k, "value": round(metrics[k], 2)} for k in scores]
        result = {
            "task": {"type": "image-segmentation"},
            "dataset": {"name": data, "type": data.lower().replace(" ", "-")},
            "metrics": measured,
        }
        front["model-index"] = [{"name": name, "results": [result]}]
    backbone = model.cfg.model.get("backbone", {})
    arch = _markdown(str(backbone.get("arch") or backbone.get("depth") or ""))
    base = _markdown(type_name(backbone.get("type", "a backbone")))
    head = _markdown(type(model.model.decode_head).__name__)
    several = model.multilabel
    lines = [
        "---", yaml.safe_dump(front, sort_keys=False).rstrip(), "---", "",
        f"# {_markdown(name)}", "",
        f"Semantic segmentation into {len(model.classes)} classes: {head} on "
        f"{base} {arch}".rstrip() + f", trained on {dataset}. "
        f"{record['parameters'] / 1e6:.1f} million parameters.", "",
        "## Use", "", "```python", "from mmseg_resnest import load_segmentor", "",
        f'model = load_segmentor("{use or "path/to/this/folder"}")', 'result = model("photo.jpg")',
        "result.labels     # (H, W) " + ("bits of classes" if several else "class indices"),
        *(["result.masks      # (C, H, W), where each class is"] if several else []),
        "result.overlay()  # a PIL image", "```", "",
        "Loading runs no code from this folder: `config.json` is checked against a list of parts",
        f"and arguments, and the weights are safetensors. `{TRAINING_CONFIG_FILE}` is the whole",
        "config, to train from. It is Python, which loading does not run: read it before you do.",
        "",
    ]  # fmt: skip
    if scores:
        how = "with the config's test-time augmentation" if metrics["tta"] else "single scale"
        number = f"{metrics['images']} images, " if metrics.get("images") else ""
        lines += [
            "## Scores", "", f"On the test split of the config ({dataset}), {number}{how}:", "",
            "| metric | % |", "|---|---|", *(f"| {k} | {metrics[k]:.2f} |" for k in scores), "",
        ]  # fmt: skip
    else:
        lines += ["## Scores", "", "None were recorded when this folder was written.", ""]
    per_class = metrics.get("IoU", {})
    lines += ["## Classes", "", "| index | class | colour | IoU |", "|---|---|---|---|"]
    for i, (label, colour) in enumerate(zip(model.classes, model.palette, strict=True)):
        iou = per_class.get(label)
        shown = "" if iou is None or math.isnan(iou) else f"{iou:.2f}"
        lines.append(
            f"| {i} | {_markdown(label)} | `#{''.join(f'{c:02x}' for c in colour)}` | {shown} |"
        )
    lines += [
        "", "## Limits", "",
        f"It gives every pixel {'any number, or none,' if several else 'one'} of these classes, "
        "whatever is in the picture, and was trained on",
        f"{dataset} alone; on other pictures its labels and its probabilities are unproven.",
        "", "## Files", "",
        f"`{WEIGHTS_FILE}`: SHA-256 `{record['sha256']}`. Written by mmseg-resnest {__version__}.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _markdown(text: str) -> str:
    """A text as Markdown shows it: on one line, without links, HTML or cells of a table."""
    return re.sub(r"[\\`*_\[\]<>|~&$]", r"\\\g<0>", printable(text))


def _dataset_name(cfg: Config) -> str:
    leaves = leaf_datasets(cfg.test_dataloader.dataset)
    names = [type_name(leaf["type"]) for leaf in leaves]
    return ", ".join(dict.fromkeys(name.removesuffix("Dataset") or name for name in names))


def check_loads_back(model: Segmentor, folder: str | os.PathLike[str]) -> None:
    """Load the folder; a UserError if its labels of a random image differ from the model's."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (96, 128, model.channels or 3), np.uint8)
    image = model.reader.loaded(pixels)
    again = load_segmentor(os.fspath(folder), device="cpu")
    if not np.array_equal(model(image).labels, again(image).labels):
        raise UserError(
            "export", folder, "the model that loads from it differs from the one published"
        )
