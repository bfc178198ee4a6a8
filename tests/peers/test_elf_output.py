"""Other programs open the ELF vmcores that we write."""

from __future__ import annotations

import json
import struct
import zlib
from typing import TYPE_CHECKING

import pytest

import dumpxlate
from tests.builders import elf_cores
from tests.builders.guest import small_guest
from tests.conftest import SAMPLES
from tests.peers import peers
from tests.readers import elf_segments, vmcore_pages

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.peer

DUMPS = {"t0.old4": "t0", "t1.old8": "t1", "t3.old8": "t3", "t5.old8": "t5"}


@pytest.fixture(params=DUMPS)
def translated(
    request: pytest.FixtureRequest, sample: Callable[[str], Path], tmp_path: Path
) -> tuple[Path, dict[int, int]]:
    """An old Xen dump as a vmcore, and the crc32 of each page as Xen's own core file had it."""
    name = DUMPS[request.param]
    out = tmp_path / "vmcore"
    with dumpxlate.open(sample(f"xendump/{request.param}"), p2m=SAMPLES / "xendump" / f"{name}.map") as dump:
        dumpxlate.convert(dump, out)
    rows = json.loads(sample(f"xendump/{name}.truth.json").read_text())["pages"]
    nothing = "0xffffffffffffffff"
    return out, {int(pfn, 16): int(crc, 16) for _, pfn, mfn, crc, _ in rows if nothing not in (pfn, mfn)}


Translated = tuple["Path", dict[int, int]]


def test_readelf_has_no_complaints(translated: Translated) -> None:
    peers.require("readelf")
    path, truth = translated
    view = peers.readelf(path)
    assert view.complaints == ()
    assert sum(load.filesz for load in view.loads) == len(truth) * 4096
    assert view.notes[0].kind == "NT_PRSTATUS"


def test_libkdumpfile_reads_every_page(translated: Translated) -> None:
    peers.require("kdumpfile")
    path, truth = translated
    assert peers.kdumpfile_pages(path, truth) == truth
    absent = [pfn for pfn in range(max(truth)) if pfn not in truth]
    # 0.5.1 reads zeros for a page right behind a segment; any other content would be an invented page.
    assert set(peers.kdumpfile_pages(path, absent).values()) <= {None, zlib.crc32(bytes(4096))}
    assert peers.kdumpfile_attrs(path)["file.format"] == "elf"


def test_makedumpfile_keeps_every_page(translated: Translated, tmp_path: Path) -> None:
    peers.require("makedumpfile", "kdumpfile")
    path, truth = translated
    kdump = peers.refilter(path, tmp_path / "kdump", "-c")
    assert peers.kdumpfile_pages(kdump, truth) == truth


def test_gdb_reads_memory_and_registers(translated: Translated) -> None:
    peers.require("gdb")
    path, truth = translated
    pages = vmcore_pages(path)
    some = sorted(truth)[:: max(len(truth) // 16, 1)]
    core = peers.gdb_core(path, [pfn * 4096 for pfn in some], 64)
    assert {pfn: core.memory[pfn * 4096] for pfn in some} == {pfn: pages[pfn][:64] for pfn in some}
    with dumpxlate.open(path) as dump:
        (cpu,) = dump.cpus
        assert core.threads[1][dump.machine.arch.pc] == cpu.registers[dump.machine.arch.pc]
        assert core.threads[1][dump.machine.arch.sp] == cpu.registers[dump.machine.arch.sp]


def test_volatility_stacks_its_elf_layer(sample: Callable[[str], Path], tmp_path: Path) -> None:
    peers.require("volatility3")
    guest = small_guest()
    source, out = tmp_path / "source", tmp_path / "out"
    source.write_bytes(elf_cores.core(guest, "makedumpfile"))
    with dumpxlate.open(source) as dump:
        dumpxlate.convert(dump, out)
    seen = peers.volatility(out, guest.stored)
    assert "Elf64Layer" in " ".join(seen.layers)
    assert seen.pages == {pfn: zlib.crc32(data) for pfn, data in guest.pages.items()}


def test_drgn_reads_every_page(tmp_path: Path) -> None:
    peers.require("drgn")
    guest = small_guest(excluded=())
    source, out = tmp_path / "source", tmp_path / "out"
    source.write_bytes(elf_cores.core(guest, "plain"))
    with dumpxlate.open(source) as dump:
        dumpxlate.convert(dump, out)
    assert peers.drgn_pages(out, guest.stored) == {pfn: zlib.crc32(data) for pfn, data in guest.pages.items()}


def test_makedumpfile_takes_what_qemu_wrote_once_we_rewrote_it(
    shared: Path, unpacked: Callable[[Path], Path], tmp_path: Path
) -> None:
    """QEMU 7.2 puts its section table where makedumpfile looks for program headers."""
    peers.require("makedumpfile", "kdumpfile")
    theirs = unpacked(shared / "fixtures" / "qemu-core" / "q35" / "elf.dump.xz")
    with pytest.raises(peers.PeerError):
        peers.refilter(theirs, tmp_path / "refused", "-c")
    ours = tmp_path / "ours"
    with dumpxlate.open(theirs) as dump:
        dumpxlate.convert(dump, ours)
    kdump = peers.refilter(ours, tmp_path / "kdump", "-c")
    expected = {pfn: zlib.crc32(data) for pfn, data in vmcore_pages(ours).items()}
    assert peers.kdumpfile_pages(kdump, expected) == expected


def test_readelf_counts_more_segments_than_e_phnum_holds(tmp_path: Path) -> None:
    peers.require("readelf")
    from tests.builders import elf
    from tests.builders.guest import page

    pages = {2 * row: page(2 * row) for row in range(66_000)}
    loads = [elf.Segment(paddr=pfn * 4096, data=b"", memsz=4096) for pfn in pages]
    source, out = tmp_path / "source", tmp_path / "out"
    source.write_bytes(elf.build(loads, []))
    with dumpxlate.open(source) as dump:
        dumpxlate.convert(dump, out)
    assert struct.unpack_from("<H", out.read_bytes()[:64], 56) == (0xFFFF,)
    view = peers.readelf(out)
    assert view.complaints == ()
    assert len(view.loads) == len(pages) == len(elf_segments(out)) - 1
