"""AArch64: struct elf_prstatus with user_pt_regs of Linux's arch/arm64/include/uapi/asm/ptrace.h."""

from __future__ import annotations

from dumpxlate.arch.descriptor import Arch
from dumpxlate.arch.registers import RegisterLayout, numbered, row

__all__ = ["ARCH"]

ARCH = Arch(
    name="aarch64",
    elf_machine=183,
    word_bits=64,
    endians=("<", ">"),
    page_size=4096,
    prstatus=RegisterLayout(
        "NT_PRSTATUS aarch64",
        392,
        numbered("x", 31, at=112, width=8) | row("sp pc pstate", at=360, width=8),
    ),
    prstatus_pid=32,
    pc="pc",
    sp="sp",
)
