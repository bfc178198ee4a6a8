"""A paravirtual guest's processors: which page tables they use, and their registers with the guest's own frames.

Xen's save does the same to a vcpu_guest_context (write_one_vcpu_basic in tools/libs/guest/xg_sr_save_x86_pv.c).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.arch.xen_vcpu import CONTEXT_32, CONTEXT_64, context_layout, fold_cr3, unfold_cr3
from dumpxlate.errors import PageUnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dumpxlate.arch.xen_vcpu import WordBits
    from dumpxlate.arrays import Int64s
    from dumpxlate.dump import Cpu, Dump
    from dumpxlate.p2m.map import P2M

__all__ = ["canonical_cpu", "top_frames"]

_PG, _PE = 1 << 31, 1
_PAE, _LA57 = 1 << 5, 1 << 12
_START_INFO = b"xen-"
"""How the start_info page begins: "xen-3.0-x86_64"."""
_USER_VALID = 1
"""Bit of ctrlreg[1] that says that there are page tables for user mode."""
_GDT_FRAMES, _GDT_ENTRIES = 16, 512


def top_frames(dump: Dump) -> Int64s:
    """Give the machine frames of the top-level tables that processors use, those of user mode too; ascending."""
    found = set()
    for cpu in dump.cpus:
        found.add(cpu.registers.get("cr3", 0) >> 12)
        bits = dump.machine.word_bits
        if bits == 64 and len(cpu.raw.get("xen", b"")) >= CONTEXT_64.size:
            found.add(unfold_cr3(CONTEXT_64.unpack(cpu.raw["xen"], "<")["user_cr3"], bits))
    return np.array(sorted(found - {0}), np.int64)


def canonical_cpu(cpu: Cpu, dump: Dump, p2m: P2M) -> Cpu:
    """Give a processor that an ordinary guest could have.

    cr3 that the map does not know becomes zero. cr0 and cr4 tell that it translates addresses, and by which tables:
    a paravirtual guest is shown what Xen likes of them.
    """
    registers = dict(cpu.registers)
    if "cr3" in registers:
        registers["cr3"] = max(_pfn(p2m, registers["cr3"] >> 12), 0) << 12
        registers["cr0"] = registers.get("cr0", 0) | _PG | _PE
        registers["cr4"] = registers.get("cr4", 0) & ~_LA57 | _PAE
    name = "rdx" if dump.machine.word_bits == 64 else "edx"
    handed = _start_info(cpu, dump, p2m, registers.get(name, 0))
    if handed >= 0:
        registers[name] = handed
    raw = {name: block for name, block in cpu.raw.items() if name != "qemu"}
    if "xen" in raw:
        raw["xen"] = _context(raw["xen"], p2m, {name: handed} if handed >= 0 else {})
    return replace(cpu, registers=registers, raw=raw)


def _start_info(cpu: Cpu, dump: Dump, p2m: P2M, frame: int) -> int:
    """Give the pfn of start_info where a register names its machine frame: a suspended guest's first processor does."""
    pfn = _pfn(p2m, frame)
    if cpu.index or pfn < 0:
        return -1
    try:
        return pfn if dump.read(pfn << 12, len(_START_INFO)) == _START_INFO else -1
    except PageUnavailableError:
        return -1


def _context(context: bytes, p2m: P2M, handed: Mapping[str, int]) -> bytes:
    """Rewrite the frames in a vcpu_guest_context."""
    bits: WordBits = 64 if len(context) >= CONTEXT_64.size else 32
    if len(context) < CONTEXT_32.size:
        return context
    layout = context_layout(bits)
    values = layout.unpack(context, "<")
    new = dict(handed)
    new["cr3"] = fold_cr3(max(_pfn(p2m, unfold_cr3(values["cr3"], bits)), 0), bits)
    if bits == 64 and values["user_cr3"]:
        user = _pfn(p2m, unfold_cr3(values["user_cr3"], bits))
        new["user_cr3"] = user << 12 | _USER_VALID if user >= 0 else 0
    for number in range(min(-(-values["gdt_ents"] // _GDT_ENTRIES), _GDT_FRAMES)):
        new[f"gdt_frame{number}"] = max(_pfn(p2m, values[f"gdt_frame{number}"]), 0)
    return layout.pack(new, "<", into=context)


def _pfn(p2m: P2M, frame: int) -> int:
    """Give the pfn of one machine frame, -1 if it has none."""
    return int(p2m.pfn(np.array([frame], np.int64))[0]) if 0 < frame < 1 << 52 else -1
