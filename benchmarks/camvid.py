# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""CamVid from scratch within minutes on one GPU: runs, and the page that is made of them.

    python benchmarks/camvid.py run --recipe resnest50 --seed 0 --minutes 8 --out DIR
    python benchmarks/camvid.py run --recipe stack --seed 0 --minutes 8 --out DIR
    python benchmarks/camvid.py run --recipe resnet50 --seed 0 --iterations 6000 --out DIR
    python benchmarks/camvid.py search --minutes 1.5 --out DIR
    python benchmarks/camvid.py report DIR --page docs/camvid_gpu.md

A run times some iterations, chooses max_iters so that training and its validations end within the
minutes, trains, takes the weights of the best validation and evaluates them on the validation
images and, where they are in the data folder, on the 233 test images: single-scale and, for this
package's models, multi-scale. It writes DIR/RECIPE-SEED.json at its end and nothing before, so a
run that was interrupted leaves no result and starts anew. Weights stay in a temporary folder unless
--weights names a place; then the file that goes there is what is evaluated.

Recipes: resnest50 and resnet50 differ in the backbone alone; stack is resnest50 in the stack's own
model, transforms, metric and runner (benchmarks/camvid_stack.py).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
sys.path[:0] = [str(FOLDER), str(ROOT)]
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
CONFIGS = {
    "resnest50": ROOT / "configs" / "deeplabv3plus_resnest50_camvid.py",
    "resnet50": ROOT / "configs" / "deeplabv3plus_resnet50_camvid.py",
    "stack": FOLDER / "camvid_stack.py",
}
# What a search tries beside the recipe as it is; one key and value of the config each.
CANDIDATES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "learning rate 0.002": {"optim_wrapper.optimizer.lr": 0.002},
    "learning rate 0.0005": {"optim_wrapper.optimizer.lr": 0.0005},
    "batch 32": {"train_dataloader.batch_size": 32},
    "no class weights": {
        "model.decode_head.loss_decode.class_weight": None,
        "model.auxiliary_head.loss_decode.class_weight": None,
    },
}
VALIDATIONS = 12
_TOY_SIZES = {"size": (64, 48), "crop_size": (48, 64), "base_size": 64, "scale": (64, 48)}


# --- a config of the right length


def prepare(recipe: str, args: argparse.Namespace, options: dict[str, Any]) -> Any:
    """The config of a recipe, for the machine at hand."""
    import torch
    from mmengine.config import Config

    import mmseg_resnest  # noqa: F401
    from mmseg_resnest.engine.config import load_config
    from mmseg_resnest.engine.launch import Machine, prepare_machine
    from mmseg_resnest.engine.resolve import fit_loaders

    if args.data_root:
        os.environ["MMSEG_RESNEST_DATA"] = str(args.data_root)
    cfg: Any = (
        Config.fromfile(CONFIGS[recipe]) if recipe == "stack" else load_config(CONFIGS[recipe])
    )
    if recipe == "stack":
        _as_the_stack_does(cfg, torch.cuda.is_available())
    cfg.merge_from_dict(options)
    cfg.randomness = {"seed": args.seed}
    if args.toy:
        _shrink(cfg, recipe)
    machine = Machine.here("none")
    fit_loaders(cfg, machine)
    cfg.launcher = "none"
    prepare_machine(cfg, machine)
    cfg.visualizer = None
    # A runner writes its config several times, and yapf takes most of a second for each.
    object.__setattr__(cfg, "_format_python_code", False)
    return cfg


def _as_the_stack_does(cfg: Any, cuda: bool) -> None:
    """MMEngine's own hooks and optimizer wrapper."""
    from mmengine.registry import HOOKS

    for name, hook in list(cfg.default_hooks.items()):
        if hook is None or HOOKS.get(f"mmengine.{hook['type']}") is None:
            cfg.default_hooks.pop(name)
        else:
            hook["type"] = f"mmengine.{hook['type']}"
    cfg.log_level = "ERROR"  # it would print its environment and the whole config
    for hook in cfg.custom_hooks:
        hook["type"] = f"mmengine.{hook['type']}"
    cfg.optim_wrapper["type"] = "mmengine.AmpOptimWrapper" if cuda else "mmengine.OptimWrapper"
    if cuda:
        cfg.optim_wrapper["dtype"] = "bfloat16"


def _shrink(cfg: Any, recipe: str) -> None:
    """A model and images with which some iterations take seconds on a CPU."""
    import torch

    backbone, head, auxiliary = (
        cfg.model[name] for name in ("backbone", "decode_head", "auxiliary_head")
    )
    if recipe == "resnest50":
        from mmseg_resnest.models import ARCHITECTURES

        backbone.arch = {**ARCHITECTURES["resnest14"], "base_width": 8}
    else:
        import gpu_models  # noqa: F401  (registers the stack's ResNeSt-14)

        kind = {"type": "DeepStockResNeSt", "depth": 14} if recipe == "stack" else {"depth": 50}
        backbone.update(base_channels=8, **kind)
        head.update(in_channels=256, c1_in_channels=32)
        auxiliary.in_channels = 128
    if not torch.cuda.is_available():
        cfg.optim_wrapper["type"] = "OptimWrapper"  # a CPU's bfloat16 is slow
    head.channels = auxiliary.channels = 32
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        loader = cfg[name]
        loader.update(num_workers=0, batch_size=2 if name == "train_dataloader" else 1)
        for step in loader.dataset.pipeline:
            for key, size in _TOY_SIZES.items():
                if step.get(key):
                    step[key] = size
        loader.dataset.indices = 2
    if cfg.get("tta_model"):
        cfg.tta_model.update(base_size=64, crop_size=64, scales=(0.75, 1.0))


def set_length(cfg: Any, iterations: int, validations: int = VALIDATIONS) -> None:
    """Make a config's schedule so many iterations long."""
    warmup = max(1, min(300, iterations // 20))
    cfg.train_cfg.max_iters = iterations
    cfg.train_cfg.val_interval = max(1, math.ceil(iterations / validations))
    first, poly = cfg.param_scheduler
    first.end = poly.begin = warmup
    poly.end = iterations + 1
    cfg.default_hooks.checkpoint.interval = iterations + 1  # only the best
    cfg.default_hooks.checkpoint.save_last = False


def iterations_within(seconds: float, iteration: float, validation: float, fixed: float) -> int:
    """How many iterations fit, with their validations and what starting takes.

    Args:
        seconds: The budget.
        iteration: Seconds of an iteration.
        validation: Seconds of a validation.
        fixed: Seconds that a run takes beside.
    """
    left = 0.98 * seconds - fixed - VALIDATIONS * validation
    return max(VALIDATIONS, int(left / iteration))


# --- running


def make_runner(cfg: Any, recipe: str) -> Any:
    from mmengine.runner import Runner as StockRunner

    from mmseg_resnest.engine import Runner
    from mmseg_resnest.engine.logs import quiet_console

    quiet_console()
    # Runners of the same second would share a name, and with it what they have measured.
    cfg.experiment_name = f"{recipe}-{time.monotonic_ns()}"
    runner = (StockRunner if recipe == "stack" else Runner).from_cfg(cfg)
    quiet_console(runner.logger)
    return runner


def make_clock(seconds: float | None, recipe: str) -> Any:
    """A hook that remembers iterations and validations, and ends a run that is over its time."""
    import torch
    from mmengine.hooks import Hook

    cuda = torch.cuda.is_available()

    class Clock(Hook):
        priority = "VERY_LOW"

        def __init__(self) -> None:
            self.history: list[dict[str, float]] = []
            self.marks: list[float] = []
            self.validating = 0.0

        def before_train(self, runner: Any) -> None:
            if cuda and recipe != "stack":
                runner.model.to(memory_format=torch.channels_last)
            self.start = time.monotonic()

        def after_train_iter(self, runner: Any, *rest: Any, **more: Any) -> None:
            if len(self.marks) < 200:
                if cuda:
                    torch.cuda.synchronize()
                self.marks.append(time.monotonic())
            if seconds and time.monotonic() - self.start > 1.03 * seconds - self.validating / max(
                1, len(self.history)
            ):
                # The loop then ends with a validation, as if this had been the last iteration.
                runner.train_loop._max_iters = min(runner.train_loop._max_iters, runner.iter + 1)

        def before_val(self, runner: Any) -> None:
            self.began = time.monotonic()

        def after_val_epoch(self, runner: Any, metrics: Any = None) -> None:
            now = time.monotonic()
            self.validating += now - self.began
            self.history.append(
                {
                    "seconds": now - self.start,
                    "training_seconds": now - self.start - self.validating,
                    "iteration": runner.iter,
                    **{key: float(value) for key, value in (metrics or {}).items()},
                }
            )
            print(f"{now - self.start:.0f} s, iteration {runner.iter}: "
                  f"mIoU {self.history[-1].get('mIoU', math.nan):.2f}",
                  file=sys.stderr, flush=True)  # fmt: skip

    return Clock()


def time_iterations(cfg: Any, recipe: str, work_dir: str, toy: bool) -> tuple[float, float]:
    """Seconds of an iteration and of a validation, by a short run of the same config."""
    import copy

    cfg = copy.deepcopy(cfg)
    warmup, timed = (1, 2) if toy else (20, 60)
    set_length(cfg, warmup + timed, 1)
    cfg.default_hooks.checkpoint.save_best = None
    cfg.work_dir = work_dir
    runner = make_runner(cfg, recipe)
    clock = make_clock(None, recipe)
    runner.register_hook(clock)
    runner.train()
    return (clock.marks[-1] - clock.marks[warmup - 1]) / timed, clock.validating


def train(recipe: str, args: argparse.Namespace, options: dict[str, Any]) -> dict[str, Any]:
    """One run; what its JSON holds."""
    import torch
    from gpu_report import described_machine

    began = time.monotonic()
    cfg = prepare(recipe, args, options)
    folder = Path(tempfile.mkdtemp(prefix="camvid-"))
    record: dict[str, Any] = {
        "recipe": recipe,
        "seed": args.seed,
        "command": args.command_line,
        "options": options,
        "minutes": args.minutes,
        "batch": cfg.train_dataloader.batch_size,
        "toy": args.toy,
        "machine": described_machine(),
    }
    try:
        iterations = args.iterations
        if iterations is None:
            iteration, validation = time_iterations(cfg, recipe, str(folder / "timing"), args.toy)
            seconds = 60 * args.minutes
            iterations = iterations_within(seconds, iteration, validation, 0 if args.toy else 8)
            if args.toy:
                iterations = 4
            record.update(seconds_an_iteration=iteration, seconds_a_validation=validation)
        set_length(cfg, iterations, 2 if args.toy else VALIDATIONS)
        cfg.work_dir = str(folder / "run")
        record["max_iters"] = iterations
        record["preparing_seconds"] = time.monotonic() - began
        print(f"{recipe}, seed {args.seed}: {iterations} iterations", file=sys.stderr, flush=True)
        runner = make_runner(cfg, recipe)
        clock = make_clock(None if args.toy or args.iterations else 60 * args.minutes, recipe)
        runner.register_hook(clock)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        start = time.monotonic()
        runner.train()
        record["seconds"] = time.monotonic() - start
        record["iterations_done"] = runner.iter
        if torch.cuda.is_available():
            record["peak_bytes"] = torch.cuda.max_memory_allocated()
        record["history"] = clock.history
        best = next((folder / "run").glob("best_mIoU_iter_*.pth"))
        record["best_iteration"] = int(best.stem.rsplit("_", 1)[1])
        del runner
        weights = best
        if args.weights is not None:
            weights = folder / f"{recipe}-{args.seed}.safetensors"
            record["weights"] = pack_weights(best, weights)
            for key in ("auxiliary_head", "pretrained"):
                cfg.model.pop(key, None)
        record["evaluations"] = evaluate(cfg, recipe, weights, folder, args.command == "search")
        if args.weights is not None:
            record["weights"]["parts"] = write_parts(weights, args.weights)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    record["all_seconds"] = time.monotonic() - began
    return record


def evaluate(cfg: Any, recipe: str, weights: Path, folder: Path, searching: bool) -> dict[str, Any]:
    """The chosen weights on the validation images, and on the test images where they are there.

    A search sees the validation images alone, in one scale.
    """
    import copy

    from mmseg_resnest.engine.checkpoint import load_weights

    results: dict[str, Any] = {}
    root = Path(cfg.val_dataloader.dataset.data_root)
    splits = {"validation": ("val", "valannot")}
    if not searching and (root / "test").is_dir() and (root / "testannot").is_dir():
        splits["test"] = ("test", "testannot")
    one_way = searching or recipe == "stack"
    ways = ["single-scale"] if one_way else ["single-scale", "multi-scale"]
    for split, (images, labels) in splits.items():
        for way in ways:
            one = copy.deepcopy(cfg)
            one.test_dataloader.dataset.data_prefix = {"img_path": images, "seg_map_path": labels}
            one.custom_hooks = []  # the weights are the averaged ones
            start = time.monotonic()
            if recipe == "stack":
                one.work_dir = str(folder / split)
                for key in ("dataloader", "cfg", "evaluator"):
                    one[f"val_{key}"] = None
                for key in ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler"):
                    one[key] = None
                one.load_from = None
                runner = make_runner(one, recipe)
                load_weights(runner.model, weights)
                result = {key: float(value) for key, value in runner.test().items()}
            else:
                from mmseg_resnest.engine.testing import evaluate as evaluate_ours

                result = evaluate_ours(
                    one, weights, folder / f"{split}-{way}", tta=way == "multi-scale"
                )
            keep = ("mIoU", "mAcc", "pixAcc", "aAcc", "classes", "images")
            results[f"{split}, {way}"] = {
                **{key: result[key] for key in keep if key in result},
                "seconds": time.monotonic() - start,
            }
    return results


def pack_weights(checkpoint: Path, target: Path) -> dict[str, Any]:
    """The weights without the auxiliary head, in float16; batch norms stay float32.

    Returns:
        ``bytes`` and ``sha256`` of the file.
    """
    import torch

    from mmseg_resnest.weights import load_training_checkpoint, save_state_dict

    state = {
        key: value.half() if value.dim() > 1 else value
        for key, value in load_training_checkpoint(str(checkpoint))["state_dict"].items()
        if isinstance(value, torch.Tensor) and not key.startswith("auxiliary_head.")
    }
    save_state_dict(state, target)
    data = target.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def write_parts(file: Path, folder: Path, limit: int = 31 * 2**19) -> list[str]:
    """A file as FILE.0, FILE.1, ... below a limit each, for places that take no large files."""
    data = file.read_bytes()
    folder.mkdir(parents=True, exist_ok=True)
    # ``cat FILE.*`` would take a longer file's last parts along.
    for old in folder.glob(f"{file.name}.*"):
        old.unlink()
    names = []
    for index, first in enumerate(range(0, len(data), limit)):
        names.append(f"{file.name}.{index}")
        (folder / names[-1]).write_bytes(data[first : first + limit])
    return names


# --- commands


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "search"):
        command = commands.add_parser(name)
        command.add_argument("--recipe", action="append", choices=CONFIGS)
        command.add_argument("--seed", action="append", type=int)
        command.add_argument("--minutes", type=float, default=8, help="of one training")
        command.add_argument("--iterations", type=int, help="so many, whatever time they take")
        command.add_argument("--data-root", type=Path, help="the folder that holds camvid/")
        command.add_argument("--out", type=Path, default=FOLDER / "results" / "camvid")
        command.add_argument("--weights", type=Path, metavar="DIR", help="put the weights here")
        command.add_argument("--toy", action="store_true", help="4 iterations of a tiny model")
        if name == "search":
            command.add_argument("--candidate", action="append", choices=CANDIDATES)
    command = commands.add_parser("report")
    command.add_argument("results", type=Path, nargs="+", metavar="DIR")
    command.add_argument("--page", type=Path, default=ROOT / "docs" / "camvid_gpu.md")
    args = parser.parse_args(argv)
    if args.command == "report":
        from camvid_report import write_page

        return write_page(args.results, args.page)
    least = 2 if args.toy else VALIDATIONS
    if args.minutes <= 0 or (args.iterations is not None and args.iterations < least):
        parser.error(f"--minutes must be above 0, --iterations at least {least}")
    from gpu_report import write

    words = argv if argv is not None else sys.argv[1:]
    args.command_line = " ".join(["python benchmarks/camvid.py", *map(str, words)])
    recipes, seeds = args.recipe or ["resnest50"], args.seed or [0]
    candidates = {"": {}}
    if args.command == "search":
        candidates = {name: CANDIDATES[name] for name in args.candidate or CANDIDATES}
    for candidate, options in candidates.items():
        for recipe in recipes:
            for args.seed in seeds:
                record = train(recipe, args, options)
                record["candidate"] = candidate
                slug = "".join(c if c.isalnum() else "_" for c in candidate)
                name = f"{recipe}-{args.seed}{'-' if slug else ''}{slug}.json"
                write(args.out / name, json.dumps(record, indent=1) + "\n")
                scores = ", ".join(
                    f"{what} {result['mIoU']:.2f}" for what, result in record["evaluations"].items()
                )
                print(f"{name}: {record['max_iters']} iterations, {record['seconds']:.0f} s, "
                      f"mIoU {scores}", flush=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
