"""check: a clean dump is clean, every broken page is found where it is, and what a conversion loses is predicted."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any

import jsonschema
import numpy as np
import pytest

from dumpxlate.errors import CorruptDumpError
from dumpxlate.io.source import BytesSource
from dumpxlate.registry import open_from
from dumpxlate.verify.check import BadRun, CheckReport, check
from tests.builders import avml, elf, flattened, kdump, lime, xen_core, xendump
from tests.builders.elf_notes import cpu_notes, vmcoreinfo
from tests.builders.guest import Guest, page, small_guest, stored_runs
from tests.conftest import ROOT

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from dumpxlate.dump import Dump

    Cli = Callable[..., subprocess.CompletedProcess[str]]

GUEST = small_guest()
SIZE = GUEST.page_size
CODECS = ["zlib", "lzo", "snappy", "zstd", "raw"]


def elf_of(guest: Guest, **options: Any) -> bytes:
    loads = [elf.Segment(paddr=first * SIZE, data=guest.run(first, count)) for first, count in stored_runs(guest)]
    return elf.build(loads, [*cpu_notes(guest), vmcoreinfo(guest.vmcoreinfo)], **options)


def breaking(pfns: Iterable[int]) -> Callable[[int, bytes], tuple[int, bytes]]:
    """A codec of the kdump builder whose zlib data of some pages are broken."""
    broken = set(pfns)

    def encode(pfn: int, data: bytes) -> tuple[int, bytes]:
        packed = zlib.compress(data)
        if pfn in broken:
            return 1, b"\xff" + packed[1:40]
        return (1, packed) if len(packed) < len(data) else (0, data)

    return encode


def opened(data: bytes) -> Dump:
    return open_from([BytesSource(data, "dump")])


def checked(data: bytes, **options: Any) -> CheckReport:
    return check(opened(data), **({"threads": 0} | options))


def spans(found: CheckReport) -> list[tuple[int, int]]:
    return [(run.start, run.count) for run in found.bad]


# Clean dumps.


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize(
    ("build", "excluded"),
    [
        (elf_of, False),
        (kdump.build, True),
        (lambda guest: kdump.build(guest, codec=CODECS, reverse=True, shared_zero=False), True),
        (lambda guest: flattened.wrap(kdump.build(guest)), True),
        (lime.build, False),
        (lambda guest: avml.build(guest, keep_zero=True), False),
        (xendump.build, False),
        (xen_core.build, False),
    ],
    ids=["elf", "kdump", "kdump-mixed", "flattened", "lime", "avml", "xendump", "xen_core"],
)
def test_clean(build: Callable[[Guest], bytes], excluded: bool, threads: int) -> None:
    found = checked(build(GUEST), threads=threads)
    zero, left_out = len(GUEST.zeros), len(GUEST.excluded) * excluded
    assert found.pages == {"stored": len(GUEST.pages) - zero, "zero": zero, "excluded": left_out, "bad": 0}
    assert found.ram == len(GUEST.pages) + left_out
    assert (found.bad, found.bad_runs, found.overlapping, found.damage) == ((), 0, 0, ())
    assert found.ok


def test_codecs_are_counted() -> None:
    found = checked(kdump.build(GUEST, codec=CODECS))
    shrinks = [pfn for pfn in GUEST.stored if any(GUEST.pages[pfn]) and pfn % 16 != 9]
    wanted = {codec: sum(CODECS[pfn % 5] == codec for pfn in shrinks) for codec in CODECS}
    wanted["raw"] += sum(pfn % 16 == 9 for pfn in GUEST.stored)
    assert found.codecs == wanted


def test_copies_are_counted() -> None:
    found = checked(xendump.build(GUEST, duplicates=[1, 2, 0x101]))
    assert (found.repeated, found.ok) == (3, True)


# Bad pages.


@pytest.mark.parametrize("threads", [0, 2])
def test_pages_that_do_not_decode(threads: int) -> None:
    data = kdump.build(GUEST, codec=breaking([0, 1, 2, 7, 0x9F, 0x100, 0x101]))
    found = checked(data, threads=threads)
    assert not found.ok
    assert spans(found) == [(0, 3), (7, 1), (0x9F, 1), (0x100, 2)]
    assert found.bad_runs == 4
    assert found.pages["bad"] == 7
    assert found.pages["stored"] == len(GUEST.pages) - len(GUEST.zeros) - 7
    for run in found.bad:
        assert run.reason == "do not decode (zlib)"
        assert data[run.offset : run.offset + 40] == b"\xff" + zlib.compress(GUEST.pages[run.start])[1:40]


def test_descriptors_that_make_no_sense() -> None:
    lies = {4: {"flags": 0x40}, 5: {"size": 5000}, 0x104: {"size": 0, "flags": 1}}
    found = checked(kdump.build(GUEST, descriptors=lies))
    assert [(run.start, run.count, run.offset) for run in found.bad] == [(4, 2, -1), (0x104, 1, -1)]
    assert {run.reason for run in found.bad} == {"their entries in the index make no sense"}


def test_neighbours_that_are_bad_for_different_reasons() -> None:
    found = checked(kdump.build(GUEST, codec=breaking([3, 4, 5, 8]), descriptors={7: {"flags": 0x40}}))
    reasons = [(run.start, run.count, run.reason.split()[0]) for run in found.bad]
    assert reasons == [(4, 1, "do"), (7, 1, "their"), (8, 1, "do")]  # 3 is left out, 5 is zero


def test_a_broken_block() -> None:
    """AVML's chunks are 64 KiB: sixteen pages go when one does not unpack."""
    found = checked(avml.build(GUEST, corrupt={1: 1}))
    first = stored_runs(GUEST)[1][0] + 16
    assert found.bad == (BadRun(first, 16, -1, "their bytes are not in the file, or do not unpack"),)
    assert not found.ok


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("first", [0, 1, 2, 50])
def test_runs_go_on_over_windows(first: int, threads: int) -> None:
    """Windows have 1024 pages; a run of bad ones is one all the same, and its pages are counted once."""
    guest = Guest(pages={pfn: page(pfn) for pfn in range(2300)})
    bad = [3, *range(1000, 2100), 2200]
    found = checked(kdump.build(guest, codec=breaking(bad)), first=first, threads=threads)
    assert found.bad_runs == 3
    assert spans(found) == [(3, 1), (1000, 1100), (2200, 1)][:first]
    assert found.pages == {"stored": 2300 - len(bad), "zero": 0, "excluded": 0, "bad": len(bad)}


def test_a_run_that_ends_with_a_window() -> None:
    guest = Guest(pages={pfn: page(pfn) for pfn in range(2300)})
    found = checked(kdump.build(guest, codec=breaking([1022, 1023, 1025, 2047, 2048])))
    assert spans(found) == [(1022, 2), (1025, 1), (2047, 2)]


def test_bytes_that_two_pages_share_in_part() -> None:
    plain = kdump.build(GUEST, codec="raw")
    at = {pfn: plain.index(GUEST.pages[pfn]) for pfn in (1, 2, 7)}
    shared = checked(kdump.build(GUEST, codec="raw", descriptors={8: {"offset": at[7]}}))
    assert (shared.overlapping, shared.ok) == (0, True)
    # Page 8 now begins inside the bytes of page 7, and page 20 inside those of page 1, where page 2 begins too.
    lies = {8: {"offset": at[7] + 8}, 20: {"offset": at[1] + 64}}
    found = checked(kdump.build(GUEST, codec="raw", descriptors=lies))
    assert at[2] == at[1] + SIZE
    assert (found.overlapping, found.ok) == (3, False)
    assert found.pages == shared.pages
    # Pages 8 and 9 both begin inside page 7, and 9 behind the end of 8.
    lies = {8: {"offset": at[7] + 8, "size": 16, "flags": 1}, 9: {"offset": at[7] + 80, "size": 16, "flags": 1}}
    assert checked(kdump.build(GUEST, codec="raw", descriptors=lies)).overlapping == 2


# Files that are not whole.


@pytest.mark.parametrize("lost", [9_000, 60_000])
@pytest.mark.parametrize("name", ["elf", "kdump", "xendump", "lime"])
def test_truncated(name: str, lost: int) -> None:
    build = {"elf": elf_of, "kdump": kdump.build, "xendump": xendump.build, "lime": lime.build}[name]
    found = checked(build(GUEST)[:-lost])
    assert not found.ok
    assert found.damage
    assert found.pages["stored"] + found.pages["zero"] < len(GUEST.pages)


def test_an_index_that_cannot_be_read() -> None:
    with pytest.raises(CorruptDumpError):
        checked(kdump.build(GUEST)[:5000])


@pytest.mark.parametrize(
    "data",
    [
        kdump.build(GUEST),
        kdump.build(GUEST, codec=breaking([0, 1, 2, 7, 0x9F, 0x100, 0x101])),
        kdump.build(GUEST, codec=breaking([30, 31]), descriptors={4: {"flags": 0x40}, 9: {"offset": 1 << 50}}),
        kdump.build(GUEST, truncate=-70_000),
        kdump.build(GUEST, written=200),
        elf_of(GUEST, truncate=-70_000),
        avml.build(GUEST, corrupt={2: 1}),
        lime.build(GUEST, truncate=-70_000),
    ],
    ids=["clean", "zlib", "descriptors", "truncated", "incomplete", "elf", "avml", "lime"],
)
def test_predicts_what_a_conversion_leaves_out(cli: Cli, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "dump").write_bytes(data)
    shown = json.loads(cli("check", "dump", "--json").stdout)
    options = ["--salvage", "--bad-pages", "skip", "--allow-loss", "--report", "report"]
    converted = cli("convert", "dump", "-o", "out", "-t", "elf", *options)
    assert converted.returncode == (0 if shown["ok"] else 4), converted.stderr
    report = json.loads((tmp_path / "report").read_text())
    assert shown["pages"] == report["pages_out"]
    assert shown["ram"] == report["pages_in"]


# The map of a paravirtual guest.


def map_of(guest: Guest, *, without: int = 0) -> bytes:
    entries = np.full(guest.end_pfn, 0xFFFFFFFFFFFFFFFF, "<u8")
    held = [pfn for pfn in guest.ram if pfn in guest.pages][without:]
    entries[held] = [guest.mfns[pfn] for pfn in held]
    return bytes(entries.tobytes())


def test_a_map_that_does_not_fit(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "dump").write_bytes(xendump.build(GUEST))
    (tmp_path / "map").write_bytes(map_of(GUEST))
    (tmp_path / "wrong").write_bytes(map_of(GUEST, without=100))
    assert cli("check", "dump").returncode == 0
    done = cli("check", "dump", "--p2m", "map", "--json")
    assert done.returncode == 0
    assert valid(done.stdout)["fit"]["fits"]
    done = cli("check", "dump", "--p2m", "wrong")
    assert done.returncode == 1
    assert "The p2m map does not fit: 0 of" in done.stdout
    assert "100 of" in done.stdout


# The command.


def valid(printed: str) -> dict[str, Any]:
    described: dict[str, Any] = json.loads(printed)
    schema = json.loads((ROOT / "docs" / "schemas" / "check-1.json").read_text())
    jsonschema.validate(described, schema, cls=jsonschema.Draft202012Validator)
    return described


@pytest.mark.parametrize("threads", ["0", "2"])
def test_command(cli: Cli, tmp_path: Path, threads: str) -> None:
    (tmp_path / "good").write_bytes(kdump.build(GUEST))
    (tmp_path / "bad").write_bytes(kdump.build(GUEST, codec=breaking([0, 1, 2, 0x9F, 0x101])))
    done = cli("check", "good", "--threads", threads)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Nothing is wrong\n")
    done = cli("check", "bad", "--threads", threads)
    assert (done.returncode, done.stderr) == (1, "")
    for words in ("Not all is well", "0x9f000", "do not decode (zlib)"):
        assert words in done.stdout
    shown = valid(cli("check", "bad", "--json", "--threads", threads).stdout)
    assert not shown["ok"]
    assert [(run["pfn"], run["start"], run["pages"]) for run in shown["bad"]] == [
        ("0x0", "0x0", 3),
        ("0x9f", "0x9f000", 1),
        ("0x101", "0x101000", 1),
    ]
    less = cli("check", "bad", "--first", "1")
    assert "and 2 more runs" in less.stdout
    assert valid(cli("check", "bad", "--json", "--first", "1").stdout)["bad_runs"] == 3


def test_command_on_broken_files(cli: Cli, tmp_path: Path) -> None:
    whole = kdump.build(GUEST)
    for length, code in ((100, 5), (5000, 5), (len(whole) - 60_000, 1)):
        (tmp_path / "cut").write_bytes(whole[:length])
        done = cli("check", "cut")
        assert done.returncode == code, done.stderr
        if code == 5:
            assert done.stdout == ""
            assert done.stderr.startswith("dumpxlate: cut: ")
        else:
            assert "truncated" in done.stdout
            assert valid(cli("check", "cut", "--json").stdout)["damage"]


def test_command_on_a_split_set(cli: Cli, tmp_path: Path) -> None:
    guest = small_guest(high=False)
    for number, part in enumerate(kdump.split_set(guest, 3)):
        (tmp_path / f"part{number}").write_bytes(part)
    shown = valid(cli("check", "part2", "part0", "part1", "--json").stdout)
    assert shown["ok"]
    assert shown["pages"]["stored"] == len(guest.pages) - len(guest.zeros)
    done = cli("check", "part0", "part2", "--json")
    assert done.returncode == 1
    assert "not given" in valid(done.stdout)["damage"][0]


def test_command_with_progress(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(kdump.build(GUEST))
    moments = [json.loads(line) for line in cli("check", "good", "--progress", "json").stderr.splitlines()]
    assert {moment["phase"] for moment in moments} == {"check"}
    assert moments[-1]["done"] == moments[-1]["total"] == len(GUEST.pages) * SIZE
