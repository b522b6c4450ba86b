# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""UserError: its parts, its codes, and the page that explains them."""

import ast
import pickle
import re
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from mmseg_resnest.errors import CODES, UserError
from mmseg_resnest_cli.failures import explain_error

ROOT = Path(__file__).parents[1]


def test_parts() -> None:
    error = UserError("not-found", Path("a/b.png"), "does not exist; copy it there")
    assert (error.code, error.subject) == ("not-found", "a/b.png")
    assert error.text == "a/b.png: does not exist; copy it there"
    assert str(error) == f"{error.text} [not-found]"
    again = pickle.loads(pickle.dumps(error))
    assert (again.code, again.subject, again.message) == (error.code, error.subject, error.message)


def test_every_code_is_known_and_documented() -> None:
    """The literal codes of all raise sites are in CODES, and all of CODES are on the page."""
    used = set()
    for package in ("mmseg_resnest", "mmseg_resnest_cli"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Name)
                    and node.func.id == "UserError"
                    and node.args
                    and isinstance(node.args[0], ast.Constant)
                ):
                    used.add(node.args[0].value)
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    assert used <= set(CODES)
    assert re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE) == list(CODES)


class _Failing(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> torch.Tensor:
        raise UserError("image", "/a b.png", "cannot be decoded: bad\n(line two)")


def test_an_error_of_a_data_loading_worker_keeps_its_parts() -> None:
    """torch passes on no more than the text of a worker's exception."""
    with pytest.raises(Exception, match="Caught UserError in DataLoader worker") as caught:
        next(iter(DataLoader(_Failing(), num_workers=1)))
    error = explain_error(caught.value)
    assert error is not None
    assert (error.code, error.subject) == ("image", "/a b.png")
    assert error.message == "cannot be decoded: bad\n(line two)"
