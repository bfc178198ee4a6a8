"""How far a long operation has come: a value handed to a callback, never printed here."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Meter", "Progress"]


class Progress(NamedTuple):
    """A moment of a long operation.

    Attributes:
        phase: what is being done ("convert", "compare").
        done: bytes of guest memory handled so far.
        total: bytes of guest memory in all; 0 where nobody knows yet.
        seconds: since the start.
    """

    phase: str
    done: int
    total: int
    seconds: float

    @property
    def rate(self) -> float:
        """Bytes a second so far."""
        return self.done / self.seconds if self.seconds > 0 else 0.0

    @property
    def remaining(self) -> float | None:
        """Seconds left at this rate; None while nothing can be said."""
        return (self.total - self.done) / self.rate if self.total and self.rate else None


class Meter:
    """Counts work and tells a callback: once a batch, so that no clock is asked once a page."""

    def __init__(self, phase: str, total: int, callback: Callable[[Progress], None] | None) -> None:
        self._phase = phase
        self._total = total
        self._callback = callback
        self._done = 0
        self._started = time.monotonic()
        self.add(0)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def add(self, amount: int) -> None:
        """Count ``amount`` more bytes of guest memory."""
        self.reach(self._done + amount)

    def reach(self, done: int) -> None:
        """Have handled ``done`` bytes of guest memory in all."""
        self._done = done
        if self._callback:
            self._callback(Progress(self._phase, self._done, self._total, self.seconds))
