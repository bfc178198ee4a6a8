"""What a conversion did."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from dumpxlate.format import Remarking
from dumpxlate.verify.missing import Missing, missing_pages

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dumpxlate.canonical.walk import Rewritten
    from dumpxlate.dump import Dump
    from dumpxlate.format import Loss
    from dumpxlate.stores import MapFit
    from dumpxlate.writing.pump import Pump

__all__ = ["Report", "completed"]


@dataclass(frozen=True, slots=True)
class Report:
    """What a conversion did.

    Attributes:
        source: name of the input.
        target: name of the output.
        format: what was written.
        container: what it was wrapped in ("flattened"), if anything.
        pages_in: pages of RAM that the input knows of.
        pages_out: written pages by state ("stored", "zero"), and those not written ("excluded", "bad").
        runs: runs of RAM, so that there are one fewer holes between them.
        bytes_written: size of the output.
        seconds: from the first page to the last.
        losses: what the target could not carry, and what no pfn of the map leads to.
        damage: what the input lacked.
        remarks: oddities of the input that were tolerated, and what is to be said of the output.
        missing: the pages that it lacked, or that did not decode.
        fit: how the p2m map and the dump fitted, where one was applied.
        page_size: bytes a page.
        rewritten: what became of a paravirtual guest's page tables, where they were made canonical.
        resumed: pages that an earlier, interrupted conversion had written.
        streamed: whether pages were written while the input still came through a pipe.
        counted: whether pages were counted; records that pass from pipe to pipe are not looked into.
        verified: whether the output was read again and found to hold the same.
    """

    source: str
    target: str
    format: str
    container: str | None = None
    pages_in: int = 0
    pages_out: Mapping[str, int] = field(default_factory=dict)
    runs: int = 0
    bytes_written: int = 0
    seconds: float = 0.0
    page_size: int = 0
    resumed: int = 0
    verified: bool = False
    streamed: bool = False
    counted: bool = True
    losses: tuple[Loss, ...] = ()
    damage: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    missing: Missing = field(default_factory=Missing)
    fit: MapFit | None = None
    rewritten: Rewritten | None = None

    @property
    def complete(self) -> bool:
        """Whether everything that the input promises is in the output."""
        return not self.damage and not self.pages_out.get("bad")


def completed(dump: Dump, pump: Pump, report: Report) -> Report:
    """Complete a report with what was counted."""
    ram, writer = dump.pages.ram, pump.writer
    excluded = pump.counts["excluded"] + ram.count - writer.pages.count
    return replace(
        report,
        pages_in=ram.count,
        pages_out=dict(pump.counts) | {"excluded": excluded},
        runs=len(ram.runs()[0]),
        page_size=dump.pages.page_size,
        damage=dump.defects,
        remarks=dump.remarks + (writer.remarks if isinstance(writer, Remarking) else ()),
        rewritten=_rewritten(dump),
        missing=missing_pages(dump.pages, pump.bad),
    )


def _rewritten(dump: Dump) -> Rewritten | None:
    """Say what became of page tables, if they were rewritten on the way."""
    if not dump.machine.canonical:
        return None
    from dumpxlate.canonical.store import CanonicalStore

    return dump.pages.rewritten() if isinstance(dump.pages, CanonicalStore) else None
