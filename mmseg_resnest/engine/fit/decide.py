# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Decisions of a training, each with its reason, from facts, wishes and measurements alone.

:func:`choose` decides what is measured, :func:`decide` the rest. Both are pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ...datasets.layout import decode_text
from ...errors import UserError
from ...io.memory import available_memory
from ...io.text import gigabytes
from ..hooks import duration
from ..run_options import RunOptions, check_run_options
from .budget import Budget
from .facts import Facts
from .measure import Measured
from .weights import Origin

SMALL, LARGE = "fcn_resnest14_camvid", "deeplabv3plus_resnest50_camvid"
LEAST_BATCH = 2  # batch norm over a single image can fail
LEAST_ITERATIONS = 10
_LARGE_NEEDS = 10 << 30  # bytes of GPU memory
_MEMORY_SHARE = 0.85  # of what is available; the rest is for workers and the validation
_VALIDATION_SHARE = 0.15  # of the time
_MOST_WEIGHT = 10.0
_SAVE_SECONDS = 120


@dataclass(frozen=True)
class Wishes:
    """What the person decides; None leaves it to be decided.

    ``base`` is the name or file of the config whose model is taken, ``image_size`` width and height
    of the training crops, in pixels. ``class_weights`` are ``auto``, ``none``, a weight of each
    class, or, before the classes are known, the file that has them (:func:`read_class_weights`).
    """

    budget: Budget
    base: str | None = None
    image_size: tuple[int, int] | None = None
    batch_size: int | None = None
    lr: float | None = None
    class_weights: str | tuple[float, ...] = "auto"


class Decision(NamedTuple):
    """A value of the config, under the name that it has there, and why it is that."""

    name: str
    value: Any
    reason: str

    def line(self) -> str:
        """``batch size: 8 (the memory allows it)``."""
        value = self.value
        if isinstance(value, tuple | list):
            value = ", ".join(f"{one:g}" for one in value)
        shown = "none" if value is None else value
        return f"{self.name.replace('_', ' ')}: {shown} ({self.reason})"


@dataclass(frozen=True)
class Plan:
    """All decisions in their order, and what they lead to.

    Predicted are bytes of memory at the peak, the seconds of an iteration, and those of the
    training with its validations.
    """

    decisions: tuple[Decision, ...]
    memory: int = 0
    iteration: float = 0.0
    seconds: float = 0.0

    def __getitem__(self, name: str) -> Any:
        return next(one.value for one in self.decisions if one.name == name)

    def reason(self, name: str) -> str:
        """Why it was decided so."""
        return next(one.reason for one in self.decisions if one.name == name)


def choose(facts: Facts, wishes: Wishes, origin: Origin) -> Plan:
    """Decide what does not depend on measurements; UserError if a wish is not possible."""
    check_numbers(wishes)
    made = [_model(facts, wishes, origin), Decision("start", origin.name, origin.reason)]
    made += _sizes(facts, wishes)
    made.append(_class_weights(facts, wishes))
    made.append(_target_batch(facts, wishes))
    return Plan(tuple(made))


def check_numbers(wishes: Wishes) -> None:
    """Raise UserError if a number that the person decides is not possible."""
    batch, lr, size = wishes.batch_size, wishes.lr, wishes.image_size
    wanted = RunOptions(batch_size=batch, lr=lr, image_size=size)
    check_run_options(wanted, available_memory())


def takes_large(facts: Facts) -> bool:
    """Whether there is a GPU with the memory for a large model."""
    return bool(facts.gpu) and (facts.memory is None or facts.memory >= _LARGE_NEEDS)


def _model(facts: Facts, wishes: Wishes, origin: Origin) -> Decision:
    if wishes.base is not None:
        return Decision("model_of", wishes.base, "--base")
    if origin.base is not None:
        return Decision("model_of", origin.base, f"the model that {origin.name} is of")
    if not facts.gpu:
        reason = f"no GPU: a third of the work of a dilated backbone; {facts.cores} cores"
        return Decision("model_of", SMALL, reason)
    # The reason stands in the config: no free memory in it, which is another in a repeated command.
    if takes_large(facts):
        return Decision("model_of", LARGE, facts.gpu)
    least = gigabytes(_LARGE_NEEDS)
    return Decision("model_of", SMALL, f"{facts.gpu}: less than {least} of its memory is free")


def _sizes(facts: Facts, wishes: Wishes) -> list[Decision]:
    """The long edge that images are resized to, and the crop (height, width)."""
    own = max(facts.width, facts.height)
    most, most_crop = (1024, 512) if facts.gpu else (384, 256)
    base = min(own, most)
    what = f"images are {facts.width}x{facts.height}"
    if wishes.image_size is not None:
        width, height = wishes.image_size
        reason = f"{what}; at most {most} here"
        if base < max(width, height) <= own:
            base, reason = max(width, height), "the crop's, --image-size"
        return [
            Decision("base_size", base, f"long edge; {reason}"),
            Decision("crop_size", (height, width), "height, width; --image-size"),
        ]
    long = base if base <= most_crop else max(most_crop, base // 2)
    sides = [_rounded(long * side / own) for side in (facts.height, facts.width)]
    reason = "height, width: the image's shape, in multiples of 32"
    if long < base:
        reason += f", {long / base:.0%} of its edges: more images for the same work"
    return [
        Decision("base_size", base, f"long edge; {what}; at most {most} here"),
        Decision("crop_size", (sides[0], sides[1]), reason),
    ]


def _rounded(side: float) -> int:
    return max(64, 32 * round(side / 32))


def balanced_weights(pixels: Sequence[int]) -> tuple[float, ...]:
    """A weight of each class: the inverse square root of its share of the pixels.

    Mean 1 over the pixels, at most 10; 1 for a class without pixels. The square root damps the
    inverse frequency, as Mahajan et al., "Exploring the Limits of Weakly Supervised Pretraining"
    (2018), do for sampling.
    """
    total = sum(pixels)
    shares = [count / total for count in pixels]
    roots = [share**-0.5 if share else 0.0 for share in shares]
    mean = sum(share * root for share, root in zip(shares, roots, strict=True))
    return tuple(round(min(_MOST_WEIGHT, root / mean), 2) if root else 1.0 for root in roots)


def _class_weights(facts: Facts, wishes: Wishes) -> Decision:
    wish = wishes.class_weights
    if isinstance(wish, tuple):
        if len(wish) != len(facts.classes):
            message = f"has {len(wish)} weights, and there are {len(facts.classes)} classes"
            raise UserError("classes", "--class-weights", message)
        return Decision("class_weights", list(wish), "--class-weights FILE")
    if wish == "none":
        return Decision("class_weights", None, "--class-weights none")
    if facts.multilabel:
        reason = "classes overlap: the Dice loss counts a rare class as much as a frequent one"
        return Decision("class_weights", None, reason)
    weights = balanced_weights(facts.train_pixels)
    if max(weights) / min(weights) < 1.5:
        return Decision("class_weights", None, "the classes have about as many pixels each")
    reason = "(1 / share of the training pixels) ** 0.5, mean 1 over pixels, at most 10"
    return Decision("class_weights", list(weights), reason)


def _target_batch(facts: Facts, wishes: Wishes) -> Decision:
    """The batch that is measured and wanted."""
    if wishes.batch_size is not None:
        return Decision("batch_size", wishes.batch_size, "--batch-size")
    wanted = 16 if facts.gpu else 8
    if wanted > facts.train_images:
        return Decision(
            "batch_size",
            max(LEAST_BATCH, facts.train_images // 2),
            f"of {facts.train_images} images",
        )
    return Decision("batch_size", wanted, "steady batch statistics")


def decide(facts: Facts, wishes: Wishes, origin: Origin, chosen: Plan, measured: Measured) -> Plan:
    """Decide everything that measurements are needed for, which were made with ``chosen``.

    Raises:
        UserError: The memory is not enough for the smallest batch, or the budget for a run.
    """
    batch, accumulate = _batch(facts, wishes, chosen, measured)
    seconds, workers = _loading(facts, batch.value, measured)
    length = _length(facts, wishes.budget, seconds, measured)
    made = [one for one in chosen.decisions if one.name != "batch_size"]
    made += [batch, accumulate, workers]
    made += _rates(wishes, origin, measured)
    made += length.values()
    # One is at the end, whatever the interval.
    validations = math.ceil(length["max_iters"].value / length["val_interval"].value)
    took = seconds * length["max_iters"].value + validations * _validation(facts, measured)
    return Plan(tuple(made), measured.memory(batch.value), seconds, took)


def _batch(
    facts: Facts, wishes: Wishes, chosen: Plan, measured: Measured
) -> tuple[Decision, Decision]:
    """The batch that fits into memory, and over how many the gradient is added up."""
    wanted = chosen["batch_size"]
    limit = int(_MEMORY_SHARE * facts.memory) if facts.memory else None
    if not measured.steps:
        raise _too_little_memory(facts, chosen, None)
    batch = wanted
    while limit is not None and measured.memory(batch) > limit:
        if wishes.batch_size is not None or batch <= LEAST_BATCH:
            raise _too_little_memory(facts, chosen, measured.memory(batch))
        batch = max(LEAST_BATCH, batch // 2)
    largest = max(one.batch for one in measured.steps)
    if measured.killed and batch > largest:
        if wishes.batch_size is not None:
            raise _too_little_memory(facts, chosen, None)
        batch = largest
    need = gigabytes(measured.memory(batch))
    free = f" of {gigabytes(facts.memory)} free" if facts.memory else ""
    reason = chosen.reason("batch_size")
    if batch == wanted:
        fits = Decision("batch_size", batch, f"{reason}; takes {need}{free}")
        return fits, Decision("accumulative_counts", 1, "the whole batch fits into memory")
    times = max(1, wanted // batch)
    return (
        Decision("batch_size", batch, f"takes {need}{free}; {wanted} do not fit"),
        Decision("accumulative_counts", times, f"batches a step: as {batch * times} images"),
    )


def _too_little_memory(facts: Facts, chosen: Plan, need: int | None) -> UserError:
    height, width = chosen["crop_size"]
    much = "was killed by the system" if need is None else f"needs {gigabytes(need)}"
    have = f"{gigabytes(facts.memory)} are free" if facts.memory else "there is not enough"
    message = (
        f"{have}, and a step of {chosen['model_of']} with crops of {width}x{height} {much}; free"
        f" some memory, or give a smaller --image-size or --batch-size, or --base {SMALL}"
    )
    return UserError("memory", facts.gpu or "this machine", message)


def _loading(facts: Facts, batch: int, measured: Measured) -> tuple[float, Decision]:
    """Seconds of an iteration with its loading, and the workers for that."""
    step, load = measured.seconds(batch), measured.load_seconds * batch
    share = load / max(step, 1e-9)
    most = max(1, facts.cores if facts.gpu else facts.cores - 1)
    workers = min(most, max(1, math.ceil(1.5 * share)))
    reason = f"a batch takes {load:.2f} s to load and {step:.2f} s to train on"
    # On a CPU loading takes time from training; beside a GPU it goes on at the same time.
    seconds = max(step, load / workers) if facts.gpu else step + load / facts.cores
    return seconds, Decision("num_workers", workers, reason)


def _validation(facts: Facts, measured: Measured) -> float:
    return facts.val_images * measured.val_seconds


def _length(
    facts: Facts, budget: Budget, seconds: float, measured: Measured
) -> dict[str, Decision]:
    """Iterations, warm-up, validations, saving and patience within the budget."""
    validation = _validation(facts, measured)
    if budget.iterations is not None:
        iterations, count = budget.iterations, max(1, min(10, budget.iterations // 60))
        reason = f"--budget; about {duration(iterations * seconds)} at {seconds:.2f} s each"
    else:
        time = budget.seconds or 0.0
        count = max(1, min(10, int(_VALIDATION_SHARE * time / max(validation, 1e-9))))
        count = max(1, min(count, int(time / seconds) // 60))
        iterations = int((time - count * validation) / seconds)
        reason = f"{budget} at {seconds:.2f} s each"
        reason += f", less {_validations(count)} of {validation:.0f} s"
        if iterations < LEAST_ITERATIONS:
            need = LEAST_ITERATIONS * seconds + validation
            message = (
                f"is too short: {LEAST_ITERATIONS} iterations of {seconds:.1f} s and a validation"
                f" of {validation:.0f} s take {duration(need)}; give more, or a smaller"
                " --image-size or --batch-size"
            )
            raise UserError("argument", f"--budget {budget}", message)
    interval = math.ceil(iterations / count)
    warmup = min(50, iterations // 10)
    save = max(1, min(interval, round(_SAVE_SECONDS / seconds)))
    patience = Decision("patience", None, f"{_validations(count)}: too few to stop early")
    if count >= 6:
        ends = "validations without a better mIoU end the training, in its second half"
        patience = Decision("patience", count // 3, ends)
    made = [
        Decision("max_iters", iterations, reason),
        # LinearLR of one step would stay where it begins.
        Decision("warmup_iters", warmup if warmup > 1 else 0, "iterations: a tenth, at most 50"),
        Decision("val_interval", interval, _validations(count)),
        Decision("save_interval", save, f"a kill costs {duration(save * seconds)} at most"),
        patience,
    ]
    return {one.name: one for one in made}


def _validations(count: int) -> str:
    return f"{count} validation{'s' if count > 1 else ''}"


def _rates(wishes: Wishes, origin: Origin, measured: Measured) -> list[Decision]:
    """The learning rate, and that of what starts from weights in proportion."""
    if wishes.lr is not None:
        rate = Decision("lr", wishes.lr, "--lr")
    elif measured.lr is not None:
        reason = f"a range test of {measured.range_steps} steps"
        rate = Decision("lr", measured.lr, f"{reason}: a quarter of where the loss was lowest")
    else:
        usual = origin.usual_rate
        rate = Decision("lr", usual, "AdamW's usual one; too short a run for a range test")
    why = "everything starts anew"
    if origin.starts:
        why = "trained for long" if origin.published else "a run of one's own goes on"
    share = origin.backbone_share
    return [rate, Decision("backbone_lr_mult", share, why)]


def read_class_weights(file: Path, classes: Sequence[str]) -> tuple[float, ...]:
    """The weight of each class from a text file: a name and its weight a line.

    It is UTF-8 or UTF-16; blank lines and lines that begin with ``#`` are passed over.

    Raises:
        UserError: As :func:`read_weight_lines`; or a class has no line, or a line names no class.
    """
    subject, found = f"--class-weights {file}", read_weight_lines(file)
    if missing := sorted(set(classes) - set(found)):
        raise UserError("classes", subject, f"has no weight for {', '.join(missing[:5])}")
    if unknown := sorted(set(found) - set(classes)):
        message = f"names what is not a class: {', '.join(unknown[:5])}"
        raise UserError("classes", subject, message)
    return tuple(found[name] for name in classes)


def read_weight_lines(file: Path) -> dict[str, float]:
    """The weights of a text file by name, whatever classes there are.

    UserError says that it cannot be read, or that a line is no name with a weight above 0.
    """
    subject = f"--class-weights {file}"
    try:
        lines = decode_text(file.read_bytes()).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        code = "not-found" if isinstance(error, FileNotFoundError) else "unreadable"
        message = "cannot be read; give auto, none, or a file with a class and its weight a line"
        raise UserError(code, subject, message) from error
    found: dict[str, float] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        *names, weight = line.strip().rsplit(maxsplit=1)
        name = "".join(names)
        try:
            found[name] = float(weight)
        except ValueError:
            found[name] = math.nan
        if not name or not (math.isfinite(found[name]) and found[name] > 0):
            message = f"line {number} is not a class and its weight, such as: road 0.5"
            raise UserError("format", subject, message)
    return found
