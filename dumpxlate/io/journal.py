"""A journal: what a long piece of work had reached, line by line, each durable before the next is begun.

::

    <16 hex digits of the SHA-256 of the rest> <JSON>

The first line says which work it is, each later one what it had reached. A line that was not written to its end does
not fit its digest, and ends the journal.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from typing import TYPE_CHECKING, Any

from dumpxlate.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Journal"]

_LONGEST = 64 << 20
_DIGITS = 16


class Journal:
    """The journal of one piece of work.

    Args:
        path: its file, of mode 0600; made where there is none.

    Raises:
        OutputError: what has that name was not left by an earlier run of this user.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            found = os.fstat(self._fd)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink != 1:
                raise OutputError("is not a journal that an earlier run of ours left: remove it", path=str(path))
            os.fchmod(self._fd, 0o600)
            self._lines, self._end = _read(self._fd)
        except BaseException as error:
            if os.fstat(self._fd).st_size:
                error.add_note(f"{path} stays: remove it if it is not wanted")
                self.close()
            else:
                self._remove_empty(error)
            raise

    @property
    def work(self) -> Mapping[str, Any] | None:
        """Which work it is of; None if it is new."""
        return self._lines[0] if self._lines else None

    @property
    def last(self) -> Mapping[str, Any] | None:
        """The last thing that is known to have been reached."""
        return self._lines[-1] if len(self._lines) > 1 else None

    def begin(self, work: Mapping[str, Any]) -> None:
        """Forget everything and say which work begins."""
        os.ftruncate(self._fd, 0)
        self._lines, self._end = [], 0
        self.add(work)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Write a line, durably."""
        text = json.dumps(entry, separators=(",", ":")).encode()
        line = hashlib.sha256(text).hexdigest()[:_DIGITS].encode() + b" " + text + b"\n"
        at = self._end
        while line:
            wrote = os.pwrite(self._fd, line, at)
            line, at = line[wrote:], at + wrote
        os.fsync(self._fd)
        self._end = at
        self._lines[1:] = []
        self._lines.append(json.loads(text))

    def remove(self) -> None:
        """Remove it: the work is done."""
        self.close()
        try:
            os.unlink(self.path)  # noqa: PTH108 - as all calls that faults are tried on
        except FileNotFoundError:
            pass
        except OSError as error:
            error.add_note(f"{self.path} could not be removed: remove it")
            raise

    def _remove_empty(self, error: BaseException) -> None:
        """Remove a journal that could not be begun."""
        try:
            self.remove()
        except OSError as also:
            for note in also.__notes__:
                error.add_note(note)

    def close(self) -> None:
        """Close it; it stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _read(fd: int) -> tuple[list[Any], int]:
    """Read the first line and the last good one; gives also where that ends."""
    content = os.pread(fd, _LONGEST, 0)
    lines: list[Any] = []
    end = 0
    for line in content.splitlines(keepends=True):
        digest, _, text = line[:-1].partition(b" ")
        if line[-1:] != b"\n" or hashlib.sha256(text).hexdigest()[:_DIGITS].encode() != digest:
            break
        lines[1:] = []
        lines.append(json.loads(text))
        end += len(line)
    return lines, end
