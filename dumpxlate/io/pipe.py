"""A pipe as input: bytes that come once, in their order."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import stat
import sys
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Pipe", "standard_input", "widen"]

_AHEAD = 64 << 10
"""Bytes that are brought at least when a few are asked for."""

_PIPE_BYTES = 1 << 20
"""What Linux lets anybody's pipe hold; by default it holds 64 KiB, and both ends wait for each other all the time."""


class Pipe:
    """Bytes that are taken in their order; those that come next can be looked at before.

    Reading waits until the bytes are there, or the other side has closed its end.

    Args:
        fd: where they come from: a pipe, a socket, or a file; stays open.
        name: for messages.

    Attributes:
        position: bytes that were taken.
        file_size: bytes of all, where they come from a file and none was taken before; 0 elsewhere.
    """

    _wake = -1

    def __init__(self, fd: int, name: str = "<stdin>") -> None:
        self.name = name
        self.position = 0
        self.fd = fd
        self.file_size = _size_of_file(fd)
        self._ahead = memoryview(b"")
        self._wake = os.eventfd(0)
        self._either = select.poll()
        for each in (fd, self._wake):
            self._either.register(each, select.POLLIN)
        widen(fd)

    def peek(self, length: int) -> memoryview:
        """Give the next bytes without taking them; fewer only at the end."""
        if len(self._ahead) < length:
            body = np.empty(max(length, _AHEAD), np.uint8).data
            have = len(self._ahead)
            body[:have] = self._ahead
            while have < length and (got := self._read(body[have:])):
                have += got
            self._ahead = body[:have].toreadonly()
        return self._ahead[:length]

    def take(self, length: int) -> memoryview:
        """Take the next few bytes; fewer only at the end."""
        found = self.peek(length)
        self._ahead = self._ahead[len(found) :]
        self.position += len(found)
        return found

    def fill(self, buffer: memoryview) -> int:
        """Take bytes into a buffer until it is full; gives their number, which is smaller only at the end."""
        done = min(len(self._ahead), len(buffer))
        buffer[:done] = self._ahead[:done]
        self._ahead = self._ahead[done:]
        while done < len(buffer) and (got := self._read(buffer[done:])):
            done += got
        self.position += done
        return done

    def read(self, length: int) -> memoryview:
        """Take some bytes, up to ``length``; none only at the end."""
        body = np.empty(length, np.uint8).data
        return body[: self.fill(body)]

    def drain(self) -> None:
        """Take everything that still comes, for nothing: who writes it need not fail."""
        body = np.empty(_PIPE_BYTES, np.uint8).data
        while self.fill(body):
            pass

    def stop(self) -> None:
        """End the pipe for a thread that waits for more of it."""
        os.eventfd_write(self._wake, 1)

    def _read(self, buffer: memoryview) -> int:
        """Read what is there into a buffer, or wait for it; gives 0 at the end."""
        if self._wake in dict(self._either.poll()):
            return 0
        return os.readv(self.fd, (buffer,))

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # At the end of the program the name ``os`` may be gone before.
        if self._wake >= 0:
            close(self._wake)


def _size_of_file(fd: int) -> int:
    """Give the size of a file whose first byte comes next; 0 if it is none, or nobody knows what came before."""
    found = os.fstat(fd)
    return found.st_size if stat.S_ISREG(found.st_mode) and not os.lseek(fd, 0, os.SEEK_CUR) else 0


def widen(fd: int) -> None:
    """Let a pipe hold more, if it is one and the system allows it."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


@cache
def standard_input() -> Pipe:
    """Give stdin, always the same: what was looked at comes again for whoever takes it.

    Raises:
        OSError: it is closed.
    """
    if sys.stdin is None:  # its number may be another file's by now
        raise OSError(errno.EBADF, "is closed", "<stdin>")
    return Pipe(0)
