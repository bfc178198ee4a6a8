"""RAM blocks by their looks, for QEMU without debug information.

A RAMBlock holds its name in place, at a fixed distance behind the address and the length of its memory; the distances
changed twice since 2.0::

    2.0 to 2.2    mr | host | offset | length | flags u32 | idstr[256] | 4 bytes | next, prev
    2.3 to 2.11   ... | host | offset | used_length | max_length | resized | flags | idstr | 4 bytes | next, prev
    since 2.12    ... | host | colo_cache | offset | used_length | max_length | resized | flags | idstr | ...

One that is found leads to all others by their list. A real block consists of whole pages, and its memory is mapped in
one piece, or its neighbours in the list know it. The latter alone has to do where the core does not list the mapping:
gdb leaves out what it does not write, and just that memory has to be missed.

Sources: qemu include/exec/ramblock.h (cpu-all.h before 2.6), include/qemu/queue.h, releases 2.0 to 10.2.
"""

from __future__ import annotations

import struct
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dumpxlate.elf.search import places
from dumpxlate.errors import CorruptDumpError
from dumpxlate.formats.qemu_core.ram import RamBlock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dumpxlate.formats.qemu_core.process import Process, ProcessMemory

__all__ = ["BlockList", "find_blocks"]

_KNOWN = (b"pc.ram\0", b"/rom@etc/acpi/tables\0", b"mach-virt.ram\0", b"pc.bios\0", b"ram-node0\0")
"""Names that machines give their blocks; one of them is enough."""
_NEXT, _PREVIOUS = 260, 268  # behind the name's first byte
_NAME = 256
_HITS_LIMIT = 1 << 16
_BLOCKS_LIMIT = 1 << 12
_CHUNK = 16 << 20
_SEARCH_LIMIT = 4 << 30
_PAGE = 1 << 12
_ADDRESS_LIMIT = 1 << 62
_LENGTH_LIMIT = 1 << 48
"""Bytes of a block: more than any host has, and the sum of all blocks still is a number."""


class BlockList(NamedTuple):
    """RAM blocks that were found.

    Attributes:
        blocks: in the order of their list; none where there is none.
        damage: what is wrong with the list, so that blocks may be missing.
    """

    blocks: tuple[RamBlock, ...] = ()
    damage: tuple[str, ...] = ()


class _Shape(NamedTuple):
    """Where the block begins, and where its members lie, before the name's first byte."""

    start: int
    host: int
    offset: int
    length: int
    room: int


_SHAPES = (_Shape(76, 52, 36, 28, 20), _Shape(68, 44, 36, 28, 20), _Shape(36, 28, 20, 12, 12))


def find_blocks(process: Process) -> BlockList:
    """Find all RAM blocks by the looks of one."""
    if process.pointer != 8:
        return BlockList()
    for at in islice(_names(process.memory), _HITS_LIMIT):
        for shape in _SHAPES:
            if _block_at(process, at, shape):
                return _chain(process, at, shape)
    return BlockList()


def _names(memory: ProcessMemory) -> Iterator[int]:
    """Find the known names; stretches of memory of little size, as heaps are, come first."""
    budget = _SEARCH_LIMIT
    for index in np.argsort(memory.length, kind="stable").tolist():
        start, length = int(memory.start[index]), int(memory.length[index])
        for at in range(start, start + length, _CHUNK):
            data = memory.read(at, min(_CHUNK + _NAME, start + length - at), "memory")
            for name in _KNOWN:
                yield from (at + found for found in places(data, name) if found < _CHUNK)
            budget -= len(data)
            if budget < 0:
                return


def _block_at(process: Process, at: int, shape: _Shape) -> RamBlock | None:
    """Read the block whose name stands at an address; None where it is none, as far as one can tell."""
    block = _read(process, at, shape)
    if block is None:
        return None
    mapping = process.memory.mapping(block.host)
    mapped = mapping is not None and block.host + block.length <= mapping[1]
    return block if mapped or _linked(process, at, shape) else None


def _read(process: Process, at: int, shape: _Shape) -> RamBlock | None:
    """Read a block; None where its members do not look like those of one."""
    try:
        before = process.memory.read(at - shape.host, shape.host, "RAMBlock")
        text = process.memory.read(at, _NAME, "RAMBlock").partition(b"\0")[0]
    except CorruptDumpError:
        return None
    host, offset, length, room = (
        struct.unpack_from(f"{process.endian}Q", before, shape.host - place)[0]
        for place in (shape.host, shape.offset, shape.length, shape.room)
    )
    whole = host and not (host | offset | length) % _PAGE and 0 < length <= room < _ADDRESS_LIMIT > host
    whole = whole and length < _LENGTH_LIMIT
    if not whole or not text.isascii() or not text.decode("latin-1").isprintable():
        return None
    return RamBlock(text.decode("latin-1"), host, offset, length, room)


def _linked(process: Process, at: int, shape: _Shape) -> bool:
    """Whether one of the neighbours in the list, or its head, has the address of a block."""
    back, following = _word(process, at + _PREVIOUS), _word(process, at + _NEXT)
    if back and _word(process, back) == at - shape.start:
        return True
    return bool(following) and _word(process, following + shape.start + _PREVIOUS) == at + _NEXT


def _chain(process: Process, at: int, shape: _Shape) -> BlockList:
    """Follow the list from one block, back to its first one and then to its end."""
    at, damage = _first(process, at, shape)
    blocks: dict[int, RamBlock] = {}
    following = at - shape.start
    while following:
        at = following + shape.start
        block = _block_at(process, at, shape)
        if block is None or at in blocks or len(blocks) == _BLOCKS_LIMIT:
            last = next(reversed(blocks.values())).name
            why = "leads back into itself" if at in blocks else f"ends at host address {following:#x}, where none is"
            damage.append(f"the list of RAM blocks {why}, behind {last!r}: others may be missing")
            break
        blocks[at] = block
        following = _word(process, at + _NEXT)
    return BlockList(tuple(blocks.values()), tuple(damage))


def _first(process: Process, at: int, shape: _Shape) -> tuple[int, list[str]]:
    """Go back to the first block that the list tells of, and say what is wrong on the way."""
    seen = {at}
    for _ in range(_BLOCKS_LIMIT):
        back = _word(process, at + _PREVIOUS)
        before = back - _NEXT
        if before in seen or not _block_at(process, before, shape):
            break
        at = before
        seen.add(at)
    if process.memory.held(back) and before not in seen and _word(process, back) != at - shape.start:
        return at, [f"the list of RAM blocks does not lead to the block at host address {at - shape.start:#x}"]
    return at, []


def _word(process: Process, at: int) -> int:
    """Read a pointer; 0 where it is not in the core."""
    try:
        return process.word(at, 8, "RAMBlock")
    except CorruptDumpError:
        return 0
