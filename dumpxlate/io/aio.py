"""Many reads or writes in one system call, through Linux's AIO (io_submit(2)).

Pages that lie scattered in a file need one read each. As Python calls these cost half a microsecond besides the read
itself, and threads wait for the interpreter lock twice a page. On a file in the page cache io_submit does a thousand of
them in one call, without the lock; where the kernel or the machine does not offer it, callers go one by one. The same
holds for what is written between holes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
import weakref
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dumpxlate.arrays import Int64s, UInt8s

__all__ = ["PAYS", "WORTHWHILE", "expect", "leave", "read_many", "rest", "write_many"]

WORTHWHILE = 32
"""Reads in one go from which on this pays."""

PAYS = 40_000
"""Ranges from which on a process takes to this: those before go one by one, unless it knows how many will come.

The kernel waits idly for 30 to 45 ms when a queue goes, at the latest with the process: so many single calls take as
much longer.
"""

_MOST = 1024  # reads in one call; every context takes so many of /proc/sys/fs/aio-max-nr

# struct iocb and struct io_event of linux/aio_abi.h, on little-endian machines
_IOCB = np.dtype(
    [
        ("aio_data", "<u8"),
        ("aio_key", "<u4"),
        ("aio_rw_flags", "<u4"),
        ("aio_lio_opcode", "<u2"),
        ("aio_reqprio", "<i2"),
        ("aio_fildes", "<u4"),
        ("aio_buf", "<u8"),
        ("aio_nbytes", "<u8"),
        ("aio_offset", "<i8"),
        ("aio_reserved2", "<u8"),
        ("aio_flags", "<u4"),
        ("aio_resfd", "<u4"),
    ]
)
_PREAD, _PWRITE = 0, 1  # IOCB_CMD_PREAD, IOCB_CMD_PWRITE
_EVENT = np.dtype([("data", "<u8"), ("obj", "<u8"), ("res", "<i8"), ("res2", "<i8")])

# io_setup, io_destroy, io_submit, io_getevents
_NUMBERS = {"x86_64": (206, 207, 209, 208), "aarch64": (0, 1, 2, 4)}


class _Context:
    """A queue of the kernel's; one for each thread."""

    def __init__(self) -> None:
        setup, destroy, self._submit, self._events = _NUMBERS[os.uname().machine]
        self._id = ctypes.c_ulong(0)
        self.blocks = np.zeros(_MOST, _IOCB)
        self.answers = np.zeros(_MOST, _EVENT)
        self._pointers = self.blocks.ctypes.data + np.arange(_MOST, dtype=np.uint64) * np.uint64(_IOCB.itemsize)
        self.usable = _syscall(setup, _MOST, ctypes.addressof(self._id)) == 0
        if self.usable:
            self._destroy = partial(_syscall, destroy, self._id.value)
            self._end = weakref.finalize(self, self._destroy)

    def go(self) -> threading.Thread | None:
        """Give the queue back in a thread, since the kernel takes its time; without one the process's end does it."""
        thread = threading.Thread(target=self._destroy, daemon=True)
        if self._end.detach():
            with contextlib.suppress(RuntimeError):
                thread.start()
                return thread
        return None

    def run(self, count: int) -> bool:
        """Do what the first ``count`` blocks say; tells whether the kernel took them all."""
        taken = 0
        while taken < count:
            pointers = self._pointers.ctypes.data + taken * 8
            got = _syscall(self._submit, self._id.value, count - taken, pointers)
            if got <= 0:
                break
            taken += got
        done = 0
        while done < taken:
            answers = self.answers.ctypes.data + done * _EVENT.itemsize
            got = _syscall(self._events, self._id.value, taken - done, taken - done, answers, 0)
            if got < 0:
                # Interrupted by a signal: the caller's buffer is still in use, so all must be waited for.
                continue
            done += got
        return taken == count


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _syscall(number: int, *arguments: int) -> int:
    """Make a system call; the interpreter lock is free meanwhile."""
    call = _libc().syscall
    call.restype = ctypes.c_long
    return int(call(ctypes.c_long(number), *(ctypes.c_ulong(argument) for argument in arguments)))


_local = threading.local()


class _Use:
    """What this process asked for so far (threads may count a few ranges once), and what lets its last queue go."""

    ranges = 0
    leaving: threading.Thread | None = None


def _context() -> _Context | None:
    """Give this thread's context, None where there can be none."""
    if not hasattr(_local, "context"):
        known = sys.platform == "linux" and os.uname().machine in _NUMBERS
        found = _Context() if known else None
        _local.context = found if found and found.usable else None
    context: _Context | None = _local.context
    return context


def expect(ranges: int) -> None:
    """Take to this at once where so many ranges will come that it pays."""
    if ranges > PAYS:
        _Use.ranges = max(_Use.ranges, PAYS)


def leave() -> None:
    """Let this thread's queue go while other work is done, as few ranges will come now: those go one by one."""
    _Use.ranges = 0
    context: _Context | None = _local.__dict__.pop("context", None)
    if context:
        _Use.leaving = context.go()


def rest() -> None:
    """Wait until that queue has gone: a process is forked only where it has one thread."""
    if _Use.leaving:
        _Use.leaving.join()
        _Use.leaving = None


def _forget() -> None:
    """Begin anew in a fork: the parent's contexts are not its own."""
    _local.__dict__.clear()
    _Use.leaving = None


os.register_at_fork(after_in_child=_forget)


def read_many(fd: int, offset: Int64s, length: Int64s, into: UInt8s, at: Int64s) -> Int64s | None:
    """Read many ranges of a file.

    Args:
        fd: the file.
        offset: where each range begins in it.
        length: bytes of each.
        into: a contiguous buffer, which must have room for all.
        at: where each range goes in the buffer.

    Returns:
        The bytes that each read gave (fewer than asked at the end of the file, -errno where it failed), or None where
        the kernel does not do this: some ranges may have been read then.
    """
    return _transfer(_PREAD, fd, offset, length, into, at)


def write_many(fd: int, offset: Int64s, length: Int64s, body: UInt8s, at: Int64s) -> Int64s | None:
    """Write many ranges of a file.

    Args:
        fd: the file.
        offset: where each range begins in it.
        length: bytes of each.
        body: a contiguous buffer, which must hold all.
        at: where each range lies in the buffer.

    Returns:
        The bytes of each that were written (fewer than asked where there is no more room, -errno where it failed), or
        None where the kernel does not do this: some ranges may have been written then.
    """
    return _transfer(_PWRITE, fd, offset, length, body, at)


def _transfer(operation: int, fd: int, offset: Int64s, length: Int64s, body: UInt8s, at: Int64s) -> Int64s | None:
    _Use.ranges += len(offset)
    context = _context() if _Use.ranges > PAYS else None
    if context is None:
        return None
    got = np.empty(len(offset), np.int64)
    base = body.ctypes.data
    for first in range(0, len(offset), _MOST):
        some = slice(first, first + _MOST)
        count = len(offset[some])
        blocks = context.blocks[:count]
        blocks["aio_data"] = np.arange(count)
        blocks["aio_lio_opcode"] = operation
        blocks["aio_fildes"] = fd
        blocks["aio_buf"] = base + at[some]
        blocks["aio_nbytes"] = length[some]
        blocks["aio_offset"] = offset[some]
        if not context.run(count):
            return None
        got[first + context.answers["data"][:count].astype(np.int64)] = context.answers["res"][:count]
    return got
