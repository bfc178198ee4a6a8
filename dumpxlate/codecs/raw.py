"""Pages stored as they are."""

from __future__ import annotations

from dumpxlate.errors import CorruptPageError
from dumpxlate.pages import CodecId

__all__ = ["RawCodec"]


class RawCodec:
    """Copies."""

    id = CodecId.RAW
    name = "raw"

    def decode_into(self, data: memoryview, out: memoryview) -> None:
        """Copy one page."""
        if len(data) != len(out):
            raise CorruptPageError(f"raw: {len(data)} bytes, expected {len(out)}", codec=self.name)
        out[:] = data

    def encode(self, page: memoryview) -> bytes:
        """Copy one page."""
        return bytes(page)
