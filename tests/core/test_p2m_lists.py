"""A guest's own lists of its frames, against the table that the builder wrote them from; and lists that are none."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Literal

import pytest

from dumpxlate.errors import MapError
from dumpxlate.p2m import lists
from tests.builders import p2m as builder
from tests.builders.guest import Guest, page, small_guest
from tests.machine_memory import machine_memory

if TYPE_CHECKING:
    from dumpxlate.arch.xen_vcpu import WordBits

Width = Literal[4, 8]
FREE = range(0x110, 0x1F0)
"""pfns that the lists are written over."""

widths = pytest.mark.parametrize("width", [8, 4])


def guest() -> Guest:
    return small_guest(ranges=[(0, 0xA0), (0x100, 0x100), (0x3000, 0x40)], excluded=[])


def table(width: Width, size: int = 0x3200) -> list[int]:
    return builder.entries(
        guest(), size=size, foreign={7: 0x123456}, identity=range(0xA0, 0xC0), invalid=[5], width=width
    )


def bits(width: Width) -> WordBits:
    return 64 if width == 8 else 32


def read(made: builder.FrameLists, width: Width, **changes: int) -> list[int]:
    """Read frame lists; entries as the builder has them: all 64 bits, flags at the top."""
    arguments = {"top_mfn": made.frame_list_list, "max_pfn": len(made.table)} | changes
    found = lists.read_frame_lists(machine_memory(made.guest), word_bits=bits(width), **arguments)
    assert found.size == arguments["max_pfn"]
    return found.entries(0, found.size).tolist()


def widened(entries: list[int], width: Width) -> list[int]:
    """Entries with their flags where a 64-bit guest has them."""
    return [e if e == builder.INVALID or width == 8 else (e >> 30) << 62 | e & (1 << 30) - 1 for e in entries]


@widths
def test_frame_lists(width: Width) -> None:
    made = builder.with_frame_lists(guest(), table(width), width=width, at=FREE)
    assert read(made, width) == widened(made.table, width)


@widths
def test_ranges_without_memory_share_a_page(width: Width) -> None:
    made = builder.with_frame_lists(guest(), table(width), width=width, at=FREE, missing=0x1F8)
    assert read(made, width) == widened(made.table, width)


@widths
def test_lists_longer_than_a_batch(width: Width, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "_BATCH", 3)
    made = builder.with_frame_lists(guest(), table(width), width=width, at=FREE, missing=0x1F8)
    assert read(made, width) == widened(made.table, width)


@widths
def test_size_that_ends_inside_a_page(width: Width) -> None:
    made = builder.with_frame_lists(guest(), table(width, 0x3039), width=width, at=FREE)
    assert read(made, width) == widened(made.table, width)


@widths
def test_where_nobody_tells_the_size(width: Width) -> None:
    made = builder.with_frame_lists(guest(), table(width), width=width, at=FREE)
    reach = lists.frame_lists_reach(machine_memory(made.guest), made.frame_list_list, bits(width))
    assert 0 <= reach - len(made.table) < 4096 // width


@widths
def test_linear_list(width: Width) -> None:
    made = builder.with_linear_list(guest(), table(width), width=width, at=FREE)
    vaddr = 0xFFFFC90000000000 if width == 8 else 0xD0000000
    found = lists.read_linear_list(machine_memory(made.guest), made.cr3, vaddr, len(made.table), bits(width))
    assert found.entries(0, found.size).tolist() == widened(made.table, width)


class TestRefused:
    """Lists that are none end in one line that says what is wrong."""

    def made(self) -> builder.FrameLists:
        return builder.with_frame_lists(guest(), table(8), at=FREE)

    def with_word(self, pfn: int, index: int, word: int) -> builder.FrameLists:
        """The lists with one word of a page changed."""
        made = self.made()
        body = bytearray(made.guest.pages[pfn])
        struct.pack_into("<Q", body, index * 8, word)
        changed = made.guest.but(pages={**made.guest.pages, pfn: bytes(body)})
        return builder.FrameLists(changed, made.shared_info, made.table, made.frame_list_list, 0)

    @pytest.mark.parametrize("size", [0, -1, 1 << 27 | 1, 1 << 62])
    def test_absurd_size(self, size: int) -> None:
        with pytest.raises(MapError, match="entries: expected 1 to 134,217,728"):
            read(self.made(), 8, max_pfn=size)

    @pytest.mark.parametrize("top", [0x77777, -5, 1 << 62])
    def test_list_that_is_not_in_memory(self, top: int) -> None:
        with pytest.raises(
            MapError, match=r"list of frame lists: (its page at machine frame 0x77777 is absent|entry 0)"
        ):
            read(self.made(), 8, top_mfn=top)

    def test_torn_middle(self) -> None:
        with pytest.raises(MapError, match="frame list: its page at machine frame 0x77777 is absent"):
            read(self.with_word(FREE[0], 0, 0x77777), 8)

    def test_torn_leaf(self) -> None:
        with pytest.raises(MapError, match="p2m list: its page at machine frame 0x77777 is absent"):
            read(self.with_word(FREE[1], 3, 0x77777), 8)

    def test_word_that_is_no_frame(self) -> None:
        with pytest.raises(MapError, match="frame list: entry 3 is 0x8000000000000001, no machine frame"):
            read(self.with_word(FREE[1], 3, 1 << 63 | 1), 8)

    @pytest.mark.parametrize(("level", "target"), [(0, 0), (1, 0), (1, 1)])
    def test_circles(self, level: int, target: int) -> None:
        to = guest().mfns[FREE[target]]
        with pytest.raises(MapError, match="circular"):
            read(self.with_word(FREE[level], 0, to), 8)

    def test_page_of_memory_for_two_ranges(self) -> None:
        to = guest().mfns[FREE[2]]
        with pytest.raises(MapError, match=f"machine frame {to:#x} stands for several ranges.*torn or circular"):
            read(self.with_word(FREE[1], 3, to), 8)

    def test_empty_list_has_no_reach(self) -> None:
        memory = machine_memory(guest().but(pages={**guest().pages, 9: bytes(4096)}))
        with pytest.raises(MapError, match="empty"):
            lists.frame_lists_reach(memory, guest().mfns[9], 64)

    @pytest.mark.parametrize(
        "vaddr", [0, 0x1000_0000_0000_0000, 0xFFFF_8000_0000_0000, 0xFFFF_FFFF_FFFF_F000, 0xFFFF_C900_0000_0008]
    )
    def test_linear_list_where_none_can_be(self, vaddr: int) -> None:
        made = builder.with_linear_list(guest(), table(8), at=FREE)
        with pytest.raises(MapError, match="where no guest of 64 bits has one"):
            lists.read_linear_list(machine_memory(made.guest), made.cr3, vaddr, len(made.table), 64)

    def test_linear_list_that_is_not_mapped(self) -> None:
        made = builder.with_linear_list(guest(), table(8), at=FREE)
        memory = machine_memory(made.guest)
        with pytest.raises(MapError, match=r"page 0xffffc90000019000 of .* PT entry .* is not present"):
            lists.read_linear_list(memory, made.cr3, 0xFFFFC90000000000, len(made.table) + 512, 64)
        with pytest.raises(MapError, match="is not held"):
            lists.read_linear_list(memory, 0x77777000, 0xFFFFC90000000000, len(made.table), 64)
        with pytest.raises(MapError, match="expected 1 to"):
            lists.read_linear_list(memory, made.cr3, 0xFFFFC90000000000, 1 << 50, 64)

    @pytest.mark.parametrize("mfn", [-1, 1 << 40, 1 << 63, (1 << 64) - 1])
    def test_no_frame_at_all(self, mfn: int) -> None:
        with pytest.raises(MapError, match="no machine frame"):
            lists.read_frame_lists(machine_memory(guest()), mfn, 0x3200, 64)
        with pytest.raises(MapError, match="no machine frame"):
            lists.frame_lists_reach(machine_memory(guest()), mfn, 64)

    def test_pages_of_anything(self) -> None:
        """Memory that is not a list at all, everywhere in the guest."""
        plain = guest().but(pages={pfn: page(pfn, kind="noise") for pfn in guest().ram})
        for mfn in list(plain.mfns.values())[:40]:
            with pytest.raises(MapError):
                lists.read_frame_lists(machine_memory(plain), mfn, 0x3200, 64)
