"""32-bit Arm: struct elf_prstatus with pt_regs of Linux's arch/arm/include/uapi/asm/ptrace.h.

Machines with memory above 4 GiB (LPAE) have their dumps in ELF64 files, with the same notes.
"""

from __future__ import annotations

from dumpxlate.arch.descriptor import Arch
from dumpxlate.arch.registers import RegisterLayout, numbered, row

__all__ = ["ARCH"]

ARCH = Arch(
    name="arm",
    elf_machine=40,
    word_bits=32,
    endians=("<", ">"),
    page_size=4096,
    prstatus=RegisterLayout(
        "NT_PRSTATUS arm", 148, numbered("r", 16, at=72, width=4) | row("cpsr orig_r0", at=136, width=4)
    ),
    prstatus_pid=24,
    pc="r15",
    sp="r13",
)
