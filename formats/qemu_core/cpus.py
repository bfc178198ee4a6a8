"""The guest's processors, as QEMU's structures had them.

An accelerator (KVM) keeps registers in the kernel; QEMU has the values of the last time that it asked, unless it had
stopped the processor and fetched them (``vcpu_dirty``).

Sources: qemu include/hw/core/cpu.h; releases 2.0 to 10.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpxlate.dump import Cpu
from dumpxlate.errors import CorruptDumpError
from dumpxlate.formats.qemu_core.registers import read_registers

if TYPE_CHECKING:
    from dumpxlate.formats.qemu_core.ram import Reader

__all__ = ["read_cpus"]

_CPUS_LIMIT = 4096


def read_cpus(reader: Reader, remarks: list[str]) -> tuple[Cpu, ...]:
    """Read all processors; none of an architecture that is not known, since they would have no registers.

    Args:
        reader: reads QEMU's structures.
        remarks: takes what is to be said of the registers.
    """
    try:
        places = _processors(reader)
        cpus = tuple(Cpu(reader.member(at, "CPUState.cpu_index"), read_registers(reader, at)) for at in places)
        _say_how_fresh(reader, places, remarks)
    except CorruptDumpError as error:
        remarks.append(f"registers are not read: {error}")
        return ()
    if cpus and not cpus[0].registers:
        remarks.append(f"registers of {len(cpus)} processors are not read: those of this architecture are not known")
        return ()
    return cpus


def _processors(reader: Reader) -> list[int]:
    """Walk over the list of processors."""
    # Called cpus until 8.1.
    head = reader.variable("cpus_queue", "cpus")
    if head is None or reader.profile.place("CPUState.node.tqe_next") is None:
        return []
    found: list[int] = []
    at = reader.process.word(head, reader.process.pointer, "list of processors")
    while at:
        if len(found) == _CPUS_LIMIT:
            raise CorruptDumpError(
                f"more than {_CPUS_LIMIT} processors, the next at host address {at:#x}", what="list of processors"
            )
        found.append(at)
        at = reader.member(at, "CPUState.node.tqe_next")
    return found


def _say_how_fresh(reader: Reader, places: list[int], remarks: list[str]) -> None:
    """Say where registers may be older than the memory."""
    kvm = reader.variable("kvm_allowed")
    if kvm is None or not reader.process.word(kvm, 1, "kvm_allowed"):
        return
    dirty = ("CPUState.vcpu_dirty", "CPUState.kvm_vcpu_dirty")
    stale = sum(not reader.member(at, *dirty) & 0xFF for at in places)
    if stale:
        remarks.append(
            f"registers of {stale} of {len(places)} processors are stale: KVM had them, and QEMU had not asked for them"
        )
