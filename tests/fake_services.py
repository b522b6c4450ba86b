# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Stand-ins for the packages of services that show curves, which note what they are told."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class Calls(list):
    """What a service was told."""

    def named(self, name: str) -> list[Any]:
        return [arguments for called, arguments in self if called == name]


def fake_wandb(calls: Calls) -> ModuleType:
    module = ModuleType("wandb")
    run = SimpleNamespace(id="run1", dir="/x/files", offline=True)  # its address is not asked for
    note = lambda name: lambda *a, **k: calls.append((name, (*a, k)))  # noqa: E731
    module.__dict__.update(
        {name: note(name) for name in ("init", "define_metric", "log", "finish")},
        Settings=lambda **k: k, run=run, config=SimpleNamespace(update=note("config")),
    )  # fmt: skip
    return module


def fake_mlflow(calls: Calls) -> ModuleType:
    module = ModuleType("mlflow")
    note = lambda name: lambda *a, **k: calls.append((name, (*a, k)))  # noqa: E731

    def start_run(**options: Any) -> Any:
        calls.append(("start_run", options))
        return SimpleNamespace(info=SimpleNamespace(run_id=options["run_id"] or "run1"))

    module.__dict__.update(
        {n: note(n) for n in ("set_tracking_uri", "create_experiment", "set_experiment",
                              "log_metrics", "log_text", "log_artifact", "end_run")},
        get_experiment_by_name=lambda name: None,
        start_run=start_run,
    )  # fmt: skip
    return module


def fake_tensorboard(calls: Calls) -> ModuleType:
    module = ModuleType("torch.utils.tensorboard")
    note = lambda name: lambda *a, **k: calls.append((name, (*a, k)))  # noqa: E731
    writer = SimpleNamespace(**{n: note(n) for n in ("add_scalar", "add_text", "close")})
    module.__dict__.update(SummaryWriter=lambda folder: writer)
    return module


def install(patch: pytest.MonkeyPatch) -> dict[str, Calls]:
    """Put all three in place of the packages; returns what they are told."""
    calls = {name: Calls() for name in ("tensorboard", "wandb", "mlflow")}
    tensorboard = fake_tensorboard(calls["tensorboard"])
    patch.setitem(sys.modules, "torch.utils.tensorboard", tensorboard)
    fakes = [ModuleType("tensorboard"), fake_wandb(calls["wandb"]), fake_mlflow(calls["mlflow"])]
    for module in fakes:
        module.__spec__ = ModuleSpec(module.__name__, None)
        patch.setitem(sys.modules, module.__name__, module)
    return calls
