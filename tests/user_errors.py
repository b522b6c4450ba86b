# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Assertions on the code and the subject of an error; its wording is free."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mmseg_resnest.errors import CODES, UserError


@contextmanager
def raises_user_error(
    code: str | tuple[str, ...], subject: object = ""
) -> Iterator[pytest.ExceptionInfo[UserError]]:
    """Like ``pytest.raises(UserError)``, and the error has this code and names this subject.

    Several codes are for a test with several cases.
    """
    with pytest.raises(UserError) as caught:
        yield caught
    codes = (code,) if isinstance(code, str) else code
    assert caught.value.code in codes, str(caught.value)
    assert str(subject) in caught.value.subject, str(caught.value)


def printed_error(output: str) -> tuple[str, str]:
    """Code and text of the one error, ``error: TEXT [CODE]``, that a command printed."""
    form = r"^error(?: \(process \d+\))?: (.*?) \[([a-z-]+)\]$"
    found = re.findall(form, output, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, output
    text, code = found[0]
    assert code in CODES, output
    return code, text
