"""Bytes out: a file that appears under its name only when complete, and a pipe."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from functools import partial as bound
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

import numpy as np

from dumpxlate.errors import OutputError
from dumpxlate.io.aio import write_many
from dumpxlate.io.pipe import widen
from dumpxlate.io.source import PreadFile
from dumpxlate.io.temporary import Temporary
from dumpxlate.io.writeback import Writeback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

    from dumpxlate.arrays import Int64s, UInt8s

__all__ = ["SHORTEST_HOLE", "FileSink", "Output", "PipeSink", "Sink", "sync_folder"]

_IOV_MAX = 1024
_ZEROS = bytes(1 << 20)

SHORTEST_HOLE = 16 << 10
"""Shorter runs of zeros are written: an extent of the file system costs more than they do."""
_SHORT_ZEROS = np.zeros(SHORTEST_HOLE, np.uint8)

_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_FEW = 4
"""Up to so many pieces are written one by one."""


class Sink(Protocol):
    """Where a writer puts its bytes."""

    @property
    def seekable(self) -> bool:
        """Whether ``write_at`` works."""
        ...

    @property
    def position(self) -> int:
        """Where the next append goes, bytes from the start."""
        ...

    def append(self, parts: Iterable[memoryview | bytes]) -> int:
        """Write parts one behind the other at the position; give back where they begin."""
        ...

    def skip(self, length: int) -> None:
        """Leave a range of zeros: a hole where the target can have holes."""
        ...

    def write_at(self, offset: int, data: memoryview | bytes) -> None:
        """Write over what is already there, or ahead of it; the position stays.

        Raises:
            OutputError: the target cannot seek.
        """
        ...


class Output(Sink, Protocol):
    """A sink that is a whole output, which whoever opened it completes."""

    def complete(self) -> None:
        """Write what ends the output, and make all of it durable: nothing is written after this."""
        ...

    def commit(self) -> None:
        """Complete the output, unless that was done, and give it its name."""
        ...


def _queue(parts: Iterable[memoryview | bytes]) -> list[memoryview]:
    """Give parts as plain bytes, without empty ones."""
    return [memoryview(part).cast("B") for part in parts if len(part)]


def _write_all(fd: int, queue: list[memoryview], offset: int | None) -> int:
    """Write parts in as few calls as possible, whatever the kernel takes each time; give back the bytes written."""
    total = done = 0
    while done < len(queue):
        few = queue[done : done + _IOV_MAX]
        wrote = os.writev(fd, few) if offset is None else os.pwritev(fd, few, offset + total)
        total += wrote
        for part in few:
            if wrote < len(part):
                queue[done] = part[wrote:]
                break
            wrote -= len(part)
            done += 1
    return total


class FileSink:
    """A regular file that appears under its name only when it is complete; an existing one is replaced in one step.

    The file is created with mode 0600: a memory dump holds secrets. Leaving the ``with`` block by an exception leaves
    the target as it was, and nothing else behind.

    Args:
        path: the target.
        overwrite: whether an existing file may be replaced.
        inputs: files that must not be the target, whatever name or link leads to them.
        partial: name, in the target's folder, that the file has until it is complete; None for none, where the file
            system can do without.
        reuse: a file left under that name is taken over as it is.
        keep: that too, and it stays when the writing fails.

    Raises:
        OutputError: the target exists, is an input, is being written already, or is no regular file.
        OSError: the file cannot be created.
    """

    seekable = True
    _written: ClassVar[set[Path]] = set()
    """Targets of the sinks that are open: two outputs of one name would leave one of them."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        inputs: Sequence[str | os.PathLike[str]] = (),
        partial: str | None = None,
        reuse: bool = False,
        keep: bool = False,
    ) -> None:
        self.path = Path(path)
        self._overwrite = overwrite
        self._complete = False
        _refuse_bad_target(os.fspath(path), overwrite, inputs)
        self._place = self.path.parent.resolve() / self.path.name  # a link of that name is replaced, not followed
        self._file = Temporary(self.path, partial, reuse=reuse, keep=keep)
        if self._place in self._written:
            self._file.discard()
            raise OutputError("is another output of this command already", path=os.fspath(path))
        self._written.add(self._place)
        self._writeback = Writeback(self._file.fd)
        self.position = 0
        self._held: list[Callable[[], object]] | None = None

    def hold(self) -> None:
        """Only settle from now on where bytes go: they must stay as they are until ``release``."""
        self._held = []

    def release(self) -> None:
        """Write what was held."""
        held, self._held = self._held, None
        for write in held or ():
            write()

    def _do(self, write: Callable[..., object], *arguments: object) -> None:
        """Write something, now or later."""
        if self._held is None:
            write(*arguments)
        else:
            self._held.append(bound(write, *arguments))

    @property
    def partial(self) -> Path | None:
        """Where the file can be opened before it is complete, if it can."""
        return self._file.path

    def append(self, parts: Iterable[memoryview | bytes]) -> int:
        """Write parts one behind the other at the position; give back where they begin."""
        start, queue = self.position, _queue(parts)
        length = sum(map(len, queue))
        self._do(_write_all, self._file.fd, queue, start)
        self._advance(length)
        return start

    def append_sparse(self, body: UInt8s, at: Int64s, length: Int64s, place: Int64s, total: int) -> None:
        """Append pieces of a buffer with zeros between them, which become holes unless they are short.

        Args:
            body: the buffer, contiguous, uint8.
            at: where each piece lies in it.
            length: bytes of each.
            place: where each goes, counted from the position; ascending, disjoint.
            total: what the position grows by: at least to the end of the last piece.
        """
        end = place + length
        gap = place[1:] - end[:-1]
        short = np.flatnonzero((gap > 0) & (gap < SHORTEST_HOLE))
        zeros = np.zeros(len(short), np.int64)
        self._do(self._scatter, _SHORT_ZEROS, zeros, gap[short], self.position + end[short])
        self._do(self._scatter, body, at, length, self.position + place)
        self._advance(total)

    def _scatter(self, body: UInt8s, at: Int64s, length: Int64s, offset: Int64s) -> None:
        """Write pieces of a buffer, each to its offset."""
        wrote = write_many(self._file.fd, offset, length, body, at) if len(at) > _FEW else None
        done = np.zeros(len(at), np.int64) if wrote is None else np.maximum(wrote, 0)
        left = np.flatnonzero(done < length)  # what ails them, a full disk say, is met again and told
        begin, low, high = (column[left].tolist() for column in (offset + done, at + done, at + length))
        view = body.data
        for first, start, stop in zip(begin, low, high, strict=True):
            _write_all(self._file.fd, [view[start:stop]], first)

    def _advance(self, length: int) -> None:
        """Move the position; from time to time have the disk begin with what stands before it."""
        self.position += length
        self._writeback.reach(self.position)

    def skip(self, length: int) -> None:
        """Leave a hole."""
        self.position += length

    def write_at(self, offset: int, data: memoryview | bytes) -> None:
        """Write over what is already there, or ahead of it; the position stays."""
        self._do(_write_all, self._file.fd, _queue([data]), offset)

    def size(self) -> int:
        """Give the length that the file has now."""
        return os.fstat(self._file.fd).st_size

    def opened(self) -> PreadFile:
        """Open what was written so far for reading."""
        return PreadFile(os.dup(self._file.fd), str(self.path), self.size())

    def go_on(self, position: int) -> None:
        """Drop what lies behind a position, and write from there on."""
        os.ftruncate(self._file.fd, position)
        self.position = position
        self._writeback.go_on(position)

    def rest(self) -> None:
        """Let nothing go on beside: a process is forked only where it has one thread."""
        self._writeback.rest()

    def sync(self) -> None:
        """Make durable what was written so far."""
        os.fsync(self._file.fd)

    def complete(self) -> None:
        """Give the file its length, and make all of it durable; it has not got its name yet."""
        if self.size() < self.position:
            os.ftruncate(self._file.fd, self.position)
        self.sync()
        self._complete = True

    def commit(self) -> None:
        """Complete the file and give it its name, durably.

        Raises:
            OutputError: a file of that name appeared meanwhile and must not be replaced.
        """
        if not self._complete:
            self.complete()
        self._file.publish(overwrite=self._overwrite)
        self._discard()
        sync_folder(self.path.parent)

    def withdraw(self) -> None:
        """Take the name back from a file that was committed, unless it has taken the place of another."""
        if not self._overwrite:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def abort(self, *, keep: bool = True) -> None:
        """Give the file up; the target stays as it was. Harmless after commit.

        Args:
            keep: leave what was to be kept, if there is anything in it.
        """
        self._file.keep &= keep and (self._file.fd < 0 or self.size() > 0)
        self._discard()

    def _discard(self) -> None:
        self._written.discard(self._place)
        self.rest()
        self._file.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        _name_target(value, str(self.path))
        try:
            self.abort()
        except OSError as error:
            if value is None:
                raise
            for note in error.__notes__:
                value.add_note(note)


def _refuse_bad_target(name: str, overwrite: bool, inputs: Sequence[str | os.PathLike[str]]) -> None:  # noqa: FBT001
    """Check what stands under the target's name before anything is created."""
    path = Path(name)
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        if not path.name or name.endswith(os.sep):
            raise OutputError("is not the name of a file", path=name) from None
        return
    if any(_is_same(path, one) for one in inputs):
        raise OutputError("is the input itself", path=name)
    if stat.S_ISLNK(mode) and any(each.is_relative_to("/proc") for each in (path.readlink(), path.parent.resolve())):
        # /dev/stdout and /dev/fd/1, which may be redirected to a regular file.
        raise OutputError("is a stream of a process (use -o - to write to stdout)", path=name)
    # What a link leads to counts; one that leads nowhere is replaced itself.
    with contextlib.suppress(FileNotFoundError):
        mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise OutputError("exists and is not a regular file (use -o - to write to a pipe)", path=name)
    if not overwrite:
        raise OutputError("exists (use --force to replace it)", path=name)


def _name_target(error: BaseException | None, name: str) -> None:
    """Put the target's name into an error of writing, as that of a full disk: the kernel names none."""
    if isinstance(error, OSError) and error.errno in _OF_WRITING and not error.filename:
        error.filename = name


def _is_same(path: Path, other: str | os.PathLike[str]) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False


def sync_folder(folder: Path) -> None:
    """Make the name itself durable, where the file system lets a folder be synced, and us open it."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF):
            error.add_note("the output is complete under its name, and may lose it if power fails")
            raise
    finally:
        os.close(fd)


class PipeSink:
    """A stream that can only be appended to."""

    seekable = False

    def __init__(self, fd: int, name: str = "<stdout>") -> None:
        self._fd = fd
        self.name = name
        self.position = 0
        widen(fd)

    def append(self, parts: Iterable[memoryview | bytes]) -> int:
        """Write parts one behind the other; give back where they begin."""
        start = self.position
        self.position += _write_all(self._fd, _queue(parts), None)
        return start

    def skip(self, length: int) -> None:
        """Write zeros."""
        while length > 0:
            piece = min(length, len(_ZEROS))
            self.append([memoryview(_ZEROS)[:piece]])
            length -= piece

    def write_at(self, offset: int, data: memoryview | bytes) -> None:
        """Refuse: a pipe cannot go back."""
        raise OutputError(f"cannot seek back to {offset:#x}", path=self.name)

    def complete(self) -> None:
        """Nothing to do: what was written has gone."""

    def commit(self) -> None:
        """Nothing to do either: a pipe has no name."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the stream to its owner."""
        _name_target(value, self.name)
