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
_WINDOW = 4 << 20
"""Bytes of the stream that are brought at once: makedumpfile's records have 64 KiB, QEMU's less."""

_AT_ONCE = _WINDOW // 2
_MOST = 1 << 14
"""Records that are given at once: they may be as short as a byte."""


def flattened_records(pipe: Pipe) -> Iterator[list[tuple[int, memoryview]]]:
    """Give what the records hold as it comes, a few MiB at once; what follows the end marker is passed over.

    Raises:
        UnsupportedFeatureError: another type or version of the container.
        CorruptDumpError: a record that cannot be right, or no end marker.
    """
    check_header(BytesSource(pipe.take(MAX_SIZE_MDF_HEADER), pipe.name))
    found: list[tuple[int, memoryview]] = []
    size = 0
    for offset, data in _parts(pipe):
        found.append((offset, data))
        size += len(data)
        if size >= _AT_ONCE or len(found) == _MOST:
            yield found
            found, size = [], 0
    yield found
    pipe.drain()


def _parts(pipe: Pipe) -> Iterator[tuple[int, memoryview]]:
    """Give what each record holds, in parts where it does not lie in one window."""
    window = _next_window(pipe, memoryview(b""))
    while record := _header(pipe, window):
        (offset, left), window = record, window[_HEAD:]
        while left:
            window = window or _next_window(pipe, window)
            if not window:
                raise TruncatedDumpError(
                    "flattened record", path=pipe.name, offset=pipe.position, wanted=left, available=0
                )
            part, window = window[:left], window[left:]
            yield offset, part
            offset, left = offset + len(part), left - len(part)
        if len(window) < _HEAD:
            window = _next_window(pipe, window)


def _next_window(pipe: Pipe, rest: memoryview) -> memoryview:
    """Bring what follows some bytes, and give both."""
    body = np.empty(_WINDOW, np.uint8).data
    body[: len(rest)] = rest
    return body[: len(rest) + pipe.fill(body[len(rest) :])]


def _header(pipe: Pipe, window: memoryview) -> tuple[int, int] | None:
    """Give offset and size of the record that a window begins with; None for the end marker."""
    at = pipe.position - len(window)
    if len(window) < _HEAD:
        raise TruncatedDumpError(
            "flattened record or end marker", path=pipe.name, offset=at, wanted=_HEAD, available=len(window)
        )
    header = parse(MakedumpfileDataHeader, window, 0, ">")
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
