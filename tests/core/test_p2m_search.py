"""Searching machine pages for a p2m: guests that have only one of the lists, copies that mislead, and none at all."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING, Literal

import pytest

from dumpxlate.errors import MapError
from dumpxlate.p2m.search import search
from tests.builders import p2m as builder
from tests.builders import p2m_tree
from tests.builders.guest import Guest, page, small_guest
from tests.machine_memory import machine_store

if TYPE_CHECKING:
    from dumpxlate.p2m.search import Candidate

Width = Literal[4, 8]
FREE = range(0x200, 0x2F0)
MORE = range(0x2F0, 0x400)
widths = pytest.mark.parametrize("width", [8, 4])


def guest() -> Guest:
    """2,560 pages in two blocks, all with content of their own."""
    return small_guest(ranges=[(0, 0xA0), (0x100, 0x960)], excluded=[])


def table(made: Guest, width: Width = 8) -> list[int]:
    return builder.entries(made, foreign={7: 0x123456}, identity=range(0xA0, 0xC0), width=width)


def found(made: Guest, width: Width = 8, *, roots: list[int] | None = None, claimed: Width | None = None) -> Candidate:
    return search(machine_store(made), roots or [], 64 if (claimed or width) == 8 else 32, threads=0)


def root(made: Guest, width: Width) -> int:
    cr3 = made.registers[0]["cr3"]
    return cr3 if width == 8 else (cr3 >> 12 | cr3 << 20 & 0xFFFFFFFF) << 12


def widened(entries: list[int], width: Width) -> list[int]:
    return [e if e == builder.INVALID or width == 8 else (e >> 30) << 62 | e & (1 << 30) - 1 for e in entries]


def says(candidate: Candidate, width: Width) -> list[int]:
    return candidate.p2m.entries(0, candidate.p2m.size).tolist()


@widths
def test_frame_lists_alone(width: Width) -> None:
    """No page tables, no registers: the lists say where each page is."""
    made = builder.with_frame_lists(guest(), table(guest(), width), width=width, at=FREE)
    candidate = found(made.guest, width)
    assert says(candidate, width) == widened(made.table, width)
    assert candidate.how == f"frame lists at machine frame {made.frame_list_list:#x}"
    assert {each.name for each in candidate.evidence} == {"pages", "frames", "lists"}


@widths
def test_linear_list_alone(width: Width) -> None:
    """Flat arrays and page tables: the kernel's linear map says that the array begins where it was found to."""
    tree = p2m_tree.with_kernel_tree(guest(), table(guest(), width), "pointer", at=FREE, width=width)
    candidate = found(tree.guest, width, roots=[root(tree.guest, width)])
    assert says(candidate, width) == widened(tree.table, width)
    assert "linear list at" in candidate.how
    assert "linear map" in {each.name for each in candidate.evidence}


def test_linear_list_without_cr3() -> None:
    """Xen's entry that leads back gives the first table of a 64-bit guest away."""
    tree = p2m_tree.with_kernel_tree(guest(), table(guest()), "pointer", at=FREE)
    assert says(found(tree.guest), 8) == tree.table


@widths
def test_other_width_than_the_dump_says(width: Width) -> None:
    made = builder.with_frame_lists(guest(), table(guest(), width), width=width, at=FREE)
    candidate = found(made.guest, width, claimed=4 if width == 8 else 8)
    assert says(candidate, width) == widened(made.table, width)
    assert candidate.word_bits == 8 * width


def test_copies_of_another_time() -> None:
    """What the builder made before the guest gave a third of its memory back: lists in memory, and stale."""
    now = guest()
    before = {**now.mfns, **{pfn: 0x300000 + pfn for pfn in range(0xB00, 0xF00)}}
    swapped = dict(zip(range(0x400, 0x600), random.Random(3).sample(list(before.values()), 0x200), strict=True))
    stale = builder.with_frame_lists(now, builder.entries({**before, **swapped}), at=MORE)
    made = builder.with_frame_lists(stale.guest, table(now), at=FREE)
    assert says(found(made.guest), 8) == made.table


def test_holes_of_a_sparse_file() -> None:
    """Whole batches without a byte; the map has their frames."""
    holes = range(0x600000, 0x602000)
    whole = {**guest().mfns, **{0x1000 + at: mfn for at, mfn in enumerate(holes)}}
    made = builder.with_frame_lists(guest(), builder.entries(whole), at=FREE)
    candidate = search(machine_store(made.guest, zero=holes), [], 64, threads=0)
    assert says(candidate, 8) == made.table


class TestRefused:
    """Where there is no list, or none that is the guest's, nothing is made up."""

    @widths
    def test_memory_without_a_list(self, width: Width) -> None:
        with pytest.raises(MapError, match="no page of this dump looks like part of a p2m"):
            found(guest(), width)

    def test_noise(self) -> None:
        plain = guest().but(pages={pfn: page(pfn, kind="noise") for pfn in guest().ram})
        with pytest.raises(MapError, match="no page of this dump looks like"):
            found(plain)

    def test_no_pages(self) -> None:
        with pytest.raises(MapError, match="no page with content"):
            found(guest().but(pages={}))

    def test_list_of_another_moment_only(self) -> None:
        """A third of its pages are not the guest's any more."""
        before = {**guest().mfns, **{pfn: 0x300000 + pfn for pfn in range(0xB00, 0xF00)}}
        made = builder.with_frame_lists(guest(), builder.entries(before), at=FREE)
        with pytest.raises(MapError, match=r"frame lists at .* not sure enough: 7\d\.\d%, expected 95%"):
            found(made.guest)

    def test_pages_in_disorder(self) -> None:
        """Every frame is in the list, at places where the kernel's own map does not have them."""
        made = guest()
        frames = list(made.mfns.values())
        random.Random(5).shuffle(frames)
        wrong = builder.entries(dict(zip(made.ram, frames, strict=True)))
        tree = p2m_tree.with_kernel_tree(made, wrong, "pointer", at=FREE)
        with pytest.raises(MapError, match="search"):
            found(tree.guest, roots=[root(tree.guest, 8)])

    def test_array_without_its_first_page(self) -> None:
        """What is left is in order, and 512 pages off."""
        tree = p2m_tree.with_kernel_tree(guest(), table(guest()), "pointer", at=FREE)
        first = next(pfn for pfn, body in tree.guest.pages.items() if body == builder.flat(tree.table[:512]))
        torn = tree.guest.but(pages={**tree.guest.pages, first: page(first)})
        with pytest.raises(MapError, match="search"):
            found(torn, roots=[root(torn, 8)])

    def test_flood_of_beginnings(self) -> None:
        """A guest may write the frame of a page to the beginning of every page."""
        made = guest()
        frames = list(made.mfns.values())
        chain = {pfn: struct.pack("<Q", frames[(at + 1) % len(frames)]) * 512 for at, pfn in enumerate(made.ram)}
        with pytest.raises(MapError, match="search"):
            found(made.but(pages=chain))
