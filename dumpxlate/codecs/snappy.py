"""Raw snappy blocks, their length in front, which makedumpfile -p and QEMU's kdump-snappy write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dumpxlate.errors import CorruptPageError, MissingCodecError
from dumpxlate.pages import CodecId

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dumpxlate.arrays import UInt8s

__all__ = ["SnappyCodec"]


class SnappyCodec:
    """Snappy by cramjam."""

    id = CodecId.SNAPPY
    name = "snappy"

    def __init__(self) -> None:
        try:
            from cramjam import DecompressionError, snappy
        except ImportError as error:
            raise MissingCodecError(self.name, "cramjam") from error
        self._compress: Callable[..., Any] = snappy.compress_raw
        self._decompress = snappy.decompress_raw_into
        self._error = DecompressionError

    def decode(self, data: memoryview | bytes, size: int) -> bytes:
        """Decode one page."""
        page = bytearray(size)
        self.decode_into(memoryview(data), memoryview(page))
        return bytes(page)

    def decode_into(self, data: memoryview, out: memoryview) -> None:
        """Decode one page into its place."""
        try:
            written = self._decompress(data, out)
        except self._error as error:
            raise CorruptPageError(f"snappy: {error}", codec=self.name) from error
        if written != len(out):
            raise CorruptPageError(f"snappy: decodes to {written} bytes, expected {len(out)}", codec=self.name)

    def decode_many(self, data: Sequence[memoryview], out: Sequence[memoryview]) -> bool:
        """Decode pages each into its own place; False if one of them does not decode."""
        try:
            written = list(map(self._decompress, data, out))
        except self._error:
            return False
        return written == list(map(len, out))

    def encode(self, page: memoryview) -> bytes:
        """Encode one page."""
        return bytes(self._compress(page))

    def encode_many(self, pages: Sequence[UInt8s]) -> Sequence[Any]:
        """Encode pages."""
        return list(map(self._compress, pages))
