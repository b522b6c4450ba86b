# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""From a folder of images and labels to a trained model, in one command.

    mmseg-resnest fit PHOTOS
    mmseg-resnest fit PHOTOS --budget 2h --out work_dirs/mine
    mmseg-resnest fit PHOTOS --dry-run
    mmseg-resnest fit PHOTOS --from other_run/best.pth --class-weights none --image-size 512

Recognises the labels (LabelMe, COCO, masks), prepares and checks them, measures some steps of the
training, decides its config, trains, evaluates, and writes a report and a model to publish. Every
decision is a line "what: value (reason)" and stands in OUT/config.py. Killed and started again, the
same command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import print_next
from .label_options import (
    add_jobs_option,
    add_label_options,
    check_split,
    label_options,
)
from .options import MOST_SEED, add_device_option, image_size, number, whole
from .startup import use_device

if TYPE_CHECKING:
    from mmengine.config import Config

    from mmseg_resnest.engine.fit import Budget, FitFolder, Measured, Plan

__all__ = ["add_arguments", "measure_in_child", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of images and labels")
    parser.add_argument(
        "--budget",
        default="25min",
        help="how long the training may take: 25min, 2h, 90s, or iterations: 5000it (default: "
        "25min)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="results (default: work_dirs/fit_NAME)"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print what would be done, with the predicted memory and time; write nothing",
    )
    labels = parser.add_argument_group("labels")
    add_label_options(labels)
    add_jobs_option(labels)
    training = parser.add_argument_group("training")
    training.add_argument(
        "--from",
        dest="weights",
        metavar="WEIGHTS",
        help="start from a published name (mmseg-resnest weights list), a checkpoint, one on a hub "
        "(hf://OWNER/NAME), or none (default: published weights of the model that is chosen, if "
        "they can be had)",
    )
    training.add_argument(
        "--base", metavar="CONFIG", help="the config whose model is taken (default: decided)"
    )
    training.add_argument(
        "--class-weights",
        default="auto",
        metavar="WHICH",
        help="auto (from the pixels of each class), none, or a file with a class and its weight "
        "a line",
    )
    training.add_argument("--batch-size", type=whole(1), metavar="N", help="images of a step")
    training.add_argument("--lr", type=number(0), help="learning rate")
    training.add_argument(
        "--image-size", metavar="WxH", help="of the training crops, e.g. 512x384, or 512"
    )
    training.add_argument(
        "--seed", type=whole(0, MOST_SEED), default=0, help="of the split and the training"
    )
    training.add_argument(
        "--cfg-options",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change keys of the config, e.g. optim_wrapper.optimizer.weight_decay=0.01",
    )
    add_device_option(training)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from mmseg_resnest.engine.fit import (
        FitFolder,
        check_labels,
        check_wishes,
        choose_start,
        make_plan,
        parse_budget,
        prepare_labels,
        read_class_weights,
        write_config,
    )
    from mmseg_resnest.engine.preemption import Preempted
    from mmseg_resnest.engine.preflight import check_writable
    from mmseg_resnest.io.folder_lock import FolderLock
    from mmseg_resnest.io.processes import cpu_count

    check_split(args, seed=False)  # which is also that of the training
    wishes = _wishes(args, parse_budget(args.budget))
    check_wishes(wishes, args.weights)
    use_device(args.device)
    jobs = args.jobs or cpu_count()
    keep = not args.dry_run
    with contextlib.ExitStack() as held:
        if keep:
            out = args.out or Path("work_dirs", f"fit_{args.data.resolve().name}")
            _check_apart(args.data, out)
            check_writable(out, "--out")
            out.mkdir(parents=True, exist_ok=True)
            held.enter_context(FolderLock(out, f"--out {out}"))
        else:
            out = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="fit_")))
        place = FitFolder(out, stays=keep)
        prepared = prepare_labels(_label_options(args), out, jobs)
        _say(*prepared.notes)
        if args.class_weights not in ("auto", "none"):
            weights = read_class_weights(Path(args.class_weights), prepared.facts.classes)
            wishes = replace(wishes, class_weights=weights)
        start = choose_start(prepared, wishes, args.weights, keep, args.cfg_options, args.seed)
        _say(f"check: {check_labels(place, prepared, start, jobs)}")
        start, plan, text, notes = make_plan(place, prepared, start, measure_in_child)
        _say(*notes, *(one.line() for one in plan.decisions))
        _say_prediction(plan)
        if args.dry_run:
            print("dry run: nothing was written; without --dry-run the same command does it")
            return 0
        cfg = write_config(place, text)
        _say(f"config: {_shown(place.config)}")
        try:
            _train_and_publish(place, cfg, text)
        except Preempted as stopped:
            raise Preempted(str(stopped).replace("with --resume ", "")) from stopped
    return 0


def _say(*lines: str) -> None:
    for line in lines:
        print(line, flush=True)


def _shown(path: Path) -> str:
    from mmseg_resnest.engine.logs import display_path

    return display_path(path)


def _label_options(args: argparse.Namespace) -> Any:
    from mmseg_resnest.datasets.prepare import CustomOptions

    return CustomOptions(name="data", sources=(args.data,), **label_options(args))


def _wishes(args: argparse.Namespace, budget: Budget) -> Any:
    from mmseg_resnest.engine.fit import Wishes

    size = image_size(args.image_size)
    return Wishes(budget, args.base, size, args.batch_size, args.lr, args.class_weights)


def _check_apart(data: Path, out: Path) -> None:
    """Refuse results among the images and labels, for which they would be taken next time."""
    from mmseg_resnest.errors import UserError

    inside, folder = out.resolve(), data.resolve()
    if inside.is_relative_to(folder):
        other = Path("..", f"fit_{folder.name}")
        message = (
            f"lies in {data}, where its files would be taken for images and labels; name a "
            f"folder outside: --out {other}"
        )
        raise UserError("argument", f"--out {out}", message)
    if folder.is_relative_to(inside / "data"):
        message = f"would hold its own copy of {data} there; name another folder"
        raise UserError("argument", f"--out {out}", message)


def _say_prediction(plan: Plan) -> None:
    from mmseg_resnest.engine.hooks import duration
    from mmseg_resnest.io.text import gigabytes

    _say(
        f"memory: {gigabytes(plan.memory)} at the peak (measured)",
        f"iteration: {plan.iteration:.2f} s (measured)",
        f"training: {duration(plan.seconds)} in all, validations included",
    )


def measure_in_child(config: Path, batches: Sequence[int], budget: Budget) -> Measured:
    """Measure steps of a config in a process of its own, which the system may kill.

    Args:
        config: The file.
        batches: Numbers of images.
        budget: Of the training; the range test takes a twentieth of it.

    Raises:
        UserError: What the other process raised.
    """
    from mmseg_resnest.engine.fit import Measured
    from mmseg_resnest.errors import UserError

    words = [sys.executable, "-m", "mmseg_resnest_cli.measure", str(config)]
    words += [str(budget.seconds or 0), str(budget.iterations or 0), *map(str, batches)]
    messages: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=said, text=True) as child,
    ):
        assert child.stdout is not None
        for line in child.stdout:
            with contextlib.suppress(ValueError):
                messages.append(json.loads(line))
        code = child.wait()
        said.seek(0)
        errors = said.read().decode(errors="replace")
    if messages and "error" in messages[-1]:
        raise UserError(*messages[-1]["error"])
    if code > 0:
        raise RuntimeError(f"measuring steps of the training failed:\n{errors[-4000:]}")
    return Measured.of(messages, killed=code < 0)


def _train_and_publish(place: FitFolder, cfg: Config, text: str) -> None:
    """Train, evaluate, report and publish, as far as that was not done."""
    from mmseg_resnest.engine.testing import evaluate
    from mmseg_resnest.engine.trained import checkpoint_in
    from mmseg_resnest.engine.training import train
    from mmseg_resnest.evaluation import write_report
    from mmseg_resnest.evaluation.results_file import RESULTS_FILE, read_results_file
    from mmseg_resnest.export.publish import check_loads_back, publish, read_results
    from mmseg_resnest.inference import load_segmentor
    from mmseg_resnest.io.up_to_date import fingerprint

    trained, tested = place.run / RESULTS_FILE, place.test / RESULTS_FILE
    entry = {trained: fingerprint(text)}
    if not place.journal.has(entry):
        open_model = partial(load_segmentor, device="cpu")
        train(cfg, work_dir=place.run, resume="auto", open_model=open_model)
        place.journal.add(entry, step="train")
    best = checkpoint_in(place.run)
    entry = {tested: fingerprint(best)}
    if not place.journal.has(entry):
        evaluate(cfg, best, work_dir=place.test)
        place.journal.add(entry, step="test")
    entry = {place.report: fingerprint(tested)}
    if not place.journal.has(entry):
        write_report([place.run], place.report)
        place.journal.add(entry, step="report")
    entry = {place.model: fingerprint(best, tested)}
    if not place.journal.has(entry):
        model = load_segmentor(cfg, best, "cpu")
        name = place.folder.resolve().name
        done = publish(model, place.model, name, "other", read_results(tested, best), force=True)
        check_loads_back(model, done["folder"])
        place.journal.add(entry, step="publish")
    _print_result(place, best, read_results_file(tested))


def _print_result(place: FitFolder, best: Path, result: dict[str, Any]) -> None:
    from mmseg_resnest.engine.hooks import print_header
    from mmseg_resnest.evaluation import class_table, score_text

    print()
    print(class_table(result) + "\n")
    print_header(
        [
            ("scores", f"{score_text(result)}, on {result['images']} validation images"),
            ("checkpoint", _shown(best)),
            ("report", _shown(place.report)),
            ("model", _shown(place.model)),
        ]
    )
    outputs = (place.run, place.model, place.folder / "pictures", place.folder / "predictions")
    run_folder, model, pictures, predictions = (shlex.quote(_shown(path)) for path in outputs)
    print_next(
        f"mmseg-resnest predict {model} IMAGE_OR_FOLDER --out {predictions}",
        f"mmseg-resnest test {run_folder} --tta --show-dir {pictures}",
        f"mmseg-resnest serve {model}",
    )
