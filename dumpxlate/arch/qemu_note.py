"""The QEMU note: struct QEMUCPUState of QEMU's target/i386/arch_dump.c, x86 only.

It holds what NT_PRSTATUS lacks: control registers and whole segments. One layout serves 32- and 64-bit guests,
always little-endian, under the names of x86-64 (see ``i386.narrow``)::

    0    u32 version = 1, u32 size of the struct
    8    rax rbx rcx rdx rsi rdi rsp rbp  r8 ... r15  rip rflags
    152  cs ds es fs gs ss ldt tr gdt idt: u32 selector, u32 limit, u32 flags, u32 pad, u64 base
    392  cr0 ... cr4
    432  kernel_gs_base, since QEMU 3.0; the version stayed 1

A segment gives four names: ``cs`` (the selector), ``cs_limit``, ``cs_flags`` (the high word of its descriptor) and
``cs_base``. ``kernel_gs_base`` is the MSR: whichever base is *not* active. EFER is not stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpxlate.arch.i386 import widen
from dumpxlate.arch.registers import RegisterLayout, numbered, row
from dumpxlate.errors import CorruptDumpError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CPU_STATE", "CPU_STATE_OLD", "VERSION", "pack", "unpack"]

VERSION = 1
"""The only version that exists."""


def _segment(name: str, at: int) -> dict[str, tuple[int, int]]:
    return {
        name: (at, 4),
        f"{name}_limit": (at + 4, 4),
        f"{name}_flags": (at + 8, 4),
        f"{name}_base": (at + 16, 8),
    }


def _fields() -> dict[str, tuple[int, int]]:
    general = "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags"
    fields = row(general, at=8, width=8)
    for i, name in enumerate(["cs", "ds", "es", "fs", "gs", "ss", "ldt", "tr", "gdt", "idt"]):
        fields |= _segment(name, 152 + 24 * i)
    return fields | numbered("cr", 5, at=392, width=8)


CPU_STATE_OLD = RegisterLayout("QEMUCPUState before QEMU 3.0", 432, _fields())
"""Without ``kernel_gs_base``."""

CPU_STATE = RegisterLayout("QEMUCPUState", 440, _fields() | {"kernel_gs_base": (432, 8)})
"""As QEMU writes it since 3.0."""

_HEAD = RegisterLayout("QEMUCPUState", CPU_STATE_OLD.size, {"version": (0, 4), "size": (4, 4)})


def unpack(desc: bytes | memoryview) -> dict[str, int]:
    """Read the registers of a QEMU note; ``kernel_gs_base`` is among them if the note has it.

    Raises:
        CorruptDumpError: the desc is shorter than the oldest form or than it says itself, or of another version.
    """
    head = _HEAD.unpack(desc, "<")
    if head["version"] != VERSION:
        raise CorruptDumpError(f"version {head['version']}, expected {VERSION}", what="QEMUCPUState")
    if not CPU_STATE_OLD.size <= head["size"] <= len(desc):
        raise CorruptDumpError(
            f"size {head['size']}, expected {CPU_STATE_OLD.size} to {len(desc)}", what="QEMUCPUState"
        )
    layout = CPU_STATE if head["size"] >= CPU_STATE.size else CPU_STATE_OLD
    return layout.unpack(desc, "<")


def pack(registers: Mapping[str, int], *, old: bool = False) -> bytes:
    """Make the desc of a QEMU note, version and size included.

    Args:
        registers: by the names of x86-64 or of i386.
        old: make the form before QEMU 3.0.
    """
    layout = CPU_STATE_OLD if old else CPU_STATE
    head = _HEAD.pack({"version": VERSION, "size": layout.size}, "<")
    return layout.pack({**widen(registers), **registers}, "<", into=head.ljust(layout.size, b"\0"))
