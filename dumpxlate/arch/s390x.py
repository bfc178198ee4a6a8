"""s390x: struct elf_prstatus with s390_regs of Linux's arch/s390/include/uapi/asm/ptrace.h.

The access registers are 32 bits wide, all others 64.
"""

from __future__ import annotations

from dumpxlate.arch.descriptor import Arch
from dumpxlate.arch.registers import RegisterLayout, numbered, row

__all__ = ["ARCH"]

ARCH = Arch(
    name="s390x",
    elf_machine=22,
    word_bits=64,
    endians=(">",),
    page_size=4096,
    prstatus=RegisterLayout(
        "NT_PRSTATUS s390x",
        336,
        row("psw_mask psw_addr", at=112, width=8)
        | numbered("gpr", 16, at=128, width=8)
        | numbered("acr", 16, at=256, width=4)
        | row("orig_gpr2", at=320, width=8),
    ),
    prstatus_pid=32,
    pc="psw_addr",
    sp="gpr15",
)
