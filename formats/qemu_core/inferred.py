"""The guest's memory without debug information: RAM blocks by their looks, their places by the type of the machine.

A RAMBlock holds its name in place, at a fixed distance behind the address and the length of its memory; the distances
changed twice since 2.0::

    2.0 to 2.2    mr | host | offset | length | flags u32 | idstr[256] | 4 bytes | next, prev
    2.3 to 2.11   ... | host | offset | used_length | max_length | resized | flags | idstr | 4 bytes | next, prev
    since 2.12    ... | host | colo_cache | offset | used_length | max_length | resized | flags | idstr | ...

One that is found leads to all others by their list. The memory of a real block is mapped, in one piece, and consists
of whole pages. Where a core holds no structures at all, its largest mapping is taken for the machine's memory.

Sources: qemu include/exec/ramblock.h (cpu-all.h before 2.6), releases 2.0 to 10.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.elf.search import places
from dumpxlate.errors import CorruptDumpError, UnsupportedFeatureError
from dumpxlate.formats.qemu_core.ram import GuestRam, RamBlock
from dumpxlate.qemu.layout import Block, board_of, lay_out, main_memory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dumpxlate.formats.qemu_core.process import Process, ProcessMemory

__all__ = ["Inferred", "find_blocks", "infer_ram", "largest_mapping"]

_KNOWN = (b"pc.ram\0", b"/rom@etc/acpi/tables\0", b"mach-virt.ram\0", b"pc.bios\0", b"ram-node0\0")
"""Names that machines give their blocks; one of them is enough."""
_NEXT, _PREVIOUS = 260, 268  # behind the name's first byte
_NAME = 256
_HITS_LIMIT = 1 << 16
_BLOCKS_LIMIT = 1 << 12
_CHUNK = 16 << 20
_SEARCH_LIMIT = 4 << 30
_PAGE, _MIB = 1 << 12, 1 << 20
_ADDRESS_LIMIT = 1 << 62


@dataclass(frozen=True, slots=True)
class _Shape:
    """Where the block begins, and where its members lie, before the name's first byte."""

    start: int
    host: int
    offset: int
    length: int
    room: int


_SHAPES = (_Shape(76, 52, 36, 28, 20), _Shape(68, 44, 36, 28, 20), _Shape(36, 28, 20, 12, 12))


@dataclass(frozen=True, slots=True)
class Inferred:
    """Guest memory that was inferred.

    Attributes:
        ram: the memory.
        evidence: what it was inferred from, for people.
        attributes: for info to show.
    """

    ram: GuestRam
    evidence: tuple[str, ...]
    attributes: dict[str, int | str]


def infer_ram(process: Process, machine: str | None, below_4g: int | None, told: str, *, x86: bool) -> Inferred:
    """Find RAM blocks, and lay them out.

    Args:
        process: the process.
        machine: type of the machine; None where nothing tells.
        below_4g: bytes of RAM below 4 GiB, where somebody says so.
        told: who says what type of machine it is.
        x86: whether it is a PC.

    Raises:
        UnsupportedFeatureError: no RAM block is found, or the machine's layout is not known.
    """
    blocks, found_by = find_blocks(process), "their names and mappings"
    if not blocks:
        blocks, found_by = largest_mapping(process), "size alone, since QEMU's own structures are not in the core"
    if not blocks:
        raise UnsupportedFeatureError(
            "no RAM block is found by its looks: give the debug information of this QEMU (--debug-file), a profile of "
            "it (--profile), or the memory by hand (--ram-block START:LENGTH:HVA)",
            format="qemu_core",
            feature="RAM blocks",
        )
    if not machine and x86:
        machine, told = _any_pc(blocks), "pc and q35 are alike with so little memory"
    board = board_of(machine or "", [block.name for block in blocks])
    layout = lay_out(board, [Block(block.name, block.length) for block in blocks], below_4g=below_4g)
    rows = [(each.start, each.length, blocks[each.block].host + each.offset) for each in layout.placements]
    evidence = (
        (
            f"inferred, without debug information: {len(blocks)} RAM blocks, found by {found_by}, are laid out as on "
            f"a machine of type {board.name} ({told})"
        ),
        *layout.remarks,
    )
    attributes: dict[str, int | str] = {"board": board.name}
    if board.split:
        attributes["ram_below_4g"] = hex(layout.below_4g)
    return Inferred(GuestRam.of(rows, blocks), evidence, attributes)


def _any_pc(blocks: Sequence[RamBlock]) -> str:
    """Give a type that stands for both kinds of PC.

    Raises:
        UnsupportedFeatureError: the memory is so large that they differ.
    """
    size = sum(blocks[number].length for number in main_memory([block.name for block in blocks]))
    if size >= board_of("q35").limit:
        raise UnsupportedFeatureError(
            f"where {size:#x} bytes of memory are split below 4 GiB depends on the type of the machine, which is not "
            "known: say --machine-type pc or --machine-type q35",
            format="qemu_core",
            feature="machine type",
        )
    return "pc"


def find_blocks(process: Process) -> tuple[RamBlock, ...]:
    """Find all RAM blocks by the looks of one, in the order of their list; none where there is none."""
    if process.pointer != 8:
        return ()
    for at in islice(_names(process.memory), _HITS_LIMIT):
        for shape in _SHAPES:
            if _block(process, at, shape):
                return _chain(process, at, shape)
    return ()


def largest_mapping(process: Process) -> tuple[RamBlock, ...]:
    """Take the largest mapping for the machine's memory, if it is of whole MiB; nothing where none is.

    A core may hold the guest's memory and not much else: coredump_filter may keep shared mappings only.
    """
    start, size = process.memory.mapped
    if not len(size) or int(size.max()) % _MIB or int(size.max()) == 0:
        return ()
    host, length = int(start[size.argmax()]), int(size.max())
    return (RamBlock("memory", host, 0, length, length),)


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


def _block(process: Process, at: int, shape: _Shape) -> RamBlock | None:
    """Read the block whose name stands at an address; None where it does not look like one."""
    try:
        before = process.memory.read(at - shape.host, shape.host, "RAMBlock")
        text = process.memory.read(at, _NAME, "RAMBlock").partition(b"\0")[0]
    except CorruptDumpError:
        return None
    order = "little" if process.endian == "<" else "big"
    host, offset, length, room = (
        int.from_bytes(before[shape.host - place :][:8], order)  # type: ignore[arg-type]
        for place in (shape.host, shape.offset, shape.length, shape.room)
    )
    whole = not (host | offset | length) % _PAGE and 0 < length <= room < _ADDRESS_LIMIT > host
    if not whole or not text.isascii() or not text.decode("latin-1").isprintable():
        return None
    mapping = process.memory.mapping(host)
    if mapping is None or host + length > mapping[1]:
        return None
    return RamBlock(text.decode("latin-1"), host, offset, length, room)


def _chain(process: Process, at: int, shape: _Shape) -> tuple[RamBlock, ...]:
    """Follow the list from one block, back to its first one and then to its end."""
    for _ in range(_BLOCKS_LIMIT):
        before = _word(process, at + _PREVIOUS) - _NEXT
        if not _block(process, before, shape):
            break
        at = before
    blocks: list[RamBlock] = []
    while len(blocks) < _BLOCKS_LIMIT and (block := _block(process, at, shape)):
        blocks.append(block)
        at = _word(process, at + _NEXT) + shape.start
    return tuple(blocks)


def _word(process: Process, at: int) -> int:
    """Read a pointer; 0 where it is not in the core."""
    try:
        return process.word(at, 8, "RAMBlock")
    except CorruptDumpError:
        return 0
