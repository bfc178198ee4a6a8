"""Registers of the guest's processors, as QEMU's structures had them.

An accelerator (KVM) keeps registers in the kernel; QEMU has the values of the last time that it asked, unless it had
stopped the processor and fetched them (``vcpu_dirty``).

Sources: qemu include/hw/core/cpu.h, target/i386/cpu.h, target/i386/arch_dump.c; releases 2.0 to 10.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpxlate.dump import Cpu
from dumpxlate.errors import CorruptDumpError

if TYPE_CHECKING:
    from dumpxlate.formats.qemu_core.ram import Reader

__all__ = ["read_cpus"]

_CPUS_LIMIT = 4096
_GENERAL = tuple("rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split())  # noqa: SIM905 - shorter
_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")
_TABLES = ("ldt", "tr", "gdt", "idt")
_PARTS = {"": "selector", "_base": "base", "_limit": "limit", "_flags": "flags"}


def read_cpus(reader: Reader, remarks: list[str]) -> tuple[Cpu, ...]:
    """Read all processors; those of other architectures than x86 have no registers.

    Args:
        reader: reads QEMU's structures.
        remarks: takes what is to be said of the registers.
    """
    try:
        places = _processors(reader)
        cpus = tuple(Cpu(reader.member(at, "CPUState.cpu_index"), _x86(reader, at)) for at in places)
        _say_how_fresh(reader, places, remarks)
    except CorruptDumpError as error:
        remarks.append(f"registers are not read: {error}")
        return ()
    if cpus and not cpus[0].registers:
        remarks.append("registers are not read: those of this architecture are not known")
    return cpus


def _processors(reader: Reader) -> list[int]:
    """Walk over the list of processors."""
    # Called cpus until 8.1.
    head = reader.variable("cpus", "cpus_queue")
    if head is None or reader.profile.place("CPUState.node.tqe_next") is None:
        return []
    found: list[int] = []
    at = reader.process.word(head, reader.process.pointer, "list of processors")
    while at:
        if len(found) == _CPUS_LIMIT:
            raise CorruptDumpError(f"more than {_CPUS_LIMIT} processors", what="list of processors")
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


def _x86(reader: Reader, at: int) -> dict[str, int]:
    """Registers of an x86 processor, as QEMU's note has them, and EFER."""
    places = reader.profile.places
    if "env.eip" not in places or "env.regs" not in places:
        return {}
    single = {"rip": "env.eip", "rflags": "env.eflags", "kernel_gs_base": "env.kernelgsbase", "efer": "env.efer"}
    found = {name: reader.member(at, path) for name, path in single.items() if path in places}
    width = places["env.eip"].size  # of the target: 4 in qemu-system-i386
    general = places["env.regs"]
    for number, name in enumerate(_GENERAL[: general.size // width]):
        found[name] = reader.process.word(at + general.offset + number * width, width, "env.regs")
    control = places.get("env.cr")
    if control:
        for number in (0, 2, 3, 4):
            found[f"cr{number}"] = reader.process.word(at + control.offset + number * width, width, "env.cr")
    return found | _x86_segments(reader, at)


def _x86_segments(reader: Reader, at: int) -> dict[str, int]:
    places, size = reader.profile.places, reader.profile.sizes.get("SegmentCache", 0)
    found: dict[str, int] = {}
    starts = {name: places[f"env.{name}"].offset for name in _TABLES if f"env.{name}" in places}
    if size and "env.segs" in places:
        starts |= {name: places["env.segs"].offset + number * size for number, name in enumerate(_SEGMENTS)}
    for name, start in starts.items():
        for suffix, part in _PARTS.items():
            found[name + suffix] = reader.member(at + start, f"SegmentCache.{part}")
    return found
