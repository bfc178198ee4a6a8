"""Page tables of paravirtual guests become ordinary ones: hand-made guests of both widths, and hostile tables."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumpxlate.canonical.entries import Rule
from dumpxlate.canonical.guest import canonical
from dumpxlate.canonical.marks import Marks
from dumpxlate.codecs.batch import decode
from dumpxlate.errors import MapError, UnsupportedFeatureError
from dumpxlate.io.source import BytesSource
from dumpxlate.p2m.map import P2M, FrameRuns
from dumpxlate.pages import CodecId
from dumpxlate.pageset import PageRuns
from dumpxlate.registry import open_from
from tests.builders import kdump, xen_core
from tests.builders.guest import page
from tests.builders.pv_tables import FLAGS, XEN_MFN, Entry, PvGuest, scattered

if TYPE_CHECKING:
    from dumpxlate.canonical.walk import Rewritten
    from dumpxlate.dump import Dump
    from tests.builders.guest import Guest

KERNEL = {8: 0xFFFF_8880_0000_0000, 4: 0xC000_0000}
WIDTHS = pytest.mark.parametrize("width", [8, 4], ids=["x86_64", "pae"])


def opened(guest: Guest, width: int = 8) -> Dump:
    return open_from([BytesSource(xen_core.build(guest, width=width), "core")])


def made(guest: Guest, width: int = 8) -> tuple[Dump, Rewritten]:
    dump, done = canonical(opened(guest, width), threads=0)
    assert done is not None
    return dump, done


def pages_of(dump: Dump) -> dict[int, bytes]:
    pfns = dump.pages.stored.select(0, 1 << 20)
    found = {pfn: row.tobytes() for pfn, row in zip(pfns.tolist(), dump.read_pages(pfns), strict=True)}
    assert [pfn for pfn in found if dump.read(pfn * 4096, 4096) != found[pfn]] == [], "one by one"
    return found


def differing(dump: Dump, expected: dict[int, bytes]) -> list[int]:
    found = pages_of(dump)
    assert found.keys() == expected.keys()
    return [pfn for pfn in expected if found[pfn] != expected[pfn]]


def kernel(width: int = 8, **options: int) -> tuple[PvGuest, int]:
    """A guest whose kernel maps all its memory."""
    pv = PvGuest(width=width, **options)
    top = pv.root()
    pv.direct_map(top, KERNEL[width])
    return pv, top


# Ordinary guests.


@WIDTHS
def test_tables_hold_the_guests_own_frames_and_nothing_else_changes(width: int) -> None:
    pv, top = kernel(width)
    dump, done = made(pv.guest(top), width)
    assert differing(opened(pv.guest(top), width), pv.pages(machine=True)) == []
    assert differing(dump, pv.pages(machine=False)) == []
    assert (done.roots, done.tables, done.missing, done.counts.unknown) == (1, len(pv.tables), 0, 0)
    assert done.counts.hypervisor == len(pv.xen_slots)
    entries = sum(not entry.xen for table in pv.tables.values() for entry in table.values())
    assert done.counts.entries == entries
    assert dump.remarks == opened(pv.guest(top), width).remarks


@WIDTHS
def test_the_result_is_walked_as_an_ordinary_guest(width: int) -> None:
    pv, top = kernel(width)
    dump, _ = made(pv.guest(top), width)
    assert not dump.machine.paravirtual
    assert dump.machine.canonical
    assert dump.cpus[0].registers["cr3"] == top << 12
    plain = replace(dump, p2m=None)
    for pfn in (0, 5, top):
        assert plain.virtual().read(KERNEL[width] + pfn * 4096, 4096) == pv.page(pfn, machine=False)
    assert plain.virtual().trace(KERNEL[width] + 5 * 4096 + 7).physical == 5 * 4096 + 7


def test_32_bit_tables_above_4_gib() -> None:
    mfns = {pfn: 0x123456 + scattered(pfn) for pfn in range(96)}
    pv = PvGuest(width=4, mfns=mfns)
    top = pv.root()
    pv.direct_map(top, KERNEL[4])
    dump, _ = made(pv.guest(top), 4)
    assert opened(pv.guest(top), 4).cpus[0].registers["cr3"] == mfns[top] << 12 > 1 << 32
    assert dump.cpus[0].registers["cr3"] == top << 12
    assert int.from_bytes(dump.cpus[0].raw["xen"][2728:2732], "little") == top << 12
    assert differing(dump, pv.pages(machine=False)) == []


def test_only_the_highest_gib_of_a_32_bit_guest_has_slots_of_xen() -> None:
    pv, top = kernel(4)
    for slot in range(428, 432):
        pv.map(top, slot << 21, Entry(slot - 428))  # the same slots of the lowest GiB
    dump, done = made(pv.guest(top), 4)
    assert differing(dump, pv.pages(machine=False)) == []
    assert done.counts.hypervisor == 4


def test_words_behind_the_four_entries_of_a_32_bit_top_table_stay() -> None:
    pv, top = kernel(4)
    pv.raw[top, 4] = scattered(3) << 12 | 1
    dump, _ = made(pv.guest(top), 4)
    assert differing(dump, pv.pages(machine=False)) == []


def test_other_bits_and_entries_that_are_not_present_stay() -> None:
    pv, top = kernel()
    table = pv.map(top, 0x40_0000, Entry(3, flags=1 << 63 | 0x7FF << 52 | 0xFFF))
    pv.raw[table, 9] = scattered(4) << 12 | 0x66
    pv.raw[table, 10] = (1 << 64) - 2
    dump, _ = made(pv.guest(top))
    assert differing(dump, pv.pages(machine=False)) == []


def test_tables_of_user_mode_and_of_every_processor() -> None:
    pv, top = kernel()
    others = [pv.root() for _ in range(2)]
    for number, other in enumerate(others):
        pv.map(other, 0x40_0000 + number * 4096, Entry(number, flags=0x65))
    dump, done = made(pv.guest(top, others[0], user=others[1]))
    assert differing(dump, pv.pages(machine=False)) == []
    assert done.roots == 3
    assert [cpu.registers["cr3"] for cpu in dump.cpus] == [top << 12, others[0] << 12]
    assert int.from_bytes(dump.cpus[0].raw["xen"][4992:5000], "little") == others[1] << 12 | 1


def test_frames_of_the_gdt() -> None:
    pv, top = kernel()
    dump, _ = made(pv.guest(top, gdt_ents=512, gdt_frame0=scattered(7)))
    assert int.from_bytes(dump.cpus[0].raw["xen"][4832:4840], "little") == 7
    other, _ = made(pv.guest(top, gdt_ents=0, gdt_frame0=scattered(7)))
    assert int.from_bytes(other.cpus[0].raw["xen"][4832:4840], "little") == scattered(7)


def test_start_info_that_a_suspended_guest_hands_over() -> None:
    pv, top = kernel()
    guest = pv.guest(top, top, rdx=scattered(6))
    plain, _ = made(guest)
    assert [cpu.registers["rdx"] for cpu in plain.cpus] == [scattered(6)] * 2
    guest.pages[6] = b"xen-3.0-x86_64".ljust(4096, b"\0")
    dump, _ = made(guest)
    assert [cpu.registers["rdx"] for cpu in dump.cpus] == [6, scattered(6)]


@pytest.mark.parametrize("alias", [3, 90])
def test_table_under_two_pfns(alias: int) -> None:
    """Xen's tools write the page under both; of the two, entries name the first."""
    pv, top = kernel()
    pv.map(top, KERNEL[8] + alias * 4096, Entry(top, flags=0x65))
    guest = pv.guest(top)
    guest.mfns[alias], guest.pages[alias] = guest.mfns[top], guest.pages[top]
    dump, done = made(guest)
    assert (done.roots, done.counts.unknown) == (1, 0)
    found = pages_of(dump)
    assert found[alias] == found[top] == pv.page(top, machine=False)
    assert dump.cpus[0].registers["cr3"] == min(alias, top) << 12
    assert dump.virtual().trace(KERNEL[8] + top * 4096).physical == min(alias, top) * 4096
    assert dump.virtual().read(KERNEL[8] + 5 * 4096, 4096) == page(5)


# Processes that no processor is in.


@WIDTHS
def test_tables_of_a_process_that_waits(width: int) -> None:
    pv = PvGuest(width=width, size=120)
    top, other = pv.root(), pv.root()
    pv.map(other, 0x40_0000, Entry(3))
    pv.map(other, 0x80_0000, Entry(4))
    pv.direct_map(top, KERNEL[width])
    dump, done = made(pv.guest(top), width)
    assert done.roots == 2
    assert differing(dump, pv.pages(machine=False)) == []


@WIDTHS
def test_pages_that_were_tables_once_stay(width: int) -> None:
    """The kernel maps them writable again, and what they lead to may be anything by now."""
    pv = PvGuest(width=width, size=120)
    top = pv.root()
    used = set(pv.tables)
    old = pv.root()
    pv.map(old, 0x40_0000, Entry(3))
    stale = pv.tables.keys() - used
    pv.direct_map(top, KERNEL[width])
    for pfn in stale:
        pv.map(top, KERNEL[width] + pfn * 4096, Entry(pfn))
    dump, done = made(pv.guest(top), width)
    assert done.roots == 1
    assert differing(dump, pv.pages(machine=False) | {pfn: pv.page(pfn, machine=True) for pfn in stale}) == []


# What is no memory of the guest.


def test_frames_that_the_map_lacks_are_cleared_and_counted() -> None:
    pv, top = kernel()
    pv.map(top, 0x40_0000, Entry(None, XEN_MFN + 7))
    pv.map(top, 0x40_1000, Entry(None, 0xF_FFFF_FFFF))
    dump, done = made(pv.guest(top))
    assert differing(dump, pv.pages(machine=False)) == []
    assert done.counts.unknown == 2
    assert dump.remarks[-1].startswith("2 page-table entries lead to machine frames that are not in the guest's map")


def test_foreign_pages_and_devices_are_where_the_guest_shows_them() -> None:
    pv, top = kernel()
    foreign = pv.map(top, 0x40_0000, Entry(None, 0x2_2222))
    pv.map(top, 0x40_1000, Entry(None, 0xF_EE00))
    core = opened(pv.guest(top))
    assert core.p2m is not None
    (runs,) = (core.p2m.runs,)
    one = np.array([1], np.int64)
    p2m = P2M(
        runs,
        0x100000,
        foreign=FrameRuns(np.array([0x1000]), np.array([0x2_2222]), one),
        identity=FrameRuns(np.array([0xF_EE00]), np.array([0xF_EE00]), one),
    )
    dump, done = canonical(replace(core, p2m=p2m))
    assert done is not None
    assert (done.counts.foreign, done.counts.identity, done.counts.unknown) == (1, 1, 0)
    words = np.frombuffer(pages_of(dump)[foreign], "<u8")
    assert words[:2].tolist() == [0x1000 << 12 | FLAGS, 0xF_EE00 << 12 | FLAGS]


def test_large_pages_need_frames_that_follow_each_other() -> None:
    size = 2048
    mfns = {pfn: 0x10000 + pfn for pfn in range(size)}
    mfns[1024], mfns[1030] = mfns[1030], mfns[1024]
    pv = PvGuest(size=size, mfns=mfns)
    top = pv.root()
    pv.map(top, 0, Entry(5))
    level2 = pv.tables[pv.tables[top][0].pfn or 0][0].pfn or 0
    pv.tables[level2][1] = Entry(512, flags=0xE7 | 1 << 12)  # 2 MiB, with PAT
    pv.tables[level2][2] = Entry(None, 0x10000 + 1024, flags=0xE7)  # in pieces
    dump, done = made(pv.guest(top))
    assert differing(dump, pv.pages(machine=False)) == []
    assert (done.counts.large, done.counts.unknown) == (1, 0)
    assert "1 page-table entries lead to large pages in pieces: cleared" in dump.remarks


def test_tables_that_the_dump_does_not_hold() -> None:
    pv, top = kernel()
    lowest = pv.map(top, 0x40_0000, Entry(3))
    guest = pv.guest(top)
    del guest.pages[lowest]
    core = opened(guest)
    p2m = P2M.from_pairs(np.arange(pv.size), np.array([scattered(pfn) for pfn in range(pv.size)]))
    dump, done = canonical(replace(core, p2m=p2m))
    assert done is not None
    assert (done.missing, done.counts.unknown) == (1, 0)
    expected = pv.pages(machine=False)
    del expected[lowest]
    assert differing(dump, expected) == []


# Hostile guests.


@pytest.mark.parametrize("slot", [0, 511])
def test_table_that_leads_to_itself(slot: int) -> None:
    """A guest's own linear map: the top table is a table of every level."""
    pv, top = kernel()
    pv.tables[top][slot] = Entry(top)
    dump, _ = made(pv.guest(top))
    assert differing(dump, pv.pages(machine=False)) == []


def test_tables_that_lead_to_each_other_everywhere() -> None:
    pv = PvGuest(size=96)
    top = pv.root()
    tables = [top, *(pv.table() for _ in range(40))]
    for number, table in enumerate(tables):
        for slot in (*range(256), *range(272, 512)):
            pv.tables[table][slot] = Entry(tables[(number + slot) % len(tables)])
    dump, done = made(pv.guest(top))
    assert differing(dump, pv.pages(machine=False)) == []
    assert done.tables <= 4 * len(tables)


def test_every_page_claims_to_be_a_table_that_is_mapped_nowhere() -> None:
    pv = PvGuest(size=600, first_table=0)
    tops = [pv.root() for _ in range(600)]
    dump, done = made(pv.guest(tops[0]))
    assert done.roots == 600
    assert differing(dump, pv.pages(machine=False)) == []


@given(words=st.lists(st.integers(0, (1 << 64) - 1), min_size=512, max_size=512), level=st.integers(1, 4))
def test_any_words_at_all(words: list[int], level: int) -> None:
    """Against the rule, word by word."""
    frames = {0x10000 + n: n for n in range(1 << 12)}
    rule = Rule.of(P2M.from_pairs(np.arange(1 << 12), np.arange(1 << 12) + 0x10000), 64)
    words = [word & ~(0xF_FFFF_FFFF_F000) | (0x10000 + word % 5000) << 12 if word & 2 else word for word in words]
    expected = []
    for slot, word in enumerate(words):
        frame, large = word >> 12 & 0xFF_FFFF_FFFF, level in (2, 3) and word & 0x80
        span = 512 ** (level - 1) if large else 1
        base = frame // span * span
        pfn = frames.get(base) if all(frames.get(base + n) is not None for n in (0, span - 1)) else None
        if level == 4 and 256 <= slot < 272:
            expected.append(0)
        elif not word & 1:
            expected.append(word)
        elif pfn is None:
            expected.append(0)
        else:
            expected.append(word - (base << 12) + (pfn << 12))
    out, counts = rule.apply(np.array([words], np.uint64), level, np.array([level == 4]))
    assert out[0].tolist() == expected
    assert counts.entries == sum(word & 1 for word in expected)


# The store.


def test_compressed_pages_pass_and_compressed_tables_are_rewritten() -> None:
    pv, top = kernel()
    core = opened(pv.guest(top))
    packed = open_from([BytesSource(kdump.build(pv.guest(top), codec="zlib"), "kdump")])
    seen = replace(packed, machine=core.machine, p2m=core.p2m, cpus=core.cpus)
    dump, _ = canonical(seen, threads=0)
    assert differing(dump, pv.pages(machine=False)) == []
    table = dump.pages.locate(np.arange(pv.size))
    batch = dump.pages.fetch(table)
    tables = np.isin(table.pfn, sorted(pv.tables))
    before = packed.pages.locate(table.pfn)
    assert (batch.table.codec[tables] == CodecId.RAW).all()
    assert (batch.table.codec[~tables] == before.codec[~tables]).all()
    assert (batch.table.size[~tables] == before.size[~tables]).all()
    assert (batch.table.codec[~tables] == CodecId.ZLIB).any()
    raw = decode(batch, 4096)
    expected = pv.pages(machine=False)
    for pfn, offset in zip(raw.table.pfn.tolist(), raw.table.offset.tolist(), strict=True):
        assert not any(expected[pfn]) or bytes(raw.body[offset : offset + 4096]) == expected[pfn]


def test_table_that_does_not_decode_stays_bad() -> None:
    pv, top = kernel()
    core = opened(pv.guest(top))
    image = bytearray(kdump.build(pv.guest(top), codec="zlib"))
    packed = open_from([BytesSource(bytes(image), "kdump")])
    lowest = max(pv.tables)
    found = packed.pages.locate(np.array([lowest]))
    at = int(found.offset[0])
    image[at : at + int(found.size[0])] = b"\xff" * int(found.size[0])
    broken = open_from([BytesSource(bytes(image), "kdump")])
    dump, done = canonical(replace(broken, machine=core.machine, p2m=core.p2m, cpus=core.cpus), threads=0)
    assert done is not None
    assert done.missing == 1
    assert [state.name for state in dump.states([lowest])] == ["STORED"]
    batch = decode(dump.pages.fetch(dump.pages.locate(np.arange(pv.size))), 4096)
    assert [
        pfn for pfn, state in zip(batch.table.pfn.tolist(), batch.table.state.tolist(), strict=True) if state == 4
    ] == [lowest]


def test_tables_have_no_place_in_the_file() -> None:
    pv, top = kernel()
    dump, _ = made(pv.guest(top))
    table = dump.pages.locate(np.arange(pv.size))
    place = dump.pages.place(table)
    assert sorted(table.pfn[place < 0].tolist()) == sorted(pv.tables)


def test_marks() -> None:
    pages = PageRuns(np.array([5, 1 << 39]), np.array([3, 100_000]))
    marks = Marks(pages)
    assert marks.add(np.array([7, 4, 7, (1 << 39) + 99_999, -1, 1 << 45])) == 3
    assert marks.count == 2
    assert marks.contains(np.array([5, 7, (1 << 39) + 99_999, 1 << 45, -1])).tolist() == [
        False,
        True,
        True,
        False,
        False,
    ]
    assert [part.tolist() for part in marks.parts(1)] == [[7], [(1 << 39) + 99_999]]
    assert list(Marks(PageRuns.from_pfns(np.empty(0, np.int64))).parts(5)) == []


# What cannot be done.


def test_dump_of_an_ordinary_guest_is_given_as_it_is() -> None:
    pv, top = kernel()
    dump, _ = made(pv.guest(top))
    assert canonical(dump) == (dump, None)
    hvm = open_from([BytesSource(xen_core.build(pv.guest(top), hvm=True), "core")])
    assert hvm.canonical() is hvm


def test_map_of_another_guest() -> None:
    pv, top = kernel()
    other = P2M.from_pairs(np.arange(8), np.arange(8) + 0x7000000)
    with pytest.raises(MapError, match="none of which is in the p2m map"):
        canonical(replace(opened(pv.guest(top)), p2m=other))
    with pytest.raises(MapError, match="give it with --p2m"):
        canonical(replace(opened(pv.guest(top)), p2m=None))


def test_no_processors() -> None:
    pv, top = kernel()
    with pytest.raises(UnsupportedFeatureError, match="no processor's cr3 is known"):
        canonical(replace(opened(pv.guest(top)), cpus=()))


def test_pages_besides_tables_are_named() -> None:
    pv, top = kernel()
    assert made(pv.guest(top))[0].read(3 * 4096, 4096) == page(3)
