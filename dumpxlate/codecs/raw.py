"""Pages stored as they are."""

from __future__ import annotations

from dumpxlate.errors import CorruptPageError
from dumpxlate.pages import CodecId

__all__ = ["RawCodec"]


class RawCodec:
    """Copies."""

    id = CodecId.RAW
    name = "raw"

    def decode(self, data: memoryview | bytes, size: int) -> bytes:
        """Copy one page."""
        if len(data) != size:
            raise CorruptPageError(f"raw: {len(data)} bytes, expected {size}", codec=self.name)
        return bytes(data)

    def decode_into(self, data: memoryview, out: memoryview) -> None:
        """Copy one page into its place."""
        if len(data) != len(out):
            raise CorruptPageError(f"raw: {len(data)} bytes, expected {len(out)}", codec=self.name)
        out[:] = data

    def encode(self, page: memoryview) -> bytes:
        """Copy one page."""
        return bytes(page)
