# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Hostile published folders and exported files through everything that loads a model."""

from __future__ import annotations

import copy
import hashlib
import shutil
from pathlib import Path
from typing import Any

import hostile_checkpoints
import hostile_models as made
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sandbox import Sandbox, check_error, tool
from small_models import blobs

from mmseg_resnest import load_segmentor
from mmseg_resnest.errors import UserError

pytestmark = pytest.mark.timeout(60)
PICTURE = blobs(24, 40, 3)
#: An error names the file or the key in it.
NAMED = ("config.json", "config key")


def segment(path: Path) -> Any:
    """Load a model as ``load_segmentor(path)`` does and use it."""
    return load_segmentor(path, device="cpu")(PICTURE).labels


def check_key(key: str, error: UserError | None) -> None:
    if key.startswith(("_", "custom_imports")):
        assert error is not None, "keys of MMEngine are refused"


def test_the_valid_models_load(published: Path, exported: Path, sandbox: Sandbox) -> None:
    """The hostile files differ in one thing each from models that work."""
    folder = made.folder_with(sandbox, published)  # its Python does not run
    path = shutil.copy(exported, sandbox.files / "good.onnx")
    labels = [sandbox.harmless(lambda p=p: segment(p)).value for p in (folder, path)]
    assert labels[0].shape == (24, 40)
    np.testing.assert_array_equal(*labels)


# --- published folders ----------------------------------------------------------------------------


@pytest.mark.parametrize("place", made.PLACES, ids=lambda place: ".".join(map(str, place)))
def test_keys_and_types_in_a_folder(
    place: tuple[Any, ...], published: Path, sandbox: Sandbox, subtests: Any
) -> None:
    for key, value in made.KEYS:
        with subtests.test(key=key, value=value):
            folder = made.folder_with(
                sandbox, published, lambda r, k=key, v=value: made.at(r, place).update({k: v})
            )
            check_key(key, sandbox.harmless(lambda f=folder: segment(f), *NAMED).error)
    for kind in made.TYPES:
        with subtests.test(type=kind[:80]):
            folder = made.folder_with(
                sandbox, published, lambda r, k=kind: made.at(r, place).update(type=k)
            )
            sandbox.refused(lambda f=folder: segment(f), *NAMED)


@pytest.mark.parametrize("name", made.CONFIGS)
def test_values_in_a_folder(name: str, published: Path, sandbox: Sandbox) -> None:
    def change(record: made.Record) -> None:
        (*above, key), value = made.CONFIGS[name]
        made.at(record, tuple(above))[key] = copy.deepcopy(value)

    folder = made.folder_with(sandbox, published, change)
    sandbox.harmless(lambda: segment(folder), *NAMED)


@pytest.mark.parametrize("text", made.TEXTS)
def test_other_texts_as_config(text: str, published: Path, sandbox: Sandbox) -> None:
    folder = made.folder_with(sandbox, published)
    (folder / "config.json").write_bytes(made.TEXTS[text])
    sandbox.refused(lambda: segment(folder), *NAMED)


@pytest.mark.parametrize("container", ["torch zip", "raw pickle", "zip"])
def test_programs_as_weights_of_a_folder(container: str, published: Path, sandbox: Sandbox) -> None:
    evil = hostile_checkpoints.pickled(sandbox, container, "os.system")
    digest = hashlib.sha256(evil.read_bytes()).hexdigest()
    folder = made.folder_with(sandbox, published, lambda record: record.update(sha256=digest))
    shutil.copy(evil, folder / "model.safetensors")
    sandbox.refused(lambda: segment(folder), "model.safetensors")


@settings(
    deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(data=st.data())
def test_any_value_anywhere_in_a_folder(
    data: st.DataObject, published: Path, sandbox: Sandbox
) -> None:
    """One or two values of ``config.json`` become any JSON: an error in words, or a model."""

    def change(record: made.Record) -> None:
        for _ in range(data.draw(st.integers(1, 2))):
            places = [place for place in made.every_place(record) if place]
            *above, key = data.draw(st.sampled_from(places), label="place")
            value = copy.deepcopy(data.draw(st.sampled_from(made.VALUES), label="value"))
            made.at(record, tuple(above))[key] = value

    folder = made.folder_with(sandbox, published, change)
    with sandbox.watched():
        try:
            labels = segment(folder)
        except UserError as error:
            check_error(error, *NAMED, "safetensors")
        else:
            assert labels.shape == PICTURE.shape[:2]


def test_commands_refuse_a_folder_that_names_code(published: Path, sandbox: Sandbox) -> None:
    def change(record: made.Record) -> None:
        record["trust"] = True  # trust is the user's, not the folder's
        record["model"]["backbone"]["type"] = "{module}.Thing"

    folder = made.folder_with(sandbox, published, change)
    sandbox.refused(lambda: segment(folder), *NAMED)
    sandbox.refused(lambda: tool("serve", folder, "--port", "0"), *NAMED)


# --- exported files -------------------------------------------------------------------------------


@pytest.fixture
def record(exported: Path) -> made.Record:
    return made.record_of(exported)


def test_keys_and_types_in_a_record(
    record: made.Record, exported: Path, sandbox: Sandbox, subtests: Any
) -> None:
    changes: list[tuple[str, made.Record]] = []
    for place in ((), ("pipeline", 0), ("test_cfg",), ("data_preprocessor",)):
        for key, value in made.KEYS:
            changes.append((key if place else "", copy.deepcopy(record)))
            made.at(changes[-1][1], place)[key] = value
    for kind in made.TYPES:
        step = {"type": kind}
        for added in (step, {"type": "RandomChoice", "transforms": [[step]]}):
            changes.append(("_type", copy.deepcopy(record)))
            changes[-1][1]["pipeline"].insert(0, added)
    for key, changed in changes:
        path = made.onnx_with(sandbox, exported, changed)
        with subtests.test(key=key):
            check_key(key, sandbox.harmless(lambda p=path: segment(p), path.name).error)


RECORDS: dict[str, Any] = {
    "10^5 classes": {"classes": [f"c{i}" for i in range(10**5)], "palette": [[0] * 3] * 10**5},
    "palette of text": {"palette": ["a", "b", "c", "d"]},
    "other channels": {"out_channels": 7},
    "endless channels": {"out_channels": 10**12},
    "pixels where there are none": {"input": "uint8", "output": "labels"},
    "labels where there are none": {"output": "labels"},
    "window of a pixel": {"test_cfg": {"mode": "slide", "crop_size": [1, 1], "stride": [1, 1]}},
    "pipeline of text": {"pipeline": "PackSegInputs"},
    "image of a million": {
        "pipeline": [{"type": "Resize", "scale": [10**6, 10**6]}, {"type": "PackSegInputs"}]
    },
    "padding of a million": {"data_preprocessor": {"size_divisor": 2**31}},
    "preprocessor of a list": {"data_preprocessor": [["mean", 1]]},
}


@pytest.mark.parametrize("name", RECORDS)
def test_records_that_do_not_fit(
    name: str, record: made.Record, exported: Path, sandbox: Sandbox
) -> None:
    path = made.onnx_with(sandbox, exported, record | RECORDS[name])
    sandbox.harmless(lambda: segment(path), path.name)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{", "[" * 200_000, '{"format": ' + "9" * 100_000 + "}", "\0",
     '{"a":' * 9000],
    ids=range(8),
)  # fmt: skip
def test_other_texts_as_record(text: str, exported: Path, sandbox: Sandbox) -> None:
    path = made.onnx_with(sandbox, exported, text)
    sandbox.refused(lambda: segment(path), path.name)


@pytest.mark.parametrize(
    "location",
    ["../outside/raw.bin", "{outside}/raw.bin", "sub/../../outside/raw.bin", "link.bin",
     "none.bin"],
)  # fmt: skip
def test_weights_in_a_file_outside(location: str, exported: Path, sandbox: Sandbox) -> None:
    (sandbox.files / "sub").mkdir()
    (sandbox.files / "link.bin").symlink_to(sandbox.outside / "raw.bin")
    path = made.onnx_external_data(sandbox, exported, sandbox.fill(location))
    sandbox.refused(lambda: segment(path), path.name)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".torchscript", ".xml"])
def test_other_files_as_exports(suffix: str, sandbox: Sandbox, subtests: Any) -> None:
    for content in (b"", b"\0" * 100, b"\x80\x04.", b"PK\3\4", b"<xml/>", b"{}"):
        path = sandbox.write(f"evil{suffix}", content)
        with subtests.test(content=content):
            sandbox.refused(lambda p=path: segment(p), path.name)


XML = {
    "billion laughs": '<!DOCTYPE net [<!ENTITY a0 "ha">'
    + "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
    + ']><net name="&a11;" version="11"></net>',
    "external entity": '<!DOCTYPE net [<!ENTITY x SYSTEM "file://{outside}/secret.txt">]>'
    '<net name="&x;" version="11"></net>',
    "external network": '<net name="x" version="11"><layers></layers></net>',
}


@pytest.mark.parametrize("kind", XML)
def test_xml_that_reads_or_grows(kind: str, sandbox: Sandbox) -> None:
    path = sandbox.write("evil.xml", sandbox.fill(XML[kind]))
    sandbox.write("evil.bin", b"")
    # Where OpenVINO is not installed, that is what the error names.
    error = sandbox.refused(lambda: segment(path), path.name, "openvino")
    assert "secret of the user" not in str(error)


# --- programs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [made.write_torchscript, made.write_pt2])
def test_programs_load_only_with_trust(write: Any, record: made.Record, sandbox: Sandbox) -> None:
    path = write(sandbox, record)
    sandbox.refused(lambda: segment(path), path.name, code="untrusted")
    sandbox.refused(lambda: load_segmentor(path, trust=False), path.name, code="untrusted")
    sandbox.refused(lambda: tool("serve", path, "--port", "0"), path.name, code="untrusted")
    for name in (
        "evil.onnx", "evil.pth", "evil.pt", "evil.safetensors", "evil.xml", "evil.PT2",
        "evil.TorchScript", "evil",
    ):  # fmt: skip
        path = path.rename(sandbox.files / name)
        sandbox.refused(lambda path=path: load_segmentor(path), name)
