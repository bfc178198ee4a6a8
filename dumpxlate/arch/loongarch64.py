"""LoongArch: struct elf_prstatus with user_pt_regs of Linux's arch/loongarch/include/uapi/asm/ptrace.h.

Ten reserved words follow the last register. ``csr_era`` holds the address at which the CPU was interrupted.
"""

from __future__ import annotations

from dumpxlate.arch.descriptor import Arch
from dumpxlate.arch.registers import RegisterLayout, numbered, row

__all__ = ["ARCH"]

ARCH = Arch(
    name="loongarch64",
    elf_machine=258,
    word_bits=64,
    endians=("<",),
    page_size=16384,
    prstatus=RegisterLayout(
        "NT_PRSTATUS loongarch64",
        480,
        numbered("r", 32, at=112, width=8) | row("orig_a0 csr_era csr_badv", at=368, width=8),
    ),
    prstatus_pid=32,
    pc="csr_era",
    sp="r3",
)
