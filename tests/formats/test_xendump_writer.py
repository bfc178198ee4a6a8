"""Old Xen dumps, written: the bytes, whether our reader takes them, and what has no place in them."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import dumpxlate
from dumpxlate import errors
from dumpxlate.dump import Dump, Space
from dumpxlate.format import WriteOptions
from dumpxlate.formats.xendump import FORMAT
from dumpxlate.io.sink import PipeSink
from dumpxlate.p2m.map import P2M
from tests.builders import elf_cores, xen_core, xendump
from tests.builders.guest import Guest, page, register, small_guest
from tests.builders.xen_vcpu import contexts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Unpack = Callable[[Path], Path]

PV, HVM = 0xF00FEBED, 0xF00FEBEE


@pytest.fixture(scope="module")
def guest() -> Guest:
    return small_guest(excluded=())


def write(folder: Path, data: bytes, name: str = "in") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


class Old:
    """An old dump, read without dumpxlate."""

    def __init__(self, path: Path, entry_size: int = 8) -> None:
        data = path.read_bytes()
        self.magic, vcpus, count, ctxt, index, pages = struct.unpack_from("<6I", data)
        assert ctxt == 24
        assert pages == -(-(index + count * entry_size) // 4096) * 4096
        assert len(data) == pages + count * 4096
        assert not any(data[index + count * entry_size : pages])
        size = (index - ctxt) // vcpus if vcpus else 0
        self.contexts = [data[ctxt + size * at : ctxt + size * (at + 1)] for at in range(vcpus)]
        self.entries = list(struct.unpack_from(f"<{count}{'Q' if entry_size == 8 else 'I'}", data, index))
        self.rows = [data[pages + at * 4096 : pages + at * 4096 + 4096] for at in range(count)]
        self.none = (1 << 8 * entry_size) - 1

    @property
    def pages(self) -> dict[int, bytes]:
        """Pages by entry; where that is all ones there must be zeros."""
        assert not any(any(row) for entry, row in zip(self.entries, self.rows, strict=True) if entry == self.none)
        held = [(entry, row) for entry, row in zip(self.entries, self.rows, strict=True) if entry != self.none]
        assert len(dict(held)) == len(held)
        return dict(held)


class TestRealGuests:
    @pytest.mark.parametrize("name", ["t0", "t1", "t2", "t3", "t4", "t6", "t7"])
    def test_core_to_xendump(self, shared: Path, unpacked: Unpack, tmp_path: Path, name: str) -> None:
        """The pages of the reconstruction, as a set: its index is shuffled."""
        folder = shared / "fixtures" / "xen"
        with dumpxlate.open(unpacked(folder / f"{name}.core.xz")) as dump:
            report = dumpxlate.convert(dump, tmp_path / "out", "xendump", allow_loss=True)
        assert {loss.what for loss in report.losses} == {"the p2m map", "block xen_version", "block xen_shared_info"}
        ours, other = Old(tmp_path / "out"), Old(unpacked(folder / f"{name}.old8.xz"))
        assert ours.magic == PV
        # Where pfns share a frame (t3, t6) the reconstruction has its page twice, which Xen itself never wrote.
        assert ours.pages == dict(zip(other.entries, other.rows, strict=True))
        assert ours.contexts == other.contexts

    def test_pvh(self, shared: Path, unpacked: Unpack, tmp_path: Path) -> None:
        folder = shared / "fixtures" / "xen"
        with dumpxlate.open(unpacked(folder / "t5.core.xz")) as dump:
            dumpxlate.convert(dump, tmp_path / "out", "xendump", allow_loss=True)
            pfns = dump.pages.stored.select(0, 1 << 20).tolist()
            expected = dict(zip(pfns, (row.tobytes() for row in dump.read_pages(pfns)), strict=True))
        ours = Old(tmp_path / "out")
        assert ours.magic == HVM
        assert ours.pages == expected
        assert [entry for entry in ours.entries if entry != ours.none] == pfns
        assert all(entry in (at, ours.none) for at, entry in enumerate(ours.entries))

    @pytest.mark.parametrize("name", ["t1", "t3", "t6"])
    def test_back_to_a_core(self, shared: Path, unpacked: Unpack, tmp_path: Path, name: str) -> None:
        """Only map, shared_info and version are lost: with the map the same pages stand under the same pfns."""
        folder = shared / "fixtures" / "xen"
        with dumpxlate.open(unpacked(folder / f"{name}.core.xz")) as dump:
            dumpxlate.convert(dump, tmp_path / "old", "xendump", allow_loss=True)
            with dumpxlate.open(tmp_path / "old") as old:
                assert old.space is Space.MACHINE
                assert dump.p2m is not None
                seen = old.with_p2m(dump.p2m)
                pfns = dump.pages.stored.select(0, 1 << 20)
                assert seen.pages.stored.select(0, 1 << 20).tolist() == pfns.tolist()
                assert (seen.read_pages(pfns) == dump.read_pages(pfns)).all()
                assert old.cpus == dump.cpus


class TestParavirtual:
    @pytest.mark.parametrize(("width", "entry_size", "size"), [(8, 8, 5168), (4, 4, 2800)])
    def test_widths(self, tmp_path: Path, guest: Guest, width: int, entry_size: int, size: int) -> None:
        with dumpxlate.open(write(tmp_path, xen_core.build(guest, width=width))) as dump:
            dumpxlate.convert(dump, tmp_path / "out", "xendump", allow_loss=True)
        ours = Old(tmp_path / "out", entry_size)
        assert ours.magic == PV
        assert ours.pages == {guest.mfns[pfn]: data for pfn, data in guest.pages.items()}
        assert ours.contexts == contexts(guest, width=width)
        assert {len(each) for each in ours.contexts} == {size}
        with dumpxlate.open(tmp_path / "out") as dump:
            assert dump.machine.word_bits == width * 8
            assert [cpu.raw["xen"] for cpu in dump.cpus] == ours.contexts

    def test_high_frames_of_a_32_bit_guest(self, tmp_path: Path, guest: Guest) -> None:
        mfns = guest.mfns | {4: 0xFFFFFFFF}
        with dumpxlate.open(write(tmp_path, xen_core.build(guest.but(mfns=mfns), width=4))) as dump:
            dumpxlate.convert(dump, tmp_path / "out", "xendump", allow_loss=True)
        assert Old(tmp_path / "out", 8).pages[0xFFFFFFFF] == guest.pages[4]

    def test_frames_that_pfns_share(self, tmp_path: Path, guest: Guest) -> None:
        """One page for both, and the map is what tells."""
        pages = guest.pages | {8: guest.pages[7]}
        model = guest.but(pages=pages, mfns=guest.mfns | {8: guest.mfns[7]})
        with dumpxlate.open(write(tmp_path, xen_core.build(model))) as dump:
            dumpxlate.convert(dump, tmp_path / "out", "xendump", allow_loss=True)
            assert len(Old(tmp_path / "out").pages) == len(pages) - 1
            with dumpxlate.open(tmp_path / "out") as old:
                assert dump.p2m is not None
                seen = old.with_p2m(dump.p2m)
                found = seen.read_pages([7, 8])
                assert found[0].tobytes() == found[1].tobytes() == guest.pages[7]

    def test_pages_without_a_frame(self, tmp_path: Path, guest: Guest) -> None:
        with dumpxlate.open(write(tmp_path, xen_core.build(guest.but(mfns=guest.mfns | {4: 1 << 62})))) as dump:
            with pytest.raises(errors.LossyConversionError, match="1 pages without a machine frame"):
                dumpxlate.convert(dump, tmp_path / "out", "xendump")
            dumpxlate.convert(dump, tmp_path / "out", "xendump", allow_loss=True)
        assert Old(tmp_path / "out").pages == {guest.mfns[pfn]: row for pfn, row in guest.pages.items() if pfn != 4}

    def test_without_a_map_frames_stay_what_they_are(self, tmp_path: Path, guest: Guest) -> None:
        path = write(tmp_path, xendump.build(guest, order="rmfn", invalid=(3,)))
        with dumpxlate.open(path) as dump:
            report = dumpxlate.convert(dump, tmp_path / "out", "xendump")
        assert report.losses == ()
        ours = Old(tmp_path / "out")
        assert ours.pages == Old(path).pages
        assert ours.entries == sorted(ours.entries)
        assert ours.contexts == Old(path).contexts

    def test_the_map_is_needed_otherwise(self, tmp_path: Path, guest: Guest) -> None:
        with dumpxlate.open(write(tmp_path, xen_core.build(guest))) as dump:
            unmapped = Dump("elf", "", dump.machine, dump.pages, sources=dump.sources)
            with pytest.raises(errors.MapError, match="has no p2m map"):
                FORMAT.writer(unmapped, WriteOptions())


class TestFullyVirtualised:
    @pytest.mark.parametrize("excluded", [(), (3, 0x110, 0x111)])
    def test_row_is_pfn(self, tmp_path: Path, excluded: tuple[int, ...]) -> None:
        guest = small_guest(high=False, excluded=excluded)
        with dumpxlate.open(write(tmp_path, xen_core.build(guest, hvm=True))) as dump:
            dumpxlate.convert(dump, tmp_path / "out", "xendump", allow_loss=True)
        ours = Old(tmp_path / "out")
        assert ours.magic == HVM
        assert ours.pages == guest.pages
        assert len(ours.entries) == max(guest.pages) + 1
        assert all(ours.rows[pfn] == data for pfn, data in guest.pages.items())
        with dumpxlate.open(tmp_path / "out") as dump:
            assert dump.pages.stored.select(0, 1 << 40).tolist() == guest.stored
            found = dump.read_pages(guest.stored)
            assert [row.tobytes() for row in found] == [guest.pages[pfn] for pfn in guest.stored]

    def test_memory_above_4_gib(self, tmp_path: Path, guest: Guest) -> None:
        """Rows skip the hole below 4 GiB, where the reader of Xen 3.0.3's files skips it; holes take no disk."""
        with dumpxlate.open(write(tmp_path, xen_core.build(guest, hvm=True))) as dump:
            dumpxlate.convert(dump, tmp_path / "out", "xendump", allow_loss=True)
        first = 1 << 20
        with (tmp_path / "out").open("rb") as file:
            magic, _, rows, _, index, pages = struct.unpack("<6I", file.read(24))
            assert (magic, rows) == (HVM, max(guest.pages) + 1 - 0x10000)
            file.seek(index + 8 * (first - 0x10000 - 1))
            assert struct.unpack("<2Q", file.read(16)) == ((1 << 64) - 1, first)
            file.seek(pages + 4096 * (first - 0x10000))
            assert file.read(4096) == guest.pages[first]
        assert (tmp_path / "out").stat().st_blocks * 512 < 32 << 20
        with dumpxlate.open(tmp_path / "out") as dump:
            assert dump.pages.stored.select(0, 1 << 40).tolist() == guest.stored
            found = dump.read_pages(guest.stored)
            assert [row.tobytes() for row in found] == [guest.pages[pfn] for pfn in guest.stored]

    def test_memory_where_the_hole_is(self, tmp_path: Path) -> None:
        pages = {pfn: page(pfn) for pfn in (0, 1, 0xEFFFF, 0xF0000, 0xFFFFF, 0x100000)}
        with dumpxlate.open(write(tmp_path, xen_core.build(Guest(pages=pages), hvm=True))) as dump:
            with pytest.raises(errors.LossyConversionError, match=r"2 pages from 3\.75 to 4 GiB"):
                dumpxlate.convert(dump, tmp_path / "out", "xendump")
            dumpxlate.convert(dump, tmp_path / "out", "xendump", allow_loss=True)
        with dumpxlate.open(tmp_path / "out") as dump:
            assert dump.pages.stored.select(0, 1 << 40).tolist() == [0, 1, 0xEFFFF, 0x100000]
            assert dump.read(0xEFFFF000, 4096) == pages[0xEFFFF]
            assert dump.read(0x100000000, 4096) == pages[0x100000]

    def test_a_map_fills_the_index(self, tmp_path: Path) -> None:
        guest = small_guest(high=False, excluded=())
        with dumpxlate.open(write(tmp_path, xendump.build(guest, hvm=True))) as dump:
            mfns = P2M.from_pairs(np.array(list(guest.mfns)), np.array(list(guest.mfns.values())))
            report = dumpxlate.convert(dump.with_p2m(mfns), tmp_path / "out", "xendump")
        assert report.losses == ()
        ours = Old(tmp_path / "out")
        assert ours.pages == {guest.mfns[pfn]: data for pfn, data in guest.pages.items()}
        assert [ours.entries[pfn] for pfn in guest.stored] == [guest.mfns[pfn] for pfn in guest.stored]

    def test_a_map_that_lacks_pages(self, tmp_path: Path) -> None:
        """A page that the map says nothing of is told from a hole by its own number."""
        guest = small_guest(high=False, excluded=())
        few = P2M.from_pairs(np.array([0, 1]), np.array([0x777, 0x888]))
        with dumpxlate.open(write(tmp_path, xen_core.build(guest, hvm=True))) as dump:
            dumpxlate.convert(replace(dump, p2m=few), tmp_path / "out", "xendump", allow_loss=True)
        assert Old(tmp_path / "out").entries[:4] == [0x777, 0x888, 2, 3]

    @pytest.mark.parametrize(("arch", "bits", "size", "at"), [("x86_64", 64, 5168, 648), ("i386", 32, 2800, 548)])
    def test_registers_of_another_format(self, tmp_path: Path, arch: str, bits: int, size: int, at: int) -> None:
        guest = small_guest(high=False, excluded=())
        path = write(tmp_path, elf_cores.core(guest, "plain", arch=arch, bits=bits))
        with dumpxlate.open(path) as dump:
            dumpxlate.convert(dump, tmp_path / "out", "xendump")
        ours = Old(tmp_path / "out", bits // 8)
        assert ours.pages == guest.pages
        assert [len(each) for each in ours.contexts] == [size, size]
        name, width = ("rip", 8) if bits == 64 else ("eip", 4)
        for vcpu, slot in enumerate(ours.contexts):
            assert int.from_bytes(slot[at : at + width], "little") == register(name, vcpu, width)


class TestLimits:
    def test_too_many_rows(self, tmp_path: Path) -> None:
        guest = Guest(pages={0: page(0), (1 << 28) + 0x10000: page(1)})
        with (
            dumpxlate.open(write(tmp_path, xen_core.build(guest, hvm=True))) as dump,
            pytest.raises(errors.UnsupportedFeatureError, match="268,435,457 pages, holes included"),
        ):
            FORMAT.writer(dump, WriteOptions())

    def test_the_last_row_that_fits(self, tmp_path: Path) -> None:
        guest = Guest(pages={0: page(0), (1 << 28) + 0xFFFF: page(1)})
        with dumpxlate.open(write(tmp_path, xen_core.build(guest, hvm=True))) as dump:
            assert FORMAT.writer(dump, WriteOptions()).pages.count == 2

    def test_no_page_at_all(self, tmp_path: Path) -> None:
        with (
            dumpxlate.open(write(tmp_path, xen_core.build(Guest(pages={}), hvm=True))) as dump,
            pytest.raises(errors.UnsupportedFeatureError, match="would have 0 pages"),
        ):
            FORMAT.writer(dump, WriteOptions())

    def test_other_machines(self, tmp_path: Path, guest: Guest) -> None:
        with (
            dumpxlate.open(write(tmp_path, xen_core.build(guest, hvm=True, machine=183))) as dump,
            pytest.raises(errors.UnsupportedFeatureError, match="x86 guests"),
        ):
            FORMAT.writer(dump, WriteOptions())

    @pytest.mark.parametrize("option", [{"compress": "zlib"}, {"begin": 4096}, {"length": 4096}, {"part": (1, 2)}])
    def test_options_without_a_meaning(self, tmp_path: Path, guest: Guest, option: dict[str, Any]) -> None:
        with (
            dumpxlate.open(write(tmp_path, xen_core.build(guest))) as dump,
            pytest.raises(errors.UnsupportedFeatureError, match="takes no"),
        ):
            FORMAT.writer(dump, WriteOptions(**option))

    def test_what_is_lost(self, tmp_path: Path, guest: Guest) -> None:
        with (
            dumpxlate.open(write(tmp_path, elf_cores.core(guest, "qemu"))) as dump,
            pytest.raises(errors.LossyConversionError, match=r"VMCOREINFO .*descriptor tables") as caught,
        ):
            dumpxlate.convert(dump, tmp_path / "out", "xendump")
        assert len(caught.value.losses) == 2
        assert not (tmp_path / "out").exists()

    def test_into_a_pipe(self, tmp_path: Path) -> None:
        guest = small_guest(high=False, excluded=())
        with dumpxlate.open(write(tmp_path, xendump.build(guest))) as dump, (tmp_path / "out").open("wb") as file:
            dumpxlate.convert(dump, PipeSink(file.fileno()), "xendump")
            dumpxlate.convert(dump, tmp_path / "file", "xendump")
        assert (tmp_path / "out").read_bytes() == (tmp_path / "file").read_bytes()
