"""ELF notes: registers of each architecture, QEMU's cpu state, VMCOREINFO, VirtualBox, a Xen host's crash notes."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .packing import align, put, slots

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .guest import Guest

__all__ = [
    "MACHINES",
    "PRSTATUS",
    "QEMU_CPU",
    "VIRTUALBOX_CPU",
    "cpu_notes",
    "note",
    "prstatus",
    "qemu_cpu",
    "virtualbox_notes",
    "vmcoreinfo",
    "xen_crash_notes",
]

MACHINES = {"x86_64": 62, "i386": 3, "aarch64": 183, "arm": 40, "ppc64": 21, "s390x": 22, "riscv64": 243}


@dataclass(frozen=True)
class PrStatus:
    """An architecture's NT_PRSTATUS: its size, where the process id is, name -> (offset, width) of each register."""

    size: int
    pid: int
    registers: Mapping[str, tuple[int, int]]


def _numbered(prefix: str, count: int) -> str:
    return " ".join(f"{prefix}{number}" for number in range(count))


PRSTATUS = {
    "x86_64": PrStatus(336, 32, slots(112, 8, (
        "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs rflags rsp ss fs_base gs_base"
        " ds es fs gs"))),
    "i386": PrStatus(144, 24, slots(72, 4, (
        "ebx ecx edx esi edi ebp eax ds es fs gs orig_eax eip cs eflags esp ss"))),
    "aarch64": PrStatus(392, 32, slots(112, 8, _numbered("x", 31) + " sp pc pstate")),
    "arm": PrStatus(148, 24, slots(72, 4, _numbered("r", 16) + " cpsr orig_r0")),
    "ppc64": PrStatus(504, 32, slots(112, 8, _numbered("gpr", 32) + (
        " nip msr orig_gpr3 ctr link xer ccr softe trap dar dsisr result"))),
    "s390x": PrStatus(336, 32, slots(112, 8, "psw_mask psw_addr " + _numbered("gpr", 16))
                      | slots(256, 4, _numbered("acr", 16)) | slots(320, 8, "orig_gpr2")),
    "riscv64": PrStatus(376, 32, slots(112, 8, (
        "pc ra sp gp tp t0 t1 t2 s0 s1 a0 a1 a2 a3 a4 a5 a6 a7 s2 s3 s4 s5 s6 s7 s8 s9 s10 s11 t3 t4 t5 t6"))),
}  # fmt: skip
QEMU_CPU = (
    slots(8, 8, "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags")
    | slots(392, 8, "cr0 cr1 cr2 cr3 cr4 kernel_gs_base")
)  # fmt: skip
QEMU_SEGMENTS = slots(152, 24, "cs ds es fs gs ss ldt tr gdt idt")
VIRTUALBOX_CPU = (
    slots(0, 8, "rax rbx rcx rdx rsi rdi r8 r9 r10 r11 r12 r13 r14 r15 rip rsp rbp rflags")
    | slots(288, 8, "cr0 cr2 cr3 cr4")
    | slots(488, 8, "efer")
    | slots(536, 8, "kernel_gs_base")
)


def note(
    name: str | bytes,
    type: int,
    desc: bytes,
    *,
    order: str = "<",
    step: int = 4,
    nul: bool = True,
    namesz: int | None = None,
    descsz: int | None = None,
) -> bytes:
    """One ELF note; ``step`` is the padding, ``nul`` whether namesz counts the NUL; namesz and descsz may lie."""
    text = (name.encode() if isinstance(name, str) else name) + b"\0"
    name_size = len(text) - (not nul) if namesz is None else namesz
    head = struct.pack(order + "III", name_size, len(desc) if descsz is None else descsz, type)
    return head + text.ljust(align(len(text), step), b"\0") + desc.ljust(align(len(desc), step), b"\0")


def prstatus(
    guest: Guest, vcpu: int, arch: str = "x86_64", *, order: str = "<", pid: int | None = None, size: int | None = None
) -> bytes:
    """The CORE/NT_PRSTATUS note of one cpu; the process id is the cpu's number + 1, as in QEMU's.

    ``size`` cuts or lengthens the desc.
    """
    form = PRSTATUS[arch]
    desc = bytearray(form.size)
    put(desc, order, (form.pid, 4), vcpu + 1 if pid is None else pid)
    for name, slot in form.registers.items():
        put(desc, order, slot, guest.register(vcpu, name, slot[1]))
    return note("CORE", 1, bytes(desc) if size is None else bytes(desc[:size]).ljust(size, b"\0"), order=order)


def cpu_notes(guest: Guest, arch: str = "x86_64", order: str = "<") -> list[bytes]:
    """The NT_PRSTATUS notes of all cpus."""
    return [prstatus(guest, vcpu, arch, order=order) for vcpu in range(guest.nr_vcpus)]


def qemu_cpu(guest: Guest, vcpu: int, *, size: int = 440, version: int = 1) -> bytes:
    """QEMU's own note of an x86 cpu; 432 bytes before QEMU 3.0, without kernel_gs_base."""
    desc = bytearray(440)
    struct.pack_into("<II", desc, 0, version, size)
    for name, slot in QEMU_CPU.items():
        put(desc, "<", slot, guest.register(vcpu, name))
    for number, (name, (offset, _)) in enumerate(QEMU_SEGMENTS.items()):
        base = guest.register(vcpu, f"{name}_base")
        struct.pack_into("<IIIIQ", desc, offset, 8 * number, 0xFFFFF, 0xA09B00, 0, base)
    return note("QEMU", 0, bytes(desc[:size]))


def vmcoreinfo(text: str | bytes, *, order: str = "<", name: str = "VMCOREINFO") -> bytes:
    """The VMCOREINFO note (``name`` VMCOREINFO_XEN: the hypervisor's)."""
    return note(name, 0, text.encode() if isinstance(text, str) else text, order=order)


def virtualbox_notes(guest: Guest, *, version: int = 0x00010006) -> list[bytes]:
    """VBCORE and a VBCPU for each cpu: names without NUL, everything padded to eight, desc size with its padding."""
    head = struct.pack("<6I", 0xC01AC0DE, version, 24, 7 << 24, 150000, guest.nr_vcpus)
    notes = [note("VBCORE", 0xB00, head, step=8, nul=False)]
    for vcpu in range(guest.nr_vcpus):
        desc = bytearray(592)
        for name, slot in VIRTUALBOX_CPU.items():
            put(desc, "<", slot, guest.register(vcpu, name))
        notes.append(note("VBCPU", 0xB01, bytes(desc), step=8, nul=False))
    return notes


def xen_crash_notes(
    guest: Guest, *, words: Sequence[int] | None = None, frame_list_list: int = 0, arch: str = "x86_64"
) -> list[bytes]:
    """Notes of a Xen host's /proc/vmcore: for each pcpu PRSTATUS and CRASH_REGS, with cpu 0 also CRASH_INFO.

    ``words`` are those of CRASH_INFO: ten since Xen 3.3 (the default), nine in 3.1 and 3.2; the last is dom0's list.
    """
    usual = [4, 17, 0x1000, 0x1010, 0x1020, 0x1030, 0x1040, 0, 0x200000, frame_list_list]
    info = usual if words is None else words
    notes = []
    for vcpu in range(guest.nr_vcpus):
        control = [guest.register(vcpu, name) for name in ("cr0", "cr2", "cr3", "cr4")]
        notes += [prstatus(guest, vcpu, arch), note("Xen", 0x1000002, struct.pack("<4Q", *control))]
        notes += [note("Xen", 0x1000001, struct.pack(f"<{len(info)}Q", *info))] * (vcpu == 0)
    return notes
