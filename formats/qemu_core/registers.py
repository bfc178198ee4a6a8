"""Registers of one processor out of QEMU's structure of it (CPUArchState), under the names that notes have for them.

What a machine has in one register QEMU may keep in parts, the flags of Arm for instance; these are put together as its
own dumps do it.

Sources: qemu target/{i386,arm,ppc,s390x,riscv}/cpu.h and arch_dump.c; releases 2.0 to 10.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpxlate.arch.riscv import RISCV64

if TYPE_CHECKING:
    from collections.abc import Callable

    from dumpxlate.formats.qemu_core.ram import Reader

__all__ = ["read_registers"]

_GENERAL = tuple("rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split())  # noqa: SIM905 - shorter
_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")
_TABLES = ("ldt", "tr", "gdt", "idt")
_PARTS = {"": "selector", "_base": "base", "_limit": "limit", "_flags": "flags"}
_RISCV = ("", *list(RISCV64.prstatus.fields)[1:])
"""Names of x1 to x31: pc stands before them in notes."""

_WIDTHS = (4, 8)
_DSISR, _DAR = 18, 19
"""Numbers of special purpose registers."""


def read_registers(reader: Reader, at: int) -> dict[str, int]:
    """Read what is known of a processor; nothing for an architecture that is not known.

    Args:
        reader: reads QEMU's structures.
        at: where that of the processor is.

    Raises:
        CorruptDumpError: it is not in the core.
    """
    return next((read(reader, at) for key, read in _READERS.items() if key in reader.profile.places), {})


def _single(reader: Reader, at: int, names: dict[str, str]) -> dict[str, int]:
    """Read members of one number, under other names; those that the build does not have are left out."""
    return {name: reader.member(at, path) for name, path in names.items() if path in reader.profile.places}


def _row(reader: Reader, at: int, path: str, width: int, most: int) -> list[int]:
    """Read an array of numbers of so many bytes, its first ones; nothing where the build does not have it."""
    place = reader.profile.place(path)
    if place is None or width not in _WIDTHS:
        return []
    count, start = min(place.size // width, most), at + place.offset
    return [reader.process.word(start + number * width, width, path) for number in range(count)]


def _numbered(stem: str, values: list[int]) -> dict[str, int]:
    return {f"{stem}{number}": value for number, value in enumerate(values)}


def _x86(reader: Reader, at: int) -> dict[str, int]:
    """Registers as QEMU's note has them, and EFER."""
    places = reader.profile.places
    width = places["env.eip"].size  # of the target: 4 in qemu-system-i386
    found = dict(zip(_GENERAL, _row(reader, at, "env.regs", width, len(_GENERAL)), strict=False))
    single = {"rip": "env.eip", "rflags": "env.eflags", "kernel_gs_base": "env.kernelgsbase", "efer": "env.efer"}
    found |= _single(reader, at, single)
    control = _row(reader, at, "env.cr", width, 5)
    found |= {f"cr{number}": control[number] for number in (0, 2, 3, 4) if number < len(control)}
    return found | _x86_segments(reader, at)


def _x86_segments(reader: Reader, at: int) -> dict[str, int]:
    places, size = reader.profile.places, reader.profile.sizes.get("SegmentCache", 0)
    found: dict[str, int] = {}
    starts = {name: places[f"env.{name}"].offset for name in _TABLES if f"env.{name}" in places}
    if size and "env.segs" in places:
        starts |= {name: places["env.segs"].offset + number * size for number, name in enumerate(_SEGMENTS)}
    for name, start in starts.items():
        for suffix, part in _PARTS.items():
            found[name + suffix] = reader.member(at + start, f"SegmentCache.{part}")
    return found


def _arm(reader: Reader, at: int) -> dict[str, int]:
    """A 64-bit processor has 32-bit registers where it runs 32-bit code, as a 32-bit one does."""

    def part(name: str) -> int:
        return reader.member(at, f"env.{name}")

    # QEMU keeps what tells about zero, N and V as the result itself.
    flags = part("NF") & 1 << 31 | (not part("ZF")) << 30 | (part("CF") & 1) << 29 | (part("VF") & 1 << 31) >> 3
    if part("aarch64") & 0xFF:
        pstate = flags | part("pstate") | part("daif") | part("btype") << 10
        values = _row(reader, at, "env.xregs", 8, 32)
        found = _numbered("x", values[:31]) | dict(zip(["sp"], values[31:], strict=False))
        return found | {"pc": part("pc"), "pstate": pstate}
    if_then = (part("condexec_bits") & 3) << 25 | (part("condexec_bits") & 0xFC) << 8
    cpsr = flags | part("QF") << 27 | part("GE") << 16 | part("thumb") << 5 | if_then
    cpsr |= part("uncached_cpsr") | part("daif") & 0x1C0
    return _numbered("r", _row(reader, at, "env.regs", 4, 16)) | {"cpsr": cpsr}


def _ppc(reader: Reader, at: int) -> dict[str, int]:
    width = reader.profile.places["env.nip"].size
    found = _numbered("gpr", _row(reader, at, "env.gpr", width, 32))
    found |= _single(reader, at, {"nip": "env.nip", "msr": "env.msr", "link": "env.lr", "ctr": "env.ctr"})
    parts = (("xer", 0), ("so", 31), ("ov", 30), ("ca", 29), ("ov32", 19), ("ca32", 18))
    xer = sum(reader.member(at, f"env.{name}") << shift for name, shift in parts)
    fields = _row(reader, at, "env.crf", 4, 8)
    ccr = sum((field & 0xF) << 4 * (7 - number) for number, field in enumerate(fields))
    special = _row(reader, at, "env.spr", width, _DAR + 1)
    return found | {"xer": xer, "ccr": ccr} | dict(zip(("dsisr", "dar"), special[_DSISR:], strict=False))


def _s390x(reader: Reader, at: int) -> dict[str, int]:
    found = _numbered("gpr", _row(reader, at, "env.regs", 8, 16)) | _numbered(
        "acr", _row(reader, at, "env.aregs", 4, 16)
    )
    return found | _single(reader, at, {"psw_mask": "env.psw.mask", "psw_addr": "env.psw.addr"})


def _riscv(reader: Reader, at: int) -> dict[str, int]:
    place = reader.profile.places["env.gpr"]
    values = _row(reader, at, "env.gpr", place.size // 32, 32)
    found = {name: value for name, value in zip(_RISCV, values, strict=False) if name}
    return found | _single(reader, at, {"pc": "env.pc"})


_READERS: dict[str, Callable[[Reader, int], dict[str, int]]] = {
    "env.eip": _x86,
    "env.xregs": _arm,
    "env.nip": _ppc,
    "env.psw.addr": _s390x,
    "env.gpr": _riscv,
}
"""By the member that tells the architecture."""
