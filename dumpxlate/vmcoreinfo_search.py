"""Finds the kernel's VMCOREINFO in a guest's memory, for dumps that were made without it.

Linux keeps the text twice: bare in ``vmcoreinfo_data`` (on a page of its own since 4.13, before that anywhere in the
kernel's image) and behind an ELF note's header in ``vmcoreinfo_note``. Both begin with ``OSRELEASE=``, and so does the
format string that they are made with, as does whatever else a guest likes to keep in memory. So each place is a
candidate until it has been read as a whole and makes sense. A note says of itself that it is one and how long it is:
the first that makes sense ends the search. Where there is none, the longest bare text counts.
"""

from __future__ import annotations

import contextlib
import re
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from dumpxlate.codecs import batch as batches
from dumpxlate.codecs.workers import default_threads, ordered_map
from dumpxlate.errors import PageUnavailableError
from dumpxlate.memory import PhysicalMemory
from dumpxlate.pages import STORED, ZERO, windows
from dumpxlate.progress import Meter, Progress
from dumpxlate.stores import with_bytes
from dumpxlate.vmcoreinfo import VmCoreInfo

if TYPE_CHECKING:
    from collections.abc import Callable

    from dumpxlate.arrays import Int64s, UInt8s
    from dumpxlate.dump import Dump
    from dumpxlate.pages import PageBatch, PageStore
    from dumpxlate.pageset import PageSet

__all__ = ["MAX_CANDIDATES", "MAX_TEXT", "Found", "find", "with_vmcoreinfo"]

MAX_TEXT = 1 << 16
"""Bytes that a text has at most; kernels give it one page, and the largest page is 64 KiB."""

MAX_CANDIDATES = 1 << 12
"""Places that are read as a whole: a guest that has more of them than this hides its text anyway."""

_NEEDLE = b"OSRELEASE="
_MIN_TEXT = 128
"""Bytes from one candidate to the next: no kernel says all that is asked for in fewer."""
_MIN_ADDRESSES = 3
"""SYMBOL and OFFSET lines that a text must have; kernels write a hundred."""

_NOT_TEXT = re.compile(rb"[^\n\x20-\x7e]")
_LINE = re.compile(r"[A-Za-z][^=\s]*=.*")
_ADDRESS = re.compile(r"SYMBOL\(\w[\w.]*\)=(0x)?[0-9a-f]+|OFFSET\(\w[\w.]*\)=[0-9]+")
_RELEASE = re.compile(r"[0-9]\S*")
_NAME = b"VMCOREINFO\0\0"
_HEAD = 24  # three numbers, and the name as it is padded


@dataclass(frozen=True, slots=True)
class Found:
    """VMCOREINFO in memory.

    Attributes:
        info: the text.
        address: where it begins, in the dump's space.
        form: ``note`` with the header of an ELF note before it, ``text`` without.
    """

    info: VmCoreInfo
    address: int
    form: Literal["note", "text"]


def find(
    dump: Dump,
    *,
    progress: Callable[[Progress], None] | None = None,
    threads: int | None = None,
) -> Found | None:
    """Search all pages of a dump for its kernel's VMCOREINFO.

    Args:
        dump: where to search, of any format.
        progress: called after each batch.
        threads: workers; 0 does all in this thread, None takes one for each processor, up to 8.

    Raises:
        CorruptDumpError: the dump's index cannot be read.
        MissingCodecError: the library of a codec is not installed.
    """
    store = dump.pages
    pages = with_bytes(store)
    meter = Meter("search", pages.count * store.page_size, progress)
    threads = default_threads() if threads is None else threads
    best: Found | None = None
    left = MAX_CANDIDATES
    looked = ordered_map(_Search(store, pages).look, windows(pages, store.page_size), threads=threads)
    with contextlib.closing(looked) as parts:
        for count, addresses in parts:
            for address in addresses[:left].tolist():
                found = _verified(dump, address)
                if found and found.form == "note":
                    return found
                if found and (best is None or len(found.info.text) > len(best.info.text)):
                    best = found
            left -= len(addresses)
            if left <= 0:
                break
            meter.add(count * store.page_size)
    return best


def with_vmcoreinfo(dump: Dump, info: VmCoreInfo) -> Dump:
    """Give the same dump with this VMCOREINFO in the place of what it had; nothing is read or copied."""
    return replace(
        dump,
        vmcoreinfo=info,
        notes=tuple(note for note in dump.notes if note.name != "VMCOREINFO"),
        machine=replace(dump.machine, release=info.release or dump.machine.release),
    )


@dataclass(frozen=True, slots=True)
class _Search:
    """Looks for candidates in some pages of a store."""

    store: PageStore
    pages: PageSet

    def look(self, window: tuple[int, int]) -> tuple[int, Int64s]:
        """Give the number of pages in a window of ranks, and the addresses of candidates; runs in a worker."""
        first, last = window
        store, size = self.store, self.store.page_size
        before = int(first > 0)  # the page before, for what begins on it and goes on here
        table = store.locate(self.pages.select(first - before, last))
        batch = batches.gather(batches.decode(store.fetch(table), size), size)
        body, pfn = _contiguous(batch, size)
        at = _candidates(body)
        if before and len(pfn) and pfn[0] == table.pfn[0]:
            at = at[at >= size - len(_NEEDLE)]
        return last - first, (pfn[at // size] * size + at % size)[:MAX_CANDIDATES]


def _contiguous(batch: PageBatch, page_size: int) -> tuple[UInt8s, Int64s]:
    """Give the bytes of gathered pages one behind the other, and their pfns."""
    rows = batch.table.stored()
    if not len(rows):
        return np.empty(0, np.uint8), rows.pfn
    return np.frombuffer(batch.body, np.uint8, len(rows) * page_size, int(rows.offset[0])), rows.pfn


def _candidates(body: UInt8s) -> Int64s:
    """Find where the needle begins with a digit behind it, at any offset.

    Wherever it lies, one of four parts of it fills an aligned word of four bytes: comparing words takes a quarter of
    the time that comparing bytes does, and other threads run meanwhile.
    """
    shift = -body.ctypes.data % 4
    words = body[shift : shift + (len(body) - shift) // 4 * 4].view(np.uint32)
    at = [
        np.flatnonzero(words == np.frombuffer(_NEEDLE, np.uint32, 1, part)[0]) * 4 + (shift - part) for part in range(4)
    ]
    start = np.sort(np.concatenate(at)).astype(np.int64)
    start = start[(start >= 0) & (start < len(body) - len(_NEEDLE))]
    for number, char in enumerate(_NEEDLE):
        start = start[body[start + number] == char]
    following = body[start + len(_NEEDLE)]
    start = start[(following >= ord("0")) & (following <= ord("9"))]
    return start[np.diff(start, append=start[-1:] + _MIN_TEXT) >= _MIN_TEXT]


def _verified(dump: Dump, address: int) -> Found | None:
    """Read a candidate as a whole, and give it if it makes sense."""
    text = _text(dump.pages, address)
    length = _note_length(dump, address)
    if length is not None and length <= len(text) and _makes_sense(dump, text[:length]):
        return Found(VmCoreInfo.from_bytes(text[:length]), address, "note")
    text = text[: text.rfind(b"\n") + 1]
    return Found(VmCoreInfo.from_bytes(text), address, "text") if _makes_sense(dump, text) else None


def _text(store: PageStore, address: int) -> bytes:
    """Read text from an address on, over pages that follow each other, until something else comes."""
    size = store.page_size
    text = b""
    while len(text) < MAX_TEXT:
        pfn, at = divmod(address + len(text), size)
        page = np.zeros((1, size), np.uint8)
        states = batches.read_pages(store, np.array([pfn], np.int64), page)
        if int(states[0]) not in (STORED, ZERO):
            break
        piece = page[0, at:].tobytes()
        end = _NOT_TEXT.search(piece)
        text += piece[: end.start()] if end else piece
        if end:
            break
    # A kernel says its release once: what comes after a second time is another candidate.
    again = text.find(b"\n" + _NEEDLE)
    return text[: again + 1] if again >= 0 else text[:MAX_TEXT]


def _note_length(dump: Dump, address: int) -> int | None:
    """Give the length that a note's header before the text says, if there is one."""
    if address < _HEAD:
        return None
    try:
        head = PhysicalMemory(dump.pages).read(address - _HEAD, _HEAD)
    except PageUnavailableError:
        return None
    name_size, length, kind = struct.unpack_from(dump.machine.endian + "3I", head)
    is_note = head[12:] == _NAME and name_size == len(_NAME) - 1 and not kind
    return int(length) if is_note else None


def _makes_sense(dump: Dump, text: bytes) -> bool:
    """Check that a text is whole lines, and says what every kernel does."""
    if not text.endswith(b"\n"):
        return False
    info = VmCoreInfo.from_bytes(text)
    lines = info.text.split("\n")[:-1]
    return (
        all(map(_LINE.fullmatch, lines))
        and _RELEASE.fullmatch(info.release or "") is not None
        and _fits(dump, info.page_size or 0)
        and sum(map(bool, map(_ADDRESS.fullmatch, lines))) >= _MIN_ADDRESSES
    )


def _fits(dump: Dump, page_size: int) -> bool:
    """Compare page sizes; where kernels choose theirs, a dump may be read in smaller ones."""
    own = dump.machine.page_size
    if dump.machine.arch.name in ("x86_64", "i386"):
        return page_size == own
    return page_size >= own
