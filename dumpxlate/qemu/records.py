"""The page records of a stream's RAM sections, passed over once.

A record is a word of 8 bytes (an address in a RAM block, and flags in its low 12 bits), the block's name unless it is
that of the record before, and what the flags ask for: a page, a fill byte, a delta, a compressed page. Most follow
each other with one stride, so that numpy sees many words at once; single ones are looked at one by one.

Source: qemu migration/ram.c (save_page_header, ram_load_precopy).
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from dumpxlate.arrays import runs
from dumpxlate.errors import CorruptDumpError, UnsupportedFeatureError
from dumpxlate.io.window import SlidingWindow
from dumpxlate.qemu.flags import COMPRESS_PAGE, CONTINUE, EOS, FLAGS, HOOK, MULTIFD_FLUSH, PAGE, XBZRLE, ZERO
from dumpxlate.qemu.resync import Gap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dumpxlate.arrays import Int64s, UInt8s, UInt64s
    from dumpxlate.io.source import Source

__all__ = ["Kind", "PageRecords", "RecordLog"]

_FLAGS = np.uint64(FLAGS)

_MOST_RUNS = 1 << 24
"""Runs of pages that are kept: 1 TiB of memory in runs of 16 pages, whose index takes some hundred MiB."""

_MOST_CODED = 1 << 20
"""Bytes of one compressed page: the longest page, with what zlib adds."""

_FEW = 16
"""Records that are looked at one by one, before numpy, which is slow to start, looks at many."""

_FIRST_LOOK, _LONGEST_LOOK = 64, 1 << 16
"""Records that numpy looks at together: few at first, and more as long as they are alike."""

_COUNT = (1 << 56) - 1
_WORD = struct.Struct(">Q")
_XBZRLE_HEAD = struct.Struct(">BH")
_SIZE = 4


class Kind(IntEnum):
    """What a stream says of a page."""

    RAW = 0
    """Its bytes, at an offset."""
    ZERO = 1
    """Nothing but zeros."""
    FILL = 2
    """One byte over and over; the offset is that byte."""
    ZLIB = 3
    """A zlib stream at an offset; the count is its length."""
    DELTA = 4
    """Changes to what the page was before, at an offset; the count is their length."""


@dataclass(slots=True)
class RecordLog:
    """What the records say, in the order of the file, as runs of pages.

    Pages are counted through all RAM blocks. A run is three numbers: first page, kind and count, offset of the first.
    """

    _rows: array[int] = field(default_factory=lambda: array("q"))

    def add(self, kind: Kind, page: int, count: int, offset: int) -> None:
        """Take a run."""
        self._rows.extend((page, kind << 56 | count, offset))
        self._check()

    def add_runs(self, kind: Kind, page: Int64s, count: Int64s, offset: Int64s) -> None:
        """Take several runs."""
        self._rows.frombytes(np.stack((page, count | kind << 56, offset), axis=1).tobytes())
        self._check()

    def __len__(self) -> int:
        """Number of runs."""
        return len(self._rows) // 3

    def first(self, row: int) -> int:
        """Give the first page of a run."""
        return self._rows[3 * row]

    def last(self, row: int) -> int:
        """Give the last page of the run before one; -1 if it is the first."""
        if not row:
            return -1
        page, count = self._rows[3 * row - 3], self._rows[3 * row - 2]
        return page + (count & _COUNT if count >> 56 < Kind.ZLIB else 1) - 1

    def shift(self, row: int, by: int) -> None:
        """Put a run and all later ones under other numbers."""
        np.frombuffer(self._rows, np.int64).reshape(-1, 3)[row:, 0] += by

    def highest(self, row: int) -> int:
        """Give what is behind the highest page of a run and all later ones."""
        page, count = self._from(row)
        return int((page + count).max())

    def drop(self, row: int) -> int:
        """Forget a run and all later ones; gives the pages that they speak of."""
        pages = int(self._from(row)[1].sum())
        del self._rows[3 * row :]
        return pages

    def _from(self, row: int) -> tuple[Int64s, Int64s]:
        """Give first page and pages of a run and all later ones."""
        rows = np.frombuffer(self._rows[3 * row :], np.int64).reshape(-1, 3)
        return rows[:, 0], np.where(rows[:, 1] >> 56 >= Kind.ZLIB, 1, rows[:, 1] & _COUNT)

    def _check(self) -> None:
        if len(self._rows) > 3 * _MOST_RUNS:
            raise UnsupportedFeatureError(
                f"memory in more than {_MOST_RUNS:,} pieces: no real stream has so many", feature="runs"
            )

    def has_content(self) -> bool:
        """Tell whether any page is said to be something else than zeros."""
        return bool((self.columns()[0] != Kind.ZERO).any())

    def columns(self) -> tuple[Int64s, Int64s, Int64s, Int64s]:
        """Give kind, first page, count and offset of each run."""
        rows = np.frombuffer(self._rows, np.int64).reshape(-1, 3)
        return rows[:, 1] >> 56, rows[:, 0], rows[:, 1] & _COUNT, rows[:, 2]


@dataclass(slots=True)
class PageRecords:
    """Passes over page records.

    Attributes:
        source: the file.
        page_size: bytes a page.
        names: number of each RAM block by its name.
        pages: pages of each block.
        base: number of each block's first page, counted through all blocks.
        log: takes what is found.
        flushes: records that speak of other connections (multifd).
        at: the record that was begun last; behind the end mark where a section was read to its end.
    """

    source: Source
    page_size: int
    names: dict[bytes, int]
    pages: Sequence[int]
    base: Sequence[int]
    log: RecordLog
    flushes: int = 0
    at: int = 0
    _block: int = -1
    _limit: int = 0
    _shift: int = 0
    _gap: Gap | None = None
    _look: int = _FIRST_LOOK
    _window: SlidingWindow = field(init=False)

    def __post_init__(self) -> None:
        self._window = SlidingWindow(self.source)

    def read(self, at: int) -> int:
        """Pass over the records of one section up to its end mark; gives what is behind it.

        The block that a record goes on with may have been named in a section before.

        Raises:
            CorruptDumpError: a record that cannot be, so that what follows cannot be told.
            TruncatedDumpError: the file ends before the end mark.
        """
        while True:
            self.at = at
            view, begin = self._window.at(at, 8)
            word = _WORD.unpack_from(view, begin)[0]
            flags = word & FLAGS
            if flags == PAGE | CONTINUE:
                at = self._run(at, word, Kind.RAW, 8 + self.page_size)
            elif flags == ZERO | CONTINUE:
                at = self._run(at, word, Kind.ZERO, 9)
            elif flags == EOS:
                self.at = at + 8
                return self.at
            elif flags == HOOK:
                at += 8
            elif flags == MULTIFD_FLUSH:
                self.flushes += 1
                at += 8
            else:
                at = self._single(at, word)

    def _run(self, at: int, word: int, kind: Kind, stride: int) -> int:
        """Take the records from here on that are of one kind and go on with the same block; gives what follows."""
        view, begin = self._window.at(at, stride)
        whole = (len(view) - begin) // stride
        flags, size, few = word & FLAGS, self.page_size, min(whole, _FEW)
        count, following = 1, -1
        while count < few:
            following = _WORD.unpack_from(view, begin + count * stride)[0]
            if following != word + count * size:
                break
            count += 1
        fill = view[begin + 8 : begin + count * stride : stride] if kind is Kind.ZERO else b""
        if count == _FEW or following & FLAGS == flags or any(fill):
            return self._many(at, kind, stride, min(whole, self._look))
        page = self._page(word, at, count)
        self.log.add(kind, page, count, 0 if kind is Kind.ZERO else at + 8)
        return at + count * stride

    def _many(self, at: int, kind: Kind, stride: int, look: int) -> int:
        """Take such records, up to a number of them, all at once."""
        view, begin = self._window.at(at, stride)
        words = np.ndarray((look,), ">u8", view, begin, (stride,)).astype(np.uint64)
        differs = np.flatnonzero((words & _FLAGS) != words[0] & _FLAGS)
        count = int(differs[0]) if len(differs) else look
        self._look = min(2 * count, _LONGEST_LOOK) if count == look else max(2 * count, _FIRST_LOOK)
        page = self._checked(words[:count], at)
        count = len(page)
        if kind is Kind.RAW:
            first, length = runs(page)
            self.log.add_runs(kind, page[first], length, at + 8 + first * stride)
        else:
            self._zeros(page, np.ndarray((count,), np.uint8, view, begin + 8, (stride,)))
        return at + count * stride

    def _zeros(self, page: Int64s, fill: UInt8s) -> None:
        """Take pages that are one byte over and over; hardly ever another one than zero."""
        if fill.any():
            self.log.add_runs(Kind.FILL, page, np.ones_like(page), fill.astype(np.int64))
            return
        first, length = runs(page)
        self.log.add_runs(Kind.ZERO, page[first], length, np.zeros_like(first))

    def _page(self, word: int, at: int, count: int = 1) -> int:
        """Give the page that a word speaks of, the first of some, after a look whether the block has them."""
        address = word & ~FLAGS
        page, rest = divmod(address, self.page_size)
        if rest or page + count > self._limit:
            self._refuse(address, at)
        return page + self._shift

    def _checked(self, words: UInt64s, at: int) -> Int64s:
        """Give the pages that words speak of, up to the first that the block has not; at least one."""
        address = words & ~_FLAGS
        page, rest = np.divmod(address, np.uint64(self.page_size))
        wrong = (page >= np.uint64(self._limit)) | (rest != 0)
        if wrong[0]:
            self._refuse(int(address[0]), at)
        good = int(np.argmax(wrong)) if wrong.any() else len(page)
        return page[:good].astype(np.int64) + self._shift

    def _refuse(self, address: int, at: int) -> NoReturn:
        if not self._limit:
            raise CorruptDumpError("goes on with a block, and none was named yet", offset=at, what="page record")
        raise CorruptDumpError(
            f"address {address:#x} in a block of {self._limit * self.page_size:#x} bytes",
            offset=at,
            what="page record",
        )

    def _single(self, at: int, word: int) -> int:
        """Take one record of another kind, or one that names its block; gives what follows."""
        flags = word & FLAGS
        kind = flags & ~CONTINUE
        if kind not in (ZERO, PAGE, XBZRLE, COMPRESS_PAGE):
            raise CorruptDumpError(f"flags {flags:#x}", offset=at, what="page record")
        record, at = at, at + 8
        if not flags & CONTINUE:
            at = self._name(at)
        page = self._page(word, record)
        if kind == ZERO:
            fill = self._bytes(at, 1)[0]
            self.log.add(Kind.FILL if fill else Kind.ZERO, page, 1, fill)
            return at + 1
        if kind == PAGE:
            size = self.page_size
            self._window.at(at, size)
            self.log.add(Kind.RAW, page, 1, at)
            return at + size
        return self._coded(at, kind, page)

    def _name(self, at: int) -> int:
        """Read a block's name; gives what follows."""
        length = self._bytes(at, 1)[0]
        name = bytes(self._bytes(at + 1, length))
        block = self.names.get(name)
        if block is None:
            raise CorruptDumpError(f"of a block {name!r}, which the table has not", offset=at, what="page record")
        self.settle()
        self._enter(block)
        return at + 1 + length

    def _enter(self, block: int) -> None:
        """Let records go on with a block."""
        self._block, self._limit, self._shift = block, self.pages[block], self.base[block]

    def resume(self, start: int, stop: int, reason: str) -> Gap:
        """Pass over a damaged part: which block records go on with behind it is not known until one names its own."""
        self.settle()
        self._gap = gap = Gap(start, stop, reason, len(self.log), self._block)
        self._block, self._limit, self._shift = -1, max(self.pages), 0
        return gap

    def settle(self) -> None:
        """Put records behind a damaged part where they belong, or leave them out where nothing tells their block.

        One block alone may have as high an address as they have; or they are the next ones of the block before, and
        the pages between account for the length of the damaged part.
        """
        gap, self._gap = self._gap, None
        if gap is None or gap.row == len(self.log):
            return
        first, stop = self.log.first(gap.row), self.log.highest(gap.row)
        fitting = [number for number, pages in enumerate(self.pages) if pages >= stop]
        if len(fitting) == 1:
            block = fitting[0]
        elif gap.block in fitting and gap.holds(self._skipped(gap, first), 8 + self.page_size):
            block = gap.block
        else:
            gap.unplaced = self.log.drop(gap.row)
            return
        self.log.shift(gap.row, self.base[block])
        self._enter(block)

    def _skipped(self, gap: Gap, first: int) -> int:
        """Count the pages between the last one before a gap and a page behind it, of the same block."""
        return first + self.base[gap.block] - self.log.last(gap.row) - 1

    def _coded(self, at: int, kind: int, page: int) -> int:
        """Take a page that is compressed, or changes to one; gives what follows."""
        if kind == XBZRLE:
            encoding, length = (int(each) for each in _XBZRLE_HEAD.unpack(self._bytes(at, _XBZRLE_HEAD.size)))
            at += _XBZRLE_HEAD.size
            if encoding != 1 or length > self.page_size:
                raise CorruptDumpError(
                    f"encoding {encoding}, {length} bytes: expected encoding 1, at most {self.page_size} bytes",
                    offset=at,
                    what="xbzrle record",
                )
        else:
            length = int.from_bytes(self._bytes(at, _SIZE), "big")
            at += _SIZE
            if length > _MOST_CODED:
                raise CorruptDumpError(f"{length} bytes for one page", offset=at, what="compressed page")
        self._window.at(at, length)
        self.log.add(Kind.DELTA if kind == XBZRLE else Kind.ZLIB, page, length, at)
        return at + length

    def _bytes(self, at: int, length: int) -> memoryview:
        view, begin = self._window.at(at, length)
        return view[begin : begin + length]

    def close(self) -> None:
        """Let the file go."""
        self._window.close()
