# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Wrong data, configs, checkpoints and environments, and what train, test and predict must say.

``tests/tools/test_bad_input.py`` runs every case. ``make bad-input`` runs them too and writes
``docs/bad_input.md`` from what the tools said.
"""

from __future__ import annotations

# ruff: noqa: E402 (runs as a script: its neighbours are found only then)
import os
import re
import resource
import shutil
import struct
import sys
import tempfile
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import numpy as np
import torch
from PIL import Image
from tool_runs import ROOT, Run, RunTool, Toy, Trained, make_toy

DOCUMENT = ROOT / "docs" / "bad_input.md"


@dataclass(frozen=True)
class Case:
    """One wrong input.

    Attributes:
        fed: What is wrong, in words; one of its kind.
        command: The tool and its arguments; ``CKPT`` stands for a checkpoint that fits,
            ``wrong.py`` for a config that inherits from the toy one.
        says: Parts of the message.
        config: What ``wrong.py`` adds.
        alone: ``config`` is all of it.
        before: Python that the process executes before the tool starts.
        env: Environment variables.
        code: The exit code.
        leaves: The run got as far as making a folder.
    """

    fed: str
    command: str
    says: tuple[str, ...]
    config: str = ""
    alone: bool = False
    before: str = ""
    env: dict[str, str] = field(default_factory=dict)
    code: int = 2
    leaves: bool = False

    @property
    def tool(self) -> str:
        return self.command.split()[0].removesuffix(".py")


def _config(fed: str, text: str, *says: str, command: str = "train.py wrong.py", **kw) -> Case:
    return Case(fed, command, says, config=text, **kw)


def _data(fed: str, root: str, *says: str, split: str = "train", **kw) -> Case:
    """A copy of the data with one fault, to train on, or to test with."""
    command = "train.py wrong.py" if split == "train" else "test.py wrong.py CKPT"
    return Case(
        fed, command, says, config=f"{split}_dataloader = dict(dataset=dict(data_root={root!r}))",
        **kw,
    )  # fmt: skip


def _step(code: str) -> str:
    """A config whose transform does something in a data loading worker."""
    return f"""custom_imports = dict(imports=['broken_step'])
train_dataloader = dict(
    sampler=dict(type='ExactSampler'), dataset=dict(pipeline=[dict(type='Broken', code={code!r})])
)"""


_ONE = "--cfg-options train_cfg.max_iters=1"
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
        "nowhere", "data/README.md",
    ),
    _config(
        "an empty folder of images",
        "part = dict(img_path='none')\n"
        "train_dataloader = dict(dataset=dict(data_root='data', data_prefix=part))",
        "data/none", "holds no *.png",
    ),
    Case(
        "`--data-root` that does not exist", "train.py toy.py --data-root nowhere",
        ("--data-root nowhere", "data/README.md"),
    ),
    Case(
        "`--data-root` without the data set", "train.py toy.py --data-root nothing",
        ("nothing/scenes", "data/README.md"),
    ),
    _data("a training image that is cut short", "data/cut_image", "scenes_"),
    _data("a training image of 0 bytes", "data/empty_image", "scenes_"),
    _data("a text file named .png among the images", "data/text_image", "scenes_"),
    _data("an image that is a link to nothing", "data/dangling_image", "scenes_"),
    _data("an image without a label map", "data/no_label", "scenes_"),
    _data("a label map that is cut short", "data/cut_label", "scenes_"),
    _data("a label map of another size than its image", "data/small_label", "scenes_"),
    _data("a label map with a class that there is not", "data/high_label", "scenes_"),
    _data("a label map in colours", "data/colour_label", "scenes_"),
    _config(
        "a list of files that names an image that is not there",
        "train_dataloader = dict(dataset=dict(data_root='data/lists', ann_file='list.txt'))",
        "not_there",
    ),
    _config(
        "an empty list of files",
        "train_dataloader = dict(dataset=dict(data_root='data/lists', ann_file='empty.txt'))",
        "empty.txt",
    ),
    _data(
        "a test image that is cut short", "data/cut_image", "scenes_", split="test", leaves=True
    ),
    _data(
        "a test image without a label map", "data/no_label", "scenes_", split="test", leaves=True
    ),
    Case("an image that does not exist", "predict.py toy.py CKPT no.jpg --out o", ("no.jpg",)),
    Case(
        "a folder without images", "predict.py toy.py CKPT nothing --out o", ("holds no image",)
    ),
    Case(
        "a pattern that no file matches", "predict.py toy.py CKPT none*.png --out o",
        ("none*.png", "no file matches"),
    ),
    Case(
        "an image that is cut short", "predict.py toy.py CKPT cut.png --out o",
        ("cut.png",), leaves=True,
    ),
    Case(
        "a text file named .png", "predict.py toy.py CKPT text.png --out o",
        ("text.png",), leaves=True,
    ),
    Case(
        "an image of 0 bytes", "predict.py toy.py CKPT empty.png --out o",
        ("empty.png",), leaves=True,
    ),
    Case(
        "an image whose header promises 10 gigapixels",
        "predict.py toy.py CKPT bomb.png --out o", ("bomb.png",), leaves=True,
    ),
    Case(
        "a video that is none", "predict.py toy.py CKPT text.mp4 --out o",
        ("text.mp4",), leaves=True,
    ),
    Case("a video that does not exist", "predict.py toy.py CKPT no.mp4 --out o", ("no.mp4",)),
    Case(
        "the address of an image, with no server there",
        f"predict.py toy.py CKPT {_REFUSED}/a.png --out o", ("/a.png",), leaves=True,
    ),
    Case(
        "an output folder whose files would take the place of the input",
        "predict.py toy.py CKPT a.png --out .", ("would overwrite an image",),
    ),
]  # fmt: skip

CONFIGS = [
    Case("no config", "train.py", ("config", "--help")),
    Case(
        "a config that does not exist", "train.py toyy.py", ("toyy.py", "did you mean toy.py")
    ),
    Case("a folder for a config", "train.py .", ("is a folder",)),
    Case("a text file for a config", "train.py text.mp4", ("text.mp4",)),
    Case("an image named .py", "train.py image.py", ("image.py",)),
    _config("a config with an open bracket", "model = dict(", "wrong.py, line 2"),
    _config(
        "a config with an undefined name", "x = undefined_name",
        "wrong.py, line 2", "undefined_name",
    ),
    _config(
        "a base config that does not exist", "_base_ = 'other.py'", "_base_", "other.py",
        alone=True,
    ),
    _config(
        "an import that fails", "custom_imports = dict(imports=['no_such_module'])",
        "no_such_module",
    ),
    _config("no model", "model = None", "has no model"),
    _config(
        "no test data", "test_dataloader = None", "has no test_dataloader",
        command="test.py wrong.py CKPT",
    ),
    _config(
        "no model, to predict with", "model = None", "has no model",
        command="predict.py wrong.py CKPT a.png --out o",
    ),
    _config(
        "a misspelt head", "model = dict(decode_head=dict(type='FCNHed'))",
        "model.decode_head.type", "FCNHed", "did you mean FCNHead",
    ),
    _config(
        "a misspelt data set", "train_dataloader = dict(dataset=dict(type='ScenesDatset'))",
        "train_dataloader.dataset.type", "ScenesDataset",
    ),
    _config(
        "a misspelt transform",
        "val_dataloader = dict(dataset=dict(pipeline=[dict(type='Flipp')]))",
        "val_dataloader.dataset.pipeline.0.type", "Flipp",
    ),
    _config(
        "a model where a loop belongs", "train_cfg = dict(type='ResNeSt')",
        "train_cfg.type", "no loop called ResNeSt", "ResNeSt is a model",
    ),
    _config(
        "a misspelt option of the backbone", "model = dict(backbone=dict(dept=18))",
        "model.backbone.dept", "did you mean depth",
    ),
    _config(
        "a misspelt option of a data set",
        "val_dataloader = dict(dataset=dict(dataroot='x'))",
        "val_dataloader.dataset.dataroot", "did you mean data_root",
    ),
    _config(
        "a misspelt key of a data loader", "train_dataloader = dict(num_worker=2)",
        "train_dataloader.num_worker", "did you mean num_workers",
    ),
    _config(
        "a depth that the backbone does not have", "model = dict(backbone=dict(depth=19))",
        "config key model", "19",
    ),
    _config(
        "a batch of 0 images", "train_dataloader = dict(batch_size=0)",
        "train_dataloader.batch_size", "not 0",
    ),
    _config(
        "a head with other channels than the backbone",
        "model = dict(decode_head=dict(in_channels=33))", "33", leaves=True,
    ),
    _config(
        "checkpoints that do not fit on the disk",
        "train_cfg = dict(max_iters=10**12)\n"
        "param_scheduler = [dict(type='PolyLR', end=10**12, by_epoch=False)]\n"
        "default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=-1))",
        "are free there", "max_keep_ckpts",
    ),
    Case(
        "an argument that there is not", "train.py toy.py --workdir x", ("--workdir",)
    ),
    Case(
        "an option without a value", "train.py toy.py --cfg-options seed", ("KEY=VALUE",)
    ),
    Case(
        "an option of a misspelt key",
        "train.py toy.py --cfg-options train_cfg.max_iter=5",
        ("train_cfg.max_iter", "did you mean train_cfg.max_iters"),
    ),
    Case(
        "an option of a misspelt top-level key",
        "train.py toy.py --cfg-options optim_wraper.type=x",
        ("optim_wraper", "did you mean optim_wrapper"),
    ),
    Case(
        "an option that names a variable of the config file",
        "train.py toy.py --cfg-options norm_cfg.type=BN", ("norm_cfg is a variable",),
    ),
    Case(
        "a word for a number", "train.py toy.py --cfg-options train_cfg.max_iters=many",
        ("train_cfg.max_iters=many", "a number"),
    ),
    Case(
        "a word for a dictionary", "train.py toy.py --cfg-options model.backbone=resnest50",
        ("model.backbone=resnest50", "a dictionary"),
    ),
    Case(
        "an index beyond the end of a list",
        "train.py toy.py --cfg-options param_scheduler.3.power=1", ("list of 1",),
    ),
    Case(
        "an open bracket in an option",
        "train.py toy.py --cfg-options tta_model.scales=[1,2", ("brackets",),
    ),
    Case(
        "`--tta` without augmentation in the config", "test.py no_tta.py CKPT --tta",
        ("--tta", "no tta_model"),
    ),
    Case(
        "an opacity of 2", "predict.py toy.py CKPT a.png --out o --opacity 2", ("--opacity 2",)
    ),
    Case(
        "tiles of 5 pixels", "predict.py toy.py CKPT a.png --out o --tile 5",
        ("tile 5", "64"), leaves=True,
    ),
    Case("no output folder", "predict.py toy.py CKPT a.png", ("--out",)),
]  # fmt: skip

CHECKPOINTS = [
    Case(
        "a checkpoint that does not exist", "test.py toy.py no.pth", ("no.pth", "does not exist")
    ),
    Case("a folder for a checkpoint", "test.py toy.py scenes", ("scenes", "is a folder")),
    Case("a checkpoint of 0 bytes", "test.py toy.py empty.pth", ("empty.pth", "is empty")),
    Case("a config for a checkpoint", "test.py toy.py toy.py", ("toy.py",)),
    Case("a web page saved as a checkpoint", "test.py toy.py page.pth", ("page.pth",)),
    Case("a checkpoint that is cut short", "test.py toy.py cut.pth", ("cut.pth",)),
    Case("a checkpoint with changed bytes", "test.py toy.py damaged.pth", ("damaged.pth",)),
    Case(
        "a .safetensors file that is cut short", "test.py toy.py cut.safetensors",
        ("cut.safetensors",),
    ),
    Case(
        "a checkpoint that runs code, to test", "test.py toy.py evil.pth", ("evil.pth", "refused")
    ),
    Case(
        "a checkpoint that runs code, to predict with",
        "predict.py toy.py evil.pth a.png --out o", ("evil.pth", "refused"),
    ),
    Case(
        "a checkpoint that runs code, to resume from", "train.py toy.py --resume evil.pth",
        ("evil.pth", "refused"),
    ),
    Case(
        "a checkpoint that runs code, to start from",
        "train.py toy.py --cfg-options load_from=evil.pth", ("evil.pth", "refused"),
    ),
    _config(
        "a checkpoint that runs code, for the backbone",
        "model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='evil.pth')))",
        "evil.pth", "refused",
    ),
    Case(
        "a checkpoint of another model", "test.py toy.py other.pth",
        ("other.pth", "backbone.stem.0.weight"),
    ),
    Case(
        "a checkpoint of other classes", "test.py toy.py classes.pth",
        ("classes.pth", "decode_head.conv_seg.weight"),
    ),
    Case(
        "a misspelt name of published weights", "test.py toy.py deeplab_resnest101_ad",
        ("did you mean 'deeplab_resnest101_ade'",),
    ),
    Case(
        "a misspelt name of published weights, to start from",
        "train.py toy.py --cfg-options load_from=resnest5",
        ("config key load_from", "did you mean 'resnest50'"),
    ),
    _config(
        "weights to start from that do not exist", "load_from = 'no.pth'",
        "load_from", "no.pth", "does not exist",
    ),
    Case(
        "a checkpoint to resume from that does not exist", "train.py toy.py --resume no.pth",
        ("no.pth",),
    ),
    Case(
        "weights alone, to resume from", "train.py toy.py --resume weights.pth", ("weights.pth",)
    ),
    Case(
        "a checkpoint to resume from that is cut short", "train.py toy.py --resume cut.pth",
        ("cut.pth", "--resume without a file"),
    ),
    Case(
        "a checkpoint to resume from with changed bytes",
        "train.py toy.py --resume damaged.pth", ("damaged.pth", "--resume without a file"),
    ),
    Case(
        "a checkpoint to resume from of another model",
        "train.py toy.py --resume other_run.pth",
        ("other_run.pth", "backbone.stem.0.weight"),
    ),
]  # fmt: skip

ENVIRONMENT = [
    Case(
        "a work folder below a file", "train.py toy.py --work-dir toy.py/x",
        ("--work-dir", "toy.py is a file"),
    ),
    Case(
        "a file for a work folder", "train.py toy.py --work-dir toy.py", ("--work-dir toy.py",)
    ),
    Case(
        "label maps below a file", "test.py toy.py CKPT --work-dir work --out toy.py/labels",
        ("--out",), leaves=True,
    ),
    Case(
        "a work folder without permission to write", "train.py toy.py --work-dir locked/w",
        ("--work-dir locked/w", "Permission denied"), before=_NO_POWERS,
    ),
    Case(
        "an output folder without permission to write",
        "predict.py toy.py CKPT a.png --out locked", ("--out locked", "Permission denied"),
        before=_NO_POWERS,
    ),
    Case(
        "a checkpoint without permission to read", "test.py toy.py secret.pth",
        ("secret.pth", "permissions"), before=_NO_POWERS,
    ),
    Case(
        "an image without permission to read", "predict.py toy.py CKPT secret.png --out o",
        ("secret.png",), before=_NO_POWERS, leaves=True,
    ),
    Case(
        "a work folder in a file system that takes no files",
        "train.py toy.py --work-dir /proc/w", ("--work-dir /proc/w",),
    ),
    Case(
        "a folder for temporary files that is full (files end at 1 kB)",
        "predict.py toy.py CKPT a.png --out o", ("temporary files", "File too large"),
        before=_LIMIT.format("FSIZE", 1000, 1000),
    ),
    Case(
        "a disk that runs full while training (files end at 100 kB)",
        "train.py toy.py", ("iter_", "saving failed"),
        before=_LIMIT.format("FSIZE", 100_000, 100_000), leaves=True,
    ),
    Case(
        "a disk that runs full while predicting (files end at 5 kB)",
        "predict.py toy.py CKPT noise.png --out o", ("o/noise",),
        before=_LIMIT.format("FSIZE", 5000, 5000), leaves=True,
    ),
    Case(
        "a console that takes nothing (`> /dev/full`)", "predict.py toy.py CKPT a.png --out o",
        ("standard output", "No space left on device"),
        before="import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)", leaves=True,
    ),
    Case(
        "a GPU that there is not", "predict.py toy.py CKPT a.png --out o --device cuda:99",
        ("cuda:99",),
    ),
    Case(
        "a device that is none", "predict.py toy.py CKPT a.png --out o --device abacus",
        ("abacus",),
    ),
    Case(
        "`--launcher pytorch` without a launcher", "train.py toy.py --launcher pytorch",
        ("RANK is not set", "dist-train"),
    ),
    Case(
        "`--launcher slurm` without Slurm", "train.py toy.py --launcher slurm",
        ("SLURM_PROCID is not set",),
    ),
    Case(
        "`RANK=first` from a launcher", "train.py toy.py --launcher pytorch",
        ("RANK", "first"), env={**_LAUNCHED, "RANK": "first"},
    ),
    Case(
        "`WORLD_SIZE=3` and a batch of 4",
        "train.py toy.py --launcher pytorch --cfg-options +env_cfg.dist_cfg.timeout=2",
        ("train_dataloader.batch_size", "3 processes"), env={**_LAUNCHED, "WORLD_SIZE": "3"},
    ),
    Case(
        "a port of the launcher that is taken", "train.py toy.py --launcher pytorch",
        ("PORT=",), env=_LAUNCHED, before=_TAKEN, leaves=True,
    ),
    Case(
        "a second process that never comes",
        "train.py toy.py --launcher pytorch --cfg-options +env_cfg.dist_cfg.timeout=2",
        ("MASTER_ADDR",), env={**_LAUNCHED, "WORLD_SIZE": "2"}, before=_FREE, code=75, leaves=True,
    ),
    Case(
        "a first process that cannot be reached",
        "test.py toy.py CKPT --launcher pytorch --cfg-options +env_cfg.dist_cfg.timeout=2",
        ("MASTER_ADDR",), env={**_LAUNCHED, "RANK": "1", "WORLD_SIZE": "2"}, before=_FREE, code=75,
        leaves=True,
    ),
    Case(
        "`OMP_NUM_THREADS=many`", f"train.py toy.py --launcher pytorch {_ONE}",
        ("OMP_NUM_THREADS",), env={**_LAUNCHED, "OMP_NUM_THREADS": "many"},
    ),
    Case(
        "no network, and weights to fetch", "test.py toy.py fcn_resnest50_ade",
        ("cannot be reached", "Put the file"),
        env={
            "https_proxy": _REFUSED, "http_proxy": _REFUSED, "no_proxy": "",
            "MMSEG_RESNEST_CACHE": "cache", "MMSEG_RESNEST_TIMEOUT": "1",
        },
        leaves=True,
    ),
    Case(
        "`MMSEG_RESNEST_TIMEOUT=soon`", "test.py toy.py resnest50",
        ("MMSEG_RESNEST_TIMEOUT",),
        env={"MMSEG_RESNEST_CACHE": "cache", "MMSEG_RESNEST_TIMEOUT": "soon"},
    ),
    Case(
        "a folder for downloads that is a file", "test.py toy.py resnest50",
        ("MMSEG_RESNEST_CACHE",), env={"MMSEG_RESNEST_CACHE": "toy.py"},
    ),
    Case(
        "24 file descriptors (`ulimit -n 24`)",
        "train.py toy.py --cfg-options train_dataloader.num_workers=1", ("ulimit -n",),
        before=_LIMIT.format("NOFILE", 24, 24),
    ),
    _config(
        "too little memory for the model", "model = dict(decode_head=dict(channels=10**8))",
        "memory", before=_LIMIT.format("AS", 16 << 30, 16 << 30),
    ),
    Case(
        "a data loading worker that exits", "train.py wrong.py",
        ("data loading worker", "num_workers=0"), config=_step("os._exit(1)"), leaves=True,
    ),
    Case(
        "a data loading worker that is killed", "train.py wrong.py",
        ("data loading worker", "num_workers=0"), config=_step("os.kill(os.getpid(), 9)"),
        leaves=True,
    ),
    Case(
        "a transform that fails in a worker", "train.py wrong.py",
        ("worker", "ValueError: bad pixel"),
        config=_step("raise ValueError('bad pixel')"), leaves=True,
    ),
    Case(
        "a transform that says what is wrong", "train.py wrong.py", ("file x is broken",),
        config=_step("raise UserError('file x is broken')"), leaves=True,
    ),
    Case(
        "a data loading worker that hangs",
        "train.py wrong.py --cfg-options train_dataloader.timeout=2",
        ("hangs", "scenes_", "train_dataloader.timeout"), config=_step("time.sleep(100)"),
        leaves=True,
    ),
]  # fmt: skip

TABLE = {
    "Data": DATA,
    "Configs and arguments": CONFIGS,
    "Checkpoints": CHECKPOINTS,
    "Environment": ENVIRONMENT,
}
CASES = [case for part in TABLE.values() for case in part]


PREFACE = """\
# What the tools say to bad input

Made by `make bad-input` from the cases in `tests/tools/bad_input.py`; the tests run a third of
them, and fail when this page says something else. No row ends in a traceback, and nothing is
written before the mistake is found, unless only running shows it. Paths of the machine are left
out; N and PORT stand for numbers that differ from run to run.
"""


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
    tool, *args = (w.replace("CKPT", str(trained.checkpoint)) for w in case.command.split())
    # The same on a machine with a GPU; the console does not know what a cursor is.
    env = {
        "CUDA_VISIBLE_DEVICES": "", "TERM": "dumb", "PYTHONPATH": str(toy.folder), **case.env
    }  # fmt: skip
    return run_tool(tool, *args, cwd=toy.folder, env=env, timeout=240, before=case.before)


def message(case: Case, run: Run, folder: Path) -> str:
    """What was said, without what differs between two machines or two runs."""
    found = re.search(r"^error.*", run.stderr, re.M | re.S)
    text = " ".join((found[0] if found else run.stderr).split())
    text = re.sub(r"/\S*/site-packages/", "", text)
    for place in (os.path.realpath(folder), str(folder), str(ROOT)):
        text = text.replace(f"{place}/", "")
    text = re.sub(r"(\w\.(?:py|cpp)):\d+", r"\1:N", text)  # lines of code
    text = re.sub(r"\b(process|pid) \d+(?=\)| on )", r"\1 N", text)
    text = re.sub(r"[\d.]+ [MG]B are free", "N GB are free", text)
    text = re.sub(r"\b(MASTER_PORT=|port:? |127\.0\.0\.1[,:] ?)\d{4,5}\b", r"\1PORT", text)
    text = re.sub(r"\b\d+ ?ms\b", "N ms", text)
    return text


def write_document(rows: dict[str, list[tuple[Case, str, int]]]) -> None:
    """The table, as a page."""
    lines = [PREFACE]
    for title, cases in rows.items():
        lines += [f"## {title}", "", "| what was fed | tool | what was said | exit code |"]
        lines += ["|---|---|---|---|"]
        lines += [row_of(*row) for row in cases]
        lines += [""]
    DOCUMENT.write_text("\n".join(lines), encoding="utf-8")


def row_of(case: Case, said: str, code: int) -> str:
    """A line of the table."""
    escaped = said.replace("|", "\\|").replace("<", "&lt;")
    return f"| {case.fed} | {case.tool} | {escaped} | {code} |"


def main() -> int:
    from mmseg_resnest.datasets.scenes import write_scenes

    run_tool = RunTool()
    problems = 0
    start = time.monotonic()
    only = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="bad-input-") as name:
        root = Path(name)
        scenes = write_scenes(root / "scenes", 6, 3, progress=False)
        for part in ("trained", "wrong"):
            (root / part).mkdir()
        toy = make_toy(root / "trained", scenes)
        run = run_tool("train.py", "toy.py", cwd=toy.folder).check()
        work_dir = toy.folder / "work_dirs" / "toy"
        trained = Trained(toy, run, work_dir, work_dir / "iter_6.pth")
        toy = make_toy(root / "wrong", scenes)
        make_files(toy, trained)
        rows: dict[str, list[tuple[Case, str, int]]] = {}
        for title, cases in TABLE.items():
            for case in cases:
                if only and not any(word in case.fed for word in only):
                    continue
                run = run_case(case, toy, trained, run_tool)
                said = message(case, run, toy.folder)
                good = run.returncode == case.code and "Traceback" not in run.stderr
                if not good or not all(part in said for part in case.says):
                    problems += 1
                    print(f"NOT AS WANTED: {case}\n{run.stdout[-500:]}\n{run.stderr[-3000:]}")
                rows.setdefault(title, []).append((case, said, run.returncode))
                print(f"{time.monotonic() - start:6.1f} {row_of(*rows[title][-1])}", flush=True)
    run_tool.close()
    count = sum(map(len, rows.values()))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{count} rows, {problems} not as wanted; {used.ru_utime + used.ru_stime:.0f} s of CPU")
    if not only and not problems:
        write_document(rows)
    return int(problems > 0)


if __name__ == "__main__":
    sys.exit(main())
