# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The steps from a folder of labels to a config; each is one call, and is done once.

A journal in the output folder says which step was done with what: one whose inputs and output are
as they were is not repeated.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mmengine.config import Config

from ...datasets.check import RULES, check_data
from ...datasets.prepare import CustomOptions, prepare_custom, recognise_options
from ...errors import UserError
from ...evaluation import write_result
from ...io.atomic import atomic_write
from ...io.json_files import read_json
from ...io.up_to_date import Journal, file_state, fingerprint
from ...version import __version__
from ...weights import check_remote, is_remote, resolve_checkpoint
from ...weights.hub import WEIGHTS_FILE
from ..config import config_as_text, load_config, parse_cfg_options
from ..run_folders import holds_run
from ..trained import checkpoint_in
from .budget import Budget
from .decide import (
    LEAST_BATCH,
    Decision,
    Plan,
    Wishes,
    check_numbers,
    choose,
    decide,
    read_weight_lines,
    takes_large,
)
from .facts import Facts, check_facts, collect_facts
from .measure import Measured
from .text import fit_config_text, model_text
from .weights import Origin, find_origin, write_start

#: Measures steps of a config file: ``(config, batches, budget) -> Measured``.
Measure = Callable[[Path, Sequence[int], Budget], Measured]

_DATA = "data"  # the folder of the prepared labels, and what they are made from
_PREPARED = ("images", "annotations", "splits", "classes.json")
_MOST_SHOWN = 3


class FitFolder:
    """Where the results of a fit are; ``stays`` is False for the temporary folder of a dry run."""

    def __init__(self, folder: Path, stays: bool = True) -> None:
        self.folder, self.stays = folder, stays
        self.config = folder / "config.py"
        self.measured = folder / "measured.json"
        self.check = folder / "check.json"
        self.start = folder / "start.pth"
        self.run = folder / "run"
        self.test = folder / "run" / "test"
        self.report = folder / "report.html"
        self.model = folder / "model"

    @property
    def journal(self) -> Journal:
        """Which steps were done."""
        return Journal(self.folder / "steps.jsonl")


@dataclass(frozen=True)
class Prepared:
    """Labels that are prepared: notes on what was found, a line each, and a digest of the files."""

    folder: Path
    facts: Facts
    notes: tuple[str, ...]
    state: str


def prepare_labels(options: CustomOptions, root: Path, jobs: int) -> Prepared:
    """Recognise and prepare the labels of a folder, below ``root``, in so many processes.

    ``options`` are what the person says of the labels, but for the name.

    Raises:
        UserError: There are no labels, or of two forms, or they are wrong, or nothing can be
            learned from them.
    """
    options, notes = recognise_options(replace(options, name=_DATA), root, jobs)
    report = prepare_custom(options, root, jobs=jobs)
    facts = collect_facts(report, options)
    check_facts(facts, options.sources[0])
    counts = f"{facts.train_images:,} images to train, {facts.val_images:,} to validate on"
    if report.groups:
        counts += f", in {report.groups['train']:,} and {report.groups['val']:,} groups"
    about = [counts]
    bands = facts.bands
    if bands is not None:
        said = "mean and deviation of each are those of the labelled pixels of the training images"
        about.append(f"bands: {len(bands.mean)}; {said}")
    if facts.multilabel:
        about.append("classes may overlap: each has a sigmoid and a threshold of 0.5")
    state = fingerprint(
        [file_state(report.folder / name) for name in _PREPARED],
        *(bands and bands.options.as_text(), facts.multilabel, dict(facts.label_map)),
    )
    return Prepared(report.folder, facts, (*notes, *about, *report.notes), state)


@dataclass(frozen=True)
class Start:
    """What is known before steps are measured: facts, the weights to start from, first decisions.

    ``base`` is the config whose model is taken, ``state`` a digest of the labels and images.
    """

    facts: Facts
    origin: Origin
    base: Config
    chosen: Plan
    wishes: Wishes
    cfg_options: tuple[str, ...]
    seed: int
    state: str

    @functools.cached_property
    def _model(self) -> str:
        return model_text(self.base, self.facts, self.chosen, self.origin)

    def text(self, plan: Plan, data: Path, load_from: Path | None) -> str:
        """The text of the config of a plan."""
        text = fit_config_text(
            self.facts, plan, self.origin, self._model, data.resolve(), load_from, self.seed
        )
        # A training with other data is another one, also where all decisions are the same.
        return _with_options(f"# Of the data {self.state}.\n{text}", self.cfg_options)

    def write_draft(self, file: Path, data: Path, load_from: Path | None = None) -> None:
        """Write a config with the first decisions, and for the rest what changes no step."""
        file.write_text(self.text(_draft(self), data, load_from), encoding="utf-8")


def check_wishes(wishes: Wishes, weights: str | None) -> None:
    """Check what needs no labels, before they are prepared.

    Raises:
        UserError: A number is not possible, or what is named (``weights`` as in
            :func:`.find_origin`) does not exist.
    """
    check_numbers(wishes)
    if wishes.base is not None:
        load_config(wishes.base)
    if isinstance(wishes.class_weights, str) and wishes.class_weights not in ("auto", "none"):
        read_weight_lines(Path(wishes.class_weights))
    if weights is None or weights == "none":
        return
    if is_remote(weights):
        check_remote(weights)
    elif not Path(weights).is_dir():
        resolve_checkpoint(weights)
    elif (file := Path(weights, WEIGHTS_FILE)).is_file():
        message = f"is a published folder; give --from {file} and --base, the config of its model"
        raise UserError("argument", f"--from {weights}", message)
    else:
        checkpoint_in(weights)


def choose_start(
    prepared: Prepared,
    wishes: Wishes,
    weights: str | None,
    fetch: bool,
    cfg_options: Sequence[str],
    seed: int,
) -> Start:
    """Decide the model and the weights to start from; raises as :func:`.find_origin`."""
    origin = find_origin(weights, takes_large(prepared.facts), fetch, wishes.base)
    chosen = choose(prepared.facts, wishes, origin)
    base = origin.model or load_config(chosen["model_of"])
    return Start(
        prepared.facts, origin, base, chosen, wishes, tuple(cfg_options), seed, prepared.state
    )


def make_plan(
    place: FitFolder, prepared: Prepared, start: Start, measure: Measure
) -> tuple[Start, Plan, str, list[str]]:
    """Measure steps of the training, unless that was done, and decide the rest.

    Returns:
        First decisions as they were measured with, all decisions, the config's text, and notes.

    Raises:
        UserError: The weights do not fit the model; the memory or the budget is not enough.
    """
    weights = Path(start.origin.name)
    made_from = fingerprint(
        *(prepared.state, asdict(start.wishes), start.chosen["model_of"]),
        *(list(start.cfg_options), start.seed, start.facts.gpu, __version__),
        weights if weights.is_file() else start.origin.name,
    )
    notes: list[str] = []
    known = place.journal.has({place.measured: made_from})
    if known:
        record = read_json(place.measured, str(place.measured))
        start = replace(start, facts=replace(start.facts, memory=record["memory"]))
    load_from = None
    with tempfile.TemporaryDirectory(prefix="fit_") as folder:
        draft = Path(folder) / "config.py"
        if start.origin.starts and start.origin.there and not start.origin.backbone:
            load_from = place.start.resolve()
            start.write_draft(draft, prepared.folder)
            notes.append(_write_start(place, start, load_config(draft), load_from, made_from))
        if not known:
            start.write_draft(draft, prepared.folder, load_from)
            measured = measure(draft, _batches(start), start.wishes.budget)
            record = {"memory": start.facts.memory, "messages": measured.messages()}
            atomic_write(place.measured, json.dumps(record, indent=1) + "\n")
            place.journal.add({place.measured: made_from}, step="measure")
    measured = Measured.of(record["messages"])
    plan = decide(start.facts, start.wishes, start.origin, start.chosen, measured)
    return start, plan, start.text(plan, prepared.folder, load_from), notes


def _write_start(place: FitFolder, start: Start, cfg: Config, file: Path, made_from: str) -> str:
    """Write the weights to start from, unless they are there; says what is kept of them."""
    entry = {file: fingerprint(made_from, start.origin.name)}
    if place.journal.has(entry):
        return f"weights: {start.origin.name}, in {file.name}"
    said = write_start(start.origin, cfg, start.facts.classes, file)
    place.journal.add(entry, step="weights")
    return f"weights: {said}"


def _batches(start: Start) -> list[int]:
    """Numbers of images whose steps are measured, from small to large."""
    wanted = start.chosen["batch_size"]
    return sorted({min(LEAST_BATCH, wanted), wanted})


def _draft(start: Start) -> Plan:
    """A plan to measure with: first decisions, and for the rest what changes no step."""
    rest = dict(
        accumulative_counts=1, num_workers=1, lr=start.wishes.lr or start.origin.usual_rate,
        backbone_lr_mult=start.origin.backbone_share, max_iters=1000, warmup_iters=0,
        val_interval=1000, save_interval=1000, patience=None,
    )  # fmt: skip
    return Plan(
        (*start.chosen.decisions, *(Decision(name, v, "a draft") for name, v in rest.items()))
    )


def _with_options(text: str, cfg_options: Sequence[str]) -> str:
    """A config's text with what options change at its end, key by key."""
    if not cfg_options:
        return text
    with tempfile.TemporaryDirectory(prefix="fit_") as folder:
        file = Path(folder) / "config.py"
        file.write_text(text, encoding="utf-8")
        plain = load_config(file, cfg_options).to_dict()
    keys = dict.fromkeys(key.lstrip("+").split(".")[0] for key in parse_cfg_options(cfg_options))
    if "data_root" in keys:
        raise UserError("argument", "--cfg-options data_root", "is what fit has prepared; leave it")
    changed = config_as_text(Config({key: plain[key] for key in keys}))
    return f"{text}\n# with --cfg-options\n{changed}"


def write_config(place: FitFolder, text: str) -> Config:
    """Write the config of a fit, and read it.

    Raises:
        UserError: The folder holds a config that was changed by hand, or a training with another
            one.
    """
    old = place.config.read_text(encoding="utf-8") if place.config.is_file() else None
    if old is not None and old != text:
        if not place.journal.has({place.config: fingerprint(old)}):
            message = "was changed by hand; train it with mmseg-resnest train, or move it"
            raise UserError("output-exists", place.config, message)
        if holds_run(load_config(place.config), str(place.run)):
            message = (
                "holds a training with other labels or options; name another folder, or repeat the"
                " command as it was"
            )
            raise UserError("output-exists", f"--out {place.folder}", message)
    if old != text:
        atomic_write(place.config, text)
        place.journal.add({place.config: fingerprint(text)}, step="config")
    return load_config(place.config)


def check_labels(place: FitFolder, prepared: Prepared, start: Start, jobs: int) -> str:
    """Check every file of the labels as training loads it, unless that was done.

    Returns:
        What was found, in words.

    Raises:
        UserError: Training would fail; the message names the first files.
    """
    entry = {place.check: prepared.state}
    if place.journal.has(entry):
        counts = read_json(place.check, str(place.check))["counts"]
    else:
        with tempfile.TemporaryDirectory(prefix="fit_") as folder:
            draft = Path(folder) / "config.py"
            start.write_draft(draft, prepared.folder)
            report = check_data(load_config(draft), ["train", "val"], jobs, progress=False)
        found = report.as_dict()
        write_result(found, place.check)
        errors = [problem for problem in report.problems if problem.severity == "error"]
        if errors:
            some = "; ".join(
                f"{one.file} {one.what} ({one.remedy})" for one in errors[:_MOST_SHOWN]
            )
            more = f" ({place.check} lists them all)" if place.stays else ""
            message = f"must be solved first ({len(errors):,} in all): {some}{more}"
            raise UserError("dataset", f"problems of {prepared.folder}", message)
        place.journal.add(entry, step="check")
        counts = found["counts"]
    if not counts:
        return "every file is as training needs it"
    said = ", ".join(f"{RULES[rule].title} ({number:,})" for rule, number in counts.items())
    return f"no errors; warnings: {said}"
