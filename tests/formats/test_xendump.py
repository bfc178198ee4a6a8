"""Old Xen dumps: read with and without a map, in every variant, and refused where they make no sense."""

from __future__ import annotations

import json
import re
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pytest

import dumpxlate
from dumpxlate import errors
from dumpxlate.dump import Space
from dumpxlate.p2m.map import P2M
from dumpxlate.pages import PageState
from tests.builders import xendump
from tests.builders.guest import Guest, page, register, small_guest
from tests.readers import elf_notes, elf_segments, vmcore_missing, vmcore_pages

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ALL_ONES = (1 << 64) - 1


@pytest.fixture(scope="module")
def guest() -> Guest:
    return small_guest(excluded=())


def write(folder: Path, data: bytes) -> Path:
    path = folder / "xen.core"
    path.write_bytes(data)
    return path


def map_of(guest: Guest) -> P2M:
    pfn = np.array(list(guest.mfns), np.int64)
    return P2M.from_pairs(pfn, np.array(list(guest.mfns.values()), np.int64))


def assert_pages(dump: dumpxlate.Dump, expected: dict[int, bytes]) -> None:
    pfns = sorted(expected)
    assert dump.pages.stored.select(0, 1 << 40).tolist() == pfns
    found = dump.read_pages(pfns)
    wrong = [pfn for pfn, row in zip(pfns, found, strict=True) if row.tobytes() != expected[pfn]]
    assert not wrong


@pytest.mark.parametrize("order", ["shuffle", "pfn", "mfn", "rmfn"])
@pytest.mark.parametrize("entry_size", [8, 4])
@pytest.mark.parametrize("context_size", [5168, 2800])
def test_pv_with_a_map(tmp_path: Path, guest: Guest, entry_size: int, context_size: int, order: str) -> None:
    data = xendump.build(guest, entry_size=entry_size, context_size=context_size, order=order)
    with dumpxlate.open(write(tmp_path, data)) as dump:
        assert dump.space is Space.MACHINE
        assert_pages(dump, {guest.mfns[pfn]: data for pfn, data in guest.pages.items()})
        assert dump.machine.word_bits == (64 if context_size == 5168 else 32)
        seen = dump.with_p2m(map_of(guest))
        assert seen.space is Space.PHYSICAL
        assert_pages(seen, guest.pages)
        assert len(seen.cpus) == 2


@pytest.mark.parametrize(("width", "names"), [(8, ("rip", "rsp", "rax", "r15")), (4, ("eip", "esp", "eax", "edi"))])
def test_registers(tmp_path: Path, guest: Guest, width: int, names: tuple[str, ...]) -> None:
    data = xendump.build(guest, width=width, context_size=5168 if width == 8 else 2800)
    with dumpxlate.open(write(tmp_path, data)) as dump:
        for cpu in dump.cpus:
            for name in names:
                assert cpu.registers[name] == register(name, cpu.index, width)


def test_32_bit_guest_in_a_64_bit_slot(tmp_path: Path, guest: Guest) -> None:
    data = xendump.build(guest, width=4, context_size=5168)
    with dumpxlate.open(write(tmp_path, data)) as dump:
        assert dump.machine.arch.name == "i386"
        assert dump.cpus[1].registers["eip"] == register("eip", 1, 4)


def test_hvm_is_keyed_by_position(tmp_path: Path, guest: Guest) -> None:
    guest = small_guest(excluded=(), high=False)
    data = xendump.build(guest, hvm=True, dense=True)
    with dumpxlate.open(write(tmp_path, data)) as dump:
        assert dump.space is Space.PHYSICAL
        assert_pages(dump, guest.pages)
        assert any("fully virtualised" in remark for remark in dump.remarks)


def test_hvm_of_xen_3_0_3_has_the_pv_magic(tmp_path: Path) -> None:
    guest = small_guest(excluded=(), high=False)
    data = xendump.build(guest, hvm_flag=True, dense=True)
    with dumpxlate.open(write(tmp_path, data)) as dump:
        assert dump.space is Space.PHYSICAL
        assert_pages(dump, guest.pages)


def test_hvm_follows_a_map_that_is_given(tmp_path: Path, guest: Guest) -> None:
    data = xendump.build(guest, hvm=True, order="shuffle")
    with dumpxlate.open(write(tmp_path, data)) as dump:
        assert_pages(dump.with_p2m(map_of(guest)), guest.pages)


def test_hvm_pages_from_the_mmio_hole_on_lie_above_4_gib(tmp_path: Path) -> None:
    last = 0xF0000 + 3
    path = xendump.sparse_huge(tmp_path / "hvm", {0: page(0), last: page(last)}, nr_pages=last + 1)
    with path.open("r+b") as file:
        file.write(struct.pack("<I", 0xF00FEBEE))
    with dumpxlate.open(path) as dump:
        states = dump.states([0, 0xEFFFF, 0xF0000, 0xFFFFF, 0x100000, 0x100003, 0x100004])
        names = [state.name for state in states]
        assert names == ["STORED", "STORED", "ABSENT", "ABSENT", "STORED", "STORED", "ABSENT"]
        assert dump.read(0x100003 * 4096, 8) == struct.pack("<Q", last)


def test_invalid_entries_and_duplicates(tmp_path: Path, guest: Guest) -> None:
    data = xendump.build(guest, invalid=(0, 17), duplicates=(4, 0x101))
    with dumpxlate.open(write(tmp_path, data)) as dump:
        assert_pages(dump.with_p2m(map_of(guest)), guest.pages)
        assert dump.pages.loaded.repeated == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("count", [1, 3, 4, 100, 511, 512, 1023, 1024])
@pytest.mark.parametrize("entry_size", [8, 4])
def test_width_of_a_short_index(tmp_path: Path, count: int, entry_size: int) -> None:
    pages = {pfn: page(pfn) for pfn in range(1, count + 1)}
    data = xendump.build(pages, entry_size=entry_size, order="pfn")
    with dumpxlate.open(write(tmp_path, data)) as dump:
        assert_pages(dump, pages)


def test_pages_beyond_4_gib_of_file(tmp_path: Path) -> None:
    rows = (1 << 20) + 5
    pages = {0: page(0), rows - 1: page(rows - 1)}
    path = xendump.sparse_huge(tmp_path / "huge", pages, nr_pages=rows, mfn_of_row=7)
    with dumpxlate.open(path) as dump:
        assert path.stat().st_size > 1 << 32
        assert dump.read((rows - 1 + 7) * 4096, 8) == struct.pack("<Q", rows - 1)


def test_without_vcpus(tmp_path: Path, guest: Guest) -> None:
    data = xendump.build(guest, contexts=[])
    with dumpxlate.open(write(tmp_path, data)) as dump:
        assert dump.cpus == ()
        assert any("no vcpu contexts" in remark for remark in dump.remarks)
        assert_pages(dump.with_p2m(map_of(guest)), guest.pages)


def test_odd_context_size_is_left_out(tmp_path: Path, guest: Guest) -> None:
    data = xendump.build(guest, contexts=[bytes(5000)])
    with dumpxlate.open(write(tmp_path, data)) as dump:
        assert dump.cpus == ()
        assert any("neither 2800 nor 5168" in remark for remark in dump.remarks)


def test_stale_tail_is_remarked(tmp_path: Path, guest: Guest) -> None:
    data = xendump.build(guest, stale_tail=b"old bytes" * 1000)
    with dumpxlate.open(write(tmp_path, data)) as dump:
        assert any("behind the last page" in remark for remark in dump.remarks)
        assert_pages(dump.with_p2m(map_of(guest)), guest.pages)


def test_truncated_pages_are_damage(tmp_path: Path, guest: Guest) -> None:
    order = sorted(guest.pages)
    data = xendump.build(guest, order=order, truncate=-(3 * 4096 + 100))
    lost = order[-4:]
    with dumpxlate.open(write(tmp_path, data)) as dump:
        (damage,) = dump.damage
        assert f"4 of {len(order):,} pages" in damage
        seen = dump.with_p2m(map_of(guest))
        assert seen.states(lost) == [PageState.EXCLUDED] * 4
        assert_pages(seen, {pfn: guest.pages[pfn] for pfn in order[:-4]})
        out = tmp_path / "vmcore"
        with pytest.raises(errors.CorruptDumpError, match="4 of"):
            dumpxlate.convert(seen, out)
        assert not out.exists()
        report = dumpxlate.convert(seen, out, salvage=True)
    assert not report.complete
    assert report.pages_out["excluded"] == 4
    assert vmcore_pages(out) == {pfn: guest.pages[pfn] for pfn in order[:-4]}
    assert vmcore_missing(out) == set(lost)


REFUSED = {
    "no pages": ({"nr_pages": 0}, "xch_nr_pages"),
    "too many pages": ({"nr_pages": (1 << 28) + 1}, "xch_nr_pages"),
    "too many vcpus": ({"nr_vcpus": 4097}, "xch_nr_vcpus"),
    "contexts in the header": ({"ctxt_offset": 23}, "xch_ctxt_offset"),
    "index before contexts": ({"ctxt_offset": 24, "index_offset": 23}, "xch_index_offset"),
    "pages before index": ({"pages_offset": 4096}, "xch_pages_offset"),
    "unaligned pages": ({"pages_offset": 0x10001}, "multiple of 4096"),
    "no room for the index": ({"nr_pages": 1 << 27}, "room for"),
    "index beyond the file": ({"index_offset": 0xFFFF0000, "pages_offset": 0xFFFFF000, "nr_pages": 8192}, "truncated"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, guest: Guest, case: str) -> None:
    header, words = REFUSED[case]
    path = write(tmp_path, xendump.build(guest, header=header))
    with pytest.raises(errors.CorruptDumpError, match=words) as caught, dumpxlate.open(path):
        pass
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("length", [4, 23, 24, 25, 5191, 5192, 5193, 9000, 0x3000 - 1])
def test_truncated_at_every_boundary(tmp_path: Path, guest: Guest, length: int) -> None:
    path = write(tmp_path, xendump.build(guest, truncate=length))
    with pytest.raises(errors.TruncatedDumpError), dumpxlate.open(path):
        pass


def test_big_endian_is_refused_by_name(tmp_path: Path, guest: Guest) -> None:
    path = write(tmp_path, xendump.build(guest, byte_order=">"))
    with pytest.raises(errors.UnsupportedFeatureError, match="big-endian xendump"), dumpxlate.open(path):
        pass


def test_without_a_map_convert_names_the_ways_to_get_one(tmp_path: Path, guest: Guest) -> None:
    out = tmp_path / "vmcore"
    with (
        dumpxlate.open(write(tmp_path, xendump.build(guest))) as dump,
        pytest.raises(errors.MapError, match=r"--p2m MAP.*xen-mfndump"),
    ):
        dumpxlate.convert(dump, out)
    assert not out.exists()


def test_a_map_that_does_not_fit_is_refused_in_numbers(tmp_path: Path, guest: Guest) -> None:
    pfns = sorted(guest.mfns)
    few = {pfn: guest.mfns[pfn] + (10_000_000 if pfn in pfns[:20] else 0) for pfn in pfns}
    few[pfns[30]] = few[pfns[31]]
    other = P2M.from_pairs(np.array(list(few), np.int64), np.array(list(few.values()), np.int64))
    out = tmp_path / "vmcore"
    with dumpxlate.open(write(tmp_path, xendump.build(guest))) as dump:
        seen = dump.with_p2m(other)
        with pytest.raises(errors.MapError, match=rf"20 of {len(pfns)} mapped pages.*21 of {len(pfns)}.*1 aliases"):
            dumpxlate.convert(seen, out)
        report = dumpxlate.convert(seen, out, allow_loss=True)
    assert report.fit is not None
    assert (report.fit.missing, report.fit.unmapped, report.fit.aliases) == (20, 21, 1)
    assert report.pages_out["excluded"] == 20
    expected = {pfn: guest.pages[pfn] for pfn in pfns[20:]}
    expected[pfns[30]] = guest.pages[pfns[31]]
    assert vmcore_pages(out) == expected


# The same guests as the vmcore, read without dumpxlate.

REAL = ["t0.old8", "t0.old4", "t1.old8", "t1.old4", "t2.old8", "t2.old4", "t3.old8", "t3.old4", "t4.old8", "t4.old4"]
REAL += ["t5.old8", "t6.old8", "t6.old4", "t7.old8", "t7.old4"]


def truth_of(path: Path) -> dict[int, str]:
    """crc32 of each pfn's page, as it stood in the file that Xen wrote."""
    rows = json.loads(path.read_text())["pages"]
    return {int(pfn, 16): crc for _, pfn, mfn, crc, _ in rows if ALL_ONES not in (int(pfn, 16), int(mfn, 16))}


def crcs(pages: dict[int, bytes]) -> dict[int, str]:
    return {pfn: f"{zlib.crc32(data):08x}" for pfn, data in pages.items()}


@pytest.mark.parametrize("name", REAL)
def test_real_guests_equal_the_truth(shared: Path, unpacked: Callable[[Path], Path], tmp_path: Path, name: str) -> None:
    folder = shared / "fixtures" / "xen"
    dump, p2m = unpacked(folder / f"{name}.xz"), unpacked(folder / f"{name}.map.xz")
    truth = truth_of(unpacked(folder / f"{name[:2]}.json.xz"))
    out = tmp_path / "vmcore"
    with dumpxlate.open(dump, p2m=p2m) as opened:
        report = dumpxlate.convert(opened, out)
    assert crcs(vmcore_pages(out)) == truth
    assert vmcore_missing(out) == set()
    assert report.pages_out["stored"] + report.pages_out["zero"] == len(truth)
    assert report.complete


@pytest.mark.parametrize("name", ["t0", "t1", "t2", "t3", "t4", "t6", "t7"])
def test_real_guests_through_what_xen_mfndump_printed(
    shared: Path, unpacked: Callable[[Path], Path], tmp_path: Path, name: str
) -> None:
    folder = shared / "fixtures" / "xen"
    dump, listing = unpacked(folder / f"{name}.old8.xz"), unpacked(folder / f"{name}.p2m.txt.xz")
    truth = truth_of(unpacked(folder / f"{name}.json.xz"))
    out = tmp_path / "vmcore"
    with dumpxlate.open(dump, p2m=listing) as opened:
        dumpxlate.convert(opened, out)
    assert crcs(vmcore_pages(out)) == truth


@pytest.mark.parametrize(
    ("dump", "guest"), [("t0.old4", "t0"), ("t1.old8", "t1"), ("t3.old8", "t3"), ("t5.old8", "t5")]
)
def test_samples_equal_the_truth(sample: Callable[[str], Path], tmp_path: Path, dump: str, guest: str) -> None:
    from tests.conftest import SAMPLES

    out = tmp_path / "vmcore"
    with dumpxlate.open(sample(f"xendump/{dump}"), p2m=SAMPLES / "xendump" / f"{guest}.map") as opened:
        dumpxlate.convert(opened, out)
    assert crcs(vmcore_pages(out)) == truth_of(sample(f"xendump/{guest}.truth.json"))


def test_aliases_foreign_and_identity_entries_are_counted(sample: Callable[[str], Path], tmp_path: Path) -> None:
    with dumpxlate.open(sample("xendump/t3.old8"), p2m=sample("xendump/t3.p2m.txt")) as dump:
        report = dumpxlate.convert(dump, tmp_path / "vmcore")
        assert dump.p2m is not None
        assert report.fit is not None
        assert report.fit.aliases == 2
        assert report.fit.missing == report.fit.unmapped == 0
        flags = [int(mfn, 16) >> 62 for mfn in re.findall(r"mfn=(0x\w+)", sample("xendump/t3.p2m.txt").read_text())]
        all_ones = sample("xendump/t3.p2m.txt").read_text().count("0xffffffffffffffff")
        assert dump.p2m.foreign.total == flags.count(2) + flags.count(3) - all_ones
        assert dump.p2m.identity.total == flags.count(1) == 2


def test_notes_of_a_real_guest(sample: Callable[[str], Path], tmp_path: Path) -> None:
    """Registers as ``xenctx`` printed them: rip 6a1, rsp df88, r12 1111222233334444 (t1 runs the same code)."""
    from tests.conftest import SAMPLES

    out = tmp_path / "vmcore"
    with dumpxlate.open(sample("xendump/t1.old8"), p2m=SAMPLES / "xendump" / "t1.map") as dump:
        dumpxlate.convert(dump, out)
    notes = elf_notes(out)
    names = [(name, number) for name, number, _ in notes]
    assert names == [("CORE", 1), ("DUMPXLATE", 1), ("DUMPXLATE", 2), ("DUMPXLATE", 3)]
    status = notes[0][2]
    assert len(status) == 336
    assert struct.unpack_from("<I", status, 32) == (1,)
    r15, r14, r13, r12 = struct.unpack_from("<4Q", status, 112)
    assert (r12, r13, r14, r15) == (0x1111222233334444, 0x5555666677778888, 0x9999AAAABBBBCCCC, 0xDDDDEEEEFFFF0123)
    assert struct.unpack_from("<Q", status, 240) == (0x6A1,)
    # The whole context travels, so that nothing of the input is lost.
    original = sample("xendump/t1.old8").read_bytes()
    assert notes[2][2] == struct.pack("<2I", 0, 5168) + original[24 : 24 + 5168]


def test_segments_of_the_output(sample: Callable[[str], Path], tmp_path: Path) -> None:
    from tests.conftest import SAMPLES

    out = tmp_path / "vmcore"
    with dumpxlate.open(sample("xendump/t1.old8"), p2m=SAMPLES / "xendump" / "t1.map") as dump:
        dumpxlate.convert(dump, out)
    head = out.read_bytes()[:64]
    assert struct.unpack_from("<Q", head, 32) == (64,)  # e_phoff: makedumpfile looks nowhere else
    assert struct.unpack_from("<H", head, 52) == (64,)  # e_ehsize
    segments = elf_segments(out)
    assert [kind for kind, *_ in segments] == [4] + [1] * (len(segments) - 1)
    for kind, offset, _, paddr, filesz, memsz in segments:
        if kind == 1:
            assert offset % 4096 == paddr % 4096 == 0
            assert filesz == memsz
    assert out.stat().st_mode & 0o777 == 0o600
