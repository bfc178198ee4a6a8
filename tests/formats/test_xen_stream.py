"""Save images of Xen domains: real ones, every layer and every record, whole and broken."""

from __future__ import annotations

import json
import re
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import dumpxlate
from dumpxlate import errors
from dumpxlate.dump import Dump, Space
from dumpxlate.format import Confidence, WriteOptions
from dumpxlate.formats.xen_stream import FORMAT
from dumpxlate.io.source import BytesSource
from dumpxlate.pages import PageState
from dumpxlate.registry import detect
from tests.builders import xen_stream, xendump
from tests.builders.guest import Guest, page, register, small_guest
from tests.builders.xen_stream import TYPES, libxc, libxl, page_data, record, save, wrong_page, xl_header
from tests.builders.xen_vcpu import contexts, shared_info
from tests.readers import elf_notes, vmcore_pages

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Unpack = Callable[[Path], Path]

FRAME = 0xFFFFFFFFFF000


@pytest.fixture(scope="module")
def guest() -> Guest:
    return small_guest(excluded=(), high=False)


def write(folder: Path, data: bytes) -> Path:
    path = folder / "guest.save"
    path.write_bytes(data)
    return path


def open_bytes(folder: Path, data: bytes) -> Dump:
    return dumpxlate.open(write(folder, data))


def assert_pages(dump: Dump, expected: dict[int, bytes]) -> None:
    pfns = sorted(expected)
    assert dump.pages.stored.select(0, 1 << 40).tolist() == pfns
    found = dump.read_pages(pfns)
    assert not [hex(pfn) for pfn, row in zip(pfns, found, strict=True) if row.tobytes() != expected[pfn]]


def all_pages(dump: Dump) -> dict[int, bytes]:
    pfns = dump.pages.stored.select(0, 1 << 40).tolist()
    return dict(zip(pfns, (row.tobytes() for row in dump.read_pages(pfns)), strict=True))


def walk(read: Callable[[int], bytes], root: int, vaddr: int) -> int:
    """Physical address of a virtual one, through 4-level page tables read by frame number."""
    frame = root >> 12
    for level in (3, 2, 1, 0):
        (entry,) = struct.unpack_from("<Q", read(frame), (vaddr >> 12 + 9 * level & 511) * 8)
        assert entry & 1, f"level {level + 1} of {vaddr:#x} is not present"
        frame = (entry & FRAME) >> 12
        if entry & 0x80 and level:
            inside = (1 << 9 * level) - 1
            return (frame & ~inside | vaddr >> 12 & inside) << 12 | vaddr & 0xFFF
    return frame << 12 | vaddr & 0xFFF


class TestRealFiles:
    @pytest.mark.parametrize("name", ["t5", "pvh1"])
    def test_pvh(self, shared: Path, unpacked: Unpack, name: str) -> None:
        """The core lacks the VGA hole and the special pages; in it are two frames that are no pages of the guest."""
        folder = shared / "fixtures" / ("xen" if name == "t5" else "xen-linux")
        special = {*range(0xA0, 0xC0), *range(0xFC000, 0xFC009), *range(0xFEFF8, 0xFF000)}
        with (
            dumpxlate.open(unpacked(folder / f"{name}.save.xz")) as saved,
            dumpxlate.open(unpacked(folder / f"{name}.core.xz")) as core,
        ):
            assert saved.format == "xen_stream"
            assert (saved.remarks, saved.damage) == ((), ())
            assert not saved.machine.paravirtual
            ours, theirs = all_pages(saved), all_pages(core)
            assert ours.keys() - theirs.keys() == special
            assert theirs.keys() - ours.keys() == (set() if name == "t5" else {0x10, 0x17FFF})
            differ = [pfn for pfn in ours.keys() & theirs.keys() if ours[pfn] != theirs[pfn]]
            # The Linux guest was dumped, and then ran on to be saved.
            assert len(differ) == (0 if name == "t5" else 270)

    def test_pv(self, shared: Path, unpacked: Unpack) -> None:
        """Equal to the core but for page tables, whose entries name pfns instead of frames."""
        folder = shared / "fixtures" / "xen"
        with (
            dumpxlate.open(unpacked(folder / "t7.save.xz")) as saved,
            dumpxlate.open(unpacked(folder / "t7.core.xz")) as core,
        ):
            assert core.p2m is not None
            ours, theirs = all_pages(saved), all_pages(core)
            assert ours.keys() == theirs.keys()
            differ = [pfn for pfn in ours if ours[pfn] != theirs[pfn]]
            assert len(differ) == 5
            back = dict(zip(ours, core.p2m.mfn(np.array(list(ours))).tolist(), strict=True))
            for pfn in differ:
                for slot, (x, y) in enumerate(
                    zip(*(struct.unpack("<512Q", pages[pfn]) for pages in (ours, theirs)), strict=True)
                ):
                    xens_own = x == 0 and 256 <= slot < 272
                    assert x == y or xens_own or (x & ~FRAME | back[(x & FRAME) >> 12] << 12) == y
            assert any("hold pfns" in remark for remark in saved.remarks)
            assert saved.p2m is None

    def test_registers_of_t5(self, shared: Path, unpacked: Unpack) -> None:
        folder = shared / "fixtures" / "xen"
        text = (folder / "t5.xenctx.txt").read_text()
        with dumpxlate.open(unpacked(folder / "t5.save.xz")) as dump:
            (cpu,) = dump.cpus
            printed = {f"r{name}": int(value, 16) for name, value in re.findall(r"e(\w\w): (\w{8})", text)}
            printed |= {name: int(value, 16) for name, value in re.findall(r"((?:c|d)r\d): (\w{8})", text)}
            printed |= {"rip": 0x1013A8, "rsp": 0x102FC0, "rflags": 2}
            assert len(printed) > 15
            assert {name: cpu.registers[name] for name in printed} == printed

    def test_registers_of_t7(self, shared: Path, unpacked: Unpack) -> None:
        """As ``xenctx`` printed them, but that cr3 and rdx (its start_info) hold pfns now."""
        folder = shared / "fixtures" / "xen"
        text = (folder / "t7.xenctx.txt").read_text().split("Code")[0]
        printed = {name: int(value, 16) for name, value in re.findall(r"\b(r\w\w?|cr[0-4]): (\w{16})", text)}
        assert (printed.pop("cr3"), printed.pop("rdx")) == (0x39408000, 0x39405)
        with dumpxlate.open(unpacked(folder / "t7.save.xz")) as dump:
            (cpu,) = dump.cpus
            assert {name: cpu.registers[name] for name in printed} == printed
            assert (cpu.registers["cr3"], cpu.registers["rdx"]) == (0x8000, 5)
            assert len(cpu.raw["xen"]) == 5168

    @pytest.mark.parametrize("name", ["pv1", "pvh1"])
    def test_page_tables_lead_from_cr3(self, shared: Path, unpacked: Unpack, name: str) -> None:
        """Walked from each cr3 the kernel's direct map of a page leads to that page, with no map of frames."""
        with dumpxlate.open(unpacked(shared / "fixtures" / "xen-linux" / f"{name}.save.xz")) as dump:
            pages = all_pages(dump)
            marks = {pfn: data[:24] for pfn, data in pages.items() if data[:15] == b"DUMPXLATE-PAGE "}
            assert len(set(marks.values())) == 512
            assert len(dump.cpus) == 2
            for cpu in dump.cpus:
                for pfn in marks:
                    assert walk(pages.__getitem__, cpu.registers["cr3"], 0xFFFF888000000000 + pfn * 4096) == pfn << 12
            assert any(walk(pages.__getitem__, cpu.registers["cr3"], cpu.registers["rip"]) for cpu in dump.cpus)

    def test_what_the_headers_say(self, shared: Path, unpacked: Unpack) -> None:
        folder = shared / "fixtures" / "xen"
        with (
            dumpxlate.open(unpacked(folder / "t7.save.xz")) as dump,
            dumpxlate.open(unpacked(folder / "t7.core.xz")) as core,
        ):
            assert dump.attributes["layers"] == "xl, libxl, libxc"
            assert dump.attributes["xen_version"] == "4.17"
            assert dump.attributes["domain"] == "t7"
            ours, theirs = dump.blocks["xen_shared_info"], core.blocks["xen_shared_info"]
            assert struct.unpack_from("<Q", ours, 3088) == struct.unpack_from("<Q", theirs, 3088) == (1024,)

    @pytest.mark.parametrize(("name", "registers"), [("t5", "HVM"), ("t7", "PV")])
    def test_to_elf_and_core(self, shared: Path, unpacked: Unpack, tmp_path: Path, name: str, registers: str) -> None:
        with dumpxlate.open(unpacked(shared / "fixtures" / "xen" / f"{name}.save.xz")) as dump:
            assert dump.attributes["domain_type"] == registers
            expected = all_pages(dump)
            dumpxlate.convert(dump, tmp_path / "vmcore", "elf")
            report = dumpxlate.convert(dump, tmp_path / "core", "xen_core", allow_loss=True)
            assert (report.losses == ()) is (name == "t7")
            rip = dump.cpus[0].registers["rip"]
        assert vmcore_pages(tmp_path / "vmcore") == expected
        status = next(desc for owner, kind, desc in elf_notes(tmp_path / "vmcore") if (owner, kind) == ("CORE", 1))
        assert struct.unpack_from("<Q", status, 240) == (rip,)
        with dumpxlate.open(tmp_path / "core") as core:
            assert all_pages(core) == expected
            assert core.cpus[0].registers["rip"] == rip
            assert core.attributes["xch_magic"] == "0xf00febee"


class TestLayers:
    @pytest.mark.parametrize("hvm", [False, True])
    @pytest.mark.parametrize("version", [2, 3])
    @pytest.mark.parametrize(
        ("layers", "wrap"),
        [("xl, libxl, libxc", lambda data: xl_header() + libxl(data)), ("libxl, libxc", libxl), ("libxc", bytes)],
    )
    def test_each(
        self, tmp_path: Path, guest: Guest, layers: str, wrap: Callable[[bytes], bytes], version: int, hvm: bool
    ) -> None:
        with open_bytes(tmp_path, wrap(libxc(guest, hvm=hvm, version=version))) as dump:
            assert dump.attributes["layers"] == layers
            assert dump.attributes["stream_version"] == version
            assert_pages(dump, guest.pages)
            assert dump.damage == ()
            assert dump.space is Space.PHYSICAL

    def test_every_layer_is_recognised(self, guest: Guest) -> None:
        stream = libxc(guest)
        for data in (stream, libxl(stream), xl_header() + libxl(stream), xendump.save_image(guest)):
            format, match = detect(BytesSource(data))
            assert (format.name, match.confidence) == ("xen_stream", Confidence.SPECIFIC)
        for data in (b"", b"Libxl", b"\xff" * 64, b"Xen saved domain"):
            assert FORMAT.detect(BytesSource(data)) is None

    def test_old_image_is_refused_by_name(self, tmp_path: Path, guest: Guest) -> None:
        with pytest.raises(errors.UnsupportedFeatureError, match="LinuxGuestRecord") as caught:
            open_bytes(tmp_path, xendump.save_image(guest))
        assert caught.value.feature == "LinuxGuestRecord"

    def test_odd_offset(self, tmp_path: Path, guest: Guest) -> None:
        """Pages lie at any offset: nothing in the file is aligned."""
        for size in range(5):
            config = b'{"c_info": {"name": "odd"}}'.ljust(40 + size)
            with open_bytes(tmp_path, xl_header(config) + libxl(libxc(guest))) as dump:
                assert_pages(dump, guest.pages)
                assert dump.attributes["domain"] == "odd"

    @pytest.mark.parametrize("config", [b"", b"not json\0", b"[1, 2]\0", b'{"c_info": {"name": 7}}\0', b"[" * 9000])
    def test_configuration_does_not_matter(self, tmp_path: Path, guest: Guest, config: bytes) -> None:
        with open_bytes(tmp_path, xl_header(config) + libxl(libxc(guest))) as dump:
            assert "domain" not in dump.attributes
            assert_pages(dump, guest.pages)

    def test_emulator_records(self, tmp_path: Path, guest: Guest) -> None:
        data = libxl(libxc(guest, hvm=True), emulator=b"QEVM" * 99, records=[record(0x80000009, b"optional")])
        with open_bytes(tmp_path, data) as dump:
            assert_pages(dump, guest.pages)
            records = "0x80000009 1, LIBXC_CONTEXT 1, EMULATOR_XENSTORE_DATA 1, EMULATOR_CONTEXT 1, END 1"
            assert dump.attributes["libxl_records"] == records

    def test_libxl_without_end(self, tmp_path: Path, guest: Guest) -> None:
        with open_bytes(tmp_path, libxl(libxc(guest), end=False)) as dump:
            assert_pages(dump, guest.pages)
            assert dump.damage == ()
            assert any("before END" in remark for remark in dump.remarks)

    REFUSED = (
        ({"magic": b"Xen saved domain, xl format\r\n \0 \r"}, errors.CorruptDumpError, "other line ends"),
        ({"byteorder": 0x04030201}, errors.UnsupportedFeatureError, "byte order 0x4030201"),
        ({"mandatory": 1}, errors.UnsupportedFeatureError, "mandatory flags 0x1"),
        ({"mandatory": 7}, errors.UnsupportedFeatureError, "mandatory flags 0x7"),
        ({"optional_length": (1 << 20) + 1}, errors.CorruptDumpError, "optional data of 1,048,577"),
        ({"optional_length": 3}, errors.CorruptDumpError, "optional data of 3"),
        ({"config_size": 99999}, errors.CorruptDumpError, "configuration of 99999"),
        ({"optional_length": 8}, errors.CorruptDumpError, "configuration of 30"),
        ({"config": b"x" * 20, "optional_length": 25}, errors.CorruptDumpError, "expected a libxl or a libxc"),
    )

    @pytest.mark.parametrize(("options", "kind", "words"), REFUSED)
    def test_xl_header_refused(
        self, tmp_path: Path, guest: Guest, options: dict[str, Any], kind: type[Exception], words: str
    ) -> None:
        with pytest.raises(kind, match=words):
            open_bytes(tmp_path, xl_header(**options) + libxl(libxc(guest)))

    def test_xl_header_that_is_cut_off(self, tmp_path: Path, guest: Guest) -> None:
        with pytest.raises(errors.TruncatedDumpError, match="configuration"):
            open_bytes(tmp_path, xl_header()[:-5])

    @pytest.mark.parametrize(
        ("options", "kind", "words"),
        [
            ({"version": 3}, errors.UnsupportedFeatureError, "libxl stream of version 3"),
            ({"options": 1}, errors.UnsupportedFeatureError, "options 0x1"),
            ({"records": [record(6, b"?")]}, errors.UnsupportedFeatureError, "type 0x6"),
            ({"records": [record(0)]}, errors.CorruptDumpError, "no LIBXC_CONTEXT"),
            ({"records": [record(2, b"", length=0xFFFFFFF0)]}, errors.CorruptDumpError, "no LIBXC_CONTEXT"),
        ],
    )
    def test_libxl_refused(
        self, tmp_path: Path, guest: Guest, options: dict[str, Any], kind: type[Exception], words: str
    ) -> None:
        with pytest.raises(kind, match=words):
            open_bytes(tmp_path, libxl(libxc(guest), **options))

    @pytest.mark.parametrize(
        ("options", "kind", "words"),
        [
            ({"image": ((1 << 64) - 1, 0x58454E46, 1, 0)}, errors.UnsupportedFeatureError, "version 1"),
            ({"image": ((1 << 64) - 1, 0x58454E46, 4, 0)}, errors.UnsupportedFeatureError, "version 4"),
            ({"image": ((1 << 64) - 1, 0x58454E46, 3, 1)}, errors.UnsupportedFeatureError, "options 0x1"),
            ({"image": (5, 0x58454E46, 3, 0)}, errors.CorruptDumpError, "marker 0x5"),
            ({"image": ((1 << 64) - 1, 0x12345678, 3, 0)}, errors.CorruptDumpError, "id 0x12345678"),
            ({"domain": (3, 12, 4, 17)}, errors.UnsupportedFeatureError, "domain of type 3"),
            ({"domain": (1, 14, 4, 17)}, errors.CorruptDumpError, "page shift 14"),
        ],
    )
    def test_libxc_headers_refused(
        self, tmp_path: Path, guest: Guest, options: dict[str, Any], kind: type[Exception], words: str
    ) -> None:
        with pytest.raises(kind, match=words):
            open_bytes(tmp_path, libxl(libxc(guest, **options)))


class TestPages:
    @pytest.mark.parametrize("batch", [1, 7, 1024])
    def test_the_last_copy_counts(self, tmp_path: Path, guest: Guest, batch: int) -> None:
        early = [wrong_page(pfn) for pfn in guest.stored[::3]]
        late = [(pfn, 0, page(pfn, kind="noise")) for pfn in guest.stored[5:50:9]]
        with open_bytes(tmp_path, save(guest, early=early, late=late, batch=batch)) as dump:
            assert_pages(dump, guest.pages | {pfn: data for pfn, _, data in late})
            assert dump.pages.repeated == len(early) + len(late)  # type: ignore[attr-defined]

    @pytest.mark.parametrize("batch", [1, 1024])
    def test_a_page_may_go_and_come(self, tmp_path: Path, guest: Guest, batch: int) -> None:
        """XTAB removes a page that came before; a page that comes after it is there."""
        late = [(4, 15, b""), (5, 15, b""), (5, 0, page(5)), (0xF0, 0, page(0xF0)), (0xF0, 15, b""), (6, 13, b"")]
        with open_bytes(tmp_path, save(guest, late=late, batch=batch)) as dump:
            expected = guest.pages | {5: page(5)}
            del expected[4], expected[6]
            assert_pages(dump, expected)
            names = [state.name for state in dump.states([3, 4, 5, 6, 0xF0])]
            assert names == ["STORED", "ABSENT", "STORED", "EXCLUDED", "ABSENT"]

    def test_pages_without_content(self, tmp_path: Path, guest: Guest) -> None:
        late = [(0x300, 14, b""), (0x301, 13, b""), (0x302, 15, b"")]
        with open_bytes(tmp_path, save(guest, hvm=True, late=late)) as dump:
            assert_pages(dump, guest.pages)
            states = [PageState.EXCLUDED, PageState.EXCLUDED, PageState.ABSENT]
            assert dump.states([0x300, 0x301, 0x302]) == states
            assert dump.pages.ram.count == len(guest.pages) + 2

    def test_page_tables_have_content(self, tmp_path: Path, guest: Guest) -> None:
        types = dict(zip(guest.stored, [0, 1, 2, 3, 4, 9, 10, 11, 12] * 9, strict=False))
        with open_bytes(tmp_path, save(guest, types=types)) as dump:
            assert_pages(dump, guest.pages)

    def test_verified_pages_are_not_taken(self, tmp_path: Path, guest: Guest) -> None:
        verify = [wrong_page(pfn) for pfn in guest.stored]
        with open_bytes(tmp_path, save(guest, verify=verify, checkpoint=True)) as dump:
            assert_pages(dump, guest.pages)

    def test_high_memory(self, tmp_path: Path) -> None:
        guest = small_guest(excluded=())
        with open_bytes(tmp_path, save(guest, hvm=True)) as dump:
            assert_pages(dump, guest.pages)

    def test_many_records_at_once(self, tmp_path: Path) -> None:
        """More entries than are sorted out in one go; most are holes, as in a real HVM stream."""
        last = (1 << 20) + 3000
        guest = Guest(
            pages={0: page(0), 1 << 19: page(1 << 19), (1 << 20) - 1: page(1), 1 << 20: page(2), last: page(3)}
        )
        listed = range(last + 1)
        with open_bytes(tmp_path, save(guest, hvm=True, listed=listed)) as dump:
            assert_pages(dump, guest.pages)

    BROKEN = (
        ([(0x300, 5, page(1))], {}),
        ([(0x300, 8, page(1))], {}),
        ([(0x300, 0, page(1))], {"reserved": 1}),
        ([(0x300, 0, page(1))], {"reserved": 0x80}),
        ([(1 << 40, 0, page(1))], {}),
        ([(0x300, 0, page(1)), (0x301, 15, page(2))], {}),
        ([(0x300, 0, page(1)), (0x301, 0, b"")], {}),
        ([(0x300, 0, page(1))], {"count": 0}),
        ([(0x300, 0, page(1))], {"count": 2}),
        ([(0x300, 0, page(1))], {"count": 1 << 31}),
        ([(0x300, 0, page(1))], {"length": 4}),
        ([], {}),
    )

    @pytest.mark.parametrize("at", range(len(BROKEN)))
    @pytest.mark.parametrize("place", ["before", "after"])
    def test_a_broken_record_is_damage(self, tmp_path: Path, guest: Guest, at: int, place: str) -> None:
        """The others are kept; ``length`` 4 makes garbage of what follows, up to the next record with pages."""
        entries, options = self.BROKEN[at]
        broken = page_data(entries, **options)
        path = write(tmp_path, save(guest, **{place: [broken]}))  # type: ignore[arg-type]
        if "length" in options and place == "after":
            with pytest.raises(errors.FormatError), dumpxlate.open(path):
                pass
            return
        if "length" in options:
            with dumpxlate.open(path) as dump:
                assert any("makes no sense" in line for line in dump.damage)
                assert_pages(dump, guest.pages)
            return
        with dumpxlate.open(path) as dump:
            (damage,) = dump.damage
            assert damage.startswith("PAGE_DATA at 0x")
            assert int(re.findall("at (0x[0-9a-f]+)", damage)[0], 16) == path.read_bytes().index(broken)
            assert_pages(dump, guest.pages)
            with pytest.raises(errors.CorruptDumpError, match="--salvage"):
                dumpxlate.convert(dump, tmp_path / "out", "elf")
            dumpxlate.convert(dump, tmp_path / "out", "elf", salvage=True)
        assert vmcore_pages(tmp_path / "out") == guest.pages

    def test_many_broken_records(self, tmp_path: Path, guest: Guest) -> None:
        with open_bytes(tmp_path, save(guest, after=[page_data([(1, 5, b"")])] * 50)) as dump:
            assert len(dump.damage) == 9
            assert "42 more" in dump.damage[-1]


class TestRecords:
    def test_pv_vcpus(self, tmp_path: Path, guest: Guest) -> None:
        with open_bytes(tmp_path, save(guest)) as dump:
            assert [cpu.index for cpu in dump.cpus] == [0, 1]
            for cpu, context in zip(dump.cpus, contexts(guest), strict=True):
                assert cpu.raw == {"xen": context}
                assert cpu.registers["rip"] == register("rip", cpu.index)
            assert dump.blocks["xen_shared_info"] == shared_info(max_pfn=guest.end_pfn)
            assert dump.machine.arch.name == "x86_64"
            assert dump.machine.paravirtual is False  # its tables and cr3 hold pfns

    def test_32_bit_pv(self, tmp_path: Path, guest: Guest) -> None:
        with open_bytes(tmp_path, save(guest, width=4)) as dump:
            assert dump.machine.arch.name == "i386"
            assert [cpu.registers["eip"] for cpu in dump.cpus] == [register("eip", vcpu, 4) for vcpu in range(2)]
            assert_pages(dump, guest.pages)
            dumpxlate.convert(dump, tmp_path / "core", "xen_core")
        with dumpxlate.open(tmp_path / "core") as dump:
            assert dump.machine.arch.name == "i386"
            assert [cpu.raw["xen"] for cpu in dump.cpus] == contexts(guest, width=4)

    def test_vcpus_keep_their_numbers(self, tmp_path: Path, guest: Guest) -> None:
        one, two = contexts(guest)
        vcpus = [
            record("X86_PV_VCPU_BASIC", struct.pack("<II", number, 0) + each) for number, each in ((7, one), (3, two))
        ]
        with open_bytes(tmp_path, save(guest, vcpus=[], after=vcpus)) as dump:
            assert [cpu.index for cpu in dump.cpus] == [3, 7]
            assert [cpu.raw["xen"] for cpu in dump.cpus] == [two, one]

    @pytest.mark.parametrize(("number", "size"), [(4096, 5168), (0, 5167), (0, 0)])
    def test_vcpus_that_make_no_sense(self, tmp_path: Path, guest: Guest, number: int, size: int) -> None:
        odd = record("X86_PV_VCPU_BASIC", struct.pack("<II", number, 0) + bytes(size))
        with open_bytes(tmp_path, save(guest, vcpus=[], after=[odd])) as dump:
            assert dump.cpus == ()
            assert any("left out" in remark for remark in dump.remarks)

    def test_hvm_vcpus(self, tmp_path: Path, guest: Guest) -> None:
        """Registers named after themselves, in each of the three lengths that the record has had."""
        for size in (1016, 1024, 1032):
            blob = struct.pack("<HHI", 1, 0, 24) + bytes(24)
            for vcpu in (0, 2):
                blob += struct.pack("<HHI", 2, vcpu, size) + hvm_cpu(vcpu, size)
            blob += struct.pack("<HHI", 5, 0, 24) + bytes(24) + struct.pack("<HHI", 0, 0, 0)
            data = save(guest, hvm=True, drop=["HVM_CONTEXT"], after=[record("HVM_CONTEXT", blob)])
            with open_bytes(tmp_path, data) as dump:
                assert [cpu.index for cpu in dump.cpus] == [0, 2]
                assert dump.remarks == ()
                assert dump.blocks["xen_hvm_context"] == blob
                for cpu in dump.cpus:
                    for name in ("rax", "r15", "rip", "rflags", "cr3", "cr4", "dr7", "fs_base", "gs_base", "idt_base"):
                        assert cpu.registers[name] == register(name, cpu.index), name
                    assert cpu.registers["kernel_gs_base"] == register("shadow_gs", cpu.index)
                    assert cpu.registers["efer"] == register("msr_efer", cpu.index)
                    assert cpu.registers["cs"] == register("cs_sel", cpu.index, 4)
                    assert cpu.registers["tr_limit"] == register("tr_limit", cpu.index, 4)
                    assert cpu.registers["cs_flags"] == 0xA09B00  # 64-bit code, as a descriptor has it
                    assert cpu.raw["hvm_hw_cpu"] == hvm_cpu(cpu.index, size)

    def test_hvm_context_that_breaks_off(self, tmp_path: Path, guest: Guest) -> None:
        blob = struct.pack("<HHI", 2, 0, 1032) + hvm_cpu(0, 1032) + struct.pack("<HHI", 2, 1, 1032) + bytes(100)
        data = save(guest, hvm=True, drop=["HVM_CONTEXT"], after=[record("HVM_CONTEXT", blob)])
        with open_bytes(tmp_path, data) as dump:
            assert len(dump.cpus) == 1
            assert any("HVM_CONTEXT" in remark for remark in dump.remarks)

    def test_hvm_registers_reach_a_vmcore(self, tmp_path: Path, guest: Guest) -> None:
        blob = struct.pack("<HHI", 2, 0, 1032) + hvm_cpu(0, 1032)
        data = save(guest, hvm=True, drop=["HVM_CONTEXT"], after=[record("HVM_CONTEXT", blob)])
        with open_bytes(tmp_path, data) as dump:
            dumpxlate.convert(dump, tmp_path / "vmcore", "elf")
        notes = {(name, kind): desc for name, kind, desc in elf_notes(tmp_path / "vmcore")}
        assert struct.unpack_from("<Q", notes["CORE", 1], 240) == (register("rip", 0),)
        assert struct.unpack_from("<Q", notes["QEMU", 0], 392 + 3 * 8) == (register("cr3", 0),)
        assert struct.unpack_from("<III", notes["QEMU", 0], 152) == (
            register("cs_sel", 0, 4), register("cs_limit", 0, 4), 0xA09B00,
        )  # fmt: skip

    def test_optional_records_are_skipped(self, tmp_path: Path, guest: Guest) -> None:
        extra = [record(0x80000042, b"something"), record("TOOLSTACK", b"x" * 11), record("CHECKPOINT")]
        with open_bytes(tmp_path, save(guest, before=extra, after=extra)) as dump:
            assert_pages(dump, guest.pages)
            assert "0x80000042 2" in str(dump.attributes["records"])

    @pytest.mark.parametrize("kind", [0x13, 0x100, 0x7FFFFFFF])
    def test_unknown_mandatory_records_are_refused(self, tmp_path: Path, guest: Guest, kind: int) -> None:
        with pytest.raises(errors.UnsupportedFeatureError, match=f"type {kind:#x}"):
            open_bytes(tmp_path, save(guest, after=[record(kind)]))

    @pytest.mark.parametrize("body", [b"", b"\x08", b"\x08\x03" + bytes(6), b"\x04\x04" + bytes(6), b"\x02\x02"])
    def test_pv_info_refused(self, tmp_path: Path, guest: Guest, body: bytes) -> None:
        data = save(guest, drop=["X86_PV_INFO", "X86_PV_P2M_FRAMES"], before=[record("X86_PV_INFO", body)])
        with pytest.raises(errors.CorruptDumpError, match="X86_PV_INFO"):
            open_bytes(tmp_path, data)

    def test_pages_before_pv_info(self, tmp_path: Path, guest: Guest) -> None:
        with pytest.raises(errors.CorruptDumpError, match="before X86_PV_INFO"):
            open_bytes(tmp_path, save(guest, drop=["X86_PV_INFO"]))

    @pytest.mark.parametrize(
        "body",
        [
            struct.pack("<II", 5, 4),
            struct.pack("<IIQ", 0, 512, 1),
            struct.pack("<IIQQ", 0, 511, 1, 2),
            struct.pack("<IIQ", 511, 512, 1),
            b"",
        ],
    )
    def test_p2m_frames_refused(self, tmp_path: Path, guest: Guest, body: bytes) -> None:
        data = save(guest, drop=["X86_PV_P2M_FRAMES"], before=[record("X86_PV_P2M_FRAMES", body)])
        with pytest.raises(errors.CorruptDumpError, match="X86_PV_P2M_FRAMES"):
            open_bytes(tmp_path, data)

    @pytest.mark.parametrize("body", [struct.pack("<IIQ", 0, 511, 1), struct.pack("<IIQQ", 511, 512, 1, 2)])
    def test_p2m_frames_taken(self, tmp_path: Path, guest: Guest, body: bytes) -> None:
        data = save(guest, drop=["X86_PV_P2M_FRAMES"], before=[record("X86_PV_P2M_FRAMES", body)])
        with open_bytes(tmp_path, data) as dump:
            assert_pages(dump, guest.pages)


class TestTruncated:
    def test_without_end(self, tmp_path: Path, guest: Guest) -> None:
        with open_bytes(tmp_path, libxc(guest, end=False)) as dump:
            assert any("before its END record" in damage for damage in dump.damage)
            assert_pages(dump, guest.pages)
            assert len(dump.cpus) == 2

    def test_inside_a_page_record(self, tmp_path: Path, guest: Guest) -> None:
        """Whole pages up to the cut are there; the others are known to be missing."""
        data = libxc(guest, batch=1024)
        first = data.index(page(0))
        listed = [pfn for pfn in range(guest.end_pfn) if pfn in guest.pages]
        with open_bytes(tmp_path, data[: first + 10 * 4096 + 100]) as dump:
            assert "truncated: record PAGE_DATA" in dump.damage[0]
            assert_pages(dump, {pfn: guest.pages[pfn] for pfn in listed[:10]})
            assert dump.states(listed[10:]) == [PageState.EXCLUDED] * (len(listed) - 10)

    def test_inside_the_entries(self, tmp_path: Path, guest: Guest) -> None:
        data = libxc(guest, batch=50)
        head = struct.pack("<II", TYPES["PAGE_DATA"], 8 + 50 * (8 + 4096))
        second = data.index(head, data.index(head) + 1)
        with open_bytes(tmp_path, data[: second + 16 + 50]) as dump:
            assert any("truncated" in damage for damage in dump.damage)
            assert_pages(dump, {pfn: guest.pages[pfn] for pfn in guest.stored[:50]})

    def test_record_of_an_impossible_length(self, tmp_path: Path, guest: Guest) -> None:
        huge = record("PAGE_DATA", b"", length=(128 << 20) + 1)
        with open_bytes(tmp_path, save(guest, after=[huge])) as dump:
            assert "134,217,729 bytes" in dump.damage[0]
            assert_pages(dump, guest.pages)
            assert dump.cpus == ()

    def test_record_longer_than_any(self, tmp_path: Path, guest: Guest) -> None:
        """More than 128 MiB is no record of Xen's, even where the file has the bytes."""
        path = write(tmp_path, libxc(guest, after=[record(0x80000001, b"", length=129 << 20)]))
        with path.open("r+b") as file:
            file.truncate(200 << 20)
        with dumpxlate.open(path) as dump:
            assert "0x80000001" in dump.damage[0]
            assert_pages(dump, guest.pages)

    def test_at_every_header(self, tmp_path: Path, guest: Guest) -> None:
        """Cut anywhere, the file is refused by a typed error or opened with damage; never anything else."""
        data = save(guest)
        stream = data.index(b"\xff" * 8 + b"XENF")
        for length in [*range(28, stream + 40), *range(stream + 40, stream + 400, 7), len(data) - 9]:
            path = write(tmp_path, data[:length])
            try:
                with dumpxlate.open(path) as dump:
                    assert dump.damage
            except errors.FormatError as error:
                assert error.path == str(path)
        with open_bytes(tmp_path, data[:-8]) as dump:
            assert dump.damage == ()


def test_writing_is_refused(tmp_path: Path, guest: Guest) -> None:
    with open_bytes(tmp_path, save(guest)) as dump:
        with pytest.raises(errors.UnsupportedFeatureError, match="not written"):
            FORMAT.writer(dump, WriteOptions())
        assert json.dumps(dict(dump.attributes))


def test_canonical_tables_in_the_model() -> None:
    """The model's own page tables, as Xen's tool would translate them (guards the builder that others use)."""
    table = struct.pack("<512Q", *([0x5067 | 1 << 63, 0x7066, 0x9067] + [0] * 253 + [0xAAAA067] + [0] * 255))
    found = struct.unpack("<512Q", xen_stream.canonical(table, {5: 1, 9: 2, 0xAAAA: 3}, zero_slots=[256]))
    assert found[:3] == (0x1067 | 1 << 63, 0x7066, 0x2067)
    assert found[256] == 0
    assert TYPES["PAGE_DATA"] == 1


def hvm_cpu(vcpu: int, size: int) -> bytes:
    """A hvm_hw_cpu record whose registers hold their names; fields behind msr_efer are zero."""
    out = b"\xfb" * 512
    general = "rax rbx rcx rdx rbp rsi rdi rsp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags"
    wide = f"{general} cr0 cr2 cr3 cr4 dr0 dr1 dr2 dr3 dr6 dr7"
    out += b"".join(struct.pack("<Q", register(name, vcpu)) for name in wide.split())
    segments = ["cs", "ds", "es", "fs", "gs", "ss", "tr", "ldtr"]
    tables = [*segments, "idtr", "gdtr"]
    short = {"ldtr": "ldt", "idtr": "idt", "gdtr": "gdt"}
    out += b"".join(struct.pack("<I", register(f"{name}_sel", vcpu, 4)) for name in segments)
    out += b"".join(struct.pack("<I", register(f"{short.get(name, name)}_limit", vcpu, 4)) for name in tables)
    out += b"".join(struct.pack("<Q", register(f"{short.get(name, name)}_base", vcpu)) for name in tables)
    out += struct.pack("<8I", 0xA9B, *[0xC93] * 7)
    names = "sysenter_cs sysenter_esp sysenter_eip shadow_gs msr_flags msr_lstar msr_star msr_cstar msr_mask msr_efer"
    out += b"".join(struct.pack("<Q", register(name, vcpu)) for name in names.split())
    return out.ljust(size, b"\0")


@pytest.mark.parametrize("wrong", [5 << 60 | 10, 1 << 50, (1 << 60) - 1])
def test_an_entry_that_makes_no_sense_costs_its_own_page_only(tmp_path: Path, wrong: int) -> None:
    guest = small_guest(excluded=())
    data = bytearray(xen_stream.save(guest, hvm=True))
    at = data.index(struct.pack("<3Q", 9, 10, 11)) + 8
    struct.pack_into("<Q", data, at, wrong)
    (tmp_path / "in").write_bytes(data)
    with dumpxlate.open(tmp_path / "in") as dump:
        assert any("1 of " in line and "of no known type or frame" in line for line in dump.damage)
        kept = [pfn for pfn in guest.stored if pfn != 10]
        assert dump.pages.stored.select(0, 1 << 40).tolist() == kept
        found = dump.read_pages(kept)
        assert [pfn for pfn, row in zip(kept, found, strict=True) if row.tobytes() != guest.pages[pfn]] == []


def test_zeros_that_look_like_the_end_are_a_defect(tmp_path: Path) -> None:
    guest = small_guest(excluded=())
    whole = xen_stream.save(guest, hvm=True)
    data = bytearray(whole)
    libxc = data.index(b"XENF") - 8  # 24 bytes of image header, 16 of the domain's
    data[libxc + 40 : libxc + 72] = bytes(32)
    (tmp_path / "in").write_bytes(data)
    with dumpxlate.open(tmp_path / "in") as dump:
        assert any("makes no sense" in line for line in dump.damage)
        found = dump.read_pages(guest.stored)
        assert [pfn for pfn, row in zip(guest.stored, found, strict=True) if row.tobytes() != guest.pages[pfn]] == []
