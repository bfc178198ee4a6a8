"""Compares two dumps, whatever their formats."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.codecs.forks import shared_map
from dumpxlate.codecs.workers import default_threads
from dumpxlate.dump import Space
from dumpxlate.errors import MapError
from dumpxlate.pages import windows
from dumpxlate.progress import Meter, Progress
from dumpxlate.verify.facts import FactsComparison, compare_facts
from dumpxlate.verify.pages import Outcome, PageDifference, PagePair, worse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dumpxlate.dump import Dump

__all__ = ["Comparison", "Outcome", "PageDifference", "compare"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two dumps have in common, and what not.

    Attributes:
        pages: pages by outcome ("equal", "different", "only_a"...).
        page_size: what they were compared at: the smaller of both sizes.
        first: the first pages that are not the same.
        facts: machine, registers and VMCOREINFO.
        strict: whether what only one format can say counts: absent against zero, no processors at all.
        canonical: whether page tables and cr3 of paravirtual guests were compared with the guests' own frames.
        seconds: from the first page to the last.
    """

    pages: Mapping[str, int] = field(default_factory=dict)
    page_size: int = 0
    first: tuple[PageDifference, ...] = ()
    facts: FactsComparison = field(default_factory=FactsComparison)
    strict: bool = False
    canonical: bool = False
    seconds: float = 0.0

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        pages = not any(self.pages.get(each.name.lower()) for each in worse(strict=self.strict))
        return pages and self.facts.same(strict=self.strict)


def compare(
    a: Dump,
    b: Dump,
    *,
    strict: bool = False,
    canonical: bool = False,
    first: int = 10,
    threads: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Comparison:
    """Compare two dumps: pages, registers, VMCOREINFO and machine.

    Args:
        a: one dump.
        b: the other; pages of another size are compared in pieces of the smaller one.
        strict: let a page that is zero in one dump and absent in the other count as a difference, and so on.
        canonical: compare what a paravirtual guest's page tables and cr3 say with its own frames, as Xen saves them.
        first: differing pages that are listed.
        threads: workers; 0 does all in this thread, None takes one for each processor, up to 8.
        progress: called after each batch.

    Raises:
        MapError: one dump is keyed by machine frames, the other by the guest's.
        UnsupportedFeatureError: neither page size is a multiple of the other.
        MissingCodecError: the library of a codec is not installed.
    """
    if canonical:
        a, b = (each.canonical(progress=progress, threads=threads) for each in (a, b))
    _require_one_space(a, b)
    pair = PagePair.of(a.pages, b.pages, listed=first, strict=strict)
    meter = Meter("compare", pair.pages.count * pair.unit, progress)
    counts = np.zeros(len(Outcome), np.int64)
    found: list[PageDifference] = []
    threads = default_threads() if threads is None else threads
    with contextlib.closing(shared_map(pair.look, windows(pair.pages, pair.unit), workers=threads)) as parts:
        for part in parts:
            counts += part.counts
            found += part.differences[: first - len(found)]
            meter.add(part.bytes)
    counts[Outcome.NEITHER] = pair.ram - counts[1:].sum()
    return Comparison(
        {outcome.name.lower(): int(counts[outcome]) for outcome in Outcome},
        pair.page_size,
        tuple(found),
        compare_facts(a, b),
        strict,
        canonical,
        meter.seconds,
    )


def _require_one_space(a: Dump, b: Dump) -> None:
    if a.space is b.space:
        return
    machine, other = (a, b) if a.space is Space.MACHINE else (b, a)
    raise MapError(
        f"{machine.name}: this {machine.format} dump of a paravirtual guest is keyed by machine frames (mfn), and "
        f"{other.name} by the guest's own (pfn): give the guest's map with --p2m (first dump) or --p2m-b (second): "
        "a file, or dump to find it in the dump"
    )
