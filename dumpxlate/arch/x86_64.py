"""x86-64: struct elf_prstatus with user_regs_struct of Linux's arch/x86/include/asm/user_64.h.

QEMU (target/i386/arch_dump.c) writes the same, with ``orig_rax`` 0. There is no CR3 in it.
"""

from __future__ import annotations

from dumpxlate.arch.descriptor import Arch
from dumpxlate.arch.registers import RegisterLayout, row

__all__ = ["ARCH"]

_REGISTERS = (
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax "
    "rip cs rflags rsp ss fs_base gs_base ds es fs gs"
)

ARCH = Arch(
    name="x86_64",
    elf_machine=62,
    word_bits=64,
    endians=("<",),
    page_size=4096,
    prstatus=RegisterLayout("NT_PRSTATUS x86_64", 336, row(_REGISTERS, at=112, width=8)),
    prstatus_pid=32,
    pc="rip",
    sp="rsp",
)
