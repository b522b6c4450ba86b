# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Configs in JSON and YAML: data, which a stranger may have written and which runs nothing.

They are not read by MMEngine, whose YAML loader runs what a file tells it to and which fills in
templates, imports modules that a config names and inherits from Python files beside it.
"""

from __future__ import annotations

import math
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config
from mmengine.config.config import RESERVED_KEYS
from mmengine.registry import Registry

from ...errors import UserError
from ...io.json_files import parse_json
from .check import REGISTRY_MODULES, TYPE_KEYS
from .portable import config_folder, find_config

DATA_SUFFIXES = (".json", ".yaml", ".yml")
CONFIG_SUFFIXES = (".py", *DATA_SUFFIXES)
#: The largest config file, bytes; those of the package have some thousand. YAML is slow to parse.
MAX_BYTES = 1 << 20
MAX_YAML_BYTES = 1 << 18
MAX_DEPTH = 50
MAX_VALUES = 200_000
MAX_BASES = 20

_SCOPES = ("mmseg_resnest", "mmseg", "mmengine")
_KEY = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_./ -]{0,199}")
_ALL: tuple[str, ...] = ("*",)
#: The modules whose registered parts a config that is data may name, and which of them. The nearest
#: entry above a module counts. Left out is what unpickles, imports by name, runs other
#: programs, or sends data elsewhere.
PARTS: dict[str, tuple[str, ...]] = {
    "mmcv.cnn.bricks": _ALL,
    "mmcv.transforms": _ALL,
    "mmengine.dataset": _ALL,
    "mmengine.evaluator.evaluator": _ALL,
    "mmengine.hooks": _ALL,
    "mmengine.hooks.profiler_hook": (),
    "mmengine.model": _ALL,
    "mmengine.optim": _ALL,
    "mmengine.runner.log_processor": _ALL,
    "mmengine.runner.loops": _ALL,
    "mmengine.utils.dl_utils.parrots_wrapper": _ALL,
    "mmengine.visualization.vis_backend": ("LocalVisBackend", "TensorboardVisBackend"),
    "mmengine.visualization.visualizer": _ALL,
    "mmseg.datasets": _ALL,
    "mmseg.datasets.decathlon": (),  # its annotation file may be a pickle
    "mmseg.datasets.dsdl": (),
    "mmseg.datasets.transforms.loading": ("LoadAnnotations", "LoadImageFromNDArray"),
    "mmseg.datasets.transforms.transforms": _ALL,
    "mmseg.engine": _ALL,
    "mmseg.evaluation.metrics.iou_metric": _ALL,
    "mmseg.models": _ALL,
    "mmseg.models.backbones.timm_backbone": (),  # fetches and unpickles in its own way
    "mmseg.models.backbones.vpd": (),  # imports what its options name
    "mmseg.models.text_encoder": (),
    "mmseg.structures": _ALL,
    "mmseg.visualization": _ALL,
    "mmseg_resnest": _ALL,
    "mmseg_resnest.engine.tracking": (),
    "torch.nn": _ALL,
    "torch.optim": _ALL,
}
#: Parts that are left out although their module is not.
_LEFT_OUT = frozenset({"Albu"})  # makes whatever albumentations has under a name


def read_config_text(path: Path) -> str:
    """The text of a config file; UserError unless it is regular, not too large and UTF-8."""
    name = f"config {path}"
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
            raise UserError("wrong-path-type", name, f"is {what}; name a config file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError("unreadable", name, f"cannot be read ({error.strerror})") from error
    most = MAX_YAML_BYTES if path.suffix in (".yaml", ".yml") else MAX_BYTES
    if len(data) > most:
        raise UserError("too-large", name, f"is larger than {most:,} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"is not a text file in UTF-8 ({error.reason})"
        raise UserError("config-syntax", name, message) from error


def load_data_config(path: Path) -> Config:
    """Read a config in JSON or YAML, with its ``_base_`` files merged as MMEngine does it.

    Raises:
        UserError: The file does not parse, names a part that a config of this kind may not name,
            uses templates or imports, or inherits from a file that is neither below its folder
            nor one of the package's.
    """
    reader = _Reader(path.resolve().parent)
    values = reader.read(path, ())
    return Config(
        values, cfg_text=reader.text, filename=str(path), env_variables=reader.env_variables
    )


class _Reader:
    """Reads one config with its bases, which lie in its folder ``top`` or come with the package."""

    def __init__(self, top: Path) -> None:
        self._top = top
        self._files = 0
        self.text = ""
        self.env_variables: dict[str, str] = {}

    def read(self, path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
        """The values of a file, merged over those of its bases; ``above`` are what inherits it."""
        name = f"config {path}"
        self._files += 1
        if path.resolve() in above or self._files > MAX_BASES:
            message = f"_base_ goes round in a circle, or through more than {MAX_BASES} files"
            raise UserError("config-syntax", name, message)
        values = _parse(path)
        bases = values.pop("_base_", [])
        bases = [bases] if isinstance(bases, str) else bases
        if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
            raise UserError("config-syntax", name, "_base_ must be a file name or a list of them")
        merged: dict[str, Any] = {}
        for base in bases:
            inherited = self._base(path, base, (*above, path.resolve()))
            twice = merged.keys() & inherited.keys()
            if twice:
                message = f"two files in _base_ have the key {min(twice)}"
                raise UserError("config-syntax", name, message)
            merged.update(inherited)
        check_data_config(path, values)
        self.text += f"{path}\n{read_config_text(path)}\n"
        return _merge(path, (), merged, values)

    def _base(self, path: Path, base: str, above: tuple[Path, ...]) -> dict[str, Any]:
        file = path.parent / base
        refused = UserError(
            "config-syntax",
            f"config {path}",
            f"_base_ names {base!r:.300}; a config in JSON or YAML inherits from JSON and YAML "
            f"files in {self._top} or below it, or from a config of the package, by its name",
        )
        try:
            # Where links lead to counts: a config of a stranger reads no other files of the user.
            inside = file.resolve().is_relative_to(self._top)
            is_data = inside and file.suffix in DATA_SUFFIXES and file.is_file()
            candidates = [find_config(base).resolve(), file.resolve()]
            folder = config_folder()
            ours = [f for f in candidates if f.is_relative_to(folder) and f.is_file()]
        except (OSError, ValueError, RuntimeError) as error:  # of names that no file can have
            raise refused from error
        if is_data:
            return self.read(file, above)
        if not ours or ours[0].suffix != ".py":
            raise refused
        config = Config.fromfile(ours[0])
        self.text += config.text
        self.env_variables.update(config.env_variables)
        return config.to_dict()


def _merge(path: Path, place: tuple[str, ...], base: Any, change: Any) -> Any:
    """``change`` over ``base``: mappings key by key, everything else replaced."""
    if not isinstance(change, Mapping):
        return change
    change = dict(change)
    delete = change.pop("_delete_", False)
    if delete or base is None:
        base = {}
    if not isinstance(base, Mapping):
        raise UserError(
            "config-value",
            f"config {path}: config key {'.'.join(place)}",
            f"is a mapping, in what it inherits it is a {type(base).__name__}; put "
            '"_delete_": true into it to replace that',
        )
    result = dict(base)
    for key, value in change.items():
        result[key] = _merge(path, (*place, key), base.get(key), value)
    return result


class _PlainLoader(yaml.SafeLoader):
    """Plain data only, without keys that are twice there or merged in from elsewhere.

    The depth is bounded while the text is read: the parser's time grows with its square.
    """

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self._depth > MAX_DEPTH:
            raise yaml.YAMLError(f"nested deeper than {MAX_DEPTH} levels")
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if "<<" in keys:
            raise yaml.YAMLError("merge keys (<<) are not supported")
        if len(set(keys)) != len(keys):
            raise yaml.YAMLError(f"the key {next(k for k in keys if keys.count(k) > 1)} is twice")


def _parse(path: Path) -> dict[str, Any]:
    text, name = read_config_text(path), f"config {path}"
    if path.suffix == ".json":
        try:
            values = parse_json(text, name)
        except UserError as error:
            raise UserError("config-syntax", name, error.message) from error
    else:
        loader = _PlainLoader(text)
        try:
            values = loader.get_single_data()
        except Exception as error:  # of the parser, and of what only looks like a number or date
            reason = " ".join(str(error).split())[:300]
            raise UserError("config-syntax", name, f"is not a YAML file ({reason})") from error
        finally:
            loader.dispose()
    if not isinstance(values, dict):
        raise UserError("config-syntax", name, "must be a mapping from keys to values")
    return values


def check_data_config(path: Path, values: Mapping[str, Any]) -> None:
    """Check every key and value of a config that is data; UserError names the first wrong one."""

    def refuse(place: Sequence[str], wrong: str | None) -> None:
        if wrong:
            name = f"config {path}: config key {'.'.join(place)}"
            raise UserError("config-value", name, wrong)

    for key in RESERVED_KEYS:
        refuse((key,), "MMEngine keeps this name for itself" if key in values else None)
    parts = registered_parts()
    count = 0
    todo: list[tuple[tuple[str, ...], Any]] = [((), values)]
    while todo:
        place, value = todo.pop()
        count += 1
        if count > MAX_VALUES or len(place) > MAX_DEPTH:
            message = f"has more than {MAX_VALUES:,} values or {MAX_DEPTH} levels"
            raise UserError("too-large", f"config {path}", message)
        if type(value) is dict:
            for key, item in value.items():
                _check_key(path, place, key)
                refuse((*place, key), _refusal_of_key(key, item, parts))
                todo.append(((*place, key), item))
        elif type(value) in (list, tuple):
            todo += [((*place, str(index)), item) for index, item in enumerate(value)]
        else:
            refuse(place, _refusal_of_value(value))


def _check_key(path: Path, place: Sequence[str], key: Any) -> None:
    if key != "_delete_" and not (isinstance(key, str) and _KEY.fullmatch(key)):
        inside = f" in {'.'.join(place)}" if place else ""
        raise UserError(
            "config-key",
            f"config {path}",
            f"{str(key)[:80]!r}{inside} is not accepted as a key: in JSON and YAML "
            "keys are letters, digits and . _ / -, without _ in front",
        )


def _refusal_of_value(value: Any) -> str | None:
    if isinstance(value, str):
        return "holds '{{': only Python configs have templates" if "{{" in value else None
    if isinstance(value, float) and not math.isfinite(value):
        return "is not a finite number"
    if value is None or type(value) in (bool, int, float):
        return None
    return (
        f"is a {type(value).__name__}; a config holds mappings, lists, texts, numbers, true, "
        "false and null (quote a date)"
    )


def _refusal_of_key(key: str, value: Any, parts: Mapping[str, Sequence[Any]]) -> str | None:
    """Of the keys by which a config could reach beyond itself."""
    if key in ("custom_imports", "custom_import"):
        return "only Python configs import modules"
    if key == "default_scope" and value not in _SCOPES:
        return f"must be one of {', '.join(_SCOPES)}"
    if key == "_delete_" and not isinstance(value, bool):
        return "must be true or false"
    if key == "compile" and not isinstance(value, bool):
        return "must be true or false; its options choose a compiler to run"
    if key in ("backend_args", "file_client_args") and value not in (None, {"backend": "local"}):
        return "a config in JSON or YAML reads local files only: leave it out"
    if key not in TYPE_KEYS:
        return None
    if not isinstance(value, str):
        return "must be the name of a part"
    scope, dot, name = value.rpartition(".")
    if dot and scope not in _SCOPES:
        return f"{value[:80]!r}: in JSON and YAML a part is named without its module"
    found = parts.get(name, ())
    if not found:
        return f"there is no part called {value[:80]!r}"
    if name in _LEFT_OUT or not all(map(_is_allowed, found)):
        return f"{value} is for Python configs only; see docs/security.md"
    return None


def registered_parts() -> dict[str, list[Any]]:
    """Everything that the registries of this package and its stack hold, by name.

    Not by the registries' ``get``, which imports a module of that name.
    """
    parts: dict[str, list[Any]] = {}
    for module in REGISTRY_MODULES:
        for registry in vars(module).values():
            if isinstance(registry, Registry):
                registry.import_from_location()
                for name, part in registry.module_dict.items():
                    parts.setdefault(name, []).append(part)
    return parts


def _is_allowed(part: Any) -> bool:
    module, name = getattr(part, "__module__", ""), getattr(part, "__name__", "")
    while module and module not in PARTS:
        module = module.rpartition(".")[0]
    rule = PARTS.get(module, ())
    return rule == _ALL or name in rule
