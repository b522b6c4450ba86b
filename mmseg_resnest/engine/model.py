# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The model of a config, built once: before the run writes anything, under the run's seed.

The random state after building is kept. The runner, which sets the seed again, continues from it:
later numbers are those that it would have drawn if it had built the model itself.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.dist import get_rank, get_world_size
from mmengine.runner import set_random_seed
from torch import nn

from ..errors import UserError
from ..io.memory import ran_out_of_memory
from ..registry import MODELS, building
from .failing_keys import key_of_build
from .failing_parts import describe, raise_of_its_key
from .preemption import Preempted


def build_model(cfg: Config) -> nn.Module:
    """Build the model of a checked config, on the CPU, without initialising or loading weights.

    From any thread: the default scope of MMEngine stays as it is.

    Raises:
        UserError: A value in ``model`` does not fit; the deepest part that fails is named.
    """
    # A copy: building takes keys out of the dictionaries it is given.
    model = copy.deepcopy(cfg.model)
    if cfg.get("data_preprocessor") is not None:
        model.setdefault("data_preprocessor", copy.deepcopy(cfg.data_preprocessor))
    try:
        with building(cfg.get("default_scope", "mmseg")):
            return MODELS.build(model)
    except (Preempted, ImportError):
        raise
    except UserError as error:
        raise_of_its_key("model", model, error)
        raise
    except Exception as error:
        if ran_out_of_memory(error):
            raise
        place = f"config key {key_of_build('model', model, error)}"
        raise UserError("config-value", place, f"cannot be built; {describe(error)}") from error


@dataclass
class SeededModel:
    """A model on the CPU whose weights were drawn under the seed of a run.

    ``state`` holds the random states of Python, NumPy, torch and the GPUs after building.
    """

    model: nn.Module
    seed: int
    state: tuple[Any, ...]
    _chosen: bool = False
    _own_draws: bool = False

    def agree_on_seed(self) -> None:
        """Take over the seed and random state of process 0 where the config names no seed.

        All processes must call it. The weights of process 0 are sent to the others when the model
        is initialised and wrapped.
        """
        if self._chosen or get_world_size() == 1:
            return
        first: list[Any] = [(self.seed, self.state) if get_rank() == 0 else None]
        dist.broadcast_object_list(first, src=0)
        self.seed, self.state = first[0]

    def continue_draws(self) -> None:
        """Set the random state to that after building."""
        if self._own_draws and not self._chosen and get_rank() != 0:
            return  # the state is process 0's, and the seed of this process has been set
        python, numpy, torch_cpu, torch_cuda = self.state
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_cpu)
        if torch_cuda is not None:
            torch.cuda.set_rng_state_all(torch_cuda)


def build_seeded_model(cfg: Config, rank: int = 0) -> SeededModel:
    """Build the model of a config as the runner of a training would; sets the random state.

    Args:
        cfg: The resolved config; without ``randomness.seed`` a seed is drawn.
        rank: Number of this process; with ``randomness.diff_rank_seed`` it is added to the seed.
    """
    randomness = cfg.get("randomness") or {}
    seed, own_draws = randomness.get("seed"), bool(randomness.get("diff_rank_seed"))
    chosen = seed is not None
    if seed is None:
        seed = int(np.random.randint(2**31))
    set_random_seed(seed + rank * own_draws)
    model = build_model(cfg)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    state = random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda
    return SeededModel(model, seed, state, chosen, own_draws)
