# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
from __future__ import annotations

import pytest

from mmseg_resnest.engine.preemption import Preempted
from mmseg_resnest.engine.training import unwrapped_interrupts


@pytest.mark.parametrize("behind", [KeyboardInterrupt(), Preempted("SIGTERM: nothing was trained")])
def test_an_interrupt_that_a_library_turned_into_an_error_is_raised(behind: BaseException) -> None:
    """As MMEngine does while it formats a config."""
    error = SyntaxError("cannot be formatted")
    error.__context__ = behind
    with pytest.raises(type(behind)), unwrapped_interrupts():
        raise error


def test_other_errors_stay() -> None:
    with pytest.raises(SyntaxError), unwrapped_interrupts():
        raise SyntaxError("really")
