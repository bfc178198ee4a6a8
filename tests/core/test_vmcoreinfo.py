"""VMCOREINFO: text written here, hostile text, and the note in the memory of a real guest."""

from __future__ import annotations

import mmap
import struct
from typing import TYPE_CHECKING

import pytest

from dumpxlate.elf.notes import Note
from dumpxlate.errors import CorruptDumpError
from dumpxlate.vmcoreinfo import MAX_BYTES, MAX_LINES, VmCoreInfo

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dumpxlate.structs import Endian

TEXT = b"""\
OSRELEASE=6.1.0-32-amd64
BUILD-ID=0123456789abcdef
PAGESIZE=4096
SYMBOL(init_uts_ns)=ffffffff82a14a20
SYMBOL(mem_section)=0xffff888007f4ef00
OFFSET(page._refcount)=52
SIZE(page)=64
LENGTH(zone.free_area)=11
NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-129
NUMBER(KERNEL_IMAGE_SIZE)=1073741824
NUMBER(kimage_voffset)=0xffffffbff0000000
NUMBER(phys_base)=-16777216
KERNELOFFSET=1800000
CONFIG_LINE=a=b=c
CRASHTIME=1700000000
"""


def test_every_kind_of_line_has_its_accessor() -> None:
    info = VmCoreInfo.from_bytes(TEXT)
    assert info.text == TEXT.decode()
    assert info.release == "6.1.0-32-amd64"
    assert info.page_size == 4096
    assert info.symbol("init_uts_ns") == 0xFFFFFFFF82A14A20
    assert info.symbol("mem_section") == 0xFFFF888007F4EF00
    assert info.offset("page._refcount") == 52
    assert info.size("page") == 64
    assert info.length("zone.free_area") == 11
    assert info.number("PAGE_BUDDY_MAPCOUNT_VALUE") == -129
    assert info.number("KERNEL_IMAGE_SIZE") == 1 << 30
    assert info.number("kimage_voffset") == 0xFFFFFFBFF0000000
    assert info.phys_base == -(1 << 24)
    assert info.kernel_offset == 0x1800000
    assert info.crash_time == 1700000000
    assert info.lines["BUILD-ID"] == "0123456789abcdef"
    assert info.lines["CONFIG_LINE"] == "a=b=c"


def test_what_the_kernel_did_not_say_is_none() -> None:
    info = VmCoreInfo.from_bytes(b"")
    assert info.lines == {}
    asked = (info.release, info.page_size, info.kernel_offset, info.phys_base, info.crash_time)
    assert asked == (None,) * 5
    assert [ask("page") for ask in (info.symbol, info.offset, info.size, info.length, info.number)] == [None] * 5
    # Names of different kinds do not mix.
    assert VmCoreInfo.from_bytes(b"SIZE(page)=64\n").offset("page") is None


@pytest.mark.parametrize(
    "value", ["", " ", "x", "-", "--1", "1_000", "1e3", "12 34", "9" * 5000, "\N{SUPERSCRIPT TWO}"]
)
def test_a_number_that_is_none_is_absent(value: str) -> None:
    lines = "".join(
        f"{key}={value}\n" for key in ("SIZE(a)", "NUMBER(a)", "PAGESIZE", "CRASHTIME", "NUMBER(phys_base)")
    )
    info = VmCoreInfo.from_bytes(lines.encode("latin-1"))
    assert len(info.lines) == 5
    assert (info.size("a"), info.number("a"), info.page_size, info.crash_time, info.phys_base) == (None,) * 5


@pytest.mark.parametrize("value", ["", "x", "-1", "0x", "0x-1", "ffff_ffff", "f" * 17, "ffffffff 82a14a20"])
def test_an_address_that_is_none_is_absent(value: str) -> None:
    info = VmCoreInfo.from_bytes(f"SYMBOL(a)={value}\nKERNELOFFSET={value}\n".encode())
    assert info.symbol("a") is None
    assert info.kernel_offset is None


@pytest.mark.parametrize("size", ["0", "-4096", "4095", "4097", "12288", "2048", "1073741824", "0x1000"])
def test_a_page_size_that_cannot_be_is_absent(size: str) -> None:
    assert VmCoreInfo.from_bytes(f"PAGESIZE={size}\n".encode()).page_size is None


@pytest.mark.parametrize("size", [4096, 16384, 65536])
def test_page_sizes_that_exist(size: int) -> None:
    assert VmCoreInfo.from_bytes(f"PAGESIZE={size}\n".encode()).page_size == size


def test_lines_without_sense_are_left_out_and_the_first_of_two_counts() -> None:
    info = VmCoreInfo.from_bytes(b"no equals\n=no key\n\nSIZE(a)=1\nSIZE(a)=2\n\xff=\xe9\nlast=cut")
    assert info.lines == {"SIZE(a)": "1", "\xff": "\xe9", "last": "cut"}
    assert info.size("a") == 1


def test_the_text_ends_at_its_first_nul() -> None:
    info = VmCoreInfo.from_bytes(memoryview(TEXT + b"\0SIZE(hidden)=1\n"))
    assert info.text == TEXT.decode()
    assert info.size("hidden") is None


def test_what_is_looked_at_is_bounded() -> None:
    assert len(VmCoreInfo.from_bytes(b"A=1\n" + b"x" * 2 * MAX_BYTES).text) == MAX_BYTES
    many = b"".join(b"%d=\n" % i for i in range(MAX_LINES + 10))
    assert len(VmCoreInfo.from_bytes(many).lines) == MAX_LINES


def raw_note(name: bytes, desc: bytes, endian: Endian) -> bytes:
    return struct.pack(endian + "3I", len(name), len(desc), 0) + name + bytes(-len(name) % 4) + desc


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("name", [b"VMCOREINFO\0", b"VMCOREINFO_XEN\0"])
def test_a_note_is_read_parsed_or_with_its_header(endian: Endian, name: bytes) -> None:
    page = raw_note(name, TEXT, endian) + b"garbage that follows in memory"
    assert VmCoreInfo.from_note(page, endian).text == TEXT.decode()
    assert VmCoreInfo.from_note(memoryview(page), endian).text == TEXT.decode()
    assert VmCoreInfo.from_note(Note("VMCOREINFO", 0, TEXT)) == VmCoreInfo.from_bytes(TEXT)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (bytes(4096), "empty"),
        (raw_note(b"CORE\0", b"desc", "<"), "named 'CORE', expected VMCOREINFO"),
        (raw_note(b"VMCOREINFO\0", TEXT, "<")[:100], "note at 0x0"),
        (TEXT, "note at 0x0"),
    ],
)
def test_bytes_that_are_no_vmcoreinfo_note_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(CorruptDumpError, match=f"vmcoreinfo note: {words}"):
        VmCoreInfo.from_note(data)


def test_the_note_in_a_real_guests_memory(shared: Path, unpacked: Callable[[Path], Path]) -> None:
    path = unpacked(shared / "fixtures/xen-linux/pvh1.core.xz")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as core:
        at = core.find(b"VMCOREINFO\0\0OSRELEASE=") - 12
        assert at > 0
        assert at % 4096 == 0
        info = VmCoreInfo.from_note(core[at : at + 4096])
    assert info.release == "6.1.0-56-cloud-amd64"
    assert info.page_size == 4096
    assert info.text.endswith("NUMBER(sme_mask)=0\n")
    assert len(info.lines) == info.text.count("\n")
    assert info.symbol("swapper_pg_dir") == 0xFFFFFFFF82A10000
    assert info.symbol("mem_section") == 0xFFFF8880087D1000
    assert info.offset("page.compound_order") == 17
    assert info.number("PAGE_BUDDY_MAPCOUNT_VALUE") == -129
    assert (info.kernel_offset, info.phys_base, info.crash_time) == (0, 0, None)
