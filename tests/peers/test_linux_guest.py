"""A real Linux guest, dumped by QEMU, goes through us; crash, drgn and libkdumpfile find in our files what is in it."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import pytest

import dumpxlate
from dumpxlate.format import OpenOptions, WriteOptions
from dumpxlate.registry import open_dump
from tests.peers import peers

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.peer

PAGE = 4096
ROMS = 0x100  # below it lie ROMs and VRAM, which the plain image shows otherwise

TARGETS = [
    ("elf", None),
    ("kdump", "zlib"),
    ("kdump", "lzo"),
    ("kdump", "snappy"),
    ("kdump", "zstd"),
    ("kdump", "none"),
]
NAMES = [f"{target}-{codec}" if codec else target for target, codec in TARGETS]


@pytest.fixture(scope="module")
def memory(guest: Path) -> dict[int, int]:
    """crc32 of every page of the guest's memory, taken from the guest itself."""
    with (guest / "ram.raw").open("rb") as file:
        pages = enumerate(iter(lambda: file.read(PAGE), b""))
        return {pfn: zlib.crc32(body) for pfn, body in pages if pfn >= ROMS}


@pytest.fixture(scope="module", params=TARGETS, ids=NAMES)
def ours(request: pytest.FixtureRequest, guest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """QEMU's flattened kdump, and QEMU's ELF for the kdump targets, written by us."""
    target, codec = request.param
    source = guest / ("kdump-zlib" if target == "elf" else "elf")
    out = tmp_path_factory.mktemp("ours") / "vmcore"
    with dumpxlate.open(source) as dump:
        dumpxlate.convert(dump, out, target, WriteOptions(compress=codec))
    return out


def test_libkdumpfile_reads_every_page(ours: Path, memory: dict[int, int], facts: dict[str, Any]) -> None:
    peers.require("kdumpfile")
    assert peers.kdumpfile_pages(ours, memory) == memory
    assert peers.kdumpfile_attrs(ours)["cpu.1.reg.rip"] == facts["registers"][1]["rip"]


def test_drgn_reads_every_page_and_lists_tasks(
    guest: Path, ours: Path, memory: dict[int, int], facts: dict[str, Any]
) -> None:
    peers.require("drgn")
    kernel = peers.drgn_kernel(ours, guest / "vmlinux")
    assert (kernel.release, kernel.cpus) == (facts["release"], 2)
    assert facts["task"] in kernel.tasks.values()
    assert peers.drgn_pages(ours, memory) == memory


def test_crash_tells_system_tasks_and_log(guest: Path, ours: Path, facts: dict[str, Any]) -> None:
    peers.require("crash")
    tasks = "list task_struct.tasks -s task_struct.comm -h init_task"
    said = peers.crash(ours, guest / "vmlinux", "sys", "ps", "log", tasks)
    table = peers.crash_table(said)
    assert (table["RELEASE"], table["CPUS"]) == (facts["release"], "2")
    assert f'comm = "{facts["task"]}' in said
    assert "swapper/0" in said  # ps
    assert f"Linux version {facts['release']}" in said  # log


@pytest.mark.parametrize(("target", "codec"), [TARGETS[0], TARGETS[1], TARGETS[2], TARGETS[5]])
def test_makedumpfile_filters_what_we_write(guest: Path, tmp_path: Path, target: str, codec: str | None) -> None:
    """QEMU's own kdump it refuses: the phys_base in its header is wrong.

    Debian's knows neither snappy nor zstd, and from kdump input it takes no memory beyond the kernel's own mem_map:
    the VRAM below 4 GiB, which QEMU dumps too, is cut off first.
    """
    peers.require("makedumpfile")
    ram, ours = tmp_path / "ram", tmp_path / "ours"
    with dumpxlate.open(guest / "elf") as dump:
        dumpxlate.convert(dump, ram, "elf", WriteOptions(length=(guest / "ram.raw").stat().st_size))
    with dumpxlate.open(ram) as dump:
        dumpxlate.convert(dump, ours, target, WriteOptions(compress=codec))
    filtered = peers.refilter(ours, tmp_path / "filtered", "-l", level=31)
    with dumpxlate.open(ours) as before, dumpxlate.open(filtered) as after:
        held = after.pages.stored.select(0, 1 << 30)
        assert 0 < len(held) < before.pages.stored.count
        assert (after.read_pages(held) == before.read_pages(held)).all()


@pytest.mark.parametrize("options", [("-c", 0), ("-l", 0), ("-c", 1), ("-l", 31), ("-E", 0), ("-E", 31)])
def test_what_makedumpfile_writes_opens_here(
    guest: Path, tmp_path: Path, memory: dict[int, int], options: tuple[str, int]
) -> None:
    peers.require("makedumpfile")
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    with dumpxlate.open(guest / "elf") as dump:
        dumpxlate.convert(dump, ours)
    peers.refilter(ours, theirs, options[0], level=options[1])
    with dumpxlate.open(theirs) as dump:
        assert not dump.damage
        held = [pfn for pfn in memory if dump.states([pfn])[0].name in ("STORED", "ZERO")]
        assert len(held) > 1000
        assert {pfn: zlib.crc32(row.tobytes()) for pfn, row in zip(held, dump.read_pages(held), strict=True)} == {
            pfn: memory[pfn] for pfn in held
        }
        if options[1] == 0:
            assert len(held) == len(memory)


def test_makedumpfile_elf_leaves_out_runs_of_zero_pages(guest: Path, tmp_path: Path, memory: dict[int, int]) -> None:
    """With ``-E -d 1`` runs of 256 zero pages and more have memory without bytes; shorter ones stay in the file."""
    peers.require("makedumpfile")
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    with dumpxlate.open(guest / "elf") as dump:
        dumpxlate.convert(dump, ours)
    peers.refilter(ours, theirs, "-E", level=1)
    with open_dump([theirs]) as dump:
        left_out = [pfn for pfn in memory if dump.states([pfn])[0].name == "EXCLUDED"]
        assert len(left_out) >= 256
        assert {memory[pfn] for pfn in left_out} == {zlib.crc32(bytes(PAGE))}
    with open_dump([theirs], options=OpenOptions(missing="zero")) as dump:
        found = zip(memory, dump.read_pages(list(memory)), strict=True)
        assert {pfn: zlib.crc32(row.tobytes()) for pfn, row in found} == memory


def test_what_makedumpfile_flattens_and_splits_opens_here(guest: Path, tmp_path: Path, memory: dict[int, int]) -> None:
    peers.require("makedumpfile")
    ours = tmp_path / "ours"
    with dumpxlate.open(guest / "elf") as dump:
        dumpxlate.convert(dump, ours)
    (tmp_path / "flat").write_bytes(peers.flatten(ours, "-c"))
    parts = [tmp_path / f"part{number}" for number in range(3)]
    peers.makedumpfile("--split", "-c", "-d", "0", ours, *parts)
    for files in ([tmp_path / "flat"], parts[::-1]):
        with dumpxlate.open(*files) as dump:
            found = zip(memory, dump.read_pages(list(memory)), strict=True)
            assert {pfn: zlib.crc32(row.tobytes()) for pfn, row in found} == memory
