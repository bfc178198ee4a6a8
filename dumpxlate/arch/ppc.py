"""PowerPC: struct elf_prstatus with pt_regs of Linux's arch/powerpc/include/uapi/asm/ptrace.h.

The same order with 64 and with 32 bits; the note has room for 48 registers, of which 44 have names.

QEMU (target/ppc/arch_dump.c, since 2013) leaves pr_pid 0 and puts the registers of 32-bit guests where those of
64-bit ones begin: 328 bytes instead of Linux's 268.
"""

from __future__ import annotations

from dumpxlate.arch.descriptor import Arch
from dumpxlate.arch.registers import RegisterLayout, numbered, row

__all__ = ["PPC", "PPC64"]


def _fields(*, at: int, width: int) -> dict[str, tuple[int, int]]:
    special = "nip msr orig_gpr3 ctr link xer ccr softe trap dar dsisr result"
    return numbered("gpr", 32, at=at, width=width) | row(special, at=at + 32 * width, width=width)


PPC64 = Arch(
    name="ppc64",
    elf_machine=21,
    word_bits=64,
    endians=("<", ">"),
    page_size=65536,
    prstatus=RegisterLayout("NT_PRSTATUS ppc64", 504, _fields(at=112, width=8)),
    prstatus_pid=32,
    pc="nip",
    sp="gpr1",
)

# Linux calls the slot of softe mq here; it means nothing on machines younger than the PowerPC 601.
PPC = Arch(
    name="ppc",
    elf_machine=20,
    word_bits=32,
    endians=(">",),
    page_size=4096,
    prstatus=RegisterLayout("NT_PRSTATUS ppc", 268, _fields(at=72, width=4)),
    prstatus_pid=24,
    pc="nip",
    sp="gpr1",
    other_prstatus=(RegisterLayout("NT_PRSTATUS ppc by QEMU", 328, _fields(at=112, width=4)),),
)
