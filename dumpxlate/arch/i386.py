"""i386: struct elf_prstatus with user_regs_struct of Linux's arch/x86/include/asm/user_32.h.

QEMU (target/i386/arch_dump.c) has 16-bit selectors with 16 bits of zero padding where Linux has 32-bit slots: the
same bytes. Its QEMU note names the registers of a 32-bit guest as x86-64 does, hence ``widen`` and ``narrow``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpxlate.arch.descriptor import Arch
from dumpxlate.arch.registers import RegisterLayout, row

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ARCH", "narrow", "widen"]

_REGISTERS = "ebx ecx edx esi edi ebp eax ds es fs gs orig_eax eip cs eflags esp ss"

ARCH = Arch(
    name="i386",
    elf_machine=3,
    word_bits=32,
    endians=("<",),
    page_size=4096,
    prstatus=RegisterLayout("NT_PRSTATUS i386", 144, row(_REGISTERS, at=72, width=4)),
    prstatus_pid=24,
    pc="eip",
    sp="esp",
)

_GENERAL = "eax ebx ecx edx esi edi ebp esp eip eflags"
_WIDE = {name: f"r{name[1:]}" for name in _GENERAL.split()} | {"orig_eax": "orig_rax"}
_NARROW = {wide: name for name, wide in _WIDE.items()}


def widen(registers: Mapping[str, int]) -> dict[str, int]:
    """Rename the registers of i386 as those of x86-64 that hold them (eax -> rax); values stay."""
    return {_WIDE.get(name, name): value for name, value in registers.items()}


def narrow(registers: Mapping[str, int]) -> dict[str, int]:
    """Rename the registers of x86-64 as those of i386 (rax -> eax) and cut them to 32 bits; r8 to r15 fall away."""
    return {
        _NARROW.get(name, name): value & 0xFFFFFFFF if name in _NARROW else value
        for name, value in registers.items()
        if not (name[0] == "r" and name[1:].isdigit())
    }
