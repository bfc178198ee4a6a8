"""Files that are written before they have their name.

Where the file system offers it (O_TMPFILE, open(2)), such a file has no name at all until it is complete: whatever ends
the program, SIGKILL and power loss included, the kernel takes it away. Elsewhere, and where somebody must be able to
open it before, it has a name beside the target that begins with a dot and ends in ``.partial``.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING

from dumpxlate.errors import OutputError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Temporary", "beside", "fresh_name"]

_MODE = 0o600  # a memory dump holds secrets
_NEW = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC

_PARTIALS: set[Path] = set()
"""Named files of this process; a signal between their making and the ``with`` block would leave them behind."""


@atexit.register
def _remove_partials() -> None:
    for path in _PARTIALS:
        with contextlib.suppress(OSError):
            path.unlink()


def beside(target: Path, suffix: str) -> str:
    """Make the name of a file that goes with a target: hidden, and at most 255 bytes long."""
    name = os.fsdecode(os.fsencode(target.name)[:200])
    return f".{name}.{suffix}"


class Temporary:
    """A file of mode 0600 in the folder of its target, for its owner to write to ``fd``.

    Args:
        target: path that it will have.
        name: what to call it until then; None for no name where that can be.
        reuse: take over an existing file of that name.
        keep: take over too, and let it stay when it is given up.

    Raises:
        OutputError: another process is writing it, or a file of its name is not ours.
        OSError: it cannot be created.
    """

    def __init__(self, target: Path, name: str | None = None, *, reuse: bool = False, keep: bool = False) -> None:
        self.target = target
        self.keep = keep
        self.name: str | None = None
        self.fd = -1
        self._folder = os.open(target.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if name is None:
                self._open_unnamed()
            if self.fd < 0:
                self._open_named(name or fresh_name(target), reuse=reuse or keep)
            os.fchmod(self.fd, _MODE)  # a umask may have taken away more
        except BaseException as error:
            if isinstance(error, OSError) and error.filename == ".":
                error.filename = str(target.parent)
            if keep and self.path:
                error.add_note(f"{self.path} stays: remove it if it is not wanted")
            self.discard()
            raise

    @property
    def path(self) -> Path | None:
        """Where it is, if it has a name."""
        return self.target.absolute().with_name(self.name) if self.name else None

    def publish(self, *, overwrite: bool) -> None:
        """Give it the target's name, in one step: nobody sees the target missing or half written.

        Raises:
            OutputError: there is a file of that name, which must not be replaced.
        """
        name = self.target.name
        if not overwrite:
            self._link_new(name)
            self._unlink()
            return
        if self.name is None:  # a link cannot replace a file, a rename can
            self._take_name(fresh_name(self.target))
        os.rename(self.name or "", name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        self._forget()

    def discard(self) -> None:
        """Close it, and remove it unless it is to be kept; harmless after it was published.

        Raises:
            OSError: it could not be removed; it carries a note that names the file.
        """
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        try:
            if not self.keep:
                self._unlink()
        finally:
            if self._folder >= 0:
                os.close(self._folder)
                self._folder = -1

    def _open_unnamed(self) -> None:
        """Open a file without a name; ``fd`` stays as it is where that cannot be done here, or no name be given later.

        No /proc, no hard links, or a policy against them had better show now than after the last page. A file that
        has had a name can get no other, so that one is tried that is thrown away.
        """
        try:
            self.fd = self._unnamed()
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
                raise
            return
        try:
            self._take_name(fresh_name(self.target))
        except OSError:
            self._forget()
            return
        finally:
            os.close(self.fd)
            self.fd = -1
        self._unlink()
        self.fd = self._unnamed()

    def _unnamed(self) -> int:
        return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, _MODE, dir_fd=self._folder)

    def _open_named(self, name: str, *, reuse: bool) -> None:
        path = self.target.absolute().with_name(name)
        if not reuse:
            _PARTIALS.add(path)  # before it is there: a signal may come at any moment
        self.fd = os.open(name, _NEW | (0 if reuse else os.O_EXCL), _MODE, dir_fd=self._folder)
        if reuse:
            _require_own(self.fd, path)  # until then it is not ours to remove
        if not self.keep:
            _PARTIALS.add(path)
        self.name = name

    def _take_name(self, name: str) -> None:
        """Give a file without a name one."""
        _PARTIALS.add(self.target.absolute().with_name(name))
        self.name = name
        _link(f"/proc/self/fd/{self.fd}", name, self._folder)

    def _link_new(self, name: str) -> None:
        """Give the name unless it is taken: a hard link fails then, a rename would not."""
        source = self.name or f"/proc/self/fd/{self.fd}"
        try:
            _link(source, name, self._folder)
        except FileExistsError:
            raise OutputError("appeared while it was being written", path=str(self.target)) from None
        except OSError:
            # File systems without hard links (FAT, some FUSE).
            if os.path.lexists(self.target):
                raise OutputError("appeared while it was being written", path=str(self.target)) from None
            if self.name is None:
                raise
            os.rename(self.name, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            self._forget()

    def _unlink(self) -> None:
        if self.name is None:
            return
        path = self.path
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.name, dir_fd=self._folder)
        except OSError as error:
            error.add_note(f"{path} could not be removed: remove it")
            raise
        self._forget()

    def _forget(self) -> None:
        if self.path:
            _PARTIALS.discard(self.path)
        self.name = None


def fresh_name(target: Path) -> str:
    """Make up a name beside a target that nobody has."""
    return beside(target, f"{os.urandom(4).hex()}.partial")


def _link(source: str, name: str, folder: int) -> None:
    # With folders given, Python calls linkat(2), which alone follows /proc/self/fd; an absolute source ignores its own.
    os.link(source, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=source.startswith("/"))


def _require_own(fd: int, path: Path) -> None:
    """Lock a file that may have been there before, and check that nobody laid it there for us.

    Raises:
        OutputError: another process has it, or it is a link, or somebody else's.
    """
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_uid != os.geteuid():
        raise OutputError("is not a file that an earlier run of ours left: remove it", path=str(path))
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError("another process is writing it", path=str(path)) from None
