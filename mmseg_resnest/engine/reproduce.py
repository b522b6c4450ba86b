# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Published weights, evaluated by their published protocol, beside the published numbers.

Segmentation models by their config, ImageNet classifiers by the published test crop.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import get_world_size, is_main_process
from prettytable import PrettyTable

from ..datasets.imagenet import imagenet_samples
from ..errors import UserError
from ..evaluation import write_result
from ..io.json_files import read_json
from ..io.up_to_date import fingerprint
from ..registry import DATASETS, building
from ..version import __version__
from ..weights import Entry, catalogue, find
from ..weights.load import resolve_checkpoint
from .config import config_folder, load_config
from .config.load import DATA_VARIABLE
from .facts import flatten
from .hooks import print_header
from .imagenet import check_classifier, evaluate_classifier
from .launch import describe_device, join_launcher
from .logs import display_path
from .preflight import check_data, check_device, check_file
from .testing import evaluate

#: The catalogue's names of protocols, and whether each is the config's test-time augmentation.
PROTOCOLS = {"single scale": False, "multi-scale + flip": True}

#: Images that the published numbers are means over, by the catalogue's names of data sets.
PUBLISHED_IMAGES = {"ADE20K": 2000, "Cityscapes": 500, "Pascal Context": 5105, "ImageNet": 50000}


def published_numbers(entry: Entry) -> dict[str, dict[str, float]]:
    """Published ``{protocol: {metric: percent}}``; a UserError if the entry has none."""
    if entry.task == "classification":
        check_classifier(entry)
        return {"single crop": {"top1": entry.metrics["single crop"]["top1"]}}
    if entry.task != "segmentation" or entry.config is None:
        models = ", ".join(name for name, e in catalogue().items() if e.task == "segmentation")
        what = "is a detector, and detection is not evaluated here; the segmentation models are"
        raise UserError("argument", entry.name, f"{what}: {models}")
    return {name: dict(numbers) for name, numbers in entry.metrics.items()}


def config_of(entry: Entry) -> Path:
    """The config file of a catalogue entry; a UserError if it is missing."""
    config = config_folder().parent / str(entry.config)
    if not config.is_file():
        raise UserError(
            "not-found", config, f"the config of {entry.name} is missing; install the package again"
        )
    return config


def _check_images(cfg: Config, entry: Entry, any_images: bool) -> tuple[int, str]:
    """The number of images to evaluate on, and a fingerprint of them and their label maps.

    UserError says that the number is wrong or a file is missing.
    """
    check_data(cfg, ("test_dataloader",))
    with building(cfg.get("default_scope", "mmseg_resnest")):
        # Without a pipeline: only the files are listed.
        dataset = DATASETS.build(dict(cfg.test_dataloader.dataset, pipeline=[]))
    samples = [dataset.get_data_info(i) for i in range(len(dataset))]
    paths = [sample[key] for sample in samples for key in ("img_path", "seg_map_path")]
    if missing := [path for path in paths if not os.path.isfile(path)]:
        raise UserError(
            "not-found",
            missing[0],
            f"this and {len(missing) - 1} other files of {entry.dataset} are missing; "
            "data/README.md says where the data set comes from and how its folders are laid out",
        )
    _check_number(len(samples), entry, dataset.data_root, any_images)
    return len(samples), fingerprint([Path(path) for path in paths])


def _check_number(images: int, entry: Entry, folder: str | Path, any_images: bool) -> None:
    wanted = PUBLISHED_IMAGES.get(entry.dataset)
    if wanted not in (None, images) and not any_images:
        raise UserError(
            "dataset",
            display_path(folder),
            f"holds {images:,} images, and the published numbers are of {wanted:,}; complete "
            "it as data/README.md says, or add --any-images to evaluate what is there",
        )


def reproduce(
    name: str,
    data_root: str | os.PathLike[str] | None = None,
    work_dir: str | os.PathLike[str] | None = None,
    json_file: str | os.PathLike[str] | None = None,
    cfg_options: Sequence[str] = (),
    any_images: bool = False,
    again: bool = False,
    launcher: str = "none",
) -> dict[str, Any]:
    """Evaluate a model of the catalogue and compare it with the published numbers.

    ImageNet classifiers by the single crop, in float32 on one device. The data set is checked
    first; then the weights are fetched, unless they are in the cache. The report is written after
    each protocol, and protocols that it already holds for the same weights, files, config and
    options are not evaluated again.

    Args:
        name: Of the model.
        data_root: Folder of the data sets.
        work_dir: For results and logs; default ``work_dirs/reproduce/NAME``.
        json_file: The report; default ``reproduction.json`` in the work folder.
        cfg_options: Changes to the config, ``KEY=VALUE``; then it is not the published evaluation.
        any_images: Evaluate also when the number of images is not the published one.
        again: Evaluate also what the report holds already.
        launcher: ``none``, ``pytorch`` or ``slurm``.

    Returns:
        The report, on every process. ``as_published``: whether images and options are the published
        ones; ``file``: where it is; ``protocols``: ``{protocol: {published, measured, difference,
        seconds, device}}`` with ``{metric: percent}`` (difference: measured - published).

    """
    entry = find(name)
    published = published_numbers(entry)
    classifier = entry.task == "classification"
    folder = Path(work_dir) if work_dir else Path("work_dirs", "reproduce", *name.split("/"))
    file = Path(json_file) if json_file else folder / "reproduction.json"
    if classifier:
        if cfg_options or launcher != "none":
            option = "--cfg-options" if cfg_options else "--launcher"
            message = "an ImageNet classifier has no config and is evaluated by one process"
            raise UserError("argument", option, f"{message}; leave {option} out")
        place, samples = imagenet_samples(data_root or os.environ.get(DATA_VARIABLE) or "data")
        images = len(samples)
        settings: dict[str, Any]
        _check_number(images, entry, place, any_images)
        settings = {"layout": entry.layout, **entry.metrics["single crop"]}
        files = fingerprint([(path, label) for path, label in samples])
    else:
        config = config_of(entry)
        cfg = load_config(config, cfg_options, data_root)
        images, files = _check_images(cfg, entry, any_images)
        place = cfg.test_dataloader.dataset.data_root
        settings = dict(flatten(dict(cfg.items())))
    join_launcher(launcher)
    report: dict[str, Any] = {
        "task": "reproduce",
        "name": name,
        "config": entry.config,
        "checkpoint": entry.file,
        "digest": entry.digest,
        "source": entry.source,
        "dataset": entry.dataset,
        "data_root": os.path.abspath(place),
        "images": images,
        "cfg_options": list(cfg_options),
        "made_from": fingerprint(files, settings),
        "version": __version__,
    }
    known = {} if again else _known(file, report)
    wanted = PUBLISHED_IMAGES.get(entry.dataset, images)
    report["as_published"] = not cfg_options and images == wanted
    report["protocols"] = {}
    for protocol, numbers in published.items():
        if protocol in known:
            report["protocols"][protocol] = known[protocol]
            continue
        checkpoint = resolve_checkpoint(name)
        where = folder / protocol.replace(" + ", "_").replace(" ", "_")
        if classifier:
            made_from = f"{report['made_from']} {entry.digest}"
            progress = where.with_suffix(".part.json")
            device = check_device(None)
            result = evaluate_classifier(entry, samples, device, progress, made_from)
        else:
            result = evaluate(
                load_config(config, cfg_options, data_root),
                checkpoint,
                work_dir=where,
                tta=PROTOCOLS[protocol],
                launcher=launcher,
            )
        measured = {metric: float(result[metric]) for metric in numbers}
        report["protocols"][protocol] = {
            "published": numbers,
            "measured": measured,
            "difference": {metric: measured[metric] - numbers[metric] for metric in numbers},
            "seconds": result["seconds"],
            "device": describe_device(get_world_size()),
        }
        if is_main_process():
            write_result(report, file)
        if classifier:
            progress.unlink()
    return {**report, "file": os.fspath(file), "reused": sorted(known)}


def _known(file: Path, report: Mapping[str, Any]) -> dict[str, Any]:
    """The protocols of an earlier report of the same evaluation."""
    if not file.exists():
        return {}
    check_file(file, "--json")
    try:
        earlier = read_json(file, str(file))
        same = earlier["task"] == "reproduce"
        protocols = dict(earlier["protocols"])
    except (UserError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            "output-exists",
            f"--json {file}",
            "exists and is not a report of this tool; choose another file",
        ) from error
    return protocols if same and all(earlier.get(k) == v for k, v in report.items()) else {}


def print_reproduction(report: Mapping[str, Any]) -> None:
    """Print published and measured numbers and their difference, and where they are."""
    table = PrettyTable(["protocol", "metric", "published", "measured", "difference"])
    table.align = "r"
    table.align["protocol"] = table.align["metric"] = "l"
    for protocol, row in report["protocols"].items():
        for metric, number in row["published"].items():
            cells = [f"{number:.2f}", f"{row['measured'][metric]:.2f}"]
            table.add_row([protocol, metric, *cells, f"{row['difference'][metric]:+.2f}"])
    print(table.get_string() + "\n")
    rows = [
        ("model", f"{report['name']} ({report['config'] or 'ImageNet classifier'})"),
        ("weights", f"{report['checkpoint']}, {report['source']}"),
        ("data", f"{report['images']:,} images in {display_path(report['data_root'])}"),
        ("report", display_path(report["file"])),
    ]
    if report["reused"]:
        rows.append(("kept", f"{', '.join(report['reused'])}: measured before (--again repeats)"))
    if not report["as_published"]:
        wanted = PUBLISHED_IMAGES.get(report["dataset"], report["images"])
        why = [f"{report['images']:,} images instead of {wanted:,}"] * (report["images"] != wanted)
        why += [f"--cfg-options {' '.join(report['cfg_options'])}"] * bool(report["cfg_options"])
        rows.append(("note", f"not the published evaluation: {'; '.join(why)}"))
    print_header(rows)
