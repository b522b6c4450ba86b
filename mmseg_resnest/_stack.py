# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Imports the OpenMMLab stack without the noise it prints at import."""
