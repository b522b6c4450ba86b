# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""One reader of images for every tool: as a config's pipeline reads and prepares them.

Training and testing read files through the pipeline of a data set. Whatever else takes images
(files, bytes, PIL images, arrays, tensors) reads them through :class:`ImageReader`, which is made
from that pipeline, so that the network sees the same numbers.
"""

from __future__ import annotations

import copy
import io
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import mmcv.transforms
import mmseg.datasets.transforms
import numpy as np
import torch
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import UserError
from ..io.bands import tiff_kind
from ..io.image_files import Decoding
from ..io.image_sources import fetch_image, is_address, is_bytes, read_bytes, read_image_file
from ..io.memory import ran_out_of_memory
from ..io.text import error_words
from ..registry import DATASETS, option_of
from .loaded_image import LoadedImage
from .pipelines import (
    comparable,
    gives_rgb,
    is_stock,
    loads_labels,
    pipelines,
    split_loading,
    step_name,
)
from .transforms import LoadBands, LoadImageFromFile, LoadImageFromNDArray

__all__ = ["ImageInput", "ImageReader", "LoadedImage"]

#: Loaders that decode a file's bytes by ``color_type`` and ``imdecode_backend`` and do no more.
_DECODERS = (
    LoadImageFromFile,
    mmcv.transforms.LoadImageFromFile,
    LoadImageFromNDArray,
    mmseg.datasets.transforms.LoadImageFromNDArray,
)


ImageInput = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image
    | NDArray[Any] | Tensor | LoadedImage
)  # fmt: skip
"""A path, an address (http, https), the bytes of an image file, a file that is open for reading
bytes, a PIL image, an array or a tensor. Arrays are RGB, (H, W, 3), not OpenCV's BGR.

Where the config reads 8-bit images: an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8
(grey, RGB, RGB and alpha), or a tensor (C, H, W): uint8, or floating in [0, 1]. Otherwise an array
(H, W) or (H, W, C), or a tensor (C, H, W), with the values that the config's loader gives. Three
channels are RGB in either case, four or more in the loader's order. Or what a reader has loaded.
"""


class ImageReader:
    """Reads images as a pipeline does: loads them, and prepares them for the network.

    Steps that load labels are left out; nothing else is.

    Args:
        steps: A pipeline: configs of its steps, or built ones. Without any, images are read as
            MMSegmentation reads them by default.
        key: The config key of the data set, for errors.

    Attributes:
        loading: The steps up to the one that loads the image.
        preparing: Those after it.
        decoding: How bytes are decoded; None where the loader reads files in a way of its own.
        to_float32: Whether it turns what was decoded to float32.
        rgb: See :class:`LoadedImage`.
        scope: In which the config names its parts.
        suffixes: Of the files that it reads beside those of the usual formats.

    Raises:
        UserError: A step cannot be built.
    """

    def __init__(self, steps: Sequence[Any] = (), key: str = "pipeline") -> None:
        self.key = f"config key {key}"
        scope = DefaultScope.get_current_instance()
        self.scope = "mmseg_resnest" if scope is None else scope.scope_name
        kept = [step for step in steps if not loads_labels(step_name(step))]
        built = self._build(kept)
        number = len(split_loading(kept)[0])
        if not number and (not built or is_stock(built[0])):  # the data set has no files
            kept, built = [dict(type=LoadImageFromFile), *kept], [LoadImageFromFile(), *built]
        number = number or 1
        self.loading, self.preparing = kept[:number], kept[number:]
        self._loading, self._rest = built[:number], built[number:]
        #: From a sample of the data set to one with the image.
        self.loader = self._loading[0] if number == 1 else Compose(self._loading)
        # In tiles an image keeps its own resolution.
        self._tile = [one for one in self._rest if not type(one).__name__.startswith("Resize")]
        loader = self._loading[-1]
        self.decoding: Decoding | None = None
        if type(loader) in _DECODERS and len(self._loading) == 1:
            self.decoding = Decoding(loader.color_type, loader.imdecode_backend)
            self._probe(self.decoding)
        elif isinstance(loader, LoadBands) and len(self._loading) == 1:
            self.decoding = loader.decoding
        self.to_float32 = isinstance(loader, LoadBands) or getattr(loader, "to_float32", False)
        self.rgb = gives_rgb(loader)
        arrays = getattr(loader, "decode_backend", "") == "numpy" or isinstance(loader, LoadBands)
        arrays = arrays or "Npy" in type(loader).__name__
        self.suffixes: tuple[str, ...] = (".npy",) if arrays else ()

    @classmethod
    def of(cls, dataset_cfg: Mapping[str, Any], key: str) -> ImageReader:
        """The reader of a data set's config, at a key, for images that come without the data set.

        Raises:
            UserError: Its pipeline does not end in PackSegInputs, needs more than one image, or
                its data sets have different ones.
        """
        reader: ImageReader | None = None
        alike: list[Any] = []
        for leaf, steps in pipelines(dataset_cfg):
            names = [step_name(step) for step in steps]
            where = f"config key {key}.pipeline"
            if not any(name.startswith("Pack") for name in names):
                said = "must end with PackSegInputs, which makes the model's input"
                raise UserError("config-value", where, said)
            if "LoadMultipleRSImageFromFile" in names:
                said = (
                    "LoadMultipleRSImageFromFile reads pairs of images, not one at a time; use "
                    "mmseg-resnest test --out DIR"
                )
                raise UserError("config-value", where, said)
            found = cls(steps, f"{key}.pipeline")
            for step in found._rest:
                if hasattr(step, "get_indices"):
                    said = f"{type(step).__name__} mixes several images; this takes one at a time"
                    raise UserError("config-value", where, said)
            alike.append([comparable(step) for step in [*found.loading, *found.preparing]])
            if alike[-1] != alike[0]:
                said = "its data sets read images with different pipelines; give all of them one"
                raise UserError("config-conflict", f"config key {key}", said)
            reader = reader or found
            suffixes = option_of(DATASETS, leaf, "img_suffix") or ()
            reader.suffixes += (suffixes,) if isinstance(suffixes, str) else tuple(suffixes)
        assert reader is not None
        return reader

    def _build(self, steps: Sequence[Any]) -> list[Any]:
        built = []
        for step in steps:
            try:
                # As a data set builds them; a copy, since building takes keys out.
                one = copy.deepcopy(step) if isinstance(step, dict) else step
                built += Compose([one]).transforms
            except Exception as error:  # of any constructor
                package = "is not installed" in str(error)
                code = "missing-package" if package else "config-value"
                said = error.text if isinstance(error, UserError) else error_words(error)
                name = step_name(step)
                raise UserError(code, self.key, f"{name} cannot be built ({said})") from error
        return built

    def _probe(self, decoding: Decoding) -> None:
        """Whether there is such a decoding: ``color_type`` and ``imdecode_backend`` are texts."""
        if decoding == Decoding():
            return
        data = io.BytesIO()
        kinds = {"tifffile": "TIFF", "turbojpeg": "JPEG"}
        Image.new("RGB", (8, 8)).save(data, kinds.get(decoding.backend, "PNG"))
        try:
            if decoding(data.getvalue()) is None:
                raise ValueError("decodes no image")
        except Exception as error:  # KeyError, ValueError, AttributeError, ImportError, cv2.error
            said = (
                f"color_type={decoding.flag!r} with imdecode_backend={decoding.backend!r} "
                f"cannot read images ({error})"
            )
            raise UserError("config-value", self.key, said) from error

    # --- loading ----------------------------------------------------------------------------

    @property
    def steps(self) -> list[Any]:
        """All steps, built."""
        return [*self._loading, *self._rest]

    @property
    def is_default(self) -> bool:
        """Whether images become 8-bit BGR, as MMSegmentation reads them by default."""
        return self.decoding == Decoding() and not self.to_float32

    @property
    def eight_bit(self) -> bool:
        """Whether it gives values 0..255 of one or three channels, whatever is in a file."""
        return self.decoding is not None and self.decoding.eight_bit

    def describe_loading(self) -> dict[str, Any] | None:
        """The loader as plain data; None where it is one of another package.

        ``type`` names ``LoadBands``; without it they are arguments of ``LoadImageFromFile``.
        """
        loader = self._loading[-1]
        if self.decoding is None:
            return None
        if isinstance(loader, LoadBands):
            return {"type": "LoadBands", **loader.describe()}
        flag, backend = self.decoding
        return {"color_type": flag, "imdecode_backend": backend, "to_float32": self.to_float32}

    def loaded(self, pixels: NDArray[Any], path: str | None = None) -> LoadedImage:
        """An image whose pixels (H, W) or (H, W, C) were decoded as :attr:`decoding` says."""
        if self.to_float32:
            pixels = pixels.astype(np.float32, copy=False)
        sample = {**_sample(path), "img": pixels}
        sample["img_shape"] = sample["ori_shape"] = pixels.shape[:2]
        return LoadedImage(sample, path, self.rgb)

    def load_sample(self, sample: Mapping[str, Any]) -> LoadedImage:
        """Load the image of a sample, as a data set lists it, by the loading steps.

        Raises:
            UserError: It cannot be read or decoded.
        """
        results: Any = {**_sample(None), **copy.deepcopy(dict(sample))}
        path = results.get("img_path")
        try:
            for step in self._loading:
                results = step(results)
                if results is None:
                    raise ValueError(f"{type(step).__name__} drops it")
            if "img" not in results:
                raise ValueError(f"{type(self._loading[-1]).__name__} loads no image")
        except UserError:
            raise
        except Exception as error:  # whatever a loader raises
            if ran_out_of_memory(error):
                raise
            name = type(self._loading[-1]).__name__
            said = f"{name} cannot read it ({error_words(error)})"
            raise UserError("image", path or "an image", said) from error
        results.setdefault("img_shape", results["img"].shape[:2])
        results.setdefault("ori_shape", results["img"].shape[:2])
        return LoadedImage(results, path, self.rgb)

    def read(self, image: ImageInput) -> LoadedImage:
        """Load an image of any kind.

        Raises:
            UserError: It cannot be read or decoded, is too large, or is of another kind.
        """
        if isinstance(image, LoadedImage):
            return image
        if is_address(image):
            return self.decode(fetch_image(str(image)), str(image))
        if isinstance(image, str | os.PathLike):
            path = os.fspath(image)
            if self.decoding is None:
                read_image_file(path, 1)
                return self.load_sample({"img_path": path})
            return self.decode(read_image_file(path), path)
        if is_bytes(image):
            data, where = read_bytes(image)
            return replace(self.decode(data, where or "image bytes"), path=where)
        if isinstance(image, Image.Image):
            return self._from_pil(image)
        if isinstance(image, Tensor):
            images = self.batch(image)
            if len(images) != 1:
                raise _wrong_shape("tensor", "(C, H, W)", image.shape)
            return images[0]
        if not isinstance(image, np.ndarray):
            said = "must be a path, an address, bytes, an open file, a PIL image, an array or a "
            said += "tensor, not "
            raise UserError("input", "image", said + type(image).__name__)
        return self._from_array(image)

    def decode(self, data: bytes, name: str) -> LoadedImage:
        """Decode the bytes of an image file that has a path or an address.

        Raises:
            UserError: It cannot be decoded.
        """
        if self.decoding is None:  # the loader reads files by their names
            suffix = os.path.splitext(name.split("?")[0])[1] if is_address(name) else ""
            suffix = suffix or next((one for one in self.suffixes if one != ".npy"), "")
            suffix = ".npy" if data.startswith(b"\x93NUMPY") else suffix
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, f"image{suffix}")
                Path(path).write_bytes(data)
                try:
                    found = self.load_sample({"img_path": path})
                except UserError as error:  # of a path that nobody knows
                    said = error.message.replace(path, "it")
                    raise UserError(error.code, name, said) from error
            return LoadedImage({**found.sample, "img_path": name}, name, self.rgb)
        pixels = self._decoded(data, name)
        return self.loaded(pixels, name)

    def _decoded(self, data: bytes, name: str) -> NDArray[Any]:
        assert self.decoding is not None
        try:
            pixels = self.decoding(data)
        except Exception as error:  # each backend has its own kinds
            if ran_out_of_memory(error):
                raise UserError("memory", name, "memory ran out while it was decoded") from error
            _not_an_image(name, self.decoding, data, error)
        if pixels is None:
            _not_an_image(name, self.decoding, data)
        return pixels

    def batch(self, tensor: Tensor) -> list[LoadedImage]:
        """The images of a tensor (C, H, W) or (N, C, H, W), see :data:`ImageInput`.

        Raises:
            UserError: Another shape, type or range.
        """
        batch = tensor.detach()
        batch = batch[None] if batch.ndim == 3 else batch
        channels = batch.shape[1] if batch.ndim == 4 else 0
        known = (3,) if self._colours else (1, 3)
        if not channels or not batch.numel() or (self.eight_bit and channels not in known):
            expected = f"({known[-1]}, H, W)" if self.eight_bit else "(C, H, W)"
            raise _wrong_shape("tensor", f"{expected} or (N, {expected[1:]}", tensor.shape)
        if self.eight_bit and batch.is_floating_point():
            low, high = (float(v) for v in batch.aminmax())
            if not (low >= 0 and high <= 1):
                said = (
                    f"floating values must lie in [0, 1], not {low:g}..{high:g}; "
                    "do not normalise it"
                )
                raise UserError("input", "image tensor", said)
            batch = (batch.float() * 255).round().byte()
        elif self.eight_bit and batch.dtype != torch.uint8:
            said = f"must hold uint8 or floating values, not {batch.dtype}"
            raise UserError("input", "image tensor", said)
        arrays = batch.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return [self._from_array(array) for array in arrays]

    @property
    def _colours(self) -> bool:
        return self.decoding is not None and self.decoding.colours

    def _from_pil(self, image: Image.Image) -> LoadedImage:
        turned: Image.Image = image
        if self.decoding is None or self.decoding.turns:
            turned = ImageOps.exif_transpose(image)
        if turned.mode.startswith("I;16"):
            deep = np.asarray(turned).astype(np.uint16)
            return self._from_array((deep >> 8).astype(np.uint8) if self.eight_bit else deep)
        if turned.mode in ("I", "F"):
            if not self.eight_bit:
                return self._from_array(np.asarray(turned))
            said = "convert it to RGB or L first"
            raise UserError("input", f"PIL image of mode {turned.mode}", said)
        if self.decoding is None or self.is_default:
            grey = self.decoding is None and turned.mode == "L"
            return self._from_array(np.asarray(turned if grey else turned.convert("RGB")))
        return self.loaded(self._through_file(turned))

    def _through_file(self, image: Image.Image) -> NDArray[Any]:
        """What decoding makes of a file with these pixels."""
        assert self.decoding is not None
        kind = "TIFF" if self.decoding.backend in ("tifffile", "bands") else "PNG"
        if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
            image = image.convert("RGB")
        data = io.BytesIO()
        image.save(data, kind, **({"compress_level": 1, "exif": b""} if kind == "PNG" else {}))
        return self._decoded(data.getvalue(), "PIL image")

    def _from_array(self, image: NDArray[Any]) -> LoadedImage:
        if image.ndim not in (2, 3) or not image.size:
            raise _wrong_shape("array", "(H, W) or (H, W, C)", image.shape)
        if not self.eight_bit:
            if image.dtype.kind not in "uif":
                raise UserError("input", "image array", f"must hold numbers, not {image.dtype}")
            reverse = image.ndim == 3 and image.shape[2] == 3 and not self.rgb
            return self.loaded(np.ascontiguousarray(image[:, :, ::-1] if reverse else image))
        given = image.dtype == np.float32 and self.to_float32
        if image.dtype != np.uint8 and not given:
            said = "must hold uint8 values, as this config's loader gives them"
            raise UserError("input", "image array", f"{said}, not {image.dtype}")
        channels = image.shape[2] if image.ndim == 3 else 1
        if channels not in (1, 3, 4):
            raise _wrong_shape("array", "(H, W), (H, W, 3) or (H, W, 4)", image.shape)
        if self._colours:
            colours = image.reshape(*image.shape[:2], channels)[:, :, :3]
            grey = channels == 1
            colours = np.repeat(colours, 3, axis=2) if grey else colours[:, :, ::-1]
            return self.loaded(np.ascontiguousarray(colours))
        if channels == 1:
            return self.loaded(np.ascontiguousarray(image.reshape(image.shape[:2])))
        if given:
            raise _wrong_shape("array", "(H, W)", image.shape)
        return self.loaded(self._through_file(Image.fromarray(image)))

    # --- preparing --------------------------------------------------------------------------

    def prepare(self, image: LoadedImage, tile: bool = False) -> dict[str, Any]:
        """The network's input of an image: ``inputs`` and ``data_samples``.

        Args:
            image: The image; it stays as it is.
            tile: It is a part of a larger one: nothing is resized.

        Raises:
            UserError: A step cannot work on it.
        """
        results: Any = {**image.sample, "img": image.pixels.copy(), "seg_fields": []}
        name = "the pipeline"
        try:
            for step in self._tile if tile else self._rest:
                name = type(step).__name__
                results = step(results)
                if results is None:
                    raise ValueError("drops it")
        except UserError:
            raise
        except Exception as error:  # whatever a step raises
            if ran_out_of_memory(error):
                raise
            size = f"{image.size[1]}x{image.size[0]} pixels"
            said = f"{name} of {self.key} cannot work on its {size} ({error_words(error)})"
            raise UserError("image", image.path or "an image", said) from error
        return results

    # --- for tools that show images of a data set -------------------------------------------

    @staticmethod
    def pictures(dataset: Any) -> Callable[[str], NDArray[np.uint8]]:
        """How the images of a data set look, by their paths: (H, W, 3) RGB of uint8.

        The images are read by the steps of their data set, whatever wrappers are around it.
        """
        places: dict[str, tuple[Any, int, ImageReader]] = {}

        def picture(path: str) -> NDArray[np.uint8]:
            if not places:
                for leaf, steps in pipelines(dataset):
                    reader = ImageReader(steps)
                    for index in range(len(leaf)):
                        places.setdefault(
                            leaf.get_data_info(index)["img_path"], (leaf, index, reader)
                        )
            leaf, index, reader = places[path]
            return reader.load_sample(leaf.get_data_info(index)).picture

        return picture


def _sample(path: str | None) -> dict[str, Any]:
    """What a data set gives of an image without labels."""
    return {"img_path": path, "label_map": None, "reduce_zero_label": False, "seg_fields": []}


def _not_an_image(
    name: str, decoding: Decoding, data: bytes, error: Exception | None = None
) -> NoReturn:
    kind = tiff_kind(bytes(data)) if decoding.backend == "cv2" else None
    if kind is not None and not kind[1]:
        said = (
            f"damaged, or a TIFF with {kind[0]} bands that {decoding.reader} does not read; save "
        )
        said += "its colours with 8 bits"
        raise UserError("image", name, said) from error
    kinds = "JPEG, PNG, WebP, TIFF, BMP, ..." if decoding.backend == "cv2" else error
    said = f"corrupt, or not an image that {decoding.reader} reads ({kinds})"
    raise UserError("image", name, said) from error


def _wrong_shape(kind: str, expected: str, found: Sequence[int]) -> UserError:
    return UserError("input", f"image {kind}", f"must have shape {expected}, not {tuple(found)}")
