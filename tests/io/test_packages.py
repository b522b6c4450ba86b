# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A missing optional package is an error that names it."""

import importlib

from user_errors import raises_user_error

from mmseg_resnest.io.packages import needs_extra


def test_a_missing_package_is_named() -> None:
    with needs_extra("deploy"):
        importlib.import_module("json")
    with raises_user_error("missing-package", "no_such_package"), needs_extra("deploy"):
        importlib.import_module("no_such_package")
