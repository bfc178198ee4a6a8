"""Digests of what a dump holds of its guest: the same for the same guest, whatever the format of the file.

Memory is cut into frames of 4 KiB, and frames into spans of 4 MiB that begin at multiples of 4 MiB. A frame is zero, or
has data (a byte that is not zero), or the dump has no content for it: holes, pages left out and pages that do not
decode are all alike. Zeros in the file and zeros that the file implies are the same. With H for SHA-256::

    leaf     H(frames of a span that have data, a bit each, 128 bytes | the bytes of those frames, ascending)
    data     H("dumpxlate data 1" LF | of each span with data: number, 8 bytes | leaf)
    content  H("dumpxlate content 1" LF | of each span with content: number, 8 bytes |
               frames of it that have content, a bit each, 128 bytes | leaf)

Spans ascend, numbers are little-endian, the first frame of a span is the lowest bit of the first byte. ``content``
tells zero memory from memory that is not there, as ``compare --strict`` does for pages; ``data`` does not: it stays the
same where a producer drops zero pages. The digest of a run is the ``content`` of a dump that holds that run and nothing
else. Spans are hashed by workers, in any order.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.codecs import batch as batches
from dumpxlate.codecs.forks import shared_map
from dumpxlate.codecs.workers import default_threads
from dumpxlate.errors import UnsupportedFeatureError
from dumpxlate.pages import BAD, STORED, ZERO
from dumpxlate.pageset import PageRuns
from dumpxlate.progress import Meter, Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dumpxlate.arrays import Bools, Int64s, UInt8s
    from dumpxlate.dump import Dump
    from dumpxlate.pages import PageBatch, PageStore

__all__ = ["FRAME", "SPAN", "Checksum", "RunChecksum", "checksum"]

FRAME = 4096
"""Bytes that are zero, data, or nothing, as one."""

SPAN = 1024
"""Frames that are hashed in one go."""

_CONTENT, _DATA = b"dumpxlate content 1\n", b"dumpxlate data 1\n"
_FEW = 16  # pieces up to which hashing them where they are is faster than bringing them together


@dataclass(frozen=True, slots=True)
class RunChecksum:
    """The digest of memory without holes: first byte, length in bytes, digest."""

    address: int
    length: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Checksum:
    """Digests of a dump.

    Attributes:
        content: digest of all memory that it has content for.
        data: digest of what in it is not zero.
        bytes: memory with content.
        data_bytes: what of it is in frames that are not zero.
        runs: the first runs of memory with content.
        total_runs: how many there are.
        bad: pages that do not decode, and are no part of the digests.
        damage: what the reader says is missing or broken, and is no part of them either.
        seconds: from the first span to the last.
    """

    content: bytes
    data: bytes
    bytes: int = 0
    data_bytes: int = 0
    runs: tuple[RunChecksum, ...] = ()
    total_runs: int = 0
    bad: int = 0
    damage: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether everything that the file promises is in the digests."""
        return not (self.bad or self.damage)


def checksum(
    dump: Dump,
    *,
    runs: int = 0,
    threads: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Checksum:
    """Compute the digests of a dump.

    Args:
        dump: what to read; every page of it is read once.
        runs: runs that get a digest of their own.
        threads: workers; 0 does all in this thread, None takes one for each processor, up to 8.
        progress: called after each span.

    Raises:
        UnsupportedFeatureError: pages that are not cut into frames evenly, or spans into pages.
        MissingCodecError: the library of a codec is not installed.
    """
    store = dump.pages
    if store.page_size % FRAME or SPAN % (store.page_size // FRAME):
        raise UnsupportedFeatureError(
            f"pages of {store.page_size:,} bytes, digests are of frames of {FRAME:,} bytes", feature="page size"
        )
    walk = _Walk(store, apart=runs > 0)
    total = _Total(runs)
    meter = Meter("checksum", store.stored.count * store.page_size, progress)
    threads = default_threads() if threads is None else threads
    with contextlib.closing(shared_map(walk.look, walk.spans(), workers=threads)) as found:
        for span in found:
            total.add(span)
            meter.add(int(span.has.sum()) * FRAME)
    return total.checksum(dump, meter.seconds)


@dataclass(frozen=True, slots=True)
class _Span:
    """What is in a span.

    Attributes:
        number: which span.
        has: frames with content, shape (SPAN,).
        data: frames with a byte that is not zero.
        leaf: hash of those.
        pieces: first frame, end and leaf of each run in the span, where runs are wanted.
        bad: pages that do not decode.
    """

    number: int
    has: Bools
    data: Bools
    leaf: bytes
    pieces: tuple[tuple[int, int, bytes], ...]
    bad: int


@dataclass(frozen=True, slots=True)
class _Walk:
    """Hashes the spans of a store.

    Attributes:
        store: its pages.
        apart: whether runs within a span are hashed each by itself, too.
    """

    store: PageStore
    apart: bool

    def spans(self) -> Iterator[int]:
        """Number the spans that have content, ascending."""
        start, count = self.store.stored.runs()
        pages = SPAN // self._wide
        low, high = start // pages, -(-(start + count) // pages)
        for first, length in zip(*(each.tolist() for each in PageRuns.from_runs(low, high - low).runs()), strict=True):
            yield from range(first, first + length)

    @property
    def _wide(self) -> int:
        """Frames of a page."""
        return self.store.page_size // FRAME

    def look(self, number: int) -> _Span:
        """Hash a span; runs in a worker."""
        first = number * SPAN
        low, high = self.store.stored.rank(np.array([first, first + SPAN], np.int64) // self._wide).tolist()
        batch = self._frames(self.store.stored.select(low, high))
        table = batch.table
        rows = np.flatnonzero(table.state == STORED)
        has, data = np.zeros(SPAN, bool), np.zeros(SPAN, bool)
        has[table.pfn[(table.state == STORED) | (table.state == ZERO)] - first] = True
        data[table.pfn[rows] - first] = True
        offset = np.full(SPAN, -1, np.int64)
        offset[data] = table.offset[rows]
        leaf = _leaf(data, offset, batch.body)
        pieces = tuple(_pieces(has, data, offset, batch.body, leaf)) if self.apart else ()
        return _Span(number, has, data, leaf, pieces, int((table.state == BAD).sum()) // self._wide)

    def _frames(self, pfn: Int64s) -> PageBatch:
        """Bring pages as frames, zero ones marked, and together where they lie scattered."""
        size = self.store.page_size
        raw = batches.decode(self.store.fetch(self.store.locate(pfn)), size)
        raw = batches.mark_zero(batches.divide(raw, size, FRAME), FRAME)
        return batches.gather(raw, FRAME) if len(raw.table.spans()[0]) > _FEW else raw


def _pieces(has: Bools, data: Bools, offset: Int64s, body: memoryview, leaf: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Hash each run in a span; one alone has the leaf of the span."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], has, [False])).astype(np.int8))).tolist()
    if len(edges) == 2:
        yield edges[0], edges[1], leaf
        return
    for low, high in zip(edges[::2], edges[1::2], strict=True):
        some = np.zeros(SPAN, bool)
        some[low:high] = data[low:high]
        yield low, high, _leaf(some, offset, body)


def _leaf(data: Bools, offset: Int64s, body: memoryview) -> bytes:
    """Hash frames: which they are, and their bytes."""
    found = hashlib.sha256(_bits(data))
    at = offset[data]
    opens = np.flatnonzero(np.append(True, np.diff(at) != FRAME)[: len(at)])
    for low, count in zip(at[opens].tolist(), np.diff(opens, append=len(at)).tolist(), strict=True):
        found.update(body[low : low + count * FRAME])
    return found.digest()


def _bits(frames: Bools | UInt8s) -> bytes:
    return np.packbits(frames, bitorder="little").tobytes()


@dataclass(slots=True)
class _Total:
    """Puts spans together, ascending.

    Attributes:
        limit: runs that get a digest.
    """

    limit: int
    _content: hashlib._Hash = field(default_factory=lambda: hashlib.sha256(_CONTENT))
    _data: hashlib._Hash = field(default_factory=lambda: hashlib.sha256(_DATA))
    _frames: int = 0
    _data_frames: int = 0
    _bad: int = 0
    _runs: list[RunChecksum] = field(default_factory=list)
    _total_runs: int = 0
    _open: hashlib._Hash | None = None
    _start: int = 0
    _end: int = -1

    def add(self, span: _Span) -> None:
        """Take the next span."""
        number = span.number.to_bytes(8, "little")
        frames, data = int(span.has.sum()), int(span.data.sum())
        if frames:
            self._content.update(number + _bits(span.has) + span.leaf)
        if data:
            self._data.update(number + span.leaf)
        self._frames += frames
        self._data_frames += data
        self._bad += span.bad
        for low, high, leaf in span.pieces:
            has = np.zeros(SPAN, bool)
            has[low:high] = True
            self._add_piece(span.number * SPAN + low, high - low, number + _bits(has) + leaf)

    def _add_piece(self, first: int, count: int, record: bytes) -> None:
        """Take the next run within a span, which may go on from the one before."""
        if first != self._end:
            self._close()
            self._start, self._total_runs = first, self._total_runs + 1
            self._open = hashlib.sha256(_CONTENT) if self._total_runs <= self.limit else None
        self._end = first + count
        if self._open:
            self._open.update(record)

    def _close(self) -> None:
        if self._open:
            length = (self._end - self._start) * FRAME
            self._runs.append(RunChecksum(self._start * FRAME, length, self._open.digest()))
            self._open = None

    def checksum(self, dump: Dump, seconds: float) -> Checksum:
        """Give what came of it."""
        self._close()
        return Checksum(
            content=self._content.digest(),
            data=self._data.digest(),
            bytes=self._frames * FRAME,
            data_bytes=self._data_frames * FRAME,
            runs=tuple(self._runs),
            total_runs=self._total_runs,
            bad=self._bad,
            damage=dump.defects,
            seconds=seconds,
        )
