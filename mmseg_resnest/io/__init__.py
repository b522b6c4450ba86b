# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Files and processes: nothing in this package knows a model, a data set or a config."""
