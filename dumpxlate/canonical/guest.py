"""Makes a dump of a paravirtual guest one of an ordinary guest."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.canonical.entries import Rule
from dumpxlate.canonical.registers import canonical_cpu, top_frames
from dumpxlate.canonical.search import other_roots
from dumpxlate.canonical.store import CanonicalStore
from dumpxlate.canonical.walk import PAGE, walk
from dumpxlate.dump import Space
from dumpxlate.elf.notes import NT_PRSTATUS
from dumpxlate.errors import MapError, UnsupportedFeatureError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dumpxlate.arrays import Int64s
    from dumpxlate.canonical.walk import Rewritten
    from dumpxlate.dump import Dump
    from dumpxlate.elf.notes import Note
    from dumpxlate.p2m.map import P2M
    from dumpxlate.progress import Progress

__all__ = ["canonical"]


def canonical(
    dump: Dump,
    *,
    progress: Callable[[Progress], None] | None = None,
    threads: int | None = None,
) -> tuple[Dump, Rewritten | None]:
    """Rewrite a paravirtual guest's page tables to its own frames, wherever the pages are read.

    Tables are found from those of all processors down, and by searching memory for those of processes that wait;
    both are read, and their entries counted, before a page is asked for. A dump of another guest is given as it is.

    Args:
        dump: any dump; one that is keyed by machine frames needs its map first (``dump.with_p2m``).
        progress: called after each batch of the search.
        threads: workers; 0 does all in this thread, None takes one for each processor, up to 8.

    Returns:
        The same guest with its own frames in page tables and registers, and what was done for that; None where there
        was nothing to do, since its tables hold its own frames anyway.

    Raises:
        MapError: the guest's map is not known, or does not know the page tables of any processor.
        UnsupportedFeatureError: the dump names no page tables.
        MissingCodecError: the library of a codec is not installed.
    """
    if not dump.machine.paravirtual:
        return dump, None
    p2m = _require_map(dump)
    rule = Rule.of(p2m, dump.machine.word_bits)
    roots = _known_roots(dump, p2m)
    tables = walk(dump.pages, rule, roots)
    others = other_roots(dump.pages, p2m, rule, tables, progress=progress, threads=threads)
    if len(others):
        tables = walk(dump.pages, rule, np.union1d(roots, others))
    made = replace(
        dump,
        machine=replace(dump.machine, paravirtual=False, canonical=True),
        pages=CanonicalStore(dump.pages, rule, tables),
        cpus=tuple(canonical_cpu(cpu, dump, p2m) for cpu in dump.cpus),
        notes=_kept_notes(dump),
        frames=None,
    )
    done = tables.rewritten()
    return replace(made, remarks=(*dump.remarks, *done.remarks)), done


def _kept_notes(dump: Dump) -> tuple[Note, ...]:
    """Leave out the notes of processors, which a writer makes anew of their registers."""
    lost = [("QEMU", 0)]
    if all("xen" in cpu.raw for cpu in dump.cpus):
        lost.append(("CORE", NT_PRSTATUS))
    return tuple(note for note in dump.notes if (note.name, note.type) not in lost)


def _require_map(dump: Dump) -> P2M:
    if dump.pages.page_size != PAGE:
        raise UnsupportedFeatureError(
            f"a paravirtual guest with pages of {dump.pages.page_size:,} bytes: Xen's have {PAGE:,}",
            path=dump.name,
            feature="page size",
        )
    if dump.p2m is None or dump.space is not Space.PHYSICAL:
        raise MapError(
            f"{dump.name}: page tables of a paravirtual guest are rewritten by its p2m map, which this {dump.format} "
            "dump does not have: give it with --p2m MAP"
        )
    return dump.p2m


def _known_roots(dump: Dump, p2m: P2M) -> Int64s:
    """Give the pfns of the tables that processors use."""
    frame = top_frames(dump)
    if not len(frame):
        raise UnsupportedFeatureError(
            "no processor's cr3 is known, from which the page tables are found", path=dump.name, feature="page tables"
        )
    pfn = p2m.pfn(frame)
    if (pfn < 0).all():
        raise MapError(
            f"{dump.name}: the page tables of the processors are in machine frames "
            f"{', '.join(map(hex, frame.tolist()))}, none of which is in the p2m map: is it this guest's?"
        )
    return np.unique(pfn[pfn >= 0])
