"""Cases that read and write nothing."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import numpy as np

from tests.bench import converting, guests
from tests.bench.case import US, Prepared, python
from tests.bench.peers import drgn_reader, kdumpfile_python, need

if TYPE_CHECKING:
    from pathlib import Path

# numpy's linear algebra would start threads, and a process that has any is not forked: the command line does the same.
_EVERY_PAGE = """
import os, sys
os.environ["OPENBLAS_NUM_THREADS"] = "1"
import dumpxlate
from dumpxlate.codecs.batch import decode
from dumpxlate.codecs.forks import shared_map
from dumpxlate.codecs.workers import default_threads
from dumpxlate.pages import windows
pages = total = 0
with dumpxlate.open(sys.argv[1]) as dump:
    if len(sys.argv) > 2:  # the digest too
        from tests.bench.guests import digest
        for pfn in range(0, dump.pages.stored.count, 4096):
            wanted = dump.pages.stored.select(pfn, pfn + 4096)
            total += digest(wanted, dump.read_pages(wanted))
            pages += len(wanted)
    else:
        def count(window):
            table = dump.pages.locate(dump.pages.stored.select(*window))
            return len(decode(dump.pages.fetch(table), 4096).table)
        pages = sum(shared_map(count, windows(dump.pages.stored, 4096), workers=default_threads()))
print(pages, total % 2**64)
"""


def flattened(folder: Path, size: int) -> Prepared:
    """Open a flattened file, which has no index, and read every page."""
    source = converting.flattened(folder, size)
    source.with_suffix(".pages").write_text(str(size // guests.PAGE))
    wanted = guests.expected_digest(folder, size)

    def check(said: str) -> None:
        for command in (python(_EVERY_PAGE, source, "digest"), (*drgn_reader(), str(source))):
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            _agree(command, done.stdout, wanted)
        if said.split()[0] != str(wanted[0]):
            raise AssertionError(f"{said.split()[0]} pages, expected {wanted[0]}")

    return Prepared(python(_EVERY_PAGE, source), {"drgn": (*drgn_reader(), str(source), "--time-only")}, check)


def _agree(command: tuple[str, ...], said: str, wanted: tuple[int, int]) -> None:
    if said.split() != [str(number) for number in wanted]:
        raise AssertionError(f"{command[:2]}: found {said.strip()}, expected {wanted}")


def compare(folder: Path, size: int) -> Prepared:
    """Two dumps of the same guest, against cmp of what it is as raw images."""
    need("cmp")
    first, raw = guests.write_elf(folder, size), guests.write_raw(folder, size)
    second, copy = folder / f"guest-{size >> 20}m-b.elf", folder / f"guest-{size >> 20}m-b.raw"
    for source, target in ((first, second), (raw, copy)):
        if not target.exists():
            subprocess.run(["cp", str(source), str(target)], check=True)

    def check(_: str) -> None:
        changed = folder / "changed.elf"
        subprocess.run(["cp", str(first), str(changed)], check=True)
        view = np.memmap(changed, np.uint8, "r+")
        view[-1] ^= 1
        view.flush()
        done = subprocess.run([*US, "compare", str(first), str(changed), "--progress", "none"], capture_output=True)
        changed.unlink()
        if done.returncode != 1:
            raise AssertionError(f"one bit differs, and compare says {done.returncode}")

    ours = (*US, "compare", str(first), str(second), "--progress", "none")
    return Prepared(ours, {"cmp": ("cmp", str(raw), str(copy))}, check)


_PFNS = """
import random, sys
random.seed(5)
pfns = [random.randrange(0x100, int(sys.argv[2])) for _ in range(100_000)]
"""
_OURS = (
    _PFNS
    + """
import zlib, dumpxlate
total = 0
with dumpxlate.open(sys.argv[1]) as dump:
    for pfn in pfns:
        try:
            total += len(dump.read(pfn * 4096, 4096))
        except dumpxlate.errors.PageUnavailableError:
            pass
print(total)
"""
)
_OURS_IN_BATCHES = (
    _PFNS
    + """
import numpy, dumpxlate
pfns = numpy.array(pfns)
total = 0
with dumpxlate.open(sys.argv[1]) as dump:
    for first in range(0, len(pfns), 4096):
        pages = dump.read_pages(pfns[first : first + 4096])
        total += dump.pages.stored.contains(pfns[first : first + 4096]).sum() * pages.shape[1]
print(total)
"""
)
# With its own 1,024 pages of cache, libkdumpfile 0.5.1 crashes when it has read some three thousand pages of a kdump
# file at random; it is fastest with few.
_BINDING = (
    _PFNS
    + """
import kdumpfile
total = 0
dump = kdumpfile.kdumpfile(sys.argv[1])
dump.attr["cache.size"] = 16
for pfn in pfns:
    try:
        total += len(dump.read(kdumpfile.KDUMP_MACHPHYSADDR, pfn * 4096, 4096))
    except kdumpfile.exceptions.NoDataException:
        pass
print(total)
"""
)
_DRGN = (
    _PFNS
    + """
import drgn
from tests.bench.drgn_read import TEXT
total = 0
program = drgn.Program(vmcoreinfo=TEXT)
program.set_core_dump(sys.argv[1])
for pfn in pfns:
    try:
        total += len(program.read(pfn * 4096, 4096, physical=True))
    except drgn.FaultError:
        pass
print(total)
"""
)


def random_pages(folder: Path, size: int, *, format: str, in_batches: bool = False) -> Prepared:
    """A hundred thousand pages of 4 KiB all over the guest: one by one, or for us as arrays of 4,096 pages."""
    source = guests.write_elf(folder, size) if format == "elf" else converting.kdump(folder, size, "lzo")
    arguments = (source, size // guests.PAGE)
    peers = {
        "libkdumpfile's binding": python(_BINDING, *arguments, interpreter=kdumpfile_python()),
        "drgn": python(_DRGN, *arguments),
    }
    if format == "kdump":
        converting.name_machine(source)

    def check(said: str) -> None:
        there = np.zeros(size // guests.PAGE, bool)
        there[guests.ram(size // guests.PAGE)] = True
        pfns = subprocess.run(
            python(_PFNS + "print(*pfns)", *arguments), check=True, capture_output=True, text=True
        ).stdout
        wanted = int(there[np.array(pfns.split(), np.int64)].sum()) * guests.PAGE
        if int(said) != wanted:
            raise AssertionError(f"{said.strip()} bytes, expected {wanted}")

    return Prepared(python(_OURS_IN_BATCHES if in_batches else _OURS, *arguments), peers, check)


def info(folder: Path, size: int) -> Prepared:
    """The start of the program, on a small dump."""
    del size
    source = guests.write_elf(folder, 64 << 20)
    return Prepared((*US, "info", str(source)), {"numpy": python("import numpy")}, lambda said: None)
