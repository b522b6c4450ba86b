# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What ends the work on one image, as an error that names the image."""

from __future__ import annotations

import torch

from ..errors import UserError
from ..io.cancel import Cancelled
from ..io.memory import ran_out_of_memory
from ..io.text import error_words

__all__ = ["NOT_OF_AN_IMAGE", "image_error"]

#: Exceptions that say nothing about the image: nobody waits for it, or the GPU has failed.
NOT_OF_AN_IMAGE = (Cancelled, torch.AcceleratorError)


def image_error(error: Exception, name: str, what: str) -> UserError:
    """The error of an image ``name``, whatever exception ended the work on it.

    Args:
        error: What was raised; not one of :data:`NOT_OF_AN_IMAGE`.
        name: The image.
        what: What failed, to begin the message with: ``the network failed``.
    """
    if isinstance(error, UserError):
        if name in error.subject:
            return error
        subject = f"{name}: {error.subject}" if error.subject else name
        found = UserError(error.code, subject, error.message)
    else:
        reason = error_words(error)
        if ran_out_of_memory(error):
            said = f"{what}: memory ran out ({reason}); make it smaller, or use smaller tiles"
            found = UserError("memory", name, said)
        else:
            found = UserError("image", name, f"{what} ({reason})")
    found.__cause__ = error
    return found
