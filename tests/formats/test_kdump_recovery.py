"""kdump-compressed files that have lost their header."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

import dumpxlate
from dumpxlate import errors
from dumpxlate.verify.compare import compare
from tests.builders import kdump
from tests.builders.guest import Guest, small_guest

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    Cli = Callable[..., subprocess.CompletedProcess[str]]

GUEST = small_guest()
FULL = small_guest(excluded=(), high=False)
KINDS: list[tuple[Guest, dict[str, Any]]] = [
    (GUEST, {"codec": "zlib"}),
    (GUEST, {"codec": ("raw", "zlib", "lzo", "snappy", "zstd")}),
    (GUEST, {"codec": "zlib", "byte_order": ">", "utsname": {"machine": b"s390x"}}),
    (FULL, {"codec": "raw"}),
    (FULL, {"codec": "zstd", "shared_zero": False}),
    (FULL, {"codec": "lzo", "version": 3, "notes": ()}),
    (small_guest(page_size=65536), {"codec": "zlib"}),
]


def broken(tmp_path: Path, guest: Guest, lost: int, **options: Any) -> Path:
    whole = kdump.build(guest, **options)
    path = tmp_path / "in"
    path.write_bytes(bytes(lost) + whole[lost:])
    return path


@pytest.mark.parametrize("all_of_it", [False, True], ids=["header", "header and sub header"])
@pytest.mark.parametrize(("guest", "options"), KINDS, ids=lambda each: str(each) if isinstance(each, dict) else "")
def test_pages_are_found_again(tmp_path: Path, guest: Guest, options: dict[str, Any], all_of_it: bool) -> None:
    path = broken(tmp_path, guest, guest.page_size * (1 + all_of_it), **options)
    with dumpxlate.open(path, format="kdump") as dump:
        assert "the header is lost" in dump.damage[0]
        assert dump.pages.page_size == guest.page_size
        found = dump.read_pages(guest.stored)
        assert [pfn for pfn, row in zip(guest.stored, found, strict=True) if row.tobytes() != guest.pages[pfn]] == []
        assert dump.pages.stored.count == len(guest.stored)
        assert dump.pages.ram.count == len(guest.ram)
        if not all_of_it and options.get("version", 6) == 6:
            assert dump.vmcoreinfo
            assert dump.machine.arch.name == ("s390x" if options.get("byte_order") else "x86_64")
            assert len(dump.cpus) == guest.nr_vcpus


def test_salvage(cli: Cli, tmp_path: Path) -> None:
    path = broken(tmp_path, GUEST, 4096)
    assert cli("info", path).returncode == 2  # nothing says what it is
    refused = cli("convert", path, "--from", "kdump", "-o", "out")
    assert refused.returncode == 5
    assert "the header is lost" in refused.stderr
    assert "--salvage" in refused.stderr
    saved = cli("convert", path, "--from", "kdump", "--salvage", "-o", "out")
    assert saved.returncode == 4, saved.stderr
    whole = tmp_path / "whole"
    whole.write_bytes(kdump.build(GUEST))
    with dumpxlate.open(whole) as a, dumpxlate.open(tmp_path / "out") as b:
        assert compare(a, b).same
    assert json.loads(cli("check", path, "--from", "kdump", "--json").stdout)["missing"]["pages"] == 0


def test_a_truncated_one_gives_what_is_there(tmp_path: Path) -> None:
    whole = kdump.build(FULL, codec="raw")
    path = tmp_path / "in"
    path.write_bytes(bytes(4096) + whole[4096 : len(whole) - 4096 * 20])
    with dumpxlate.open(path, format="kdump") as dump:
        found = dump.read_pages(FULL.stored[:-30])
        assert [row.tobytes() for row in found] == [FULL.pages[pfn] for pfn in FULL.stored[:-30]]
        assert len(dump.damage) == 2


@pytest.mark.parametrize("lost", ["bitmaps", "descriptors", "everything"])
def test_what_cannot_be_placed_is_not_guessed(tmp_path: Path, lost: str) -> None:
    whole = bytearray(kdump.build(FULL, codec="zlib"))
    table = 3 * 4096 + 4096  # header, sub header, and two bitmaps of a block each
    size = {"bitmaps": table, "descriptors": table + 24 * len(FULL.stored), "everything": len(whole)}[lost]
    whole[:size] = bytes(size)
    path = tmp_path / "in"
    path.write_bytes(whole)
    with pytest.raises(errors.CorruptDumpError, match="no bitmaps and descriptors that fit each other"):
        dumpxlate.open(path, format="kdump")


@pytest.mark.parametrize(
    "options", [{}, {"version": 5}, {"layout": "packed", "utsname": {"machine": b"i686"}}], ids=str
)
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_part_is_found_by_the_others_of_its_set(cli: Cli, tmp_path: Path, lost: int, options: dict[str, Any]) -> None:
    paths = [tmp_path / f"part{number}" for number in (1, 2, 3)]
    for path, data in zip(paths, kdump.split_set(FULL, 3, codec="zlib", **options), strict=True):
        path.write_bytes(data if path != paths[lost] else bytes(2 * 4096) + data[2 * 4096 :])
    with dumpxlate.open(*paths, format="kdump") as dump:
        assert [line for line in dump.damage if "the header of" in line] == list(dump.damage)
        assert len(dump.damage) == 1
        found = dump.read_pages(FULL.stored)
        assert [pfn for pfn, row in zip(FULL.stored, found, strict=True) if row.tobytes() != FULL.pages[pfn]] == []
    saved = cli("convert", *paths, "--from", "kdump", "--salvage", "-o", "out")
    assert saved.returncode == 4, saved.stderr
    assert f"the header of {paths[lost]} is lost" in saved.stderr


def test_two_lost_parts_are_one_too_many(tmp_path: Path) -> None:
    paths = [tmp_path / f"part{number}" for number in (1, 2, 3)]
    for path, data in zip(paths, kdump.split_set(FULL, 3, codec="zlib"), strict=True):
        path.write_bytes(data if path == paths[2] else bytes(2 * 4096) + data[2 * 4096 :])
    with pytest.raises(errors.FormatError):
        dumpxlate.open(*paths, format="kdump")


def test_another_file_is_no_part(tmp_path: Path) -> None:
    paths = [tmp_path / f"part{number}" for number in (1, 2, 3)]
    for path, data in zip(paths, kdump.split_set(FULL, 3, codec="zlib"), strict=True):
        path.write_bytes(data if path != paths[1] else b"\xff" * len(data))
    with pytest.raises(errors.FormatError):
        dumpxlate.open(*paths, format="kdump")


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "in"
    for content in (b"x", bytes(100_000), b"\xff" * 100_000, bytes(range(256)) * 1000):
        path.write_bytes(content)
        with pytest.raises(errors.FormatError):
            dumpxlate.open(path, format="kdump")
