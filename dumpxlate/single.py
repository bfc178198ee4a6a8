"""Reads pages one by one, for programs that walk structures: some hundred thousand a second.

numpy takes longer to look one page up than the system to read it. So pages are looked up a thousand at once, and what
is known of them is remembered as plain numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, TypeAlias, cast

import numpy as np

from dumpxlate.codecs import codec_for
from dumpxlate.codecs.batch import read_pages
from dumpxlate.errors import CorruptPageError, PageUnavailableError
from dumpxlate.pages import BAD, LAST_CODEC, RAW, STORED, ZERO, CodecId, Overlay, PageState

if TYPE_CHECKING:
    from collections.abc import Callable

    from dumpxlate.arrays import UInt8s
    from dumpxlate.pages import PageStore, PageTable, ReadAt

__all__ = ["SinglePages"]

_GROUP = 1024
_GROUPS = 4096
"""Pages that are looked up at once, and groups of them to be remembered: 13 bytes a page, 54 MiB at most; a group that
is one run of raw pages, as in most ELF files, is a single number."""
_KEPT_BYTES = 4 << 20
"""Decoded pages that are kept: who reads a structure comes back to its page."""

# What is known of a page: its codec where its bytes are read from the file, else its state and _STATE. Plain numbers,
# since Python takes long to compare with an IntEnum's member.
_STATE = 16
_FETCHED = 2 * _STATE
"""Only the store's ``fetch`` brings it."""
_ZERO, _BAD = _STATE + ZERO, _STATE + BAD

_Group: TypeAlias = "tuple[memoryview, memoryview, memoryview]"
"""What is known of each page, its offset, and its size in the file."""


class SinglePages:
    """The pages of a store, one by one.

    Args:
        store: the store; it is asked for nothing before the first page is read.
    """

    def __init__(self, store: PageStore) -> None:
        self._store = store
        self._size = store.page_size
        self._groups: dict[int, int | _Group] = {}
        self._kept: dict[int, bytes] = {}
        self._decoders: dict[int, Callable[[bytes, int], bytes]] = {}
        self._zero = bytes(store.page_size)
        self._read_at: ReadAt

    def read(self, pfn: int) -> bytes:
        """Read one page: at a thirtieth of what it costs to ask for a batch of one.

        Raises:
            PageUnavailableError: it has no content.
        """
        number, row = divmod(pfn, _GROUP)
        try:
            group = self._groups[number]
        except KeyError:
            found = self._locate(number) if pfn < self._store.ram.stop else None
            if found is None:
                return self._fetch(pfn)
            group = found
        if not isinstance(group, int):
            return self._of_group(pfn, group, row)
        page = self._read_at(group + row * self._size, self._size)
        return page if len(page) == self._size else _unavailable(pfn, PageState.BAD)

    def _of_group(self, pfn: int, group: _Group, row: int) -> bytes:
        """Read a page of a group that has not only raw ones."""
        kind = group[0][row]
        if kind == RAW:
            page = self._read_at(group[1][row], self._size)
            return page if len(page) == self._size else _unavailable(pfn, PageState.BAD)
        if kind == _ZERO:
            return self._zero
        if _STATE <= kind < _FETCHED:
            return _unavailable(pfn, PageState(kind - _STATE))
        kept = self._kept.get(pfn)
        if kept is None:
            kept = self._fetch(pfn) if kind == _FETCHED else self._decode(pfn, kind, group[1][row], group[2][row])
            if len(self._kept) * self._size >= _KEPT_BYTES:
                self._kept.clear()
            self._kept[pfn] = kept
        return kept

    def _decode(self, pfn: int, codec: int, offset: int, size: int) -> bytes:
        """Read a compressed page."""
        decoder = self._decoders.get(codec)
        if decoder is None:
            decoder = self._decoders[codec] = codec_for(CodecId(codec)).decode
        data = self._read_at(offset, size)
        try:
            if len(data) == size:
                return decoder(data, self._size)
        except (CorruptPageError, ValueError):
            pass
        return _unavailable(pfn, PageState.BAD)

    def _fetch(self, pfn: int) -> bytes:
        """Read a page as a batch of one."""
        page = np.zeros((1, self._size), np.uint8)
        state = PageState(int(read_pages(self._store, np.array([pfn], np.int64), page)[0]))
        if state not in (PageState.STORED, PageState.ZERO):
            _unavailable(pfn, state)
        return page.tobytes()

    def _locate(self, number: int) -> int | _Group | None:
        """Look up the pages of a group at once, and keep what is known of the groups asked for last.

        None is given for a store that brings no page but by ``fetch``.
        """
        store = self._store.inner if isinstance(self._store, Overlay) else self._store
        if store.read_at is None:
            return None
        self._read_at = store.read_at
        while len(self._groups) >= _GROUPS:
            self._groups.pop(next(iter(self._groups)), None)
        pfn = np.arange(number * _GROUP, (number + 1) * _GROUP, dtype=np.int64)
        table = self._store.locate(pfn)
        kind = self._kinds(table)
        if not kind.any() and (np.diff(table.offset) == self._size).all():
            found: int | _Group = int(table.offset[0])
        else:
            columns = (np.ascontiguousarray(column).data for column in (kind, table.offset, table.size))
            found = cast("_Group", tuple(columns))
        self._groups[number] = found
        return found

    def _kinds(self, table: PageTable) -> UInt8s:
        """Say of each page how it is read, or why it is not."""
        kind = np.where(table.state == STORED, table.codec, table.state + np.uint8(_STATE))
        wrong = (table.codec > LAST_CODEC) | ((table.codec == RAW) & (table.size != self._size))
        kind[wrong & (table.state == STORED)] = _BAD
        if isinstance(self._store, Overlay):
            kind[~self._store.passes(table.pfn)] = _FETCHED
        return kind


def _unavailable(pfn: int, state: PageState) -> NoReturn:
    raise PageUnavailableError(pfn, state.name.lower())
