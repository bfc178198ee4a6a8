"""lzop files in the shape of ``bz2.BZ2Decompressor``: what ``save_image_format = "lzop"`` makes libvirt write.

A header, then blocks of at most 256 KiB, each with its two lengths, checksums as the header's flags say, and lzo1x
data, or the bytes as they are where they would not shrink; a length of zero ends the file.

Source: lzop 1.04, src/lzop.h and doc/lzop.man; checked against files that lzop wrote.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

from dumpxlate.errors import MissingCodecError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Lzop"]

_MAGIC = 9
_ADLER_PLAIN, _ADLER_PACKED, _EXTRA, _CRC_PLAIN, _CRC_PACKED, _FILTER = 0x1, 0x2, 0x40, 0x100, 0x200, 0x800
_OLD = 0x0940
"""Versions before this have a shorter header."""

_LONGEST_BLOCK = 1 << 20
_LZO1X = (1, 2, 3)


class Lzop:
    """One lzop file.

    Raises:
        MissingCodecError: no library for lzo is installed.
    """

    def __init__(self) -> None:
        try:
            from lzallright import LZOCompressor, LZOError
        except ImportError as error:
            raise MissingCodecError("lzo", "lzallright") from error
        self._unpack: Callable[[bytes, int], bytes] = LZOCompressor.decompress
        self._error = LZOError
        self._data = bytearray()
        self._flags = -1
        self.eof = False
        self.needs_input = True

    @property
    def unused_data(self) -> bytes:
        """Input behind the end."""
        return bytes(self._data) if self.eof else b""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Unpack more, about ``max_length`` bytes at most.

        Raises:
            ValueError: the data are broken.
        """
        self._data += data
        parts: list[bytes] = []
        size = 0
        while not self.eof and size < max_length:
            piece = self._block() if self._flags >= 0 else self._header()
            if piece is None:
                self.needs_input = True
                return b"".join(parts)
            parts.append(piece)
            size += len(piece)
        self.needs_input = False
        return b"".join(parts)

    def _header(self) -> bytes | None:
        """Take the header, which gives no bytes; None where it is not complete."""
        try:
            (version,) = struct.unpack_from(">H", self._data, _MAGIC)
            new = version >= _OLD
            method, flags = struct.unpack_from(">BxI" if new else ">BI", self._data, _MAGIC + (6 if new else 4))
            at = _MAGIC + (12 if new else 9) + (4 if flags & _FILTER else 0) + (12 if new else 8)
            at += 1 + self._data[at] + 4
            if flags & _EXTRA:
                at += 8 + int(struct.unpack_from(">I", self._data, at)[0])
        except (struct.error, IndexError):
            return None
        if method not in _LZO1X:
            raise ValueError(f"method {method}, expected lzo1x (1 to 3)")
        if at > _LONGEST_BLOCK:
            raise ValueError(f"a header of {at} bytes")
        if len(self._data) < at:
            return None
        self._flags = flags
        del self._data[:at]
        return b""

    def _block(self) -> bytes | None:
        """Unpack one block; None where it is not complete."""
        if len(self._data) < 4:
            return None
        size = int.from_bytes(self._data[:4], "big")
        if not size:
            self.eof = True
            del self._data[:4]
            return b""
        packed = int.from_bytes(self._data[4:8], "big")
        if not (packed <= size <= _LONGEST_BLOCK):
            raise ValueError(f"a block of {packed} bytes that are {size} unpacked")
        plain_sums = [flag for flag in (_ADLER_PLAIN, _CRC_PLAIN) if self._flags & flag]
        packed_sums = [flag for flag in (_ADLER_PACKED, _CRC_PACKED) if self._flags & flag and packed < size]
        start = 8 + 4 * (len(plain_sums) + len(packed_sums))
        if len(self._data) < start + packed:
            return None
        data = bytes(self._data[start : start + packed])
        sums = struct.unpack_from(f">{len(plain_sums)}I", self._data, 8)
        del self._data[: start + packed]
        return self._checked(
            data if packed == size else self._lzo(data, size), size, dict(zip(plain_sums, sums, strict=True))
        )

    def _lzo(self, data: bytes, size: int) -> bytes:
        try:
            return self._unpack(data, size)
        except self._error as error:
            raise ValueError(f"a block that is no lzo1x: {error.args[0]}") from None  # behind it are the bytes

    def _checked(self, piece: bytes, size: int, sums: dict[int, int]) -> bytes:
        """Give a block if it is what its head says."""
        functions = {_ADLER_PLAIN: zlib.adler32, _CRC_PLAIN: zlib.crc32}
        if len(piece) != size or any(functions[flag](piece) != value for flag, value in sums.items()):
            raise ValueError("a block with a wrong length or checksum")
        return piece
