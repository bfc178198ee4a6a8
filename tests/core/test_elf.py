"""ELF headers of both classes and orders: from bytes of another builder, and ours by struct and by readelf."""

from __future__ import annotations

import random
import re
import shutil
import struct
import subprocess
import time
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dumpxlate.elf.container import (
    PN_XNUM,
    PT_LOAD,
    PT_NOTE,
    ElfFile,
    Segments,
    elf_head,
    machine_name,
    program_headers,
    read_elf,
)
from dumpxlate.errors import CorruptDumpError, TruncatedDumpError, UnsupportedFeatureError
from dumpxlate.io.source import BytesSource
from tests.builders.elf import EHDR, PHDR, SHDR, SIZES, Segment, build, layout
from tests.builders.elf_notes import note
from tests.builders.packing import pack, place
from tests.readers import elf_segments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from typing import Literal

    from dumpxlate.arrays import Int64s
    from dumpxlate.structs import Endian

CLASSES = [(64, "<"), (64, ">"), (32, "<"), (32, ">")]
every_class = pytest.mark.parametrize(("bits", "endian"), CLASSES, ids=["64le", "64be", "32le", "32be"])
two_classes = pytest.mark.parametrize(("bits", "endian"), [(64, "<"), (32, ">")], ids=["64le", "32be"])
LOADS = [
    Segment(paddr=0, data=b"low"),
    Segment(paddr=0x100000, vaddr=0xC0100000, data=b"high" * 9, memsz=4096, flags=5),
]


def ints(*values: int) -> Int64s:
    return np.array(values, np.int64)


def opened(data: bytes) -> ElfFile:
    return read_elf(BytesSource(data, "a.elf"))


def rows(segments: Segments) -> list[tuple[int, ...]]:
    columns = [getattr(segments, name) for name in Segments.__slots__]
    assert all(column.dtype == np.int64 for column in columns)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@every_class
@pytest.mark.parametrize("style", ["plain", "qemu72"])
def test_what_another_writer_wrote(bits: int, endian: Endian, style: str) -> None:
    parts, offsets = layout(
        LOADS, [note("CORE", 1, b"status")], bits=bits, byte_order=endian, machine=40, style=style, align_data=16
    )
    file = opened(place(parts))
    assert (file.bits, file.endian, file.header.e_machine, file.header.e_type) == (bits, endian, 40, 4)
    head, *loads = rows(file.segments)
    assert head[0] == PT_NOTE
    assert loads == [
        (PT_LOAD, 0, offsets[0], 0, 0, 3, 3),
        (PT_LOAD, 5, offsets[1], 0xC0100000, 0x100000, 36, 4096),
    ]
    assert rows(file.segments.loads) == loads
    assert len(file.segments) == 3
    if style == "qemu72":
        assert file.header.e_ehsize == 8
        # QEMU describes its strings in the order of the host, so that a big-endian guest's name is lost.
        found = file.section(".shstrtab")
        assert (found is not None) == (endian == "<")


word64 = st.one_of(st.integers(0, 1 << 40), st.sampled_from([0, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 62]))


@settings(deadline=None, max_examples=80)
@given(data=st.data(), bits=st.sampled_from([64, 32]), endian=st.sampled_from("<>"), extra=st.integers(0, 70))
def test_program_headers_of_any_content_and_size(
    data: st.DataObject, bits: Literal[32, 64], endian: Endian, extra: int
) -> None:
    """An entry may be larger than we know; the last one need not have its padding in the file."""
    words = word64 if bits == 64 else st.integers(0, (1 << 32) - 1) | st.just((1 << 32) - 1)
    names = [name for name, _ in PHDR[bits]]
    entries = data.draw(st.lists(st.fixed_dictionaries(dict.fromkeys(names, words)), max_size=5))
    size, gap = SIZES[bits][1], data.draw(st.integers(0, 9))
    phoff = SIZES[bits][0] + gap
    header = {
        "magic": b"\x7fELF", "ei_class": bits // 32, "ei_data": 1 if endian == "<" else 2, "e_type": 4,
        "e_phoff": phoff, "e_phentsize": size + extra, "e_phnum": len(entries),
    }  # fmt: skip
    table = b"".join(pack(endian, PHDR[bits], each).ljust(size + extra, b"\xee") for each in entries)
    body = pack(endian, EHDR[bits], header).ljust(phoff, b"\xee") + table
    body = body[: len(body) - extra] if entries else body
    wide = {"p_type": 32, "p_flags": 32}
    expected = []
    for each in entries:
        row = []
        for name in ("p_type", "p_flags", "p_offset", "p_vaddr", "p_paddr", "p_filesz", "p_memsz"):
            value = each[name] % (1 << wide.get(name, bits))
            unknown = name in ("p_vaddr", "p_paddr") and value == (1 << bits) - 1
            row.append(-1 if unknown else value - (1 << 64) if value >> 63 else value)
        expected.append(tuple(row))
    assert rows(opened(body).segments) == expected
    if entries:
        with pytest.raises(TruncatedDumpError, match="program headers"):
            opened(body[:-1])


def many(count: int, bits: int, endian: Endian) -> bytes:
    """Headers alone, with addresses in steps of 256; made at once, since the builder makes each by itself."""
    extended = count >= PN_XNUM
    ehsize, phsize, _ = SIZES[bits]
    header = {
        "magic": b"\x7fELF", "ei_class": bits // 32, "ei_data": 1 if endian == "<" else 2, "e_phoff": ehsize,
        "e_phentsize": phsize, "e_phnum": min(count, PN_XNUM), "e_shoff": (ehsize + count * phsize) * extended,
    }  # fmt: skip
    code, place = (endian + "II6Q", 4) if bits == 64 else (endian + "8I", 3)
    row = [PT_LOAD, *[0] * 7]
    table = bytearray()
    for at in range(count):
        row[place] = at << 8
        table += struct.pack(code, *row)
    last = pack(endian, SHDR[bits], {"sh_info": count}) if extended else b""
    return pack(endian, EHDR[bits], header) + table + last


@two_classes
@pytest.mark.parametrize("count", [0xFFFE, 0xFFFF, 0xFFFF + 5])
def test_more_headers_than_e_phnum_can_say(bits: int, endian: Endian, count: int) -> None:
    file = opened(many(count, bits, endian))
    assert file.header.e_phnum == min(count, PN_XNUM)
    assert (file.segments.paddr == np.arange(count) << 8).all()
    assert len(file.segments.loads) == count


@every_class
def test_the_count_of_the_section_holds_for_few_headers_too(bits: int, endian: Endian) -> None:
    file = opened(build(LOADS, [note("CORE", 1, b"")], bits=bits, byte_order=endian, xnum=True))
    assert file.header.e_phnum == PN_XNUM
    assert len(file.segments) == 3


@every_class
@pytest.mark.parametrize("shoff", [0, 1 << 31, -1])
def test_a_count_that_is_nowhere(bits: int, endian: Endian, shoff: int) -> None:
    data = build(LOADS, bits=bits, byte_order=endian, xnum=True, header={"e_shoff": shoff})
    with pytest.raises(CorruptDumpError, match="e_phnum is PN_XNUM") as caught:
        opened(data)
    # The offset that the message names is that of e_phnum.
    assert data[caught.value.offset : caught.value.offset + 2] == b"\xff\xff"


@every_class
@pytest.mark.parametrize("count", [3000, 0xFFFFFFFF])
def test_a_count_that_lies(bits: int, endian: Endian, count: int) -> None:
    data = build(LOADS, bits=bits, byte_order=endian, xnum=True, section0={"sh_info": count})
    tracemalloc.start()
    try:
        with pytest.raises(TruncatedDumpError, match="program headers") as caught:
            opened(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert caught.value.wanted == count * SIZES[bits][1]


@every_class
def test_every_truncation_is_a_typed_error(bits: int, endian: Endian) -> None:
    data = build(LOADS, [note("CORE", 1, b"status")], bits=bits, byte_order=endian)
    ehsize, phsize, _ = SIZES[bits]
    end = ehsize + 3 * phsize
    for length in range(end):
        with pytest.raises(TruncatedDumpError) as caught:
            opened(data[:length])
        assert caught.value.what == ("ELF header" if length < ehsize else "program headers")
    assert len(opened(data[:end]).segments) == 3


@every_class
def test_entries_too_small_to_be_headers(bits: int, endian: Endian) -> None:
    size = SIZES[bits][1]
    for wrong in (0, 1, size - 1):
        data = build(LOADS, bits=bits, byte_order=endian, header={"e_phentsize": wrong})
        with pytest.raises(CorruptDumpError, match=f"e_phentsize {wrong}: expected {size}") as caught:
            opened(data)
        at = caught.value.offset
        assert struct.unpack(endian + "H", data[at : at + 2]) == (wrong,)


@every_class
def test_no_headers_at_all(bits: int, endian: Endian) -> None:
    """Where there are none, neither their size nor their place matters."""
    data = build([], bits=bits, byte_order=endian, header={"e_phentsize": 0, "e_phoff": 1 << 30})
    assert rows(opened(data).segments) == []


@every_class
def test_headers_that_lie_far_away(bits: int, endian: Endian) -> None:
    for phoff in ((1 << bits) - 1, 1 << bits - 1, 5000):
        with pytest.raises(TruncatedDumpError, match="program headers") as caught:
            opened(build(LOADS, bits=bits, byte_order=endian, header={"e_phoff": phoff}))
        assert caught.value.offset == phoff


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (b"", TruncatedDumpError, "ELF header"),
        (b"\x7fEL", TruncatedDumpError, "ELF header"),
        (b"\x7fELF\2\1", TruncatedDumpError, "ELF header"),
        (b"KDUMP   " + bytes(100), CorruptDumpError, "begins with 4b 44 55 4d: expected 7f 45 4c 46"),
        (bytes(100), CorruptDumpError, "begins with 00 00 00 00"),
        (b"\x7fELF\0\1" + bytes(100), CorruptDumpError, "class 0, byte order 1"),
        (b"\x7fELF\3\1" + bytes(100), CorruptDumpError, "class 3"),
        (b"\x7fELF\2\0" + bytes(100), CorruptDumpError, "byte order 0"),
        (b"\x7fELF\2\3" + bytes(100), CorruptDumpError, "byte order 3"),
    ],
)
def test_what_is_no_elf_header(data: bytes, error: type[CorruptDumpError], words: str) -> None:
    with pytest.raises(error, match=words):
        elf_head(memoryview(data))
    with pytest.raises(error, match=words):
        opened(data)


def sections(
    names: list[bytes], bits: int, endian: Endian, *, strings: bytes | None = None, **header: int
) -> tuple[bytes, list[int]]:
    """A file with a section for each name, the table of names first; gives the offset of each name too."""
    table, at = b"\0", []
    for name in names:
        at.append(len(table))
        table += name + b"\0"
    table = table if strings is None else strings
    ehsize, _, shsize = SIZES[bits]
    rows = [{"sh_name": at[0], "sh_type": 3, "sh_offset": ehsize, "sh_size": len(table)}]
    rows += [
        {
            "sh_name": at[number],
            "sh_type": 1,
            "sh_offset": 16 * number,
            "sh_size": number,
            "sh_entsize": 8,
            "sh_info": 77,
        }
        for number in range(1, len(names))
    ]
    values = {
        "magic": b"\x7fELF", "ei_class": bits // 32, "ei_data": 1 if endian == "<" else 2,
        "e_shoff": ehsize + len(table), "e_shentsize": shsize, "e_shnum": len(names), "e_shstrndx": 0,
    }  # fmt: skip
    body = pack(endian, EHDR[bits], values, header) + table
    return body + b"".join(pack(endian, SHDR[bits], row) for row in rows), at


NAMES = [b".shstrtab", b".xen_pages", b".xen_p2m", b"", b"caf\xe9"]


@every_class
def test_sections(bits: int, endian: Endian) -> None:
    file = opened(sections(NAMES, bits, endian)[0])
    assert [section.name for section in file.sections] == [name.decode("latin-1") for name in NAMES]
    pages = file.section(".xen_pages")
    assert pages is not None
    assert (pages.type, pages.offset, pages.size, pages.entry_size, pages.info) == (1, 16, 1, 8, 77)
    assert file.section(".xen") is None


@every_class
@pytest.mark.parametrize(
    "lie",
    [
        {"e_shoff": 0},
        {"e_shoff": 1 << 31},
        {"e_shoff": -1},
        {"e_shnum": 6},
        {"e_shnum": 0xFFFF},
        {"e_shstrndx": 5},
        {"e_shentsize": 8},
        {"e_shentsize": 0},
        {"e_shentsize": 65},
    ],
)
def test_a_broken_section_table_is_none(bits: int, endian: Endian, lie: dict[str, int]) -> None:
    assert opened(sections(NAMES, bits, endian, **lie)[0]).sections == ()


@every_class
def test_names_that_are_not_there(bits: int, endian: Endian) -> None:
    data, at = sections(NAMES, bits, endian, strings=b"\0.shstr")
    assert [section.name for section in opened(data).sections][1:] == [""] * 4
    assert at[0] == 1
    file = opened(sections([b".shstrtab", b"x" * 5000], bits, endian)[0])
    assert file.sections[1].name == "x" * 255


@every_class
def test_strings_outside_the_file(bits: int, endian: Endian) -> None:
    data = bytearray(sections(NAMES, bits, endian)[0])
    shsize = SIZES[bits][2]
    at = len(data) - shsize * len(NAMES)
    for offset in (len(data), len(data) + 1, (1 << bits) - 1):
        data[at : at + shsize] = pack(endian, SHDR[bits], {"sh_name": 1, "sh_offset": offset, "sh_size": 1 << 30})
        assert [section.name for section in opened(bytes(data)).sections] == [""] * 5


@every_class
def test_more_sections_than_e_shnum_can_say(bits: int, endian: Endian) -> None:
    """Then sh_size and sh_link of section 0 have the numbers."""
    data = bytearray(sections(NAMES, bits, endian, e_shnum=0, e_shstrndx=0xFFFF)[0])
    shsize = SIZES[bits][2]
    at = len(data) - shsize * len(NAMES)
    strings = bytes(data[at : at + shsize])
    first = pack(endian, SHDR[bits], {"sh_size": 6, "sh_link": 5})
    file = opened(bytes(data[:at]) + first + bytes(data[at + shsize :]) + strings)
    assert [section.name for section in file.sections[1:5]] == [name.decode("latin-1") for name in NAMES[1:]]
    assert file.section(".shstrtab") == file.sections[5]


def test_hostile_names_take_no_quadratic_time() -> None:
    """A large table of strings without an end, and each of many sections names a place in it."""
    count = 20_000
    strings = b"n" * (1 << 20)
    header = {
        "magic": b"\x7fELF", "ei_class": 2, "ei_data": 1, "e_shoff": 64 + len(strings), "e_shentsize": 64,
        "e_shnum": count, "e_shstrndx": 0,
    }  # fmt: skip
    row = pack("<", SHDR[64], {"sh_name": 1, "sh_offset": 64, "sh_size": len(strings)})
    begun = time.process_time()
    file = opened(pack("<", EHDR[64], header) + strings + row * count)
    assert {section.name for section in file.sections} == {"n" * 255}
    assert time.process_time() - begun < 5


def test_only_headers_are_read() -> None:
    """A file that cannot be mapped is read as far as needed, be it ever so large."""

    class Counting(BytesSource):
        asked = 0

        def view(self, offset: int = 0, length: int | None = None) -> memoryview:
            found = super().view(offset, length)
            self.asked += len(found)
            return found

    source = Counting(build([Segment(paddr=0, data=bytes(1 << 20))], [note("CORE", 1, b"x")], style="qemu72"))
    assert read_elf(source).section(".shstrtab")
    assert source.asked < 1000


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 1 << 30), bits=st.sampled_from([64, 32]), endian=st.sampled_from("<>"))
def test_broken_headers_are_read_or_refused(seed: int, bits: int, endian: Endian) -> None:
    dice = random.Random(seed)
    data = bytearray(sections(NAMES, bits, endian)[0] if seed % 2 else build(LOADS, bits=bits, byte_order=endian))
    for _ in range(dice.randrange(1, 6)):
        data[dice.randrange(4, len(data))] = dice.choice([0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)])
    try:
        opened(bytes(data[: dice.choice([len(data), dice.randrange(len(data))])]))
    except CorruptDumpError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("number", "name"),
    [(62, "EM_X86_64"), (3, "EM_386"), (183, "EM_AARCH64"), (22, "EM_S390"), (60000, "machine 60000")],
)
def test_machines_have_names(number: int, name: str) -> None:
    assert machine_name(number) == name


def joined(*parts: Segments) -> Segments:
    return Segments(*(np.concatenate([getattr(part, name) for part in parts]) for name in Segments.__slots__))


def segments_of(count: int) -> Segments:
    at = np.arange(count, dtype=np.int64)
    made = Segments.make(at * 4096, np.full(count, 4096), filesz=np.full(count, 4096), offset=at * 8192 + 4096)
    made.filesz[1::2] = 0
    return made


def check_written(path: Path, data: bytes, segments: Segments) -> None:
    path.write_bytes(data)
    expected = [(kind, *rest) for kind, _, *rest in rows(segments)]
    unsigned = [tuple(value & (1 << 64) - 1 for value in row) for row in expected]
    found = elf_segments(path)
    if data[4] == 1:
        unsigned = [tuple(value & 0xFFFFFFFF for value in row) for row in unsigned]
    assert found == unsigned


MANY = [(64, "<", 0xFFFE), (64, "<", 0xFFFF), (32, ">", 0xFFFF), (64, "<", 0x10000)]


@pytest.mark.parametrize(("bits", "endian", "count"), [*((*each, n) for each in CLASSES for n in (0, 1, 5)), *MANY])
def test_what_we_write(tmp_path: Path, bits: Literal[32, 64], endian: Endian, count: int) -> None:
    segments = segments_of(count)
    data = program_headers(bits=bits, endian=endian, machine=22, segments=segments, flags=1)
    ehsize, phsize, shsize = SIZES[bits]
    extended = count >= PN_XNUM
    assert len(data) == ehsize + count * phsize + shsize * extended
    code = endian + ("16sHHIQQQIHHHHHH" if bits == 64 else "16sHHIIIIIHHHHHH")
    ident = b"\x7fELF" + bytes([bits // 32, 1 if endian == "<" else 2, 1]) + bytes(9)
    shoff = ehsize + count * phsize if extended else 0
    numbers = (4, 22, 1, 0, ehsize, shoff, 1, ehsize, phsize, min(count, 0xFFFF), shsize * extended, int(extended), 0)
    assert struct.unpack_from(code, data) == (ident, *numbers)
    check_written(tmp_path / "out", data, segments)
    assert rows(opened(data).segments) == rows(segments)
    if extended:
        section = struct.unpack_from(endian + ("IIQQQQIIQQ" if bits == 64 else "10I"), data, shoff)
        assert section == (0, 0, 0, 0, 0, 1, 0, count, 0, 0)


@every_class
def test_unknown_addresses_are_all_ones(tmp_path: Path, bits: Literal[32, 64], endian: Endian) -> None:
    segments = Segments.make(ints(-1, 0), ints(1, 1), filesz=ints(0, 1), offset=ints(0, 9), vaddr=ints(-1, -4096))
    data = program_headers(bits=bits, endian=endian, machine=62, segments=segments)
    check_written(tmp_path / "out", data, segments)
    assert opened(data).segments.paddr.tolist() == [-1, 0]
    assert opened(data).segments.vaddr[0] == -1


@pytest.mark.parametrize("field", ["offset", "paddr", "filesz", "memsz"])
def test_a_32_bit_file_refuses_what_does_not_fit(field: str) -> None:
    columns = {name: ints(0, 0) for name in ("offset", "paddr", "filesz", "memsz")}
    columns[field] = ints(5, 1 << 32)
    segments = Segments.make(**columns)
    with pytest.raises(UnsupportedFeatureError, match=f"p_{field} 0x100000000 does not fit a 32-bit"):
        program_headers(bits=32, endian="<", machine=3, segments=segments)
    columns[field] = ints(5, (1 << 32) - 1)
    assert program_headers(bits=32, endian="<", machine=3, segments=Segments.make(**columns))
    wide = program_headers(bits=64, endian="<", machine=3, segments=segments)
    assert getattr(opened(wide).segments, field).tolist()[1] == 1 << 32


def test_segments_are_picked_by_mask_or_index() -> None:
    segments = segments_of(4)
    assert segments.where(ints(3, 0)).paddr.tolist() == [3 * 4096, 0]
    assert segments.where(segments.filesz > 0).paddr.tolist() == [0, 2 * 4096]
    assert (segments.vaddr == segments.paddr).all()
    assert set(segments.flags.tolist()) == {7}


def readelf(path: Path, *options: str) -> str:
    if not shutil.which("readelf"):
        pytest.skip("readelf is not installed")
    done = subprocess.run(["readelf", *options, path], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    return done.stdout


def printed(text: str) -> Iterable[tuple[int, ...]]:
    """offset, vaddr, paddr, filesz, memsz of each line of readelf -W -l."""
    for line in text.splitlines():
        if match := re.match(r"\s+(LOAD|NOTE)((?:\s+0x[0-9a-f]+){5})", line):
            yield tuple(int(word, 16) for word in match[2].split())


@pytest.mark.parametrize(("bits", "endian", "count"), [*((*each, 3) for each in CLASSES), MANY[-1]])
def test_readelf_agrees(tmp_path: Path, bits: Literal[32, 64], endian: Endian, count: int) -> None:
    machine = {"<": 62 if bits == 64 else 3, ">": 22}[endian]
    note_row = Segments.make(ints(0), ints(0), filesz=ints(0), offset=ints(4096))
    note_row.type[:] = PT_NOTE
    segments = joined(note_row, segments_of(count))
    path = tmp_path / "out"
    path.write_bytes(
        program_headers(bits=bits, endian=endian, machine=machine, segments=segments).ljust(1 << 20, b"\0")
    )
    head = readelf(path, "-h", "-W")
    assert re.search(f"Class: +ELF{bits}", head)
    assert re.search(f"Data: .*{'little' if endian == '<' else 'big'} endian", head)
    assert re.search("Type: +CORE", head)
    assert re.search(rf"Number of program headers: +({count + 1}|65535 \({count + 1}\))\n", head)
    expected = [row[2:] for row in rows(segments)]
    assert list(printed(readelf(path, "-l", "-W"))) == expected


def test_a_real_core(shared: Path, unpacked: Callable[[Path], Path]) -> None:
    """Xen's: its pages are in sections; and QEMU's of a big-endian guest, whose section names are broken."""
    core = opened(unpacked(shared / "fixtures/xen/t1.core.xz").read_bytes())
    assert {section.name for section in core.sections} >= {".note.Xen", ".xen_prstatus", ".xen_pages", ".xen_p2m"}
    pages, p2m = core.section(".xen_pages"), core.section(".xen_p2m")
    assert pages is not None
    assert p2m is not None
    assert (pages.entry_size, p2m.entry_size) == (4096, 16)
    assert pages.size // 4096 == p2m.size // 16 == 909
    big = opened(unpacked(shared / "fixtures/tiny/s390x/elf.xz").read_bytes())
    assert (big.bits, big.endian, machine_name(big.header.e_machine)) == (64, ">", "EM_S390")
    assert int(big.segments.loads.filesz.sum()) >= 1 << 20
