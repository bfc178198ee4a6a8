"""lz4 files in the shape of ``bz2.BZ2Decompressor``: what systemd-coredump writes where it was built with LZ4.

Frames are unpacked by the library for them, which checks their checksums; so are the frames that are skipped. The
older layout, which ``lz4 -l`` and the build of Linux write, is a magic number and blocks of 8 MiB, each behind its
packed length; it ends where another frame begins, or with the file.

Sources: lz4 doc/lz4_Frame_format.md; checked against files that lz4 1.9.4 wrote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dumpxlate.errors import MissingCodecError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Lz4"]

_LEGACY = b"\x02\x21\x4c\x18"
_BLOCK = 8 << 20
_LONGEST_PACKED = _BLOCK + _BLOCK // 255 + 16
"""Bytes that a block may have packed: bytes that do not shrink take one of 255 more."""


class Lz4:
    """One frame of an lz4 file.

    Raises:
        MissingCodecError: the library is not installed.
    """

    def __init__(self) -> None:
        try:
            from lz4 import block, frame
        except ImportError as error:
            raise MissingCodecError("lz4", "lz4") from error
        self._makers: tuple[Callable[[], Any], Callable[[], Any]] = (
            frame.LZ4FrameDecompressor,
            lambda: _Legacy(block.decompress, block.LZ4BlockError),
        )
        self._inner: Any = None
        self._head = b""
        self.needs_input = True

    @property
    def eof(self) -> bool:
        """Whether the frame is complete."""
        return self._inner is not None and bool(self._inner.eof)

    @property
    def unused_data(self) -> bytes:
        """Input behind the end."""
        return bytes(self._inner.unused_data or b"") if self.eof else b""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Unpack more, ``max_length`` bytes at most, or a block of the older layout. No data: the file ends here.

        Raises:
            ValueError: the data are broken.
        """
        if self._inner is None:
            self._head += data
            if len(self._head) < len(_LEGACY):
                return b""
            self._inner = self._makers[self._head.startswith(_LEGACY)]()
            data, self._head = self._head, b""
        try:
            out: bytes = self._inner.decompress(data, max_length)
        except RuntimeError as error:  # of the frame's library
            raise ValueError(str(error).rpartition("ERROR_")[2].replace("_", " ")) from error
        self.needs_input = bool(self._inner.needs_input)
        return out


class _Legacy:
    """A frame of the older layout.

    Args:
        unpack: gives a block of so many bytes at most.
        error: what that raises.
    """

    def __init__(self, unpack: Callable[..., bytes], error: type[Exception]) -> None:
        self._unpack, self._error = unpack, error
        self._data = bytearray()
        self._started = False
        self.eof = False
        self.needs_input = True

    @property
    def unused_data(self) -> bytes:
        return bytes(self._data)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        ends = not data and self.needs_input
        self._data += data
        if not self._started and len(self._data) >= len(_LEGACY):
            self._started = True
            del self._data[: len(_LEGACY)]
        piece = self._block() if self._started else b""
        size = self._size()
        self.eof = size > _LONGEST_PACKED or size == 0 or (ends and not any(self._data))
        self.needs_input = not self.eof and len(self._data) < 4 + size
        return piece

    def _size(self) -> int:
        """Give what the next block's length is, or the magic of another frame, or padding; -1 for nothing yet."""
        return int.from_bytes(self._data[:4], "little") if self._started and len(self._data) >= 4 else -1

    def _block(self) -> bytes:
        """Unpack one block; nothing where it is not complete, or none follows."""
        size = self._size()
        if not 0 < size <= _LONGEST_PACKED or len(self._data) < 4 + size:
            return b""
        try:
            piece = self._unpack(bytes(self._data[4 : 4 + size]), uncompressed_size=_BLOCK)
        except self._error:
            raise ValueError("a block that is no lz4") from None  # in the message is what it unpacks to
        del self._data[: 4 + size]
        return piece
