"""Machine memory of a small Xen host: the hypervisor's page tables, its two tables of frames, its list of domains.

Everything is written by address and offset from a description; ``Host.memory`` may be changed before it is packed.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .elf import Segment, build
from .elf_notes import note
from .page_tables import long_tables

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["XEN_4_17", "XEN_4_21", "Guest", "Host", "context_registers"]

PAGE = 4096
FRAMES = 4096
M2P, M2P_RW, XEN = 0xFFFF800000000000, 0xFFFF828000000000, 0xFFFF82D040200000
FRAME_TABLE, DIRECT = 0xFFFF82E000000000, 0xFFFF830000000000
BUILD_ID = bytes(range(20))

# offsetof, as gcc tells for the stable branches; a row of the program's own table must not be what this is made with
XEN_4_17 = {
    "max_vcpus": 4, "vcpu": 8, "shared_info": 16, "tot_pages": 88, "next": 136, "is_32bit": 684, "p2m": 1208,
    "handle": 1928, "emulation_flags": 1900, "phys_table": 80, "v_processor": 4, "v_domain": 16, "is_running": 275,
    "user_regs": 648, "dr": 848, "dr6": 888, "dr7": 880, "flags": 896, "kernel_sp": 1312, "ctrlreg": 1320,
    "fs_base": 1432, "gs_base_kernel": 1440, "gs_base_user": 1448, "guest_table": 2824, "guest_table_user": 2816,
    "guest_cr": 1024, "user_regs_size": 200,
}  # fmt: skip
XEN_4_21 = {
    "max_vcpus": 4, "vcpu": 16, "shared_info": 24, "tot_pages": 96, "next": 144, "is_32bit": 684, "p2m": 1168,
    "handle": 1928, "emulation_flags": 1812, "phys_table": 72, "v_processor": 4, "v_domain": 24, "is_running": 299,
    "user_regs": 640, "dr": 808, "dr6": 840, "dr7": 844, "flags": 848, "kernel_sp": 1248, "ctrlreg": 1256,
    "fs_base": 1376, "gs_base_kernel": 1384, "gs_base_user": 1392, "guest_table": 2504, "guest_table_user": 2496,
    "guest_cr": 960, "user_regs_size": 168,
}  # fmt: skip
REGISTERS = ["r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"]


def context_registers(number: int) -> dict[str, int]:
    """Registers that tell one guest's processor from another's."""
    values = {name: number << 32 | at + 1 for at, name in enumerate(REGISTERS)}
    return values | {"rip": 0x1000 + number, "cs": 0xE033, "rflags": 0x246, "rsp": 0x2000 + number, "ss": 0xE02B}


@dataclass
class Guest:
    """A domain: its memory is ``pages``, pfn to machine frame."""

    number: int
    pages: dict[int, int]
    uuid: bytes = bytes(16)
    kind: str = "pv"
    word: int = 8
    running: bool = False
    extra: Mapping[int, int] = field(default_factory=dict)  # p2m entries beyond its own pages
    large: Sequence[tuple[int, int]] = ()  # gfn and frame of pages of 2 MiB, of a hardware guest
    vcpus: int = 1


class Host:
    """A host with guests; frames below 256 are the hypervisor's, each guest's memory is its own."""

    def __init__(self, guests: Iterable[Guest], layout: Mapping[str, int] = XEN_4_17, *, self_map: bool = True) -> None:
        self.guests, self.at = list(guests), layout
        self.memory = bytearray(FRAMES * PAGE)
        self.free = 1
        self.root = self.frame()
        self.m2p, self.frame_table, self.image = self.frames(8), self.frames(32), self.frame()
        self.structs = {guest.number: self.frames(1) for guest in self.guests}
        self.shared = {guest.number: self.frame() for guest in self.guests}
        self.tables: dict[int, int] = {}
        self.vcpu: dict[int, int] = {}
        self._map(self_map)
        for frame in range(FRAMES):
            self.put(self.m2p * PAGE + frame * 8, (1 << 64) - 1)
        for guest in self.guests:
            self._guest(guest)
        following = [self.address(self.structs[guest.number]) for guest in self.guests[1:]] + [0]
        for guest, address in zip(self.guests, following, strict=True):
            self.put(self.structs[guest.number] * PAGE + layout["next"], address)
        head = self.address(self.structs[self.guests[0].number])
        self.memory[self.image * PAGE : self.image * PAGE + 64] = note("GNU", 3, BUILD_ID).ljust(64, b"\0")
        self.put(self.image * PAGE + 128, head)
        self.symbols = {"__note_gnu_build_id_start": XEN, "domain_list": XEN + 128}

    def frame(self) -> int:
        return self.frames(1)

    def frames(self, count: int) -> int:
        self.free += count
        return self.free - count

    def put(self, address: int, value: int, width: int = 8) -> None:
        self.memory[address : address + width] = value.to_bytes(width, "little")

    @staticmethod
    def address(frame: int) -> int:
        return DIRECT + frame * PAGE

    def _map(self, self_map: bool) -> None:
        """The hypervisor's page tables, all of 4 KiB pages."""
        pages = {M2P + at * PAGE: (self.m2p + at) * PAGE for at in range(8)}
        pages |= {M2P_RW + at * PAGE: (self.m2p + at) * PAGE for at in range(8)}
        pages |= {FRAME_TABLE + at * PAGE: (self.frame_table + at) * PAGE for at in range(32)}
        pages |= {DIRECT + frame * PAGE: frame * PAGE for frame in range(FRAMES)}
        pages[XEN] = self.image * PAGE
        first = self.frames(64)
        for address, word in long_tables(pages, self.root * PAGE, first * PAGE).items():
            self.put(address, word)
        if self_map:
            self.put(self.root * PAGE + 258 * 8, self.root * PAGE | 0x63)

    def _own(self, guest: Guest, frame: int, *, heap: bool = False) -> None:
        at = self.frame_table * PAGE + frame * 32
        self.put(at + 8, (3 if heap else 2) << 62 | 1)
        self.put(at + 24, self.structs[guest.number], 4)

    def _guest(self, guest: Guest) -> None:
        base = self.structs[guest.number] * PAGE
        for pfn, frame in guest.pages.items():
            self._own(guest, frame)
            self.put(self.m2p * PAGE + frame * 8, pfn)
            text = b"domain %d pfn %#x " % (guest.number, pfn)
            self.memory[frame * PAGE : frame * PAGE + len(text)] = text
        self._own(guest, self.shared[guest.number], heap=True)
        self.put(base, guest.number, 2)
        self.put(base + self.at["max_vcpus"], guest.vcpus, 4)
        self.put(base + self.at["shared_info"], self.address(self.shared[guest.number]))
        self.put(base + self.at["tot_pages"], len(guest.pages), 4)
        self.memory[base + self.at["handle"] : base + self.at["handle"] + 16] = guest.uuid
        self.put(base + self.at["is_32bit"], int(guest.word == 4), 1)
        p2m = self.frame()
        self.put(base + self.at["p2m"], self.address(p2m))
        if guest.kind == "pv":
            self._lists(guest)
        else:
            self.put(p2m * PAGE + self.at["phys_table"], self._nested(guest))
            self.put(base + self.at["emulation_flags"], 1 if guest.kind == "pvh" else 0x3FF, 4)
        array = self.frame()
        self.put(base + self.at["vcpu"], self.address(array))
        for number in range(guest.vcpus):
            self.put(array * PAGE + 8 * number, self._vcpu(guest, number))

    def _lists(self, guest: Guest) -> None:
        """Three levels of frame lists, in the guest's last three pages."""
        entries = guest.pages | guest.extra
        top, middle, leaf = (guest.pages[pfn] for pfn in sorted(guest.pages)[-3:])
        size, none = max(entries) + 1, (1 << 8 * guest.word) - 1
        assert size * guest.word <= PAGE
        for at, word in ((top, middle), (middle, leaf)):
            self.memory[at * PAGE : (at + 1) * PAGE] = word.to_bytes(guest.word, "little").ljust(PAGE, b"\0")
        for pfn in range(PAGE // guest.word):
            self.put(leaf * PAGE + pfn * guest.word, entries.get(pfn, none), guest.word)
        at = self.shared[guest.number] * PAGE + (3088 if guest.word == 8 else 2316)
        self.put(at, size, guest.word)
        self.put(at + guest.word, top, guest.word)

    def _nested(self, guest: Guest) -> int:
        """EPT: rights in the lowest three bits, the type of a page in bits 57:52."""
        root, first = self.frame(), self.frames(8)
        pages = {pfn * PAGE: frame * PAGE for pfn, frame in guest.pages.items() if not self._in_large(guest, pfn)}
        pages |= {gfn * PAGE: frame * PAGE | kind << 52 for gfn, (frame, kind) in guest.extra.items()}  # type: ignore[misc]
        words = long_tables(pages, root * PAGE, first * PAGE, flags=7)
        used = max([root, *(word >> 12 & 0xFFFFF for at, word in words.items() if at >> 12 != word >> 12)])
        for address, word in words.items():
            self.put(address, word)
        assert used
        for gfn, frame in guest.large:
            self.put(self.second_level(root) * PAGE + gfn // 512 * 8, frame * PAGE | 0x87)
        self.tables[guest.number] = root
        return root

    def second_level(self, root: int) -> int:
        """The table whose entries cover 2 MiB each."""
        third = self.word(root * PAGE) >> 12
        return self.word(third * PAGE) >> 12

    def word(self, address: int) -> int:
        return int.from_bytes(self.memory[address : address + 8], "little")

    @staticmethod
    def _in_large(guest: Guest, pfn: int) -> bool:
        return any(gfn <= pfn < gfn + 512 for gfn, _ in guest.large)

    def _vcpu(self, guest: Guest, number: int) -> int:
        at, base = self.at, self.frame() * PAGE
        self.vcpu[guest.number] = base
        self.put(base, number, 4)
        self.put(base + at["v_domain"], self.address(self.structs[guest.number]))
        self.put(base + at["is_running"], guest.running, 1)
        values = context_registers(guest.number)
        regs = [values[name] for name in REGISTERS]
        regs += [0, values["rip"], values["cs"], values["rflags"], values["rsp"], values["ss"]]
        packed = struct.pack("<21Q", *regs).ljust(at["user_regs_size"], b"\0")
        self.memory[base + at["user_regs"] : base + at["user_regs"] + len(packed)] = packed
        self.put(base + at["dr6"], 0xFFFF0FF0, 4)
        if guest.kind != "pv":
            self.memory[base + at["guest_cr"] : base + at["guest_cr"] + 40] = struct.pack(
                "<5Q", 0x11, 0, 2, 0x3000, 0x40
            )
            return self.address(base // PAGE)
        root = next(iter(guest.pages.values()))
        if guest.word == 4:  # Xen's fourth level above the guest's three
            above = self.frame()
            self._own(guest, above)
            self.put(above * PAGE, root * PAGE | 1)
            root = above
        self.put(base + at["guest_table"], root)
        self.put(base + at["flags"], 1, 4)
        self.put(base + at["ctrlreg"], 0x80050033)
        self.put(base + at["ctrlreg"] + 32, 0x2660)
        self.put(base + at["kernel_sp"] - 8, 0xE02B)
        self.put(base + at["kernel_sp"], 0x5000 + guest.number)
        self.put(base + at["fs_base"], 0x7F00)
        self.put(base + at["gs_base_kernel"], 0xFFFF888000000000)
        return self.address(base // PAGE)

    def build(self, notes: Sequence[bytes] = (), *, lacking: Iterable[int] = (), claim: int = 0) -> bytes:
        """An ELF core of the machine; frames of ``lacking`` are not in it, a page of nothing at frame ``claim`` is."""
        cuts = [-1, *sorted(lacking), FRAMES]
        loads = [
            Segment(paddr=(low + 1) * PAGE, data=bytes(self.memory[(low + 1) * PAGE : high * PAGE]))
            for low, high in itertools.pairwise(cuts)
            if high > low + 1
        ]
        loads += [Segment(paddr=claim * PAGE, memsz=PAGE)] if claim else []
        return build(loads, notes)

    def crash_notes(self, frame_lists: int = 0, *, version: int = 17) -> list[bytes]:
        """What a kexec leaves: the processor's page tables, and the hypervisor's own note."""
        info = [4, version, self.image * PAGE + 256, 0, 0, 0, 0, 0, 0x200000, frame_lists]
        self.memory[self.image * PAGE + 256 : self.image * PAGE + 260] = b".7\0\0"
        registers = struct.pack("<4Q", 0x80050033, 0, self.root * PAGE, 0x2660)
        return [note("Xen", 0x1000002, registers), note("Xen", 0x1000001, struct.pack("<10Q", *info))]
