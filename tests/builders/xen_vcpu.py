"""Xen structures that several formats carry: vcpu_guest_context and shared_info, for 64- and 32-bit x86 guests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .guest import Guest
from .packing import put, slots

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CONTEXT32", "CONTEXT64", "CONTEXT_SIZES", "context", "contexts", "fold_cr3", "shared_info"]

# name -> (offset in the context, width); what is not named stays zero
CONTEXT64 = (
    slots(520, 8, "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi")
    | slots(640, 4, "error_code entry_vector")
    | {"rip": (648, 8), "cs": (656, 2), "rflags": (664, 8), "rsp": (672, 8), "ss": (680, 2)}
    | {"es": (688, 2), "ds": (696, 2), "fs": (704, 2), "gs": (712, 2)}
    | slots(4816, 8, "ldt_base ldt_ents gdt_frame0")
    | slots(4960, 8, "gdt_ents kernel_ss kernel_sp cr0 cr1 cr2 cr3 cr4")
    | {"dr0": (5048, 8), "dr6": (5096, 8), "dr7": (5104, 8)}
    | slots(5136, 8, "vm_assist fs_base gs_base_kernel gs_base_user")
)
CONTEXT32 = (
    slots(516, 4, "ebx ecx edx esi edi ebp eax")
    | slots(544, 2, "error_code entry_vector")
    | {"eip": (548, 4), "cs": (552, 2), "eflags": (556, 4), "esp": (560, 4), "ss": (564, 2)}
    | {"es": (568, 2), "ds": (572, 2), "fs": (576, 2), "gs": (580, 2)}
    | slots(2632, 4, "ldt_base ldt_ents gdt_frame0")
    | slots(2704, 4, "gdt_ents kernel_ss kernel_sp cr0 cr1 cr2 cr3 cr4")
    | {"dr0": (2748, 4), "dr6": (2772, 4), "dr7": (2776, 4), "vm_assist": (2796, 4)}
)
CONTEXT_SIZES = {8: 5168, 4: 2800}
_SHARED = {
    8: slots(3088, 8, "max_pfn frame_list_list nmi_reason p2m_cr3 p2m_vaddr p2m_generation"),
    4: slots(2316, 4, "max_pfn frame_list_list nmi_reason p2m_cr3 p2m_vaddr p2m_generation"),
}


def context(
    guest: Guest, vcpu: int, *, width: int = 8, flags: int = 0x24, size: int | None = None, order: str = "<"
) -> bytes:
    """One vcpu_guest_context; ``size`` 5168 with ``width`` 4 is the 32-bit layout in a 64-bit tool's slot.

    ``flags``: bit 1 HVM (Xen up to 3.0.3), bit 2 in kernel mode, bit 5 online.
    """
    image = bytearray(CONTEXT_SIZES[width] if size is None else size)
    put(image, order, (512, width), flags)
    for name, slot in (CONTEXT64 if width == 8 else CONTEXT32).items():
        put(image, order, slot, guest.register(vcpu, name, max(slot[1], 4)))
    return bytes(image)


def contexts(
    guest: Guest | Mapping[int, bytes], *, width: int = 8, flags: int = 0x24, size: int | None = None, order: str = "<"
) -> list[bytes]:
    """The contexts of all vcpus; a plain mapping of pages has one vcpu."""
    model = guest if isinstance(guest, Guest) else Guest(pages={})
    return [context(model, vcpu, width=width, flags=flags, size=size, order=order) for vcpu in range(model.nr_vcpus)]


def fold_cr3(mfn: int, width: int = 8) -> int:
    """cr3 of a top-level table's frame: a 32-bit cr3 carries the frame's bits 31:20 in its low 12 bits."""
    return mfn << 12 if width == 8 else (mfn << 12 | mfn >> 20) & 0xFFFFFFFF


def shared_info(*, width: int = 8, **values: int) -> bytes:
    """The shared_info page of a guest with that word width.

    ``values``: max_pfn, frame_list_list, nmi_reason, p2m_cr3, p2m_vaddr, p2m_generation.
    """
    image = bytearray(4096)
    for name, value in values.items():
        put(image, "<", _SHARED[width][name], value)
    return bytes(image)
