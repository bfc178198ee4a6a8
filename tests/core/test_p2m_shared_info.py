"""shared_info pages of both widths, and the lists that they tell of."""

from __future__ import annotations

from typing import Literal

import pytest

from dumpxlate.errors import MapError
from dumpxlate.p2m.shared_info import from_shared_info, parse_shared_info
from tests.builders import p2m as builder
from tests.builders.guest import Guest, small_guest
from tests.builders.xen_vcpu import shared_info
from tests.machine_memory import machine_memory

Width = Literal[4, 8]
FREE = range(0x110, 0x1F0)
widths = pytest.mark.parametrize("width", [8, 4])


def guest() -> Guest:
    return small_guest(ranges=[(0, 0xA0), (0x100, 0x100)], excluded=[])


def read(made: builder.FrameLists, width: Width, block: bytes | None = None) -> tuple[list[int], str]:
    info = parse_shared_info(made.shared_info if block is None else block, 64 if width == 8 else 32)
    found, how = from_shared_info(machine_memory(made.guest), info)
    return found.entries(0, found.size).tolist(), how


@widths
def test_frame_lists(width: Width) -> None:
    made = builder.with_frame_lists(guest(), builder.entries(guest()), width=width, at=FREE)
    assert read(made, width) == (made.table, f"frame lists at machine frame {made.frame_list_list:#x}")


@widths
@pytest.mark.parametrize("word", [0, builder.INVALID])
def test_linear_list_where_frame_lists_are_not_told(width: Width, word: int) -> None:
    """All ones is how a guest says that there is only the linear list."""
    word &= (1 << 8 * width) - 1
    made = builder.with_linear_list(guest(), builder.entries(guest()), width=width, at=FREE, frame_list_list=word)
    vaddr = 0xFFFFC90000000000 if width == 8 else 0xD0000000
    assert read(made, width) == (made.table, f"linear list at {vaddr:#x}")


def test_linear_list_where_frame_lists_are_torn() -> None:
    made = builder.with_linear_list(guest(), builder.entries(guest()), at=FREE, frame_list_list=0x77777)
    entries, how = read(made, 8)
    assert entries == made.table
    assert "since of the frame lists list of frame lists: its page at machine frame 0x77777 is absent" in how


@widths
def test_nothing_told(width: Width) -> None:
    made = builder.with_frame_lists(guest(), builder.entries(guest()), width=width, at=FREE, cut_top=0)
    with pytest.raises(MapError, match="neither frame lists nor a linear list"):
        read(made, width)


def test_other_widths_page() -> None:
    """The fields are elsewhere: what is there instead leads nowhere."""
    made = builder.with_frame_lists(guest(), builder.entries(guest()), width=8, at=FREE)
    with pytest.raises(MapError):
        read(made, 4)


@widths
def test_absurd_numbers(width: Width) -> None:
    made = builder.with_frame_lists(guest(), builder.entries(guest()), width=width, at=FREE)
    for values in ({"max_pfn": 0}, {"max_pfn": (1 << 8 * width) - 1}):
        block = shared_info(width=width, frame_list_list=made.frame_list_list, **values)
        with pytest.raises(MapError, match="entries: expected 1 to"):
            read(made, width, block)


def test_cut_page() -> None:
    with pytest.raises(MapError, match="shared_info at 0xc10: truncated"):
        parse_shared_info(bytes(3100), 64)


@pytest.mark.parametrize(("cr3", "generation", "changing"), [(0x1000, 3, True), (0x1000, 2, False), (0, 3, False)])
def test_odd_generation_is_a_change_under_way(cr3: int, generation: int, changing: bool) -> None:
    info = parse_shared_info(shared_info(p2m_cr3=cr3, p2m_generation=generation), 64)
    assert info.is_changing is changing
