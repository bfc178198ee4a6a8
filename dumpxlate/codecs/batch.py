"""What is done to whole batches: decode, gather, find zeros, encode; and reading single pages through a store.

Each function takes a batch and gives one, never changes the one it got, and hands it on as it is where there is
nothing to do. Tables may come from hostile files: a stored row whose bytes are not inside the body becomes BAD, as
does a page that does not decode; neither is an exception, and nothing outside the body is read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dumpxlate.codecs import BatchDecoder, BatchEncoder, codec_for
from dumpxlate.errors import CorruptPageError
from dumpxlate.pages import BAD, BATCH_BYTES, LAST_CODEC, RAW, STORED, ZERO, CodecId, PageBatch, PageTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dumpxlate.arrays import Bools, Int32s, Int64s, UInt8s
    from dumpxlate.codecs import Codec
    from dumpxlate.pages import PageStore

__all__ = ["decode", "divide", "encode", "gather", "mark_zero", "peek", "read_pages", "substitute"]

_WORD = 8


def decode(batch: PageBatch, page_size: int) -> PageBatch:
    """Make every stored page raw.

    Args:
        batch: pages in any mixture of codecs.
        page_size: bytes a page.

    Returns:
        The batch as it is if its pages are raw already; else the pages in row order in a new body, where the place
        of a page that did not decode is zero.

    Raises:
        MissingCodecError: the library of a codec is not installed.
    """
    batch = _bounded(batch, page_size)
    table = batch.table
    rows = np.flatnonzero(table.state == STORED)
    codec = table.codec[rows]
    if not codec.any():
        return batch
    body = np.empty((len(rows), page_size), np.uint8)
    raw = codec == RAW
    if raw.any():
        body[raw] = _pages(batch.body, table.offset[rows[raw]], page_size)
    failed = np.zeros(len(rows), bool)
    for id in np.unique(codec[~raw]).tolist():
        slots = np.flatnonzero(codec == id)
        failed[slots] = _decode_rows(codec_for(CodecId(id)), batch, rows[slots], body, slots)
    body[failed] = 0
    return PageBatch(_drop(_packed_raw(table, rows, page_size), rows[failed]), body.reshape(-1).data)


def divide(batch: PageBatch, page_size: int, unit: int) -> PageBatch:
    """Cut raw pages into smaller ones of ``unit`` bytes, which divides the page size; nothing is copied."""
    parts, table = page_size // unit, batch.table
    if parts == 1:
        return batch
    number = np.tile(np.arange(parts, dtype=np.int64), len(table))
    state, offset = np.repeat(table.state, parts), np.repeat(table.offset, parts)
    stored = state == STORED
    cut = PageTable(
        np.repeat(table.pfn * parts, parts) + number,
        state,
        np.repeat(table.codec, parts),
        np.where(stored, offset + number * unit, -1),
        np.where(stored, np.int32(unit), np.int32(0)),
    )
    return replace(batch, table=cut)


def gather(batch: PageBatch, page_size: int) -> PageBatch:
    """Bring all stored pages, which must be raw, together in row order.

    Returns:
        The batch as it is if they lie so already; else a copy of the pages in a new body.
    """
    batch = _bounded(batch, page_size)
    table = batch.table
    rows = np.flatnonzero(table.state == STORED)
    if table.codec[rows].any():
        raise ValueError("gather: the batch holds encoded pages")
    offset = table.offset[rows]
    if _is_span(offset, page_size):
        return batch
    return PageBatch(_packed_raw(table, rows, page_size), _copies(batch.body, offset, page_size).reshape(-1).data)


def mark_zero(batch: PageBatch, page_size: int) -> PageBatch:
    """Turn raw pages without a set bit into ZERO pages; encoded ones stay as they are."""
    batch = _bounded(batch, page_size)
    table = batch.table
    rows = np.flatnonzero((table.state == STORED) & (table.codec == RAW))
    zero = rows[_are_zero(batch.body, table.offset[rows], page_size)]
    return replace(batch, table=_drop(table, zero, ZERO)) if len(zero) else batch


def encode(batch: PageBatch, codec: Codec, page_size: int) -> PageBatch:
    """Encode the raw pages; a page that would not shrink stays raw, and encoded ones stay as they are.

    Returns:
        The stored pages in row order, packed, in a new body.
    """
    batch = _bounded(batch, page_size)
    table, body = batch.table, np.frombuffer(batch.body, np.uint8)
    rows = np.flatnonzero(table.state == STORED)
    codecs, start = table.codec[rows], table.offset[rows]
    ends = start + table.size[rows]
    pieces: list[Any] = [body[at:end] for at, end in zip(start.tolist(), ends.tolist(), strict=True)]
    raw = np.flatnonzero(codecs == RAW).tolist()
    for number, data in zip(raw, _encoded(codec, [pieces[number] for number in raw]), strict=True):
        if len(data) < page_size:
            pieces[number] = data
    size = table.size.copy()
    size[rows] = np.fromiter(map(len, pieces), np.int32, len(pieces))
    codecs[(codecs == RAW) & (size[rows] < page_size)] = codec.id
    return PageBatch(_packed(table, rows, codecs, size), memoryview(b"".join(pieces)))


def peek(batch: PageBatch, at: int, length: int, page_size: int) -> tuple[Int64s, UInt8s]:
    """Copy a few bytes at one place of every page that is stored raw; others are left out.

    Args:
        batch: the pages.
        at: where in each page they begin.
        length: how many; they end inside the page.
        page_size: bytes a page.

    Returns:
        Pfns of the pages, shape (n,), and the bytes, shape (n, length).
    """
    table = _bounded(batch, page_size).table
    rows = table.where((table.state == STORED) & (table.codec == RAW))
    return rows.pfn, _copies(batch.body, rows.offset + at, length)


def read_pages(store: PageStore, pfn: Int64s, out: UInt8s) -> UInt8s:
    """Read pages in any order, the same one twice if asked.

    Args:
        store: where from.
        pfn: which, shape (n,).
        out: filled with their content, zero where there is none; shape (n, page size).

    Returns:
        The PageState of each, shape (n,): STORED where its content came from the dump's bytes.
    """
    state = np.empty(len(pfn), np.uint8)
    step = max(BATCH_BYTES // store.page_size, 1)
    for first in range(0, len(pfn), step):
        part = slice(first, first + step)
        unique, which = np.unique(pfn[part], return_inverse=True)  # stores want their pfns ascending
        batch = decode(store.fetch(store.locate(unique)), store.page_size)
        state[part] = _put(batch, which, out[part])
    return state


def _put(batch: PageBatch, which: Int64s, out: UInt8s) -> UInt8s:
    """Copy pages of a batch, which are raw, to where they were asked for; gives the state of each."""
    table = batch.table
    stored = np.flatnonzero(table.state == STORED)
    state = table.state[which]
    if len(stored):
        row = np.zeros(len(table), np.int64)
        row[stored] = np.arange(len(stored))
        # With "clip" numpy writes to the place itself; all rows are there.
        np.take(_pages(batch.body, table.offset[stored], out.shape[1]), row[which], axis=0, out=out, mode="clip")
    out[state != STORED] = 0
    return state


def substitute(batch: PageBatch, rows: Int64s, pages: UInt8s) -> PageBatch:
    """Put other pages in the place of some; the rest stay as they are encoded.

    Args:
        batch: pages in any mixture of codecs.
        rows: which rows get a raw page.
        pages: their bytes, shape (len(rows), page size).

    Returns:
        The stored pages in a new body: first the rest, in row order, then those that were put in.
    """
    page_size = pages.shape[1]
    batch = _bounded(batch, page_size)
    table = batch.table
    oversized = np.flatnonzero((table.state == STORED) & (table.size > 2 * page_size))  # no codec makes such a page
    table = _drop(_drop(table, oversized), rows, ZERO)
    kept = np.flatnonzero(table.state == STORED)
    spans = zip(*(column.tolist() for column in table.spans()), strict=True)
    body = b"".join([*(batch.body[at : at + length] for at, length in spans), pages.reshape(-1).data])
    table = _packed(table, kept, table.codec[kept], table.size)
    state, codec, offset, size = table.state.copy(), table.codec.copy(), table.offset.copy(), table.size.copy()
    state[rows], codec[rows], size[rows] = STORED, RAW, page_size
    offset[rows] = len(body) - pages.size + np.arange(len(rows), dtype=np.int64) * page_size
    return PageBatch(PageTable(table.pfn, state, codec, offset, size), memoryview(body))


def _encoded(codec: Codec, pages: Sequence[UInt8s]) -> Sequence[Any]:
    """Encode pages, in one call where the codec offers that."""
    if isinstance(codec, BatchEncoder):
        return codec.encode_many(pages)
    return [codec.encode(page.data) for page in pages]


def _decode_rows(codec: Codec, batch: PageBatch, rows: Int64s, body: UInt8s, slots: Int64s) -> Bools:
    """Decode rows each into its slot of the new body, and tell which failed."""
    offset, size = batch.table.offset[rows], batch.table.size[rows]
    source = batch.body
    data = [source[at : at + length] for at, length in zip(offset.tolist(), size.tolist(), strict=True)]
    page_size = body.shape[1]
    target = body.reshape(-1).data
    out = [target[at : at + page_size] for at in (slots * page_size).tolist()]
    failed = np.zeros(len(rows), bool)
    if isinstance(codec, BatchDecoder) and codec.decode_many(data, out):
        return failed
    for number, (piece, place) in enumerate(zip(data, out, strict=True)):
        try:
            codec.decode_into(piece, place)
        except CorruptPageError:
            failed[number] = True
    return failed


def _bounded(batch: PageBatch, page_size: int) -> PageBatch:
    """Turn stored rows that cannot be right into BAD ones: bytes outside the body, no such codec, an odd raw size."""
    table = batch.table
    end = table.offset + table.size
    wrong = (table.offset < 0) | (end <= table.offset) | (end > len(batch.body))
    wrong |= (table.codec > LAST_CODEC) | ((table.codec == RAW) & (table.size != page_size))
    wrong &= table.state == STORED
    return replace(batch, table=_drop(table, np.flatnonzero(wrong))) if wrong.any() else batch


def _drop(table: PageTable, rows: Int64s, state: int = BAD) -> PageTable:
    """Take the bytes from some rows and say why."""
    states, offset, size = table.state.copy(), table.offset.copy(), table.size.copy()
    states[rows], offset[rows], size[rows] = state, -1, 0
    return replace(table, state=states, offset=offset, size=size)


def _packed(table: PageTable, rows: Int64s, codecs: UInt8s, size: Int32s) -> PageTable:
    """Point stored rows into a body that holds them one after the other."""
    codec, offset = table.codec.copy(), table.offset.copy()
    codec[rows] = codecs
    ends = np.cumsum(size[rows], dtype=np.int64)
    offset[rows] = ends - size[rows]
    return replace(table, codec=codec, offset=offset, size=size)


def _packed_raw(table: PageTable, rows: Int64s, page_size: int) -> PageTable:
    """Point stored rows into a body that holds them raw, one after the other."""
    size = table.size.copy()
    size[rows] = page_size
    return _packed(table, rows, np.zeros(len(rows), np.uint8), size)


def _is_span(offset: Int64s, page_size: int) -> bool:
    return bool((offset[1:] - offset[:-1] == page_size).all())


def _pages(body: memoryview, offset: Int64s, page_size: int) -> UInt8s:
    """Give pages of the body as rows, shape (n, page size): a view where they are one span."""
    if len(offset) and _is_span(offset, page_size):
        return np.frombuffer(body, np.uint8, len(offset) * page_size, offset[0]).reshape(-1, page_size)
    return _copies(body, offset, page_size)


def _copies(body: memoryview, offset: Int64s, length: int) -> UInt8s:
    """Copy pieces of one length from anywhere in the body, shape (n, length).

    The body is seen as one overlapping element at each byte, so that any offset is an index: as fast as np.take of
    aligned pages, three times as fast as slices, and bounds are checked once more.
    """
    if not len(offset):
        return np.empty((0, length), np.uint8)
    # np.ndarray(buffer=...) alone lets go of the buffer at once: a mapping could be closed under a worker's feet.
    held = np.frombuffer(body, np.uint8)
    pieces = np.ndarray((len(body) - length + 1,), f"V{length}", held, 0, (1,))
    return pieces[offset].view(np.uint8).reshape(-1, length)


def _are_zero(body: memoryview, offset: Int64s, page_size: int) -> Bools:
    """Test pages for zero.

    As booleans, of which any byte but zero is a true one, a page is left at its first 32 bytes with a set bit: twice as
    fast as words that are joined by "or" to the page's end. What is not one span would have to be copied for that, so
    the first word of each page is looked at before.
    """
    zero = np.ones(len(offset), bool)
    if not _is_span(offset, page_size):
        np.equal(_copies(body, offset, _WORD).view(np.uint64)[:, 0], 0, out=zero)
    left = np.flatnonzero(zero)
    zero[left] = ~_pages(body, offset[left], page_size).view(np.bool_).any(axis=1)
    return zero
