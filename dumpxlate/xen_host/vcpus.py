"""A guest's virtual processors: registers out of Xen's ``struct vcpu``.

Of a processor that was not running, Xen keeps everything in its structure, in the order of vcpu_guest_context or
nearly so. Of one that was, it is in the host's processor: what the dump has of that one counts where it was in the
guest; where it was in Xen, the registers lie on a stack that is not looked for. Segments of hardware guests are in
the processor's own structures (VMCB, VMCS), which are not read.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dumpxlate.arch import i386
from dumpxlate.arch.xen_vcpu import CONTEXT_64, VGCF_IN_KERNEL, VGCF_ONLINE, context_bytes, to_core_registers
from dumpxlate.dump import Cpu
from dumpxlate.errors import CorruptDumpError
from dumpxlate.xen import PAGE_SIZE, xen_cpus

if TYPE_CHECKING:
    from dumpxlate.xen_host.domains import Domain, Vcpu
    from dumpxlate.xen_host.host import Host
    from dumpxlate.xen_host.layouts import Layout

__all__ = ["read_vcpus"]

_USER_REGS = 520  # in vcpu_guest_context
_USER_REGS_BYTES = 200
_IN_KERNEL = 1  # TF_kernel_mode, asm/domain.h and asm/processor.h
_RING = 3
_WHAT = "struct vcpu"


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the processors of a domain."""

    host: Host
    layout: Layout
    domain: Domain

    def word(self, address: int, width: int = 8) -> int:
        """Read a number."""
        return int.from_bytes(self.host.hypervisor.read(address, width, _WHAT), "little")

    def words(self, address: int, count: int) -> tuple[int, ...]:
        """Read words of 8 bytes."""
        return struct.unpack(f"<{count}Q", self.host.hypervisor.read(address, 8 * count, _WHAT))

    def stopped(self, vcpu: Vcpu) -> Cpu:
        """Read a processor that was not running."""
        context = self.context(vcpu.address)
        if self.domain.word_bits == 32:
            core = to_core_registers(CONTEXT_64.unpack(context, "<"))
            context = context_bytes(i386.narrow(core), 32)
        return xen_cpus([context], self.domain.word_bits, [vcpu.number])[0]

    def context(self, vcpu: int) -> bytes:
        """Make a vcpu_guest_context of 64 bits."""
        at = self.layout
        context = bytearray(CONTEXT_64.size)
        size = min(at.user_regs_size, _USER_REGS_BYTES)  # since Xen 4.21 without the data segments
        context[_USER_REGS : _USER_REGS + size] = self.host.hypervisor.read(vcpu + at.vcpu_user_regs, size, _WHAT)
        values = self.paravirtual(vcpu) if self.domain.paravirtual else self.hardware(vcpu)
        return CONTEXT_64.pack(self.debug(vcpu) | values, "<", into=bytes(context))

    def debug(self, vcpu: int) -> dict[str, int]:
        """Read the debug registers, of which the last two are 32 bits wide in some releases."""
        at = self.layout
        values = dict(zip(("dr0", "dr1", "dr2", "dr3"), self.words(vcpu + at.vcpu_dr, 4), strict=True))
        return values | {"dr6": self.word(vcpu + at.vcpu_dr6, 4), "dr7": self.word(vcpu + at.vcpu_dr7, 4)}

    def paravirtual(self, vcpu: int) -> dict[str, int]:
        """Read what Xen keeps of a PV guest's processor besides the general registers."""
        at = self.layout
        kernel = self.word(vcpu + at.vcpu_flags, 4) & _IN_KERNEL
        cr0, _, cr2, _, cr4 = self.words(vcpu + at.vcpu_ctrlreg, 5)
        kernel_ss, kernel_sp = self.words(vcpu + at.vcpu_kernel_sp - 8, 2)  # struct pv_vcpu has them in this order
        return {
            "flags": VGCF_ONLINE | (VGCF_IN_KERNEL if kernel else 0),
            "cr0": cr0,
            "cr2": cr2,
            "cr3": self.root(vcpu) * PAGE_SIZE,
            "user_cr3": self.word(vcpu + at.vcpu_guest_table_user) * PAGE_SIZE,
            "cr4": cr4,
            "kernel_ss": kernel_ss,
            "kernel_sp": kernel_sp,
            "fs_base": self.word(vcpu + at.vcpu_fs_base),
            "gs_base_kernel": self.word(vcpu + at.vcpu_gs_base_kernel),
            "gs_base_user": self.word(vcpu + at.vcpu_gs_base_user),
        }

    def root(self, vcpu: int) -> int:
        """Give the frame of a PV guest's page tables; above a 32-bit guest's three levels Xen has put a fourth."""
        frame = self.word(vcpu + self.layout.vcpu_guest_table)
        if frame >= self.host.frames.count:
            raise CorruptDumpError(f"page tables at machine frame {frame:#x}, beyond the host", what=_WHAT)
        if self.domain.word_bits == 64 or not frame:
            return frame
        entry = int.from_bytes(self.host.hypervisor.virtual.memory.read(frame * PAGE_SIZE, 8), "little")
        return (entry & (1 << 52) - 1) // PAGE_SIZE

    def hardware(self, vcpu: int) -> dict[str, int]:
        """Read what Xen keeps of a hardware guest's processor besides the general registers."""
        cr0, _, cr2, cr3, cr4 = self.words(vcpu + self.layout.vcpu_hvm_guest_cr, 5)
        return {"flags": VGCF_ONLINE, "cr0": cr0, "cr2": cr2, "cr3": cr3, "cr4": cr4}

    def running(self, vcpu: Vcpu) -> Cpu | None:
        """Take the registers of the host's processor, where that was in this guest."""
        number = self.word(vcpu.address + self.layout.vcpu_processor, 4)
        cpu = next((each for each in self.host.dump.cpus if each.index == number), None)
        if cpu is None or not self.domain.paravirtual or cpu.registers.get("cs", 0) & _RING == 0:
            return None
        registers = {name: value for name, value in cpu.registers.items() if "_" not in name or name in _BASES}
        return Cpu(vcpu.number, registers | {"cr3": self.root(vcpu.address) * PAGE_SIZE})


_BASES = ("fs_base", "gs_base", "kernel_gs_base")


def read_vcpus(host: Host, domain: Domain) -> tuple[tuple[Cpu, ...], tuple[str, ...]]:
    """Read a domain's processors.

    Returns:
        Those whose registers could be found, and what is missing, in words for people.

    Raises:
        CorruptDumpError: Xen's structures are torn.
    """
    if host.layout is None:
        return (), ("registers are not known: no layout of the hypervisor's structures fits",)
    reader = _Reader(host, host.layout, domain)
    cpus, remarks = [], []
    for vcpu in domain.vcpus:
        runs = reader.word(vcpu.address + host.layout.vcpu_is_running, 1)
        found = reader.running(vcpu) if runs else reader.stopped(vcpu)
        if found is None:
            remarks.append(f"registers of vcpu {vcpu.number} are not known: it was running, with Xen's code")
        else:
            cpus.append(found)
    if cpus and not domain.paravirtual:
        remarks.append("segments and their bases are not known: the processor keeps those of a hardware guest")
    return tuple(cpus), tuple(remarks)
