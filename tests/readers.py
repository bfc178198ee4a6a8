"""Readers of our output that share no code with dumpxlate: a few lines of struct each."""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PN_XNUM = 0xFFFF


def elf_segments(path: Path) -> list[tuple[int, int, int, int, int, int]]:
    """(type, offset, vaddr, paddr, filesz, memsz) of each program header of an ELF file of any class and order."""
    with path.open("rb") as file:
        head = file.read(64)
        assert head[:4] == b"\x7fELF"
        wide, order = head[4] == 2, "<>"[head[5] - 1]
        phoff, shoff = struct.unpack_from(order + ("QQ" if wide else "II"), head, 32 if wide else 28)
        phentsize, phnum = struct.unpack_from(order + "HH", head, 54 if wide else 42)
        if phnum == PN_XNUM:
            file.seek(shoff)
            (phnum,) = struct.unpack_from(order + "I", file.read(64), 44 if wide else 28)
        file.seek(phoff)
        table = file.read(phentsize * phnum)
    rows = []
    for at in range(0, len(table), phentsize):
        if wide:
            kind, _, offset, vaddr, paddr, filesz, memsz = struct.unpack_from(order + "IIQQQQQ", table, at)
        else:
            kind, offset, vaddr, paddr, filesz, memsz = struct.unpack_from(order + "6I", table, at)
        rows.append((kind, offset, vaddr, paddr, filesz, memsz))
    return rows


def vmcore_pages(path: Path, page_size: int = 4096) -> dict[int, bytes]:
    """Content of each page that a vmcore holds; every segment must be page-aligned."""
    pages = {}
    with path.open("rb") as file:
        for kind, offset, _, paddr, filesz, _ in elf_segments(path):
            if kind != 1:
                continue
            assert paddr % page_size == filesz % page_size == 0
            file.seek(offset)
            for pfn in range(paddr // page_size, (paddr + filesz) // page_size):
                assert pfn not in pages
                pages[pfn] = file.read(page_size)
                assert len(pages[pfn]) == page_size
    return pages


def vmcore_missing(path: Path, page_size: int = 4096) -> set[int]:
    """Pages that a vmcore knows of, but has no bytes for."""
    missing: set[int] = set()
    for kind, _, _, paddr, filesz, memsz in elf_segments(path):
        if kind == 1:
            missing.update(range((paddr + filesz) // page_size, (paddr + memsz) // page_size))
    return missing


def elf_notes(path: Path) -> list[tuple[str, int, bytes]]:
    """(name, type, desc) of each note of an ELF file."""
    notes = []
    body = path.read_bytes()
    order = "<>"[body[5] - 1]
    for kind, offset, _, _, filesz, _ in elf_segments(path):
        if kind != 4:
            continue
        at, end = offset, offset + filesz
        while at + 12 <= end:
            namesz, descsz, number = struct.unpack_from(order + "3I", body, at)
            name = body[at + 12 : at + 12 + namesz].rstrip(b"\0").decode()
            desc_at = at + 12 + (namesz + 3) // 4 * 4
            notes.append((name, number, body[desc_at : desc_at + descsz]))
            at = desc_at + (descsz + 3) // 4 * 4
    return notes


def raw_pages(path: Path, page_size: int = 4096) -> dict[int, bytes]:
    """Content of each page of a raw image that is not zero; holes of the file are skipped."""
    pages = {}
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        end = 0
        while end < size and (run := _data_behind(file.fileno(), end)):
            start, end = run
            file.seek(start // page_size * page_size)
            for pfn in range(start // page_size, -(-end // page_size)):
                page = file.read(page_size)
                if any(page):
                    pages[pfn] = page
    return pages


def _data_behind(fd: int, at: int) -> tuple[int, int] | None:
    try:
        start = os.lseek(fd, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return None
    return start, os.lseek(fd, start, os.SEEK_HOLE)
