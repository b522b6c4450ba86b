# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
from __future__ import annotations

import pytest

from mmseg_resnest.engine import training
from mmseg_resnest.engine.preemption import Preempted


def _format() -> None:
    try:
        raise KeyboardInterrupt
    except BaseException:
        raise SyntaxError("cannot be formatted")  # noqa: B904


def test_an_interrupt_that_a_library_turns_into_an_error_is_one() -> None:
    """As MMEngine does while it formats a config."""
    with pytest.raises(SyntaxError) as info:
        _format()
    assert isinstance(training._interrupt_behind(info.value), KeyboardInterrupt)
    assert isinstance(training._interrupt_behind(KeyboardInterrupt()), KeyboardInterrupt)
    assert training._interrupt_behind(SyntaxError("really")) is None


def test_a_signal_that_a_library_turns_into_an_error_is_a_signal() -> None:
    stop = Preempted("SIGTERM before the first iteration: nothing was trained")
    error = SyntaxError("Failed to format the config file")
    error.__context__ = stop
    assert training._interrupt_behind(error) is stop
