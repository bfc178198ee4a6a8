"""Processors of an HVM guest: the CPU records of Xen's HVM_CONTEXT (public/arch-x86/hvm/save.h)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from dumpxlate.arch.registers import RegisterLayout, row
from dumpxlate.dump import Cpu
from dumpxlate.xen import MAX_VCPUS

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["HVM_HW_CPU", "hvm_cpus"]

_DESCRIPTOR = struct.Struct("<HHI")  # struct hvm_save_descriptor: typecode, instance, length
_END, _CPU = 0, 2

_SEGMENTS = "cs ds es fs gs ss tr ldt"

HVM_HW_CPU = RegisterLayout(
    "hvm_hw_cpu",
    1000,  # up to msr_efer: Xen 3.4 and 4.7 added fields behind it
    row("rax rbx rcx rdx rbp rsi rdi rsp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags", at=512, width=8)
    | row("cr0 cr2 cr3 cr4 dr0 dr1 dr2 dr3 dr6 dr7", at=656, width=8)
    | row(_SEGMENTS, at=736, width=4)
    | row(" ".join(f"{name}_limit" for name in f"{_SEGMENTS} idt gdt".split()), at=768, width=4)
    | row(" ".join(f"{name}_base" for name in f"{_SEGMENTS} idt gdt".split()), at=808, width=8)
    | row(" ".join(f"{name}_arbytes" for name in _SEGMENTS.split()), at=888, width=4)
    | row("shadow_gs", at=944, width=8)
    | row("msr_efer", at=992, width=8),
)


def hvm_cpus(context: bytes) -> tuple[tuple[Cpu, ...], str | None]:
    """Read the processors, and say why reading stopped early, if it did."""
    cpus = []
    complaint = None
    for kind, instance, record in _records(context):
        if kind < 0:
            complaint = f"HVM_CONTEXT: record {instance} leaves its {len(context)} bytes"
        elif kind == _CPU and len(record) >= HVM_HW_CPU.size and instance < MAX_VCPUS:
            cpus.append(Cpu(instance, _registers(record), {"hvm_hw_cpu": record}))
    return tuple(cpus), complaint


def _records(context: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Give type, instance and bytes of each record; type -1 for one that does not fit."""
    at = number = 0
    while at + _DESCRIPTOR.size <= len(context):
        kind, instance, length = _DESCRIPTOR.unpack_from(context, at)
        at += _DESCRIPTOR.size
        if at + length > len(context):
            yield -1, number, b""
            return
        yield kind, instance, context[at : at + length]
        if kind == _END:
            return
        at += length
        number += 1


def _registers(record: bytes) -> dict[str, int]:
    """Name the registers as QEMU's note does, whose segments are of the same kind."""
    found = HVM_HW_CPU.unpack(record, "<")
    found["kernel_gs_base"] = found.pop("shadow_gs")
    found["efer"] = found.pop("msr_efer")
    for name in _SEGMENTS.split():
        # Xen packs the attributes into 12 bits; QEMU leaves them where a descriptor's second word has them.
        packed = found.pop(f"{name}_arbytes")
        found[f"{name}_flags"] = (packed & 0xFF) << 8 | (packed >> 8 & 0xF) << 20
    return found
