"""Where a machine's RAM blocks lie in guest-physical memory.

QEMU keeps memory in named RAM blocks. Neither a migration stream nor a core without debug information says at which
address a block is seen; the type of the machine decides, and on a PC some registers of the chipset.

Sources: qemu hw/i386/pc.c, x86.c (x86_bios_rom_init), pci-host/pam.c; those of boards are in ``boards.py``. Checked
against ``info mtree -f`` of 7.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.errors import UnsupportedFeatureError
from dumpxlate.extents import first_wins, merge
from dumpxlate.qemu.backends import find_memory, is_device_ram, listed, main_memory
from dumpxlate.qemu.boards import Board, board_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dumpxlate.qemu.backends import MainMemory

__all__ = [
    "UNKNOWN",
    "Block",
    "Board",
    "Chipset",
    "GuestLayout",
    "Placement",
    "Window",
    "board_of",
    "lay_out",
    "need_type",
]

_MIB = 1 << 20
_GIB = 1 << 30
_4GIB = 4 * _GIB
_HYPERTRANSPORT = 0xFD00000000
"""Where addresses begin that AMD's processors do not use for RAM (hw/i386/pc.c)."""

_PAM_START, _ISA_BIOS, _VGA_WINDOW = 0xC0000, 128 << 10, (0xA0000, 0x20000)


@dataclass(frozen=True, slots=True)
class Block:
    """One RAM block.

    Attributes:
        name: its id string.
        length: bytes that are in use.
    """

    name: str
    length: int


@dataclass(frozen=True, slots=True)
class Placement:
    """A part of a block that the processors see at an address.

    Attributes:
        start: guest-physical address.
        length: bytes.
        block: number of the block.
        offset: of the part in its block.
    """

    start: int
    length: int
    block: int
    offset: int


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a screen's memory that is seen in the VGA window: block, address, bytes, offset in the block."""

    block: str
    start: int
    length: int
    offset: int


@dataclass(frozen=True, slots=True)
class Chipset:
    """What registers of a PC say about its memory; None and empty where they are not known.

    Attributes:
        above_4g: bytes of RAM above 4 GiB in the lowest 40 bits, as CMOS bytes 0x5b to 0x5d tell the firmware.
        shadowed: for each of the 13 areas of the PAM registers, 0xc0000 to 0xeffff by 16 KiB and 0xf0000 by 64 KiB,
            whether reading goes to RAM. Firmware sets all while it starts, so that is assumed where nothing is known.
        bars: guest-physical address by block, for blocks behind a PCI BAR; -1 where it is switched off.
        windows: parts of screens that are seen where old programs look for them.
        size: bytes of RAM that the machine began with: in whole units of 64 KiB, as the CMOS tells, or those of ``-m``.
    """

    above_4g: int | None = None
    shadowed: tuple[bool, ...] = (True,) * 13
    bars: Mapping[str, int] | None = None
    windows: tuple[Window, ...] = ()
    size: int | None = None


UNKNOWN = Chipset()
"""Nothing is known of the registers."""


@dataclass(frozen=True, slots=True)
class GuestLayout:
    """Where everything lies.

    Attributes:
        board: the kind of machine.
        placements: ascending, disjoint; a block may be seen at several addresses.
        below_4g: bytes of RAM below 4 GiB; all of it on machines without a hole there.
        unplaced: numbers of the blocks that are not, or only nobody knows where, in guest-physical memory.
        remarks: what was inferred, for people.
        damage: memory that is left out, or may be elsewhere.
    """

    board: Board
    placements: tuple[Placement, ...]
    below_4g: int
    unplaced: tuple[int, ...]
    remarks: tuple[str, ...]
    damage: tuple[str, ...] = ()


def need_type(board: Board, blocks: Sequence[Block]) -> None:
    """Make sure that all kinds of PC have their memory at the same place, for a machine whose type nothing tells.

    Args:
        board: what it is taken for.
        blocks: its RAM blocks.

    Raises:
        UnsupportedFeatureError: it has so much memory that they differ.
    """
    size = sum(blocks[number].length for number in main_memory([block.name for block in blocks]))
    if board.split and size >= board_of("q35").limit:
        raise UnsupportedFeatureError(
            f"where {size:#x} bytes of memory are split below 4 GiB depends on the type of the machine, which is not "
            "known: say --machine-type pc-i440fx-1.7, pc or q35",
            feature="machine type",
        )


@dataclass(frozen=True, slots=True)
class _Layer:
    """A range of addresses that hides those given before it; block -1 only hides."""

    start: int
    length: int
    block: int
    offset: int = 0


def lay_out(
    board: Board, blocks: Sequence[Block], *, below_4g: int | None = None, chipset: Chipset = UNKNOWN
) -> GuestLayout:
    """Say where a machine's RAM blocks lie.

    Args:
        board: the kind of machine.
        blocks: its RAM blocks.
        below_4g: bytes of RAM below 4 GiB, where the user says so.
        chipset: what registers tell.

    Raises:
        UnsupportedFeatureError: no block looks like the machine's memory.
    """
    found = find_memory([block.name for block in blocks], [block.length for block in blocks], chipset.size)
    memory = found.blocks
    if not memory:
        raise UnsupportedFeatureError("no RAM block looks like the machine's memory", feature="RAM blocks")
    size = sum(blocks[number].length for number in memory)
    remarks: list[str] = []
    below = _below_4g(board, size, below_4g, chipset.above_4g, remarks)
    if board.split and _4GIB + size - below > _HYPERTRANSPORT:
        remarks.append(
            "RAM reaches 1 TiB: for an AMD processor QEMU 7.1 and later may put all above 4 GiB there instead"
        )
    # What is behind a BAR is seen where nothing else is: QEMU gives all of the bus the lowest priority.
    layers = [*_behind_bars(blocks, chipset), *_memory(board, blocks, memory, below), *_roms(board, blocks, chipset)]
    if any("vga" in block.name and block.name.endswith("vram") for block in blocks):
        layers.append(_Layer(*_VGA_WINDOW, -1))
        remarks.append("RAM behind the VGA window (0xa0000 to 0xbffff) is left out, as in QEMU's own dumps")
    layers += _windows(blocks, chipset)
    layers += [_Layer(start, length, -1) for start, length in board.hidden]
    placements = _seen(layers, blocks)
    placed = {placement.block for placement in placements}
    unplaced = tuple(number for number in range(len(blocks)) if number not in placed)
    remarks += _left_out([blocks[number].name for number in unplaced], chipset)
    return GuestLayout(board, placements, below, unplaced, tuple(remarks), _missing(blocks, found))


def _left_out(names: Iterable[str], chipset: Chipset) -> Iterable[str]:
    """Say which memory of devices the guest may see, and nobody knows where."""
    found = [name for name in names if is_device_ram(name) and name not in (chipset.bars or {})]
    if found:
        yield f"memory of devices is left out, since its address is not known: {listed(found)}"


def _missing(blocks: Sequence[Block], memory: MainMemory) -> tuple[str, ...]:
    """Say which memory is left out, or may be elsewhere."""
    said = [memory.doubt] if memory.doubt else []
    if memory.apart:
        names = listed([blocks[number].name for number in memory.apart])
        said.append(
            f"memory beside {blocks[memory.blocks[0]].name} is left out, since its address is not known: {names}"
        )
    return tuple(said)


def _below_4g(board: Board, size: int, told: int | None, above: int | None, remarks: list[str]) -> int:
    """Decide how much RAM lies below 4 GiB: the user's word, then the chipset's, then the rule of the board."""
    if told is not None:
        if not 0 < told <= _4GIB or told % _MIB:
            raise UnsupportedFeatureError(
                f"{told:#x} bytes of RAM below 4 GiB: expected whole MiB, up to 4 GiB", feature="ram_below_4g"
            )
        below = board.below_4g(size, told) if board.split else min(told, size)
        if below < min(told, size):
            remarks.append(
                f"{below:#x} bytes of RAM lie below 4 GiB, not {told:#x}: a machine like {board.name} has no more there"
            )
        return below
    if not board.split:
        return size
    usual = board.below_4g(size)
    if above is None or (size - usual) & 0xFFFFFF0000 == above:
        return usual
    if 0 < above < size and size - above <= _4GIB:
        remarks.append(f"{size - above:#x} bytes of RAM lie below 4 GiB: the CMOS says so (max-ram-below-4g was given)")
        return size - above
    remarks.append(f"the CMOS speaks of {above:#x} bytes of RAM above 4 GiB, which cannot be: the usual split is taken")
    return usual


def _memory(board: Board, blocks: Sequence[Block], memory: Sequence[int], below: int) -> Iterable[_Layer]:
    """Lay the memory out: one block behind the other, cut at the hole below 4 GiB."""
    done = 0
    for number in memory:
        length = blocks[number].length
        low = max(min(length, below - done), 0)
        if low:
            yield _Layer(board.ram + done, low, number)
        if low < length:
            yield _Layer(_4GIB + max(done - below, 0), length - low, number, low)
        done += length


def _roms(board: Board, blocks: Sequence[Block], chipset: Chipset) -> Iterable[_Layer]:
    """Place the firmware; below 1 MiB where no RAM is switched in front of it."""
    shadowed = chipset.shadowed if board.pam else (False,) * 13
    for number, block in enumerate(blocks):
        low = min(block.length, _ISA_BIOS)
        if block.name == "pc.bios" and block.length <= _GIB:
            yield _Layer(_4GIB - block.length, block.length, number)
            yield from _unshadowed(_Layer(_MIB - low, low, number, block.length - low), shadowed)
        elif block.name == "isa-bios":
            yield from _unshadowed(_Layer(_MIB - low, low, number, block.length - low), shadowed)
        elif block.name == "pc.rom":
            yield from _unshadowed(_Layer(_PAM_START, low, number), shadowed)
        for name, address in board.roms:
            if block.name == name:
                yield _Layer(address, min(block.length, _4GIB - address), number)


def _unshadowed(layer: _Layer, shadowed: Sequence[bool]) -> Iterable[_Layer]:
    """Cut a layer below 1 MiB to the areas where no RAM hides it."""
    for area, hidden in enumerate(shadowed):
        start = _PAM_START + (area << 14)
        stop = _MIB if area == 12 else start + (1 << 14)
        low, high = max(start, layer.start), min(stop, layer.start + layer.length)
        if not hidden and low < high:
            yield _Layer(low, high - low, layer.block, layer.offset + low - layer.start)


def _behind_bars(blocks: Sequence[Block], chipset: Chipset) -> Iterable[_Layer]:
    """Place the blocks of PCI devices."""
    for number, block in enumerate(blocks):
        address = (chipset.bars or {}).get(block.name, -1)
        if address >= 0:
            yield _Layer(address, block.length, number)


def _windows(blocks: Sequence[Block], chipset: Chipset) -> Iterable[_Layer]:
    """Place what is seen of screens in the VGA window."""
    numbers = {block.name: number for number, block in enumerate(blocks)}
    for window in chipset.windows:
        number = numbers.get(window.block, -1)
        if number >= 0 and window.offset + window.length <= blocks[number].length:
            yield _Layer(window.start, window.length, number, window.offset)


def _seen(layers: Sequence[_Layer], blocks: Sequence[Block]) -> tuple[Placement, ...]:
    """Put layers over one another; later ones hide earlier ones."""
    # Blocks in one space of all of them, a byte apart so that none continues another; what only hides lies behind.
    base = np.cumsum(np.array([0, *(block.length + 1 for block in blocks)], np.int64))
    rows = np.array(
        [(layer.start, layer.length, (int(base[layer.block]) + layer.offset)) for layer in reversed(layers)], np.int64
    ).reshape(-1, 3)
    start, length, key = merge(*first_wins(rows[:, 0], rows[:, 1], rows[:, 2]))
    owner = np.searchsorted(base, key, side="right") - 1
    return tuple(
        Placement(*row)
        for row in zip(start.tolist(), length.tolist(), owner.tolist(), (key - base[owner]).tolist(), strict=True)
        if row[2] < len(blocks)
    )
