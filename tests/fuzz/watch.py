"""Notes what is written, renamed and removed while an input is examined, by the interpreter's audit events.

Python-level calls only, which is how dumpxlate writes; what a codec's library does in C is left to the folders, which
are looked at behind each input.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["confined"]

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_NAMED = {  # event -> which arguments are paths, each with the argument that is its folder
    "os.remove": ((0, 1),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.mkdir": ((0, 2),),
    "os.rmdir": ((0, 1),),
    "os.chmod": ((0, 2),),
    "os.utime": ((0, 3),),
    "os.truncate": ((0, None),),
}
_NEVER = ("socket.connect", "socket.bind", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")


class _Watch:
    """What was done outside of a folder; hooks stay for as long as the process, so there is one."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.found: list[str] = []
        self._hooked = False
        self._temporary = tempfile.gettempdir()  # it tries folders out, and must not while it is watched

    def begin(self, folder: Path) -> None:
        if not self._hooked:
            sys.addaudithook(self._see)
            self._hooked = True
        self.found = []
        self.folder = folder.resolve()

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event == "open":
            self._opened(*arguments)
        elif event in _NEVER:
            self.found.append(f"{event} {arguments[0]!r}")
        elif event in _NAMED:
            for path, folder in _NAMED[event]:
                at = arguments[folder] if folder is not None and folder < len(arguments) else -1
                if isinstance(arguments[path], str | bytes | os.PathLike) and not self._is_inside(arguments[path], at):
                    self.found.append(f"{event} {arguments[path]!r}")

    def _opened(self, path: Any, mode: str | None, flags: int | None) -> None:
        writes = bool((flags or 0) & _WRITING) if mode is None else any(each in mode for each in "wax+")
        if not writes or isinstance(path, int):
            return
        name = os.fsdecode(path)
        # A folder is opened for a file without a name, in it: the target's, or the one for what is unpacked. A bare
        # name is one in the target's folder, which is open; else it lies in the working folder behind.
        allowed = name in (os.devnull, self._temporary) or "/" not in name
        if not allowed and not self._is_inside(name, -1):
            self.found.append(f"open {name!r}")

    def _is_inside(self, path: Any, folder: int) -> bool:
        assert self.folder
        base = Path(f"/proc/self/fd/{folder}").readlink() if folder >= 0 else Path.cwd()
        return (base / os.fsdecode(path)).parent.resolve().is_relative_to(self.folder)


_WATCH = _Watch()


@contextlib.contextmanager
def confined(folder: Path) -> Iterator[list[str]]:
    """Note what is written outside of a folder; the working folder is an empty one meanwhile.

    Yields:
        A list that is filled when the block ends: one line for each call, and for each file that appeared.
    """
    found: list[str] = []
    before, bytecode = Path.cwd(), sys.dont_write_bytecode
    with tempfile.TemporaryDirectory(prefix="elsewhere-", dir=folder.parent) as elsewhere:
        os.chdir(elsewhere)
        sys.dont_write_bytecode = True  # modules are imported when they are wanted
        _WATCH.begin(folder)
        try:
            yield found
        finally:
            _WATCH.folder = None
            sys.dont_write_bytecode = bytecode
            os.chdir(before)
            found += _WATCH.found
            found += [f"{each.name} in the working folder" for each in Path(elsewhere).iterdir()]
