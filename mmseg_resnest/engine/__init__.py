# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
