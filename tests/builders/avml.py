"""AVML version 2: LiME's record header, snappy frames, and the length of the frames behind them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .codecs import snappy_frames
from .guest import Guest
from .lime import LIME, ranges, record_header
from .packing import cut

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["AVML", "build"]

AVML = 0x4C4D5641
BLOCK = 1 << 24


def build(
    source: Guest | Mapping[int, bytes] | Iterable[tuple[int, bytes]],
    *,
    most: int = BLOCK,
    keep_zero: bool = False,
    raw_chunks: bool = False,
    chunk: int = 65536,
    plain: Iterable[int] = (),
    headers: Mapping[int, Mapping[str, int]] | None = None,
    trailers: Mapping[int, int] | None = None,
    corrupt: Mapping[int, int] | None = None,
    padding: bytes = b"",
    truncate: int | None = None,
) -> bytes:
    """An AVML file.

    Args:
        source: a guest, pages, or (first address, bytes) ranges.
        most: bytes of memory in one block.
        keep_zero: also write blocks of zeros, which AVML leaves out.
        raw_chunks: snappy chunks that are not compressed.
        chunk: bytes of memory in one snappy chunk.
        plain: numbers of blocks written as LiME version 1 records (a mixed file).
        headers: number of a block -> fields of its header that shall lie.
        trailers: number of a block -> length that its trailer shall claim.
        corrupt: number of a block -> number of the chunk in it whose checksum is wrong.
        padding: a padding chunk (0xfe) with this content is put behind the frames of every block.
        truncate: keep that many bytes.
    """
    found = ranges(source, most=most) if isinstance(source, Guest | Mapping) else list(source)
    plain = set(plain)
    out = []
    for number, (start, data) in enumerate(item for item in found if keep_zero or any(item[1])):
        lies = (headers or {}).get(number)
        if number in plain:
            out += [record_header(LIME, 1, start, len(data), lies), data]
            continue
        frames = snappy_frames(data, chunk=chunk, raw=raw_chunks, corrupt=(corrupt or {}).get(number))
        frames += struct.pack("<I", len(padding) << 8 | 0xFE) + padding if padding else b""
        trailer = struct.pack("<Q", (trailers or {}).get(number, len(frames)))
        out += [record_header(AVML, 2, start, len(data), lies), frames, trailer]
    return cut(b"".join(out), truncate)
