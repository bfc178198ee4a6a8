"""What of the guest's memory is not in the core, and which switch would have kept it.

A kernel leaves out what QEMU excluded (``dump-guest-core=off``: MADV_DONTDUMP), and kinds of mappings whose bit in
/proc/PID/coredump_filter is off; a core that hits a limit ends early.

Sources: core(5); linux fs/coredump.c (vma_dump_size); qemu-options.hx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dumpxlate.arrays import Int64s
    from dumpxlate.formats.qemu_core.process import Process
    from dumpxlate.formats.qemu_core.ram import GuestRam

__all__ = ["LIMITS", "missing_ram"]

LIMITS = "raise ulimit -c (LimitCORE=), or ProcessSizeMax= and ExternalSizeMax= in coredump.conf"
"""What makes cores shorter."""
_EXCLUDED = "run QEMU with -machine dump-guest-core=on (libvirt: dump_guest_core = 1 in qemu.conf)"


def missing_ram(process: Process, ram: GuestRam, *, by_hand: bool = False) -> tuple[str, ...]:
    """Say how much of the guest's memory the core lacks, for each reason.

    Args:
        process: the process.
        ram: the guest's memory.
        by_hand: whether the user said where it is.
    """
    lacking = ram.length - _held(process, ram)
    rows = np.flatnonzero(lacking)
    if not len(rows):
        return ()
    if process.memory.lost:
        return (f"truncated: {int(lacking.sum()):,} bytes of guest memory are lost with the end of the core: {LIMITS}",)
    found: dict[str, int] = {}
    for row in rows.tolist():
        host, length = int(ram.host[row]), int(ram.length[row])
        advice = (_no_mapping(process, host, length) if by_hand else "") or _advice(process, host)
        found[advice] = found.get(advice, 0) + int(lacking[row])
    return tuple(f"{size:,} bytes of guest memory are not in the core: {advice}" for advice, size in found.items())


def _held(process: Process, ram: GuestRam) -> Int64s:
    """Give the bytes of each range that the core has."""
    edges = np.concatenate((np.zeros(1, np.int64), np.cumsum(process.memory.length)))

    def before(address: Int64s) -> Int64s:
        index = np.searchsorted(process.memory.start, address, side="right") - 1
        last = np.maximum(index, 0)
        inside = np.minimum(address - process.memory.start[last], process.memory.length[last])
        return np.where(index >= 0, edges[last] + inside, 0)

    if not len(process.memory.start):
        return np.zeros(len(ram.start), np.int64)
    return before(ram.host + ram.length) - before(ram.host)


def _no_mapping(process: Process, host: int, length: int) -> str:
    """Say so where an address that was given by hand cannot be right; empty where it may be."""
    mapping = process.memory.mapping(host)
    if mapping is None:
        return f"host address {host:#x} (--ram-block) is in no mapping that the core lists"
    if host + length > mapping[1]:
        return f"the mapping at host address {host:#x} (--ram-block) ends at {mapping[1]:#x}"
    return ""


def _advice(process: Process, host: int) -> str:
    """Say why memory at a host address is left out."""
    name = next((each.name for each in process.files if each.start <= host < each.stop), None)
    if name is None and process.memory.mapping(host) is None:
        # The kernel lists all mappings; gdb leaves out those that it does not write.
        return f"its mapping is not listed: {_EXCLUDED}"
    if name is None:
        return f"anonymous memory that was excluded: {_EXCLUDED}, and keep bit 0 of coredump_filter"
    if "hugepage" in name:
        return f"huge pages: set bits 5 and 6 of /proc/PID/coredump_filter (0x7f keeps everything); {_EXCLUDED}"
    if name.startswith("/memfd:") or "(deleted)" in name:
        return f"shared memory without a file: set bit 1 of /proc/PID/coredump_filter (0x7f); {_EXCLUDED}"
    return f"memory of a file: set bits 2 and 3 of /proc/PID/coredump_filter (0x7f keeps everything); {_EXCLUDED}"
