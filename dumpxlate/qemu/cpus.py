"""Processors in a stream: their registers, and which architecture that makes the machine.

Field names are those of the vmstate descriptions in qemu target/*/machine.c, the same since the description exists
(2.4). As in QEMU's own dumps a 64-bit PC counts as 32-bit one as long as its first processor is not in long mode.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpxlate.arch import by_name, i386
from dumpxlate.dump import Cpu

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dumpxlate.arch import Arch
    from dumpxlate.qemu.devices import DeviceState
    from dumpxlate.structs import Endian

__all__ = ["read_cpus"]

_MOST_CPUS = 4096
_GENERAL = tuple("rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split())  # noqa: SIM905 - shorter
_SEGMENTS = ["es", "cs", "ss", "ds", "fs", "gs"]
_EFER_LMA = 1 << 10
_ARM_32 = 0x10
"""Bit of a processor state register that only AArch32 has set."""

_MSR_LITTLE_ENDIAN = 1


def _named(names: Sequence[str], values: Sequence[int]) -> dict[str, int]:
    return dict(zip(names, values, strict=False))


def _numbered(stem: str, values: Sequence[int]) -> dict[str, int]:
    return {f"{stem}{number}": value for number, value in enumerate(values)}


def _single(state: DeviceState, names: dict[str, str]) -> dict[str, int]:
    """Read fields of one number, under other names; those that are missing are left out."""
    found = {name: state.number(path) for name, path in names.items()}
    return {name: value for name, value in found.items() if value is not None}


def _x86(state: DeviceState) -> dict[str, int]:
    """Registers as QEMU's note has them, and EFER."""
    found = _named(_GENERAL, state.numbers("env.regs"))
    found |= _single(state, {"rip": "env.eip", "rflags": "env.eflags"})
    places = {name: f"env.segs[{number}]" for number, name in enumerate(_SEGMENTS)}
    for name, path in (places | {each: f"env.{each}" for each in ("ldt", "tr", "gdt", "idt")}).items():
        parts = {name: "selector", f"{name}_base": "base", f"{name}_limit": "limit", f"{name}_flags": "flags"}
        found |= _single(state, {register: f"{path}/{part}" for register, part in parts.items()})
    found |= _single(state, {f"cr{number}": f"env.cr[{number}]" for number in (0, 2, 3, 4)})
    return found | _single(state, {"efer": "env.efer", "kernel_gs_base": "env.kernelgsbase"})


def _aarch64(state: DeviceState) -> dict[str, int]:
    values = state.numbers("env.xregs")
    found = _numbered("x", values[:31]) | _named(["sp"], values[31:])
    return found | _single(state, {"pc": "env.pc", "pstate": "cpsr"})


def _arm(state: DeviceState) -> dict[str, int]:
    return _numbered("r", state.numbers("env.regs")) | _single(state, {"cpsr": "cpsr"})


def _ppc(state: DeviceState) -> dict[str, int]:
    found = _numbered("gpr", state.numbers("env.gpr")) | _single(state, {"nip": "env.nip", "msr": "env.msr"})
    found |= {name: value for name, value in zip(_SPRS, state.numbers("env.spr"), strict=False) if name}
    fields = state.numbers("env.crf")
    return found | {"ccr": sum((field & 0xF) << 4 * (7 - number) for number, field in enumerate(fields[:8]))}


_SPRS = ("", "xer", *[""] * 6, "link", "ctr", *[""] * 8, "dsisr", "dar")
"""Special purpose registers by their number."""


def _s390x(state: DeviceState) -> dict[str, int]:
    found = _numbered("gpr", state.numbers("env.regs")) | _numbered("acr", state.numbers("env.aregs"))
    return found | _single(state, {"psw_mask": "env.psw.mask", "psw_addr": "env.psw.addr"})


_READERS: dict[str, Callable[[DeviceState], dict[str, int]]] = {
    "x86_64": _x86,
    "aarch64": _aarch64,
    "arm": _arm,
    "ppc64": _ppc,
    "ppc": _ppc,
    "s390x": _s390x,
}


def read_cpus(states: Sequence[DeviceState], usual: str) -> tuple[Arch, Endian, tuple[Cpu, ...]]:
    """Read the processors.

    Args:
        states: of all devices.
        usual: the architecture that the board has, as far as its name tells.

    Returns:
        The architecture, the guest's byte order, and the processors, none where none is understood.
    """
    found = [state for state in states if state.name == "cpu" and state.instance < _MOST_CPUS]
    if usual == "aarch64" and found and (found[0].number("cpsr") or 0) & _ARM_32:
        usual = "arm"
    if usual == "ppc64" and found and found[0].fields.get("env.gpr") and found[0].fields["env.gpr"].size == 4:
        usual = "ppc"
    reader = _READERS.get(usual)
    registers = {state.instance: reader(state) for state in found} if reader else {}
    if usual == "x86_64" and registers and not registers[min(registers)].get("efer", 0) & _EFER_LMA:
        usual = "i386"
        registers = {index: i386.narrow(values) for index, values in registers.items()}
    arch = by_name(usual)
    endian = arch.endians[0]
    if arch.name in ("ppc64", "ppc"):
        little = any(values.get("msr", 0) & _MSR_LITTLE_ENDIAN for values in registers.values())
        endian = "<" if little and "<" in arch.endians else ">"
    cpus = tuple(Cpu(index, values) for index, values in sorted(registers.items()) if values)
    return arch, endian, cpus
