# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Errors about the values of a checkpoint, whose keys may hold anything."""

from __future__ import annotations

import pytest

from mmseg_resnest import UserError
from mmseg_resnest.engine.checkpoint_values import Refusal


@pytest.mark.parametrize("name", ["\x1b]0;owned\x07", "a\nerror: other", "x" * 5000, "\ud800"])
def test_names_of_a_file_are_shown_on_one_short_line(name: str) -> None:
    refuse = Refusal("iter_6.pth")
    for raised in (
        lambda: refuse(f"state_dict.{name}", name, "a tensor"),
        lambda: refuse.because(f"state_dict.{name} is the average of nothing"),
    ):
        with pytest.raises(UserError) as caught:
            raised()
        text = str(caught.value)
        assert text.isprintable() and len(text) < 1500 and text.encode()
        assert "iter_6.pth" in text and "state_dict." in text and "load_from" in text
