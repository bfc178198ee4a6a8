"""Unpacks compressed files into nameless temporary files."""

from __future__ import annotations

import errno
import os
import tempfile
import zlib
from dataclasses import dataclass, field
from lzma import LZMAError
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.arrays import runs
from dumpxlate.errors import CorruptDumpError, UnsupportedFeatureError
from dumpxlate.formats.compressed.decompress import decompressor
from dumpxlate.formats.compressed.kinds import is_start, kind_of
from dumpxlate.io.spool import MappedFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dumpxlate.arrays import Bools
    from dumpxlate.formats.compressed.decompress import Decompressor
    from dumpxlate.io.source import Source

__all__ = ["UnpackedFile", "unpack"]

_INPUT = 16 << 10
"""Bytes that are fed at once: what a piece with a defect unpacks to before the defect is lost."""

_OUTPUT = 4 << 20
_HOLE = 64 << 10
"""Pieces that are looked at for zeros."""

MOST = 16 << 40
"""Bytes that a file may unpack to: more than any machine of today has memory, as large as ext4 takes a file."""

SPARE = 256 << 20
"""Bytes that are left free on the disk."""

_CHECK_SPACE_EVERY = 64 << 20


class UnpackedFile(MappedFile):
    """The temporary file.

    Attributes:
        complaint: why it is incomplete, if it is.
    """

    complaint: str | None = None


def unpack(source: Source) -> UnpackedFile:
    """Unpack a compressed file; what stands before a defect is kept. The source is closed when all is well.

    Raises:
        UnsupportedFeatureError: a kind that is only recognised, or one that would take too much memory or room.
        CorruptDumpError: nothing of it unpacks.
        OSError: the disk is full.
    """
    kind = kind_of(source) or ""
    with tempfile.TemporaryFile(prefix="dumpxlate-") as file:
        unpacked = _Unpacked(file.fileno(), source.name)
        defect, complaint = _DefectError("unpacks to nothing", 0), None
        try:
            for piece in _members(source, kind):
                unpacked.write(piece)
        except _DefectError as found:
            defect = found
            complaint = f"{kind}: {defect} after {unpacked.size:,} unpacked bytes; what follows is missing"
        size = unpacked.finish()
        if not size:
            raise CorruptDumpError(str(defect), path=source.name, offset=defect.offset, what=kind)
        fd = os.dup(file.fileno())
    result = UnpackedFile(fd, source.name, size)
    result.complaint = complaint
    source.close()
    return result


class _DefectError(Exception):
    """The compressed data end or break here, or not far behind ``offset``."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


def _members(source: Source, kind: str) -> Iterator[bytes]:
    """Unpack all members, one behind the other, in pieces."""
    at = 0
    while True:
        member = decompressor(kind)
        taken = 0
        while not member.eof:
            data = b""
            if member.needs_input:
                data = bytes(source.view(at + taken, min(_INPUT, source.size - at - taken)))
                taken += len(data)
            piece = _feed(member, data, at + taken - len(data))
            if not (data or piece or member.eof) and at + taken == source.size:
                raise _DefectError(f"truncated at {source.size:#x}", source.size)
            yield piece
        at = _next(source, at + taken - len(member.unused_data))
        if at == source.size:
            return
        if not is_start(kind, bytes(source.view(at, min(source.size - at, 16)))):
            raise _DefectError(f"what stands at {at:#x} is no further member", at)


def _feed(member: Decompressor, data: bytes, at: int) -> bytes:
    """Unpack a little more, of data at an offset of the file.

    Raises:
        UnsupportedFeatureError: it would take too much memory.
        _DefectError: the data are broken.
    """
    try:
        return member.decompress(data, _OUTPUT)
    except (zlib.error, LZMAError, OSError, EOFError, ValueError) as error:
        words = str(error).lower()
        if "memory" in words:  # xz's dictionary, zstd's window
            raise UnsupportedFeatureError(
                f"{words}: unpack it by hand", format="compressed", feature="dictionary size"
            ) from error
        raise _DefectError(f"{words}, at {at:#x} or not far behind", at) from error


def _next(source: Source, at: int) -> int:
    """Pass over the zeros that may pad a member."""
    while at < source.size:
        rest = np.frombuffer(source.view(at, min(_INPUT, source.size - at)), np.uint8)
        used = np.flatnonzero(rest)
        if len(used):
            return at + int(used[0])
        at += len(rest)
    return at


@dataclass(slots=True)
class _Unpacked:
    """Writes a temporary file, with holes where there are zeros.

    Attributes:
        fd: the file.
        name: of the compressed file, for messages.
        size: bytes so far.
    """

    fd: int
    name: str
    size: int = 0
    _waiting: bytearray = field(default_factory=bytearray)
    _unchecked: int = _CHECK_SPACE_EVERY

    def write(self, piece: bytes) -> None:
        """Take the next bytes."""
        self.size += len(piece)
        if self.size > MOST:
            raise UnsupportedFeatureError(
                f"unpacks to more than {MOST >> 40} TiB: unpack it by hand if that is meant",
                path=self.name,
                format="compressed",
                feature="size",
            )
        self._waiting += piece
        if len(self._waiting) >= _OUTPUT:
            self._flush(len(self._waiting) // _HOLE)

    def finish(self) -> int:
        """Write what waits; gives the size of the file."""
        self._flush(len(self._waiting) // _HOLE)
        os.ftruncate(self.fd, self.size)
        if self._waiting:
            os.pwrite(self.fd, self._waiting, self.size - len(self._waiting))
        return self.size

    def _flush(self, blocks: int) -> None:
        """Write whole blocks, except for those that are zero."""
        start = self.size - len(self._waiting)
        body = memoryview(self._waiting)[: blocks * _HOLE]
        used = np.flatnonzero(_are_used(body))
        first, count = runs(used)
        for row, rows in zip(used[first].tolist(), count.tolist(), strict=True):
            self._check_space(rows * _HOLE)
            _write_all(self.fd, body[row * _HOLE : (row + rows) * _HOLE], start + row * _HOLE)
        body.release()
        del self._waiting[: blocks * _HOLE]

    def _check_space(self, length: int) -> None:
        """Stop before the disk is full: others need it too."""
        self._unchecked += length
        if self._unchecked < _CHECK_SPACE_EVERY:
            return
        self._unchecked = 0
        disk = os.fstatvfs(self.fd)
        if disk.f_bavail * disk.f_frsize < SPARE:
            raise OSError(
                errno.ENOSPC,
                f"no room to unpack {self.name}: {self.size:,} bytes so far (TMPDIR names another folder)",
                tempfile.gettempdir(),
            )


def _are_used(body: memoryview) -> Bools:
    """Tell for each block whether a bit is set in it."""
    words = np.frombuffer(body, np.uint64).reshape(-1, _HOLE // 8)
    used: Bools = np.bitwise_or.reduce(words, axis=1) != 0
    return used


def _write_all(fd: int, body: memoryview, offset: int) -> None:
    while body:
        done = os.pwrite(fd, body, offset)
        body, offset = body[done:], offset + done
