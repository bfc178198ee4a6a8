"""compare: the same guest in any two formats is the same, and the smallest change is found where it was made."""

from __future__ import annotations

import json
import os
import zlib
from typing import TYPE_CHECKING, Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dumpxlate
from dumpxlate.errors import MapError
from dumpxlate.io.source import BytesSource, PreadFile
from dumpxlate.registry import open_from
from dumpxlate.verify.compare import Comparison, Outcome, PageDifference, compare
from tests.builders import avml, elf, flattened, kdump, lime, raw, xen_core, xendump
from tests.builders.elf_notes import cpu_notes, vmcoreinfo
from tests.builders.guest import Guest, named_block, page, small_guest, stored_runs
from tests.conftest import ROOT

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from dumpxlate.dump import Dump

    Cli = Callable[..., subprocess.CompletedProcess[str]]

GUEST = small_guest(high=False)
SIZE = GUEST.page_size
CODECS = ["zlib", "lzo", "snappy", "zstd", "raw"]


def elf_of(guest: Guest, **options: Any) -> bytes:
    """A vmcore with the guest's own notes; pages that were left out are in no segment."""
    loads = [
        elf.Segment(paddr=first * guest.page_size, data=guest.run(first, count)) for first, count in stored_runs(guest)
    ]
    return elf.build(loads, [*cpu_notes(guest), vmcoreinfo(guest.vmcoreinfo)], **options)


FORMATS: dict[str, Callable[[Guest], bytes]] = {
    "elf": elf_of,
    "kdump": kdump.build,
    "kdump-mixed": lambda guest: kdump.build(guest, codec=CODECS, reverse=True, shared_zero=False),
    "flattened": lambda guest: flattened.wrap(kdump.build(guest)),
    "lime": lime.build,
    "avml": avml.build,
    "raw": raw.build,
}


def opened(data: bytes, name: str = "dump", *, packed: bool = True) -> Dump:
    """A dump in a file, from which pages are read one behind the other, or in memory, where they keep their place."""
    if not packed:
        return open_from([BytesSource(data, name)])
    fd = os.memfd_create(name)
    os.write(fd, data)
    return open_from([PreadFile(fd, name, len(data))])


def compared(a: bytes, b: bytes, *, packed: bool = True, **options: Any) -> Comparison:
    with opened(a, "a", packed=packed) as left, opened(b, "b", packed=packed) as right:
        return compare(left, right, **({"threads": 0} | options))


def counts(**pages: int) -> dict[str, int]:
    return {outcome.name.lower(): pages.get(outcome.name.lower(), 0) for outcome in Outcome}


def but(pages: Mapping[int, bytes], pfn: int, at: int, value: int | None = None) -> dict[int, bytes]:
    """The same pages with one byte changed."""
    changed = bytearray(pages[pfn])
    changed[at] = changed[at] ^ 1 if value is None else value
    return {**pages, pfn: bytes(changed)}


def show(found: PageDifference) -> tuple[str, int, int, int]:
    return found.outcome.name.lower(), found.pfn, found.address, found.byte


# The same guest in two formats.


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("b", FORMATS)
@pytest.mark.parametrize("a", ["elf", "kdump-mixed"])
def test_one_guest_in_two_formats(a: str, b: str, threads: int) -> None:
    found = compared(FORMATS[a](GUEST), FORMATS[b](GUEST), threads=threads)
    stored = set(GUEST.stored)
    # A raw image has zeros where the others have a hole, or a page that was left out.
    filled = set(range(max(stored) + 1)) - stored if b == "raw" else set()
    # Only kdump tells pages that were left out from holes.
    neither = GUEST.excluded - filled if "kdump" in a + b or b == "flattened" else ()
    assert found.pages == counts(equal=len(stored), absent_zero=len(filled), neither=len(neither))
    assert found.first == ()
    assert found.same


def test_registers_and_text_are_compared() -> None:
    found = compared(elf_of(GUEST), kdump.build(GUEST)).facts
    assert (found.cpus, found.compared, found.registers) == ("both", 2, 54)
    assert (found.vmcoreinfo, found.same_text) == ("both", True)
    bare = compared(elf_of(GUEST), lime.build(GUEST)).facts
    assert (bare.cpus, bare.compared, bare.registers, bare.vmcoreinfo) == ("only_a", 0, 0, "only_a")


def test_paravirtual_guest_through_its_map(cli: Cli, tmp_path: Path) -> None:
    """By machine frames, by the guest's, and never one against the other."""
    guest = small_guest(excluded=())
    (tmp_path / "old").write_bytes(xendump.build(guest))
    (tmp_path / "shuffled").write_bytes(xendump.build(guest, order="pfn"))
    (tmp_path / "new").write_bytes(xen_core.build(guest))
    (tmp_path / "lime").write_bytes(lime.build(guest))
    entries = np.full(guest.end_pfn, 0xFFFFFFFFFFFFFFFF, "<u8")
    entries[list(guest.mfns)] = list(guest.mfns.values())
    (tmp_path / "map").write_bytes(entries.tobytes())
    assert cli("compare", "old", "shuffled").returncode == 0
    assert cli("compare", "old", "lime", "--p2m", "map").returncode == 0
    assert cli("compare", "lime", "old", "--p2m-b", "map").returncode == 0
    done = cli("compare", "old", "new", "--p2m", "map", "--json")
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["pages"]["equal"] == len(guest.pages)
    done = cli("compare", "lime", "old")
    assert (done.returncode, done.stdout) == (2, "")
    assert "keyed by machine frames" in done.stderr
    assert "--p2m-b" in done.stderr


def test_spaces_are_not_mixed() -> None:
    with pytest.raises(MapError, match=r"^a: .* and b by the guest's own"):
        compared(xendump.build(GUEST), elf_of(GUEST))


# Pages that differ.


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("at", [0, 7, 8, 2049, 4095])
@pytest.mark.parametrize("pfn", [0, 9, 0x9F, 0x100, 0x10A])
def test_a_flipped_byte(pfn: int, at: int, threads: int, packed: bool) -> None:
    """Raw against raw, raw against compressed, compressed against compressed."""
    other = GUEST.but(pages=but(GUEST.pages, pfn, at))
    for a, b in (("elf", "elf"), ("elf", "kdump-mixed"), ("kdump-mixed", "kdump-mixed"), ("kdump", "lime")):
        found = compared(FORMATS[a](GUEST), FORMATS[b](other), threads=threads, packed=packed)
        assert not found.same
        assert (found.pages["equal"], found.pages["different"]) == (len(GUEST.pages) - 1, 1)
        assert [show(each) for each in found.first] == [("different", pfn, pfn * SIZE, at)]


@pytest.mark.parametrize("at", [0, 63, 4095])
def test_a_page_that_is_zero_in_one(at: int) -> None:
    """Zero without bytes in kdump, in bytes in ELF."""
    pfn = GUEST.zeros[3]
    other = GUEST.but(pages=but(GUEST.pages, pfn, at))
    for a, b in (
        (kdump.build(GUEST), elf_of(other)),
        (elf_of(other), kdump.build(GUEST)),
        (elf_of(GUEST), elf_of(other)),
    ):
        found = compared(a, b)
        assert [show(each) for each in found.first] == [("different", pfn, pfn * SIZE, at)]
        assert found.pages["different"] == 1


def test_where_a_difference_is_in_both_files() -> None:
    pfn, at = 0x10F, 100
    other = GUEST.but(pages=but(GUEST.pages, pfn, at))
    for a, b in (("elf", "lime"), ("lime", "elf"), ("elf", "raw")):
        left, right = FORMATS[a](GUEST), FORMATS[b](other)
        (found,) = [each for each in compared(left, right).first if each.outcome is Outcome.DIFFERENT]
        for place, data, guest in zip(found.offsets, (left, right), (GUEST, other), strict=True):
            assert data[place : place + SIZE] == guest.pages[pfn]
    left, right = kdump.build(GUEST), kdump.build(other, codec="raw", shared_zero=False)
    (found,) = compared(left, right).first
    assert zlib.decompressobj().decompress(left[found.offsets[0] :]) == GUEST.pages[pfn]
    assert right[found.offsets[1] : found.offsets[1] + SIZE] == other.pages[pfn]
    (found,) = compared(avml.build(GUEST), lime.build(other)).first
    assert found.offsets[0] == -1, "its bytes are in a compressed block"


def test_pages_that_only_one_dump_has() -> None:
    kept = {pfn: data for pfn, data in GUEST.pages.items() if pfn not in (1, 0x9F, 5)}
    assert 5 in GUEST.zeros
    for build in (elf_of, kdump.build, lime.build):
        found = compared(build(GUEST), build(GUEST.but(pages=kept)))
        assert found.pages | {"neither": 0} == counts(equal=len(kept), only_a=2, absent_zero=1)
        assert [show(each) for each in found.first] == [("only_a", 1, SIZE, -1), ("only_a", 0x9F, 0x9F * SIZE, -1)]
        assert [[state.name for state in each.states] for each in found.first] == [["STORED", "ABSENT"]] * 2
        back = compared(build(GUEST.but(pages=kept)), build(GUEST))
        assert back.pages | {"neither": 0} == counts(equal=len(kept), only_b=2, absent_zero=1)
        assert not back.same


def test_pages_that_one_dump_left_out() -> None:
    """In kdump a page that was left out is RAM; that makes no difference to what the other one has."""
    left_out = GUEST.but(
        pages={pfn: data for pfn, data in GUEST.pages.items() if pfn not in (7, 6)},
        excluded=GUEST.excluded | {7, 6},
    )
    found = compared(kdump.build(GUEST), kdump.build(left_out))
    assert found.pages == counts(equal=len(left_out.pages), only_a=1, absent_zero=1, neither=len(GUEST.excluded))
    (first,) = found.first
    assert (show(first), first.states[1].name) == (("only_a", 7, 7 * SIZE, -1), "EXCLUDED")


def test_a_zero_page_that_one_dump_left_out() -> None:
    """Nothing else differs, so that both files have the same bytes."""
    pages = {pfn: data for pfn, data in GUEST.pages.items() if pfn != 5}
    found = compared(kdump.build(GUEST), kdump.build(GUEST.but(pages=pages, excluded=GUEST.excluded | {5})))
    assert found.pages == counts(equal=len(pages), absent_zero=1, neither=len(GUEST.excluded))


def test_strict() -> None:
    full = Guest(pages=GUEST.pages)
    without = Guest(pages={pfn: data for pfn, data in GUEST.pages.items() if any(data)})
    for a, b in ((full, without), (without, full)):
        found = compared(lime.build(a), lime.build(b))
        assert (found.pages["absent_zero"], found.same, found.first) == (len(GUEST.zeros), True, ())
        found = compared(lime.build(a), lime.build(b), strict=True)
        assert (found.pages["absent_zero"], found.same) == (len(GUEST.zeros), False)
        assert [each.pfn for each in found.first] == GUEST.zeros[:10]
        assert {each.outcome for each in found.first} == {Outcome.ABSENT_ZERO}
    assert compared(elf_of(GUEST), kdump.build(GUEST), strict=True).same


def test_bad_pages_are_no_match() -> None:
    def broken(pfn: int, data: bytes) -> tuple[int, bytes]:
        packed = zlib.compress(data)
        if pfn in (2, 0x103):
            return 1, b"\xff" + packed[1:]
        return (1, packed) if len(packed) < len(data) else (0, data)

    good, bad = kdump.build(GUEST), kdump.build(GUEST, codec=broken)
    for a, b in ((good, bad), (bad, good), (elf_of(GUEST), bad)):
        found = compared(a, b)
        assert (found.pages["bad"], found.pages["equal"], found.same) == (2, len(GUEST.pages) - 2, False)
        assert [show(each) for each in found.first] == [("bad", 2, 2 * SIZE, -1), ("bad", 0x103, 0x103 * SIZE, -1)]
        assert {state.name for state in found.first[0].states} == {"STORED", "BAD"}
    # Not a page of it needs decoding to be equal to itself.
    assert compared(bad, bad).pages["equal"] == len(GUEST.pages)


def test_descriptors_that_make_no_sense() -> None:
    lost = kdump.build(GUEST, descriptors={4: {"flags": 0x40}, 0x104: {"size": 0, "flags": 1}})
    found = compared(kdump.build(GUEST), lost)
    assert found.pages["bad"] == 2
    assert [each.pfn for each in found.first] == [4, 0x104]
    # What nobody can read is not the same as itself.
    assert compared(lost, lost).pages["bad"] == 2


# Many pages.


@pytest.fixture(scope="module")
def large() -> tuple[dict[int, bytes], dict[int, bytes]]:
    """Twelve MiB, so that there are several windows, and a copy that differs in forty pages all over."""
    data = named_block(0x200, 3000)
    pages = {0x200 + at: data[at * SIZE : (at + 1) * SIZE] for at in range(3000)}
    other = dict(pages)
    for pfn in range(0x200, 0x200 + 3000, 75):
        other = but(other, pfn, pfn % SIZE)
    return pages, other


@pytest.mark.parametrize("threads", [0, 1, 2])
@pytest.mark.parametrize("first", [0, 3, 25, 100])
def test_first_differences_in_order(large: tuple[dict[int, bytes], dict[int, bytes]], threads: int, first: int) -> None:
    pages, other = large
    found = compared(lime.build(pages), lime.build(other), threads=threads, first=first)
    assert found.pages == counts(equal=2960, different=40)
    wanted = [(pfn, pfn % SIZE) for pfn in range(0x200, 0x200 + 3000, 75)]
    assert [(each.pfn, each.byte) for each in found.first] == wanted[:first]


def test_progress(large: tuple[dict[int, bytes], dict[int, bytes]]) -> None:
    pages, other = large
    moments = []
    compared(lime.build(pages), lime.build(other), progress=moments.append)
    assert {(moment.phase, moment.total) for moment in moments} == {("compare", 3000 * SIZE)}
    assert [moment.done for moment in moments] == [0, 1024 * SIZE, 2048 * SIZE, 3000 * SIZE]


KINDS = st.sampled_from(["absent", "excluded", "zero", "named", "noise", "changed"])


def model(a: str, b: str) -> str:
    """What comparing two pages of some kinds must give."""
    if {a, b} <= {"absent", "excluded"}:
        return "neither"
    if {a, b} & {"absent", "excluded"}:
        if "zero" in (a, b):
            return "absent_zero"
        return "only_b" if a in ("absent", "excluded") else "only_a"
    return "equal" if a == b else "different"


def guest_of(kinds: list[str]) -> Guest:
    pages = {}
    for pfn, kind in enumerate(kinds):
        if kind == "changed":
            pages[pfn] = page(pfn)[:-1] + b"\xff"
        elif kind not in ("absent", "excluded"):
            pages[pfn] = page(pfn, kind=kind)
    excluded = frozenset(pfn for pfn, kind in enumerate(kinds) if kind == "excluded")
    return Guest(pages=pages, excluded=excluded)


@settings(deadline=None, max_examples=60)
@given(
    kinds=st.lists(st.tuples(KINDS, KINDS), min_size=1, max_size=24),
    codecs=st.tuples(*[st.lists(st.sampled_from(CODECS), min_size=1, max_size=3)] * 2),
    shared=st.tuples(st.booleans(), st.booleans()),
    packed=st.booleans(),
)
def test_against_a_model(
    kinds: list[tuple[str, str]], codecs: tuple[list[str], ...], shared: tuple[bool, bool], packed: bool
) -> None:
    """Every pair of states, in any codec."""
    sides = [guest_of([each[side] for each in kinds]) for side in range(2)]
    files = [
        kdump.build(guest, codec=codec, shared_zero=zero, max_mapnr=len(kinds))
        for guest, codec, zero in zip(sides, codecs, shared, strict=True)
    ]
    found = compared(*files, first=100, packed=packed)
    told = [model(*each) for each in kinds]
    # A page that is absent in both is no RAM of either.
    ram = [how for how, each in zip(told, kinds, strict=True) if each != ("absent", "absent")]
    assert found.pages == counts(**{how: ram.count(how) for how in ram})
    listed = [(how, pfn) for pfn, how in enumerate(told) if how in ("different", "only_a", "only_b")]
    assert [(each.outcome.name.lower(), each.pfn) for each in found.first] == listed


# Pages of different sizes.


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("codec", ["raw", "zlib", "lzo"])
def test_larger_pages(codec: str, threads: int) -> None:
    """A guest with 64-KiB pages, and a LiME file of it, which is read in pages of 4 KiB."""
    wide = small_guest(page_size=65536, high=False)
    large = kdump.build(wide, codec=codec)
    narrow = {
        pfn * 16 + part: data[part * SIZE : (part + 1) * SIZE] for pfn, data in wide.pages.items() for part in range(16)
    }
    found = compared(large, lime.build(narrow), threads=threads)
    assert found.page_size == SIZE
    assert found.pages == counts(equal=16 * len(wide.pages), neither=16 * len(wide.excluded))
    assert found.same
    changed = but(narrow, 4 * 16 + 11, 1234)
    del changed[2 * 16 + 3]
    small = lime.build(changed)
    for a, b, only in ((large, small, "only_a"), (small, large, "only_b")):
        found = compared(a, b, threads=threads)
        assert [show(each) for each in found.first] == [
            (only, 35, 35 * SIZE, -1),
            ("different", 75, 75 * SIZE, 1234),
        ]
        assert found.pages["equal"] == 16 * len(wide.pages) - 2
        if codec == "raw":
            place = found.first[1].offsets[only == "only_b"]
            assert large[place : place + SIZE] == narrow[75]


# What is said besides pages.


def facts(a: Guest, b: Guest, **options: Any) -> Any:
    return compared(elf_of(a), elf_of(b), **options).facts


def test_registers_that_differ() -> None:
    other = GUEST.but(registers=({}, {"rip": 0x1234, "cr2": 1}))
    found = compared(elf_of(GUEST), elf_of(other))
    assert not found.same
    assert found.pages["equal"] == len(GUEST.pages)
    (register,) = found.facts.differing
    assert (register.cpu, register.name, register.a, register.b) == (1, "rip", GUEST.register(1, "rip"), 0x1234)


def test_processors_that_are_missing() -> None:
    fewer = GUEST.but(registers=({},))
    found = compared(elf_of(GUEST), elf_of(fewer))
    assert (found.same, found.facts.only_a, found.facts.only_b) == (False, (1,), ())
    none = GUEST.but(registers=())
    assert compared(elf_of(GUEST), elf_of(none)).same
    assert not compared(elf_of(GUEST), elf_of(none), strict=True).same


def test_vmcoreinfo_that_differs() -> None:
    text = GUEST.vmcoreinfo.replace("SIZE(page)=64", "SIZE(page)=56") + "MORE=1\n"
    found = compared(elf_of(GUEST), elf_of(GUEST.but(vmcoreinfo=text)))
    assert not found.same
    lines = [(line.name, line.a, line.b) for line in found.facts.lines]
    assert lines == [("SIZE(page)", "64", "56"), ("MORE", None, "1")]
    assert compared(elf_of(GUEST), elf_of(GUEST.but(vmcoreinfo=GUEST.vmcoreinfo + "\n"))).same


def test_machines_that_differ() -> None:
    notes = {"notes": ()}
    loads = [elf.Segment(data=GUEST.run(0, 2))]
    arm = elf.build(loads, machine=183, **notes)
    found = compared(elf.build(loads, **notes), arm)
    assert [(fact.name, fact.a, fact.b) for fact in found.facts.machine] == [("architecture", "x86_64", "aarch64")]
    assert not found.same
    # A LiME file does not name its machine: what its reader assumes is no difference.
    assert compared(arm, lime.build({pfn: GUEST.pages[pfn] for pfn in range(2)})).same


# The command.


@pytest.fixture
def files(tmp_path: Path) -> Path:
    other = GUEST.but(pages=but(GUEST.pages, 9, 4), registers=({"rax": 7}, {}))
    (tmp_path / "a").write_bytes(elf_of(GUEST))
    (tmp_path / "same").write_bytes(kdump.build(GUEST))
    (tmp_path / "other").write_bytes(kdump.build(other, codec="lzo"))
    return tmp_path


def valid(printed: str) -> dict[str, Any]:
    described: dict[str, Any] = json.loads(printed)
    schema = json.loads((ROOT / "docs" / "schemas" / "compare-1.json").read_text())
    jsonschema.validate(described, schema, cls=jsonschema.Draft202012Validator)
    return described


@pytest.mark.parametrize("threads", [0, 2])
def test_command(cli: Cli, files: Path, threads: int) -> None:
    done = cli("compare", "a", "same", "--threads", str(threads))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("The same\n")
    assert f"{len(GUEST.pages):,}" in done.stdout
    done = cli("compare", "a", "other", "--threads", str(threads))
    assert (done.returncode, done.stderr) == (1, "")
    for words in ("Not the same", "different", "0x9004", "vcpu 0 rax", "0x7"):
        assert words in done.stdout


def test_command_in_json(cli: Cli, files: Path) -> None:
    assert valid(cli("compare", "a", "same", "--json").stdout)["same"]
    found = valid(cli("compare", "a", "other", "--json").stdout)
    assert not found["same"]
    (first,) = found["first"]
    data = (files / "a").read_bytes()
    place = int(first["a"]["offset"], 16)
    assert data[place : place + SIZE] == GUEST.pages[9]
    assert (first["kind"], first["pfn"], first["address"], first["byte"]) == ("different", "0x9", "0x9000", 4)
    assert found["cpus"]["different"] == [{"cpu": 0, "register": "rax", "a": hex(GUEST.register(0, "rax")), "b": "0x7"}]
    assert valid(cli("compare", "a", "other", "--json", "--first", "0").stdout)["first"] == []
    (files / "lime").write_bytes(lime.build({**GUEST.pages, 0x5000: bytes(SIZE)}))
    assert valid(cli("compare", "a", "lime", "--json").stdout)["pages"]["absent_zero"] == 1
    done = cli("compare", "a", "lime", "--json", "--strict")
    assert done.returncode == 1
    assert [each["kind"] for each in valid(done.stdout)["first"]] == ["absent_zero"]


def test_command_with_progress(cli: Cli, files: Path) -> None:
    done = cli("compare", "a", "same", "--progress", "json")
    moments = [json.loads(line) for line in done.stderr.splitlines()]
    assert {moment["phase"] for moment in moments} == {"compare"}
    assert moments[-1]["done"] == moments[-1]["total"]


def test_command_tells_of_damage(cli: Cli, files: Path) -> None:
    (files / "cut").write_bytes(elf_of(GUEST, truncate=-5000))
    done = cli("compare", "a", "cut")
    assert done.returncode == 1
    assert "cut: truncated" in done.stderr
    assert "only in A" in done.stdout


def test_command_refuses(cli: Cli, files: Path) -> None:
    (files / "text").write_bytes(b"\x7fELF is not enough")
    for name, code in (("absent", 2), ("text", 5)):
        done = cli("compare", "a", name)
        assert (done.returncode, done.stdout) == (code, "")
        assert done.stderr.count("\n") == 1


def test_library_opens_both(files: Path) -> None:
    with dumpxlate.open(files / "a") as a, dumpxlate.open(files / "same") as b:
        assert compare(a, b, threads=2).same
