"""map: ranges cover RAM and its holes, each page is where its range says, and only the index is read."""

from __future__ import annotations

import itertools
import json
import lzma
import os
import pty
import re
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dumpxlate.describe import page_map
from dumpxlate.describe.page_map import Ranges, map_pages, page_ranges
from dumpxlate.io.source import BytesSource
from dumpxlate.p2m.map import P2M, FrameRuns
from dumpxlate.pages import CodecId, PageState
from dumpxlate.registry import open_from
from dumpxlate.stores import DeferredStore, IndexedStore
from tests.builders import avml, elf, flattened, kdump, lime, raw, xen_core, xendump
from tests.builders.guest import Guest, small_guest, stored_runs
from tests.conftest import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dumpxlate.dump import Dump

    Cli = Callable[..., subprocess.CompletedProcess[str]]

GUEST = small_guest()
SIZE = GUEST.page_size
CODECS = ["zlib", "lzo", "snappy", "zstd", "raw"]


def elf_of(guest: Guest) -> bytes:
    """A vmcore; pages that were left out are in p_memsz only, as makedumpfile -E writes it."""
    missing = [elf.Segment(paddr=pfn * SIZE, memsz=SIZE) for pfn in sorted(guest.excluded)]
    loads = [elf.Segment(paddr=first * SIZE, data=guest.run(first, count)) for first, count in stored_runs(guest)]
    return elf.build([*loads, *missing])


FORMATS: dict[str, Callable[[Guest], bytes]] = {
    "elf": elf_of,
    "kdump": kdump.build,
    "kdump-mixed": lambda guest: kdump.build(guest, codec=CODECS, reverse=True, shared_zero=False),
    "lime": lime.build,
    "xen_core": xen_core.build,
}
KEEPS_EXCLUDED = {"elf", "kdump", "kdump-mixed"}


def opened(data: bytes) -> Dump:
    return open_from([BytesSource(data, "dump")])


def ranges(dump: Dump) -> Ranges:
    return Ranges.join(*page_ranges(dump))


def rows(found: Ranges) -> list[tuple[int, int, str, str, int]]:
    columns = (found.start, found.count, found.state, found.codec, found.offset)
    return [
        (start, count, PageState(state).name.lower(), CodecId(codec).name.lower(), offset)
        for start, count, state, codec, offset in zip(*(column.tolist() for column in columns), strict=True)
    ]


def joins(a: tuple[int, int, str, str, int], b: tuple[int, int, str, str, int]) -> bool:
    """Whether two ranges could be one."""
    follows = a[0] + a[1] == b[0] and a[2:4] == b[2:4]
    if a[2] == "stored" and a[3] == "raw" and min(a[4], b[4]) >= 0:
        return follows and a[4] + a[1] * SIZE == b[4]
    return follows


@pytest.mark.parametrize("name", FORMATS)
def test_against_every_page(name: str) -> None:
    data = FORMATS[name](GUEST)
    dump = opened(data)
    found = rows(ranges(dump))
    ram = GUEST.ram if name in KEEPS_EXCLUDED else GUEST.stored
    # They cover everything from the first page of RAM to the last, once, and no two could be one.
    assert found[0][0] == ram[0]
    assert sum(found[-1][:2]) == ram[-1] + 1
    assert all(sum(a[:2]) == b[0] and not joins(a, b) for a, b in itertools.pairwise(found))
    for start, count, state, codec, offset in found:
        for pfn in range(start, start + count) if state != "absent" else (start, start + count - 1):
            kind = "stored" if pfn in GUEST.pages else "excluded" if pfn in ram else "absent"
            if name == "kdump" and pfn in GUEST.zeros:
                kind = "zero"
            assert state == kind, pfn
            at = offset + (pfn - start) * SIZE
            if state == "stored" and codec == "raw":
                assert data[at : at + SIZE] == GUEST.pages[pfn]
            assert (offset >= 0) == (state == "stored")
    assert {row[3] for row in found if row[2] == "stored"} >= (set(CODECS) if name == "kdump-mixed" else set())


def test_compressed_pages_are_one_range() -> None:
    """Wherever they are; the offset is that of the first one."""
    guest = Guest(pages=dict.fromkeys(range(100, 150), GUEST.pages[4]))
    for options in ({}, {"reverse": True}):
        data = kdump.build(guest, codec="lzo", **options)
        ((start, count, state, codec, offset),) = rows(ranges(opened(data)))
        assert (start, count, state, codec) == (100, 50, "stored", "lzo")
        assert data[offset:].startswith(kdump.CODECS["lzo"][1](guest.pages[100]))


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize("name", FORMATS)
def test_pieces_make_no_difference(monkeypatch: pytest.MonkeyPatch, name: str, size: int) -> None:
    """A range that is cut by the end of a piece is one all the same."""
    dump = opened(FORMATS[name](GUEST))
    whole = rows(ranges(dump))
    monkeypatch.setattr(page_map, "_ROWS", size)
    pieces = list(page_ranges(dump))
    assert size > 3 or len(pieces) > 2
    assert rows(Ranges.join(*pieces)) == whole
    assert map_pages(dump, cells=10).total == len(whole)


@settings(deadline=None, max_examples=60)
@given(
    kinds=st.lists(st.sampled_from(["absent", "excluded", "zero", "named"]), min_size=1, max_size=40),
    size=st.integers(1, 9),
    codec=st.lists(st.sampled_from(CODECS), min_size=1, max_size=2),
)
def test_against_a_model(kinds: list[str], size: int, codec: list[str]) -> None:
    """The same ranges from extents and from single pages, in pieces of any size."""
    pages = {
        pfn: bytes(SIZE) if kind == "zero" else GUEST.pages[0]
        for pfn, kind in enumerate(kinds)
        if kind in ("zero", "named")
    }
    excluded = frozenset(pfn for pfn, kind in enumerate(kinds) if kind == "excluded")
    dump = opened(kdump.build(Guest(pages=pages, excluded=excluded), codec=codec, max_mapnr=len(kinds)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_map, "_ROWS", size)
        found = rows(ranges(dump))
    told = [state for _, count, state, _, _ in found for _ in range(count)]
    states = {"named": "stored"}
    while kinds and kinds[0] == "absent":
        kinds = kinds[1:]
    while kinds and kinds[-1] == "absent":
        kinds = kinds[:-1]
    assert told == [states.get(kind, kind) for kind in kinds]
    assert not any(joins(a, b) for a, b in itertools.pairwise(found))


def test_extents_and_pages_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The short way over extents, against locating each page."""
    dump = opened(elf_of(GUEST))
    short = rows(ranges(dump))
    monkeypatch.setattr(page_map, "_of_extents", page_map._of_pages)
    assert rows(ranges(dump)) == short


# Places.


def test_places_in_containers_and_pieces() -> None:
    inner = kdump.build(GUEST, codec="raw")
    for data in (flattened.wrap(inner), lzma.compress(inner)):
        assert rows(ranges(opened(data))) == rows(ranges(opened(inner)))
    # Pages of an unaligned range are assembled: all of them are in the file, but two of them in two pieces.
    odd = lime.build([(0x1800, GUEST.run(0, 4)), (0x5800, GUEST.run(4, 2))])
    places = {start: offset for start, _, _, _, offset in rows(ranges(opened(odd)))}
    assert places == {1: -1, 2: 32 + 0x800, 5: -1, 6: 32 + 4 * SIZE + 32 + 0x800, 7: -1}
    assert {row[4] for row in rows(ranges(opened(avml.build(GUEST))))} == {-1}


def test_runs_of_a_set_of_files() -> None:
    guest = small_guest(high=False)
    parts = kdump.split_set(guest, 3, codec="raw")
    dump = open_from([BytesSource(part, f"part{number}") for number, part in enumerate(parts)])
    found = rows(ranges(dump))
    assert {row[4] for row in found} == {-1}
    stored = [(start, count) for start, count, state, _, _ in found if state == "stored"]
    assert sum(count for _, count in stored) == len(guest.pages) - len(guest.zeros)


# Frames of the machine.


def test_machine_frames() -> None:
    dump = opened(xendump.build(GUEST)).with_p2m(
        P2M.from_pairs(np.array(list(GUEST.mfns)), np.array(list(GUEST.mfns.values())))
    )
    found = ranges(dump)
    for start, count, state, mfn in zip(
        *(getattr(found, name).tolist() for name in ("start", "count", "state", "mfn")), strict=True
    ):
        frames = [GUEST.mfns.get(pfn, -2) for pfn in range(start, min(start + count, GUEST.end_pfn))]
        follow = state != PageState.ABSENT and frames == list(range(frames[0], frames[0] + count))
        assert mfn == (frames[0] if follow else -1)
    assert (found.mfn >= 0).sum() > len(found) / 2


def test_machine_frames_that_follow_each_other() -> None:
    guest = Guest(pages=dict.fromkeys(range(64), GUEST.pages[0]), mfns={pfn: 0x5000 + pfn for pfn in range(64)})
    dump = opened(xen_core.build(guest))
    found = ranges(dump)
    assert (found.start.tolist(), found.count.tolist(), found.mfn.tolist()) == ([0], [64], [0x5000])
    # A map in a note may have its runs cut.
    pfn = np.arange(0, 64, 8)
    runs = FrameRuns(pfn, pfn + 0x5000, np.full(8, 8))
    cut = opened(xendump.build(guest, order="pfn")).with_p2m(P2M(runs, 64))
    assert ranges(cut).mfn.tolist() == [0x5000]


def test_without_a_map_the_addresses_are_those_of_the_machine(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "dump").write_bytes(xendump.build(GUEST))
    shown = valid(cli("map", "dump", "--json", "--limit", "0").stdout)
    assert shown["file"]["space"] == "machine"
    stored = [(int(each["start"], 16) // SIZE, each["pages"]) for each in shown["ranges"] if each["state"] == "stored"]
    mfns = {mfn for first, count in stored for mfn in range(first, first + count)}
    assert mfns == {GUEST.mfns[pfn] for pfn in GUEST.stored}
    assert {each["mfn"] for each in shown["ranges"]} == {None}


# Nothing but the index.


@pytest.mark.parametrize("name", FORMATS)
def test_no_page_is_read(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    dump = opened(FORMATS[name](GUEST))

    def fetch(*_: object) -> None:
        raise AssertionError("a page was read")

    store = dump.pages.loaded if isinstance(dump.pages, DeferredStore) else dump.pages
    monkeypatch.setattr(type(store), "fetch", fetch)
    assert map_pages(dump).total


def test_an_index_of_extents_is_not_asked_for_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    dump = opened(lime.build(GUEST))
    monkeypatch.delattr(IndexedStore, "locate")
    assert map_pages(dump, cells=10).pages["stored"] == len(GUEST.pages)


def test_a_sparse_tebibyte(cli: Cli, tmp_path: Path) -> None:
    """Of an index made of extents not even one row a page is looked at."""
    count = 1 << 28
    elf.sparse_huge(tmp_path / "dump", {5: GUEST.pages[5]}, ram=[(0, 0x80000), (0x100000, count)])
    started = time.monotonic()
    shown = valid(cli("map", "dump", "--json").stdout)
    assert time.monotonic() - started < 20  # a page at a time takes minutes
    assert [(each["start"], each["pages"], each["state"]) for each in shown["ranges"]] == [
        ("0x0", 0x80000, "stored"),
        ("0x80000000", 0x80000, "absent"),
        ("0x100000000", count, "stored"),
    ]
    assert shown["pages"]["stored"] == 0x80000 + count


def test_holes_of_a_sparse_image_are_zero(cli: Cli, tmp_path: Path) -> None:
    raw.sparse(tmp_path / "image.raw", {0: GUEST.pages[0], 0x1000: GUEST.pages[1]}, nr_pages=0x4000)
    shown = valid(cli("map", "image.raw", "--json").stdout)
    if shown["pages"]["zero"] == 0:
        pytest.skip("this file system tells of no holes")
    assert [each["state"] for each in shown["ranges"]] == ["stored", "zero", "stored", "zero"]
    assert shown["ranges"][2]["start"] == shown["ranges"][2]["offset"] == hex(0x1000 * SIZE)


# The command.


def valid(printed: str) -> dict[str, Any]:
    described: dict[str, Any] = json.loads(printed)
    schema = json.loads((ROOT / "docs" / "schemas" / "map-1.json").read_text())
    jsonschema.validate(described, schema, cls=jsonschema.Draft202012Validator)
    return described


def test_command(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "dump").write_bytes(kdump.build(GUEST))
    done = cli("map", "dump")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["0x3000", "0x4000", "1", "excluded"] in lines
    assert ["0x5000", "0x7000", "2", "zero"] in lines
    assert ["0xa0000", "0x100000", "96", "absent"] in lines
    assert any(line[:5] == ["0x0", "0x3000", "3", "stored", "zlib"] for line in lines)
    assert "bytes a character" not in done.stdout, "a bar is for terminals"
    shown = valid(cli("map", "dump", "--json").stdout)
    assert shown["pages"] == {
        "stored": len(GUEST.pages) - len(GUEST.zeros),
        "zero": len(GUEST.zeros),
        "excluded": len(GUEST.excluded),
        "bad": 0,
        "absent": GUEST.end_pfn - len(GUEST.ram),
    }
    assert shown["codecs"]["zlib"] + shown["codecs"]["raw"] == shown["pages"]["stored"]


def test_limit(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "dump").write_bytes(kdump.build(GUEST, codec=CODECS))
    every = valid(cli("map", "dump", "--json", "--limit", "0").stdout)
    assert every["total"] == len(every["ranges"]) > 300
    some = valid(cli("map", "dump", "--json", "--limit", "7").stdout)
    assert some == every | {"ranges": every["ranges"][:7]}
    assert f"and {every['total'] - 7:,} more ranges" in cli("map", "dump", "--limit", "7").stdout


def test_bad_pages_are_shown(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "dump").write_bytes(kdump.build(GUEST, descriptors={4: {"flags": 0x40}}))
    shown = valid(cli("map", "dump", "--json").stdout)
    assert [each for each in shown["ranges"] if each["state"] == "bad"] == [
        {"start": "0x4000", "end": "0x5000", "pages": 1, "state": "bad", "codec": None, "offset": None, "mfn": None}
    ]


def on_a_terminal(*args: str | Path) -> str:
    """What the command prints on a terminal of eighty columns, without its colours."""
    leader, follower = pty.openpty()
    environment = os.environ | {"COLUMNS": "80", "TERM": "xterm", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "dumpxlate", *map(str, args)]
    process = subprocess.Popen(command, stdout=follower, env=environment)
    os.close(follower)
    printed = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        printed += piece
    os.close(leader)
    assert process.wait(60) == 0
    return printed.decode().replace("\r\n", "\n")


def test_bar(tmp_path: Path) -> None:
    """Half of memory stored, a quarter absent, an eighth zero, the rest left out but for a bad page."""
    end = 0x400
    pages = dict.fromkeys(range(end // 2), GUEST.pages[0]) | {
        pfn: bytes(SIZE) for pfn in range(end * 6 // 8, end * 7 // 8)
    }
    guest = Guest(pages=pages, excluded=frozenset(range(end * 7 // 8, end)))
    (tmp_path / "dump").write_bytes(kdump.build(guest, descriptors={100: {"flags": 0x40}}))
    bar, legend, *rest = plain(on_a_terminal("map", tmp_path / "dump")).splitlines()
    assert bar[0] + bar[-1] == "[]"
    assert 70 < len(bar) <= 80
    marks = [char for at, char in enumerate(bar[1:-1]) if not at or bar[at] != char]
    assert "".join(marks) == "#!#.0-"
    share = {char: bar.count(char) / (len(bar) - 2) for char in "#.0-"}
    for char, wanted in {"#": 1 / 2, ".": 1 / 4, "0": 1 / 8, "-": 1 / 8}.items():
        assert abs(share[char] - wanted) < 0.04
    for words in ("# stored", "0 zero", "- excluded", ". absent", "! bad", "0 to 0x"):
        assert words in legend
    assert any("0x200000" in line for line in rest)


def test_bar_shows_little_memory_among_holes(tmp_path: Path) -> None:
    (tmp_path / "dump").write_bytes(lime.build({0: GUEST.pages[0], 1 << 20: GUEST.pages[1]}))
    bar = plain(on_a_terminal("map", tmp_path / "dump")).splitlines()[0]
    assert (bar[1], bar[2], bar.count("#")) == ("#", ".", 2)


def plain(text: str) -> str:
    """Without the attributes that remain where colours are off."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)
