"""Raw lzo1x blocks without any header, which makedumpfile -l and QEMU's kdump-lzo write.

lzallright decodes: safe Rust, permissive licence. It encodes small and slowly; where python-lzo is installed (the
``lzo`` extra; it is GPL, so it is not brought along) that encodes ten times as fast and a sixth to a fifth larger.
"""

from __future__ import annotations

from importlib import import_module
from itertools import repeat
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.errors import CorruptPageError, MissingCodecError
from dumpxlate.pages import CodecId

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dumpxlate.arrays import UInt8s

__all__ = ["LzoCodec"]

_LEVEL, _WITH_HEADER = 1, False
"""What python-lzo's encoder is asked for."""


class LzoCodec:
    """lzo1x by lzallright, encoded by python-lzo where it is installed."""

    id = CodecId.LZO
    name = "lzo"

    def __init__(self) -> None:
        try:
            from lzallright import LZOCompressor, LZOError
        except ImportError as error:
            raise MissingCodecError(self.name, "lzallright") from error
        self._decompress, self._error, self._compressor = LZOCompressor.decompress, LZOError, LZOCompressor
        self._fast = _fast_encoder()

    def decode(self, data: memoryview | bytes, size: int) -> bytes:
        """Decode one page."""
        # The library lets its output grow, up to 255 bytes for one of input: so the input must be a page's.
        if len(data) > size and len(data) > _longest(size):
            raise CorruptPageError(f"lzo: {len(data)} bytes, too many for a page of {size}", codec=self.name)
        try:
            page: bytes = self._decompress(data, size)
        except self._error as error:
            # What stands behind the first argument are bytes of the page.
            raise CorruptPageError(f"lzo: {error.args[0]}", codec=self.name) from None
        if len(page) != size:
            raise CorruptPageError(f"lzo: decodes to {len(page)} bytes, expected {size}", codec=self.name)
        return page

    def decode_into(self, data: memoryview, out: memoryview) -> None:
        """Decode one page into its place."""
        out[:] = self.decode(data, len(out))

    def decode_many(self, data: Sequence[memoryview], out: Sequence[memoryview]) -> bool:
        """Decode pages each into its own place; False if one of them does not decode."""
        decompress = self._decompress
        try:
            for piece, slot in zip(data, out, strict=True):
                size = len(slot)
                if len(piece) > size and len(piece) > _longest(size):
                    return False
                slot[:] = decompress(piece, size)
        except (self._error, ValueError):  # the latter where a page has another size than its place
            return False
        return True

    def encode(self, page: memoryview) -> bytes:
        """Encode one page."""
        return self.encode_many([np.frombuffer(page, np.uint8)])[0]

    def encode_many(self, pages: Sequence[UInt8s]) -> Sequence[bytes]:
        """Encode pages."""
        if self._fast:
            return list(map(self._fast, pages, repeat(_LEVEL), repeat(_WITH_HEADER)))
        # A compressor for each page: one that threads share makes them wait for each other.
        return [self._compressor().compress(page.data) for page in pages]


def _longest(size: int) -> int:
    """Bytes of the worst lzo1x block of ``size`` bytes, as lzo's own documentation bounds it, and its end mark."""
    return size + size // 16 + 67


def _fast_encoder() -> Callable[[UInt8s, int, bool], bytes] | None:
    """Find python-lzo's encoder, which takes bytes and arrays as they are, but no memoryview."""
    try:
        compress: Callable[[UInt8s, int, bool], bytes] = import_module("lzo").compress
    except (ImportError, AttributeError):  # any folder called lzo on the path is a module without content
        return None
    return compress
