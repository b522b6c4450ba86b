# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
from __future__ import annotations

import pytest

from mmseg_resnest.engine import training


def _format() -> None:
    try:
        raise KeyboardInterrupt
    except BaseException:
        raise SyntaxError("cannot be formatted")  # noqa: B904


def test_an_interrupt_that_a_library_turns_into_an_error_is_one() -> None:
    """As MMEngine does while it formats a config."""
    with pytest.raises(SyntaxError) as info:
        _format()
    assert training._is_interrupt(info.value)
    assert training._is_interrupt(KeyboardInterrupt())
    assert not training._is_interrupt(SyntaxError("really"))
