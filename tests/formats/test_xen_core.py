"""Cores of Xen domains: real ones and every variant, read and written."""

from __future__ import annotations

import json
import re
import struct
import zlib
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

import dumpxlate
from dumpxlate import errors
from dumpxlate.dump import Dump, Space
from dumpxlate.format import Confidence, WriteOptions
from dumpxlate.formats.xen_core import FORMAT
from dumpxlate.io.sink import PipeSink
from dumpxlate.io.source import BytesSource
from dumpxlate.p2m.map import P2M
from dumpxlate.pages import PageState
from dumpxlate.registry import detect
from dumpxlate.verify.check import check
from tests.builders import elf_cores, xen_core, xendump
from tests.builders.guest import Guest, page, register, small_guest
from tests.builders.xen_vcpu import context, contexts, shared_info
from tests.peers import peers
from tests.readers import vmcore_pages

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Unpack = Callable[[Path], Path]

NONE = (1 << 64) - 1
TINY = [f"t{number}" for number in range(8)]
PV = [name for name in TINY if name != "t5"]


@pytest.fixture(scope="module")
def guest() -> Guest:
    return small_guest(excluded=())


def write(folder: Path, data: bytes, name: str = "xen.core") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def assert_pages(dump: Dump, expected: dict[int, bytes]) -> None:
    pfns = sorted(expected)
    assert dump.pages.stored.select(0, 1 << 40).tolist() == pfns
    found = dump.read_pages(pfns)
    assert not [hex(pfn) for pfn, row in zip(pfns, found, strict=True) if row.tobytes() != expected[pfn]]


def sections(data: bytes) -> dict[str, bytes]:
    """Content of each section of an ELF64 file, read without dumpxlate."""
    assert data[:6] == b"\x7fELF\x02\x01"
    (shoff,) = struct.unpack_from("<Q", data, 40)
    shentsize, shnum, shstrndx = struct.unpack_from("<3H", data, 58)
    rows = [struct.unpack_from("<2I4Q2I2Q", data, shoff + shentsize * at) for at in range(shnum)]
    strings = data[rows[shstrndx][4] :][: rows[shstrndx][5]]
    named = {strings[row[0] :].split(b"\0", 1)[0].decode(): data[row[4] : row[4] + row[5]] for row in rows[1:]}
    assert all(len(named[strings[row[0] :].split(b"\0", 1)[0].decode()]) == row[5] for row in rows[1:])
    return named


def entries(data: bytes) -> list[tuple[int, ...]]:
    """The index of a core, without the slots that Xen could not fill."""
    found = sections(data)
    form = "<2Q" if ".xen_p2m" in found else "<Q"
    return [row for row in struct.iter_unpack(form, found.get(".xen_p2m") or found[".xen_pfn"]) if row[0] != NONE]


def core_pages(data: bytes) -> dict[int, bytes]:
    """Pages by pfn."""
    body = sections(data)[".xen_pages"]
    return {row[0]: body[at * 4096 : at * 4096 + 4096] for at, row in enumerate(entries(data))}


def truth_of(path: Path) -> list[tuple[int, int, str]]:
    """(pfn, mfn, crc32) of each page that the real file holds."""
    rows = [(int(row[1], 16), int(row[2], 16), row[3]) for row in json.loads(path.read_text())["pages"]]
    return [row for row in rows if row[0] != NONE]


def crcs(dump: Dump, pfns: list[int]) -> list[str]:
    return [f"{zlib.crc32(row.tobytes()):08x}" for row in dump.read_pages(pfns)]


def printed_registers(text: str) -> list[dict[str, int]]:
    """What ``xenctx`` printed, for each vcpu, by our names."""
    found = []
    for part in text.split("== vcpu ")[1:] or [text]:
        head = part.split("Code (instr")[0].replace("cs:eip: ", "cs: ").replace("ss:esp: ", "ss: ")
        head = re.sub(
            r"(cs|ss): ([0-9a-f]{4}):([0-9a-f]{8})", lambda m: f"{m[1]}: {m[2]} {_POINTER[m[1]]}: {m[3]}", head
        )
        registers = {name: int(value, 16) for name, value in re.findall(r"(\w+): ([0-9a-f]+)", head)}
        registers["rflags"] = registers.pop("flags")
        base = re.search(r"gs: \w+ @ ([0-9a-f]{16})", head)
        if base:
            registers["gs_base"] = int(base[1], 16)
        found.append({re.sub("^e(?=[a-z]{2}$)", "r", name): value for name, value in registers.items() if name != "es"})
    return found


_POINTER = {"cs": "eip", "ss": "esp"}


class TestRealFiles:
    @pytest.mark.parametrize("name", TINY)
    def test_pages_equal_the_truth(self, shared: Path, unpacked: Unpack, name: str) -> None:
        folder = shared / "fixtures" / "xen"
        truth = truth_of(unpacked(folder / f"{name}.json.xz"))
        with dumpxlate.open(unpacked(folder / f"{name}.core.xz")) as dump:
            assert dump.format == "xen_core"
            assert dump.space is Space.PHYSICAL
            assert dump.machine.arch.name == "x86_64"
            assert dump.machine.paravirtual is (name != "t5")
            assert (dump.remarks, dump.damage) == ((), ())
            pfns = [pfn for pfn, _, _ in truth]
            assert dump.pages.ram.select(0, 1 << 40).tolist() == pfns
            assert crcs(dump, pfns) == [crc for _, _, crc in truth]

    @pytest.mark.parametrize("name", PV)
    def test_machine_frames_equal_the_truth(self, shared: Path, unpacked: Unpack, name: str) -> None:
        folder = shared / "fixtures" / "xen"
        truth = truth_of(unpacked(folder / f"{name}.json.xz"))
        by_mfn = {mfn: crc for _, mfn, crc in reversed(truth)}
        with dumpxlate.open(unpacked(folder / f"{name}.core.xz")) as dump:
            assert dump.p2m is not None
            assert dump.p2m.mfn(np.array([pfn for pfn, _, _ in truth])).tolist() == [mfn for _, mfn, _ in truth]
            assert dump.p2m.runs.total == len(truth)
            assert dump.frames is not None
            frames = Dump("", "", dump.machine, dump.frames, Space.MACHINE)
            assert frames.pages.stored.select(0, 1 << 40).tolist() == sorted(by_mfn)
            assert crcs(frames, sorted(by_mfn)) == [by_mfn[mfn] for mfn in sorted(by_mfn)]
            assert dump.frames.loaded.repeated == len(truth) - len(by_mfn)  # type: ignore[attr-defined]

    @pytest.mark.parametrize("name", PV)
    def test_a_map_that_is_given_is_followed(self, shared: Path, unpacked: Unpack, name: str) -> None:
        """The listing of xen-mfndump gives the same guest as the file's own index."""
        folder = shared / "fixtures" / "xen"
        truth = truth_of(unpacked(folder / f"{name}.json.xz"))
        core, listing = unpacked(folder / f"{name}.core.xz"), unpacked(folder / f"{name}.p2m.txt.xz")
        with dumpxlate.open(core, p2m=listing) as dump:
            pfns = [pfn for pfn, _, _ in truth]
            assert set(pfns) == set(dump.pages.stored.select(0, 1 << 40).tolist())
            assert crcs(dump, pfns) == [crc for _, _, crc in truth]

    @pytest.mark.parametrize("name", [*TINY, "pv1", "pvh1"])
    def test_registers_as_xenctx_printed_them(self, shared: Path, unpacked: Unpack, name: str) -> None:
        folder = shared / "fixtures" / ("xen" if name in TINY else "xen-linux")
        with dumpxlate.open(unpacked(folder / f"{name}.core.xz")) as dump:
            expected = printed_registers((folder / f"{name}.xenctx.txt").read_text())
            assert len(dump.cpus) == len(expected) == (1 if name in TINY else 2)
            for cpu, printed in zip(dump.cpus, expected, strict=True):
                assert {key: cpu.registers[key] for key in printed} == printed
                assert len(printed) > 20

    @pytest.mark.parametrize(("name", "count"), [("pv1", 25600), ("pvh1", 22497)])
    def test_linux(self, shared: Path, unpacked: Unpack, name: str, count: int) -> None:
        """512 pages name themselves; in a PV guest their pfn and mfn differ."""
        with dumpxlate.open(unpacked(shared / "fixtures" / "xen-linux" / f"{name}.core.xz")) as dump:
            assert dump.pages.stored.count == count
            rows = dump.read_pages(dump.pages.stored.select(0, count))
            marks = [bytes(row[:25]) for row in rows[rows[:, 0] == ord("D")] if bytes(row[:15]) == b"DUMPXLATE-PAGE "]
            assert len(set(marks)) == 512
            assert dump.attributes["xen_version"] == "4.17.7"

    def test_shared_info_travels(self, shared: Path, unpacked: Unpack) -> None:
        path = unpacked(shared / "fixtures" / "xen" / "t0.core.xz")
        with dumpxlate.open(path) as dump:
            assert dump.blocks["xen_shared_info"] == sections(path.read_bytes())[".xen_shared_info"]
            assert struct.unpack_from("<Q", dump.blocks["xen_shared_info"], 3088) == (1024,)
            assert len(dump.blocks["xen_version"]) == 1280


class TestReading:
    def test_pv(self, tmp_path: Path, guest: Guest) -> None:
        with dumpxlate.open(write(tmp_path, xen_core.build(guest))) as dump:
            assert_pages(dump, guest.pages)
            assert dump.p2m is not None
            pfns = np.array(list(guest.mfns))
            assert dump.p2m.mfn(pfns).tolist() == list(guest.mfns.values())
            assert dump.machine.paravirtual
            assert [cpu.registers["rip"] for cpu in dump.cpus] == [register("rip", vcpu) for vcpu in range(2)]
            assert dump.blocks["xen_shared_info"] == shared_info(max_pfn=guest.end_pfn)
            assert dump.attributes["xen_version"] == "4.17.0-model"
            assert dump.remarks == ()

    def test_hvm(self, tmp_path: Path, guest: Guest) -> None:
        with dumpxlate.open(write(tmp_path, xen_core.build(guest, hvm=True))) as dump:
            assert_pages(dump, guest.pages)
            assert dump.p2m is None
            assert not dump.machine.paravirtual
            with pytest.raises(ValueError, match="takes no p2m map"):
                dump.with_p2m(P2M.from_pairs(np.array([0]), np.array([0])))

    def test_slots_that_were_not_filled(self, tmp_path: Path, guest: Guest) -> None:
        for hvm in (False, True):
            with dumpxlate.open(write(tmp_path, xen_core.build(guest, hvm=hvm, unfilled=7))) as dump:
                assert_pages(dump, guest.pages)
                assert dump.pages.ram.stop == guest.end_pfn

    def test_first_of_two_rows_counts(self, tmp_path: Path, guest: Guest) -> None:
        with dumpxlate.open(write(tmp_path, xen_core.build(guest, duplicates=(4, 0x101)))) as dump:
            assert_pages(dump, guest.pages)
            assert dump.pages.loaded.repeated == 2  # type: ignore[attr-defined]
            assert dump.p2m is not None
            assert dump.p2m.runs.total == len(guest.pages)

    def test_rows_out_of_order(self, tmp_path: Path, guest: Guest) -> None:
        data = xen_core.build(guest, order=[*reversed(guest.stored)])
        with dumpxlate.open(write(tmp_path, data)) as dump:
            assert_pages(dump, guest.pages)
            assert dump.p2m is not None
            assert dump.p2m.mfn(np.array(guest.stored)).tolist() == [guest.mfns[pfn] for pfn in guest.stored]

    @pytest.mark.parametrize(
        ("options", "width"),
        [
            ({"width": 4}, 4),  # since 2009: e_machine 3, slots of 5168 bytes
            ({"width": 4, "machine": 62}, 4),  # 64-bit tools before that
            ({"width": 4, "context_size": 2800}, 4),  # 32-bit tools
            ({"width": 4, "bits": 32}, 4),  # the first weeks of the format
            ({"width": 8, "bits": 32, "machine": 62}, 8),
            ({"hvm": True, "width": 8}, 8),
        ],
    )
    def test_widths(self, tmp_path: Path, guest: Guest, options: dict[str, Any], width: int) -> None:
        with dumpxlate.open(write(tmp_path, xen_core.build(guest, **options))) as dump:
            assert_pages(dump, guest.pages)
            assert dump.machine.word_bits == 8 * width
            names = ("rip", "rsp", "r15") if width == 8 else ("eip", "esp", "edi")
            for cpu in dump.cpus:
                assert [cpu.registers[name] for name in names] == [register(name, cpu.index, width) for name in names]
            assert len(dump.cpus) == 2

    @pytest.mark.parametrize(("machine", "name"), [(40, "arm"), (183, "aarch64"), (50, "unknown-50")])
    def test_other_machines_have_memory(self, tmp_path: Path, guest: Guest, machine: int, name: str) -> None:
        with dumpxlate.open(write(tmp_path, xen_core.build(guest, hvm=True, machine=machine))) as dump:
            assert_pages(dump, guest.pages)
            assert dump.machine.arch.name == name
            assert dump.cpus == ()
            assert any("not decoded" in remark for remark in dump.remarks)

    def test_larger_pages(self, tmp_path: Path) -> None:
        guest = small_guest(page_size=16384, excluded=())
        with dumpxlate.open(write(tmp_path, xen_core.build(guest, hvm=True, machine=50))) as dump:
            assert dump.machine.page_size == 16384
            assert_pages(dump, guest.pages)

    @pytest.mark.parametrize("hvm", [False, True])
    def test_without_optional_sections(self, tmp_path: Path, guest: Guest, hvm: bool) -> None:
        data = xen_core.build(guest, hvm=hvm, shared_info=None, drop=[".xen_prstatus", ".note.Xen"])
        with dumpxlate.open(write(tmp_path, data)) as dump:
            assert_pages(dump, guest.pages)
            assert (dump.cpus, dict(dump.blocks)) == ((), {})
            assert any("no section .note.Xen" in remark for remark in dump.remarks)
            assert any("no header note" in remark for remark in dump.remarks)
            assert any("no vcpu contexts" in remark for remark in dump.remarks)

    @pytest.mark.parametrize(("width", "size", "name"), [(8, 5168, "rip"), (4, 2800, "eip")])
    def test_vcpus_without_a_stride(self, tmp_path: Path, guest: Guest, width: int, size: int, name: str) -> None:
        lies = {".xen_prstatus": {"sh_entsize": 0}}
        data = xen_core.build(guest, width=width, context_size=size, sections=lies)
        with dumpxlate.open(write(tmp_path, data)) as dump:
            assert [cpu.registers[name] for cpu in dump.cpus] == [register(name, vcpu, width) for vcpu in range(2)]

    @pytest.mark.parametrize(
        ("options", "remark"),
        [
            ({"magic": xen_core.MAGIC_HVM}, "magic 0xf00febee"),
            ({"counts": {"nr_pages": 5}}, "says 5 pages"),
            ({"counts": {"format_version": 2}}, "version 0.2"),
            ({"sections": {".xen_pages": {"sh_size": 4096 * 100}}, "counts": {"nr_pages": 100}}, "the fewer count"),
            ({"sections": {".xen_prstatus": {"sh_offset": 1 << 50}}}, "contexts for 2 vcpus: left out"),
            ({"sections": {".xen_prstatus": {"sh_entsize": 100}}}, "none of x86"),
            ({"counts": {"nr_vcpus": 1 << 40}}, "left out"),
            ({"sections": {".xen_shared_info": {"sh_size": 1 << 50}}}, ".xen_shared_info"),
            ({"note_list": [b"\x04\0\0\0\xff\xff\0\0\1\0\0\2Xen\0"]}, "follow"),
            ({"note_list": xen_core.notes(magic=0xF00FEBED, nr_vcpus=2, nr_pages=1, version=b"x")}, "says 1 pages"),
        ],
    )
    def test_tolerated(self, tmp_path: Path, guest: Guest, options: dict[str, Any], remark: str) -> None:
        with dumpxlate.open(write(tmp_path, xen_core.build(guest, **options))) as dump:
            told = dump.damage if "fewer" in remark else dump.remarks  # pages are missing then
            assert any(remark in each for each in told), told
            kept = guest.stored[:100] if "fewer" in remark else guest.stored
            assert_pages(dump, {pfn: guest.pages[pfn] for pfn in kept})

    def test_stale_tail(self, tmp_path: Path, guest: Guest) -> None:
        with dumpxlate.open(write(tmp_path, xen_core.build(guest, stale_tail=b"old" * 9000))) as dump:
            assert_pages(dump, guest.pages)

    REFUSED: ClassVar[dict[str, tuple[dict[str, Any], type[errors.FormatError], str]]] = {
        "no pages": ({"drop": [".xen_pages"]}, errors.CorruptDumpError, r"expected \.xen_pages and one of"),
        "no index": ({"drop": [".xen_p2m"]}, errors.CorruptDumpError, r"one of \.xen_p2m and \.xen_pfn"),
        "both indexes": ({"rename": {".xen_shared_info": ".xen_pfn"}}, errors.CorruptDumpError, "one of"),
        "ragged index": ({"sections": {".xen_p2m": {"sh_size": 40}}}, errors.CorruptDumpError, "multiple of 16"),
        "index outside": (
            {"sections": {".xen_p2m": {"sh_offset": 1 << 40}}}, errors.TruncatedDumpError, r"page index \.xen_p2m",
        ),
        "index wraps": (
            {"sections": {".xen_p2m": {"sh_offset": NONE - 15}}}, errors.TruncatedDumpError, r"page index \.xen_p2m",
        ),
        "pages outside": ({"sections": {".xen_pages": {"sh_size": 1 << 62}}}, errors.TruncatedDumpError, "xen_pages"),
        "page size": ({"counts": {"page_size": 5000}}, errors.CorruptDumpError, "power of two"),
        "no page size": ({"counts": {"page_size": 0}}, errors.CorruptDumpError, "power of two"),
        "huge page size": ({"counts": {"page_size": 1 << 62}}, errors.CorruptDumpError, "power of two"),
        "small pages": ({"counts": {"page_size": 2048}}, errors.CorruptDumpError, "power of two"),
        "version": ({"counts": {"format_version": 1 << 32}}, errors.UnsupportedFeatureError, r"version 1\.0"),
        "no sections": ({"header": {"e_shnum": 0}}, errors.CorruptDumpError, "no usable section table"),
        "table outside": ({"header": {"e_shoff": 1 << 40}}, errors.CorruptDumpError, "no usable section table"),
        "names": ({"header": {"e_shstrndx": 7}}, errors.CorruptDumpError, "no usable section table"),
    }  # fmt: skip

    @pytest.mark.parametrize("case", REFUSED)
    def test_refused(self, tmp_path: Path, guest: Guest, case: str) -> None:
        options, kind, words = self.REFUSED[case]
        options = {"counts": {"nr_pages": 7}} | options  # else sections are found by the notes
        path = write(tmp_path, xen_core.build(guest, **options))
        with pytest.raises(kind, match=words) as caught, dumpxlate.open(path, format="xen_core") as dump:
            assert dump.pages.ram  # a PV guest's index may be lost: a map can be given then
        assert str(caught.value).startswith(f"{path}: ")

    @pytest.mark.parametrize("hvm", [False, True])
    @pytest.mark.parametrize("wrong", ["impossible", "zero", "moved"])
    def test_entries_that_cannot_be_right(self, tmp_path: Path, guest: Guest, wrong: str, hvm: bool) -> None:
        """The index is read when a page is asked for, and not before: what is wrong in it is damage then."""
        data, size = bytearray(xen_core.build(guest, hvm=hvm)), 8 if hvm else 16
        at = data.index(sections(bytes(data))[".xen_pfn" if hvm else ".xen_p2m"])
        rows = (3, 50, 51, len(guest.stored) - 2)
        for row in rows:
            value = {"impossible": 1 << 45, "zero": 0, "moved": 1 << 30 if row % 2 else 1}[wrong]
            struct.pack_into("<Q", data, at + size * row, value)
        kept = {pfn: guest.pages[pfn] for row, pfn in enumerate(guest.stored) if row not in rows}
        with dumpxlate.open(write(tmp_path, bytes(data))) as dump:
            assert not dump.damage
            assert_pages(dump, kept)
            assert f"entry 3 at {at + size * 3:#x}: 4 entries cannot be right" in dump.defects[0]
            found = check(dump)
            assert found.damage == dump.defects != ()
            with pytest.raises(errors.CorruptDumpError, match=r"cannot be right.*--salvage"):
                dumpxlate.convert(dump, tmp_path / "out")
            report = dumpxlate.convert(dump, tmp_path / "out", salvage=True)
            assert report.damage == dump.defects
            assert not report.complete

    def test_impossible_mfn(self, tmp_path: Path, guest: Guest) -> None:
        """A page is still there under its pfn when its frame is none."""
        mfns = guest.mfns | {4: NONE, 5: 1 << 62}
        with dumpxlate.open(write(tmp_path, xen_core.build(guest.but(mfns=mfns)))) as dump:
            assert_pages(dump, guest.pages)
            assert dump.p2m is not None
            assert dump.p2m.mfn(np.array([3, 4, 5, 6])).tolist() == [guest.mfns[3], -1, -1, guest.mfns[6]]

    @pytest.mark.parametrize("hvm", [False, True])
    def test_truncated_at_every_boundary(self, tmp_path: Path, guest: Guest, hvm: bool) -> None:
        data = xen_core.build(guest, hvm=hvm)
        whole = sections(data)
        index = data.index(whole[".xen_pfn" if hvm else ".xen_p2m"])
        pages = data.index(whole[".xen_pages"])
        for length in (index + 7, index, index - 1, pages + 5000, pages, 5000, 560):
            path = write(tmp_path, data[:length])
            with (
                pytest.raises(errors.TruncatedDumpError, match=r"without which the \d+ pages") as caught,
                dumpxlate.open(path) as dump,
            ):
                assert not hvm
                assert any("is lost; only the guest's map tells" in line for line in dump.damage)
                assert dump.pages.ram
            assert caught.value.path == str(path)
            assert ("--p2m FILE" in str(caught.value)) == (not hvm)

    @pytest.mark.parametrize("unfilled", [0, 5])
    def test_a_lost_index_and_a_map(self, tmp_path: Path, guest: Guest, unfilled: int) -> None:
        data = xen_core.build(guest, unfilled=unfilled)
        index, pages = (data.index(sections(data)[name]) for name in (".xen_p2m", ".xen_pages"))
        p2m = P2M.from_pairs(np.array(guest.stored), np.array([guest.mfns[pfn] for pfn in guest.stored]))
        with dumpxlate.open(write(tmp_path, data[:index])) as dump:
            assert_pages(dump.with_p2m(p2m), guest.pages)
            fewer = P2M.from_pairs(np.array(guest.stored[3:]), np.array([guest.mfns[pfn] for pfn in guest.stored[3:]]))
            with pytest.raises(errors.MapError, match="only a map of the moment"):
                dump.with_p2m(fewer)
        there = 100
        with dumpxlate.open(write(tmp_path, data[: pages + 4096 * there + 9])) as dump:
            if unfilled:
                with pytest.raises(errors.MapError, match="only a map of the moment"):
                    dump.with_p2m(p2m)
                return
            placed = dump.with_p2m(p2m)
            assert_pages(placed, {pfn: guest.pages[pfn] for pfn in guest.stored[:there]})
            assert check(placed).missing.pages == len(guest.stored) - there
            report = dumpxlate.convert(placed, tmp_path / "out", salvage=True)
            assert report.missing.pages == len(guest.stored) - there

    @pytest.mark.parametrize("hvm", [False, True])
    @pytest.mark.parametrize("bits", [64, 32])
    def test_names_that_are_lost(self, tmp_path: Path, guest: Guest, hvm: bool, bits: int) -> None:
        """They stand last: a file that lacks its last byte lacks some, and one with a hole there all of them."""
        data = xen_core.build(guest, hvm=hvm, bits=bits)
        for broken in (data[:-1], data[:-60], data[:-60] + bytes(60), data[:-72] + bytes(72)):
            with dumpxlate.open(write(tmp_path, broken)) as dump:
                assert [line for line in dump.damage if "names of the sections" in line] == list(dump.damage)
                assert len(dump.damage) == 1
                assert_pages(dump, guest.pages)
                assert len(dump.cpus) == guest.nr_vcpus
                assert ("xen_shared_info" in dump.blocks, dump.p2m is not None) == (True, not hvm)

    def test_sections_without_names_that_do_not_fit(self, tmp_path: Path, guest: Guest) -> None:
        for lie in ({".xen_p2m": {"sh_entsize": 24}}, {".xen_pages": {"sh_size": 4096}}, {".xen_p2m": {"sh_type": 3}}):
            data = xen_core.build(guest, sections=lie)[:-72]
            with pytest.raises(errors.CorruptDumpError, match=r"expected \.xen_pages and one of"):
                dumpxlate.open(write(tmp_path, data))

    @pytest.mark.parametrize("hvm", [False, True])
    @pytest.mark.parametrize("shared_info", [False, True])
    @pytest.mark.parametrize("where", ["all", "index", "pages", "table", "notes"])
    def test_section_headers_that_are_damaged(
        self, tmp_path: Path, guest: Guest, hvm: bool, shared_info: bool, where: str
    ) -> None:
        data = bytearray(xen_core.build(guest, hvm=hvm, shared_info=shared_info, unfilled=3))
        count = 7 if shared_info else 6
        first, size = {
            "all": (64, 64 * count),
            "index": (64 * count + 16, 40),
            "pages": (64 * (count - 1) + 24, 16),
            "table": (40, 8),
            "notes": (64 * 3, 64),
        }[where]
        data[first : first + size] = bytes(size)
        with dumpxlate.open(write(tmp_path, bytes(data))) as dump:
            assert any("section headers do not fit each other" in line for line in dump.damage)
            assert_pages(dump, guest.pages)
            assert len(dump.cpus) == guest.nr_vcpus
            assert ("xen_shared_info" in dump.blocks, dump.p2m is not None) == (shared_info, not hvm)

    @pytest.mark.parametrize("hvm", [False, True])
    def test_an_index_that_is_cut(self, tmp_path: Path, guest: Guest, hvm: bool) -> None:
        data = xen_core.build(guest, hvm=hvm)
        index = data.index(sections(data)[".xen_pfn" if hvm else ".xen_p2m"])
        entry = 8 if hvm else 16
        for there in (1, 100, len(guest.stored) - 1):
            with dumpxlate.open(write(tmp_path, data[: index + there * entry + 7])) as dump:
                kept = guest.stored[:there]
                assert dump.pages.stored.select(0, 1 << 20).tolist() == kept
                assert_pages(dump, {pfn: guest.pages[pfn] for pfn in kept})
                lost = len(guest.stored) - there
                assert any(f"{there:,} are there; the other {lost:,} pages" in line for line in dump.damage)

    @pytest.mark.parametrize("length", [64, 100, 300])
    def test_truncated_in_the_headers(self, tmp_path: Path, guest: Guest, length: int) -> None:
        path = write(tmp_path, xen_core.build(guest)[:length])
        with pytest.raises(errors.FormatError), dumpxlate.open(path):
            pass
        with pytest.raises(errors.CorruptDumpError), dumpxlate.open(path, format="xen_core"):
            pass


class TestDetection:
    def test_sections_decide(self, guest: Guest) -> None:
        format, match = detect(BytesSource(xen_core.build(guest)))
        assert (format.name, match.confidence) == ("xen_core", Confidence.SPECIFIC)

    def test_other_elf_files(self, guest: Guest) -> None:
        styles = [elf_cores.core(guest, style) for style in ("plain", "qemu", "xen-host")]
        for data in (*styles, b"\x7fELF", b"\x7fELF" * 40):
            assert FORMAT.detect(BytesSource(data)) is None
        other = xen_core.build(guest, header={"e_type": 2})
        assert FORMAT.detect(BytesSource(other)) is None

    def test_names_of_others(self, guest: Guest) -> None:
        rename = {name: f".x{name}" for name in (*xen_core.NAMES[1:], ".xen_p2m")}
        stripped = xen_core.build(guest, rename=rename, note_list=[b""])
        assert FORMAT.detect(BytesSource(stripped)) is None


class TestWriting:
    @pytest.mark.parametrize("name", TINY)
    def test_core_to_core(self, shared: Path, unpacked: Unpack, tmp_path: Path, name: str) -> None:
        """Byte by byte as Xen's tool wrote it, but for the slots that it had left over."""
        path = unpacked(shared / "fixtures" / "xen" / f"{name}.core.xz")
        real = path.read_bytes()
        with dumpxlate.open(path) as dump:
            report = dumpxlate.convert(dump, tmp_path / "out", "xen_core")
        ours = (tmp_path / "out").read_bytes()
        assert report.losses == ()
        if NONE not in {row[0] for row in struct.iter_unpack("<Q", sections(real)[_index_of(real)])}:
            assert ours == real
            return
        self.assert_same(ours, real)
        assert ours[24:512] != real[24:512]
        assert sections(ours)[".xen_prstatus"] == sections(real)[".xen_prstatus"]

    @staticmethod
    def assert_same(ours: bytes, real: bytes) -> None:
        """The same entries, and the same pages, in the same order."""
        assert entries(ours) == entries(real)
        used = len(entries(real))
        assert sections(ours)[".xen_pages"] == sections(real)[".xen_pages"][: used * 4096]
        assert len(sections(ours)[_index_of(ours)]) == used * (16 if ".xen_p2m" in sections(real) else 8)

    @pytest.mark.parametrize("name", PV)
    @pytest.mark.parametrize("old", ["old8", "old4"])
    def test_xendump_with_its_map(self, shared: Path, unpacked: Unpack, tmp_path: Path, name: str, old: str) -> None:
        folder = shared / "fixtures" / "xen"
        dump_path, map_path = unpacked(folder / f"{name}.{old}.xz"), unpacked(folder / f"{name}.{old}.map.xz")
        with dumpxlate.open(dump_path, p2m=map_path) as dump:
            dumpxlate.convert(dump, tmp_path / "out", "xen_core")
        real = unpacked(folder / f"{name}.core.xz").read_bytes()
        self.assert_same((tmp_path / "out").read_bytes(), real)
        ours = sections((tmp_path / "out").read_bytes())
        assert struct.unpack_from("<H", (tmp_path / "out").read_bytes(), 18) == (62 if old == "old8" else 3,)
        if old == "old8":
            assert ours[".xen_prstatus"] == sections(real)[".xen_prstatus"]
        assert ".xen_shared_info" not in ours

    @pytest.mark.parametrize("name", ["t0", "t1", "t5", "t7"])
    def test_through_elf(self, shared: Path, unpacked: Unpack, tmp_path: Path, name: str) -> None:
        """An ELF vmcore carries everything that a core has: back again it is the same file."""
        path = unpacked(shared / "fixtures" / "xen" / f"{name}.core.xz")
        with dumpxlate.open(path) as dump:
            dumpxlate.convert(dump, tmp_path / "vmcore", "elf")
            dumpxlate.convert(dump, tmp_path / "direct", "xen_core")
        assert vmcore_pages(tmp_path / "vmcore") == core_pages(path.read_bytes())
        with dumpxlate.open(tmp_path / "vmcore") as dump:
            assert dump.format == "elf"
            report = dumpxlate.convert(dump, tmp_path / "back", "xen_core")
        assert report.losses == ()
        assert (tmp_path / "back").read_bytes() == (tmp_path / "direct").read_bytes()

    @pytest.mark.parametrize("hvm", [False, True])
    @pytest.mark.parametrize("width", [8, 4])
    def test_model(self, tmp_path: Path, guest: Guest, hvm: bool, width: int) -> None:
        data = xen_core.build(guest, hvm=hvm, width=8 if hvm else width, unfilled=3)
        with dumpxlate.open(write(tmp_path, data)) as dump:
            dumpxlate.convert(dump, tmp_path / "out", "xen_core")
        ours = (tmp_path / "out").read_bytes()
        assert core_pages(ours) == guest.pages
        self.assert_same(ours, data)
        assert struct.unpack_from("<H", ours, 18) == struct.unpack_from("<H", data, 18)
        assert sections(ours)[".xen_prstatus"] == sections(data)[".xen_prstatus"]
        magic, vcpus, count, size = struct.unpack_from("<4Q", sections(ours)[".note.Xen"], 32)
        assert (magic, vcpus, count, size) == (0xF00FEBEE if hvm else 0xF00FEBED, 2, len(guest.pages), 4096)

    def test_left_out_pages_are_a_gap(self, tmp_path: Path) -> None:
        guest = small_guest()
        path = write(tmp_path, elf_cores.core(guest, "makedumpfile"), "vmcore")
        with dumpxlate.open(path) as dump:
            report = dumpxlate.convert(dump, tmp_path / "out", "xen_core", allow_loss=True)
        assert core_pages((tmp_path / "out").read_bytes()) == guest.pages
        assert report.pages_out["excluded"] == len(guest.excluded)

    def test_zero_pages_are_holes(self, tmp_path: Path) -> None:
        pages = {pfn: bytes(4096) for pfn in range(2048)} | {100: page(100)}
        with dumpxlate.open(write(tmp_path, xen_core.build(Guest(pages=pages), hvm=True))) as dump:
            dumpxlate.convert(dump, tmp_path / "out", "xen_core")
        assert core_pages((tmp_path / "out").read_bytes()) == pages
        assert (tmp_path / "out").stat().st_blocks * 512 < 1 << 20

    def test_registers_become_contexts(self, tmp_path: Path, guest: Guest) -> None:
        """An ELF dump of QEMU has no Xen contexts: they are made of its registers."""
        with dumpxlate.open(write(tmp_path, elf_cores.core(guest, "qemu"), "vmcore")) as dump:
            report = dumpxlate.convert(dump, tmp_path / "out", "xen_core", allow_loss=True)
        lost = [loss.what for loss in report.losses]
        assert "VMCOREINFO" in lost
        body = sections((tmp_path / "out").read_bytes())[".xen_prstatus"]
        assert len(body) == 2 * 5168
        for vcpu in range(2):
            slot = body[vcpu * 5168 :]
            assert struct.unpack_from("<Q", slot, 648) == (register("rip", vcpu),)
            assert struct.unpack_from("<Q", slot, 672) == (register("rsp", vcpu),)
            assert struct.unpack_from("<Q", slot, 520) == (register("r15", vcpu),)

    def test_32_bit_guest_of_qemu(self, tmp_path: Path) -> None:
        """Not paravirtual, so that Xen would keep it in 64-bit contexts."""
        guest = small_guest(high=False, excluded=())
        path = write(tmp_path, elf_cores.core(guest, "plain", arch="i386", bits=32), "vmcore")
        with dumpxlate.open(path) as dump:
            assert dump.machine.arch.name == "i386"
            dumpxlate.convert(dump, tmp_path / "out", "xen_core")
        ours = (tmp_path / "out").read_bytes()
        assert core_pages(ours) == guest.pages
        assert struct.unpack_from("<H", ours, 18) == (62,)
        assert struct.unpack_from("<Q", sections(ours)[".xen_prstatus"], 648) == (register("eip", 0, 4),)

    def test_what_is_lost_is_said_before(self, tmp_path: Path, guest: Guest) -> None:
        with (
            dumpxlate.open(write(tmp_path, elf_cores.core(guest, "qemu"), "vmcore")) as dump,
            pytest.raises(errors.LossyConversionError, match="VMCOREINFO"),
        ):
            dumpxlate.convert(dump, tmp_path / "out", "xen_core")
        assert not (tmp_path / "out").exists()

    def test_a_map_that_page_tables_do_not_need(self, tmp_path: Path) -> None:
        """Of a fully virtualised guest: in ``.xen_p2m`` it would send readers of its page tables astray."""
        guest = small_guest(high=False, excluded=())
        frames = P2M.from_pairs(np.array(list(guest.mfns)), np.array(list(guest.mfns.values())))
        with dumpxlate.open(write(tmp_path, xendump.build(guest, hvm=True))) as dump:
            report = dumpxlate.convert(dump.with_p2m(frames), tmp_path / "out", "xen_core", allow_loss=True)
        assert [loss.what for loss in report.losses] == ["the p2m map"]
        ours = (tmp_path / "out").read_bytes()
        assert ".xen_pfn" in sections(ours)
        assert core_pages(ours) == guest.pages

    def test_a_paravirtual_guest_needs_its_map(self, tmp_path: Path, guest: Guest) -> None:
        with dumpxlate.open(write(tmp_path, xendump.build(guest))) as dump:
            with pytest.raises(errors.MapError, match="--p2m MAP"):
                dumpxlate.convert(dump, tmp_path / "out", "xen_core")
            machine, cpus, source = dump.machine, dump.cpus, dump.sources
            lost = Dump("elf", "", machine, dump.pages, Space.PHYSICAL, source, cpus)
            with pytest.raises(errors.MapError, match="has no p2m map"):
                FORMAT.writer(lost, WriteOptions())

    def test_other_machines_are_refused(self, tmp_path: Path, guest: Guest) -> None:
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

    def test_into_a_pipe(self, tmp_path: Path, guest: Guest) -> None:
        data = xen_core.build(guest)
        with dumpxlate.open(write(tmp_path, data)) as dump, (tmp_path / "out").open("wb") as file:
            dumpxlate.convert(dump, PipeSink(file.fileno()), "xen_core")
        assert (tmp_path / "out").read_bytes() == data

    def test_blocks_pass_through_elf(self, tmp_path: Path, guest: Guest) -> None:
        vcpus = [context(guest, vcpu) for vcpu in range(2)]
        info = shared_info(max_pfn=77)
        with dumpxlate.open(write(tmp_path, xen_core.build(guest, contexts=vcpus, shared_info=info))) as dump:
            dumpxlate.convert(dump, tmp_path / "vmcore", "elf")
            before = dict(dump.blocks)
        with dumpxlate.open(tmp_path / "vmcore") as dump:
            assert dict(dump.blocks) == before
            assert dump.blocks["xen_shared_info"] == info
            assert [cpu.raw["xen"] for cpu in dump.cpus] == contexts(guest)


def _index_of(data: bytes) -> str:
    return ".xen_p2m" if ".xen_p2m" in sections(data) else ".xen_pfn"


@pytest.mark.peer
class TestPeers:
    @pytest.mark.parametrize(("name", "space"), [("t1", "KPHYSADDR"), ("t3", "MACHPHYSADDR"), ("t5", "MACHPHYSADDR")])
    def test_libkdumpfile(self, shared: Path, unpacked: Unpack, tmp_path: Path, name: str, space: peers.Space) -> None:
        peers.require("kdumpfile")
        folder = shared / "fixtures" / "xen"
        truth = truth_of(unpacked(folder / f"{name}.json.xz"))
        with dumpxlate.open(unpacked(folder / f"{name}.core.xz")) as dump:
            dumpxlate.convert(dump, tmp_path / "out", "xen_core")
        machine = space == "MACHPHYSADDR" and name != "t5"
        want = {mfn if machine else pfn: int(crc, 16) for pfn, mfn, crc in truth}
        assert peers.kdumpfile_pages(tmp_path / "out", want, space=space) == want
        attrs = peers.kdumpfile_attrs(tmp_path / "out")
        assert attrs["arch.name"] == "x86_64"
        assert attrs["max_pfn"] == max(pfn for pfn, _, _ in truth) + 1

    def test_volatility(self, shared: Path, unpacked: Unpack, tmp_path: Path) -> None:
        """Volatility 2.28 takes cores of auto-translated guests only, and never finds pfn 0 (``if entry``)."""
        peers.require("volatility3")
        folder = shared / "fixtures" / "xen"
        truth = truth_of(unpacked(folder / "t5.json.xz"))
        with dumpxlate.open(unpacked(folder / "t5.core.xz")) as dump:
            dumpxlate.convert(dump, tmp_path / "out", "xen_core")
        want = {pfn: int(crc, 16) for pfn, _, crc in truth if pfn}
        found = peers.volatility(tmp_path / "out", want)
        assert "XenCoreDumpLayer" in found.layers
        assert found.pages == want


def test_states_outside(tmp_path: Path, guest: Guest) -> None:
    with dumpxlate.open(write(tmp_path, xen_core.build(guest))) as dump:
        hole = next(pfn for pfn in range(guest.end_pfn) if pfn not in guest.pages)
        assert dump.states([0, hole, guest.end_pfn, 1 << 39]) == [PageState.STORED] + [PageState.ABSENT] * 3
