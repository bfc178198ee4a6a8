"""The guest's memory as QEMU has it: from the address space of the processors to host addresses.

::

    address_space_memory.current_map -> FlatView { ranges, nr } -> FlatRange { mr, offset_in_region, addr }[]
    MemoryRegion { ram, ram_device, alias, ... } -> alias -> ... -> ram_block -> RAMBlock { host, used_length, idstr }

A FlatView is what processors see (outside SMM): overlaps are resolved, its ranges ascend. Of them QEMU's own dumps
hold those of regions that are RAM, read-only or not, and neither memory of a passed-through device nor non-volatile;
flash that is written through a device (pflash) is no RAM by that rule.

Sources: qemu system/memory_mapping.c (guest_phys_block_add_section), system/memory.c (memory_region_get_ram_ptr),
scripts/dump-guest-memory.py; releases 2.0 to 10.2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dumpxlate.errors import CorruptDumpError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from dumpxlate.arrays import Int64s, UInt64s
    from dumpxlate.formats.qemu_core.process import Process
    from dumpxlate.qemu.profile import Profile

__all__ = ["GuestRam", "RamBlock", "Reader", "guest_ram", "overlaps", "ram_blocks"]

_RANGES_LIMIT = 100_000
_BLOCKS_LIMIT = 1 << 12
_ALIASES_LIMIT = 64
_ADDRESS_LIMIT = 1 << 62
_TARGET_PAGE = 1 << 12
_NAME = 256


class RamBlock(NamedTuple):
    """One RAM block.

    Attributes:
        name: its id string; empty where it has none.
        host: address of its first byte in the process.
        offset: in the space of all blocks.
        length: bytes in use.
        room: bytes that it may grow to.
    """

    name: str
    host: int
    offset: int
    length: int
    room: int


class GuestRam(NamedTuple):
    """Ranges of guest memory, int64, shape (n,), ascending.

    Attributes:
        start: guest-physical address.
        length: bytes, positive.
        host: address in the process.
        blocks: RAM blocks, those without a range too.
        damage: ranges that make no sense, and were left out.
    """

    start: Int64s
    length: Int64s
    host: Int64s
    blocks: tuple[RamBlock, ...] = ()
    damage: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, rows: Sequence[tuple[int, int, int]], blocks: tuple[RamBlock, ...] = (), damage: tuple[str, ...] = ()
    ) -> Self:
        """Make it of (start, length, host) of each range."""
        start, length, host = np.array(rows, np.int64).reshape(-1, 3).T
        return cls(start, length, host, blocks, damage)


def overlaps(ram: GuestRam) -> tuple[str, ...]:
    """Say where ranges overlap, which those of a processor's view never do: of such bytes one copy alone is kept."""
    order = np.argsort(ram.start, kind="stable")
    start, stop = ram.start[order], (ram.start + ram.length)[order]
    reach = np.maximum.accumulate(stop[:-1])
    twice = np.minimum(reach, stop[1:]) - start[1:]
    rows = np.flatnonzero(twice > 0)
    if not len(rows):
        return ()
    first, size = int(start[1:][rows[0]]), int(twice[rows].sum())
    return (f"ranges of memory overlap in {size:,} bytes, first at {first:#x}: only one of them is kept",)


class Reader(NamedTuple):
    """Reads members of QEMU's structures.

    Attributes:
        process: the process.
        profile: where members lie.
        bias: what the program was moved by when it was loaded.
    """

    process: Process
    profile: Profile
    bias: int

    def variable(self, *names: str) -> int | None:
        """Give the address of the first of some variables that this build has."""
        found = next((name for name in names if name in self.profile.addresses), None)
        return None if found is None else self.profile.addresses[found] + self.bias

    def member(self, at: int, *paths: str) -> int:
        """Read a number or a pointer: the first of some members that this build has, 0 where it has none.

        Raises:
            CorruptDumpError: it is not in the core.
        """
        place = self.profile.place(*paths)
        return 0 if place is None else self.process.word(at + place.offset, min(place.size, 8), paths[0])

    def text(self, at: int, path: str) -> str:
        """Read a string.

        Raises:
            CorruptDumpError: it is not in the core.
        """
        place = self.profile.places[path]
        data = self.process.memory.read(at + place.offset, min(place.size, _NAME), path)
        return data.partition(b"\0")[0].decode("latin-1")


def guest_ram(reader: Reader) -> GuestRam:
    """Find the guest's memory.

    Raises:
        CorruptDumpError: QEMU's structures are not in the core, or contradict themselves: it was damaged, or the
            knowledge of the build is of another one.
    """
    space = reader.variable("address_space_memory")
    assert space is not None
    view = reader.member(space, "AddressSpace.current_map")
    count = reader.member(view, "FlatView.nr")
    if count > _RANGES_LIMIT:
        raise CorruptDumpError(
            f"at host address {view:#x}: {count:,} ranges of memory: expected {_RANGES_LIMIT:,} at most",
            what="FlatView",
        )
    size = reader.profile.sizes["FlatRange"]
    table = reader.process.memory.read(reader.member(view, "FlatView.ranges"), count * size, "FlatView ranges")
    region, inside, start, length = (_column(reader, table, name) for name in _COLUMNS)
    regions = _Regions(reader)
    rows: list[tuple[int, int, int]] = []
    damage: list[str] = []
    for at, offset, first, bytes_ in zip(
        region.tolist(), inside.tolist(), start.tolist(), length.tolist(), strict=True
    ):
        base = regions.base(at)
        if base is None:
            continue
        host, room = base[0] + offset, base[1] - offset
        if not bytes_ or bytes_ > room or first + bytes_ > _ADDRESS_LIMIT or host + bytes_ > _ADDRESS_LIMIT:
            damage.append(f"{bytes_:#x} bytes at {first:#x} leave their RAM block, and are left out")
            continue
        rows.append((first, bytes_, host))
    return GuestRam.of(rows, blocks=regions.blocks, damage=_few(damage))


_COLUMNS = ("FlatRange.mr", "FlatRange.offset_in_region", "FlatRange.addr.start", "FlatRange.addr.size")
_MESSAGES = 8


def _few(messages: list[str]) -> tuple[str, ...]:
    rest = len(messages) - _MESSAGES
    return (*messages[:_MESSAGES], *([f"and so do {rest:,} more ranges"] if rest > 0 else []))


def _column(reader: Reader, table: bytes, path: str) -> UInt64s:
    """Give one member of all ranges."""
    place, stride = reader.profile.places[path], reader.profile.sizes["FlatRange"]
    if place.size not in (4, 8) or place.offset + place.size > stride:
        raise CorruptDumpError(f"{place.size} bytes at {place.offset:#x} of {stride:#x}", what=path)
    dtype = np.dtype(f"{reader.process.endian}u{place.size}")
    column = np.ndarray(len(table) // stride, dtype, table, place.offset, (stride,)) if table else np.empty(0, dtype)
    return column.astype(np.uint64)


@dataclass(slots=True)
class _Regions:
    """Regions and blocks that were met."""

    reader: Reader
    known: dict[int, tuple[int, int] | None] = field(default_factory=dict)
    found: dict[int, RamBlock] = field(default_factory=dict)
    listed: tuple[RamBlock, ...] | None = None

    @property
    def blocks(self) -> tuple[RamBlock, ...]:
        """All blocks: those of the list, where it can be walked, else those that regions led to."""
        try:
            return self._all()
        except CorruptDumpError:
            return tuple(self.found.values())

    def base(self, region: int) -> tuple[int, int] | None:
        """Give the host address of a region's first byte and the bytes from there to the end of its block.

        None for what QEMU's own dumps leave out.

        Raises:
            CorruptDumpError: the region is not in the core, or its aliases do not end.
        """
        if region not in self.known:
            self.known[region] = self._base(region)
        return self.known[region]

    def _base(self, region: int) -> tuple[int, int] | None:
        member = self.reader.member
        if not member(region, "MemoryRegion.ram") or any(member(region, path) for path in _LEFT_OUT):
            return None
        offset = 0
        for _ in range(_ALIASES_LIMIT):
            alias = member(region, "MemoryRegion.alias")
            if not alias:
                return self._in_block(region, offset)
            offset += member(region, "MemoryRegion.alias_offset")
            region = alias
        raise CorruptDumpError(
            f"more than {_ALIASES_LIMIT} aliases of one another, the next at host address {region:#x}",
            what="MemoryRegion",
        )

    def _in_block(self, region: int, offset: int) -> tuple[int, int]:
        """Find the block of a region that is no alias."""
        if "MemoryRegion.ram_block" in self.reader.profile.places:
            at = self.reader.member(region, "MemoryRegion.ram_block")
            block = self.found.get(at) or self.found.setdefault(at, _block(self.reader, at))
        else:
            address = self.reader.member(region, "MemoryRegion.ram_addr") & -_TARGET_PAGE
            found = next((each for each in self._all() if 0 <= address - each.offset < each.length), None)
            if found is None:
                raise CorruptDumpError(f"no RAM block has the address {address:#x}", what="RAMBlock")
            block, offset = found, offset + address - found.offset
        return block.host + offset, max(block.length, block.room) - offset

    def _all(self) -> tuple[RamBlock, ...]:
        if self.listed is None:
            self.listed = ram_blocks(self.reader)
        return self.listed


_LEFT_OUT = ("MemoryRegion.ram_device", "MemoryRegion.skip_dump", "MemoryRegion.nonvolatile")


def ram_blocks(reader: Reader) -> tuple[RamBlock, ...]:
    """Walk over the list of RAM blocks.

    Raises:
        CorruptDumpError: it is not in the core, or does not end.
    """
    head = reader.variable("ram_list")
    blocks: list[RamBlock] = []
    at = reader.member(head, "RAMList.blocks.lh_first", "RAMList.blocks.tqh_first") if head is not None else 0
    while at:
        if len(blocks) == _BLOCKS_LIMIT:
            raise CorruptDumpError(
                f"more than {_BLOCKS_LIMIT} RAM blocks, the next at host address {at:#x}", what="RAMList"
            )
        blocks.append(_block(reader, at))
        at = reader.member(at, "RAMBlock.next.le_next", "RAMBlock.next.tqe_next")
    return tuple(blocks)


def _block(reader: Reader, at: int) -> RamBlock:
    length = reader.member(at, "RAMBlock.used_length", "RAMBlock.length")
    return RamBlock(
        name=reader.text(at, "RAMBlock.idstr"),
        host=reader.member(at, "RAMBlock.host"),
        offset=reader.member(at, "RAMBlock.offset"),
        length=length,
        room=reader.member(at, "RAMBlock.max_length") or length,
    )
