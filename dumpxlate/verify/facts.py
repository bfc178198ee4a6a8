"""Compares what two dumps say besides their pages: machine, processors, VMCOREINFO.

Formats of bare memory say nothing of these, and what only one dump speaks of is no difference unless the user is
strict. A processor that is missing among others is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from dumpxlate.bare import ASSUMED

if TYPE_CHECKING:
    from dumpxlate.dump import Cpu, Dump

__all__ = ["FactDifference", "FactsComparison", "RegisterDifference", "Sides", "compare_facts"]

Sides: TypeAlias = Literal["neither", "only_a", "only_b", "both"]
"""Which of two dumps has something."""


@dataclass(frozen=True, slots=True)
class FactDifference:
    """Something by name that is not the same; None where a dump does not have it."""

    name: str
    a: str | None
    b: str | None


@dataclass(frozen=True, slots=True)
class RegisterDifference:
    """A register that has another value."""

    cpu: int
    name: str
    a: int
    b: int


@dataclass(frozen=True, slots=True)
class FactsComparison:
    """What differs besides pages.

    Attributes:
        machine: architecture and byte order; nothing where a dump does not name its machine.
        cpus: which dumps have processors.
        compared: processors that both have.
        registers: registers compared, those that both have by name.
        differing: those that differ.
        only_a: processors by index that only the first dump has.
        only_b: those that only the second has.
        vmcoreinfo: which dumps have VMCOREINFO.
        same_text: whether it is the same where both have it.
        lines: lines of it that differ; none of them where only their order does.
    """

    machine: tuple[FactDifference, ...] = ()
    cpus: Sides = "neither"
    compared: int = 0
    registers: int = 0
    differing: tuple[RegisterDifference, ...] = ()
    only_a: tuple[int, ...] = ()
    only_b: tuple[int, ...] = ()
    vmcoreinfo: Sides = "neither"
    same_text: bool = True
    lines: tuple[FactDifference, ...] = ()

    def same(self, *, strict: bool) -> bool:
        """Whether nothing differs; strictly, also whether both speak of the same things."""
        if strict and {"only_a", "only_b"} & {self.cpus, self.vmcoreinfo}:
            return False
        missing = self.cpus == "both" and (self.only_a or self.only_b)
        return not (self.machine or self.differing or missing) and self.same_text


def compare_facts(a: Dump, b: Dump) -> FactsComparison:
    """Compare machines, processors and VMCOREINFO."""
    left, right = ({cpu.index: cpu for cpu in dump.cpus} for dump in (a, b))
    shared = sorted(left.keys() & right.keys())
    return FactsComparison(
        machine=_machine(a, b),
        cpus=_sides(bool(left), bool(right)),
        compared=len(shared),
        registers=sum(len(left[cpu].registers.keys() & right[cpu].registers.keys()) for cpu in shared),
        differing=tuple(found for cpu in shared for found in _registers(left[cpu], right[cpu])),
        only_a=tuple(sorted(left.keys() - right.keys())),
        only_b=tuple(sorted(right.keys() - left.keys())),
        vmcoreinfo=_sides(a.vmcoreinfo is not None, b.vmcoreinfo is not None),
        same_text=_text(a) == _text(b) or None in (a.vmcoreinfo, b.vmcoreinfo),
        lines=_lines(a, b),
    )


def _sides(a: bool, b: bool) -> Sides:  # noqa: FBT001
    found: dict[tuple[bool, bool], Sides] = {(True, True): "both", (True, False): "only_a", (False, True): "only_b"}
    return found.get((a, b), "neither")


def _machine(a: Dump, b: Dump) -> tuple[FactDifference, ...]:
    if ASSUMED in a.remarks or ASSUMED in b.remarks:
        return ()
    words = {"<": "little", ">": "big"}
    facts = (
        FactDifference("architecture", a.machine.arch.name, b.machine.arch.name),
        FactDifference("byte order", words[a.machine.endian], words[b.machine.endian]),
    )
    return tuple(fact for fact in facts if fact.a != fact.b)


def _registers(a: Cpu, b: Cpu) -> tuple[RegisterDifference, ...]:
    return tuple(
        RegisterDifference(a.index, name, value, b.registers[name])
        for name, value in a.registers.items()
        if name in b.registers and value != b.registers[name]
    )


def _text(dump: Dump) -> str:
    """Give the text; some producers end it with an empty line more."""
    return dump.vmcoreinfo.text.rstrip() if dump.vmcoreinfo else ""


def _lines(a: Dump, b: Dump) -> tuple[FactDifference, ...]:
    if a.vmcoreinfo is None or b.vmcoreinfo is None:
        return ()
    left, right = a.vmcoreinfo.lines, b.vmcoreinfo.lines
    names = [*left, *(name for name in right if name not in left)]
    return tuple(
        FactDifference(name, left.get(name), right.get(name)) for name in names if left.get(name) != right.get(name)
    )
