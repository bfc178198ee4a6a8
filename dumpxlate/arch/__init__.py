"""Architectures: how they are called, how wide they are, and where their registers lie in notes.

::

    arch = by_machine(62, 64, "<")                   # from an ELF header
    arch = by_name("amd64")                          # from a user or from a kernel's utsname
    pid, registers = read_prstatus(arch, note.desc, "<")
    desc = prstatus_desc(arch, registers, "<", pid=1)

Each architecture is a table in a module of its own. Forms that only one producer writes are beside them:
``qemu_note`` (QEMU's note of x86 CPUs) and ``xen_vcpu`` (Xen's vcpu_guest_context).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from dumpxlate.arch import aarch64, arm, i386, loongarch64, ppc, riscv, s390x, x86_64
from dumpxlate.arch.descriptor import Arch
from dumpxlate.arch.registers import RegisterLayout
from dumpxlate.errors import UnsupportedFeatureError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dumpxlate.structs import Endian

__all__ = [
    "Arch",
    "RegisterLayout",
    "all_arches",
    "by_machine",
    "by_machine_or_unknown",
    "by_name",
    "prstatus_desc",
    "read_prstatus",
]

_ARCHES = (
    x86_64.ARCH,
    i386.ARCH,
    aarch64.ARCH,
    arm.ARCH,
    ppc.PPC64,
    ppc.PPC,
    s390x.ARCH,
    riscv.RISCV64,
    riscv.RISCV32,
    loongarch64.ARCH,
)

_BY_NAME = {arch.name: arch for arch in _ARCHES}

_ALIASES = (
    (r"amd64|x86-64|x64|em64t", x86_64.ARCH),
    (r"i[3-6]86|x86|x86_32p?|ia-?32", i386.ARCH),
    (r"arm64(e[bl])?|aarch64_be|armv8", aarch64.ARCH),
    (r"arm(e[bl]|hf|v[4-8][a-z]+)", arm.ARCH),
    (r"(ppc|powerpc)64(le|el|be)?", ppc.PPC64),
    (r"powerpc(32)?|ppc32", ppc.PPC),
    (r"riscv", riscv.RISCV64),
    (r"loongarch|loong64", loongarch64.ARCH),
)


def all_arches() -> tuple[Arch, ...]:
    """Give every architecture that has a register layout."""
    return _ARCHES


def by_name(name: str) -> Arch:
    """Find an architecture by its name or by one that kernels, distributions or users give it.

    Raises:
        UnsupportedFeatureError: nothing is called so.
    """
    wanted = name.strip().lower()
    if wanted in _BY_NAME:
        return _BY_NAME[wanted]
    for pattern, arch in _ALIASES:
        if re.fullmatch(pattern, wanted):
            return arch
    raise UnsupportedFeatureError(
        f"architecture {name!r}, expected one of {', '.join(_BY_NAME)}", feature=f"architecture {name}"
    )


def by_machine(elf_machine: int, word_bits: int, endian: Endian) -> Arch | None:
    """Find an architecture by what an ELF header says.

    ``word_bits`` is the width of the *file* and decides only where two architectures share a machine number. Dumps
    of 32-bit machines are ELF64 where memory may lie above 4 GiB (QEMU: any PC, since its firmware ends there;
    kexec-tools on Arm with LPAE), and kexec-tools' ``--elf32-core-headers`` puts an x86-64 kernel's dump into an
    ELF32 file.
    """
    found = [arch for arch in _ARCHES if arch.elf_machine == elf_machine and endian in arch.endians]
    for arch in found:
        if arch.word_bits == word_bits:
            return arch
    for arch in found:
        if arch.word_bits < word_bits or arch is x86_64.ARCH:
            return arch
    return None


def by_machine_or_unknown(elf_machine: int, word_bits: int, endian: Endian) -> Arch:
    """Find an architecture as ``by_machine`` does, or make one without registers: its memory can still be read."""
    return by_machine(elf_machine, word_bits, endian) or _unknown(elf_machine, word_bits, endian)


def _unknown(elf_machine: int, word_bits: int, endian: Endian) -> Arch:
    bits: Literal[32, 64] = 64 if word_bits == 64 else 32
    return Arch(
        name=f"unknown-{elf_machine}",
        elf_machine=elf_machine,
        word_bits=bits,
        endians=(endian,),
        page_size=4096,
        prstatus=RegisterLayout(f"NT_PRSTATUS of machine {elf_machine}", 0, {}),
        prstatus_pid=32 if bits == 64 else 24,
        pc="",
        sp="",
    )


def read_prstatus(arch: Arch, desc: bytes | memoryview, endian: Endian) -> tuple[int, dict[str, int]] | None:
    """Read pr_pid and the registers of an NT_PRSTATUS desc, or give None if its size fits no known form."""
    for layout in (arch.prstatus, *arch.other_prstatus):
        if layout.fields and len(desc) == layout.size:
            pid = _pid_layout(arch, layout).unpack(desc, endian)["pid"]
            return pid, layout.unpack(desc, endian)
    return None


def prstatus_desc(arch: Arch, registers: Mapping[str, int], endian: Endian, *, pid: int) -> bytes:
    """Make the whole desc of an NT_PRSTATUS note, in Linux's form; what is not given is zero.

    For i386 the names of x86-64 do as well, since QEMU's note and Xen's HVM contexts have only those.

    Raises:
        UnsupportedFeatureError: the architecture has no register layout.
    """
    if not arch.prstatus.fields:
        raise UnsupportedFeatureError(f"{arch.name}: no register layout", feature=f"registers of {arch.name}")
    if arch is i386.ARCH:
        registers = {**i386.narrow(registers), **registers}
    block = arch.prstatus.pack(registers, endian)
    return _pid_layout(arch, arch.prstatus).pack({"pid": pid}, endian, into=block)


def _pid_layout(arch: Arch, layout: RegisterLayout) -> RegisterLayout:
    return RegisterLayout(layout.name, layout.size, {"pid": (arch.prstatus_pid, 4)})
