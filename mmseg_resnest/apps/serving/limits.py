# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the service takes on, and no more."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import UserError

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """Bounds of the service.

    Its memory is bounded by ``waiting`` images of ``bytes`` bytes and ``3 * pixels`` bytes, and
    what the network needs for a batch. A place is taken until the work for its request has ended,
    which may be a moment after the client has had its answer.

    Attributes:
        bytes: Of a request's body; more is answered with 413.
        pixels: Of an image; more is answered with 413 before it is decoded.
        waiting: Requests that are read, wait or are computed at a time; one more is answered with
            429. One client address has three quarters of them at most.
        seconds: From a request's first byte to its answer: a body that takes longer to arrive is
            answered with 408, a result that does with 504, and its work is ended.
        batch: Images that go through the network together at most.
        gather: Seconds that the first image of a batch waits for others.
    """

    bytes: int = 20 << 20
    pixels: int = 1 << 24
    waiting: int = 32
    seconds: float = 30.0
    batch: int = 8
    gather: float = 0.005

    def __post_init__(self) -> None:
        for name in ("bytes", "pixels", "waiting", "batch"):
            if getattr(self, name) < 1:
                raise UserError("argument", f"limit {name}", "must be at least 1")
        if self.seconds <= 0:
            raise UserError("argument", "limit seconds", "must be above 0")
        if self.gather < 0:
            raise UserError("argument", "limit gather", "must not be negative")
