# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Loaders that read files by their names, for bytes that another process decodes."""

from __future__ import annotations

import base64
import functools
import importlib
import importlib.util
import io
import pickle
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from mmengine.registry import DefaultScope
from numpy.typing import NDArray

from ..errors import UserError
from ..io.image_files import Decoding
from .pipelines import is_stock, step_name
from .reader import ImageReader, LoadedImage
from .transforms.loading import LoadGivenArrays

__all__ = ["FileLoading", "decoded_by", "received"]

#: What :meth:`ImageReader.loaded` gives beside the pixels.
_KNOWN = ("img", "img_path", "label_map", "reduce_zero_label", "seg_fields")


@dataclass(frozen=True)
class FileLoading:
    """The loading steps of a pipeline as a function of a file's bytes, for another process.

    Attributes:
        steps: Their configs, pickled here and read there.
        modules: Those that register classes of the steps; imported first.
        scope: In which the config names its parts.
        suffix: Of the file that is made for the loader, where the bytes do not tell.
        reader: The name of the loader, for errors.
    """

    steps: bytes
    modules: tuple[str, ...]
    scope: str
    suffix: str
    reader: str

    def as_bytes(self) -> tuple[bytes, bytes]:
        """Itself as a text, and how it is read: see ``io/decode_worker.py``."""
        return base64.b64encode(pickle.dumps((sys.path, pickle.dumps(self)))), b"pickle"

    def prepare(self) -> None:
        """Import and build what it needs.

        Raises:
            UserError: A step cannot be built.
        """
        _reader(self)

    def __call__(self, data: bytes) -> tuple[NDArray[Any], dict[str, Any]]:
        """The pixels, and what else the steps say of them, as JSON has it.

        Raises:
            UserError: They cannot read it, or say what JSON has no type for.
        """
        if not data:
            raise UserError("empty", "", "the file is empty")
        refuse_objects(data)
        found = _reader(self).decode(data, "the file").sample
        facts = {k: v for k, v in found.items() if k not in _KNOWN}
        wrong = [key for key, value in facts.items() if not _plain(value)]
        if wrong:
            said = f"{self.reader} sets {wrong[0]}, which cannot be taken to another process"
            raise UserError("image", "", said)
        return found["img"], facts


@functools.lru_cache(4)
def _reader(loading: FileLoading) -> ImageReader:
    for module in loading.modules:
        importlib.import_module(module)
    with DefaultScope.overwrite_default_scope(loading.scope):
        reader = ImageReader(pickle.loads(loading.steps))
    reader.suffixes = (loading.suffix,) if loading.suffix else ()
    return reader


def refuse_objects(data: bytes) -> None:
    """Refuse a .npy file that holds Python objects: reading them runs what they say.

    Raises:
        UserError: It holds some, or its header is broken.
    """
    if not data.startswith(b"\x93NUMPY"):
        return
    file = io.BytesIO(data)
    try:
        major = np.lib.format.read_magic(file)[0]
        read = np.lib.format.read_array_header_1_0
        read = read if major == 1 else np.lib.format.read_array_header_2_0
        dtype = read(file)[2]
    except Exception as error:  # its parser raises several kinds
        raise UserError("image", "", f"not an intact .npy file ({error})") from error
    if dtype.hasobject:
        raise UserError("image", "", "a .npy file of Python objects is a program, and is not read")


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and _plain(v) for k, v in value.items())
    return value is None or isinstance(value, bool | int | float | str)


def decoded_by(reader: ImageReader) -> Decoding | FileLoading:
    """How bytes become the images of a reader in another process.

    Raises:
        UserError: Its loader reads no files, runs what they say, or cannot be taken to another
            process.
    """
    if reader.decoding is not None:
        return reader.decoding
    loading = reader.steps[: len(reader.loading)]
    name = step_name(reader.loading[-1])

    def refused(why: str) -> UserError:
        return UserError("config-value", reader.key, f"{name} cannot be served: {why}; use predict")

    if isinstance(loading[-1], LoadGivenArrays):
        said = (
            f"{loading[-1].loader} cannot be served: its code is not in the model's file; serve "
            "the config with its checkpoint"
        )
        raise UserError("config-value", reader.key, said)
    if getattr(loading[-1], "decode_backend", None) == "pickle":
        raise refused("decode_backend='pickle' runs what a file says")
    modules = []
    for step in loading:
        if not is_stock(step):
            module = type(step).__module__
            if module == "__main__" or not _can_be_imported(module):
                raise refused(
                    f"{type(step).__name__} is defined in {module}, which the process that "
                    "decodes what is sent cannot import; put it into a module of custom_imports"
                )
            modules.append(module)
    try:
        steps = pickle.dumps(list(reader.loading))
    except Exception as error:  # whatever an option raises
        raise refused(f"its options cannot be taken to another process ({error})") from error
    suffix = next((one for one in reader.suffixes if one != ".npy"), "")  # which bytes tell
    return FileLoading(steps, tuple(modules), reader.scope, suffix, name)


def _can_be_imported(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def received(reader: ImageReader, result: Any) -> LoadedImage:
    """The image of what :func:`decoded_by` gave in another process."""
    if not isinstance(result, tuple):
        return reader.loaded(result)
    pixels, facts = result
    base = reader.loaded(pixels)
    return LoadedImage({**base.sample, **_tuples(facts), "img": pixels}, None, reader.rgb)


def _tuples(value: Any) -> Any:
    """What JSON made lists of."""
    if isinstance(value, dict):
        return {key: _tuples(one) for key, one in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
