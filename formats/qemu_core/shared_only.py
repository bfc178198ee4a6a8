"""The guest's memory where a core holds nothing else: coredump_filter kept shared mappings only (0x2).

What is left then is one large mapping, and nothing of QEMU's own that would tell what it is. QEMU's private memory has
large mappings too, in whole MiB: stacks of threads (8 MiB), areas that glibc's malloc reserves (64 MiB, at multiples of
that), buffers of translated code. Where any of these may be meant nothing is taken.

Sources: core(5); glibc malloc/arena.c (HEAP_MAX_SIZE).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.formats.qemu_core.ram import RamBlock

if TYPE_CHECKING:
    from dumpxlate.formats.qemu_core.process import Process

__all__ = ["only_memory"]

_MIB = 1 << 20
_ARENA = 64 << 20
_WRITABLE, _EXECUTABLE = 2, 1
"""Bits of p_flags."""


def only_memory(process: Process) -> RamBlock | None:
    """Take the only large mapping of a core for the machine's memory; None where it may be anything else.

    It is of whole MiB and all there, and the only one that can be written and has 1 MiB in the core: a process whose
    private memory was kept has a heap and stacks.
    """
    loads = process.file.segments.loads
    held = np.flatnonzero((loads.flags & _WRITABLE != 0) & (loads.filesz >= _MIB))
    if len(held) != 1 or process.memory.lost:
        return None
    row = int(held[0])
    host, length = int(loads.vaddr[row]), int(loads.memsz[row])
    there = process.memory.held(host)
    if int(loads.filesz[row]) != length or there is None or there[1] < host + length:
        return None
    if length % _MIB or int(loads.flags[row]) & _EXECUTABLE:
        return None
    named = any(each.start <= host < each.stop for each in process.files)
    if not named and not (host | length) % _ARENA:
        return None
    return RamBlock("memory", host, 0, length, length)
