"""Memory as a guest's processor sees it: which page tables to walk, and bytes at virtual addresses.

Tables are looked for in this order:

1. the cr3 that the user gives;
2. the processor's own cr3, where the dump has it and the first table is in the dump;
3. the kernel's own tables, as VMCOREINFO tells: ``init_top_pgt`` of x86-64 and ``swapper_pg_dir`` of i386 and
   aarch64, reached by the linear map that the kernel's image lies in;
4. those linear maps alone, if the tables are not in the dump either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.errors import MapError, TranslationError, UnsupportedFeatureError
from dumpxlate.memory import PhysicalMemory
from dumpxlate.paging.aarch64 import aarch64_paging
from dumpxlate.paging.aarch64 import table_root as ttbr_root
from dumpxlate.paging.addrxlat import as_addresses, first_of, linear, page_walk, signed
from dumpxlate.paging.x86 import LEGACY_PSE, LEVEL_4, LEVEL_5, PAE, has_paging, ignoring, table_root, x86_paging

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Literal

    from dumpxlate.arrays import Int64s, UInt64s
    from dumpxlate.dump import Cpu, Dump
    from dumpxlate.p2m.map import P2M
    from dumpxlate.paging.addrxlat import PageWalk, Trace, Translation
    from dumpxlate.paging.format import Paging
    from dumpxlate.paging.mappings import Mappings

__all__ = [
    "TranslatedMemory",
    "VirtualMemory",
    "kernel_translation",
    "processor_translation",
    "translates",
    "virtual_memory",
]

_TEXT = 0xFFFF_FFFF_8000_0000
"""Start of the kernel's image on x86-64 (__START_KERNEL_map), of 1 GiB at most."""
_LOWMEM = 0xC000_0000
"""Start of the linear map of i386 (PAGE_OFFSET of the usual 3:1 split)."""
_GIB = 1 << 30
_MOST = 1 << 52
"""Physical addresses have no more bits; a guest can write anything into VMCOREINFO."""
_X86 = ("x86_64", "i386")


class TranslatedMemory:
    """Bytes at addresses that a translation leads to a physical memory.

    Args:
        memory: where the bytes are.
        translation: how to get there.
    """

    def __init__(self, memory: PhysicalMemory, translation: Translation) -> None:
        self.memory = memory
        self.translation = translation

    def physical(self, address: Int64s | UInt64s | Iterable[int]) -> Int64s:
        """Translate addresses; -1 where one is unmapped."""
        return self.translation.physical(as_addresses(address))

    def trace(self, address: int) -> Trace:
        """Translate one address and tell how."""
        return self.translation.trace(address)

    def mappings(self) -> Mappings:
        """Give all addresses that are mapped, as runs by virtual address; nothing that the tables say is unbounded."""
        return self.translation.mappings()

    def read(self, address: int, length: int) -> bytes:
        """Read bytes; the range may cross pages.

        Raises:
            TranslationError: an address in the range is unmapped.
            PageUnavailableError: a page in the range has no content.
            ValueError: the range leaves the address space.
        """
        if address < 0 or length < 0 or address + length > 1 << 64:
            raise ValueError(f"cannot read {length} bytes at {address:#x}")
        if not length:
            return b""
        size = min(self.memory.page_size, _PAGE)
        first = address - address % size
        pieces = (address + length - first + size - 1) // size
        at = self._mapped(np.arange(pieces, dtype=np.int64) * size + signed(first), first_byte=address)
        content = self.memory.read_pages(at // self.memory.page_size).reshape(pieces, -1, size)
        part = content[np.arange(pieces), at % self.memory.page_size // size]
        return part.reshape(-1)[address - first : address - first + length].tobytes()

    def read_u64(self, address: Int64s | UInt64s | Iterable[int]) -> UInt64s:
        """Read words of 8 bytes at aligned addresses.

        Raises:
            TranslationError: an address is unmapped.
            PageUnavailableError: one lies in a page without content.
        """
        return self.memory.read_u64(self._mapped(as_addresses(address)))

    def _mapped(self, address: Int64s, *, first_byte: int | None = None) -> Int64s:
        found = self.translation.physical(address)
        lacking = np.flatnonzero(found < 0)
        if len(lacking):
            first = int(address[lacking[0]]) & (1 << 64) - 1
            trace = self.trace(first)
            shown = first if first_byte is None else max(first, first_byte)
            raise TranslationError(shown, trace.fault, level=trace.level)
        return found


VirtualMemory = TranslatedMemory
"""What ``Dump.virtual`` gives."""

_PAGE = 4096  # no architecture translates in smaller pieces


def virtual_memory(dump: Dump, *, cpu: int | None = None, cr3: int | None = None) -> VirtualMemory:
    """See a dump's memory as a processor does: what ``Dump.virtual`` is."""
    memory = PhysicalMemory(dump.pages, dump.machine.endian)
    chosen = _choose_cpu(dump, cpu)
    if cr3 is not None:
        return VirtualMemory(memory, _by_root(dump, memory, chosen, cr3))
    own = processor_translation(dump, memory, chosen) if chosen else None
    translation = own or kernel_translation(dump, memory)
    if translation is None:
        raise _unsupported(
            dump, "no page tables are known: the dump has neither a usable cr3 nor VMCOREINFO, give a cr3"
        )
    return VirtualMemory(memory, translation)


def _choose_cpu(dump: Dump, index: int | None) -> Cpu | None:
    if index is not None:
        for cpu in dump.cpus:
            if cpu.index == index:
                return cpu
        there = ", ".join(str(cpu.index) for cpu in dump.cpus) or "none"
        raise ValueError(f"{dump.name}: no vcpu {index}, found {there}")
    known = [cpu for cpu in dump.cpus if "cr3" in cpu.registers]
    return next((cpu for cpu in known if translates(dump, cpu.registers)), next(iter(known), None))


def translates(dump: Dump, registers: Mapping[str, int]) -> bool:
    """Say whether a processor translates addresses; one of a PV guest always does."""
    return dump.machine.paravirtual or has_paging(registers)


def processor_translation(dump: Dump, memory: PhysicalMemory, cpu: Cpu) -> Translation | None:
    """Translate as a processor does; None where its tables are not known or not in the dump."""
    registers = cpu.registers
    if dump.machine.arch.name not in _X86 or "cr3" not in registers:
        return None
    if not translates(dump, registers):
        return linear(0, 1 << 32, 0, name="paging is off")
    walk = _x86_walk(dump, memory, registers["cr3"], _x86_mode(dump, registers))
    _, held = memory.read_words(np.array([walk.root], np.int64), 4)
    return walk if held[0] else None


def _by_root(dump: Dump, memory: PhysicalMemory, cpu: Cpu | None, cr3: int) -> Translation:
    """Translate by the tables that the user names."""
    name = dump.machine.arch.name
    if name in _X86:
        return _x86_walk(dump, memory, cr3, _x86_mode(dump, cpu.registers if cpu else {}))
    if name == "aarch64":
        halves: tuple[Literal["low", "high"], ...] = ("low", "high")
        modes = [_aarch64_mode(dump, half) for half in halves]
        return first_of(*(page_walk(memory, ttbr_root(cr3, mode), mode) for mode in modes))
    raise _unsupported(dump, f"page tables of {name} are not read, only those of x86 and aarch64")


def _x86_mode(dump: Dump, registers: Mapping[str, int]) -> Paging:
    long_mode = dump.machine.arch.name == "x86_64"
    if dump.machine.paravirtual:
        # A PV guest's cr4 is Xen's view of it: 64-bit guests have 4 levels, 32-bit ones PAE since Xen 3.
        return LEVEL_4 if long_mode else x86_paging(registers.get("cr4") or 1 << 5, long_mode=False)
    if registers.get("cr4") is not None and has_paging(registers):
        return x86_paging(registers["cr4"], long_mode=long_mode)
    info = dump.vmcoreinfo
    if long_mode:
        return LEVEL_5 if info and info.number("pgtable_l5_enabled") else LEVEL_4
    return PAE if info and info.lines.get("CONFIG_X86_PAE") == "y" else LEGACY_PSE


def _x86_walk(dump: Dump, memory: PhysicalMemory, cr3: int, mode: Paging) -> PageWalk:
    root, p2m = table_root(cr3, mode) & ~_encrypted(dump), _tables_map(dump)
    if dump.machine.paravirtual and mode.levels[0].number == 3:
        root = cr3 & 0x000F_FFFF_FFFF_FFE0  # unfolded: the table may lie above 4 GiB
    if p2m is not None:
        size = dump.pages.page_size
        pfn = int(p2m.pfn(np.array([root // size], np.int64))[0])
        root = pfn * size + root % size if pfn >= 0 else -size
    return page_walk(memory, root, ignoring(mode, _encrypted(dump)), p2m=p2m)


def _encrypted(dump: Dump) -> int:
    """Give the address bit that marks encrypted memory in page tables, 0 for none (AMD's SME; a kernel tells it)."""
    told = dump.vmcoreinfo.number("sme_mask") if dump.vmcoreinfo else None
    return told if told and told.bit_count() == 1 and _PAGE <= told < _MOST else 0


def _tables_map(dump: Dump) -> P2M | None:
    """Give the map that a PV guest's tables need, unless its pages are keyed by machine frame anyway."""
    if not dump.machine.paravirtual or dump.space != "guest physical":
        return None
    if dump.p2m is None:
        raise MapError(f"{dump.name}: page tables of a PV guest hold machine frames: its p2m map is needed")
    return dump.p2m


def kernel_translation(dump: Dump, memory: PhysicalMemory) -> Translation | None:
    """Translate as the kernel does by what VMCOREINFO tells; None where it does not tell enough."""
    image = _image_map(dump)
    if dump.vmcoreinfo is None or image is None or dump.space != "guest physical":
        return None
    name = dump.machine.arch.name
    symbol = dump.vmcoreinfo.symbol("init_top_pgt" if name == "x86_64" else "swapper_pg_dir")
    root = int(image.physical(as_addresses([symbol]))[0]) if symbol else -1
    if root >= 0 and root % 32 == 0 and memory.read_words(np.array([root], np.int64), 4)[1][0]:
        mode = _aarch64_mode(dump, "high") if name == "aarch64" else _x86_mode(dump, {})
        return page_walk(memory, root, ignoring(mode, _encrypted(dump)), p2m=_tables_map(dump))
    direct = _direct_map(dump, memory, image)
    return first_of(image, direct) if direct else image


def _image_map(dump: Dump) -> Translation | None:
    """Give the linear map of the kernel's image."""
    info, name = dump.vmcoreinfo, dump.machine.arch.name
    if info is None:
        return None
    if name == "x86_64" and info.phys_base is not None and abs(info.phys_base) < _MOST:
        return linear(_TEXT, _GIB, info.phys_base, name="kernel text mapping")
    if name == "i386":
        return linear(_LOWMEM, _GIB, 0, name="kernel low memory")
    offset, start = info.number("kimage_voffset"), info.symbol("_stext") or info.symbol("swapper_pg_dir")
    if name == "aarch64" and offset is not None and start is not None:
        first = max(start - (_GIB >> 1), 0)
        target = first - offset % (1 << 64)
        return linear(first, _GIB, target, name="kernel image") if abs(target) < _MOST else None
    return None


def _direct_map(dump: Dump, memory: PhysicalMemory, image: Translation) -> Translation | None:
    """Give x86-64's linear map of all memory: its start is told, or is in a variable of the kernel."""
    info = dump.vmcoreinfo
    if info is None or dump.machine.arch.name != "x86_64":
        return None
    start, symbol = info.number("page_offset_base"), info.symbol("page_offset_base")
    if start is None and symbol:
        at = image.physical(as_addresses([symbol]))
        if at[0] >= 0 and at[0] % 8 == 0:
            words, held = memory.read_words(at, 8)
            start = int(words[0]) if held[0] else None
    if start is None:
        return None
    end = min(dump.pages.ram.stop * dump.pages.page_size, _MOST)
    return linear(start % (1 << 64), end, 0, name="kernel direct mapping")


def _aarch64_mode(dump: Dump, half: Literal["low", "high"]) -> Paging:
    info = dump.vmcoreinfo
    told = info.number("TCR_EL1_T1SZ") if info else None
    bits = 64 - told if told is not None else (info.number("VA_BITS") if info else None) or 48
    return aarch64_paging((info.page_size if info else None) or dump.machine.page_size, bits, half)


def _unsupported(dump: Dump, message: str) -> UnsupportedFeatureError:
    return UnsupportedFeatureError(message, path=dump.name, feature="virtual addresses")
