"""zlib streams (RFC 1950), the default of makedumpfile and QEMU.

libdeflate encodes pages of a Linux guest about twice as fast as zlib at its level 1 and up to five per cent larger (at
level 2 a third slower, and smaller than zlib's), and decodes them twice as fast; without it Python's own zlib does the
work. ISA-L would encode a seventh faster, but now and then a page comes out otherwise than the last time: outputs would
not be the same byte for byte.

Bytes behind the end of a stream are ignored, as by the zlib call that every other reader of such dumps makes.
"""

from __future__ import annotations

import contextlib
import zlib
from itertools import repeat
from typing import TYPE_CHECKING

from dumpxlate.errors import CorruptPageError
from dumpxlate.pages import CodecId

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dumpxlate.arrays import UInt8s

__all__ = ["ZlibCodec"]


class ZlibCodec:
    """zlib by libdeflate, or by Python's own library.

    Args:
        level: 1 (fast) to 9 (small); it steers encoding only.
    """

    id = CodecId.ZLIB
    name = "zlib"

    def __init__(self, level: int = 1) -> None:
        self._level = level
        self._compress: Callable[..., bytes | bytearray] = zlib.compress
        self._decompress: Callable[[memoryview | bytes, int], bytes | bytearray] = _inflate
        self._error: type[Exception] = zlib.error
        with contextlib.suppress(ImportError):
            # Held to 0.9 by pyproject: earlier releases keep the interpreter lock.
            from deflate import DeflateError, zlib_compress, zlib_decompress

            self._compress, self._decompress, self._error = zlib_compress, zlib_decompress, DeflateError

    def decode(self, data: memoryview | bytes, size: int) -> bytes:
        """Decode one page."""
        return bytes(self._decoded(data, size))

    def decode_into(self, data: memoryview, out: memoryview) -> None:
        """Decode one page into its place."""
        out[:] = self._decoded(data, len(out))

    def decode_many(self, data: Sequence[memoryview], out: Sequence[memoryview]) -> bool:
        """Decode pages each into its own place; False if one of them does not decode."""
        decompress = self._decompress
        try:
            for piece, slot in zip(data, out, strict=True):
                slot[:] = decompress(piece, len(slot))
        except (self._error, ValueError):  # the latter where a page has another size than its place
            return False
        return True

    def _decoded(self, data: memoryview | bytes, size: int) -> bytes | bytearray:
        try:
            page = self._decompress(data, size)
        except self._error as error:
            raise CorruptPageError(f"zlib: {error}", codec=self.name) from error
        if len(page) != size:
            raise CorruptPageError(f"zlib: decodes to {len(page)} bytes, expected {size}", codec=self.name)
        return page

    def encode(self, page: memoryview) -> bytes:
        """Encode one page."""
        return bytes(self._compress(page, self._level))

    def encode_many(self, pages: Sequence[UInt8s]) -> Sequence[bytes | bytearray]:
        """Encode pages."""
        return list(map(self._compress, pages, repeat(self._level)))


def _inflate(data: memoryview | bytes, size: int) -> bytes:
    """Decode a stream of at most ``size`` bytes; one more is let out to tell a longer stream from a fitting one."""
    inflater = zlib.decompressobj()
    page = inflater.decompress(data, size + 1)
    if not inflater.eof:
        raise zlib.error("incomplete or too long")
    return page
