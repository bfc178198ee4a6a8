"""How addresses are translated, as plain values ready for JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dumpxlate.describe.dump import printable
from dumpxlate.dump import Space
from dumpxlate.pages import CodecId, PageState

if TYPE_CHECKING:
    from dumpxlate.dump import Dump
    from dumpxlate.paging.addrxlat import Step

__all__ = ["describe_mappings", "describe_translation"]


def describe_translation(dump: Dump, address: int, *, cpu: int | None = None, cr3: int | None = None) -> dict[str, Any]:
    """Translate a virtual address of a dump and tell how (``dumpxlate.translate/1``)."""
    if not 0 <= address < 1 << 64:
        raise ValueError(f"address {address:#x} has more than 64 bits")
    trace = dump.virtual(cpu, cr3=cr3).trace(address)
    return {
        "schema": "dumpxlate.translate/1",
        "file": _file(dump),
        "address": hex(address),
        "by": trace.by,
        "root": hex(trace.root) if trace.root >= 0 else None,
        "steps": [_step(step) for step in trace.steps],
        "fault": trace.fault or None,
        "target": hex(trace.physical) if trace.physical >= 0 else None,
        "page": _page(dump, trace.physical) if trace.physical >= 0 else None,
    }


def describe_mappings(
    dump: Dump, *, cpu: int | None = None, cr3: int | None = None, limit: int | None = None
) -> dict[str, Any]:
    """List what the page tables of a processor map (``dumpxlate.mappings/1``), the first ``limit`` runs of it."""
    found = dump.virtual(cpu, cr3=cr3).mappings()
    listed = found.where(slice(limit))
    rows = zip(listed.virtual.tolist(), listed.physical.tolist(), listed.length.tolist(), strict=True)
    return {
        "schema": "dumpxlate.mappings/1",
        "file": _file(dump),
        "tables": found.tables,
        "faults": [{"what": what, "count": count} for what, count in found.faults.items()],
        "total": len(found),
        "bytes": int(found.length.sum()),
        "mappings": [
            {"start": hex(start % _TOP), "end": hex(start % _TOP + length), "target": hex(target), "bytes": length}
            for start, target, length in rows
        ],
    }


_TOP = 1 << 64


def _file(dump: Dump) -> dict[str, Any]:
    return {"name": printable(dump.name), "format": dump.format, "space": str(dump.space)}


def _step(step: Step) -> dict[str, Any]:
    return {
        "level": step.level,
        "name": step.name,
        "entry": hex(step.address) if step.address >= 0 else None,
        "value": hex(step.value),
        "kind": step.kind.words,
        "frame": hex(step.frame) if step.frame >= 0 else None,
        "covers": step.size,
    }


def _page(dump: Dump, address: int) -> dict[str, Any]:
    """Say of the page at an address of the dump's space which it is, and where."""
    frame = np.array([address // dump.pages.page_size], np.int64)
    table = dump.pages.locate(frame)
    place = int(dump.pages.place(table)[0])
    state = PageState(int(table.state[0]))
    mfn = frame if dump.space is Space.MACHINE else dump.p2m.mfn(frame) if dump.p2m else np.array([-1])
    raw = table.codec[0] == CodecId.RAW
    return {
        "pfn": hex(int(frame[0])) if dump.space is Space.PHYSICAL else None,
        "mfn": hex(int(mfn[0])) if mfn[0] >= 0 else None,
        "offset_in_page": address % dump.pages.page_size,
        "state": state.name.lower(),
        "codec": CodecId(int(table.codec[0])).name.lower() if state is PageState.STORED else None,
        "file_offset": hex(place) if place >= 0 else None,
        "byte_offset": hex(place + address % dump.pages.page_size) if place >= 0 and raw else None,
    }
