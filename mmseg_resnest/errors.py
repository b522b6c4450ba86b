# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The one exception for mistakes that a user can mend."""


class UserError(Exception):
    """Bad input: the message names the file, config key or argument and says what to do.

    The tools print it as one line ``error: ...`` and exit with code 2; library callers can catch
    it. It is never raised for a fault of the code.
    """
