"""Bytes in: files that are read, and plain bytes.

A source hands out views of headers and tables, and reads pages into buffers. A file that has a name is never mapped:
whoever may write it can make it shorter at any moment, and touching a mapping behind its end kills the process with
SIGBUS, which no Python code can turn into an error. A read that comes back short is one. Readers bring large tables
in pieces, so that memory does not grow with the dump.
"""

from __future__ import annotations

import contextlib
import os
import stat
import weakref
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

from dumpxlate.arrays import lengths
from dumpxlate.errors import TruncatedDumpError, UnknownFormatError, UnsupportedFeatureError
from dumpxlate.io.aio import WORTHWHILE, read_many
from dumpxlate.io.holes import runs_of_data

if TYPE_CHECKING:
    from types import TracebackType

    from dumpxlate.arrays import Bools, Int32s, Int64s, UInt8s

__all__ = [
    "BytesSource",
    "Closing",
    "PreadFile",
    "Source",
    "check_range",
    "open_source",
    "ranges_inside",
]

_LARGE = 4 << 20
"""Bytes of a view from which on holes are looked for."""

_LARGEST = 4 << 30
"""Bytes of a view at most."""


class Source(Protocol):
    """Read-only bytes with a name and a size."""

    @property
    def name(self) -> str:
        """What to call it in messages."""
        ...

    @property
    def size(self) -> int:
        """Length in bytes."""
        ...

    def view(self, offset: int = 0, length: int | None = None) -> memoryview:
        """View a range, all of it if no length is given.

        Raises:
            TruncatedDumpError: the range leaves the source.
        """
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Read a range; fewer bytes where the source ends inside it."""
        ...

    def gather(self, offset: Int64s, size: Int32s) -> tuple[memoryview, Int64s]:
        """Bring many ranges at once.

        Args:
            offset: where each begins; negative ones are skipped.
            size: bytes of each.

        Returns:
            A body, and the offset of each range in it. Ranges outside the source keep an offset outside the body.
        """
        ...

    def place(self, offset: Int64s) -> Int64s:
        """Say where in the dump's file, the one inside its containers, bytes are: -1 where nowhere as they are."""
        ...

    def data_runs(self, start: int = 0, stop: int | None = None) -> tuple[Int64s, Int64s]:
        """Give the ranges (start, length), ascending, outside which all bytes are known to be zero without a look.

        Args:
            start: where to begin; of what lies before, nothing that is told holds.
            stop: where to end; of what follows, neither.
        """
        ...

    def close(self) -> None:
        """Give the file back; views must be gone."""
        ...


class Closing:
    """What sources have in common: ``with``, offsets that are those of the file, and no knowledge of zeros."""

    size: int

    def gather(self, offset: Int64s, size: Int32s) -> tuple[memoryview, Int64s]:
        """Bring many ranges at once."""
        raise NotImplementedError

    def read(self, offset: int, length: int) -> bytes:
        """Read a range that is brought as many are."""
        body, at = self.gather(np.array([offset], np.int64), np.array([length], np.int32))
        return bytes(body[at[0] : at[0] + length]) if at[0] >= 0 else b""

    def place(self, offset: Int64s) -> Int64s:
        """Say where in the file bytes are."""
        return offset

    def data_runs(self, start: int = 0, stop: int | None = None) -> tuple[Int64s, Int64s]:
        """Give the ranges that are not known to be zero: everything."""
        return np.zeros(1, np.int64), np.array([self.size], np.int64)

    def close(self) -> None:
        """Give back what is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_range(name: str, size: int, offset: int, length: int | None) -> int:
    """Bound a range by the source, or say what is missing."""
    if length is None:
        length = size - offset
    if offset < 0 or length < 0 or offset + length > size:
        raise TruncatedDumpError("range", path=name, offset=offset, wanted=max(length, 0), available=size - offset)
    return length


def ranges_inside(size: int, offset: Int64s, length: Int32s) -> Bools:
    """Tell which ranges lie inside a source; offsets may be as large as a file claims."""
    found: Bools = (offset >= 0) & (length >= 0) & (offset <= size - length.astype(np.int64))
    return found


class BytesSource(Closing):
    """Bytes in memory, for tests and for headers that another source unwrapped."""

    def __init__(self, data: bytes | memoryview, name: str = "<bytes>") -> None:
        self.name = name
        self.size = len(data)
        self._view = memoryview(data).toreadonly()

    def view(self, offset: int = 0, length: int | None = None) -> memoryview:
        """View a range."""
        return self._view[offset : offset + check_range(self.name, self.size, offset, length)]

    def read(self, offset: int, length: int) -> bytes:
        """Copy a range."""
        return bytes(self._view[max(offset, 0) : max(offset + length, 0)])

    def gather(self, offset: Int64s, size: Int32s) -> tuple[memoryview, Int64s]:
        """Bring ranges: the bytes as they are."""
        return self._view, offset


_files: weakref.WeakSet[PreadFile] = weakref.WeakSet()


def _reopen_all() -> None:
    for file in _files:
        file.reopen()


os.register_at_fork(after_in_child=_reopen_all)


class PreadFile(Closing):
    """A file that is read, never mapped: a view is a copy, and a file that shrinks meanwhile is an error.

    Args:
        fd: open file descriptor; owned from here on.
        name: for messages.
        size: bytes of the file.
    """

    def __init__(self, fd: int, name: str, size: int) -> None:
        self._fd = fd
        self.name = name
        self.size = size
        self._data: tuple[Int64s, Int64s] | None = None
        _files.add(self)

    def reopen(self) -> None:
        """Open the file once more, where that is allowed, instead of sharing what a fork has of its parent.

        The kernel counts the reads that are under way by the open file, and two processors that change one number wait
        for each other: a twentieth of the time of pages that are read one by one.
        """
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                again = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)
                os.dup2(again, self._fd, inheritable=False)
                os.close(again)

    def view(self, offset: int = 0, length: int | None = None) -> memoryview:
        """Read a range."""
        length = check_range(self.name, self.size, offset, length)
        if length >= _LARGE:
            return self._without_holes(offset, length)
        buffer = np.empty(length, np.uint8).data
        self._fill(buffer, offset)
        return buffer.toreadonly()

    def _without_holes(self, offset: int, length: int) -> memoryview:
        """Read a large range of what may be a sparse file: what is never written to takes no memory."""
        if length > _LARGEST:
            raise UnsupportedFeatureError(
                f"a table of {length:,} bytes at {offset:#x}: at most {_LARGEST:,} are handled",
                path=self.name,
                feature="table size",
            )
        body = np.zeros(length, np.uint8).data
        start, size = runs_of_data(self._fd, offset + length, offset)
        for low, high in zip(np.maximum(start, offset).tolist(), (start + size).tolist(), strict=True):
            self._fill(body[low - offset : high - offset], low)
        self._require_end(offset, length)
        return body.toreadonly()

    def _require_end(self, offset: int, length: int) -> None:
        """Check that the file still reaches so far: what was cut off meanwhile looks like a hole."""
        found = os.fstat(self._fd)
        end = found.st_size if stat.S_ISREG(found.st_mode) else self.size
        if end < offset + length:
            raise TruncatedDumpError("range", path=self.name, offset=offset, wanted=length, available=end - offset)

    def read(self, offset: int, length: int) -> bytes:
        """Read a range."""
        return os.pread(self._fd, length, offset) if 0 <= offset < self.size else b""

    def gather(self, offset: Int64s, size: Int32s) -> tuple[memoryview, Int64s]:
        """Read ranges into a body of their own, in the order given; ranges that follow each other in one call."""
        inside = ranges_inside(self.size, offset, size)
        whole = inside.all()
        start, length = (offset, size) if whole else (offset[inside], size[inside])
        ends = np.cumsum(length, dtype=np.int64)
        at = ends - length
        buffer = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
        if len(start):
            opens = np.flatnonzero(np.append(True, start[1:] != (start + length)[:-1]))
            self._read(start[opens], lengths(at[opens], len(buffer)), buffer, at[opens])
        body = buffer.data
        if whole:
            return body.toreadonly(), at
        moved = np.where(offset >= 0, np.int64(len(body)), np.int64(-1))
        moved[inside] = at
        return body.toreadonly(), moved

    def data_runs(self, start: int = 0, stop: int | None = None) -> tuple[Int64s, Int64s]:
        """Give the parts of the file that are no holes.

        Raises:
            TruncatedDumpError: the file has become shorter: what was cut off would look like a hole.
        """
        if start or stop is not None:
            found = runs_of_data(self._fd, self.size if stop is None else min(stop, self.size), start)
        else:  # a sparse core may have thousands, and more than one reader who asks for all of them
            found = self._data = self._data or runs_of_data(self._fd, self.size)
        self._require_end(0, self.size)
        return found

    def _read(self, start: Int64s, length: Int64s, buffer: UInt8s, at: Int64s) -> None:
        """Read ranges into their places in a buffer."""
        order = np.argsort(start)  # ascending, as disks like it
        start, length, at = start[order], length[order], at[order]
        got = read_many(self._fd, start, length, buffer, at) if len(start) >= WORTHWHILE else None
        if got is not None:
            short = got < length
            start, length, at = start[short], length[short], at[short]
        body, read, fd = buffer.data, os.preadv, self._fd
        for begin, low, high in zip(start.tolist(), at.tolist(), (at + length).tolist(), strict=True):
            if read(fd, (body[low:high],), begin) != high - low:
                self._fill(body[low:high], begin)

    def _fill(self, buffer: memoryview, offset: int) -> None:
        done = os.preadv(self._fd, (buffer,), offset)
        while done < len(buffer):
            got = os.preadv(self._fd, (buffer[done:],), offset + done)
            if not got:
                raise TruncatedDumpError("range", path=self.name, offset=offset, wanted=len(buffer), available=done)
            done += got

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def open_source(path: str | os.PathLike[str]) -> PreadFile:
    """Open a file for reading.

    Raises:
        OSError: it cannot be opened.
        UnknownFormatError: it is no file with content (a directory, a pipe, empty).
    """
    name = os.fspath(path)
    # Non-blocking: opening a FIFO that nobody writes to would hang.
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        mode = os.fstat(fd).st_mode
        kind = next((word for test, word in _OTHER_KINDS if test(mode)), None)
        if kind:
            raise UnknownFormatError(f"is {kind}, not a file", path=name)
        size = os.lseek(fd, 0, os.SEEK_END)
        if not size:
            raise UnknownFormatError("is empty", path=name)
        os.set_blocking(fd, True)
        return PreadFile(fd, name, size)
    except BaseException:
        os.close(fd)
        raise


_OTHER_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
)
