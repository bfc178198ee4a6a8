"""The RAM section of a stream: the table of blocks, and where a mapped-ram file has their pages.

Source: qemu migration/ram.c (ram_save_setup, parse_ramblocks, mapped_ram_setup_ramblock) and its MappedRamHeader;
checked against mapped-ram files of 10.0, one of them written by multifd behind 64 KiB of something else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.errors import CorruptDumpError
from dumpxlate.qemu.layout import Block
from dumpxlate.qemu.records import FLAGS, MEM_SIZE, Kind
from dumpxlate.structs import U32, U64, parse, size_of, struct

if TYPE_CHECKING:
    from dumpxlate.io.source import Source
    from dumpxlate.qemu.records import RecordLog

__all__ = ["BlockTable", "read_table"]

_MOST_BLOCKS = 4096
_LONGEST = 1 << 52
"""Bytes of RAM in all: more than a physical address of any machine reaches."""

_NAME = re.compile(rb"[\x20-\x7e]{1,255}")
_MAPPED_VERSION = 1
_BITMAP_STEP = 1 << 20


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
    """

    blocks: tuple[Block, ...]
    end: int
    mapped: bool
    base: tuple[int, ...]


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
    base, rest = [0], total
    while rest:
        block, at = _block(source, at)
        rest -= block.length
        if rest < 0 or len(blocks) >= _MOST_BLOCKS or any(block.name == other.name for other in blocks):
            raise CorruptDumpError(
                f"block {block.name!r} of {block.length:#x} bytes comes twice, or leaves the {total:#x} bytes of all",
                offset=at,
                what="RAM block table",
            )
        blocks.append(block)
        at = _extras(source, at, last=not rest, mapped=mapped)
        if mapped:
            at = _mapped_pages(source, at, block, page_size, base[-1], log)
        base.append(base[-1] - -block.length // page_size)
    return BlockTable(tuple(blocks), at, mapped, tuple(base))


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


def _mapped_pages(source: Source, at: int, block: Block, page_size: int, base: int, log: RecordLog) -> int:
    """Index one block of a mapped-ram file by its bitmap; gives what is behind its pages.

    Offsets are those of the file that QEMU wrote, where something may stand before the stream: the bitmap follows the
    header, which tells what.
    """
    size = size_of(MappedRamHeader)
    head = parse(
        MappedRamHeader, source.view(at, max(min(size, source.size - at), 0)), 0, ">", what="mapped-ram header"
    )
    before = head.bitmap_offset - (at + size)
    pages = block.length // page_size
    start, bitmap = head.pages_offset - before, at + size
    if head.version != _MAPPED_VERSION or head.page_size != page_size:
        raise CorruptDumpError(
            f"version {head.version}, pages of {head.page_size} bytes: expected version 1, {page_size}",
            offset=at,
            what="mapped-ram header",
        )
    if before < 0 or start < bitmap + -(-pages // 8) or start > source.size:
        raise CorruptDumpError(
            f"bitmap at {head.bitmap_offset:#x}, pages at {head.pages_offset:#x}", offset=at, what="mapped-ram header"
        )
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
