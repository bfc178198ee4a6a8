"""Hostile input, as a user meets it: escape sequences of guests, files that shrink, headers that ask for everything."""

from __future__ import annotations

import json
import os
import re
import resource
import struct
import subprocess
import sys
import zlib
from typing import TYPE_CHECKING

import pytest
import zstandard

from tests.builders import dwarf, elf, flattened, kdump, lime, qemu_stream, xen_stream
from tests.builders.elf_notes import note, vmcoreinfo
from tests.builders.guest import small_guest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Cli = Callable[..., subprocess.CompletedProcess[str]]

GUEST = small_guest(ranges=[(0, 8), (0x20, 4)], excluded=())
EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\x08\r\x7f\x00"
INFO = f"OSRELEASE=6.1{EVIL.replace(chr(0), '')}\nPAGESIZE=4096\nSYMBOL(a{EVIL[:5]})=ff\nKERNELOFFSET=0\n"
UTSNAME = {
    name: EVIL.replace("\0", "").encode("latin-1")
    for name in ("sysname", "nodename", "release", "version", "domainname")
}
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def evil_elf() -> bytes:
    notes = [vmcoreinfo(INFO), note(EVIL[:20].replace("\0", "x"), 1, b"12345678")]
    loads = [elf.Segment(paddr=0, data=GUEST.run(0, 8))]
    return elf.build(loads, notes)


def evil_kdump() -> bytes:
    notes = [note("ev\x1b[31m", 7, b"1234")]
    return kdump.build(GUEST, utsname=UTSNAME, notes=notes, vmcoreinfo=INFO)


def evil_stream() -> bytes:
    config = json.dumps({"c_info": {"name": EVIL + "\u202e"}}).encode()
    return xen_stream.xl_header(config + b"\0") + xen_stream.libxl(xen_stream.libxc(GUEST))


FILES = {"elf": evil_elf, "kdump": evil_kdump, "xen_stream": evil_stream}
COMMANDS = (
    ("info", "FILE"),
    ("info", "--json", "FILE"),
    ("regs", "FILE"),
    ("regs", "--json", "FILE"),
    ("vmcoreinfo", "FILE"),
    ("vmcoreinfo", "--json", "FILE"),
    ("map", "FILE"),
    ("map", "--json", "FILE"),
    ("check", "FILE"),
    ("check", "--json", "FILE"),
    ("compare", "FILE", "OTHER"),
    ("compare", "--json", "FILE", "OTHER"),
    ("translate", "FILE", "0xffffffff81000000"),
    ("convert", "FILE", "-o", "out.elf", "--report", "report.json"),
    ("convert", "FILE", "-o", "out.raw", "--to", "raw"),
)


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_prints_what_a_terminal_would_act_on(
    cli: Cli, tmp_path: Path, kind: str, command: tuple[str, ...]
) -> None:
    """Not even where its name is hostile too."""
    path, other = tmp_path / "du\x1b[31mmp", tmp_path / "other"
    path.write_bytes(FILES[kind]())
    other.write_bytes(elf.build([elf.Segment(paddr=0, data=GUEST.run(0, 8))], [vmcoreinfo("OSRELEASE=7\n")]))
    names = {"FILE": str(path), "OTHER": str(other)}
    done = cli(*(names.get(word, word) for word in command))
    assert not CONTROL.search(done.stdout), ascii(done.stdout)
    assert not CONTROL.search(done.stderr), ascii(done.stderr)
    assert "Traceback" not in done.stderr
    if "--json" in command and done.stdout:
        assert not re.search(r"\\u00(?:[01]|7f|[89])", done.stdout)
    report = tmp_path / "report.json"
    if report.exists():
        assert not re.search(r"\\u00(?:[01]|7f|[89])|[\x00-\x09\x0b-\x1f]", report.read_text())


def test_a_guest_cannot_add_lines_to_a_table(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    path.write_bytes(kdump.build(GUEST, utsname=UTSNAME | {"nodename": b"host\nDamage\n  none"}))
    assert "host\\nDamage\\n  none" in cli("info", path).stdout


def test_errors_are_printable(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "x\x1b[31m\x9b"
    path.write_bytes(b"\x1b[2J\x1b[31m" * 10)
    for command in ("info", "check", "vmcoreinfo"):
        done = cli(command, path, "--from", "lime")
        assert done.returncode
        assert not CONTROL.search(done.stderr), ascii(done.stderr)


SHRINK = """
import os, sys
import dumpxlate
from dumpxlate.verify.check import check
path, size = sys.argv[1], int(sys.argv[2])
with dumpxlate.open(path) as dump:
    os.truncate(path, size)
    try:
        check(dump, threads=0)
        print(dump.pages.ram.count, dump.vmcoreinfo and dump.vmcoreinfo.text)
    except dumpxlate.errors.DumpxlateError as error:
        print(type(error).__name__, error.offset)
"""


@pytest.mark.parametrize("build", [lambda: kdump.build(GUEST), evil_elf, lambda: lime.build(GUEST)])
@pytest.mark.parametrize("size", [0, 4096, 8192 + 100, 20000])
def test_a_dump_that_shrinks_while_it_is_open_is_an_error(
    tmp_path: Path, build: Callable[[], bytes], size: int
) -> None:
    path = tmp_path / "dump"
    path.write_bytes(build())
    done = subprocess.run([sys.executable, "-c", SHRINK, path, str(size)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
    assert done.stdout.startswith("TruncatedDumpError"), done


def shared_notes() -> bytes:
    """Thousands of PT_NOTE segments over one note of a megabyte."""
    count, body = 3000, struct.pack("<III", 0, 1 << 20, 1) + bytes(1 << 20)
    head = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 4, 62, 1, 0, 64, 0, 0, 64, 56, count + 1, 0, 0, 0)
    at = 64 + 56 * (count + 1)
    notes = struct.pack("<IIQQQQQQ", 4, 0, at, 0, 0, len(body), len(body), 0) * count
    return head + notes + struct.pack("<IIQQQQQQ", 1, 7, at, 0, 0, 4096, 4096, 0) + body


def shared_memory() -> bytes:
    """Thousands of segments of memory over the same megabytes."""
    count = 3000
    at = 64 + 56 * count
    head = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 4, 62, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0)
    loads = [struct.pack("<IIQQQQQQ", 1, 7, at, 0, row << 30, 1 << 22, 1 << 22, 0) for row in range(count)]
    return head + b"".join(loads) + bytes(1 << 22)


def tiny_ranges() -> bytes:
    """A hundred thousand ranges of one byte."""
    return b"".join(lime.record_header(lime.LIME, 1, at * 3, 1) + b"x" for at in range(100_000))


def bitmaps_of_holes() -> bytes:
    """64 TiB of memory, whose bitmaps are holes of a container."""
    pages = 1 << 34
    blocks = 2 * pages // (8 * 4096)
    parts = kdump.parts(GUEST, header={"bitmap_blocks": blocks}, sub={"max_mapnr_64": pages})
    records = [*parts[:2], ((2 + blocks) * 4096, bytes(64))]
    return flattened.wrap(records=records)


def zeros_without_end() -> bytes:
    """A raw image of 64 TiB, none of which is there."""
    return flattened.wrap(records=[(0, b"\1" * 4096), ((1 << 46) - 4096, bytes(16))])


def linked_tables() -> bytes:
    """A program header table that reaches far behind the file."""
    return struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 4, 62, 1, 0, 64, 0, 0, 64, 56, 60000, 0, 0, 0).ljust(
        8192, b"\0"
    )


def lines_without_end() -> bytes:
    """VMCOREINFO of a million lines, each with a symbol."""
    text = "".join(f"SYMBOL(name{number})={number:016x}\n" for number in range(1_000_000))
    return elf.build([elf.Segment(paddr=0, data=GUEST.run(0, 8))], [vmcoreinfo("OSRELEASE=6.1\n" + text)])


def names_without_end() -> bytes:
    """As many sections as a table can have, which all begin somewhere in one endless name."""
    count, names = 60_000, b"n" * (8 << 20)
    at = 64 + 64 * count
    head = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 4, 62, 1, 0, 0, 64, 0, 64, 56, 0, 64, count, 1)
    row = struct.Struct("<IIQQQQIIQQ")
    return head + b"".join(row.pack(each, 3, 0, 0, at, len(names), 0, 0, 1, 0) for each in range(count)) + names


def xml_without_end() -> bytes:
    """A domain of 40 MiB, whose name never ends, and then again and again."""
    xml = "<domain><name>" + "x" * (20 << 20) + "<name>\x1b[2J" * (2 << 20)
    return qemu_stream.libvirt(qemu_stream.save(GUEST), xml=xml)


BOMBS = (
    shared_notes,
    shared_memory,
    tiny_ranges,
    bitmaps_of_holes,
    zeros_without_end,
    linked_tables,
    lines_without_end,
    names_without_end,
    xml_without_end,
)


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


MEASURED = """
import resource, sys
from dumpxlate.cli import main
try:
    main()
except SystemExit as left:
    code = left.code or 0
anonymous = 0
for line in open("/proc/self/status"):
    if line.startswith("VmHWM"):
        anonymous = int(line.split()[1])
print("PEAK", anonymous, code, file=sys.stderr)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")  # noqa: PTH110
@pytest.mark.parametrize("command", ["info", "check", "map", "vmcoreinfo"])
@pytest.mark.parametrize("build", BOMBS)
def test_a_small_file_takes_no_great_memory(tmp_path: Path, build: Callable[[], bytes], command: str) -> None:
    """An answer or an error, within limits that a file of its size may have."""
    path = tmp_path / "bomb"
    path.write_bytes(build())
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, command, path],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limited,
    )
    assert "PEAK" in done.stderr, (done.returncode, done.stderr[-2000:])
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    peak, code = map(int, done.stderr.rpartition("PEAK")[2].split())
    assert peak < 512 << 10
    assert code in (0, 1, 2, 3, 5)
    assert len(done.stdout) < 2 << 20
    assert not CONTROL.search(done.stdout), ascii(CONTROL.search(done.stdout))


def packed_debug_information(kind: int) -> bytes:
    """A section of debug information that says to be three gigabytes, and begins with zeros."""
    size, zeros = 3 << 30, bytes(1 << 26)
    body = zlib.compress(zeros, 1) if kind == 1 else zstandard.compress(zeros, 1)
    section = struct.pack("<IIQQ", kind, 0, size, 1) + body
    made = dwarf.elf_file({".debug_info": section, ".debug_abbrev": b"\0", ".debug_str": b"FlatRange\0"})
    table = int.from_bytes(made[40:48], "little")
    return made[: table + 64 + 8] + struct.pack("<Q", 0x800) + made[table + 64 + 16 :]  # SHF_COMPRESSED


@pytest.mark.parametrize("kind", [1, 2], ids=["zlib", "zstd"])
def test_debug_information_that_unpacks_to_gigabytes_is_refused(tmp_path: Path, kind: int) -> None:
    path = tmp_path / "debug"
    path.write_bytes(packed_debug_information(kind))
    command = [sys.executable, "-c", MEASURED, "qemu-profile", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limited)
    assert "PEAK" in done.stderr, (done.returncode, done.stderr[-2000:])
    peak, code = map(int, done.stderr.rpartition("PEAK")[2].split())
    assert "3,221,225,472 bytes unpacked" in done.stderr
    assert (code, peak < 256 << 10) == (5, True)
