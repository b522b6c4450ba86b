# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Work ends between its steps, or in a step that can be told to, in its own thread alone."""

from __future__ import annotations

import threading

import pytest

from mmseg_resnest.io.cancel import (
    Cancelled,
    cancellable,
    end_when_cancelled,
    raise_if_cancelled,
)


def test_it_ends_in_its_own_thread_alone() -> None:
    raise_if_cancelled()
    with cancellable(lambda: True):
        with pytest.raises(Cancelled):
            raise_if_cancelled()
        other = threading.Thread(target=raise_if_cancelled)
        other.start()
        other.join()
        with cancellable(lambda: False):
            raise_if_cancelled()
    raise_if_cancelled()


def test_a_long_step_is_told_to_end() -> None:
    stop, ended = threading.Event(), threading.Event()
    with end_when_cancelled(lambda: pytest.fail("nothing can be cancelled here")):
        pass
    with cancellable(stop.is_set):
        with end_when_cancelled(ended.set):
            pass
        assert not ended.is_set()
        with end_when_cancelled(ended.set):
            stop.set()
            assert ended.wait(30)
