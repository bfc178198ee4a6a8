"""What the files of an input are like from outside: whether they change while they are read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dumpxlate.dump import Dump

__all__ = ["FileState", "changed", "states"]


class FileState(NamedTuple):
    """A file at some moment, as far as stat(2) tells."""

    name: str
    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, name: str) -> FileState | None:
        """Look at a file; None where there is none of that name (a pipe's content, a source that is no file)."""
        try:
            found = Path(name).stat()
        except OSError:
            return None
        return cls(name, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def states(dump: Dump) -> tuple[FileState, ...]:
    """Look at the files of a dump."""
    return tuple(state for source in dump.sources if (state := FileState.of(source.name)))


def changed(before: Iterable[FileState]) -> str | None:
    """Say which file is not what it was; one that was replaced is still open, and does not count."""
    for old in before:
        new = FileState.of(old.name)
        if new and (new.device, new.inode) == (old.device, old.inode) and new != old:
            how = f"from {old.size:,} to {new.size:,} bytes" if new.size != old.size else "its time of change moved"
            return f"{old.name} changed while it was read ({how}): what was read may be a mixture"
    return None
