"""LKCD's run-length code.

A byte other than zero is itself. Zero begins an escape: ``00 00`` is one zero, ``00 n v`` is *n* + 1 times the byte
*v*. (So the dumper writes it, dump_rle.c of LKCD, and crash reads it; libkdumpfile takes *n* for the length and
decodes no page.)
"""

from __future__ import annotations

import re

from dumpxlate.errors import CorruptPageError
from dumpxlate.pages import CodecId

__all__ = ["RleCodec"]

_ESCAPE = re.compile(rb"\x00(?:\x00|([^\x00])(.))", re.DOTALL)
_RUN = re.compile(rb"\x00{1,256}|([^\x00])\1{2,255}", re.DOTALL)


class RleCodec:
    """Run-length code in Python: rare, and short pages."""

    id = CodecId.RLE
    name = "rle"

    def decode(self, data: memoryview | bytes, size: int) -> bytes:
        """Decode one page."""
        page = bytearray(size)
        self.decode_into(memoryview(data), memoryview(page))
        return bytes(page)

    def decode_into(self, data: memoryview, out: memoryview) -> None:
        """Decode one page into its place."""
        at = end = 0
        try:
            for escape in _ESCAPE.finditer(data):
                at = _put(out, at, data[end : escape.start()])
                at = _put(out, at, escape[2] * (escape[1][0] + 1) if escape[1] else b"\0")
                end = escape.end()
            at = _put(out, at, data[end:])
        except ValueError as error:
            raise CorruptPageError(f"rle: decodes to more than {len(out)} bytes", codec=self.name) from error
        if at != len(out):
            raise CorruptPageError(f"rle: decodes to {at} bytes, expected {len(out)}", codec=self.name)
        if 0 in data[end:]:
            raise CorruptPageError("rle: ends within an escape", codec=self.name)

    def encode(self, page: memoryview) -> bytes:
        """Encode one page."""
        return _RUN.sub(_pack, page)


def _put(out: memoryview, at: int, piece: bytes | memoryview) -> int:
    """Write a piece; a ValueError if it does not fit."""
    end = at + len(piece)
    out[at:end] = piece
    return end


def _pack(run: re.Match[bytes]) -> bytes:
    length = run.end() - run.start()
    return b"\0\0" if length == 1 else bytes([0, length - 1, run[0][0]])
