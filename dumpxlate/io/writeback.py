"""Written pages on their way to the disk early, through Linux's sync_file_range(2).

The kernel keeps what is written for up to half a minute. An output is made durable before it gets its name, so that all
of it would be waited for at the end: measured 0.7 to 1.1 seconds after 1.1 GiB, and a tenth of that where the disk was
set to work meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
from functools import cache
from typing import Any

__all__ = ["EVERY", "start_writeback"]

EVERY = 256 << 20
"""Bytes from one time to the next: smaller ranges have writers and disk wait for each other."""

_WRITE = 2  # SYNC_FILE_RANGE_WRITE: begin, and do not wait


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
