"""RISC-V: struct elf_prstatus with user_regs_struct of Linux's arch/riscv/include/uapi/asm/ptrace.h.

The same order with 64 and with 32 bits. x0 is not stored: pc has its place.
"""

from __future__ import annotations

from dumpxlate.arch.descriptor import Arch
from dumpxlate.arch.registers import RegisterLayout, row

__all__ = ["RISCV32", "RISCV64"]

_REGISTERS = "pc ra sp gp tp t0 t1 t2 s0 s1 a0 a1 a2 a3 a4 a5 a6 a7 s2 s3 s4 s5 s6 s7 s8 s9 s10 s11 t3 t4 t5 t6"

RISCV64 = Arch(
    name="riscv64",
    elf_machine=243,
    word_bits=64,
    endians=("<", ">"),
    page_size=4096,
    prstatus=RegisterLayout("NT_PRSTATUS riscv64", 376, row(_REGISTERS, at=112, width=8)),
    prstatus_pid=32,
    pc="pc",
    sp="sp",
)

RISCV32 = Arch(
    name="riscv32",
    elf_machine=243,
    word_bits=32,
    endians=("<", ">"),
    page_size=4096,
    prstatus=RegisterLayout("NT_PRSTATUS riscv32", 204, row(_REGISTERS, at=72, width=4)),
    prstatus_pid=24,
    pc="pc",
    sp="sp",
)
