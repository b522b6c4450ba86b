# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What is checked before a run starts, so that it does not fail after hours, or half-way.

Nothing here writes, except :func:`check_writable` and :func:`check_output_file`, which are
therefore called last and remove what they made when they find a mistake.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from torch import nn

from ..datasets import check_dataset_folders, image_folders
from ..datasets.pipelines import pipelines, split_loading
from ..datasets.reader import ImageReader
from ..errors import UserError
from ..io.text import gigabytes
from ..registry import building
from ..weights import check_remote, did_you_mean, is_remote
from .config.kinds import DATALOADERS
from .detection import check_detection
from .failing_parts import failing


def check_data(cfg: Config, loaders: Sequence[str]) -> None:
    """Check that the data sets of these data loaders (if there are any) hold images."""
    for name in loaders:
        loader = cfg.get(name)
        if loader is not None and "dataset" in loader:
            check_dataset_folders(loader["dataset"])
            with building(cfg.get("default_scope", "mmseg")):
                for _, steps in pipelines(loader["dataset"]):  # a loader may need a package
                    ImageReader(split_loading(steps)[0], f"{name}.dataset.pipeline")
    check_detection(cfg, loaders)


def check_outputs(cfg: Config, folders: Mapping[str, str | os.PathLike[str] | None]) -> None:
    """Check that no folder of pictures lies among the images of a data set, which would list them.

    ``folders`` holds them by what names them.
    """
    for name in DATALOADERS:
        dataset = (cfg.get(name) or {}).get("dataset")
        if not isinstance(dataset, Mapping):
            continue
        for images in image_folders(dataset, cfg.get("default_scope", "mmseg")):
            for what, folder in folders.items():
                if folder is not None and Path(folder).resolve().is_relative_to(images.resolve()):
                    message = f"lies in {images}, where {name}.dataset looks for images and would "
                    message += "find the pictures written here; name a folder elsewhere"
                    raise UserError("argument", f"{what} {folder}", message)


def check_compile(cfg: Config) -> None:
    """Check that ``torch.compile`` takes what ``compile`` says; nothing is compiled."""
    options = cfg.get("compile")
    scope = str((cfg.get("model") or {}).get("type")).partition(".")[0]
    if options and scope in ("mmdet", "mmpretrain"):
        message = "only segmentation models are compiled; leave it and --compile out"
        raise UserError("config-conflict", "config key compile", message)
    if isinstance(options, Mapping) and options:
        with failing("compile", "torch.compile does not take it"):
            torch.compile(nn.Identity(), **options)


def check_checkpoint(source: str | os.PathLike[str], what: str) -> None:
    """Check that a checkpoint can be read or fetched; its content is checked when it is loaded.

    Args:
        source: A path, an address, or a name of the catalogue of published weights.
        what: What it is for, to begin the message with: an argument or a config key.

    Raises:
        UserError: There is no such file or name, or the address has no file name.
    """
    text = os.fspath(source)
    if is_remote(text):
        try:
            check_remote(text)
        except UserError as error:
            raise UserError(error.code, what, error.text) from error
        return
    check_file(source, what)


def check_file(path: str | os.PathLike[str], what: str) -> None:
    """Raise UserError unless a file, named by the argument ``what``, has content to read."""
    file = Path(path)
    name = f"{what} {file}"
    if file.is_dir():
        inside = sorted(file.glob("best_*.pth")) or sorted(file.glob("*.pth"))
        hint = f"; did you mean {inside[0]}?" if inside else ""
        raise UserError("wrong-path-type", name, f"is a folder; name a file{hint}")
    if not file.exists():
        near = sorted(file.parent.glob("*.pth")) if file.parent.is_dir() else []
        hint = f"; beside it there is {', '.join(p.name for p in near[:4])}" if near else ""
        hint = did_you_mean(os.fspath(path)) or hint
        raise UserError("not-found", name, f"does not exist{hint}")
    if not os.access(file, os.R_OK):
        raise UserError("unreadable", name, "cannot be read; change its permissions")
    if not file.stat().st_size:
        raise UserError("empty", name, "is empty; it was not written or copied completely")


def check_device(device: str | torch.device | None) -> torch.device:
    """The device to compute on, e.g. ``cpu`` or ``cuda:1``; None is the GPU if there is one.

    Raises:
        UserError: The name is not a device, or this machine does not have it.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = f"device {device}"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        message = "is not a device; use cpu, cuda or cuda:N"
        raise UserError("device", name, message) from error
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (chosen.index or 0) >= count:
            have = "torch finds no GPU here; use cpu"
            if count:
                have = f"there are {count} GPUs; use cpu, or a number below {count}"
            raise UserError("device", name, have)
    elif chosen.type != "cpu":
        raise UserError("device", name, "is not one to compute on; use cpu, cuda or cuda:N")
    return chosen


def check_writable(folder: str | os.PathLike[str], what: str) -> None:
    """Make the output folder that an argument ``what`` names, and check that it can be written.

    Raises:
        UserError: It cannot be; folders that were made for it are removed.
    """
    path = Path(folder)
    new: list[Path] = []
    try:
        new += [p for p in (path.absolute(), *path.absolute().parents) if not p.exists()]
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(b"0" * 4096)
    except OSError as error:
        for made in new:
            with contextlib.suppress(OSError):
                made.rmdir()
        reason = "is a file" if error.errno == errno.EEXIST else error.strerror
        if error.errno == errno.ENOTDIR:
            part = next(p for p in path.absolute().parents if p.is_file())
            reason = f"{part} is a file"
        message = f"cannot be written ({reason}); choose another folder"
        raise UserError("not-writable", f"{what} {path}", message) from error


def check_output_file(path: str | os.PathLike[str], what: str) -> None:
    """Check, before the work, that a file which an argument ``what`` names can be written.

    Raises:
        UserError: It is a folder, or its folder cannot be made or written.
    """
    try:
        is_folder = Path(path).is_dir()
    except OSError as error:  # its name is too long
        message = f"cannot be written ({error.strerror}); choose another name"
        raise UserError("not-writable", f"{what} {path}", message) from error
    if is_folder:
        raise UserError("wrong-path-type", f"{what} {path}", "is a folder; name a file in it")
    check_writable(Path(path).absolute().parent, what)


def checkpoint_folder(cfg: Config, work_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where a run saves its checkpoints: the work folder, or what the hook's ``out_dir`` says."""
    hook = (cfg.get("default_hooks") or {}).get("checkpoint") or {}
    work_dir = Path(cfg.work_dir if work_dir is None else work_dir)
    out_dir = hook.get("out_dir")
    # MMEngine's hook puts the name behind every other folder than the runner's absolute one.
    if not out_dir or out_dir == os.path.abspath(work_dir):
        return work_dir
    return Path(out_dir) / work_dir.name


def check_disk_space(cfg: Config, model: nn.Module) -> None:
    """Raise UserError if the checkpoints that a run keeps at a time do not fit on the disk.

    The size of ``model`` with that of the optimizer's state is a checkpoint's.
    """
    hook = (cfg.get("default_hooks") or {}).get("checkpoint")
    if hook is None or hook.get("interval", -1) <= 0:
        return
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    averaged = weights if "EMAHook" in str(cfg.get("custom_hooks")) else 0
    copies = _optimizer_copies(cfg.optim_wrapper.get("optimizer") or {})
    one = weights + trained * copies + averaged
    saves = 1
    if not hook.get("by_epoch", True) and cfg.train_cfg.get("max_iters"):
        saves = -(-int(cfg.train_cfg["max_iters"]) // hook["interval"])
    keep = hook.get("max_keep_ckpts", -1)
    kept = min(keep, saves) if keep > 0 else saves
    names = hook.get("save_best")
    best = len(names) if isinstance(names, list) else bool(names)
    # One more of each: the old one is removed when the new one is complete.
    need = (kept + 1) * one + (best + 1) * (weights + averaged) * bool(best)
    folder = checkpoint_folder(cfg)
    place = next(p for p in [folder, *folder.absolute().parents] if p.is_dir())
    # Files of the run that it replaces, and what killed writers left, which it removes.
    patterns = ("*.pth", ".*.pth.*.part") if folder.is_dir() else ()
    there = sum(path.lstat().st_size for pattern in patterns for path in folder.glob(pattern))
    free = shutil.disk_usage(place).free
    if free + there < need:
        raise UserError(
            "not-writable",
            f"--work-dir {cfg.work_dir}",
            f"{gigabytes(free)} are free there, and the run needs {gigabytes(need - there)} for "
            f"{kept} checkpoints of {gigabytes(one)}{' and the best' if best else ''}; make room, "
            "choose another folder, or keep fewer with "
            "--cfg-options default_hooks.checkpoint.max_keep_ckpts=1",
        )


def _optimizer_copies(optimizer: dict) -> int:
    """How many numbers an optimizer keeps for each parameter."""
    name = str(optimizer.get("type", ""))
    if "Adam" in name:
        return 2
    return 1 if name != "SGD" or optimizer.get("momentum") else 0
