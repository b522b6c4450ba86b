# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the HTTP service and the demo page share: connections, and work that can be ended."""
