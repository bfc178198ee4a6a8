"""Debug information: members, sizes and addresses by name; nothing of it may be believed."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from elftools.dwarf import enums
from hypothesis import given, settings
from hypothesis import strategies as st

from dumpxlate import errors
from dumpxlate.elf.debug_files import debug_file_of, find_debug_file, open_debug_info
from dumpxlate.elf.die_search import named
from dumpxlate.elf.dwarf import AlternateFile, Field, alternate_of, read_debug_info
from dumpxlate.elf.dwarf_numbers import AT, FORM, TAG
from dumpxlate.io.source import BytesSource, open_source
from tests.builders import dwarf
from tests.builders.dwarf import Die, base, member, pointer, structure

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dumpxlate.elf.dwarf import DebugInfo


STRUCTS = frozenset({0x13})


def read(sections: dict[str, bytes], **options: Any) -> DebugInfo:
    return read_debug_info(BytesSource(dwarf.elf_file(sections, **options), "program"))


def sample(form: str = "strp", ref: str = "ref4") -> list[Die]:
    """Types of a small program: nested, nameless, native and split 128-bit numbers, arrays, typedefs."""
    int_, wide, char = base("int", 4), base("__int128", 16), base("char", 1)
    range_ = structure("AddrRange", 32, member("start", 0, wide, ref=ref), member("size", 16, wide, ref=ref), form=form)
    text = Die("array", [("type", "ref4", char)], [Die("subrange", [("upper_bound", "data2", 255)])])
    inner = structure(None, 8, member("left", 0, int_), member("right", 4, int_))
    either = structure(None, 8, member("whole", 0, pointer_ := pointer(int_)), member(None, 0, inner), tag="union")
    flat = structure(
        "FlatRange",
        320,
        member("mr", 0, pointer_, ref=ref, form=form),
        member("addr", 16, Die("typedef", [("name", "strp", "Alias"), ("type", "ref4", range_)]), ref=ref),
        member("idstr", 48, text),
        member(None, 304, either),
        form=form,
    )
    declared = Die("structure", [("name", "strp", "FlatRange"), ("declaration", "flag", 1)])
    alias = flat.children[1].values[1][2]
    return [int_, wide, char, declared, range_, text, inner, pointer_, either, alias, flat]


@pytest.mark.parametrize("version", [2, 3, 4, 5])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("form", "ref"), [("strp", "ref4"), ("string", "ref4"), ("strp", "ref_addr")])
def test_members_are_found(version: int, order: str, form: str, ref: str) -> None:
    decoy = [base("char", 1), Die("variable", [("name", "strp", "FlatRange"), ("declaration", "flag", 1)])]
    sections = dwarf.build([decoy, sample(form, ref)], version=version, order=order)
    info = read(sections, order=order)
    assert info.field("FlatRange.mr") == Field(0, 8, "pointer")
    assert info.field("FlatRange.addr") == Field(16, 32, "struct")
    assert info.field("FlatRange.addr.size") == Field(32, 16, "base")
    assert info.field("FlatRange.idstr") == Field(48, 256, "array", element=1)
    assert info.field("FlatRange.whole") == Field(304, 8, "pointer")
    assert info.field("FlatRange.right") == Field(308, 4, "base")
    assert info.field("Alias.start") == Field(0, 16, "base")
    assert info.size("FlatRange") == 320
    assert info.size("int") == 4
    assert info.field("FlatRange.nothing") is None
    assert info.field("FlatRange.mr.more") is None
    assert info.field("Nothing.mr") is None
    assert info.size("Nothing") is None


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("form", "first"), [("strx1", 3), ("strx2", 300), ("strx3", 70_000), ("strx4", 70_000)])
def test_strings_with_numbers(order: str, form: str, first: int) -> None:
    """As clang writes them; another unit has another number for the same string."""
    decoy = [base("char", 1), Die("variable", [("name", "strp", "FlatRange"), ("declaration", "flag", 1)])]
    location = ("location", "exprloc", b"\xa1\x01")
    decoy += [Die("function", [], [Die("variable", [("name", "strp", "state"), location])])]
    sections = dwarf.build(
        [decoy, sample()], version=5, order=order, numbered=form, first_number=first, addresses=[0x10, 0x7000]
    )
    info = read(sections, order=order)
    assert info.field("FlatRange.addr.size") == Field(32, 16, "base")
    assert info.field("FlatRange.right") == Field(308, 4, "base")
    assert info.field("Alias.start") == Field(0, 16, "base")
    assert info.size("int") == 4
    assert info.size("Nothing") is None
    assert info.address("state") == 0x7000
    for lost in (".debug_str_offsets", ".debug_addr"):
        less = read({name: body for name, body in sections.items() if name != lost}, order=order)
        assert None in (less.address("state"), less.size("FlatRange"))


@pytest.mark.parametrize("numbered", ["", "strx1"])
def test_the_unit_to_begin_with(numbered: str) -> None:
    """Units may define a name differently; the first counts, unless another is told to be looked at before."""
    here = Die("variable", [("name", "strp", "here"), ("location", "exprloc", b"\x03" + bytes(8))])
    units = [[int_ := base("int", 4), structure("Flat", 4, member("a", 0, int_))]]
    units += [[wide := base("long", 8), structure("Flat", 16, member("a", 8, wide)), here]]
    sections = dwarf.build(units, version=5, numbered=numbered)
    assert read(sections).field("Flat.a") == Field(0, 4, "base")
    info = read(sections)
    info.begin_beside("nowhere")
    info.begin_beside("here")
    assert info.field("Flat.a") == Field(8, 8, "base")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("address", "wide"), [(8, False), (8, True), (4, False)])
def test_the_unit_of_a_function(order: str, address: int, wide: bool) -> None:
    """Units may define a name differently; that of a function is found by its address, without a look at others."""
    units = [[base("int", 4), structure("Flat", 4 * number, member("a", 0, base("int", 4)))] for number in (1, 2, 3)]
    for each in units:
        each[1].children[0].values[1] = ("type", "ref4", each[0])
    sections = dwarf.build(units, version=5, order=order, address=address)
    starts = [0]
    for _ in range(2):
        starts.append(starts[-1] + 4 + struct.unpack_from(order + "I", sections[".debug_info"], starts[-1])[0])
    code = [[(0x1000, 0x100)], [(0x2000, 0x80), (0x5000, 0x10)], [(0x3000, 0x100)]]
    table = dwarf.address_ranges(list(zip(starts, code, strict=True)), order=order, address=address, wide=wide)
    places = {"other": 0x1010, "second": 0x500F, "third": 0x3000, "nowhere": 0x5010}

    def flat(table: bytes, *names: str) -> int | None:
        given = sections | {".debug_aranges": table}
        info = read(given, order=order, symbols=places, bits=8 * address)
        info.begin_beside(*names)
        return info.size("Flat")

    assert flat(table, "second") == 8
    assert flat(table, "absent", "third") == 12
    for broken in (b"", table[:-3], table[: len(table) // 2 + 1], table.replace(b"\x02", b"\xff"), bytes(64)):
        assert flat(broken, "nowhere", "third") in (4, 12)
    assert flat(table, "nowhere") == 4
    for nowhere in (1 << 24, starts[2] + 5, starts[2] - 1):
        lost = dwarf.address_ranges([(nowhere, [(0x3000, 0x100)])], order=order, address=address, wide=wide)
        assert flat(lost, "third") == 4


class Counting(BytesSource):
    """A source that knows how much was read of it."""

    count = 0

    def read(self, offset: int, length: int) -> bytes:
        self.count += length
        return super().read(offset, length)


def test_entries_are_read_when_they_are_looked_at() -> None:
    here = Die("variable", [("name", "strp", "here"), ("location", "exprloc", b"\x03" + bytes(8))])
    other = [structure(f"Other{number}", 4, member("x", 0, base("int", 4))) for number in range(2000)]
    sections = dwarf.build([other, [int_ := base("int", 4), structure("Flat", 4, member("a", 0, int_)), here]])
    table = dwarf.address_ranges([(4 + struct.unpack_from("<I", sections[".debug_info"])[0], [(0x1000, 0x10)])])
    given = dwarf.elf_file(sections | {".debug_aranges": table}, symbols={"here": 0x1000})
    source = Counting(given)
    info = read_debug_info(source)
    info.begin_beside("here")
    assert info.field("Flat.a") == Field(0, 4, "base")
    before, size = source.count, len(sections[".debug_info"])
    assert before < len(given) - size // 2
    assert info.size("Other7") == 4
    assert source.count > before + size // 2
    all_read = source.count
    assert info.size("Other8") == 4
    assert source.count == all_read


def test_a_section_larger_than_any(tmp_path: Path) -> None:
    sections = dwarf.build([sample()])
    body = bytearray(dwarf.elf_file(sections))
    header = struct.unpack_from("<Q", body, 40)[0] + 64 * (1 + list(sections).index(".debug_info"))
    struct.pack_into("<Q", body, header + 32, 5 << 30)
    path = tmp_path / "program"
    path.write_bytes(body)
    os.truncate(path, 6 << 30)
    with pytest.raises(errors.CorruptDumpError, match="more than can be"):
        open_debug_info(path)


def test_a_file_that_becomes_shorter(tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(dwarf.elf_file(dwarf.build([sample()])))
    with open_debug_info(path) as info:
        os.truncate(path, 64)
        with pytest.raises(errors.TruncatedDumpError):
            info.size("FlatRange")


def test_only_units_that_are_met_are_read() -> None:
    """A unit of an unknown version among others: it is no reason to refuse what stands in those."""
    sections = dwarf.build([sample(), sample(), sample()], version=5)
    body = bytearray(sections[".debug_info"])
    first = 4 + struct.unpack_from("<I", body)[0]
    struct.pack_into("<H", body, first + 4, 6)
    info = read(sections | {".debug_info": bytes(body)})
    assert info.size("FlatRange") == 320
    with pytest.raises(errors.CorruptDumpError, match="unit of version 6"):
        list(info.dies.units)


def test_a_list_of_entries_that_ends_early() -> None:
    """What stands behind the end of a unit's list looks like an entry, and is none."""
    sections = dwarf.build([[base("char", 1)], sample()], version=4)
    body = bytearray(sections[".debug_info"])
    start = 4 + struct.unpack_from("<I", body)[0]
    info = read(sections)
    entry = next(iter(named(info.dies, "FlatRange", STRUCTS)))
    assert entry.at > start
    at = info.dies.units.around(start).first  # type: ignore[union-attr]
    body[info.dies.die(at).after] = 0
    assert read(sections | {".debug_info": bytes(body)}).size("FlatRange") is None


@pytest.mark.parametrize(
    ("ours", "theirs", "prefix"),
    [(AT, enums.ENUM_DW_AT, "DW_AT_"), (FORM, enums.ENUM_DW_FORM, "DW_FORM_"), (TAG, enums.ENUM_DW_TAG, "DW_TAG_")],
)
def test_numbers_are_those_of_pyelftools(ours: dict[str, int], theirs: dict[str, int], prefix: str) -> None:
    assert ours == {name: theirs[prefix + name] for name in ours}
    if prefix == "DW_FORM_":
        assert {str(name).removeprefix(prefix) for name in theirs} - {"_default_", "null"} == ours.keys()


def test_every_number_a_name() -> None:
    sections = dwarf.build([sample()], version=5, numbered="strx2")
    at = sections[".debug_str"].index(b"FlatRange")
    table = struct.pack("<I", at) * 60_000
    sections[".debug_str_offsets"] = struct.pack("<IHH", 4 + len(table), 5, 0) + table
    info = read(sections)
    with pytest.raises(errors.CorruptDumpError, match="too many units number 'FlatRange'"):
        info.size("FlatRange")


def test_abbreviations_that_are_nowhere() -> None:
    sections = dwarf.build([sample()], version=5)
    head = struct.unpack_from("<IHBBI", sections[".debug_info"])
    for at in (len(sections[".debug_abbrev"]), 1 << 63):  # in 64-bit DWARF
        wide = struct.pack("<IQHBBQ", 0xFFFFFFFF, head[0] + 4, *head[1:4], at) + sections[".debug_info"][12:]
        with pytest.raises(errors.CorruptDumpError, match="entry leaves its section"):
            read(sections | {".debug_info": wide}).dies.die(24)


def test_attributes_that_take_no_room() -> None:
    many = Die("variable", [("name", "strp", "x"), *[("declaration", "flag_present", 1)] * 300])
    with pytest.raises(errors.CorruptDumpError, match="more than 256 attributes"):
        read(dwarf.build([[many]])).address("x")


@pytest.mark.parametrize(("version", "numbered"), [(4, ""), (5, ""), (5, "strx1")])
def test_types_in_units_of_their_own(version: int, numbered: str) -> None:
    """As gcc -fdebug-types-section writes them; a type may have no name, or the name of another unit's."""
    nameless = structure(None, 8, member("left", 0, int_ := base("int", 4)), member("right", 4, int_))
    declared = Die("structure", [("declaration", "flag", 1), ("signature", "ref_sig8", 0x1122334455667788)])
    holder = structure("Holder", 400, member("flat", 16, declared), member("lost", 0, declared_too := base("int", 4)))
    holder.children[1].values[1] = ("type", "ref_sig8", 0xDEAD)
    direct = structure("Direct", 8, member("inner", 4, declared_too))
    direct.children[0].values[1] = ("type", "ref_sig8", 0x99)
    types = {0x1122334455667788: sample(), 0x99: [int_, nameless]}
    info = read(
        dwarf.build([[declared, declared_too, holder, direct]], version=version, types=types, numbered=numbered)
    )
    assert info.field("Holder.flat.addr.size") == Field(48, 16, "base")
    assert info.field("FlatRange.addr.size") == Field(32, 16, "base")
    assert info.field("Direct.inner.right") == Field(8, 4, "base")
    assert info.field("Holder.lost") is None


PROGRAM = """
struct Region { char ram; struct Region *alias; };
struct Address { __int128 start, size; };
typedef struct Flat {
    struct Region *mr; struct Address addr; union { int left; struct { short a, b; }; }; char id[256];
} Range;
struct Holder { int x; Range *range; struct { long a; int has; } v; };
Range ranges[3];
struct Holder *holder(void) { static volatile struct Holder inner; inner.x++; return (struct Holder *) &inner; }
int main(void) { return holder()->x; }
"""


@pytest.mark.peer
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("switches", ["-gdwarf-2", "-gdwarf-4", "-gdwarf-5", "-gdwarf-5 -gdwarf64", "-gdwarf-5 -gz"])
@pytest.mark.parametrize("types", ["", "-fdebug-types-section"])
def test_what_compilers_write(tmp_path: Path, compiler: str, switches: str, types: str) -> None:
    program = next(filter(None, map(shutil.which, (compiler, f"{compiler}-14"))), None)
    if not program:
        pytest.skip(f"{compiler} is not installed")
    (tmp_path / "a.c").write_text(PROGRAM)
    command = [program, "-g", *switches.split(), *types.split(), "-O1", "a.c", "-o", "program"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    listed = subprocess.run(["nm", "program"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    # A variable in a function is inner.0 (gcc) or holder.inner (clang).
    addresses = {re.sub(r"\.\d+$|^holder\.", "", row.split()[-1]): row.split()[0] for row in listed.splitlines()}
    with open_debug_info(tmp_path / "program") as info:
        info.begin_beside("holder")  # by its address, where there is a table of them: clang writes none
        near, info._symbols, info._near = info._near, None, ()
        info.begin_beside("ranges")
        assert info._near == near != ()
        assert info.field("Range.addr.size") == info.field("Flat.addr.size") == Field(32, 16, "base")
        assert info.field("Flat.b") == Field(50, 2, "base")
        assert info.field("Flat.id") == Field(52, 256, "array", element=1)
        assert info.field("Holder.v.has") == Field(24, 4, "base")
        assert info.size("Address") == 32
        assert info.address("ranges") == int(addresses["ranges"], 16)
        assert info.address("inner") == int(addresses["inner"], 16)


@pytest.mark.peer
@pytest.mark.parametrize("switches", ["-gdwarf-4", "-gdwarf-5"])
def test_what_gcc_splits_off(tmp_path: Path, switches: str) -> None:
    if not shutil.which("gcc"):
        pytest.skip("gcc is not installed")
    (tmp_path / "a.c").write_text(PROGRAM)
    for more, wanted in (([], None), (["-gsplit-dwarf"], "program-a.dwo")):
        command = ["gcc", "-g", switches, *more, "a.c", "-o", "program"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        with open_debug_info(tmp_path / "program") as info:
            assert info.split_off() == wanted
            assert (info.size("Flat") is None) == (wanted is not None)


def test_codes_of_two_bytes_do_not_confuse() -> None:
    """The second byte of a long code may be the code of another abbreviation, whose name would stand there too."""
    for first in range(120, 140):
        info = read(dwarf.build([sample()], first_code=first))
        assert info.field("FlatRange.addr.start") == Field(16, 16, "base"), first
    many = [structure(f"Other{number}", 4, member("x", 0, base("int", 4))) for number in range(3)]
    # Each has an abbreviation of its own: codes 1 to 200.
    many += [Die("typedef", [("name", "strp", "FlatRange"), *[("byte_size", "data1", 0)] * n]) for n in range(200)]
    info = read(dwarf.build([many + sample()]))
    assert info.field("FlatRange.addr.start") == Field(16, 16, "base")


def test_offset_of_a_name_may_be_any_number() -> None:
    strings = dwarf.Strings()
    at = strings.add("FlatRange")
    # What looks like an entry: the code of an abbreviation, then a name.
    noise = [Die("base", [("byte_size", "data1", code), ("upper_bound", "data4", at)]) for code in range(1, 60)]
    assert read(dwarf.build([noise, sample()], strings=strings)).size("FlatRange") == 320


def test_what_looks_like_an_entry_need_not_decode() -> None:
    """The offset of a name behind the code of an abbreviation, whose other values would leave the unit."""
    strings = dwarf.Strings()
    at = strings.add("FlatRange")
    shape = structure("Other", 8)
    noise = Die("base", [("byte_size", "data1", 0), ("upper_bound", "data4", at)])
    for code in range(1, 12):
        noise.values[0] = ("byte_size", "data1", code)
        assert read(dwarf.build([[shape, noise], sample()], strings=strings)).size("FlatRange") == 320, code


@pytest.mark.parametrize("location", [b"\x03" + bytes(7), b"\x03" + bytes(9), b"\x91\x00", b"\x0e" + bytes(8)])
def test_variables_without_one_address(location: bytes) -> None:
    here = Die("variable", [("name", "strp", "here"), ("location", "exprloc", location)])
    assert read(dwarf.build([[here]])).address("here") is None


@pytest.mark.parametrize("expression", [b"\x23", b"\x23\xff", b"\x23" + b"\xff" * 12])
def test_operations_without_their_number(expression: bytes) -> None:
    found = structure("Old", 300, member("far", expression, base("int", 4)))
    with pytest.raises(errors.CorruptDumpError, match="without its number"):
        read(dwarf.build([[found.children[0].values[1][2], found]], version=2)).field("Old.far")


def test_strings_may_end_others() -> None:
    strings = dwarf.Strings()
    strings.add("OldFlatRange")
    other = structure("OldFlatRange", 7, member("mr", 3, base("int", 4)))
    info = read(dwarf.build([[other, *sample()]], strings=strings))
    assert info.size("FlatRange") == 320
    assert info.size("OldFlatRange") == 7


def test_location_as_an_expression() -> None:
    found = structure("Old", 300, member("far", b"\x23\xac\x02", base("int", 4)))
    info = read(dwarf.build([[found.children[0].values[1][2], found]], version=2))
    assert info.field("Old.far") == Field(300, 4, "base")
    odd = structure("Odd", 8, member("far", b"\x06", base("int", 4)))
    info = read(dwarf.build([[odd.children[0].values[1][2], odd]], version=2))
    with pytest.raises(errors.CorruptDumpError, match="without a fixed place"):
        info.field("Odd.far")


def test_definition_in_another_unit_completes_a_declaration() -> None:
    declared = Die("structure", [("name", "strp", "FlatRange"), ("declaration", "flag_present", 1)])
    holder = structure("Holder", 330, member("inner", 10, declared))
    info = read(dwarf.build([[declared, holder], sample()]))
    assert info.field("Holder.inner.addr.start") == Field(26, 16, "base")


def test_addresses() -> None:
    static = Die("variable", [("name", "strp", "state"), ("location", "exprloc", b"\x03" + struct.pack("<Q", 0x7000))])
    function = Die("function", [("name", "strp", "realize")], [base("int", 4), static])
    sections = dwarf.build([[function]], version=5)
    info = read(sections, symbols={"cpus": 0x5000, "state.0": 0x6000}, entry=0x1230, build_id=b"\xab" * 20)
    assert (info.entry, info.build_id) == (0x1230, "ab" * 20)
    assert info.address("cpus") == 0x5000
    assert info.address("state") == 0x7000
    assert info.address("nothing") is None
    assert read(sections).address("state") == 0x7000


def test_32_bit_files() -> None:
    holder = structure("Holder", 8, member("at", 4, kind := pointer(size=4)))
    sections = dwarf.build([[kind, holder]], address=4)
    info = read(sections, bits=32, symbols={"cpus": 0x5000})
    assert info.field("Holder.at") == Field(4, 4, "pointer")
    assert info.address("cpus") == 0x5000


@pytest.mark.parametrize("bits", [64, 32])
@pytest.mark.parametrize("way", ["compress", "compress_gnu"])
def test_compressed_sections(bits: int, way: str, tmp_path: Path) -> None:
    sections = dwarf.build([sample()])
    assert read(sections, bits=bits, **{way: True}).size("FlatRange") == 320
    (tmp_path / "program").write_bytes(dwarf.elf_file(sections, bits=bits, **{way: True}))
    assert debug_file_of(tmp_path / "program") == tmp_path / "program"


def test_sections_packed_in_another_old_way() -> None:
    packed = dwarf.elf_file(dwarf.build([sample()]), compress_gnu=True)
    with pytest.raises(errors.UnsupportedFeatureError, match="algorithm"):
        read_debug_info(BytesSource(packed.replace(b"ZLIB", b"LZMA")))


def test_sections_that_do_not_unpack() -> None:
    sections = dwarf.build([sample()])
    whole = dwarf.elf_file(sections, compress=True)
    body = bytearray(whole)
    at = whole.index(b"\x78\x9c")
    body[at + 2 : at + 12] = b"\xff" * 10
    with pytest.raises(errors.CorruptDumpError, match="unpack"):
        read_debug_info(BytesSource(bytes(body)))
    for algorithm, size, kind in (
        (9, 10, errors.UnsupportedFeatureError),
        (1, 1 << 60, errors.CorruptDumpError),
        (1, 5, errors.CorruptDumpError),
        (2, 5, errors.CorruptDumpError),
    ):
        body = bytearray(whole)
        body[64 : 64 + 24] = struct.pack("<IIQQ", algorithm, 0, size, 1)
        if size == 5 and algorithm == 1:
            body[64 + 8 : 64 + 16] = struct.pack("<Q", 1 << 20)
        with pytest.raises(kind):
            read_debug_info(BytesSource(bytes(body)))


def test_shared_entries_of_dwz(tmp_path: Path) -> None:
    shared_strings = dwarf.Strings()
    shared = dwarf.build([sample()], strings=shared_strings)
    kind = base("int", 4)
    own = structure("Own", 4, member("x", 0, kind))
    own.values[0] = ("name", "strp_alt", "Own")
    sections = dwarf.build([[kind, own]], shared=shared_strings)
    (tmp_path / "shared.debug").write_bytes(
        dwarf.elf_file(shared | {".debug_str": shared_strings.body}, build_id=b"\x01" * 20)
    )
    sections[".gnu_debugaltlink"] = b"shared.debug\0" + b"\x01" * 20
    path = tmp_path / "program.debug"
    path.write_bytes(dwarf.elf_file(sections))
    with open_debug_info(path, tmp_path / "none") as info:
        assert info.size("Own") == 4
        assert info.field("FlatRange.addr.start") == Field(16, 16, "base")
    # Another build of the shared file is not taken.
    sections[".gnu_debugaltlink"] = b"shared.debug\0" + b"\x02" * 20
    path.write_bytes(dwarf.elf_file(sections))
    with open_debug_info(path, tmp_path / "none") as info:
        assert info.size("FlatRange") is None
    with open_source(path) as source:
        assert alternate_of(source) == AlternateFile("shared.debug", "02" * 20)


def test_where_debug_information_is_looked_for(tmp_path: Path) -> None:
    sections = dwarf.build([sample()])
    root = tmp_path / "root"
    installed = root / ".build-id" / "ab" / f"{'cd' * 19}.debug"
    installed.parent.mkdir(parents=True)
    installed.write_bytes(dwarf.elf_file(sections))
    program = tmp_path / "program"
    program.write_bytes(dwarf.elf_file({".text": b"x"}, build_id=b"\xab" + b"\xcd" * 19))
    assert debug_file_of(program, root) == installed
    assert find_debug_file("ab" + "cd" * 19, root) == installed
    assert find_debug_file("../../etc/passwd", root) is None
    with pytest.raises(errors.UnknownFormatError, match="no debug information"):
        debug_file_of(program, tmp_path / "none")
    program.write_bytes(dwarf.elf_file({".text": b"x", ".gnu_debuglink": b"beside.debug\0\0\0\0"}))
    (tmp_path / "beside.debug").write_bytes(installed.read_bytes())
    assert debug_file_of(program, tmp_path / "none") == tmp_path / "beside.debug"
    whole = tmp_path / "whole"
    whole.write_bytes(dwarf.elf_file(sections))
    assert debug_file_of(whole, root) == whole


class TestHostileFiles:
    def test_no_debug_information(self) -> None:
        with pytest.raises(errors.UnknownFormatError, match="no debug information"):
            read({".text": b"x"})

    def test_types_in_a_circle(self) -> None:
        first = Die("typedef", [("name", "strp", "Circle")])
        second = Die("typedef", [("name", "strp", "Other"), ("type", "ref4", first)])
        first.values.append(("type", "ref4", second))
        with pytest.raises(errors.CorruptDumpError, match="defined by itself"):
            read(dwarf.build([[first, second]])).size("Circle")

    def test_structure_inside_itself(self) -> None:
        found = structure("Self", 8)
        found.children.append(member(None, 0, found))
        with pytest.raises(errors.CorruptDumpError, match="do not end"):
            read(dwarf.build([[found]])).field("Self.x")

    def test_units_that_do_not_fit(self) -> None:
        sections = dwarf.build([sample()])
        for head in (struct.pack("<IH", 0x7FFFFFF0, 4), struct.pack("<IH", 0, 4), struct.pack("<IH", 40, 9)):
            broken = sections | {".debug_info": head + sections[".debug_info"][6:]}
            with pytest.raises(errors.CorruptDumpError):
                list(read(broken).dies.units)

    @given(st.data())
    @settings(max_examples=150, deadline=None)
    def test_any_damage_ends_in_a_typed_error(self, data: st.DataObject) -> None:
        sections = dwarf.build([sample(), sample()], version=data.draw(st.sampled_from([2, 4, 5])))
        name = data.draw(st.sampled_from(sorted(sections)))
        body = bytearray(sections[name])
        for _ in range(data.draw(st.integers(1, 4))):
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
        sections[name] = bytes(body[: data.draw(st.integers(0, len(body))) or None])
        try:
            info = read(sections)
            for path in ("FlatRange.addr.start", "FlatRange.right", "FlatRange.idstr", "Alias.start"):
                info.field(path)
            info.address("FlatRange")
        except errors.FormatError:
            pass


def test_real_debug_file(shared: Path, unpacked: Callable[[Path], Path]) -> None:
    """QEMU 7.2, built by gcc: the numbers are those that gdb gives (formats/qemu.md)."""
    packed = shared / "fixtures" / "qemu-core" / "qemu-system-x86_64.debug.xz"
    if not packed.exists():
        pytest.skip("no debug file among the fixtures")
    with open_debug_info(unpacked(packed)) as info:
        _is_qemu_7_2(info)


def _is_qemu_7_2(info: DebugInfo) -> None:
    sizes = {name: info.size(name) for name in ("AddressSpace", "FlatView", "FlatRange", "MemoryRegion", "RAMBlock")}
    assert sizes == {"AddressSpace": 88, "FlatView": 56, "FlatRange": 64, "MemoryRegion": 272, "RAMBlock": 416}
    wanted = {
        "AddressSpace.current_map": 32, "FlatView.ranges": 24, "FlatView.nr": 32, "FlatRange.mr": 0,
        "FlatRange.addr.start": 16, "FlatRange.addr.size": 32, "MemoryRegion.ram": 41, "MemoryRegion.nonvolatile": 44,
        "MemoryRegion.ram_block": 56, "MemoryRegion.ram_device": 153, "MemoryRegion.alias": 160,
        "MemoryRegion.alias_offset": 168, "RAMBlock.host": 24, "RAMBlock.used_length": 48, "RAMBlock.idstr": 76,
        "RAMBlock.next.le_next": 336, "RAMList.blocks.lh_first": 56,
    }  # fmt: skip
    assert {path: found.offset for path in wanted if (found := info.field(path))} == wanted
