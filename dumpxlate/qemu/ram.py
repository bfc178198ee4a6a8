"""The RAM section of a stream: the table of blocks, and where a mapped-ram file has their pages.

Source: qemu migration/ram.c (ram_save_setup, parse_ramblocks, mapped_ram_setup_ramblock) and its MappedRamHeader;
checked against mapped-ram files of 10.0, one of them written by multifd behind 64 KiB of something else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.errors import CorruptDumpError, TruncatedDumpError
from dumpxlate.qemu.flags import EOS, FLAGS, MEM_SIZE
from dumpxlate.qemu.layout import Block
from dumpxlate.qemu.records import Kind
from dumpxlate.structs import U32, U64, parse, size_of, struct

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dumpxlate.io.source import Source
    from dumpxlate.qemu.records import RecordLog

__all__ = ["BlockTable", "read_table"]

_MOST_BLOCKS = 4096
_LONGEST = 1 << 52
"""Bytes of RAM in all: more than a physical address of any machine reaches."""

_NAME = re.compile(rb"[\x20-\x7e]{1,255}")
_MAPPED_VERSION = 1
_BITMAP_STEP = 1 << 20
_BEFORE, _MAPPED_ALIGNMENT = 64 << 10, 1 << 20


@struct
class MappedRamHeader:
    """MappedRamHeader of migration/ram.c, big-endian."""

    version: U32
    page_size: U64
    bitmap_offset: U64
    pages_offset: U64


@struct
class _Word:
    value: U64


@dataclass(frozen=True, slots=True)
class BlockTable:
    """The RAM blocks of a stream.

    Attributes:
        blocks: name and length, in the order of the table.
        end: offset behind the table, and behind the pages of a mapped-ram file.
        mapped: whether pages stand at fixed places, not in records.
        base: number of each block's first page, counted through all of them; one more for the end.
        damage: what is wrong with a mapped-ram file.
        whole: whether all blocks are there.
    """

    blocks: tuple[Block, ...]
    end: int
    mapped: bool
    base: tuple[int, ...]
    damage: tuple[str, ...] = ()
    whole: bool = True


def read_table(source: Source, at: int, page_size: int, capabilities: frozenset[str], log: RecordLog) -> BlockTable:
    """Read the table that a RAM section begins with.

    Args:
        source: the file.
        at: where the section's payload begins.
        page_size: bytes a page.
        capabilities: what the stream says it was made with.
        log: takes the pages of a mapped-ram file.

    Raises:
        CorruptDumpError: the table contradicts itself.
        TruncatedDumpError: the file ends in it.
    """
    word = _word(source, at)
    total, flags = word & ~FLAGS, word & FLAGS
    if flags != MEM_SIZE or not 0 < total < _LONGEST:
        raise CorruptDumpError(f"word {word:#x}: expected the size of all blocks", offset=at, what="RAM section")
    mapped = "mapped-ram" in capabilities
    at += 8
    blocks: list[Block] = []
    base, rest, damage, whole = [0], total, list[str](), True
    while rest and whole:
        try:
            block, at = _next_block(source, at, blocks, total, rest)
            rest -= block.length
            blocks.append(block)
            base.append(base[-1] - -block.length // page_size)
            at = _extras(source, at, last=not rest, mapped=mapped)
            if mapped:
                at = _mapped_pages(source, at, block, page_size, base[-2], rest, log, damage)
        except (CorruptDumpError, TruncatedDumpError) as error:
            if not mapped or not len(log):
                raise
            damage.append(f"{error}; pages behind it are missing")
            whole = False
    return BlockTable(tuple(blocks), at if whole else source.size, mapped, tuple(base), tuple(damage), whole)


def _next_block(source: Source, at: int, blocks: Sequence[Block], total: int, rest: int) -> tuple[Block, int]:
    """Read the next row of the table; gives what follows."""
    block, end = _block(source, at)
    if block.length > rest or len(blocks) >= _MOST_BLOCKS or any(block.name == other.name for other in blocks):
        raise CorruptDumpError(
            f"block {block.name!r} of {block.length:#x} bytes comes twice, or leaves the {total:#x} bytes of all",
            offset=end,
            what="RAM block table",
        )
    return block, end


def _word(source: Source, at: int) -> int:
    return parse(_Word, source.view(at, max(min(8, source.size - at), 0)), 0, ">", what="RAM section").value


def _block(source: Source, at: int) -> tuple[Block, int]:
    """Read name and length of one block; gives what follows."""
    head = bytes(source.view(at, max(min(264, source.size - at), 0)))
    name = head[1 : 1 + head[0]] if head else b""
    if not head or len(head) < 9 + head[0] or not _NAME.fullmatch(name):
        raise CorruptDumpError(f"expected a block's name, found {head[:8].hex(' ')}", offset=at, what="RAM block table")
    length = int.from_bytes(head[1 + len(name) : 9 + len(name)], "big")
    if length >= _LONGEST:
        raise CorruptDumpError(f"{length:#x} bytes in one block", offset=at, what="RAM block table")
    return Block(name.decode(), length), at + 9 + len(name)


def _extras(source: Source, at: int, *, last: bool, mapped: bool) -> int:
    """Pass over a block's page size and address, which are there with some capabilities that the stream does not name.

    Each is a word without flags whose first byte is zero, which neither a name's length nor a record can be.
    """
    for _ in range(2):
        if at + 8 > source.size:
            break
        word = _word(source, at)
        if mapped and word >> 32 == _MAPPED_VERSION and not word & 0xFFFFFFFF:
            break
        if word >> 56 or (last and word & FLAGS):
            break
        at += 8
    return at


def _mapped_pages(
    source: Source, at: int, block: Block, page_size: int, base: int, rest: int, log: RecordLog, damage: list[str]
) -> int:
    """Index one block of a mapped-ram file by its bitmap; gives what is behind its pages.

    Args:
        source: the file.
        at: where the header of its pages is.
        block: the block.
        page_size: bytes a page.
        base: number of its first page.
        rest: bytes of the blocks that follow.
        log: takes the pages.
        damage: takes what is wrong.
    """
    bitmap, pages = at + size_of(MappedRamHeader), block.length // page_size
    start = _mapped_start(source, at, block, page_size, rest, damage)
    for first in range(0, -(-pages // 8), _BITMAP_STEP):
        view = source.view(bitmap + first, min(_BITMAP_STEP, -(-pages // 8) - first))
        bits = np.unpackbits(np.frombuffer(view, np.uint8), bitorder="little")[: pages - 8 * first]
        edges = np.flatnonzero(np.diff(bits, prepend=np.uint8(1 - bits[0])))
        count = np.diff(edges, append=len(bits))
        held = bits[edges] != 0
        page = edges + 8 * first
        zeros = np.zeros(int((~held).sum()), np.int64)
        log.add_runs(Kind.RAW, page[held] + base, count[held], start + page[held] * page_size)
        log.add_runs(Kind.ZERO, page[~held] + base, count[~held], zeros)
    return start + block.length


def _mapped_start(source: Source, at: int, block: Block, page_size: int, rest: int, damage: list[str]) -> int:
    """Find where the pages of a block begin, and say so if its header is wrong.

    Offsets are those of the file that QEMU wrote, where something may stand before the stream: the bitmap follows the
    header, which tells what. Behind the pages comes the next block, or the end of the table: that proves the place.
    """
    size = size_of(MappedRamHeader)
    head = parse(
        MappedRamHeader, source.view(at, max(min(size, source.size - at), 0)), 0, ">", what="mapped-ram header"
    )
    before = head.bitmap_offset - (at + size)
    start, bitmap_end = head.pages_offset - before, at + size + -(-block.length // page_size // 8)
    wrong = ""
    if head.version != _MAPPED_VERSION:
        raise CorruptDumpError(f"version {head.version}, expected 1", offset=at, what="mapped-ram header")
    if head.page_size != page_size:
        wrong = f"pages of {head.page_size} bytes: expected {page_size}"
    elif before < 0 or start < bitmap_end or start > source.size:
        wrong = f"bitmap at {head.bitmap_offset:#x}, pages at {head.pages_offset:#x}"
    if not wrong and (start + block.length >= source.size or _follows(source, start + block.length, rest)):
        return start
    # libvirt puts a multiple of 64 KiB before the stream, and QEMU pages at multiples of 1 MiB of the file.
    first = -(-bitmap_end // _BEFORE) * _BEFORE
    places = range(first, first + _MAPPED_ALIGNMENT + 1, _BEFORE)
    proven = [place for place in places if _follows(source, place + block.length, rest)]
    error = CorruptDumpError(wrong or f"pages at {start:#x}, not behind them", offset=at, what="mapped-ram header")
    if len(proven) == 1:
        damage.append(f"{error}; by what stands behind them they are at {proven[0]:#x}")
    elif wrong:
        raise error
    return proven[0] if len(proven) == 1 else start


def _follows(source: Source, at: int, rest: int) -> bool:
    """Tell whether the next block stands at a place, or the end mark where no block is left."""
    if at + 9 > source.size:
        return False
    if not rest:
        return _word(source, at) == EOS
    try:
        return 0 < _block(source, at)[0].length <= rest
    except CorruptDumpError:
        return False
