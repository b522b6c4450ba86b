# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Curves of a run in TensorBoard, Weights & Biases or MLflow, while it trains."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.visualization import MLflowVisBackend, TensorboardVisBackend, WandbVisBackend
from mmengine.visualization.vis_backend import BaseVisBackend, force_init_env

from ..errors import UserError
from ..registry import VISBACKENDS, type_name
from .logs import display_path, only_errors

SERVICES = ("tensorboard", "wandb", "mlflow")
PROJECT = "mmseg-resnest"  # what the services group runs by, unless their own variables say else


#: MMEngine's back ends that import the package of their name when a run starts.
_BACKENDS = ("Tensorboard", "Wandb", "MLflow", "ClearML", "Neptune", "DVCLive", "Aim")


def check_services(services: Iterable[str], visualizer: Mapping[str, Any] | None = None) -> None:
    """Check that these are :data:`SERVICES` whose packages are installed.

    The same for the back ends of a config's ``visualizer``.
    """
    for service in services:
        if service not in SERVICES:
            raise UserError("argument", f"--log-to {service}", f"choose of {', '.join(SERVICES)}")
        if importlib.util.find_spec(service) is None:
            raise UserError("missing-package", f"--log-to {service}", f"pip install {service}")
    for index, backend in enumerate((visualizer or {}).get("vis_backends") or ()):
        name = type_name(backend.get("type")).removesuffix("VisBackend")
        if name in _BACKENDS and importlib.util.find_spec(name.lower()) is None:
            key = f"config key visualizer.vis_backends.{index}.type"
            raise UserError("missing-package", key, f"pip install {name.lower()}, or remove it")


@VISBACKENDS.register_module()
class Tracker(BaseVisBackend):
    """MMEngine's back end of a service of :data:`SERVICES`, for runs that stop and resume.

    A run that is resumed in its work folder continues the same run of the service. A service that
    fails at the start ends the run with a UserError; one that fails later is reported once, and
    training goes on. No source code is uploaded. TensorBoard's files go into
    ``WORK_DIR/tensorboard``; Weights & Biases and MLflow take project and server from their own
    environment variables, and without a server MLflow writes into ``WORK_DIR/mlflow.db``.
    ``save_dir`` is ``WORK_DIR/TIME/vis_data``, as MMEngine's visualizer gives it.
    """

    def __init__(self, save_dir: str, service: str) -> None:
        super().__init__(save_dir)
        self._env_initialized = False  # MMEngine's name for: was started
        self.service = service
        self.root = Path(save_dir).absolute().parents[1]
        self.where = ""  # what to open to see the curves
        self._resumes = False
        self._failed = False

    def _init_env(self) -> None:
        try:
            getattr(self, f"_start_{self.service}")()
        except (Exception, SystemExit) as error:  # wandb exits without a terminal to ask on
            raise UserError(
                "network", f"--log-to {self.service}", f"cannot be started ({_first_line(error)})"
            ) from error

    def _start_tensorboard(self) -> None:
        folder = self.root / "tensorboard"
        self._inner = TensorboardVisBackend(os.fspath(folder))
        _ = self._inner.experiment
        self.where = f"tensorboard --logdir {display_path(folder)}"

    def _start_wandb(self) -> None:
        import wandb

        self._inner = WandbVisBackend(
            os.fspath(self.root),
            init_kwargs={
                "project": os.environ.get("WANDB_PROJECT", PROJECT),
                "name": os.environ.get("WANDB_NAME", self.root.name),
                "id": os.environ.get("WANDB_RUN_ID", self._known_run()),
                "resume": "allow",
                # Otherwise it puts itself between the progress bar and the terminal.
                "settings": wandb.Settings(console="off", silent=True),
            },
            define_metric_cfg=[{"name": "iteration"}, {"name": "*", "step_metric": "iteration"}],
        )
        run = self._inner.experiment.run
        self._keep_run(run.id)
        offline = f"wandb sync {display_path(Path(run.dir).parent)}" if run.dir else "offline"
        # Asked for its address, a run that has none prints a warning.
        self.where = (None if getattr(run, "offline", False) else run.url) or offline

    def _start_mlflow(self) -> None:
        import mlflow

        database = self.root / "mlflow.db"
        address = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{database}"
        local = self.root / "mlflow"
        is_file = address.startswith("sqlite:")
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        place = local.as_uri() if is_file else None
        self._inner = MLflowVisBackend(
            os.fspath(local), exp_name=name, tracking_uri=address, artifact_location=place
        )
        # MMEngine always warns that a server must be running; MLflow reports each table it makes.
        with only_errors(MMLogger.get_current_instance(), logging.getLogger("mlflow")):
            _ = self._inner.experiment
        run = mlflow.start_run(run_id=self._known_run(), run_name=self.root.name)
        self._keep_run(run.info.run_id)
        local_page = f"mlflow ui --backend-store-uri sqlite:///{display_path(database)}"
        self.where = local_page if is_file else address

    def _known_run(self) -> str | None:
        """The service's name of the run that is resumed."""
        file = self.root / f".{self.service}_run"
        return file.read_text().strip() if self._resumes and file.is_file() else None

    def _keep_run(self, name: str) -> None:
        (self.root / f".{self.service}_run").write_text(f"{name}\n")

    @property
    @force_init_env
    def experiment(self) -> Any:
        """The service's own object."""
        return self._inner.experiment

    def add_config(self, config: Config, **kwargs: Any) -> None:
        """Start, and record the config."""
        self._resumes = bool(config.get("resume"))
        experiment = self.experiment
        if self.service == "wandb":
            values = config.to_dict()
            self._try(lambda: experiment.config.update(values, allow_val_change=True))
        elif self.service == "mlflow":
            self._try(lambda: experiment.log_text(config.pretty_text, "config.py"))
        else:
            self._try(lambda: self._inner.add_config(config))

    @force_init_env
    def add_image(self, name: str, image: Any, step: int = 0, **kwargs: Any) -> None:
        """Record an image, (H, W, 3) RGB of uint8."""
        name = f"{name}_{step}.png" if self.service == "mlflow" else name
        self._try(lambda: self._inner.add_image(name, image, step))

    def add_scalar(self, name: str, value: Any, step: int = 0, **kwargs: Any) -> None:
        """Record a number."""
        self.add_scalars({name: value}, step)

    @force_init_env
    def add_scalars(
        self, scalar_dict: Mapping[str, Any], step: int = 0, *_: Any, **__: Any
    ) -> None:
        """Record numbers of an iteration."""
        left_out = ["step", "iter"]
        if "iter" not in scalar_dict:  # of a validation, which has the times of an image
            left_out += ["time", "data_time"]
        values = {k: float(v) for k, v in scalar_dict.items() if k not in left_out}
        if self.service == "wandb":
            self._try(lambda: self.experiment.log({**values, "iteration": step}))
        elif self.service == "mlflow":
            # Not the back end's own method, which hides failures in a warning for each line.
            self._try(lambda: self.experiment.log_metrics(values, step))
        else:
            self._try(lambda: self._inner.add_scalars(values, step))

    def close(self) -> None:
        """End the service's run."""
        if not bool(getattr(self, "_env_initialized", False)):
            return
        if self.service == "wandb":
            self._try(lambda: self.experiment.finish())
        elif self.service == "mlflow":
            results = self.root / "results.json"
            if results.is_file():
                self._try(lambda: self.experiment.log_artifact(os.fspath(results)))
            self._try(lambda: self.experiment.end_run())
        else:
            self._try(self._inner.close)
        self._env_initialized = False
        self._resumes = True  # a later write continues the same run

    def _try(self, write: Callable[[], object]) -> None:
        """Write; the first failure is reported, and none ends the run."""
        try:
            write()
        except Exception as error:  # each service has errors of its own, of the network and disk
            if not self._failed:
                MMLogger.get_current_instance().warning(
                    "%s: %s; training goes on, the curves there may have gaps",
                    *(self.service, _first_line(error)),
                )
            self._failed = True


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
