# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the application changes in its own process; the library changes nothing."""

from __future__ import annotations

import warnings

__all__ = ["prepare_process"]

# Warnings that a user can do nothing about: (start of the message, category, module), the first
# and the last as regular expressions.
_NOISE: tuple[tuple[str, type[Warning], str], ...] = (
    # align_corners is part of the published models; an image's size is what it is.
    (r"When align_corners=True, the output would", UserWarning, r"mmseg\.models\.utils\.wrappers$"),
    # Part of MMSegmentation's own recipe; it cannot be combined with class weights.
    (r"Default ``avg_non_ignore`` is", UserWarning, r"mmseg\.models\.losses\.cross_entropy_loss$"),
    # MMEngine wraps models with an argument whose name torch is going to change.
    (r"`broadcast_buffers` is deprecated", FutureWarning, ""),
)


def prepare_process() -> None:
    """Import the library and set up the process for a command.

    * MMEngine reads every checkpoint as tensors and plain data.
    * MMEngine's messages go to log files only; warnings and errors are printed.
    * Freed memory is kept for the next step, in the data loading workers too.
    * Known warnings of the stack that no user can act on are not shown.
    """
    from mmseg_resnest.engine.logs import quiet_console
    from mmseg_resnest.io.memory import keep_freed_memory
    from mmseg_resnest.weights import use_safe_loaders

    for message, category, module in _NOISE:
        warnings.filterwarnings("ignore", message, category, module)
    use_safe_loaders()
    quiet_console()
    keep_freed_memory()
