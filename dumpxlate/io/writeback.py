"""Written pages on their way to the disk early, through Linux's sync_file_range(2).

The kernel keeps what is written for up to half a minute. An output is made durable before it gets its name, so that all
of it would be waited for at the end. To begin with a quarter of a GiB takes an eighth of a second, most of it waiting
for the disk, so a thread does that.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
from functools import cache
from typing import Any

__all__ = ["EVERY", "HELD_BACK", "Writeback", "start_writeback"]

EVERY = 64 << 20
"""Bytes from one time to the next, at least."""

HELD_BACK = 32 << 20
"""Bytes before the position that may not be written yet, where processes take turns."""

_WRITE = 2  # SYNC_FILE_RANGE_WRITE: begin, and do not wait


class Writeback:
    """Has the disk begin with what was written to a file. Forks of the process that made it leave that to it.

    Args:
        fd: the file.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._process = os.getpid()
        self._begun = 0
        self._thread: threading.Thread | None = None

    def reach(self, position: int) -> None:
        """Know how far the file is written, and have the disk begin if it is idle and there is enough to do."""
        stop = position - HELD_BACK
        if stop - self._begun < EVERY or os.getpid() != self._process or (self._thread and self._thread.is_alive()):
            return
        self.rest()
        self._thread = threading.Thread(target=start_writeback, args=(self._fd, self._begun, stop - self._begun))
        self._begun = stop
        # Signals are for the thread that waits for them.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._thread.start()
        except RuntimeError:  # no more threads: the file is synced in the end all the same
            self._thread = None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)

    def rest(self) -> None:
        """Wait for the thread, if there is one: only then may the file be closed, or the process be forked."""
        if self._thread:
            self._thread.join()
            self._thread = None

    def go_on(self, position: int) -> None:
        """Go on behind what was written before."""
        self._begun = position


@cache
def _call() -> Any:
    """Give the C library's function; None where it has none."""
    with contextlib.suppress(AttributeError, OSError):
        call = ctypes.CDLL(None).sync_file_range
        call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
        return call
    return None


def start_writeback(fd: int, offset: int, length: int) -> None:
    """Have the kernel begin to write a range to the disk; what goes wrong shows when the file is synced."""
    call = _call()
    if call:
        call(fd, offset, length, _WRITE)
