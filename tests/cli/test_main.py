# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The table of commands: each has help, without the library; its choices are the library's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mmseg_resnest.datasets import prepare
from mmseg_resnest.datasets.prepare import custom
from mmseg_resnest.engine.config import config_folder as library_config_folder
from mmseg_resnest.engine.tracking import SERVICES
from mmseg_resnest.evaluation.submission import FORMATS
from mmseg_resnest.export.files import DEFAULT_OPSET
from mmseg_resnest.inference.files import OUTPUTS
from mmseg_resnest.inference.runtimes import SUFFIXES
from mmseg_resnest.io import linking
from mmseg_resnest.weights import EXPORT_LAYOUTS
from mmseg_resnest.weights import cache_folder as library_cache_folder
from mmseg_resnest.weights import catalogue as library_catalogue
from mmseg_resnest_cli import label_options, package, prepare_data
from mmseg_resnest_cli.main import COMMANDS, SCRIPTS, parser_of
from mmseg_resnest_cli.options import UsageError

ROOT = Path(__file__).parents[2]
NAMES = [name for name in COMMANDS if name not in SCRIPTS]
_LIGHT = """
import contextlib, io, sys
from mmseg_resnest_cli import main
for words in WORDS:
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        main(argv=words)
    assert said.getvalue(), words
heavy = {"torch", "mmengine", "mmcv", "mmseg", "mmseg_resnest", "numpy", "cv2"} & set(sys.modules)
assert not heavy, heavy
"""


def test_help_lists_and_completion_import_no_library() -> None:
    words = [
        [],
        ["configs"],
        ["models"],
        ["models", "--json"],
        ["weights", "list"],
        ["completion", "bash"],
        ["--version"],
    ]
    words += [[name, "--help"] for name in NAMES]
    code = _LIGHT.replace("WORDS", repr(words))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert done.returncode == 0, done.stderr


_READER_GONE = """
import os, sys
from mmseg_resnest_cli import main
read, write = os.pipe()
os.dup2(write, 1)
os.close(read), os.close(write)
try:
    main(argv=["configs"])
finally:
    assert "torch" not in sys.modules
"""


def test_a_reader_that_has_ended_needs_no_library() -> None:
    """``mmseg-resnest configs | head -1``"""
    done = subprocess.run(
        [sys.executable, "-c", _READER_GONE], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("name", NAMES)
def test_help_names_the_command(name: str) -> None:
    parser = parser_of(name)
    text = parser.format_help()
    assert text.startswith(f"usage: mmseg-resnest {name} ")
    assert "tools/" not in text
    assert f"mmseg-resnest {name}" in text.split("options:")[0]
    with pytest.raises(UsageError, match=f"see: mmseg-resnest {name}"):
        parser.parse_args(["--no-such-option"])


def _choices(command: str, option: str) -> list[str]:
    found = [a for a in parser_of(command)._actions if option in (a.dest, *a.option_strings)]
    assert found[0].choices is not None
    return list(found[0].choices)


def test_choices_are_the_library_s() -> None:
    assert _choices("predict", "--save") == list(OUTPUTS)
    assert _choices("train", "--log-to") == list(SERVICES)
    assert _choices("test", "--format") == list(FORMATS)
    assert _choices("convert-checkpoint", "--layout") == list(EXPORT_LAYOUTS)
    assert set(prepare_data.DATA_SETS) == set(prepare.DATA_SETS)
    assert prepare_data.EXPORTS == prepare.EXPORTS
    assert label_options.FORMATS == custom.FORMATS
    assert prepare_data.LINKS == linking.LINKS
    help_of_export = parser_of("export-onnx").format_help()
    assert all(suffix in help_of_export for suffix in SUFFIXES)
    assert f"(default: {DEFAULT_OPSET})" in help_of_export


def test_what_is_read_without_the_library_is_the_library_s(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert package.config_folder() == library_config_folder()
    assert list(package.catalogue()) == list(library_catalogue())
    assert package.cache_folder() == library_cache_folder()
    monkeypatch.setenv("MMSEG_RESNEST_CACHE", str(tmp_path))
    assert package.cache_folder() == library_cache_folder() == tmp_path
