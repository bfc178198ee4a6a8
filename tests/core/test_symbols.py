"""Addresses by name out of vmlinux files and System.map, against tables that the test writes with struct."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from dumpxlate.elf.symbols import read_symbols
from dumpxlate.errors import CorruptDumpError, UnknownFormatError
from tests.builders.symbols import elf_symbols, system_map

if TYPE_CHECKING:
    from pathlib import Path

TABLE = {"p2m_top": 0xFFFFFFFF82000010, "top": 0xFFFFFFFF82000020, "max_pfn": 0xFFFFFFFF82000030}


@pytest.mark.parametrize("bits", [64, 32])
def test_elf(tmp_path: Path, bits: int) -> None:
    """Strings share their ends: "top" has no string of its own."""
    table = {name: value & (1 << bits) - 1 for name, value in TABLE.items()}
    path = tmp_path / "vmlinux"
    path.write_bytes(elf_symbols(table, bits=bits, undefined=["start_kernel"]))
    found = read_symbols(path)
    assert {name: found.address(name) for name in table} == table
    for absent in ("p2m", "op", "max_pfn2", "start_kernel", ""):
        assert found.address(absent) is None, absent


def test_names_that_are_alike(tmp_path: Path) -> None:
    """Names of all lengths, with beginnings and ends in common, and some inside others."""
    lengths = [f"{'abcdefghijklmnopqrstuvwxyz'[:length]}" for length in range(1, 27)]
    names = [*lengths, "abcdefgh.ijklmnop", "abcdefgh_ijklmnop", "abcdefgh!xxxxijklmnop", "xyz", "bcdefghijklmnop"]
    table = {name: 0x1000 + number for number, name in enumerate(names)}
    path = tmp_path / "vmlinux"
    path.write_bytes(elf_symbols(table))
    found = read_symbols(path)
    assert {name: found.address(name) for name in names} == table
    for absent in ("abcdefgh?ijklmnop", "abcdefghijklmnop.", "bcdefghi", "z", "abcdefgh_ijklmnopq", "x" * 500):
        assert found.address(absent) is None, absent


def test_a_name_outside_the_strings(tmp_path: Path) -> None:
    body = bytearray(elf_symbols({"first": 1, "second": 2}))
    (at,) = struct.unpack_from("<Q", body, struct.unpack_from("<Q", body, 40)[0] + 64 + 24)
    assert struct.unpack_from("<Q", body, at + 24 + 8) == (1,)
    struct.pack_into("<I", body, at + 24, 0xFFFFFFF0)
    path = tmp_path / "vmlinux"
    path.write_bytes(body)
    found = read_symbols(path)
    assert (found.address("first"), found.address("second")) == (None, 2)


def test_global_symbol_wins(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(elf_symbols([("x", 1, False), ("x", 2, True), ("x", 3, True)]))
    assert read_symbols(path).address("x") == 2
    path.write_bytes(system_map([("x", 1, "d"), ("x", 2, "D")]))
    assert read_symbols(path).address("x") == 2


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_system_map(tmp_path: Path, newline: str) -> None:
    path = tmp_path / "System.map"
    path.write_bytes(system_map(TABLE, newline=newline))
    found = read_symbols(path)
    assert {name: found.address(name) for name in TABLE} == TABLE
    assert found.address("p2m") is None
    assert found.address("p2m.top") is None


def test_files_without_symbols(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for body, words in (
        (b"\n", "neither an ELF file"),
        (b"MZ" + bytes(5000), "neither an ELF file"),
        (elf_symbols(TABLE, strip=True), "without a symbol table"),
    ):
        path.write_bytes(body)
        with pytest.raises(UnknownFormatError, match=words):
            read_symbols(path)


def test_cut_file(tmp_path: Path) -> None:
    body = bytearray(elf_symbols(TABLE))
    (shoff,) = struct.unpack_from("<Q", body, 40)
    struct.pack_into("<Q", body, shoff + 64 + 32, 1 << 40)  # sh_size of .symtab
    path = tmp_path / "vmlinux"
    path.write_bytes(body)
    with pytest.raises(CorruptDumpError, match=r"symtab at .* the file ends at"):
        read_symbols(path)
