"""One zstd frame a page, which makedumpfile -z writes.

Bytes behind the end of a frame are ignored.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from dumpxlate.errors import CorruptPageError, MissingCodecError
from dumpxlate.pages import CodecId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zstandard import ZstdCompressor, ZstdDecompressor

    from dumpxlate.arrays import UInt8s

__all__ = ["ZstdCodec"]

_UNKNOWN = -1


class ZstdCodec:
    """zstd by zstandard; each thread has a compressor and a decompressor of its own, which are costly to make.

    Args:
        level: -7 (fast) to 22 (small); it steers encoding only.
    """

    id = CodecId.ZSTD
    name = "zstd"

    def __init__(self, level: int = 1) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise MissingCodecError(self.name, "zstandard") from error
        self._level = level
        self._library = zstandard
        self._content_size, self._error = zstandard.frame_content_size, zstandard.ZstdError
        self._has_many = {"multi_compress_to_buffer", "multi_decompress_to_buffer"} <= zstandard.backend_features
        self._mine = threading.local()

    def decode(self, data: memoryview | bytes, size: int) -> bytes:
        """Decode one page."""
        try:
            # The library trusts the frame's own size with an allocation.
            claimed = self._content_size(data)
            if claimed not in (size, _UNKNOWN):
                raise CorruptPageError(f"zstd: frame of {claimed} bytes, expected {size}", codec=self.name)
            page = self._decompressor().decompress(data, max_output_size=size)
        except self._error as error:
            raise CorruptPageError(f"zstd: {error}", codec=self.name) from error
        if len(page) != size:
            raise CorruptPageError(f"zstd: decodes to {len(page)} bytes, expected {size}", codec=self.name)
        return page

    def decode_into(self, data: memoryview, out: memoryview) -> None:
        """Decode one page into its place."""
        out[:] = self.decode(data, len(out))

    def decode_many(self, data: Sequence[memoryview], out: Sequence[memoryview]) -> bool:
        """Decode pages each into its own place; False if one of them does not decode."""
        if not self._has_many or not data:
            return not data
        sizes = np.array([len(slot) for slot in out], np.uint64)
        try:
            # The stub lacks that the result is a sequence of buffers.
            pages: Any = self._decompressor().multi_decompress_to_buffer(list(data), decompressed_sizes=sizes.data)
        except self._error:
            return False
        for page, slot in zip(pages, out, strict=True):
            slot[:] = page
        return True

    def encode(self, page: memoryview) -> bytes:
        """Encode one page."""
        return self._compressor().compress(page)

    def encode_many(self, pages: Sequence[UInt8s]) -> Sequence[Any]:
        """Encode pages; the interpreter lock is free all the while."""
        if not self._has_many or not pages:
            return [self.encode(page.data) for page in pages]
        found: Any = self._compressor().multi_compress_to_buffer([page.data for page in pages])  # see decode_many
        return list(found)

    def _compressor(self) -> ZstdCompressor:
        try:
            found: ZstdCompressor = self._mine.compressor
        except AttributeError:
            found = self._mine.compressor = self._library.ZstdCompressor(level=self._level)
        return found

    def _decompressor(self) -> ZstdDecompressor:
        try:
            found: ZstdDecompressor = self._mine.decompressor
        except AttributeError:
            found = self._mine.decompressor = self._library.ZstdDecompressor()
        return found
