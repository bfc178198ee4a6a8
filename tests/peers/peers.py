"""Other programs' opinions of a dump file, as plain data.

One small function per peer; ``require`` decides what an absent peer means. A peer that refuses, crashes or hangs
raises ``PeerError`` with its own words. Where a peer's refusal says nothing about the file, its function says so.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Space = Literal["KPHYSADDR", "MACHPHYSADDR", "KVADDR"]
Digest = Literal["crc32", "sha256"]  # sha256: its first 8 bytes as a little-endian word

PROGRAMS = frozenset({"readelf", "makedumpfile", "gdb", "crash"})
MODULES = frozenset({"kdumpfile", "drgn", "volatility3", "distributed"})
SECONDS = 180


class PeerError(Exception):
    """A peer did not do what it was asked; the message is what it said."""


def require(*names: str) -> None:
    """Skips the test where one of these peers is absent; with DUMPXLATE_REQUIRE_PEERS set, fails it."""
    absent = [name for name in names if not _present(name)]
    if not absent:
        return
    reason = f"not installed here: {', '.join(absent)}"
    if os.environ.get("DUMPXLATE_REQUIRE_PEERS", "0") not in ("", "0"):
        pytest.fail(f"DUMPXLATE_REQUIRE_PEERS is set, but {reason}", pytrace=False)
    pytest.skip(reason)


def _present(name: str) -> bool:
    if name in PROGRAMS:
        return shutil.which(name) is not None
    if name in MODULES:
        return _python_with(name) is not None
    raise ValueError(f"no peer is called {name}: known are {', '.join(sorted(PROGRAMS | MODULES))}")


@cache
def _python_with(module: str) -> str | None:
    """The first Python that can import the module: this one, else one on the PATH (Debian's has libkdumpfile)."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    found = (shutil.which("python3", path=folder) for folder in folders)
    for python in dict.fromkeys([sys.executable, *filter(None, found)]):
        done = subprocess.run([python, "-I", "-c", f"import {module}"], capture_output=True)
        if done.returncode == 0:
            return python
    return None


def _run(*command: str | Path, stdin: Path | None = None, **environment: str) -> str:
    """What the program printed, if it ended well."""
    words = [str(word) for word in command]
    with Path(stdin or os.devnull).open("rb") as source:
        try:
            done = subprocess.run(
                words,
                stdin=source,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=SECONDS,
                env={**os.environ, "LC_ALL": "C", **environment},
            )
        except subprocess.TimeoutExpired as error:
            raise PeerError(f"{words[0]}: no answer after {SECONDS} s") from error
    said = done.stdout.decode(errors="replace")
    if done.returncode:
        end = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
        raise PeerError(f"{' '.join(words)}: {end}: {said.strip()[-1500:]}")
    return said


def _ask(module: str, question: str, **arguments: Any) -> Any:
    """Asks through ``ask.py``, run by gdb or by the Python that has the module."""
    script = Path(__file__).with_name("ask.py")
    if module == "gdb":
        command = ["gdb", "-nx", "-batch", "-ex", "set confirm off", "-x", str(script)]
    else:
        command = [_python_with(module) or sys.executable, "-I", str(script)]
    with tempfile.TemporaryDirectory() as folder:
        request = {"question": question, "arguments": arguments}
        Path(folder, "request.json").write_text(json.dumps(request))
        said = _run(*command, PEER_FOLDER=folder)
        answer = Path(folder, "answer.json")
        if not answer.exists():  # gdb -batch ends with status 0 whatever the script did
            raise PeerError(f"{module}: {said.strip()[-1500:]}")
        return json.loads(answer.read_text())


def _numbers(pfns: Iterable[int]) -> list[int]:
    """Plain integers, also out of a numpy array."""
    return [int(pfn) for pfn in pfns]


@dataclass(frozen=True)
class Load:
    """A PT_LOAD segment."""

    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int


@dataclass(frozen=True)
class NoteLine:
    """A note as readelf lists it: ``kind`` is the name it has for the type."""

    owner: str
    size: int
    kind: str


@dataclass(frozen=True)
class ElfView:
    """What readelf sees in an ELF file; ``complaints`` is empty for a file it has no doubts about."""

    bits: int
    machine: str
    loads: tuple[Load, ...]
    notes: tuple[NoteLine, ...]
    complaints: tuple[str, ...]


def readelf(path: Path) -> ElfView:
    """Header, program headers and notes, as binutils reads them."""
    said = _run("readelf", "-hlnW", path)
    loads = re.findall(r"^ +LOAD" + r" +0x([0-9a-f]+)" * 5, said, re.MULTILINE)
    notes = re.findall(r"^  (\S+) +0x([0-9a-f]{8})\t(\S+)", said, re.MULTILINE)
    return ElfView(
        bits=int(re.findall(r"Class: +ELF(32|64)", said)[0]),
        machine=re.findall(r"Machine: +(.*\S)", said)[0],
        loads=tuple(Load(*(int(word, 16) for word in row)) for row in loads),
        notes=tuple(NoteLine(owner, int(size, 16), kind) for owner, size, kind in notes),
        complaints=tuple(line for line in said.splitlines() if line.startswith("readelf: ")),
    )


def kdumpfile_pages(
    path: Path, pfns: Iterable[int], page_size: int = 4096, space: Space = "MACHPHYSADDR", digest: Digest = "crc32"
) -> dict[int, int | None]:
    """A digest of each page as libkdumpfile reads it; None where it has no data.

    Outside Xen MACHPHYSADDR is the guest's physical address. KPHYSADDR is what a PV domain of Xen calls so; elsewhere
    it wants a kernel that it knows ("cannot determine 5-level paging"). 0.5.1 (Debian 12) takes no flattened file and
    finds no page in QEMU's own aarch64 ELF.
    """
    arguments = {"path": str(path), "pfns": _numbers(pfns), "page_size": page_size, "digest": digest}
    return dict(_ask("kdumpfile", "kdumpfile_pages", space=space, **arguments))


def kdumpfile_attrs(path: Path) -> dict[str, int | str]:
    """Attributes such as ``file.format``, ``max_pfn``, ``arch.name``, ``cpu.0.reg.rip``; blobs in hexadecimal."""
    attrs: dict[str, int | str] = _ask("kdumpfile", "kdumpfile_attrs", path=str(path))
    return attrs


def kdumpfile_memory(path: Path, addresses: Iterable[int], length: int = 64) -> dict[int, bytes | None]:
    """Bytes at a Linux kernel's virtual addresses (KVADDR), which needs VMCOREINFO; None where there are none."""
    answer = _ask("kdumpfile", "kdumpfile_memory", path=str(path), addresses=_numbers(addresses), length=length)
    return {at: None if text is None else bytes.fromhex(text) for at, text in answer}


def makedumpfile(*arguments: str | Path, stdin: Path | None = None) -> str:
    """Runs makedumpfile and returns what it printed."""
    return _run("makedumpfile", *arguments, stdin=stdin)


def refilter(source: Path, target: Path, *options: str, level: int = 0, vmlinux: Path | None = None) -> Path:
    """Has makedumpfile read a dump and write ``target`` (kdump-compressed, or ELF with ``-E``).

    It takes an ELF file without VMCOREINFO or vmlinux up to level 1. A kdump-compressed file without VMCOREINFO
    ends 1.7.x by a segmentation fault, at any level.
    """
    symbols: list[str | Path] = ["-x", vmlinux] if vmlinux else []
    makedumpfile(*options, "-d", str(level), *symbols, source, target)
    return target


def flatten(source: Path, *options: str, level: int = 0) -> bytes:
    """What makedumpfile writes to a pipe (``-F``): the flattened form of a kdump-compressed file."""
    done = subprocess.run(
        ["makedumpfile", "-F", *options, "-d", str(level), str(source)], capture_output=True, timeout=SECONDS
    )
    if done.returncode:
        raise PeerError(f"makedumpfile -F: status {done.returncode}: {done.stderr.decode(errors='replace')[-1500:]}")
    return done.stdout


def rearrange(source: Path, target: Path) -> Path:
    """Has makedumpfile put a flattened file in order (``-R``), on which it never ends if the file is empty."""
    if not source.stat().st_size:
        raise PeerError(f"{source}: empty, makedumpfile -R would read it for ever")
    makedumpfile("-R", target, stdin=source)
    return target


@dataclass(frozen=True)
class GdbCore:
    """What gdb makes of a core file: address ranges, registers by lwp, bytes by address (None: not readable)."""

    sections: tuple[tuple[int, int], ...]
    threads: Mapping[int, Mapping[str, int]]
    memory: Mapping[int, bytes | None]


def gdb_core(path: Path, addresses: Iterable[int] = (), length: int = 32) -> GdbCore:
    """Opens an ELF file as a core; addresses are virtual ones, as its PT_LOADs have them.

    Debian's plain gdb knows x86 only: for other machines it shows the ranges and no registers that mean anything.
    """
    answer = _ask("gdb", "gdb_core", path=str(path), addresses=_numbers(addresses), length=length)
    return GdbCore(
        sections=tuple((first, last) for first, last in answer["sections"]),
        threads=dict(answer["threads"]),
        memory={at: None if text is None else bytes.fromhex(text) for at, text in answer["memory"]},
    )


@dataclass(frozen=True)
class GdbKernel:
    """What gdb finds by virtual addresses: ``linux_banner``, where it is, each processor's stack, innermost first."""

    address: int
    banner: str
    stacks: tuple[tuple[str, ...], ...]


def gdb_kernel(path: Path, vmlinux: Path, offset: int = 0) -> GdbKernel:
    """Opens an ELF file as a core, with the kernel's symbols moved by KASLR's offset (VMCOREINFO's KERNELOFFSET)."""
    answer = _ask("gdb", "gdb_kernel", path=str(path), vmlinux=str(vmlinux), offset=offset)
    return GdbKernel(answer["address"], answer["banner"], tuple(map(tuple, answer["stacks"])))


def drgn_pages(
    path: Path,
    pfns: Iterable[int],
    page_size: int = 4096,
    digest: Digest = "crc32",
    vmcoreinfo: Path | None = None,
) -> dict[int, int | None]:
    """A digest of each physical page as drgn reads it; an excluded page reads as zeros.

    The dump needs VMCOREINFO (or ``vmcoreinfo`` names a file with its text), kdump also a filled utsname.
    """
    arguments = {"path": str(path), "pfns": _numbers(pfns), "page_size": page_size, "digest": digest}
    return dict(_ask("drgn", "drgn_pages", vmcoreinfo=_text(vmcoreinfo), **arguments))


@dataclass(frozen=True)
class Kernel:
    """What drgn finds by following a kernel's own structures; ``tasks`` are command names by pid."""

    release: str
    cpus: int
    tasks: Mapping[int, str]


def drgn_kernel(path: Path, vmlinux: Path, vmcoreinfo: Path | None = None) -> Kernel:
    """Opens the dump with the kernel's debug information."""
    arguments = {"path": str(path), "vmlinux": str(vmlinux), "vmcoreinfo": _text(vmcoreinfo)}
    answer = _ask("drgn", "drgn_kernel", **arguments)
    tasks = {int(pid): name for pid, name in answer["tasks"].items()}
    return Kernel(release=answer["release"], cpus=answer["cpus"], tasks=tasks)


def drgn_virtual(path: Path, addresses: Iterable[int], length: int) -> dict[int, bytes | None]:
    """Bytes at virtual addresses as drgn reads them, by the page tables that VMCOREINFO names."""
    return _by_address(_ask("drgn", "drgn_virtual", path=str(path), addresses=_numbers(addresses), length=length))


def volatility_virtual(
    path: Path, cr3: int, addresses: Iterable[int], length: int, layer: str = "Intel32e"
) -> dict[int, bytes | None]:
    """Bytes at virtual addresses as an Intel layer of Volatility 3 reads them, on an ELF file or on bare memory."""
    arguments = {"path": str(path), "cr3": cr3, "addresses": _numbers(addresses), "length": length}
    return _by_address(_ask("volatility3", "volatility_virtual", layer=layer, **arguments))


def _by_address(answer: list[tuple[int, str | None]]) -> dict[int, bytes | None]:
    return {address: None if text is None else bytes.fromhex(text) for address, text in answer}


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def crash(paths: Path | Sequence[Path], vmlinux: Path, *commands: str) -> str:
    """What crash prints for these commands; several files are a split set.

    It needs the vmlinux of the very build and takes some 8 s to read it: ask everything of a file in one call.
    """
    files = [paths] if isinstance(paths, Path) else paths
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "commands")
        script.write_text("".join(f"{command}\n" for command in (*commands, "quit")))
        return _run("crash", "-s", "-i", script, vmlinux, *files)


def crash_table(said: str) -> dict[str, str]:
    """The lines of crash's ``sys`` by their names: CPUS, RELEASE, MEMORY, PANIC and so on."""
    rows = re.findall(r"^([ A-Z]{12}): (.*)$", said, re.MULTILINE)
    return {key.strip(): value.strip() for key, value in rows}


@dataclass(frozen=True)
class Stacked:
    """The layers Volatility 3 put on a file, lowest first, and page digests through the topmost."""

    layers: tuple[str, ...]
    pages: Mapping[int, int | None]


def volatility(path: Path, pfns: Iterable[int] = (), page_size: int = 4096, digest: Digest = "crc32") -> Stacked:
    """Lets Volatility 3 recognise the container and reads pages through it.

    It drops the PT_LOADs of an ELF file whose filesz is not memsz; on a file that it does not know, the stack is
    ``FileLayer`` alone and "pages" are offsets in the file.
    """
    arguments = {"path": str(path), "pfns": _numbers(pfns), "page_size": page_size, "digest": digest}
    answer = _ask("volatility3", "volatility", **arguments)
    return Stacked(layers=tuple(answer["layers"]), pages=dict(answer["pages"]))


def volatility_physical(path: Path, cr3: int, addresses: Iterable[int]) -> dict[int, int | None]:
    """Physical addresses as Volatility 3 finds them through 4-level page tables; None where it finds none.

    Of segments that share memory, as those of a dump with virtual addresses do, it reads only some.
    """
    arguments = {"path": str(path), "cr3": cr3, "addresses": _numbers(addresses)}
    return dict(_ask("volatility3", "volatility_physical", **arguments))
