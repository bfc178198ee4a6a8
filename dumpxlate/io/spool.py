"""Bytes in that have no name: what came through a pipe, or was unpacked, in a temporary file."""

from __future__ import annotations

import contextlib
import mmap
import os
from typing import TYPE_CHECKING

from dumpxlate.errors import UnknownFormatError
from dumpxlate.io.source import PreadFile, check_range

if TYPE_CHECKING:
    from dumpxlate.arrays import Int32s, Int64s
    from dumpxlate.io.pipe import Pipe

__all__ = ["MappedFile", "spooled"]

_RELEASE_EVERY = 64
"""Batches between two times that a mapping's resident pages are given back to the kernel."""
_RELEASE_VIEWED = 64 << 20
"""Bytes viewed between two such times."""


class MappedFile(PreadFile):
    """A nameless temporary file, whose tables are viewed in place; pages are still read.

    Nobody else can make such a file shorter, and what a compressed file claims to hold need not fit into memory: its
    tables are a mapping that the kernel may drop. Reading a page into a buffer costs less than faulting it in
    (measured: 0.7 against 1.2 microseconds in sequence, 2.1 against 2.3 at random, and 7 once mapped pages are given
    back).

    Raises:
        OSError: the file cannot be mapped; the descriptor stays open then.
    """

    def __init__(self, fd: int, name: str, size: int) -> None:
        self._map = mmap.mmap(fd, size, access=mmap.ACCESS_READ)
        super().__init__(fd, name, size)
        self._view = memoryview(self._map)
        self._gathered = self._viewed = 0

    def view(self, offset: int = 0, length: int | None = None) -> memoryview:
        """View a range of the mapping; now and then what views have made resident is given back."""
        length = check_range(self.name, self.size, offset, length)
        self._viewed += length
        if self._viewed > _RELEASE_VIEWED:
            self._release()
        return self._view[offset : offset + length]

    def gather(self, offset: Int64s, size: Int32s) -> tuple[memoryview, Int64s]:
        """Read ranges; now and then what tables have made resident is given back."""
        self._gathered += 1
        if self._gathered % _RELEASE_EVERY == 0:
            self._release()
        return super().gather(offset, size)

    def _release(self) -> None:
        """Safe under readers: the pages stay in the page cache and are mapped again when touched."""
        self._viewed = 0
        self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Unmap and close the file.

        A view that somebody still holds keeps the mapping alive until it goes; the descriptor is closed now.
        """
        super().close()
        with contextlib.suppress(BufferError):
            self._view.release()
            self._map.close()


def spooled(pipe: Pipe) -> PreadFile:
    """Take everything from a pipe into a nameless temporary file, which nobody else can open, and open that.

    What comes from a file is that file.

    Raises:
        UnknownFormatError: nothing came.
        OSError: the disk is full.
    """
    if pipe.file_size:
        return PreadFile(os.dup(pipe.fd), pipe.name, pipe.file_size)
    import tempfile

    with tempfile.TemporaryFile(prefix="dumpxlate-") as file:
        while len(data := pipe.read(1 << 20)):
            file.write(data)
        file.flush()
        size = file.tell()
        if not size:
            raise UnknownFormatError("is empty", path=pipe.name)
        return MappedFile(os.dup(file.fileno()), pipe.name, size)
