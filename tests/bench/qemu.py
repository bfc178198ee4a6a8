"""Cases that take guest memory out of the core of a QEMU process."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tests.bench import guests
from tests.bench.case import US, AbsentError, Prepared
from tests.bench.peers import need
from tests.builders import qemu_core
from tests.builders.guest import small_guest
from tests.builders.qemu_core import Block, Range, Region
from tests.readers import elf_segments

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

QUIET = ("--progress", "none", "--force")
CORE, DEBUG_FILE, SCRIPT = "DUMPXLATE_QEMU_CORE", "DUMPXLATE_QEMU_DEBUG", "DUMPXLATE_QEMU_SCRIPT"
_HOST = 0x200000000000  # where no program is
_MIB = 1 << 20


def core_to_elf(folder: Path, size: int) -> Prepared:
    """A core made by our builder, whose zero pages are holes as in a kernel's, against a copy of the output."""
    source, profile = folder / f"qemu-{size >> 20}m.core", folder / "qemu.json"
    out, copy, model = folder / "out.elf", folder / "copy", folder / "model.elf"
    if not source.exists():
        _write_core(source, profile, size)
    ours = (*US, "convert", str(source), "--profile", str(profile), *QUIET, "-o")
    subprocess.run([*ours, str(model)], check=True)
    peers = {"cp": ("sh", "-c", f"cp {model} {copy} && sync {copy}")}
    return Prepared((*ours, str(out)), peers, lambda _: _is_the_guest(out, size), (out, copy))


def _write_core(path: Path, profile: Path, size: int) -> None:
    block = Block("pc.ram", bytes(guests.PAGE))
    ranges = [Range(0, size, Region(block))]
    made = qemu_core.build(small_guest(), blocks=[block], ranges=ranges, stack=False)
    profile.write_text(json.dumps(made.profile))
    body = bytearray(made.data[: -guests.PAGE])
    host = struct.pack("<Q", block.host)
    header, held = body.index(host) - 16, body.rindex(host)
    struct.pack_into("<2Q", body, header + 32, size, size)
    struct.pack_into("<2Q", body, held + 24, size, size)
    _write_memory(path, bytes(body), size)


def _write_memory(path: Path, head: bytes, size: int) -> None:
    """Write the guest's pages behind what stands before them; zero pages are holes."""
    with path.open("wb") as file:
        file.write(head)
        for block in guests.pages(size // guests.PAGE):
            for run in np.split(block, np.flatnonzero(np.diff(block.any(axis=1))) + 1):
                if run.any():
                    file.write(run.tobytes())
                else:
                    file.seek(run.nbytes, 1)
        file.truncate(len(head) + size)


def _is_the_guest(vmcore: Path, size: int) -> None:
    """Compare every page of a vmcore below 4 GiB with the model guest, without dumpxlate."""
    body = np.memmap(vmcore, np.uint8, "r")
    (first,) = [row for row in elf_segments(vmcore) if row[0] == 1 and row[3] == 0]
    at = first[1]
    for block in _blocks(size):
        if not (body[at : at + block.nbytes].reshape(block.shape) == block).all():
            raise AssertionError(f"{vmcore}: pages from file offset {at:#x} on differ")
        at += block.nbytes


def _blocks(size: int) -> Iterator[NDArray[np.uint8]]:
    return guests.pages(size // guests.PAGE)


def core_against_gdb(folder: Path, size: int, *, knowledge: str, mib: int = 256) -> Prepared:
    """A real core whose guest is made larger, against gdb with QEMU's own script.

    The core is that of a guest of 4 MiB (``lab/qemu_core.py``): its ``pc.ram`` is put elsewhere, and made so many MiB,
    of which there is room for 3,072 before the devices.
    """
    need("gdb")
    paths = {name: os.environ.get(name, "") for name in (CORE, DEBUG_FILE, SCRIPT)}
    absent = [name for name, path in paths.items() if not path]
    if absent:
        raise AbsentError(f"{', '.join(absent)} must name a core, its debug file, QEMU's dump-guest-memory.py")
    size = min(size, mib * _MIB)
    names = (f"real-{size // _MIB}m.core", "real.json", "out.elf", "theirs.elf")
    source, profile, out, theirs = (folder / name for name in names)
    if not source.exists():
        _enlarge(Path(paths[CORE]), source, size)
        subprocess.run([*US, "qemu-profile", paths[DEBUG_FILE], "-o", str(profile), "--force"], check=True)
    told = ("--profile", str(profile)) if knowledge == "profile" else ("--debug-file", paths[DEBUG_FILE])
    script = (
        "-ex",
        f"core-file {source}",
        "-ex",
        f"add-symbol-file {paths[DEBUG_FILE]} -o {_bias(source, profile):#x}",
    )
    script += ("-ex", f"source {paths[SCRIPT]}", "-ex", f"dump-guest-memory {theirs} X86_64")
    return Prepared(
        (*US, "convert", str(source), *told, *QUIET, "-o", str(out)),
        {"gdb, dump-guest-memory.py": ("gdb", "-q", "-nx", "-batch", *script)},
        lambda _: _is_the_guest(out, size),
        (out, theirs),
    )


def _bias(core: Path, profile: Path) -> int:
    """Where the program was loaded: AT_ENTRY in the auxiliary vector, less the entry point."""
    entry = int(json.loads(profile.read_text())["entry"], 16)
    body = core.read_bytes()[: 1 << 20]
    at = body.index(struct.pack("<Q", 9), body.index(struct.pack("<Q", 3), 0x1000))
    return int(struct.unpack_from("<Q", body, at + 8)[0]) - entry


def _enlarge(core: Path, target: Path, size: int) -> None:
    """Move ``pc.ram`` (4 MiB) to the end of the core, and give it the pages of a larger guest."""
    body = bytearray(core.read_bytes())
    at = _block(body)
    host = struct.unpack_from("<Q", body, at - 52)[0]
    struct.pack_into("<Q", body, at - 52, _HOST)
    struct.pack_into("<2Q", body, at - 28, size, size)
    last = struct.pack("<5Q", _MIB, _MIB, 0, 3 * _MIB, 0)  # the FlatRange from 1 MiB on
    place = body.find(last)
    while place >= 0:
        struct.pack_into("<Q", body, place + 24, size - _MIB)
        place = body.find(last, place + 1)
    body += bytes(-len(body) % guests.PAGE)
    for header in range(64, 64 + 56 * struct.unpack_from("<H", body, 56)[0], 56):
        kind, _, _, vaddr, _, _, memsz = struct.unpack_from("<2I5Q", body, header)
        if kind == 1 and vaddr <= host < vaddr + memsz:
            struct.pack_into("<2Q", body, header + 8, len(body), _HOST)
            struct.pack_into("<2Q", body, header + 32, size, size)
    _write_memory(target, bytes(body), size)


def _block(body: bytearray) -> int:
    """Find the name in the RAMBlock of ``pc.ram``: its length stands before it, twice."""
    at = body.find(b"pc.ram\0")
    while at >= 0:
        if struct.unpack_from("<2Q", body, at - 28) == (4 * _MIB, 4 * _MIB):
            return at
        at = body.find(b"pc.ram\0", at + 1)
    raise AbsentError("the core is not that of a QEMU with 4 MiB of pc.ram")
