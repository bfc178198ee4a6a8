"""Bytes out: a file that appears under its name only when complete, and a pipe."""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from dumpxlate.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

__all__ = ["FileSink", "Output", "PipeSink", "Sink"]

_IOV_MAX = 1024
_ZEROS = bytes(1 << 20)


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

    def commit(self) -> None:
        """Complete the output: nothing is written after this."""
        ...


def _write_all(fd: int, parts: Iterable[memoryview | bytes], offset: int | None) -> int:
    """Write parts in as few calls as possible, whatever the kernel takes each time; give back the bytes written."""
    queue = [memoryview(part).cast("B") for part in parts if len(part)]
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


_PARTIALS: set[Path] = set()
"""Temporary files of this process; a signal between their making and the ``with`` block would leave them behind."""


@atexit.register
def _remove_partials() -> None:
    for path in _PARTIALS:
        with contextlib.suppress(OSError):
            path.unlink()


class FileSink:
    """A regular file, written under a temporary name beside the target and renamed when complete.

    The file is created with mode 0600: a memory dump holds secrets. Leaving the ``with`` block by an exception
    removes the temporary file and leaves the target as it was.

    Args:
        path: the target.
        overwrite: whether an existing file may be replaced.
        inputs: files that must not be the target, whatever name or link leads to them.

    Raises:
        OutputError: the target exists, is an input, or is no regular file.
        OSError: the temporary file cannot be created.
    """

    seekable = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        inputs: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        self.path = Path(path)
        self._overwrite = overwrite
        _refuse_bad_target(os.fspath(path), overwrite, inputs)
        # A name has 255 bytes at most, whatever the number of its characters.
        name = os.fsdecode(os.fsencode(self.path.name)[:200])
        self._partial = self.path.absolute().with_name(f".{name}.{secrets.token_hex(4)}.partial")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        _PARTIALS.add(self._partial)  # before it is there: a signal may come at any moment
        self._fd = os.open(self._partial, flags, 0o600)
        self.position = 0

    def append(self, parts: Iterable[memoryview | bytes]) -> int:
        """Write parts one behind the other at the position; give back where they begin."""
        start = self.position
        self.position += _write_all(self._fd, parts, start)
        return start

    def skip(self, length: int) -> None:
        """Leave a hole."""
        self.position += length

    def write_at(self, offset: int, data: memoryview | bytes) -> None:
        """Write over what is already there, or ahead of it; the position stays."""
        _write_all(self._fd, [data], offset)

    def commit(self) -> None:
        """Make the file durable and give it its name.

        Raises:
            OutputError: a file of that name appeared meanwhile and must not be replaced.
        """
        if os.fstat(self._fd).st_size < self.position:
            os.ftruncate(self._fd, self.position)
        os.fsync(self._fd)
        self._close()
        if self._overwrite:
            self._partial.replace(self.path)
        else:
            self._link()
        _sync_folder(self.path.parent)

    def _link(self) -> None:
        """Rename without replacing: a hard link fails where the name is taken."""
        try:
            os.link(self._partial, self.path)
        except FileExistsError:
            raise OutputError("appeared while it was being written", path=str(self.path)) from None
        except OSError:
            # File systems without hard links (FAT, some FUSE).
            if os.path.lexists(self.path):
                raise OutputError("appeared while it was being written", path=str(self.path)) from None
            self._partial.rename(self.path)
            return
        self._partial.unlink()

    def abort(self) -> None:
        """Remove the temporary file; the target stays as it was. Harmless after commit."""
        self._close()
        self._partial.unlink(missing_ok=True)
        _PARTIALS.discard(self._partial)

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


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
    # What a link leads to counts, so that /dev/stdout is not replaced; one that leads nowhere is replaced itself.
    with contextlib.suppress(FileNotFoundError):
        mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise OutputError("exists and is not a regular file (use -o - to write to a pipe)", path=name)
    if not overwrite:
        raise OutputError("exists (use --force to replace it)", path=name)


def _is_same(path: Path, other: str | os.PathLike[str]) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the file system lets a folder be synced."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


class PipeSink:
    """A stream that can only be appended to."""

    seekable = False

    def __init__(self, fd: int, name: str = "<stdout>") -> None:
        self._fd = fd
        self.name = name
        self.position = 0

    def append(self, parts: Iterable[memoryview | bytes]) -> int:
        """Write parts one behind the other; give back where they begin."""
        start = self.position
        self.position += _write_all(self._fd, parts, None)
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

    def commit(self) -> None:
        """Nothing to do: what was written has gone."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the stream to its owner."""
