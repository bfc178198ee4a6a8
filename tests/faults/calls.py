"""The system calls that write an output: seen, counted, made to fail or to do less than asked."""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dumpxlate.io import journal, sink, temporary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dumpxlate.arrays import Int64s, UInt8s

WRITING = ("open", "pwritev", "pwrite", "writev", "ftruncate", "fchmod", "fsync", "link", "rename", "unlink")
NEVER = 1 << 60


@dataclass
class Calls:
    """Stands for the module ``os`` in the modules that write outputs.

    Attributes:
        fail_at: number of the call that fails, counted from 0.
        lasting: whether all calls behind it fail too, as on a disk that is gone.
        error: what they fail with.
        most: bytes that one call writes at most.
        log: name and arguments of every call that succeeded, and what it gave.
        made: calls so far, failed ones included.
        failed: how many failed.
    """

    fail_at: int = NEVER
    lasting: bool = False
    error: int = errno.EIO
    most: Callable[[], int] = lambda: NEVER
    log: list[tuple[str, tuple[Any, ...], dict[str, Any], Any]] = field(default_factory=list)
    made: int = 0
    failed: int = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(os, name)
        return self._watched(name, found) if name in WRITING else found

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **options: Any) -> Any:
            if self._fails():
                raise OSError(self.error, os.strerror(self.error))
            if name in ("pwritev", "writev"):
                joined = b"".join(args[1])
                args = (args[0], [joined[: max(self.most(), 1)]], *args[2:])
            result = call(*args, **options)
            self.log.append((name, args, options, result))
            return result

        return watched

    def _fails(self) -> bool:
        """Count a call, and tell whether it is one to fail."""
        number, self.made = self.made, self.made + 1
        fails = number == self.fail_at or (self.lasting and number > self.fail_at)
        self.failed += fails
        return fails

    def write_many(self, fd: int, offset: Int64s, length: Int64s, body: UInt8s, at: Int64s) -> Int64s:
        """Write ranges in one call; when it fails, the first half of them has been written."""
        fine = len(at) // 2 if self._fails() else len(at)
        results = np.full(len(at), -self.error, np.int64)
        for index, (place, size, start) in enumerate(zip(offset.tolist(), length.tolist(), at.tolist(), strict=True)):
            if index < fine:
                part = [bytes(body[start : start + min(size, max(self.most(), 1))])]
                results[index] = os.pwritev(fd, part, place)
                self.log.append(("pwritev", (fd, part, place), {}, int(results[index])))
        return results


@contextlib.contextmanager
def watching(calls: Calls) -> Iterator[Calls]:
    """Let every output go through these calls."""
    modules = (sink, temporary, journal)
    in_one_call = sink.write_many
    try:
        sink.write_many = calls.write_many
        for module in modules:
            module.os = calls  # type: ignore[attr-defined]
        yield calls
    finally:
        sink.write_many = in_one_call
        for module in modules:
            module.os = os  # type: ignore[attr-defined]
