"""Xen's vCPU context: struct vcpu_guest_context of xen/include/public/arch-x86/xen.h, alike since Xen 3.0.0.

Always little-endian; one form for 64-bit and one for 32-bit guests (with or without PAE). HVM and PVH guests have the
64-bit form whatever mode they run in. Names are those of x86-64 or i386, and Xen's own where it stores something that
a core file has not, or has differently:

* ``cr3`` is *folded* (see ``fold_cr3``) and, in a PV guest, a machine address. ``user_cr3`` is the second page table
  of a 64-bit PV guest, kept in ``ctrlreg[1]``.
* ``gs_base_kernel`` and ``gs_base_user`` are both there; which of them is active follows from the CPU's mode.
* ``error_code`` and ``entry_vector`` lie where a core file has ``orig_rax``; ``saved_upcall_mask`` in the padding of
  cs.
* ``flags`` are the ``VGCF`` bits, ``kernel_ss`` and ``kernel_sp`` the stack that a PV guest wants for its kernel.

The FPU's image and the table of 256 trap handlers are not taken apart: ``into`` keeps them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from dumpxlate.arch.registers import RegisterLayout, numbered, row

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "CONTEXT_32",
    "CONTEXT_64",
    "VGCF_FAILSAFE_DISABLES_EVENTS",
    "VGCF_HVM_GUEST",
    "VGCF_I387_VALID",
    "VGCF_IN_KERNEL",
    "VGCF_IN_SYSCALL",
    "VGCF_ONLINE",
    "VGCF_SYSCALL_DISABLES_EVENTS",
    "WordBits",
    "context_bytes",
    "context_layout",
    "fold_cr3",
    "in_kernel_mode",
    "to_core_registers",
    "unfold_cr3",
]

WordBits: TypeAlias = Literal[32, 64]

VGCF_I387_VALID = 1 << 0
"""The FPU's image is valid."""
VGCF_HVM_GUEST = 1 << 1
"""Not a PV guest; Xen up to 3.0.3 only."""
VGCF_IN_KERNEL = 1 << 2
"""A PV guest's CPU is in its kernel; HVM and PVH never have it."""
VGCF_FAILSAFE_DISABLES_EVENTS = 1 << 3
VGCF_SYSCALL_DISABLES_EVENTS = 1 << 4
VGCF_ONLINE = 1 << 5
VGCF_IN_SYSCALL = 1 << 8
"""The way back to a 64-bit guest is sysret."""

CONTEXT_64 = RegisterLayout(
    "vcpu_guest_context x86_64",
    5168,
    row("flags", at=512, width=8)
    | row("r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi", at=520, width=8)
    | row("error_code entry_vector", at=640, width=4)
    | row("rip", at=648, width=8)
    | row("cs", at=656, width=2)
    | row("saved_upcall_mask", at=660, width=1)
    | row("rflags rsp", at=664, width=8)
    | row("ss es ds fs gs", at=680, width=2, step=8)
    | row("ldt_base ldt_ents", at=4816, width=8)
    | numbered("gdt_frame", 16, at=4832, width=8)
    | row("gdt_ents kernel_ss kernel_sp", at=4960, width=8)
    | row("cr0 user_cr3 cr2 cr3 cr4 ctrlreg5 ctrlreg6 ctrlreg7", at=4984, width=8)
    | numbered("dr", 8, at=5048, width=8)
    | row("event_callback_eip failsafe_callback_eip syscall_callback_eip vm_assist", at=5112, width=8)
    | row("fs_base gs_base_kernel gs_base_user", at=5144, width=8),
)
"""Context of a 64-bit, HVM or PVH guest."""

CONTEXT_32 = RegisterLayout(
    "vcpu_guest_context x86_32",
    2800,
    row("flags", at=512, width=4)
    | row("ebx ecx edx esi edi ebp eax", at=516, width=4)
    | row("error_code entry_vector", at=544, width=2)
    | row("eip", at=548, width=4)
    | row("cs", at=552, width=2)
    | row("saved_upcall_mask", at=554, width=1)
    | row("eflags esp", at=556, width=4)
    | row("ss es ds fs gs", at=564, width=2, step=4)
    | row("ldt_base ldt_ents", at=2632, width=4)
    | numbered("gdt_frame", 16, at=2640, width=4)
    | row("gdt_ents kernel_ss kernel_sp", at=2704, width=4)
    | row("cr0 ctrlreg1 cr2 cr3 cr4 ctrlreg5 ctrlreg6 ctrlreg7", at=2716, width=4)
    | numbered("dr", 8, at=2748, width=4)
    | row("event_callback_cs event_callback_eip", at=2780, width=4)
    | row("failsafe_callback_cs failsafe_callback_eip vm_assist", at=2788, width=4),
)
"""Context of a 32-bit PV guest. 64-bit tools store it at the start of a slot of 5168 bytes."""

_CORE = (
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi rip rflags rsp fs_base "
    "eax ebx ecx edx esi edi ebp eip eflags esp cs ss ds es fs gs "
    "cr0 cr2 cr3 cr4 dr0 dr1 dr2 dr3 dr6 dr7"
)


def context_layout(word_bits: WordBits) -> RegisterLayout:
    """Give the context of a guest's width."""
    return CONTEXT_64 if word_bits == 64 else CONTEXT_32


def fold_cr3(mfn: int, word_bits: WordBits) -> int:
    """Make the cr3 field that names a page table's frame.

    A 32-bit field rotates: its low 12 bits carry bits 20 to 31 of the mfn, so that a table may lie above 4 GiB.
    """
    return mfn << 12 if word_bits == 64 else (mfn << 12 | mfn >> 20) & 0xFFFFFFFF


def unfold_cr3(cr3: int, word_bits: WordBits) -> int:
    """Give the frame that a cr3 field names. HVM and PVH guests have their plain cr3, which this reads too."""
    return cr3 >> 12 if word_bits == 64 else (cr3 >> 12 | cr3 << 20) & 0xFFFFFFFF


def in_kernel_mode(registers: Mapping[str, int]) -> bool:
    """Say whether a CPU was in its kernel.

    Xen sets the flag for PV guests only, whose kernel is not in ring 0; for HVM and PVH the ring tells.
    """
    return bool(registers.get("flags", 0) & VGCF_IN_KERNEL) or registers.get("cs", 0) & 3 == 0


def to_core_registers(registers: Mapping[str, int]) -> dict[str, int]:
    """Turn an unpacked context into what NT_PRSTATUS and the QEMU note want.

    * ``gs_base`` is the base in use, ``kernel_gs_base`` (the MSR) the other one: what ``swapgs`` would exchange.
    * ``orig_rax`` is all ones, "not in a system call", since Xen keeps another thing there.
    * ``cr3`` is unfolded: an address, of the machine for a PV guest.
    """
    core = {name: value for name, value in registers.items() if name in _CORE.split()}
    if "rip" not in registers:
        folded = not registers["flags"] & VGCF_HVM_GUEST
        cr3 = unfold_cr3(registers["cr3"], 32) << 12 if folded else registers["cr3"]
        return core | {"orig_eax": 0xFFFFFFFF, "cr3": cr3}
    active, idle = _gs_names(kernel=in_kernel_mode(registers))
    return core | {
        "orig_rax": 0xFFFFFFFFFFFFFFFF,
        "gs_base": registers[active],
        "kernel_gs_base": registers[idle],
    }


def context_bytes(
    registers: Mapping[str, int], word_bits: WordBits, *, into: bytes | memoryview | None = None
) -> bytes:
    """Make a context of core registers: the reverse of ``to_core_registers``.

    Registers under Xen's own names are taken as well and win. To write back what ``unpack`` gave, use the layout's
    ``pack``: here ``cr3`` is a plain address and is folded.

    Args:
        registers: by the names of the guest's width.
        word_bits: width of the guest.
        into: a context whose other bytes are kept; zeros if absent. Its ``flags`` count for the mode, else cs does.
    """
    layout = context_layout(word_bits)
    flags = layout.unpack(into, "<")["flags"] if into is not None else VGCF_ONLINE
    values = {"flags": flags, **registers}
    if "cr3" in registers:
        values["cr3"] = registers["cr3"] if word_bits == 64 else fold_cr3(registers["cr3"] >> 12, 32)
    active, idle = _gs_names(kernel=in_kernel_mode(values))
    for name, core_name in ((active, "gs_base"), (idle, "kernel_gs_base")):
        if core_name in registers:
            values.setdefault(name, registers[core_name])
    return layout.pack(values, "<", into=into)


def _gs_names(*, kernel: bool) -> tuple[str, str]:
    return ("gs_base_kernel", "gs_base_user") if kernel else ("gs_base_user", "gs_base_kernel")
