"""Where QEMU keeps what leads to a guest's memory: offsets of members and addresses of variables, for one build.

They move from release to release, so they are taken from the debug information of the very build, or from a profile:
the same numbers as a small JSON file (docs/schemas/qemu-profile-1.json), made where the debug information is at hand.
What a release does not have is absent: the readers choose by what is there, not by a version.

Sources: qemu include/exec/memory.h (system/memory.h since 10.0, memory.c before 2.11), include/exec/ramblock.h,
ramlist.h, hw/core/cpu.h, target/*/cpu.h, hw/misc/vmcoreinfo.c; releases 2.0 to 10.2.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from dumpxlate.errors import CorruptDumpError, UnsupportedFeatureError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from dumpxlate.elf.dwarf import DebugInfo
    from dumpxlate.structs import Endian

__all__ = ["PROFILE_LIMIT", "PROFILE_SCHEMA", "Place", "Profile"]

PROFILE_SCHEMA = "dumpxlate.qemu-profile/1"

PROFILE_LIMIT = 1 << 20
"""Bytes of a profile: real ones have some 2,000."""
_MESSAGE, _SHOWN = 120, 40
"""Characters of an error, and of a value in it."""
_OFFSET_LIMIT = 1 << 20
_RANGE_LIMIT = 1 << 10
"""Bytes of a range of memory: real ones have 56 to 80, and there may be many."""
_HEX, _BUILD_ID = re.compile(r"0x[0-9a-f]{1,16}"), re.compile(r"([0-9a-f]{2}){1,64}")

_NEEDED = (  # noqa: SIM905 - shorter
    # FlatRange comes first: one unit defines it, that of the first in _BESIDE, which defines nearly all others too.
    "FlatRange.mr FlatRange.offset_in_region FlatRange.addr.start FlatRange.addr.size "
    "AddressSpace.current_map FlatView.ranges FlatView.nr "
    "MemoryRegion.ram MemoryRegion.alias MemoryRegion.alias_offset RAMBlock.host RAMBlock.offset RAMBlock.idstr"
).split()
_BESIDE = (
    "memory_region_transaction_begin",
    "vmcoreinfo_realize",
    *(f"{target}_cpu_gdb_read_register" for target in ("x86", "arm", "ppc", "s390", "riscv")),
)
"""Functions from units that define what is wanted; all releases have them."""
_CHOICES = (
    # Until 2.5 a region knows its RAM by an address in the space of all blocks, and until 2.2 blocks have one length.
    ("MemoryRegion.ram_block", "MemoryRegion.ram_addr"),
    ("RAMBlock.used_length", "RAMBlock.length"),
)
_OPTIONAL = [
    "MemoryRegion.ram_device",
    "MemoryRegion.skip_dump",
    "MemoryRegion.nonvolatile",
    "RAMBlock.max_length",
    "RAMBlock.next.le_next",
    "RAMBlock.next.tqe_next",
    "RAMList.blocks.lh_first",
    "RAMList.blocks.tqh_first",
    "VMCoreInfoState.has_vmcoreinfo",
    "VMCoreInfoState.vmcoreinfo",
    "CPUState.cpu_index",
    "CPUState.node.tqe_next",
    "CPUState.vcpu_dirty",
    "CPUState.kvm_vcpu_dirty",
    "SegmentCache.selector",
    "SegmentCache.base",
    "SegmentCache.limit",
    "SegmentCache.flags",
]
_PROCESSORS = ("ArchCPU", "X86CPU", "ARMCPU", "PowerPCCPU", "S390CPU", "RISCVCPU")
"""What the structure of a processor is called: the same on all architectures since 7.1."""
_REGISTERS = {
    # The one that tells the architecture first.
    "eip": "regs eflags segs ldt tr gdt idt cr kernelgsbase efer",
    "xregs": "pc pstate aarch64 regs NF ZF CF VF QF GE daif btype thumb condexec_bits uncached_cpsr",
    "nip": "gpr msr crf lr ctr xer so ov ca ov32 ca32 spr",
    "psw.addr": "psw.mask regs aregs",
    "stvec": "gpr pc",
}
_SIZES = ("FlatRange", "SegmentCache")
_VARIABLES = (
    ("address_space_memory",),
    ("ram_list",),
    ("cpus_queue", "cpus"),  # called cpus until 8.1
    ("vmcoreinfo_state",),
    ("kvm_allowed",),
)


class Place(NamedTuple):
    """Where a member lies in its structure, and how many bytes it has."""

    offset: int
    size: int


class Profile(NamedTuple):
    """What one build of QEMU is like.

    Attributes:
        build_id: hexadecimal digits; None where the build has none.
        entry: address of the entry point as linked.
        bits: width of a pointer.
        endian: byte order of the host.
        addresses: of variables, as linked.
        sizes: of structures.
        places: by the path of a member ("FlatRange.addr.start"); registers as "env.eip", from the processor's start.
        source: where the numbers are from, for people.
    """

    build_id: str | None
    entry: int
    bits: Literal[32, 64]
    endian: Endian
    addresses: Mapping[str, int]
    sizes: Mapping[str, int]
    places: Mapping[str, Place]
    source: str = ""

    @classmethod
    def from_debug_info(cls, info: DebugInfo, source: str) -> Self:
        """Take the numbers from debug information.

        Raises:
            UnsupportedFeatureError: it is not that of QEMU, or of a QEMU that keeps its memory in another way.
            CorruptDumpError: it contradicts itself.
        """
        places = {}
        info.begin_beside(*_BESIDE)
        for path in (*_NEEDED, *(path for paths in _CHOICES for path in paths), *_OPTIONAL):
            found = info.field(path)
            if found is not None:
                places[path] = Place(found.offset, found.size)
        _narrow(info, places)
        places |= _registers(info)
        sizes = {name: size for name in _SIZES if (size := info.size(name))}
        addresses = dict(filter(None, (info.variable(*names) for names in _VARIABLES)))
        made = cls(info.build_id, info.entry, info.bits, info.endian, addresses, sizes, places, source)
        try:
            made._check()
        except UnsupportedFeatureError:
            _refuse_split(info, source)
            raise
        return made

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> Self:
        """Read a profile.

        Raises:
            CorruptDumpError: it is none, or one of its numbers cannot be.
            UnsupportedFeatureError: it lacks something.
        """
        import json

        try:
            document: Any = json.loads(text)
            if not isinstance(document, dict):
                raise TypeError("no JSON object")
            if document["schema"] != PROFILE_SCHEMA:
                raise ValueError(f"schema {_shown(document['schema'])}, expected {PROFILE_SCHEMA!r}")
            made = cls(
                build_id=_build_id(document["build_id"]),
                entry=_address(document["entry"]),
                bits=64 if document["bits"] == 64 else 32,
                endian="<" if document["byte_order"] == "little" else ">",
                addresses={str(name): _address(text) for name, text in document["addresses"].items()},
                sizes={str(name): _bounded(size) for name, size in document["sizes"].items()},
                places={
                    str(path): Place(_bounded(offset), _bounded(size))
                    for path, (offset, size) in document["places"].items()
                },
                source=source,
            )
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            at = getattr(error, "pos", getattr(error, "start", 0))  # of what is no JSON, or no UTF-8
            raise CorruptDumpError(
                f"not a profile: {_defect(error)}", path=source, offset=at, what="QEMU profile"
            ) from None  # the error may hold all of the file, which may be a core with secrets
        made._check()
        return made

    def to_json(self) -> str:
        """Write the profile."""
        import json

        document = {
            "schema": PROFILE_SCHEMA,
            "build_id": self.build_id,
            "entry": hex(self.entry),
            "bits": self.bits,
            "byte_order": "little" if self.endian == "<" else "big",
            "addresses": {name: hex(at) for name, at in self.addresses.items()},
            "sizes": dict(self.sizes),
            "places": {path: [place.offset, place.size] for path, place in self.places.items()},
        }
        return json.dumps(document, indent=1) + "\n"

    def place(self, *paths: str) -> Place | None:
        """Give the first of some places that this build has."""
        return next((self.places[path] for path in paths if path in self.places), None)

    def _check(self) -> None:
        lacking = [path for path in _NEEDED if path not in self.places]
        lacking += [" or ".join(paths) for paths in _CHOICES if not any(path in self.places for path in paths)]
        lacking += [] if "address_space_memory" in self.addresses else ["address_space_memory"]
        lacking += [] if self.sizes.get("FlatRange") else ["the size of FlatRange"]
        if lacking:
            raise UnsupportedFeatureError(
                f"is not of a QEMU system emulator, or lacks some of it: {', '.join(lacking)}",
                path=self.source,
                feature="QEMU debug information",
            )
        if self.sizes["FlatRange"] > _RANGE_LIMIT:
            raise CorruptDumpError(
                f"{self.sizes['FlatRange']:,} bytes of FlatRange: expected {_RANGE_LIMIT:,} at most",
                path=self.source,
                what="QEMU profile",
            )
        for name in ("start", "size"):
            place = self.places[f"FlatRange.addr.{name}"]
            if place.offset + place.size > self.sizes["FlatRange"]:
                raise CorruptDumpError(
                    f"addr.{name} at {place.offset:#x} lies outside FlatRange", path=self.source, what="QEMU profile"
                )


def _refuse_split(info: DebugInfo, source: str) -> None:
    """Say so where the compiler left in other files what is lacking."""
    name = info.split_off()
    if name:
        raise UnsupportedFeatureError(
            f"is only a skeleton: the debug information is split off to files such as {name}, which are not read; "
            "build QEMU without -gsplit-dwarf, or do without (--machine-type, --ram-block)",
            path=source,
            feature="split debug information",
        )


def _defect(error: Exception) -> str:
    """Say in some words why something is no profile."""
    if isinstance(error, UnicodeDecodeError):
        return "no UTF-8 text"
    if isinstance(error, KeyError):
        return f"{_shown(error.args[0])} is missing"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    said = " ".join(str(error).split())
    return said if len(said) <= _MESSAGE else f"{said[:_MESSAGE]}..."


def _shown(value: object) -> str:
    """Show the beginning of a value of any size."""
    if isinstance(value, str):
        value = value[:_SHOWN]
    return repr(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


def _bounded(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value < _OFFSET_LIMIT:
        raise ValueError(f"{_shown(value)} is no number from 0 to {_OFFSET_LIMIT - 1}")
    return value


def _build_id(text: object) -> str | None:
    if text is None or (isinstance(text, str) and _BUILD_ID.fullmatch(text)):
        return text
    raise ValueError(f"{_shown(text)} is no build id")


def _address(text: object) -> int:
    if not isinstance(text, str) or not _HEX.fullmatch(text):
        raise ValueError(f"{_shown(text)} is no address")
    return int(text, 16)


def _narrow(info: DebugInfo, places: dict[str, Place]) -> None:
    """Cut numbers of 128 bits to their low half: a native __int128, or a structure where compilers have none."""
    for path in ("FlatRange.addr.start", "FlatRange.addr.size"):
        if path not in places or places[path].size != 16:
            continue
        low = info.field(f"{path}.lo")
        native = 8 if info.endian == ">" else 0
        places[path] = Place(low.offset if low else places[path].offset + native, 8)


def _registers(info: DebugInfo) -> dict[str, Place]:
    """Find the registers of processors of the architectures that are known."""
    for name in _PROCESSORS:
        if info.size(name) is None:
            continue
        for key, others in _REGISTERS.items():
            if info.field(f"{name}.env.{key}") is None:
                continue
            found = {f"env.{register}": info.field(f"{name}.env.{register}") for register in (key, *others.split())}
            return {path: Place(place.offset, place.size) for path, place in found.items() if place}
    return {}
