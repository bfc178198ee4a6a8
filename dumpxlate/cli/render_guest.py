"""Registers and VMCOREINFO, as plain values ready for JSON, and as tables for people."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from dumpxlate.cli.screen import console, facts
from dumpxlate.describe.dump import describe_file, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dumpxlate.dump import Cpu, Dump
    from dumpxlate.vmcoreinfo import VmCoreInfo
    from dumpxlate.vmcoreinfo_search import Found

__all__ = ["describe_registers", "describe_vmcoreinfo", "show_registers", "show_vmcoreinfo"]

_GENERAL = "general"
_GROUPS = (
    ("instruction and flags", re.compile(r"[er]?ip|[er]flags|pc|pstate|cpsr|psw_.*|orig_.*|nip|msr|csr_.*")),
    ("segments", re.compile(r"([c-gs]s|ldt|tr|gdt|idt)(_base|_limit|_flags)?|kernel_gs_base")),
    ("control", re.compile(r"u?cr\d+|efer")),
    ("debug", re.compile(r"dr\d")),
)
_ORDER = (_GENERAL, *(name for name, _ in _GROUPS))


def describe_registers(dump: Dump, cpus: tuple[Cpu, ...]) -> dict[str, Any]:
    """Describe processors (``dumpxlate.regs/1``)."""
    machine = dump.machine
    return {
        "schema": "dumpxlate.regs/1",
        "file": describe_file(dump),
        "machine": {
            "arch": machine.arch.name,
            "byte_order": "little" if machine.endian == "<" else "big",
            "word_bits": machine.word_bits,
            "paravirtual": machine.paravirtual,
        },
        "cpus": [_cpu(cpu, machine.word_bits) for cpu in cpus],
    }


def _cpu(cpu: Cpu, word_bits: int) -> dict[str, Any]:
    """Group registers; a block of bytes is given as a whole where nothing could be read from it."""
    groups: dict[str, dict[str, str]] = {name: {} for name in _ORDER}
    for name, value in cpu.registers.items():
        groups[_group(name)][name] = f"{value:#0{2 + word_bits // 4}x}"
    return {
        "index": cpu.index,
        "registers": {name: group for name, group in groups.items() if group},
        "raw": [
            {"name": printable(name), "bytes": len(block), "hex": None if cpu.registers else block.hex()}
            for name, block in cpu.raw.items()
        ],
    }


def _group(register: str) -> str:
    return next((name for name, pattern in _GROUPS if pattern.fullmatch(register)), _GENERAL)


def show_registers(described: dict[str, Any]) -> None:
    """Print what ``describe_registers`` says."""
    out = console()
    for number, cpu in enumerate(described["cpus"]):
        out.print("\n" * bool(number) + f"vcpu {cpu['index']}", style="bold")
        for name, registers in cpu["registers"].items():
            out.print(f"  {name}", style="dim")
            out.print(_columns(registers, out.width))
        for block in cpu["raw"]:
            if block["hex"] is not None:
                out.print(f"  {block['name']}, {block['bytes']:,} bytes that are not understood", style="dim")
                out.print(_hexdump(bytes.fromhex(block["hex"])))


def _columns(registers: Mapping[str, str], width: int) -> str:
    """Lay registers out in as many columns as fit."""
    longest, digits = max(map(len, registers)), max(map(len, registers.values())) - 2
    cells = [f"    {name:>{longest}} {value[2:]:>{digits}}" for name, value in registers.items()]
    across = max(width // len(cells[0]), 1)
    return "\n".join("".join(cells[at : at + across]) for at in range(0, len(cells), across))


def _hexdump(block: bytes) -> str:
    """Lay bytes out, 16 a line."""
    lines = ((at, block[at : at + 16]) for at in range(0, len(block), 16))
    return "\n".join(f"    {at:04x}  {line.hex(' ', -4):<35}  {_ascii(line)}" for at, line in lines)


def _ascii(line: bytes) -> str:
    return "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in line)


def describe_vmcoreinfo(dump: Dump, info: VmCoreInfo, found: Found | None) -> dict[str, Any]:
    """Describe a kernel's VMCOREINFO (``dumpxlate.vmcoreinfo/1``).

    Args:
        dump: what it belongs to.
        info: the text.
        found: where in memory it was found; None if the file has it.
    """
    kinds = {"symbols": "SYMBOL(", "offsets": "OFFSET(", "sizes": "SIZE(", "lengths": "LENGTH(", "numbers": "NUMBER("}
    return {
        "schema": "dumpxlate.vmcoreinfo/1",
        "file": describe_file(dump),
        "origin": "memory" if found else "file",
        "address": hex(found.address) if found else None,
        "form": found.form if found else None,
        "bytes": len(info.text),
        "release": printable(info.release) if info.release is not None else None,
        "page_size": info.page_size,
        "phys_base": _hex(info.phys_base),
        "kernel_offset": _hex(info.kernel_offset),
        "crash_time": info.crash_time,
        "counts": {name: sum(key.startswith(start) for key in info.lines) for name, start in kinds.items()},
        "lines": {printable(key): printable(value) for key, value in info.lines.items()},
    }


def _hex(value: int | None) -> str | None:
    return None if value is None else hex(value)


def show_vmcoreinfo(described: dict[str, Any]) -> None:
    """Print what ``describe_vmcoreinfo`` says."""
    out = console()
    words = {"release": "kernel", "page_size": "page size", "phys_base": "phys_base", "kernel_offset": "kernel offset"}
    words |= {"crash_time": "crash time"}
    rows = [("from", _origin(described))]
    rows += [(word, str(described[key])) for key, word in words.items() if described[key] is not None]
    rows += [(name, f"{count:,}") for name, count in described["counts"].items()]
    out.print(facts(f"VMCOREINFO of {described['file']['name']}", rows))
    out.print(facts("\nLines", described["lines"].items()))


def _origin(described: Mapping[str, Any]) -> str:
    if described["origin"] == "file":
        return f"the file, {described['bytes']:,} bytes"
    kind = "an ELF note" if described["form"] == "note" else "bare text"
    where = f"{described['file']['space']} address {described['address']}"
    return f"memory at {where}, {kind}, {described['bytes']:,} bytes"
