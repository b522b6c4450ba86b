# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Which runtime computes a segmentor's network, and in which precision.

The network (backbone, neck and head) is the only part that another runtime computes: it is exported
once for each content (:mod:`.store`) and called in place of the model's own
(:attr:`~mmseg_resnest.models.EncoderDecoder.runtime`). Windows, scales, mirror images, tiles and
labels stay the same code.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib.util
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from ..engine.resume_changes import Note
from ..errors import UserError
from ..io.cancel import raise_if_cancelled
from ..io.packages import needs_extra
from ..io.processes import has_bfloat16, has_int8, processor_name
from ..kernels.compiled import Compiled
from ..models import EncoderDecoder
from .agreement import LABELS_EQUAL, SCORES_WITHIN, Agreement
from .compare import compare_scores
from .eight_bits import in_8_bits
from .files import exporting, write_openvino
from .free_sizes import keep_sizes_free
from .network import content_key, folded_copy, versions_of_runtimes, write_scores_network
from .sessions import Run, guarded, open_onnx, open_openvino, seconds_of
from .store import Entry, entry_of
from .times import known_times, times_note
from .weights_change import state_of

__all__ = ["ENGINES", "PRECISIONS", "Choice", "Engine", "use_engine"]

#: What can compute a network, each with the precisions that it has.
ENGINES = {
    "torch": ("float32", "bf16"),
    "compile": ("float32", "bf16"),
    "onnxruntime": ("float32", "int8"),
    "openvino": ("float32", "bf16", "int8"),
}
PRECISIONS = ("float32", "bf16", "int8")
#: The packages that an engine and 8 bits need, and the extra that installs them.
_PACKAGES = {
    "onnxruntime": ("deploy", ("onnx", "onnxruntime")),
    "openvino": ("openvino", ("onnx", "openvino")),
    "int8": ("deploy", ("onnx", "onnxruntime")),
}
#: What ``auto`` measures; compiling takes minutes.
_MEASURED = ("torch", "onnxruntime", "openvino")
_NAMES = {"float32": "float32", "bf16": "bfloat16", "int8": "int8"}


def _warn(line: str) -> None:
    logging.getLogger(__name__).warning(line)


@dataclass(frozen=True)
class Choice:
    """An engine and a precision, checked against this machine and its packages.

    Attributes:
        engine: A name of :data:`ENGINES`, or ``auto``: the fastest of torch, ONNX Runtime and
            OpenVINO on the first image, as far as they are installed.
        precision: One of :data:`PRECISIONS`.
        images: Files to calibrate ``int8`` on; none: those of the config's training split.

    Raises:
        UserError: A name is unknown, the two do not go together, the processor has no units for
            the precision (with a GPU it is known later whether they are needed), or a package is
            missing.
    """

    engine: str = "torch"
    precision: str = "float32"
    images: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = (*ENGINES, "auto")
        if self.engine not in names:
            said = f"is not one of {', '.join(names)}"
            raise UserError("argument", f"engine {self.engine}", said)
        if self.precision not in PRECISIONS:
            said = f"is not one of {', '.join(PRECISIONS)}"
            raise UserError("argument", f"precision {self.precision}", said)
        if self.engine != "auto" and self.precision not in ENGINES[self.engine]:
            others = [name for name, some in ENGINES.items() if self.precision in some]
            said = f"{self.engine} does not compute in it; take the engine {' or '.join(others)}"
            raise UserError("config-conflict", f"precision {self.precision}", said)
        if self.engine == "openvino" or self.precision == "int8" or not torch.cuda.is_available():
            self._check_processor()
        for name in (self.engine, self.precision):
            if name in _PACKAGES:
                extra, packages = _PACKAGES[name]
                with needs_extra(extra):
                    for package in packages:
                        importlib.import_module(package)

    def _check_processor(self) -> None:
        """Without units a precision takes several times as long as float32."""
        units = {"bf16": has_bfloat16, "int8": has_int8}.get(self.precision)
        if units is not None and units() is False:
            name = "bfloat16" if self.precision == "bf16" else "products of 8-bit numbers"
            said = f"this processor ({processor_name()}) has no units for {name}, so it would take "
            said += "longer than in float32; use precision float32"
            raise UserError("device", f"precision {self.precision}", said)

    @property
    def is_plain(self) -> bool:
        """Whether it is torch in float32, as without a choice."""
        return (self.engine, self.precision) == ("torch", "float32")

    def candidates(self, device: torch.device) -> list[str]:
        """The engines to choose from on a device; a UserError without any."""
        if device.type == "cpu":
            self._check_processor()
        if self.engine != "auto":
            return [self.engine]
        names = [name for name in _MEASURED if self.precision in ENGINES[name]]
        if device.type != "cpu":
            names = [name for name in names if name == "torch"]
        installed = [name for name in names if name == "torch" or _is_installed(name)]
        if not installed:
            said = "on this device no engine that is installed computes in it"
            raise UserError("config-conflict", f"precision {self.precision}", said)
        return installed


def _is_installed(name: str) -> bool:
    return all(importlib.util.find_spec(package) for package in _PACKAGES[name][1])


def use_engine(
    model: nn.Module, cfg: Config, choice: Choice, tell: Callable[[str], object] = _warn
) -> Engine | None:
    """Let an engine compute the network of a segmentor from its next image on.

    Args:
        model: A built segmentor in evaluation mode, or test-time augmentation around one.
        cfg: Its config.
        choice: The engine.
        tell: Gets lines on what takes long or fails.

    Returns:
        The engine; None: the model computes as it is.

    Raises:
        UserError: The engine cannot compute this kind of model, or not on its device.
    """
    segmentor: Any = model
    while not isinstance(segmentor, EncoderDecoder) and hasattr(segmentor, "module"):
        segmentor = segmentor.module
    if is_model_wrapper(segmentor):
        segmentor = segmentor.module
    if choice.is_plain:
        if isinstance(segmentor, EncoderDecoder):
            segmentor.runtime = None  # of an earlier choice
        return None
    kind = type(segmentor)
    if not isinstance(segmentor, EncoderDecoder) or (
        kind.encode_decode is not EncoderDecoder.encode_decode
    ):
        said = "only the network of a mmseg_resnest.EncoderDecoder can be computed by another "
        said += f"engine, not of a {kind.__name__}"
        if (choice.engine, choice.precision) == ("auto", "float32"):
            tell(f"auto takes torch: {said}")
            return None
        raise UserError("model", f"engine {choice.engine}", f"{said}; use engine torch")
    device = next(segmentor.parameters()).device
    of_a_cpu = {"openvino": "engine openvino", "int8": "precision int8"}
    for name in (choice.engine, choice.precision):
        if name in of_a_cpu and device.type != "cpu":
            raise UserError("device", of_a_cpu[name], "is computed on the CPU; use device cpu")
    choice.candidates(device)
    segmentor.runtime = engine = Engine(segmentor, cfg, choice, tell)
    return engine


class Engine:
    """What computes a segmentor's scores; it is prepared by its first images.

    Attributes:
        name: Of the engine; before it is prepared as it was chosen, perhaps ``auto``.
        precision: Of its products.
        agreement: With torch in float32, on the images that it was prepared with.
        rows: For the header of a command: the engine, its times, how far labels are those of torch.
    """

    def __init__(
        self, model: EncoderDecoder, cfg: Config, choice: Choice, tell: Callable[[str], object]
    ) -> None:
        self.precision = choice.precision
        self._model, self._cfg, self._choice, self._tell = model, cfg, choice, tell
        self._lock = threading.RLock()
        self._waits = partial(tell, "waiting for another process, which prepares this network")
        # Who names an engine wants its file, who names none what is fast; torch has no file.
        loses = partial(self._not_kept, "what is exported and measured")
        self._loses = loses if choice.engine in ("auto", "torch") else None
        self.forget()

    def __deepcopy__(self, memo: Any) -> Engine:
        """That of a copy of the model, which is prepared anew."""
        model = memo.get(id(self._model), self._model)
        return Engine(model, self._cfg, self._choice, self._tell)

    def __reduce__(self) -> Any:
        return Engine, (self._model, self._cfg, self._choice, self._tell)

    def forget(self) -> None:
        """Prepare anew with the next images: the model has other weights."""
        with self._lock:
            self.name = self._choice.engine
            self.agreement: Agreement | None = None
            self.rows: list[Note] = []
            self._run: Run | None = None
            self._files: dict[str, str] = {}  # names of those that were opened, by engine
            self._compiled: Compiled | None = None
            self._lost = False
            self._state: object = None  # of the model, as it was prepared

    def __call__(self, images: Tensor) -> Tensor:
        """Scores of normalised images (N, C, H, W), as ``EncoderDecoder.logits`` gives them."""
        raise_if_cancelled()
        if not self.ready:
            self.prepare(images)
        assert self._run is not None
        return self._run(images)

    @property
    def ready(self) -> bool:
        """Whether it is prepared, for the weights that the model has now."""
        if self._run is None or self.computes == "torch":
            return self._run is not None
        return self._state == state_of(self._model)

    @property
    def folds(self) -> bool:
        """Whether the model itself computes, so that folding it saves time."""
        return self.computes == "torch"

    @property
    def computes(self) -> str:
        """The engine, or torch where the model could not be compiled."""
        failed = self._compiled is not None and self._compiled.failed is not None
        return "torch" if failed else self.name

    def describe(self) -> dict[str, Any]:
        """For ``numerics`` of a result."""
        engine = self.computes
        if version := versions_of_runtimes().get(engine):
            engine += f" {version}"
        about: dict[str, Any] = {"engine": engine, "precision": _NAMES[self.precision]}
        if self.agreement is not None:
            about["labels_as_torch"] = round(self.agreement.labels, 6)
        return about

    def prepare(
        self, images: Tensor, name: str | None = None, any_size: bool = False
    ) -> list[Note]:
        """Export, choose and check, with images as they go through the network.

        Args:
            images: Normalised, (N, C, H, W).
            name: The engine that another process computes with, in place of the chosen one.
            any_size: Whether the images that come next may have any size; otherwise
                ``torch.compile`` has code for the size of these, and compiles again for others.

        Returns:
            :attr:`rows`.

        Raises:
            UserError: The network cannot be exported or computed, or in float32 its labels are not
                those of torch.
        """
        with self._lock, torch.inference_mode(False), torch.no_grad():
            if not self.ready:
                self.forget()
                if name is not None:
                    self._follow(name)
                self._prepare(images.clone(), any_size)
        if name == "compile" and self._compiled is not None and self._compiled.failed is not None:
            said = (
                f"failed here and not in the first process ({self._compiled.failed}); use engine "
                "torch"
            )
            raise UserError("export", "engine compile", said)
        return self.rows

    def _follow(self, name: str) -> None:
        try:
            self._choice = dataclasses.replace(self._choice, engine=name)
        except UserError as error:
            raise UserError(error.code, f"engine {name}", error.text) from error

    def _prepare(self, images: Tensor, any_size: bool) -> None:
        state = state_of(self._model)
        names = self._choice.candidates(self._device)
        if names == ["compile"]:  # of which nothing is kept
            self._take("compile", self._compile(any_size), images, {})
        elif names == ["torch"] and self.precision == "float32":
            self._take("torch", self._in_torch(EncoderDecoder.own_logits), images, {})
        else:
            self._choose(names, images)
        self._state = state
        if self.name == "torch" and self.precision == "float32":
            self._model.runtime = None  # as if nothing had been chosen

    def _choose(self, names: list[str], images: Tensor) -> None:
        """Take the fastest engine that computes what torch computes."""
        key = content_key(self._model, self._cfg)
        # Other processes wait for files and times, which they need as well.
        with contextlib.ExitStack() as held:
            try:
                entry = held.enter_context(entry_of(key, self._waits, self._loses))
            except UserError as error:
                self._leave_out("the others", error, "torch" in names)
                self._take("torch", self._in_torch(EncoderDecoder.own_logits), images, {})
                return
            runs = self._open_those(names, entry, images.shape[1])
            times = self._times(runs, images, entry)
            known = entry.facts.setdefault("agreement", {})
        found: dict[str, Any] = {}
        *order, last = sorted(runs, key=lambda name: times.get(name, 0.0))
        for name in (*order, last):
            try:
                found = self._take(name, runs[name], images, known)
                break
            except UserError as error:
                self._leave_out(name, error, name != last)
        if found and not self._lost:
            with entry_of(key, self._waits) as entry:
                entry.facts.setdefault("agreement", {}).update(found)
                self._keep(entry)
        if times:
            self.rows.append(times_note(times, images, self._choice.engine == "auto"))

    def _take(self, name: str, run: Run, images: Tensor, known: dict[str, Any]) -> dict[str, Any]:
        """Let an engine compute that agrees with torch; gives what was not known of that."""
        self.name = name
        run = guarded(run, f"engine {name}", int(self._model.out_channels))
        found = self._check(run, images, known)
        self._run = run
        return found

    def _leave_out(self, name: str, error: UserError, others: bool) -> None:
        """Go on without an engine that cannot compute the network, if there are others."""
        if self._choice.engine != "auto" or not others:
            raise error
        self._tell(f"auto leaves out {name}: {error.text}")

    def _keep(self, entry: Entry) -> None:
        """Keep what was found out; without, the next process finds it out again."""
        try:
            entry.save()
        except UserError as error:
            self._not_kept("what was measured", error)

    def _not_kept(self, what: str, error: UserError) -> None:
        """Say once that the next process has to do it again."""
        if not self._lost:
            self._tell(f"{what} is not kept: {error.text}")
        self._lost = True

    # --- opening --------------------------------------------------------------------------------

    def _open_those(self, names: list[str], entry: Entry, channels: int) -> dict[str, Run]:
        runs: dict[str, Run] = {}
        for name in names:
            try:
                runs[name] = self._open(name, entry, channels)
            except UserError as error:
                self._leave_out(name, error, len(runs) > 0 or name != names[-1])
        return runs

    def _compile(self, any_size: bool) -> Run:
        # Constants as such, and batch norms folded; without gradients alone.
        options: dict[str, Any] = {"options": {"freezing": True}}
        if any_size and self._model.test_cfg.get("mode", "whole") == "whole":
            options["dynamic"] = True
        compiled = Compiled(EncoderDecoder.own_logits, self._tell, batches=True, **options)
        tensors = (*self._model.parameters(), *self._model.buffers())
        free = copy.deepcopy(self._model, {id(tensor): tensor for tensor in tensors})
        keep_sizes_free(free, attention=False)  # or a pool would be compiled for each size
        self._compiled = compiled

        def function(model: EncoderDecoder, images: Tensor) -> Tensor:
            return compiled(model if compiled.failed else free, images)

        return self._in_torch(function)

    def _open(self, name: str, entry: Entry, channels: int) -> Run:
        if name == "torch":
            return self._in_torch(EncoderDecoder.own_logits)
        with exporting(f"engine {name}"):
            source = self._file(entry, channels)
            self._files[name] = source.name
            if name == "onnxruntime":
                opened = open_onnx(source, self._device)
            else:
                self._files[name] = f"{source.stem}.xml"
                path = entry.file(self._files[name], lambda part: write_openvino(source, part, {}))
                kind = "bf16" if self.precision == "bf16" else "f32"
                opened = open_openvino(path, self._device, kind)
        return lambda images: opened.run(images.float())  # of a model of another type

    def _in_torch(self, function: Callable[[Any, Tensor], Tensor]) -> Run:
        bf16, kind = self.precision == "bf16", self._device.type

        def run(images: Tensor) -> Tensor:
            # Compiled code is of one kind of tensors: not of those of inference mode.
            with torch.inference_mode(False), torch.no_grad():
                images = images.clone() if images.is_inference() else images
                with torch.autocast(kind, torch.bfloat16, enabled=bf16):
                    return function(self._model, images).float()

        return run

    def _file(self, entry: Entry, channels: int) -> Path:
        """The network as ONNX, in 8 bits where it is to be computed so."""

        def export(part: Path) -> None:
            self._tell("exporting the network, once for this checkpoint")
            write_scores_network(self._model, channels, part)

        source = entry.file("model.onnx", export)
        if self.precision != "int8":
            return source
        return in_8_bits(entry, source, self._model, self._cfg, self._choice.images, self._tell)

    # --- choosing and checking ------------------------------------------------------------------

    def _times(self, runs: dict[str, Run], images: Tensor, entry: Entry) -> dict[str, float]:
        """Seconds of an image by engine, as far as they are known; of several engines all are.

        An engine that cannot compute the images is taken out of ``runs``.
        """
        size = "x".join(map(str, images.shape))
        place = f"{self._place()}, {torch.get_num_threads()} threads, {size}, {self.precision}"
        times = known_times(entry.facts.setdefault("seconds", {}), place)
        if len(runs) > 1 and set(times) != set(runs):
            measured = dict(runs)
            if self._device.type == "cpu" and "torch" in runs and self.precision == "float32":
                measured["torch"] = folded_copy(self._model).own_logits
            times.clear()
            for name, run in measured.items():
                checked = guarded(run, f"engine {name}", int(self._model.out_channels))
                try:
                    times[name] = seconds_of(checked, images)
                except UserError as error:
                    self._leave_out(name, error, len(runs) > 1)
                    del runs[name]
            self._keep(entry)
        return times

    @property
    def _device(self) -> torch.device:
        return next(self._model.parameters()).device

    def _place(self) -> str:
        return f"{self._device.type}, {processor_name()}"

    def _check(self, run: Run, images: Tensor, known: dict[str, Any]) -> dict[str, Any]:
        """Compare with torch, once for each content and processor; in float32 it must agree.

        Returns:
            What was not known.
        """
        found: dict[str, Any] = {}
        file = self._files.get(self.name, "no file")
        place = f"{self.name}, {self.precision}, {file}, {self._place()}"
        self.agreement = Agreement.of_list(known.get(place))
        if self.agreement is None and (self.name, self.precision) != ("torch", "float32"):
            wanted = self._model.own_logits(images)
            self.agreement = compare_scores(self._model, wanted, run(images), images.shape[2:])
            if self.precision == "float32" and not self.agreement.good:
                said = f"computes something else than torch: {self.agreement}; at least "
                said += f"{100 * LABELS_EQUAL}% of the labels must be equal and probabilities "
                said += f"within {SCORES_WITHIN:g}; use engine torch"
                raise UserError("export", f"engine {self.name}", said)
            found[place] = self.agreement.as_list()
        about = self.describe()
        text = f"{about['engine']}, {about['precision']}"
        if self.agreement is not None:
            text += f"; as torch in float32: {self.agreement}"
        self.rows.insert(0, ("engine", text))
        return found
