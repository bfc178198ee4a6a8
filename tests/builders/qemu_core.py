"""Cores of a QEMU process, of any release from 2.0 on: QEMU's structures in its heap, the guest's memory beside them.

Members lie where each kind of release has them: which exist, and in which order, is QEMU's; padding is made up, since
readers must not know it. RAM blocks are as in include/exec/ramblock.h to the byte, since they can be found by looks.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import elf
from .elf_notes import note
from .packing import align

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .guest import Guest

__all__ = ["BUILD_ID", "RELEASES", "Block", "Core", "Range", "Region", "build"]

BUILD_ID = bytes(range(0x40, 0x54))
PAGE = 4096
ENTRY, DATA = 0x1230, 0x8000  # as linked
BASES = {
    64: {"program": 0x555500000000, "heap": 0x555600000000, "ram": 0x7F0000200000, "stack": 0x7FFD00000000},
    32: {"program": 0x400000, "heap": 0x10000000, "ram": 0x60000000, "stack": 0xBF000000},
}
POINTER = -1  # a size: as wide as the host's pointers

REGION = "ram_device 1, ram 1, nonvolatile 1, pad 5, alias *, alias_offset 8, size 16, "
RELEASES: dict[str, dict[str, str]] = {
    # name: members in order, with their sizes; * is a pointer
    "2.0": {
        "FlatView": "ref 4, ranges *, nr 4",
        "MemoryRegion": "pad 8, ram 1, pad 7, ram_addr 8, alias *, alias_offset 8",
        "RAMBlock": "mr *, host *, offset 8, length 8, flags 4, idstr 256, next.tqe_next *, next.tqe_prev *, fd 4",
        "RAMList": "pad 16, blocks.tqh_first *, blocks.tqh_last *",
    },
    "2.4": {
        "FlatView": "rcu 16, ref 4, ranges *, nr 4",
        "MemoryRegion": "pad 8, ram 1, skip_dump 1, pad 6, ram_addr 8, alias *, alias_offset 8",
        "RAMBlock": "rcu 16, mr *, host *, offset 8, used_length 8, max_length 8, resized *, flags 4, idstr 256, "
        "next.le_next *, next.le_prev *, fd 4",
        "RAMList": "pad 16, blocks.lh_first *",
    },
    "2.6": {
        "FlatView": "rcu 16, ref 4, ranges *, nr 4",
        "MemoryRegion": "pad 16, ram 1, skip_dump 1, pad 6, ram_block *, alias *, alias_offset 8",
        "RAMBlock": "rcu 16, mr *, host *, offset 8, used_length 8, max_length 8, resized *, flags 4, idstr 256, "
        "next.le_next *, next.le_prev *, fd 4",
        "RAMList": "pad 16, blocks.lh_first *",
    },
    "7.2": {
        "FlatView": "rcu 16, ref 4, ranges *, nr 4, nr_allocated 4",
        "MemoryRegion": "pad 40, romd_mode 1, ram 1, subpage 1, readonly 1, nonvolatile 1, pad 11, ram_block *, "
        "pad 88, ram_device 1, pad 7, alias *, alias_offset 8",
        "RAMBlock": "rcu 16, mr *, host *, colo_cache *, offset 8, used_length 8, max_length 8, resized *, flags 4, "
        "idstr 256, next.le_next *, next.le_prev *, fd 4",
        "RAMList": "pad 48, mru_block *, blocks.lh_first *",
    },
}
"""What each kind of release has; later releases are as 7.2 to those who look members up by name."""
COMMON = {
    "AddressSpace": "rcu 16, name *, root *, current_map *",
    "FlatRange": "mr *, offset_in_region 8, addr.start 16, addr.size 16, dirty_log_mask 1, readonly 1, pad 6",
    "CPUState": "pad 32, cpu_index 4, pad 4, node.tqe_next *, node.tqe_prev *, vcpu_dirty 1, pad 7",
    "SegmentCache": "selector 4, pad 4, base 8, limit 4, flags 4",
    "VMCoreInfoState": "pad 24, has_vmcoreinfo 1, pad 7, vmcoreinfo 16",
}
PROCESSORS = {
    # What CPUArchState has of each architecture; of an array also the size of an element.
    "x86_64": "regs 16x8, eip 8, eflags 8, segs 18x8, ldt 24, tr 24, gdt 24, idt 24, cr 5x8, kernelgsbase 8, efer 8",
    "aarch64": "regs 16x4, xregs 32x8, pc 8, pstate 4, aarch64 1, thumb 1, pad 2, uncached_cpsr 4, pad 30, CF 4, VF 4, "
    "NF 4, ZF 4, QF 4, GE 4, condexec_bits 4, btype 4, daif 8",
    "ppc64": "gpr 32x8, pad 256, lr 8, ctr 8, crf 8x4, pad 64, nip 8, so 8, ov 8, ca 8, ov32 8, ca32 8, msr 8, xer 8, "
    "spr 1024x8",
    "s390x": "regs 16x8, pad 512, aregs 16x4, pad 16, psw.mask 8, psw.addr 8",
    "riscv64": "gpr 32x8, gprh 32x8, pc 8, load_res 8, stvec 8",
    "loongarch64": "gpr 32x8, pc 8",
}
BACK = ("next.le_prev", "next.tqe_prev")
"""What a block's pointer to that of the block before it, or to the list's head, is called."""
VARIABLES = ("address_space_memory", "ram_list", "cpus", "vmcoreinfo_state", "kvm_allowed")


@dataclass
class Block:
    """A RAM block and its bytes.

    ``mapped`` False: excluded from the core, as dump-guest-core=off has it; ``listed`` False: as gdb has it then,
    without a program header.
    """

    name: str
    data: bytes
    mapped: bool = True
    listed: bool = True
    host: int = 0
    at: int = 0
    offset: int = 0
    max_length: int | None = None
    file: str = ""


@dataclass
class Region:
    """A MemoryRegion; ``alias`` may be itself."""

    block: Block | None = None
    ram: int = 1
    flags: dict[str, int] = field(default_factory=dict)
    alias: Region | None = None
    alias_offset: int = 0
    at: int = 0


@dataclass
class Range:
    """A FlatRange."""

    start: int
    size: int
    region: Region
    offset: int = 0


@dataclass
class Core:
    """What was built.

    Attributes:
        data: the core.
        profile: what debug information would tell, as the document that dumpxlate reads.
        ranges: (start, length, host address) of the guest's memory.
    """

    data: bytes
    profile: dict[str, Any]
    ranges: list[tuple[int, int, int]]


class Heap:
    """Memory of the process that structures are put into."""

    def __init__(self, base: int, order: str, pointer: int) -> None:
        self.base, self.order, self.pointer = base, order, pointer
        self.body = bytearray(64)

    def take(self, size: int) -> int:
        at = align(len(self.body), 16)
        self.body += bytes(at + size - len(self.body))
        return self.base + at

    def put(self, at: int, place: tuple[int, int], value: int) -> None:
        start = at - self.base + place[0]
        data = (value & (1 << 8 * place[1]) - 1).to_bytes(place[1], "little" if self.order == "<" else "big")
        self.body[start : start + place[1]] = data


def members(text: str, pointer: int) -> tuple[dict[str, tuple[int, int]], int]:
    """Offsets and sizes of members, numbers aligned to their size up to 8, and the size of all."""
    places: dict[str, tuple[int, int]] = {}
    at = 0
    for part in text.split(", "):
        name, width = part.split(" ")
        size = pointer if width == "*" else math.prod(map(int, width.split("x")))
        at = align(at, 8 if size in (8, 16, 24) and pointer == 8 else 4 if size >= 4 and name not in ("pad",) else 1)
        places[name] = (at, size)
        at += size
    return places, align(at, 8)


def ranges_of(guest: Guest, region: Region) -> list[Range]:
    """One range for each run of the guest's RAM; what lies above 4 GiB follows what lies below in the block."""
    low = [pfn for pfn in guest.ram if pfn < 1 << 20]
    below = max(low) + 1
    found: list[Range] = []
    for pfn in guest.ram:
        at = pfn if pfn < 1 << 20 else below + pfn - (1 << 20)
        last = found[-1] if found else None
        if last and last.start + last.size == pfn * PAGE and last.offset + last.size == at * PAGE:
            last.size += PAGE
        else:
            found.append(Range(pfn * PAGE, PAGE, region, at * PAGE))
    return found


def block_of(guest: Guest) -> bytes:
    low = max(pfn for pfn in guest.ram if pfn < 1 << 20) + 1
    high = [pfn for pfn in guest.ram if pfn >= 1 << 20]
    return guest.run(0, low) + (guest.run(1 << 20, max(high) + 1 - (1 << 20)) if high else b"")


def build(
    guest: Guest,
    *,
    release: str = "7.2",
    bits: int = 64,
    order: str = "<",
    native: bool = True,
    blocks: Sequence[Block] | None = None,
    ranges: Sequence[Range] | None = None,
    program: str = "qemu-system-x86_64",
    words: Sequence[str] = (),
    registers: Sequence[dict[str, int]] = (),
    processor: str = "x86_64",
    kvm: int = 0,
    dirty: int = 1,
    vmcoreinfo: tuple[int, int] | None = None,
    lies: dict[str, int] | None = None,
    circle: str = "",
    first_page: bool = True,
    stack: bool = True,
    auxv: dict[int, int | None] | None = None,
    more: Sequence[elf.Segment] = (),
    **options: Any,
) -> Core:
    """A core.

    Args:
        guest: its pages are the block ``pc.ram``, unless ``blocks`` and ``ranges`` say otherwise.
        release: one of RELEASES.
        native: whether the host's compiler has __int128; else it is a structure, its low half first.
        words: the command line behind the program's name.
        registers: of each processor, by name: a number for each member of ``env`` that is one.
        processor: one of PROCESSORS.
        vmcoreinfo: guest-physical address and size of the guest's note.
        lies: members of the FlatView that shall be wrong: nr, ranges.
        circle: "cpus" or "blocks": a list whose last element leads to its first.
        first_page: whether the program's first page, with its build id, is in the core.
        auxv: values of the auxiliary vector that are others; None where there is none.
        more: other memory of the process.
        options: of ``elf.build``.
    """
    bases, pointer = BASES[bits], bits // 8
    texts = COMMON | RELEASES[release] | {"env": PROCESSORS[processor]}
    shapes = {name: members(text, pointer) for name, text in texts.items()}
    heap = Heap(bases["heap"], order, pointer)
    block = Block("pc.ram", block_of(guest)) if blocks is None else None
    all_blocks = [block, Block("/rom@etc/acpi/tables", bytes(2 * PAGE))] if block else list(blocks or ())
    all_ranges = ranges_of(guest, Region(block)) if ranges is None else list(ranges)
    first_block = _blocks(heap, shapes, all_blocks, bases["ram"], circle == "blocks")
    view = _view(heap, shapes, all_ranges, native, lies or {})
    cpus = _cpus(heap, shapes, registers, PROCESSORS[processor], dirty, circle == "cpus")
    data = Heap(bases["program"] + DATA, order, pointer)
    space, blocks_at, cpu_head, device, kvm_at = (
        data.take(size) for size in (shapes["AddressSpace"][1], shapes["RAMList"][1], 16, pointer, 1)
    )
    data.put(space, shapes["AddressSpace"][0]["current_map"], view)
    heads = {name: place for name, place in shapes["RAMList"][0].items() if name.endswith("h_first")}
    head = next(iter(heads.values()))
    data.put(blocks_at, head, first_block)
    if first_block and circle != "blocks":
        back = next(place for name, place in shapes["RAMBlock"][0].items() if name in BACK)
        heap.put(first_block, back, blocks_at + head[0])
    data.put(cpu_head, (0, pointer), cpus)
    data.put(device, (0, pointer), _device(heap, shapes, vmcoreinfo))
    data.put(kvm_at, (0, 1), kvm)
    where = dict(zip(VARIABLES, (space, blocks_at, cpu_head, device, kvm_at), strict=True))
    body = _core(
        bases, bits, order, all_blocks, heap, data, program, words, first_page, stack, auxv or {}, more, options
    )
    return Core(
        body,
        _profile(shapes, where, bases["program"], bits, order, native),
        [(each.start, each.size, each.region.block.host + each.offset) for each in all_ranges if each.region.block],
    )


def _blocks(heap: Heap, shapes: dict[str, Any], blocks: Sequence[Block], host: int, circle: bool) -> int:
    """Put the blocks and their list; gives the first."""
    places, size = shapes["RAMBlock"]
    offset = 0
    following = next(name for name in places if name in ("next.le_next", "next.tqe_next"))
    back = next(name for name in places if name in BACK)
    for number, block in enumerate(blocks):
        block.at, block.host, block.offset = heap.take(size), block.host or host, offset
        length = len(block.data)
        host = max(host, align(block.host + length, PAGE) + 4 * PAGE)
        offset += align(length, PAGE)
        for name, value in (
            ("host", block.host), ("offset", block.offset), ("length", length), ("used_length", length),
            ("max_length", block.max_length or length),
        ):  # fmt: skip
            if name in places:
                heap.put(block.at, places[name], value)
        name_at = block.at - heap.base + places["idstr"][0]
        heap.body[name_at : name_at + len(block.name)] = block.name.encode()
        if number:
            heap.put(blocks[number - 1].at, places[following], block.at)
            heap.put(block.at, places[back], blocks[number - 1].at + places[following][0])
    if circle:
        heap.put(blocks[-1].at, places[following], blocks[0].at)
        heap.put(blocks[0].at, places[back], blocks[-1].at + places[following][0])
    return blocks[0].at if blocks else 0


def _region(heap: Heap, places: dict[str, tuple[int, int]], size: int, region: Region) -> int:
    if region.at:
        return region.at
    region.at = heap.take(size)
    heap.put(region.at, places["ram"], region.ram)
    for name, value in region.flags.items():
        heap.put(region.at, places[name], value)
    if region.alias:
        heap.put(region.at, places["alias"], _region(heap, places, size, region.alias))
        heap.put(region.at, places["alias_offset"], region.alias_offset)
    elif region.block and "ram_block" in places:
        heap.put(region.at, places["ram_block"], region.block.at)
    elif region.block:
        heap.put(region.at, places["ram_addr"], region.block.offset)
    return region.at


def _view(heap: Heap, shapes: dict[str, Any], ranges: Sequence[Range], native: bool, lies: dict[str, int]) -> int:
    places, size = shapes["FlatRange"]
    table = heap.take(size * max(len(ranges), 1))
    high_first = native and heap.order == ">"
    for number, each in enumerate(ranges):
        at = table + number * size
        heap.put(at, places["mr"], _region(heap, *shapes["MemoryRegion"], each.region))
        heap.put(at, places["offset_in_region"], each.offset)
        for name, value in (("addr.start", each.start), ("addr.size", each.size)):
            heap.put(at, (places[name][0] + 8 * high_first, 8), value)
    view = heap.take(shapes["FlatView"][1])
    heap.put(view, shapes["FlatView"][0]["ranges"], lies.get("ranges", table))
    heap.put(view, shapes["FlatView"][0]["nr"], lies.get("nr", len(ranges)))
    return view


def _cpus(
    heap: Heap, shapes: dict[str, Any], registers: Sequence[dict[str, int]], env_text: str, dirty: int, circle: bool
) -> int:
    """Put the processors, one behind the other in their list; gives the first."""
    state, size = shapes["CPUState"]
    env, env_size = shapes["env"]
    widths = {name: int(size.split("x")[1]) for name, size in map(str.split, env_text.split(", ")) if "x" in size}
    first = previous = 0
    for number, values in enumerate(registers):
        at = heap.take(size + env_size)
        heap.put(at, state["cpu_index"], number)
        heap.put(at, state["vcpu_dirty"], dirty)
        for name, value in values.items():
            member, _, index = name.partition("[")
            offset, width = env[member]
            if index:
                offset, width = offset + widths[member] * int(index[:-1]), widths[member]
            heap.put(at, (size + offset, width), value)
        if previous:
            heap.put(previous, state["node.tqe_next"], at)
        first, previous = first or at, at
    if circle:
        heap.put(previous, state["node.tqe_next"], first)
    return first


def _device(heap: Heap, shapes: dict[str, Any], vmcoreinfo: tuple[int, int] | None) -> int:
    if vmcoreinfo is None:
        return 0
    places, size = shapes["VMCoreInfoState"]
    at = heap.take(size)
    heap.put(at, places["has_vmcoreinfo"], 1)
    start = at - heap.base + places["vmcoreinfo"][0]
    heap.body[start : start + 16] = struct.pack("<HHIQ", 0, 1, vmcoreinfo[1], vmcoreinfo[0])
    return at


def _profile(
    shapes: dict[str, Any], where: dict[str, int], base: int, bits: int, order: str, native: bool
) -> dict[str, Any]:
    places = {}
    for name, (fields, _) in shapes.items():
        for path, (offset, size) in fields.items():
            if name == "env":
                places[f"env.{path}"] = [shapes["CPUState"][1] + offset, size]
            elif path != "pad":
                places[f"{name}.{path}"] = [offset, size]
    for name in ("start", "size"):
        place = places[f"FlatRange.addr.{name}"]
        places[f"FlatRange.addr.{name}"] = [place[0] + 8 * (native and order == ">"), 8]
    return {
        "schema": "dumpxlate.qemu-profile/1",
        "build_id": BUILD_ID.hex(),
        "entry": hex(ENTRY),
        "bits": bits,
        "byte_order": "little" if order == "<" else "big",
        "addresses": {name: hex(at - base) for name, at in where.items()},
        "sizes": {name: shapes[name][1] for name in ("FlatRange", "SegmentCache")},
        "places": places,
    }


def _program_page(bits: int, order: str) -> bytes:
    """The first page of the program: its headers and its build id."""
    build_id = note("GNU", 3, BUILD_ID, order=order)
    page = elf.build([elf.Segment(data=b"x", vaddr=0)], [build_id], bits=bits, byte_order=order)
    return _with_linked_notes(page, bits, order).ljust(PAGE, b"\0")


def _with_linked_notes(page: bytes, bits: int, order: str) -> bytes:
    """Say where the notes are linked to: where they are in the file."""
    ehsize = elf.SIZES[bits][0]
    offset_at, vaddr_at, word = (8, 16, "Q") if bits == 64 else (4, 8, "I")
    (offset,) = struct.unpack_from(order + word, page, ehsize + offset_at)
    changed = bytearray(page)
    struct.pack_into(order + word, changed, ehsize + vaddr_at, offset)
    return bytes(changed)


def _core(
    bases: dict[str, int],
    bits: int,
    order: str,
    blocks: Sequence[Block],
    heap: Heap,
    data: Heap,
    program: str,
    words: Sequence[str],
    first_page: bool,
    stack: bool,
    told: dict[int, int | None],
    more: Sequence[elf.Segment],
    options: dict[str, Any],
) -> bytes:
    word = order + ("Q" if bits == 64 else "I")
    base, pointer = bases["program"], bits // 8
    auxv = [(3, base + elf.SIZES[bits][0]), (4, elf.SIZES[bits][1]), (5, 2), (9, base + ENTRY)]
    body, random_at = _stack(bases["stack"], word, [program, *words], auxv)
    pairs = [(key, told.get(key, value)) for key, value in (*auxv, (25, random_at), (0, 0))]
    files = [(base, base + DATA, f"/usr/bin/{program}")]
    files += [(each.host, each.host + len(each.data), each.file) for each in blocks if each.file]
    fname = program[:15].encode().ljust(16, b"\0")
    status = bytes(40 if bits == 64 else 28) + fname + " ".join([program, *words])[:79].encode().ljust(80, b"\0")
    named = struct.pack(word[0] + 2 * word[1], len(files), PAGE)
    named += b"".join(struct.pack(word[0] + 3 * word[1], start, stop, 0) for start, stop, _ in files)
    named += b"".join(name.encode() + b"\0" for *_, name in files)
    flat = [value for pair in pairs if pair[1] is not None for value in pair]
    notes = [
        note("CORE", 1, bytes(336), order=order),
        note("CORE", 3, status, order=order),
        note("CORE", 6, struct.pack(word[0] + word[1] * len(flat), *flat), order=order),
        note("CORE", 0x46494C45, named, order=order),
    ]
    first = _program_page(bits, order) if first_page else b""
    loads = [
        elf.Segment(data=first, vaddr=base, memsz=PAGE, flags=4),
        elf.Segment(data=bytes(data.body), vaddr=data.base, flags=6),
        elf.Segment(data=bytes(heap.body), vaddr=heap.base, flags=6),
    ]
    loads += [
        elf.Segment(data=each.data if each.mapped else b"", vaddr=each.host, memsz=len(each.data), flags=6)
        for each in blocks
        if each.listed
    ]
    loads += more
    if stack:
        loads.append(elf.Segment(data=body.ljust(pointer * 1024, b"\0"), vaddr=bases["stack"], flags=6))
    options = {"align_data": PAGE, "align_notes": 4, **options}
    return elf.build(loads, notes, bits=bits, byte_order=order, machine=62 if bits == 64 else 3, **options)


def _stack(base: int, word: str, words: Sequence[str], auxv: Sequence[tuple[int, int]]) -> tuple[bytes, int]:
    """The end of a stack: argc, argv, environment, auxiliary vector, strings; and where AT_RANDOM points."""
    environment = ["HOME=/root", "SECRET=1"]
    size = struct.calcsize(word)
    count = 1 + len(words) + 1 + len(environment) + 1 + 2 * (len(auxv) + 2)
    at = base + 8 * size + count * size
    random_at = at
    at += 16
    strings = bytes(range(1, 17))
    pointers = []
    for text in (*words, *environment):
        pointers.append(at + len(strings) - 16)
        strings += text.encode() + b"\0"
    argv, envp = pointers[: len(words)], pointers[len(words) :]
    flat = [value for pair in (*auxv, (25, random_at), (0, 0)) for value in pair]
    table = [7] * 8 + [len(words), *argv, 0, *envp, 0, *flat]
    return struct.pack(word[0] + word[1] * len(table), *table) + strings, random_at
