# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Wrong data, configs, checkpoints and environments, and the error that each must give."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tool_runs import Run, RunTool, Toy, Trained
from user_errors import printed_error


class Remedy:
    """What an error tells people to do.

    Args:
        where: The place that makes the error, as ``advice.Site.where``.
        *words: What it names, in the place's text.
        command: The tool and its arguments as they are to be.
        before: As in the case itself, once that is better; None keeps it.
        then: What is shown; empty for a run that succeeds.
    """

    def __init__(
        self, where: str, *words: str, command: str, before: str | None = None, then: str = ""
    ) -> None:
        self.where, self.words = where, words
        self.command, self.before, self.then = command, before, then


@dataclass(frozen=True)
class Case:
    """One wrong input.

    Attributes:
        fed: What is wrong, in words; one of its kind.
        command: The tool and its arguments; ``CKPT`` stands for a checkpoint that fits,
            ``wrong.py`` for a config that inherits from the toy one.
        code: The code of the error.
        subject: What the error must name.
        config: What ``wrong.py`` adds.
        alone: ``config`` is all of it.
        before: Python that the process executes before the tool starts.
        env: Environment variables.
        exit_code: The exit code.
        leaves: The run got as far as making a folder.
        remedy: What the error tells people to do; of errors that no test in this process can make.
    """

    fed: str
    command: str
    code: str
    subject: str
    config: str = ""
    alone: bool = False
    before: str = ""
    env: dict[str, str] = field(default_factory=dict)
    exit_code: int = 2
    leaves: bool = False
    remedy: Remedy | None = None

    @property
    def tool(self) -> str:
        return self.command.split()[0].removesuffix(".py")


def _config(
    fed: str, text: str, code: str, subject: str, command: str = "train.py wrong.py", **kw
) -> Case:
    return Case(fed, command, code, subject, config=text, **kw)


def _data(fed: str, root: str, code: str, split: str = "train", **kw) -> Case:
    """A copy of the data with one fault, to train on, or to test with."""
    command = "train.py wrong.py" if split == "train" else "test.py wrong.py CKPT"
    return Case(
        fed, command, code, f"{root}/",
        config=f"{split}_dataloader = dict(dataset=dict(data_root={root!r}))", **kw,
    )  # fmt: skip


def _step(code: str) -> str:
    """A config whose transform does something in a data loading worker."""
    return f"""custom_imports = dict(imports=['broken_step'])
train_dataloader = dict(
    sampler=dict(type='ExactSampler'),
    dataset=dict(pipeline=[*_base_.train_pipeline[:2], dict(type='Broken', code={code!r}),
                           *_base_.train_pipeline[2:]]),
)"""


_ONE = "--cfg-options train_cfg.max_iters=1"
_TWO = "--cfg-options train_cfg.max_iters=2"
_REFUSED = "http://127.0.0.1:9"  # the port of a service that nobody runs
# No permission counts for the superuser, whom continuous integration often is.
_NO_POWERS = """
import ctypes
header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
ctypes.CDLL(None).capset(header, data)
"""
_LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_{}, ({}, {}))"
_LAUNCHED = {
    "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29817",
}  # fmt: skip
_TAKEN = """
import socket
taken = socket.socket()
taken.bind(("", 0))
taken.listen()
import os
os.environ["MASTER_PORT"] = str(taken.getsockname()[1])
"""
_FREE = """
import socket, os
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    os.environ["MASTER_PORT"] = str(free.getsockname()[1])
"""

DATA = [
    _config(
        "a data set whose folder does not exist",
        "train_dataloader = dict(dataset=dict(data_root='nowhere'))",
        "not-found", "nowhere",
    ),
    _config(
        "an empty folder of images",
        "part = dict(img_path='none')\n"
        "train_dataloader = dict(dataset=dict(data_root='data', data_prefix=part))",
        "empty", "data/none",
    ),
    Case(
        "`--data-root` that does not exist", "train.py toy.py --data-root nowhere",
        "not-found", "--data-root nowhere",
    ),
    Case(
        "`--data-root` without the data set", "train.py toy.py --data-root nothing",
        "not-found", "nothing/scenes",
    ),
    _data("a training image that is cut short", "data/cut_image", "dataset"),
    _data("a training image of 0 bytes", "data/empty_image", "dataset"),
    _data("a text file named .png among the images", "data/text_image", "dataset"),
    _data("an image that is a link to nothing", "data/dangling_image", "dataset"),
    _data("an image without a label map", "data/no_label", "dataset"),
    _data("a label map that is cut short", "data/cut_label", "dataset"),
    _data("a label map of another size than its image", "data/small_label", "dataset"),
    _data("a label map with a class that there is not", "data/high_label", "dataset"),
    _data("a label map in colours", "data/colour_label", "dataset"),
    _config(
        "a list of files that names an image that is not there",
        "train_dataloader = dict(dataset=dict(data_root='data/lists', ann_file='list.txt'))",
        "dataset", "data/lists/images/training/not_there.png",
    ),
    _config(
        "an empty list of files",
        "train_dataloader = dict(dataset=dict(data_root='data/lists', ann_file='empty.txt'))",
        "empty", "data/lists/empty.txt",
    ),
    _data(
        "a test image that is cut short", "data/cut_image", "image", split="test", leaves=True
    ),
    _data(
        "a test image without a label map", "data/no_label", "not-found", split="test", leaves=True
    ),
    Case(
        "an image that does not exist", "predict.py toy.py CKPT no.jpg --out o", "not-found",
        "no.jpg",
    ),
    Case(
        "a folder without images", "predict.py toy.py CKPT nothing --out o", "empty", "nothing"
    ),
    Case(
        "a pattern that no file matches", "predict.py toy.py CKPT none*.png --out o",
        "not-found", "none*.png",
    ),
    Case(
        "an image that is cut short", "predict.py toy.py CKPT cut.png --out o",
        "image", "cut.png", leaves=True,
    ),
    Case(
        "a text file named .png", "predict.py toy.py CKPT text.png --out o",
        "image", "text.png", leaves=True,
    ),
    Case(
        "an image of 0 bytes", "predict.py toy.py CKPT empty.png --out o",
        "empty", "empty.png", leaves=True,
    ),
    Case(
        "an image whose header promises 10 gigapixels",
        "predict.py toy.py CKPT bomb.png --out o", "too-large", "bomb.png", leaves=True,
    ),
    Case(
        "a video that is none", "predict.py toy.py CKPT text.mp4 --out o",
        "format", "text.mp4", leaves=True,
    ),
    Case(
        "a video that does not exist", "predict.py toy.py CKPT no.mp4 --out o", "not-found",
        "no.mp4",
    ),
    Case(
        "the address of an image, with no server there",
        f"predict.py toy.py CKPT {_REFUSED}/a.png --out o", "download", "/a.png", leaves=True,
    ),
    Case(
        "an output folder whose files would take the place of the input",
        "predict.py toy.py CKPT a.png --out .", "output-exists", "--out",
    ),
]  # fmt: skip

CONFIGS = [
    Case("no config", "train.py", "argument", "config"),
    Case(
        "a config that does not exist", "train.py toyy.py", "not-found", "toyy.py"
    ),
    Case("a folder for a config", "train.py .", "wrong-path-type", "config ."),
    Case("a text file for a config", "train.py text.mp4", "config-syntax", "config text.mp4"),
    Case("an image named .py", "train.py image.py", "config-syntax", "config image.py"),
    _config("a config with an open bracket", "model = dict(", "config-syntax", "wrong.py, line 2"),
    _config(
        "a config with an undefined name", "x = undefined_name",
        "config-syntax", "wrong.py, line 2",
    ),
    _config(
        "a base config that does not exist", "_base_ = 'other.py'", "config-syntax", "wrong.py",
        alone=True,
    ),
    _config(
        "an import that fails", "custom_imports = dict(imports=['no_such_module'])",
        "config-value", "wrong.py",
    ),
    _config("no model", "model = None", "config-value", "model"),
    _config(
        "no test data", "test_dataloader = None", "config-key", "wrong.py",
        command="test.py wrong.py CKPT",
    ),
    _config(
        "no model, to predict with", "model = None", "config-value", "model",
        command="predict.py wrong.py CKPT a.png --out o",
    ),
    _config(
        "a misspelt head", "model = dict(decode_head=dict(type='FCNHed'))",
        "config-type", "model.decode_head.type",
    ),
    _config(
        "a misspelt data set", "train_dataloader = dict(dataset=dict(type='ScenesDatset'))",
        "config-type", "train_dataloader.dataset.type",
    ),
    _config(
        "a misspelt transform",
        "val_dataloader = dict(dataset=dict(pipeline=[dict(type='Flipp')]))",
        "config-type", "val_dataloader.dataset.pipeline.0.type",
    ),
    _config(
        "a model where a loop belongs", "train_cfg = dict(type='ResNeSt')",
        "config-type", "train_cfg.type",
    ),
    _config(
        "a misspelt option of the backbone", "model = dict(backbone=dict(dept=18))",
        "config-key", "model.backbone.dept",
    ),
    _config(
        "a misspelt option of a data set",
        "val_dataloader = dict(dataset=dict(dataroot='x'))",
        "config-key", "val_dataloader.dataset.dataroot",
    ),
    _config(
        "a misspelt key of a data loader", "train_dataloader = dict(num_worker=2)",
        "config-key", "train_dataloader.num_worker",
    ),
    _config(
        "a depth that the backbone does not have", "model = dict(backbone=dict(depth=19))",
        "config-value", "model",
    ),
    _config(
        "a batch of 0 images", "train_dataloader = dict(batch_size=0)",
        "config-value", "train_dataloader.batch_size",
    ),
    _config(
        "a head with other channels than the backbone",
        "model = dict(decode_head=dict(in_channels=33))", "model", "model.decode_head",
    ),
    _config(
        "checkpoints that do not fit on the disk",
        "train_cfg = dict(max_iters=10**12)\n"
        "param_scheduler = [dict(type='PolyLR', end=10**12, by_epoch=False)]\n"
        "default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=-1))",
        "not-writable", "--work-dir work_dirs/wrong",
    ),
    Case(
        "an argument that there is not", "train.py toy.py --workdir x", "argument", "--workdir"
    ),
    Case(
        "an option without a value", "train.py toy.py --cfg-options seed", "argument", "seed"
    ),
    Case(
        "an option of a misspelt key",
        "train.py toy.py --cfg-options train_cfg.max_iter=5",
        "config-key", "train_cfg.max_iter",
    ),
    Case(
        "an option of a misspelt top-level key",
        "train.py toy.py --cfg-options optim_wraper.type=x",
        "config-key", "optim_wraper.type",
    ),
    Case(
        "an option that names a variable of the config file",
        "train.py toy.py --cfg-options norm_cfg.type=BN", "config-key", "norm_cfg.type",
    ),
    Case(
        "a word for a number", "train.py toy.py --cfg-options train_cfg.max_iters=many",
        "config-value", "train_cfg.max_iters=many",
    ),
    Case(
        "a word for a dictionary", "train.py toy.py --cfg-options model.backbone=resnest50",
        "config-value", "model.backbone=resnest50",
    ),
    Case(
        "an index beyond the end of a list",
        "train.py toy.py --cfg-options param_scheduler.3.power=1", "config-key",
        "param_scheduler.3.power",
    ),
    Case(
        "an open bracket in an option",
        "train.py toy.py --cfg-options tta_model.scales=[1,2", "argument", "tta_model.scales=[1,2",
    ),
    Case(
        "`--tta` without augmentation in the config", "test.py no_tta.py CKPT --tta",
        "config-key", "--tta",
    ),
    Case(
        "an opacity of 2", "predict.py toy.py CKPT a.png --out o --opacity 2", "argument",
        "--opacity"
    ),
    Case(
        "tiles of 5 pixels", "predict.py toy.py CKPT a.png --out o --tile 5",
        "argument", "--tile",
    ),
    Case("no output folder", "predict.py toy.py CKPT a.png", "argument", "--out"),
]  # fmt: skip

CHECKPOINTS = [
    Case(
        "a checkpoint that does not exist", "test.py toy.py no.pth", "not-found", "no.pth"
    ),
    Case("a folder for a checkpoint", "test.py toy.py scenes", "not-found", "scenes"),
    Case("a checkpoint of 0 bytes", "test.py toy.py empty.pth", "empty", "empty.pth"),
    Case("a config for a checkpoint", "test.py toy.py toy.py", "corrupt", "toy.py"),
    Case("a web page saved as a checkpoint", "test.py toy.py page.pth", "format", "page.pth"),
    Case("a checkpoint that is cut short", "test.py toy.py cut.pth", "corrupt", "cut.pth"),
    Case("a checkpoint with changed bytes", "test.py toy.py damaged.pth", "corrupt", "damaged.pth"),
    Case(
        "a .safetensors file that is cut short", "test.py toy.py cut.safetensors",
        "corrupt", "cut.safetensors",
    ),
    Case(
        "a checkpoint that runs code, to test", "test.py toy.py evil.pth", "checkpoint-unsafe",
        "evil.pth"
    ),
    Case(
        "a checkpoint that runs code, to predict with",
        "predict.py toy.py evil.pth a.png --out o", "checkpoint-unsafe", "evil.pth",
    ),
    Case(
        "a checkpoint that runs code, to resume from", "train.py toy.py --resume evil.pth",
        "checkpoint-unsafe", "evil.pth",
    ),
    Case(
        "a checkpoint that runs code, to start from",
        "train.py toy.py --cfg-options load_from=evil.pth", "checkpoint-unsafe", "evil.pth",
    ),
    _config(
        "a checkpoint that runs code, for the backbone",
        "model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='evil.pth')))",
        "checkpoint-unsafe", "evil.pth",
    ),
    Case(
        "a checkpoint of another model", "test.py toy.py other.pth",
        "checkpoint", "other.pth",
    ),
    Case(
        "a checkpoint of other classes", "test.py toy.py classes.pth",
        "checkpoint", "classes.pth",
    ),
    Case(
        "a misspelt name of published weights", "test.py toy.py deeplab_resnest101_ad",
        "not-found", "deeplab_resnest101_ad",
    ),
    Case(
        "a misspelt name of published weights, to start from",
        "train.py toy.py --cfg-options load_from=resnest5",
        "not-found", "config key load_from resnest5",
    ),
    _config(
        "weights to start from that do not exist", "load_from = 'no.pth'",
        "not-found", "config key load_from no.pth",
    ),
    Case(
        "a checkpoint to resume from that does not exist", "train.py toy.py --resume no.pth",
        "not-found", "--resume no.pth",
    ),
    Case(
        "a teacher that does not exist", "train.py toy.py --teacher no_such_model",
        "not-found", "teacher no_such_model",
    ),
    Case(
        "weights alone, to resume from", "train.py toy.py --resume weights.pth", "resume",
        "weights.pth"
    ),
    Case(
        "a checkpoint to resume from that is cut short", "train.py toy.py --resume cut.pth",
        "corrupt", "--resume cut.pth",
    ),
    Case(
        "a checkpoint to resume from with changed bytes",
        "train.py toy.py --resume damaged.pth", "corrupt", "--resume damaged.pth",
    ),
    Case(
        "a checkpoint to resume from of another model",
        "train.py toy.py --resume other_run.pth",
        "checkpoint", "other_run.pth",
    ),
]  # fmt: skip

ENVIRONMENT = [
    Case(
        "a work folder below a file", "train.py toy.py --work-dir toy.py/x",
        "not-writable", "--work-dir toy.py/x",
    ),
    Case(
        "a file for a work folder", "train.py toy.py --work-dir toy.py", "not-writable",
        "--work-dir toy.py"
    ),
    Case(
        "label maps below a file", "test.py toy.py CKPT --work-dir work --out toy.py/labels",
        "not-writable", "--out toy.py/labels", leaves=True,
    ),
    Case(
        "a work folder without permission to write", "train.py toy.py --work-dir locked/w",
        "not-writable", "--work-dir locked/w", before=_NO_POWERS,
    ),
    Case(
        "an output folder without permission to write",
        "predict.py toy.py CKPT a.png --out locked", "not-writable", "--out locked",
        before=_NO_POWERS,
    ),
    Case(
        "a checkpoint without permission to read", "test.py toy.py secret.pth",
        "unreadable", "secret.pth", before=_NO_POWERS,
    ),
    Case(
        "an image without permission to read", "predict.py toy.py CKPT secret.png --out o",
        "unreadable", "secret.png", before=_NO_POWERS, leaves=True,
    ),
    Case(
        "a work folder in a file system that takes no files",
        "train.py toy.py --work-dir /proc/w", "not-writable", "--work-dir /proc/w",
    ),
    Case(
        "a folder for temporary files that is full (files end at 1 kB)",
        "predict.py toy.py CKPT a.png --out o", "not-writable", "toy.py",
        before=_LIMIT.format("FSIZE", 1000, 1000),
    ),
    Case(
        "a disk that runs full while training (files end at 100 kB)",
        "train.py toy.py", "storage", "work_dirs/toy",
        before=_LIMIT.format("FSIZE", 100_000, 100_000), leaves=True,
        remedy=Remedy(
            "engine/runner.py:train", "make room", "the same command with --resume",
            command="train.py toy.py --resume", before="",
        ),
    ),
    Case(
        "a disk that runs full while predicting (files end at 5 kB)",
        "predict.py toy.py CKPT noise.png --out o", "not-writable", "o/noise_overlay.png",
        before=_LIMIT.format("FSIZE", 5000, 5000), leaves=True,
    ),
    Case(
        "a console that takes nothing (`> /dev/full`)", "predict.py toy.py CKPT a.png --out o",
        "not-writable", "standard output",
        before="import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)", leaves=True,
    ),
    Case(
        "a GPU that there is not", "predict.py toy.py CKPT a.png --out o --device cuda:99",
        "device", "device cuda:99",
    ),
    Case(
        "a device that is none", "predict.py toy.py CKPT a.png --out o --device abacus",
        "device", "device abacus",
    ),
    Case(
        "`--launcher pytorch` without a launcher", "train.py toy.py --launcher pytorch",
        "environment", "--launcher pytorch",
    ),
    Case(
        "`--launcher slurm` without Slurm", "train.py toy.py --launcher slurm",
        "environment", "--launcher slurm",
    ),
    Case(
        "`RANK=first` from a launcher", "train.py toy.py --launcher pytorch",
        "environment", "RANK", env={**_LAUNCHED, "RANK": "first"},
    ),
    Case(
        "`WORLD_SIZE=3` and a batch of 4",
        "train.py toy.py --launcher pytorch --cfg-options +env_cfg.dist_cfg.timeout=2",
        "config-conflict", "train_dataloader.batch_size", env={**_LAUNCHED, "WORLD_SIZE": "3"},
    ),
    Case(
        "a port of the launcher that is taken", "train.py toy.py --launcher pytorch",
        "network", "127.0.0.1:", env=_LAUNCHED, before=_TAKEN,
    ),
    Case(
        "a second process that never comes",
        "train.py toy.py --launcher pytorch --cfg-options +env_cfg.dist_cfg.timeout=2",
        "ranks", "process 0",
        env={**_LAUNCHED, "WORLD_SIZE": "2"}, before=_FREE, exit_code=75,
    ),
    Case(
        "a first process that cannot be reached",
        "test.py toy.py CKPT --launcher pytorch --cfg-options +env_cfg.dist_cfg.timeout=2",
        "ranks", "process 1", env={**_LAUNCHED, "RANK": "1",
        "WORLD_SIZE": "2"}, before=_FREE, exit_code=75,
        leaves=True,
    ),
    Case(
        "`OMP_NUM_THREADS=many`", f"train.py toy.py --launcher pytorch {_ONE}",
        "environment", "OMP_NUM_THREADS", env={**_LAUNCHED, "OMP_NUM_THREADS": "many"},
    ),
    Case(
        "no network, and weights to fetch", "test.py toy.py fcn_resnest50_ade",
        "download", "fcn_resnest50_ade",
        env={
            "https_proxy": _REFUSED, "http_proxy": _REFUSED, "no_proxy": "",
            "MMSEG_RESNEST_CACHE": "cache", "MMSEG_RESNEST_TIMEOUT": "1",
        },
        leaves=True,
    ),
    Case(
        "`MMSEG_RESNEST_TIMEOUT=soon`", "test.py toy.py resnest50",
        "environment", "MMSEG_RESNEST_TIMEOUT",
        env={"MMSEG_RESNEST_CACHE": "cache", "MMSEG_RESNEST_TIMEOUT": "soon"},
    ),
    Case(
        "a folder for downloads that is a file", "test.py toy.py resnest50",
        "not-writable", "resnest50", env={"MMSEG_RESNEST_CACHE": "toy.py"},
    ),
    Case(
        "24 file descriptors (`ulimit -n 24`)",
        "train.py toy.py --cfg-options train_dataloader.num_workers=1", "environment",
        "train_dataloader.num_workers",
        before=_LIMIT.format("NOFILE", 24, 24),
        remedy=Remedy(
            "engine/launch.py:_allow_open_files", "num_workers=0",
            command="train.py toy.py --cfg-options train_dataloader.num_workers=0",
        ),
    ),
    _config(
        "too little memory for the model", "model = dict(decode_head=dict(channels=10**8))",
        "memory", "this machine", before=_LIMIT.format("AS", 16 << 30, 16 << 30),
    ),
    Case(
        "a data loading worker that exits", "train.py wrong.py",
        "data-loading", "data loading worker", config=_step("os._exit(1)"),
    ),
    Case(
        "a data loading worker that is killed", "train.py wrong.py",
        "data-loading", "data loading worker", config=_step("os.kill(os.getpid(), 9)"),
    ),
    Case(
        "a transform that fails in a worker", "train.py wrong.py",
        "data-loading", "train_dataloader.dataset",
        config=_step("raise ValueError('bad pixel')"),
    ),
    Case(
        "a transform that fails in a worker after some samples", "train.py wrong.py",
        "data-loading", "worker", leaves=True,
        config=_step("self.n = getattr(self, 'n', 0) + 1\nif self.n > 8: raise ValueError(self.n)"),
        remedy=Remedy(
            "cli/failures.py:_explain_failed_worker", "train_dataloader.num_workers=0",
            command="train.py wrong.py --cfg-options train_dataloader.num_workers=0",
            then="ValueError: 9",
        ),
    ),
    Case(
        "a transform that says what is wrong", "train.py wrong.py", "image", "file x",
        config=_step("raise UserError('image', 'file x', 'is broken')"),
    ),
    Case(
        "a data loading worker that hangs",
        "train.py wrong.py --cfg-options train_dataloader.timeout=2",
        "data-loading", "data loading worker", config=_step("time.sleep(100)"),
    ),
    Case(
        "a data loading worker that is slow",
        f"train.py wrong.py {_TWO} train_dataloader.timeout=1",
        "data-loading", "data loading worker", leaves=True,
        config=_step("self.n = getattr(self, 'n', 0) + 1\ntime.sleep(20 * (self.n == 5))"),
        remedy=Remedy(
            "engine/loop.py:_hung_worker", "raise train_dataloader.timeout",
            command=f"train.py wrong.py {_TWO} train_dataloader.timeout=60",
        ),
    ),
]  # fmt: skip

CASES = [*DATA, *CONFIGS, *CHECKPOINTS, *ENVIRONMENT]


class _Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("touch executed",)


def make_files(toy: Toy, trained: Trained) -> None:
    """Put into the toy folder what is wrong in many ways."""
    folder = toy.folder
    (folder / "nothing").mkdir()
    toy.variant("no_tta", "tta_model = None")
    pixels = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    Image.fromarray(pixels[:8, :8]).save(folder / "a.png")
    Image.fromarray(pixels).save(folder / "noise.png")
    content = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(content[:100])
    (folder / "image.py").write_bytes(content)
    (folder / "secret.png").write_bytes(content)
    (folder / "bomb.png").write_bytes(_promise(100_000))
    for name in ("text.png", "text.mp4"):
        (folder / name).write_text("this is a text\n")
    for name in ("empty.pth", "empty.png"):
        (folder / name).touch()
    (folder / "page.pth").write_text("<!doctype html><html><body>404 not found</body></html>")
    whole = trained.checkpoint.read_bytes()
    (folder / "cut.pth").write_bytes(whole[: len(whole) // 2])
    at = len(whole) // 2
    (folder / "damaged.pth").write_bytes(whole[:at] + bytes(200) + whole[at + 200 :])
    header = b'{"w":{"dtype":"F32","shape":[10],"data_offsets":[0,40]}}'
    (folder / "cut.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    record = torch.load(trained.checkpoint, weights_only=False)
    weights = record["state_dict"]
    torch.save(weights, folder / "weights.pth")
    torch.save(weights, folder / "secret.pth")
    torch.save({"state_dict": weights, "extra": _Evil()}, folder / "evil.pth")
    other = {k: v for k, v in weights.items() if not k.startswith("backbone.stem.0")}
    torch.save(other, folder / "other.pth")
    torch.save({**record, "state_dict": other}, folder / "other_run.pth")
    fewer = {k: v[:5] if "conv_seg" in k else v for k, v in weights.items()}
    torch.save(fewer, folder / "classes.pth")
    (folder / "locked").mkdir(mode=0o555)
    for name in ("secret.pth", "secret.png"):
        (folder / name).chmod(0)
    (folder / "broken_step.py").write_text(
        """import os, time
from mmseg_resnest.errors import UserError
from mmseg_resnest.registry import TRANSFORMS


@TRANSFORMS.register_module()
class Broken:
    def __init__(self, code):
        self.code = code

    def __call__(self, sample):
        exec(self.code)
        return sample
"""
    )
    _make_data(toy)


def _promise(edge: int) -> bytes:
    """A PNG whose header promises a size that is not there."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", edge, edge, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def _make_data(toy: Toy) -> None:
    """Copies of the data, each with one fault in the training and the validation part."""

    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def dangle(path: Path) -> None:
        path.unlink()
        path.symlink_to("gone.png")

    def shrink(path: Path) -> None:
        Image.fromarray(np.asarray(Image.open(path))[:50, :60]).save(path)

    def raise_class(path: Path) -> None:
        label = np.asarray(Image.open(path)).copy()
        label[:9] = 77
        Image.fromarray(label).save(path)

    def colour(path: Path) -> None:
        label = np.asarray(Image.open(path))
        Image.fromarray(np.dstack([label * 20, 255 - label, label])).save(path)

    faults = {
        "cut_image": ("images", cut),
        "empty_image": ("images", lambda path: path.write_bytes(b"")),
        "text_image": ("images", lambda path: path.write_text("this is a text\n")),
        "dangling_image": ("images", dangle),
        "no_label": ("annotations", Path.unlink),
        "cut_label": ("annotations", cut),
        "small_label": ("annotations", shrink),
        "high_label": ("annotations", raise_class),
        "colour_label": ("annotations", colour),
    }
    for name, (kind, fault) in faults.items():
        root = toy.folder / "data" / name
        shutil.copytree(toy.scenes, root)
        for split in ("training", "validation"):
            fault(sorted((root / kind / split).iterdir())[1])
    (toy.folder / "data" / "none").mkdir()
    lists = toy.folder / "data" / "lists"
    shutil.copytree(toy.scenes, lists)
    (lists / "list.txt").write_text("not_there\n")
    (lists / "empty.txt").touch()


def run_case(case: Case, toy: Toy, trained: Trained, run_tool: RunTool) -> Run:
    """Feed it."""
    for left in ("o", "work", "work_dirs", "cache"):  # by the cases before
        shutil.rmtree(toy.folder / left, ignore_errors=True)
    if case.config:
        base = "" if case.alone else '_base_ = "toy.py"\n'
        (toy.folder / "wrong.py").write_text(base + case.config + "\n")
    return _run(case.command, case.before, case, toy, trained, run_tool)


def _run(
    command: str, before: str, case: Case, toy: Toy, trained: Trained, run_tool: RunTool
) -> Run:
    tool, *args = (w.replace("CKPT", str(trained.checkpoint)) for w in command.split())
    # The same on a machine with a GPU; the console does not know what a cursor is.
    env = {
        "CUDA_VISIBLE_DEVICES": "", "TERM": "dumb", "PYTHONPATH": str(toy.folder), **case.env
    }  # fmt: skip
    return run_tool(tool, *args, cwd=toy.folder, env=env, timeout=240, before=before)


def check_remedy(case: Case, wrong: Run, toy: Toy, trained: Trained, run_tool: RunTool) -> None:
    """Do what the error of a case tells people to do, after it; AssertionError if it is no use."""
    remedy = case.remedy
    assert remedy is not None
    assert all(word in wrong.stderr for word in remedy.words), wrong.stderr
    before = case.before if remedy.before is None else remedy.before
    run = _run(remedy.command, before, case, toy, trained, run_tool)
    if remedy.then:
        assert remedy.then in run.stdout + run.stderr
    else:
        run.check()


def check(case: Case, run: Run) -> None:
    """Raise AssertionError unless the run ended as the case says: one error line, no traceback."""
    output = run.stdout[-1000:] + run.stderr[-4000:]
    assert run.returncode == case.exit_code, output
    assert "Traceback" not in run.stdout + run.stderr, output
    code, text = printed_error(run.stderr)
    assert code == case.code, output
    assert case.subject in text, output
