# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Commands in this process, where nothing has to be imported anew."""

from __future__ import annotations

import contextlib
import io

import pytest

from mmseg_resnest_cli import main


class Ended(AssertionError):
    """A command ended with another code than it was to end with."""

    def __init__(self, code: int, said: str) -> None:
        super().__init__(said[-3000:])
        self.code, self.said = code, said


def run(*words: object, codes: tuple[int, ...] = (0,)) -> str:
    """Run a command; returns what it printed, and fails the test where it ends otherwise."""
    said = io.StringIO()
    with (
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        pytest.raises(SystemExit) as ended,
    ):
        main(str(words[0]), [str(word) for word in words[1:]])
    assert "Traceback" not in said.getvalue()
    code = int(ended.value.code or 0)
    if code not in codes:
        raise Ended(code, said.getvalue())
    return said.getvalue()


def catch_services(patch: pytest.MonkeyPatch) -> list:
    """The models that ``serve`` and ``demo-app`` would serve; neither is started."""
    served: list = []
    patch.setattr(
        "mmseg_resnest.apps.serving.server.serve", lambda model, *rest: served.append(model)
    )
    patch.setattr(
        "mmseg_resnest.apps.demo.run_app",
        lambda choices, *rest: served.append(choices[0].model()),
    )
    return served
