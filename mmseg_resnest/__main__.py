# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""``python -m mmseg_resnest COMMAND``: the command ``mmseg-resnest``, e.g. below torchrun -m."""

from mmseg_resnest_cli import main

if __name__ == "__main__":
    main()
