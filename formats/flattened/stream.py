"""Reads flattened files in one pass: the bytes of each record, and where in the file inside they belong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.errors import CorruptDumpError, TruncatedDumpError
from dumpxlate.formats.flattened.layout import (
    END_FLAG_FLAT_HEADER,
    MAX_OFFSET,
    MAX_SIZE_MDF_HEADER,
    MakedumpfileDataHeader,
)
from dumpxlate.formats.flattened.reader import check_header
from dumpxlate.io.source import BytesSource
from dumpxlate.structs import parse, size_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dumpxlate.io.pipe import Pipe

__all__ = ["flattened_records"]

_HEAD = size_of(MakedumpfileDataHeader)
_AT_ONCE = 4 << 20
_MOST = 1 << 14
"""Records at once: they may be as short as a byte."""


def flattened_records(pipe: Pipe) -> Iterator[list[tuple[int, memoryview]]]:
    """Give what the records hold as it comes, a few MiB at once; what follows the end marker is passed over.

    Raises:
        UnsupportedFeatureError: another type or version of the container.
        CorruptDumpError: a record that cannot be right, or no end marker.
    """
    check_header(BytesSource(pipe.take(MAX_SIZE_MDF_HEADER), pipe.name))
    found: list[tuple[int, memoryview]] = []
    buffer = memoryview(b"")
    while record := _header(pipe):
        offset, left = record
        while left:
            if not buffer or len(found) == _MOST:
                yield found
                found, buffer = [], buffer or np.empty(_AT_ONCE, np.uint8).data
            part, buffer = buffer[:left], buffer[left:]
            got = pipe.fill(part)
            if got < len(part):
                raise TruncatedDumpError(
                    "flattened record", path=pipe.name, offset=pipe.position - got, wanted=left, available=got
                )
            found.append((offset, part))
            offset, left = offset + got, left - got
    yield found
    pipe.drain()


def _header(pipe: Pipe) -> tuple[int, int] | None:
    """Give offset and size of the next record; None for the end marker."""
    at, head = pipe.position, pipe.take(_HEAD)
    if len(head) < _HEAD:
        raise TruncatedDumpError(
            "flattened record or end marker", path=pipe.name, offset=at, wanted=_HEAD, available=len(head)
        )
    header = parse(MakedumpfileDataHeader, head, 0, ">")
    if header.offset == header.buf_size == END_FLAG_FLAT_HEADER:
        return None
    if header.offset < 0 or not 0 < header.buf_size <= MAX_OFFSET - header.offset:
        raise CorruptDumpError(
            f"offset {header.offset:#x}, size {header.buf_size:#x}: expected an offset from 0 to {MAX_OFFSET:#x} and a "
            "positive size",
            path=pipe.name,
            offset=at,
            what="flattened record",
        )
    return header.offset, header.buf_size
