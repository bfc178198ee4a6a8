"""Finds where the records of a stream go on behind a defect.

Records stand at any byte, and nothing says how long the damaged part is. What is looked for is a place from which two
or three records follow each other, each a word with flags that QEMU writes, an address inside a block and behind that
of the one before, and a known block's name where flags ask for one; or the end mark of a section, its footer, and what
can follow that. Pages hold no such chains by chance; one that holds such a stream could be taken for it, but only where
a defect lies just before it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.qemu.flags import COMPRESS_PAGE, CONTINUE, EOS, FLAGS, PAGE, XBZRLE, ZERO

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dumpxlate.arrays import Bools, Int64s, UInt8s
    from dumpxlate.io.source import Source

__all__ = ["Gap", "Resync", "complaints"]

_KINDS = (ZERO, PAGE, XBZRLE, COMPRESS_PAGE)
_LIKELY = np.isin(np.arange(FLAGS + 1), (*_KINDS, *(kind | CONTINUE for kind in _KINDS), EOS))

_CHAIN = 3
"""Records that are looked at."""
_PROOF = 3
"""What they must amount to: each counts once, and twice if it is that of the next page or names its block."""
_LONG_NAME = 6
_MOST_TRIES = 1 << 15
"""Places in a whole stream that are looked at closely."""
_FIRST_WINDOW, _LARGEST_WINDOW = 64 << 10, 4 << 20
_LONGEST_HEAD = 8 + 256 + 4
_TOLD = 8
"""Damaged parts that are told one by one."""
_WORD = struct.Struct(">Q")
_SECTION_ENDS = 8 + 5 + 5
"""Bytes between the records of two sections: end mark, footer, head."""
_SECTIONS = 8
"""Sections that a gap is taken to hold, where its length is explained."""


@dataclass(slots=True)
class Gap:
    """A part of a stream that is passed over.

    Attributes:
        start: where the defect was noticed.
        stop: where records go on.
        reason: what is wrong there.
        row: the first row of the log that stands behind it.
        block: the RAM block that records before it were of, -1 if none.
        unplaced: pages behind it that are left out, since nothing tells which block they are of.
    """

    start: int
    stop: int
    reason: str
    row: int
    block: int
    unplaced: int = 0

    @property
    def bytes(self) -> int:
        """How long it is."""
        return self.stop - self.start

    def holds(self, pages: int, stride: int) -> bool:
        """Tell whether its length is that of the records of so many pages, some of them zero, in a few sections."""
        for sections in range(_SECTIONS):
            stored, rest = divmod(self.bytes - _SECTION_ENDS * sections - 9 * pages, stride - 9)
            if not rest and 0 <= stored <= pages:
                return True
        return False


def complaints(gaps: Sequence[Gap]) -> list[str]:
    """Say what is passed over."""
    told = [
        f"{gap.reason}; {gap.bytes:,} bytes up to {gap.stop:#x} are passed over, and which pages they hold is not known"
        for gap in gaps[:_TOLD]
    ]
    if len(gaps) > _TOLD:
        more = gaps[_TOLD:]
        told.append(f"{len(more):,} more such parts, {sum(gap.bytes for gap in more):,} bytes, are passed over")
    unplaced = sum(gap.unplaced for gap in gaps)
    if unplaced:
        told.append(f"{unplaced:,} pages behind them are left out: nothing tells which RAM block they are of")
    return told


@dataclass(slots=True)
class Resync:
    """Looks for records.

    Attributes:
        source: the stream.
        page_size: bytes a page.
        names: names of the RAM blocks.
        longest: bytes of the longest of them.
        follows: tells whether what stands at a place can follow the end mark of the RAM section.
    """

    source: Source
    page_size: int
    names: Sequence[bytes]
    longest: int
    follows: Callable[[int], bool]
    _tries: int = _MOST_TRIES
    _lengths: Bools = field(init=False)

    def __post_init__(self) -> None:
        self._lengths = np.isin(np.arange(256), [len(name) for name in self.names])

    def next_records(self, at: int) -> int | None:
        """Give the first place from ``at`` on where records go on; None if there is none."""
        reach = _CHAIN * (self.page_size + _LONGEST_HEAD) + 8
        window, size = _FIRST_WINDOW, self.source.size
        while at + 8 <= size and self._tries:
            length = min(window + reach, size - at)
            view = self.source.view(at, length)
            looked = min(window, length - 7)
            for place in self._likely(np.frombuffer(view, np.uint8), looked).tolist():
                if not self._tries:
                    return None
                self._tries -= 1
                if self._is_chain(view, place, at, last=at + length == size):
                    return at + int(place)
            at, window = at + looked, min(2 * window, _LARGEST_WINDOW)
        return None

    def _likely(self, body: UInt8s, looked: int) -> Int64s:
        """List the places, the first so many of a body, where a word with known flags is, and what it asks for."""
        flags = (body[6 : looked + 6].astype(np.uint16) & 0xF) << 8 | body[7 : looked + 7]
        place = np.flatnonzero(_LIKELY[flags] & (body[:looked] == 0))
        words = np.zeros(len(place), np.int64)
        for byte in range(8):
            words = words << 8 | body[place + byte]
        address, flag = words & ~FLAGS, words & FLAGS
        named = self._lengths[body[np.minimum(place + 8, len(body) - 1)]]
        fits = (address < self.longest) & (address % self.page_size == 0) & ((flag & CONTINUE != 0) | named)
        fits |= words == EOS
        # Most of what looks like a word is none: behind a page, or a byte, there must be another one.
        for kind, length in ((PAGE, 8 + self.page_size), (ZERO, 9)):
            inside = place + length + 8 <= len(body)
            last = np.minimum(place + length, len(body) - 8)
            flags = (body[last + 6].astype(np.uint16) & 0xF) << 8 | body[last + 7]
            fits &= (flag != kind | CONTINUE) | ~inside | _LIKELY[flags]
        found: Int64s = place[fits]
        return found

    def _is_chain(self, view: memoryview, place: int, base: int, *, last: bool) -> bool:
        """Tell whether records follow each other from a place of a window on; ``last`` if the file ends with it."""
        before, proof = -1, 0
        for _ in range(_CHAIN):
            if place + 8 > len(view):
                return last and proof > 1
            word = _WORD.unpack_from(view, place)[0]
            if word == EOS:
                return self.follows(base + place + 8)
            address, length = word & ~FLAGS, self._length(view, place, word & FLAGS)
            if not length or address >= self.longest or address % self.page_size:
                return False
            if word & CONTINUE and address <= before:
                return False
            named = not word & CONTINUE and view[place + 8] >= _LONG_NAME
            proof += 1 + (named or (before >= 0 and address == before + self.page_size))
            if proof >= _PROOF:
                return True
            before, place = address, place + length
        return False

    def _length(self, view: memoryview, place: int, flags: int) -> int:
        """Give the bytes of a record; 0 if it cannot be one."""
        kind, head = flags & ~CONTINUE, 8
        if kind not in _KINDS:
            return 0
        if not flags & CONTINUE:
            name = bytes(view[place + 9 : place + 9 + view[place + 8]]) if place + 8 < len(view) else b""
            if name not in self.names:
                return 0
            head += 1 + len(name)
        if kind == PAGE:
            return head + self.page_size
        if kind == ZERO:
            return head + 1
        if kind == XBZRLE:
            encoding, length = view[place + head : place + head + 1], view[place + head + 1 : place + head + 3]
            size = int.from_bytes(length, "big")
            return head + 3 + size if bytes(encoding) == b"\1" and size <= self.page_size else 0
        size = int.from_bytes(view[place + head : place + head + 4], "big")
        return head + 4 + size if 0 < size <= self.page_size + 256 else 0
