"""A kernel's own p2m by its symbols, as the Linux of several years keeps it; and symbols that are another kernel's."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Literal

import pytest

from dumpxlate.errors import MapError
from dumpxlate.p2m.tree import from_symbols
from tests.builders import p2m as builder
from tests.builders import p2m_tree
from tests.builders.guest import Guest, small_guest
from tests.machine_memory import machine_memory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dumpxlate.p2m.map import P2M

Width = Literal[4, 8]
FREE = range(0x108, 0x1F8)
widths = pytest.mark.parametrize("width", [8, 4])
kinds = pytest.mark.parametrize("kind", p2m_tree.KINDS)


class Named(dict[str, int]):
    """Symbols as a dictionary."""

    def address(self, name: str) -> int | None:
        return self.get(name)


def kernel(kind: str, width: Width = 8) -> p2m_tree.Kernel:
    guest: Guest = small_guest(ranges=[(0, 0xA0), (0x100, 0x100), (0x3000, 0x40)], excluded=[])
    table = builder.entries(guest, foreign={7: 0x123456}, identity=range(0xA0, 0xC0), invalid=[5], width=width)
    return p2m_tree.with_kernel_tree(guest, table, kind, at=FREE, width=width)


def read(made: p2m_tree.Kernel, width: Width, symbols: Mapping[str, int] | None = None) -> P2M:
    cr3 = made.guest.registers[0]["cr3"]
    root = cr3 if width == 8 else (cr3 >> 12 | cr3 << 20 & 0xFFFFFFFF) << 12
    named = Named(made.symbols if symbols is None else symbols)
    return from_symbols(machine_memory(made.guest), [0x777000, root], named, 64 if width == 8 else 32)[0]


def widened(entries: list[int], width: Width) -> list[int]:
    return [e if e == builder.INVALID or width == 8 else (e >> 30) << 62 | e & (1 << 30) - 1 for e in entries]


@widths
@kinds
def test_every_kind_of_tree(kind: str, width: Width) -> None:
    made = kernel(kind, width)
    found = read(made, width)
    assert found.size == len(made.table)
    assert found.entries(0, found.size).tolist() == widened(made.table, width)


@kinds
def test_without_shared_pages(kind: str) -> None:
    guest = small_guest(ranges=[(0, 0x200)], excluded=[])
    made = p2m_tree.with_kernel_tree(guest, builder.entries(guest), kind, at=FREE, missing=False)
    assert read(made, 8).entries(0, 0x200).tolist() == made.table


def test_end_pfn_where_max_pfn_is_not_set() -> None:
    """x86-64 before 2.6.27."""
    made = kernel("mapping")
    symbols = made.symbols | {"max_pfn": made.symbols["end_pfn"], "end_pfn": made.symbols["max_pfn"]}
    assert read(made, 8, symbols).size == len(made.table)


def test_reserved_size_where_the_last_entry_is_not_known() -> None:
    made = kernel("pointer")
    symbols = {name: at for name, at in made.symbols.items() if name != "xen_p2m_last_pfn"}
    assert read(made, 8, symbols).size == len(made.table)


class TestRefused:
    """Another kernel's symbols, and torn trees, end in one line."""

    def test_no_kernel_for_xen(self) -> None:
        with pytest.raises(MapError, match="none of xen_p2m_addr, p2m_top, phys_to_machine_mapping"):
            read(kernel("two"), 8, {"max_pfn": 0xFFFF888000000000})

    def test_address_that_is_not_mapped(self) -> None:
        with pytest.raises(MapError, match="no vcpu's page tables map 0xffffffff82000000"):
            read(kernel("two"), 8, {"p2m_top": 0xFFFFFFFF82000000})

    @kinds
    @pytest.mark.parametrize("shift", [8, 512 * 8, -4096 * 3])
    def test_shifted_symbols(self, kind: str, shift: int) -> None:
        made = kernel(kind)
        with pytest.raises(MapError, match="are these this kernel's symbols"):
            read(made, 8, {name: at + shift for name, at in made.symbols.items()})

    @kinds
    def test_no_size(self, kind: str) -> None:
        made = kernel(kind)
        symbols = {name: at for name, at in made.symbols.items() if "max" not in name and "xen_p2m_" not in name}
        symbols |= {name: at for name, at in made.symbols.items() if name == "xen_p2m_addr"}
        with pytest.raises(MapError, match="xen_max_p2m_pfn and max_pfn and end_pfn say"):
            read(made, 8, symbols)

    def test_torn_pointer(self) -> None:
        made = kernel("three")
        (pfn,) = (at for at in FREE if at * 4096 + 0xFFFF888000000000 == top_of(made))
        body = bytearray(made.guest.pages[pfn])
        struct.pack_into("<Q", body, 0, 0xFFFF888000000123)
        torn = p2m_tree.Kernel(made.guest.but(pages={**made.guest.pages, pfn: bytes(body)}), made.symbols, [])
        with pytest.raises(MapError, match="pointer 0 is 0xffff888000000123, where no page is"):
            read(torn, 8)

    def test_circle(self) -> None:
        """A top page that leads to itself: its pointers are taken for entries of the array, which name no memory."""
        made = kernel("three")
        pfn = (top_of(made) - 0xFFFF888000000000) // 4096
        body = struct.pack("<512Q", *[top_of(made)] * 512)
        torn = p2m_tree.Kernel(made.guest.but(pages={**made.guest.pages, pfn: body}), made.symbols, [])
        with pytest.raises(MapError, match="are these this kernel's symbols"):
            read(torn, 8)


def top_of(made: p2m_tree.Kernel) -> int:
    """What the variable p2m_top holds."""
    pfn, at = divmod(made.symbols["p2m_top"] - 0xFFFF888000000000, 4096)
    return int.from_bytes(made.guest.pages[pfn][at : at + 8], "little")
