# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the stack imports late is the same thing when it is there."""

from __future__ import annotations

import builtins
import contextlib
import gc
import importlib
import inspect
import json
import sys
from collections.abc import Iterator

import pytest
from test_stack import run_python

from mmseg_resnest import _late

CODE = """
import builtins, gc, inspect, json, sys
before = builtins.__import__, inspect.getframeinfo
import mmseg_resnest
said = {"restored": before == (builtins.__import__, inspect.getframeinfo) and gc.isenabled()}
late = ("scipy.ndimage", "scipy.optimize", "scipy.interpolate", "torch._dynamo",
        "torch.distributed.optim", "matplotlib.figure", "mmseg.utils.tokenizer",
        "torch.distributed.fsdp", "torch.distributed.tensor", "sympy", "requests", "setuptools")
said["there"] = [name for name in late if name in sys.modules]

import numpy as np, scipy.interpolate, scipy.ndimage, scipy.optimize, torch
from mmseg.datasets.transforms import transforms
from mmseg.models.assigners import hungarian_assigner
from mmseg.models.backbones import beit
from mmseg.models.losses import huasdorff_distance_loss
noise = np.random.default_rng(0).random((9, 9))
pairs = [
    (transforms.gaussian_filter(noise, 2), scipy.ndimage.gaussian_filter(noise, 2)),
    (huasdorff_distance_loss.distance(noise > 0.3),
     scipy.ndimage.distance_transform_edt(noise > 0.3)),
    (hungarian_assigner.linear_sum_assignment(noise),
     scipy.optimize.linear_sum_assignment(noise)),
]
said["equal"] = [bool(np.array_equal(*pair)) for pair in pairs]
said["module"] = beit.interpolate.interp1d is scipy.interpolate.interp1d
import mmseg.utils
text = mmseg.utils.tokenize("a street with cars")
from mmseg.utils.tokenizer import tokenize
said["text"] = torch.equal(text, tokenize("a street with cars")) and int((text > 0).sum()) == 6

from mmengine.optim import ZeroRedundancyOptimizer
from mmengine.registry import OPTIMIZERS
stand_in = ZeroRedundancyOptimizer
class Below(ZeroRedundancyOptimizer):
    pass
store = torch.distributed.HashStore()
torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
values = []
for make in (lambda p: Below([p], "SGD", lr=0.5),
             lambda p: OPTIMIZERS.build(dict(type="ZeroRedundancyOptimizer", params=[p],
                                             optimizer_type="SGD", lr=0.5))):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = make(weight)
    weight.sum().backward()
    optimizer.step()
    values.append(weight.tolist())
from torch.distributed.optim import ZeroRedundancyOptimizer as Torch
said["steps"], said["below"] = values, isinstance(optimizer, Torch)
said["optimizer"] = isinstance(optimizer, ZeroRedundancyOptimizer) and issubclass(
    Below, ZeroRedundancyOptimizer) and not isinstance(weight, ZeroRedundancyOptimizer)

import mmengine.optim
real = mmengine.optim.ZeroRedundancyOptimizer
said["registered"] = OPTIMIZERS.get("ZeroRedundancyOptimizer") is real is not stand_in

from mmengine._strategy import FSDPStrategy
from mmengine.model import MMFullyShardedDataParallel, is_model_wrapper
from mmengine.registry import MODEL_WRAPPERS, STRATEGIES
layer = torch.nn.Linear(2, 1)
said["wrapped"] = [is_model_wrapper(layer), isinstance(layer, MMFullyShardedDataParallel)]
said["late"] = "mmengine.model.wrappers.fully_sharded_distributed" not in sys.modules
sharded = MODEL_WRAPPERS.build(
    dict(type="MMFullyShardedDataParallel", module=layer, device_id=torch.device("cpu")))
said["wrapped"] += [is_model_wrapper(sharded), isinstance(sharded, MMFullyShardedDataParallel)]
from torch.distributed.fsdp import FullyShardedDataParallel
said["sharded"] = isinstance(sharded, FullyShardedDataParallel) and float(
    sharded(torch.zeros(1, 2))) == float(layer.bias)
import mmengine.model
real = mmengine.model.MMFullyShardedDataParallel
said["real"] = issubclass(real, FullyShardedDataParallel) and (
    MODEL_WRAPPERS.get("MMFullyShardedDataParallel") is real)
class Own(FSDPStrategy):
    pass
from mmengine._strategy.fsdp import FSDPStrategy as Real
said["own"] = issubclass(Own, Real) and STRATEGIES.get("FSDPStrategy") is Real
print(json.dumps(said))
"""


def test_what_is_imported_late_is_the_real_thing() -> None:
    result = run_python(CODE)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {
        "restored": True,
        "there": [],
        "equal": [True, True, True],
        "module": True,
        "text": True,
        "registered": True,
        "steps": [[0.5, 0.5], [0.5, 0.5]],
        "below": True,
        "optimizer": True,
        "wrapped": [False, False, True, True],
        "late": True,
        "sharded": True,
        "real": True,
        "own": True,
    }


DIRECT = """
import importlib, json
import mmseg_resnest
from mmengine import registry
found = []
for module, name, holder in (
    ("mmengine.model.wrappers.fully_sharded_distributed", "MMFullyShardedDataParallel",
     "MODEL_WRAPPERS"),
    ("mmengine._strategy.fsdp", "FSDPStrategy", "STRATEGIES"),
    ("mmengine.optim.optimizer.zero_optimizer", "ZeroRedundancyOptimizer", "OPTIMIZERS"),
):
    real = getattr(importlib.import_module(module), name)
    found.append(getattr(registry, holder).get(name) is real and real.__module__ == module)
print(json.dumps(found))
"""


CONFIG = """
import inspect, json, torch
import mmseg_resnest
from mmengine.optim import build_optim_wrapper
from mmseg_resnest.registry import MODEL_WRAPPERS, OPTIMIZERS
store = torch.distributed.HashStore()
torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
kind = dict(type="ZeroRedundancyOptimizer", optimizer_type="SGD", lr=0.1)
wrapper = build_optim_wrapper(torch.nn.Linear(2, 2), dict(type="OptimWrapper", optimizer=kind))
from torch.distributed.optim import ZeroRedundancyOptimizer
found = [isinstance(wrapper.optimizer, ZeroRedundancyOptimizer)]
for registry, name, option in ((OPTIMIZERS, "ZeroRedundancyOptimizer", "optimizer_type"),
                               (MODEL_WRAPPERS, "MMFullyShardedDataParallel", "cpu_offload")):
    found.append(option in inspect.signature(registry.get(name).__init__).parameters)
print(json.dumps(found))
"""


def test_a_config_may_name_a_late_class() -> None:
    result = run_python(CONFIG)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == [True, True, True]


def test_the_module_itself_can_be_imported_first() -> None:
    result = run_python(DIRECT)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == [True, True, True]


def test_only_the_named_statements_get_a_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = "mmseg.models.losses.huasdorff_distance_loss"
    given = _late._stand_in(loss, "scipy.ndimage", ["distance_transform_edt"])
    assert given.distance_transform_edt.__module__ == "scipy.ndimage"
    assert _late._stand_in(loss, "scipy.ndimage", ["gaussian_filter"]) is None
    assert _late._stand_in(loss, "scipy", ["ndimage"]) is None
    assert _late._stand_in("somebody.elses", "scipy.ndimage", ["gaussian_filter"]) is None
    # Without the package the statement is to fail as it always did.
    monkeypatch.setattr(_late.importlib.util, "find_spec", lambda name: None)
    assert _late._stand_in(loss, "scipy.ndimage", ["distance_transform_edt"]) is None


@contextlib.contextmanager
def all_contexts() -> Iterator[None]:
    with _late._no_collections(), _late._no_source_lines(), _late.stand_ins():
        assert inspect.getframeinfo(sys._getframe(0)).code_context is None
        yield


def test_an_import_that_fails_leaves_everything_as_it_was() -> None:
    before = builtins.__import__, inspect.getframeinfo, gc.isenabled()
    with pytest.raises(ImportError, match="no_such_module"), all_contexts():
        importlib.import_module("no_such_module")
    assert (builtins.__import__, inspect.getframeinfo, gc.isenabled()) == before
