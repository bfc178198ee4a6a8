"""Where a program was loaded: what its addresses moved by, against those that it was linked to.

The kernel tells a process where its entry point is (AT_ENTRY), and a core has that in NT_AUXV. It is that of another
program where the process was started through the dynamic linker's own command line, and it may be lost or damaged;
NT_FILE, which lists what was mapped, then tells where the program's first page lies.

Sources: linux fs/binfmt_elf.c, include/uapi/linux/auxvec.h; elf(5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpxlate.elf.container import PT_NOTE
from dumpxlate.errors import CorruptDumpError
from dumpxlate.formats.qemu_core.process import AT_ENTRY

if TYPE_CHECKING:
    from dumpxlate.formats.qemu_core.process import Process

__all__ = ["load_bias"]

_PAGE = 4096


def load_bias(process: Process, entry: int, remarks: list[str]) -> int:
    """Give what the program was moved by when it was loaded.

    Args:
        process: the process.
        entry: address of the program's entry point as linked.
        remarks: takes what is to be said of where that is from.

    Raises:
        CorruptDumpError: the core does not tell, or tells of another program.
    """
    at, mapped = process.auxv.get(AT_ENTRY), process.program_files
    if at is None and not mapped:
        raise _nowhere(process)
    if at is None or (mapped and not any(each.start <= at < each.stop for each in mapped)):
        base = min(each.start for each in mapped)
        why = "does not tell" if at is None else f"tells of another program, at {at:#x}"
        remarks.append(f"the load address, {base:#x}, is that of the program's file in NT_FILE: NT_AUXV {why}")
        return 0 if entry >= base else base  # as linked where that is no position-independent program
    if (at - entry) % _PAGE:
        raise CorruptDumpError(
            f"AT_ENTRY {at:#x} is no whole number of pages from {entry:#x}: the debug information is of another build",
            what="NT_AUXV",
        )
    return at - entry


def _nowhere(process: Process) -> CorruptDumpError:
    notes = process.file.segments.where(process.file.segments.type == PT_NOTE).offset
    return CorruptDumpError(
        "no AT_ENTRY, and no file of QEMU's among those in NT_FILE: the load address is not known",
        offset=max(int(notes[0]), 0) if len(notes) else 0,
        what="NT_AUXV",
    )
