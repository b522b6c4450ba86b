# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Hostile published folders and exported files through everything that loads a model."""

from __future__ import annotations

import copy
import hashlib
import json
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


# --- published folders ----------------------------------------------------------------------------


def test_the_valid_folder_loads_and_its_python_does_not_run(
    published: Path, sandbox: Sandbox
) -> None:
    folder = made.folder_with(sandbox, published)
    assert sandbox.run(lambda: segment(folder)).value.shape == (24, 40)


@pytest.mark.parametrize("key", made.KEYS)
@pytest.mark.parametrize("place", made.PLACES, ids=lambda place: ".".join(map(str, place)))
def test_keys_that_libraries_act_on(
    place: tuple, key: str, published: Path, sandbox: Sandbox
) -> None:
    def change(record: made.Record, box: Sandbox) -> None:
        part = made.at(record, place)
        value = made.keys(box)[key]
        part[key.split(" ")[0]] = value

    folder = made.folder_with(sandbox, published, change)
    done = sandbox.harmless(lambda: segment(folder), *NAMED)
    if key.startswith(("_", "custom_imports")):
        assert done.error is not None, "keys of MMEngine are refused"


@pytest.mark.parametrize("number", range(made.TYPES))
@pytest.mark.parametrize("place", made.PLACES, ids=lambda place: ".".join(map(str, place)))
def test_types_that_no_folder_needs(
    place: tuple, number: int, published: Path, sandbox: Sandbox
) -> None:
    def change(record: made.Record, box: Sandbox) -> None:
        made.at(record, place)["type"] = made.types(box)[number]

    folder = made.folder_with(sandbox, published, change)
    error = sandbox.refused(lambda: segment(folder), *NAMED)
    assert len(error) < 4000


@pytest.mark.parametrize("change", made.CONFIGS)
def test_configs_that_ask_for_too_much(change: str, published: Path, sandbox: Sandbox) -> None:
    folder = made.folder_with(sandbox, published, made.CONFIGS[change])
    sandbox.harmless(lambda: segment(folder), *NAMED)


@pytest.mark.parametrize("text", made.TEXTS)
def test_texts_that_are_no_config(text: str, published: Path, sandbox: Sandbox) -> None:
    folder = made.folder_with(sandbox, published)
    (folder / "config.json").write_bytes(made.TEXTS[text])
    sandbox.refused(lambda: segment(folder), *NAMED)


@pytest.mark.parametrize("container", ["torch_zip", "raw_pickle", "in_zip"])
def test_weights_of_a_folder_that_are_a_program(
    container: str, published: Path, sandbox: Sandbox
) -> None:
    folder = made.folder_with(sandbox, published)
    payload = hostile_checkpoints.payloads(sandbox)["os.system"]
    evil = getattr(hostile_checkpoints, container)(sandbox, payload)
    shutil.copy(evil, folder / "model.safetensors")
    record = json.loads((folder / "config.json").read_text())
    record["sha256"] = hashlib.sha256(evil.read_bytes()).hexdigest()
    (folder / "config.json").write_text(json.dumps(record))
    sandbox.refused(lambda: segment(folder), "model.safetensors")


@settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(data=st.data())
def test_any_value_anywhere_in_a_folder(
    data: st.DataObject, published: Path, sandbox: Sandbox
) -> None:
    """One or two values of ``config.json`` become any JSON: an error in words, or a model."""
    record = json.loads((published / "config.json").read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        places = [place for place in made.every_place(record) if place]
        *above, key = data.draw(st.sampled_from(places), label="place")
        made.at(record, tuple(above))[key] = data.draw(
            st.sampled_from(made.wrong_values()), label="value"
        )
    folder = sandbox.files / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(published, folder)
    (folder / "config.json").write_text(made.dumps(record))
    with sandbox.watched():
        try:
            labels = segment(folder)
        except UserError as error:
            check_error(error, *NAMED, "safetensors")
        else:
            assert labels.shape == PICTURE.shape[:2]


@pytest.mark.parametrize("name", ["serve.py"])
def test_tools_refuse_a_folder_that_names_code(
    name: str, published: Path, sandbox: Sandbox
) -> None:
    def change(record: made.Record, box: Sandbox) -> None:
        record["model"]["_scope_"] = box.package

    folder = made.folder_with(sandbox, published, change)
    more = ["photo.png", "--out", "out"] if name == "predict.py" else ["--port", "0"]
    sandbox.refused(lambda: tool(name, folder, *more), "config.json")
    assert not (sandbox.files / "out").exists()


# --- exported files -------------------------------------------------------------------------------


@pytest.fixture
def record(exported: Path) -> made.Record:
    return made.record_of(exported)


def test_the_valid_file_loads(exported: Path, sandbox: Sandbox) -> None:
    path = shutil.copy(exported, sandbox.files / "good.onnx")
    assert sandbox.run(lambda: segment(path)).value.shape == (24, 40)


@pytest.mark.parametrize("key", made.KEYS)
@pytest.mark.parametrize("place", ["pipeline", "test_cfg", "data_preprocessor", "record"])
def test_keys_in_a_record(
    place: str, key: str, record: made.Record, exported: Path, sandbox: Sandbox
) -> None:
    part = record if place == "record" else record[place]
    part = part[0] if place == "pipeline" else part
    part[key.split(" ")[0]] = made.keys(sandbox)[key]
    path = made.onnx_with(sandbox, exported, record)
    done = sandbox.harmless(lambda: segment(path), path.name)
    if key.startswith(("_", "custom_imports")) and place != "record":
        assert done.error is not None, "keys of MMEngine are refused"


@pytest.mark.parametrize("number", range(made.TYPES))
@pytest.mark.parametrize("nested", [False, True])
def test_types_in_a_record(
    nested: bool, number: int, record: made.Record, exported: Path, sandbox: Sandbox
) -> None:
    step: made.Record = {"type": made.types(sandbox)[number]}
    if nested:
        step = {"type": "RandomChoice", "transforms": [[step]]}
    record["pipeline"].insert(0, step)
    path = made.onnx_with(sandbox, exported, record)
    sandbox.refused(lambda: segment(path), path.name)


RECORDS: dict[str, Any] = {
    "a million classes": {"classes": [f"c{i}" for i in range(10**6)], "palette": [[0] * 3] * 10**6},
    "fewer classes": {"classes": ["a"], "palette": [[0, 0, 0]]},
    "classes of numbers": {"classes": [1, 2, 3, None], "palette": [[0] * 3] * 4},
    "palette of text": {"palette": ["a", "b", "c", "d"]},
    "palette out of range": {"palette": [[10**9, -5, 0]] * 4},
    "other channels": {"out_channels": 7},
    "endless channels": {"out_channels": 10**12},
    "channels of text": {"out_channels": "4"},
    "channels NaN": {"out_channels": float("nan")},
    "threshold of text": {"threshold": "0.5"},
    "pixels where there are none": {"input": "uint8", "output": "labels"},
    "labels where there are none": {"output": "labels"},
    "window of a pixel": {"test_cfg": {"mode": "slide", "crop_size": [1, 1], "stride": [1, 1]}},
    "stride of nothing": {"test_cfg": {"mode": "slide", "crop_size": [64, 64], "stride": [0, 0]}},
    "unknown mode": {"test_cfg": {"mode": "os.system"}},
    "test_cfg of a list": {"test_cfg": [1]},
    "pipeline of text": {"pipeline": "PackSegInputs"},
    "pipeline of nothing": {"pipeline": []},
    "image of a million": {
        "pipeline": [{"type": "Resize", "scale": [10**6, 10**6]}, {"type": "PackSegInputs"}]
    },
    "padding of a million": {"data_preprocessor": {"size_divisor": 2**31}},
    "size of a million": {"data_preprocessor": {"size": [10**6, 10**6]}},
    "mean of text": {"data_preprocessor": {"mean": "abc", "std": [1, 1, 1]}},
    "std of zero": {"data_preprocessor": {"mean": [0, 0, 0], "std": [0, 0, 0]}},
    "preprocessor of a list": {"data_preprocessor": [["mean", 1]]},
    "preprocessor null": {"data_preprocessor": None},
    "format of text": {"format": "1"},
}


@pytest.mark.parametrize("name", RECORDS)
def test_records_that_do_not_fit(
    name: str, record: made.Record, exported: Path, sandbox: Sandbox
) -> None:
    record.update(copy.deepcopy(RECORDS[name]))
    path = made.onnx_with(sandbox, exported, record)
    sandbox.harmless(lambda: segment(path), path.name)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{", "[" * 200_000, '{"format": ' + "9" * 100_000 + "}", "\0",
     '{"a":' * 9000],
    ids=range(8),
)  # fmt: skip
def test_records_that_are_none(text: str, exported: Path, sandbox: Sandbox) -> None:
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
    where = location.replace("{outside}", str(sandbox.outside))
    path = made.onnx_external_data(sandbox, exported, where)
    sandbox.refused(lambda: segment(path), path.name)


@pytest.mark.parametrize(
    "maker", [made.onnx_announced_weights, made.onnx_custom_operator, made.onnx_large_constant],
    ids=lambda maker: maker.__name__,
)  # fmt: skip
def test_networks_that_no_export_makes(maker: Any, exported: Path, sandbox: Sandbox) -> None:
    path = maker(sandbox, exported)
    sandbox.refused(lambda: segment(path), path.name)


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"\x80\x04.", b"PK\3\4", b"<xml/>", b"{}"])
@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".torchscript", ".xml"])
def test_files_that_are_no_export(suffix: str, content: bytes, sandbox: Sandbox) -> None:
    path = sandbox.files / f"evil{suffix}"
    path.write_bytes(content)
    sandbox.refused(lambda: segment(path), path.name)


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
    path = sandbox.files / "evil.xml"
    path.write_text(XML[kind].replace("{outside}", str(sandbox.outside)))
    (sandbox.files / "evil.bin").write_bytes(b"")
    error = sandbox.refused(lambda: segment(path), path.name)
    assert "secret of the user" not in error


# --- programs -----------------------------------------------------------------------------------


@pytest.fixture(params=[".torchscript", ".pt2"])
def program(request: pytest.FixtureRequest, record: made.Record, sandbox: Sandbox) -> Path:
    """A file of PyTorch that makes the canary when it is loaded."""
    path = sandbox.files / f"evil{request.param}"
    write = made.write_torchscript if request.param == ".torchscript" else made.write_pt2
    return write(sandbox, path, record)


def test_programs_load_only_with_trust(program: Path, sandbox: Sandbox) -> None:
    error = sandbox.refused(lambda: segment(program), program.name)
    assert "trust" in error
    error = sandbox.refused(lambda: load_segmentor(program, trust=False), program.name)
    assert "trust" in error


@pytest.mark.parametrize("name", ["serve.py"])
def test_tools_load_programs_only_with_trust(name: str, program: Path, sandbox: Sandbox) -> None:
    error = sandbox.refused(lambda: tool(name, program, "--port", "0"), program.name)
    assert "--trust" in error


@pytest.mark.parametrize(
    "name",
    ["evil.onnx", "evil.pth", "evil.pt", "evil.safetensors", "evil.xml", "evil.PT2",
     "evil.TorchScript", "evil"],
)  # fmt: skip
def test_programs_under_another_name(name: str, program: Path, sandbox: Sandbox) -> None:
    path = program.rename(sandbox.files / name)
    sandbox.refused(lambda: load_segmentor(path), name)


def test_trust_of_the_user_is_no_property_of_a_folder(published: Path, sandbox: Sandbox) -> None:
    def change(record: made.Record, box: Sandbox) -> None:
        record["trust"] = True
        record["model"]["backbone"]["type"] = f"{box.module}.Thing"

    folder = made.folder_with(sandbox, published, change)
    sandbox.refused(lambda: segment(folder), *NAMED)


def test_labels_of_the_valid_models_agree(
    published: Path, exported: Path, sandbox: Sandbox
) -> None:
    """The hostile files differ in one thing each from models that work."""
    np.testing.assert_array_equal(segment(published), segment(exported))
