"""The system calls that write an output: seen, counted, made to fail or to do less than asked."""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dumpxlate.io import journal, sink, temporary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
            number, self.made = self.made, self.made + 1
            if number == self.fail_at or (self.lasting and number > self.fail_at):
                self.failed += 1
                raise OSError(self.error, os.strerror(self.error))
            if name in ("pwritev", "writev"):
                joined = b"".join(args[1])
                args = (args[0], [joined[: max(self.most(), 1)]], *args[2:])
            result = call(*args, **options)
            self.log.append((name, args, options, result))
            return result

        return watched


@contextlib.contextmanager
def watching(calls: Calls) -> Iterator[Calls]:
    """Let every output go through these calls."""
    modules = (sink, temporary, journal)
    try:
        for module in modules:
            module.os = calls  # type: ignore[attr-defined]
        yield calls
    finally:
        for module in modules:
            module.os = os  # type: ignore[attr-defined]
