"""What can be said of a dump without reading its pages: plain values, ready for JSON, that tables are made from.

The shape is versioned (``schema``), addresses are hex strings, and every string that comes from the guest has its
control characters escaped.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeGuard

from dumpxlate.dump import Space
from dumpxlate.p2m.map import DeferredP2M
from dumpxlate.registry import all_formats, all_wrappers, reads
from dumpxlate.stores import DeferredStore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dumpxlate.canonical.walk import Rewritten
    from dumpxlate.dump import Cpu, Dump
    from dumpxlate.p2m.map import P2M
    from dumpxlate.pages import PageStore
    from dumpxlate.stores import MapFit
    from dumpxlate.verify.missing import Missing
    from dumpxlate.writing.report import Report

__all__ = [
    "describe_dump",
    "describe_file",
    "describe_fit",
    "describe_formats",
    "describe_missing",
    "describe_p2m",
    "describe_report",
    "printable",
]

_INDEX_LIMIT = 1 << 21
"""Index entries that info reads at most: beyond, its time would grow with the dump."""

_RUNS_LIMIT = 1000
"""Runs that are listed one by one; their number is always given."""


def printable(text: str) -> str:
    """Escape what a terminal would act on: guests choose their host names, releases and notes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


_XML = "domain_xml"


def _printable_lines(text: str) -> str:
    """Escape all but the ends of lines, for libvirt's XML; any other text with lines could look like one of ours."""
    return "\n".join(map(printable, text.split("\n")))


def describe_dump(dump: Dump, options: Sequence[str] = ()) -> dict[str, Any]:
    """Describe an opened dump (``dumpxlate.info/1``).

    Args:
        dump: the dump.
        options: what a command was given to open it with, for the commands that come next.
    """
    machine = dump.machine
    return {
        "schema": "dumpxlate.info/1",
        "files": [{"name": printable(source.name), "bytes": source.size} for source in dump.sources],
        "format": {"name": dump.format, "variant": printable(dump.variant)},
        "machine": {
            "arch": machine.arch.name,
            "byte_order": "little" if machine.endian == "<" else "big",
            "word_bits": machine.word_bits,
            "page_size": machine.page_size,
            "paravirtual": machine.paravirtual,
            "canonical": machine.canonical,
            "release": printable(machine.release) if machine.release else None,
        },
        "space": str(dump.space),
        "pages": _pages(dump.pages),
        "cpus": [_cpu(cpu, machine.word_bits) for cpu in dump.cpus],
        "notes": [
            {"name": printable(note.name), "type": hex(note.type), "bytes": len(note.desc)} for note in dump.notes
        ],
        "vmcoreinfo": _vmcoreinfo(dump),
        "p2m": describe_p2m(dump.p2m) if dump.p2m and not _is_too_long(dump.p2m) else None,
        "p2m_methods": _methods(dump),
        "fit": describe_fit(dump.fit()),
        "blocks": [{"name": printable(name), "bytes": len(block)} for name, block in dump.blocks.items()],
        "xen_host": _xen_host(dump),
        "attributes": {
            key: (_printable_lines if key == _XML else printable)(value) if isinstance(value, str) else value
            for key, value in dump.attributes.items()
        },
        "remarks": [printable(remark) for remark in dump.remarks],
        "damage": [printable(damage) for damage in _damage(dump)],
        "next": _next_steps(dump, options),
    }


def _pages(pages: PageStore) -> dict[str, Any]:
    """Count pages by state, and list the runs of RAM, unless the index is too long to be read for that."""
    if _has_long_index(pages):
        return {"indexed": False, "entries": pages.entries, "bytes": pages.entries * pages.page_size}
    start, count = pages.ram.runs()
    size = pages.page_size
    inner = pages.loaded if isinstance(pages, DeferredStore) else pages
    return {
        "indexed": True,
        "ram": pages.ram.count,
        "stored": pages.stored.count,
        "excluded": pages.ram.count - pages.stored.count,
        "repeated": getattr(inner, "repeated", 0),
        "bytes": pages.ram.count * size,
        "runs": len(start),
        "ram_runs": [
            {"start": hex(first * size), "end": hex((first + length) * size), "pages": length}
            for first, length in zip(start[:_RUNS_LIMIT].tolist(), count[:_RUNS_LIMIT].tolist(), strict=True)
        ],
    }


def _xen_host(dump: Dump) -> dict[str, Any] | None:
    """Say what in the headers tells of a whole Xen host."""
    from dumpxlate.xen_host.crash_note import host_signs

    signs = None if dump.machine.paravirtual else host_signs(dump)
    if signs is None:
        return None
    return {
        "evidence": printable(signs.evidence),
        "version": printable(signs.version) if signs.version else None,
        "dom0_frame_lists": hex(signs.dom0_frame_lists) if signs.dom0_frame_lists else None,
        "phys_start": hex(signs.phys_start) if signs.phys_start >= 0 else None,
    }


def _has_long_index(pages: PageStore) -> TypeGuard[DeferredStore]:
    return isinstance(pages, DeferredStore) and pages.entries > _INDEX_LIMIT


def _damage(dump: Dump) -> tuple[str, ...]:
    """Give what is missing or broken, as far as info reads."""
    return dump.damage if _has_long_index(dump.pages) else dump.defects


def _is_too_long(p2m: P2M) -> bool:
    return isinstance(p2m, DeferredP2M) and p2m.entries_to_read > _INDEX_LIMIT


def _cpu(cpu: Cpu, word_bits: int) -> dict[str, Any]:
    return {
        "index": cpu.index,
        "registers": {name: f"{value:#0{2 + word_bits // 4}x}" for name, value in cpu.registers.items()},
        "raw": {name: len(block) for name, block in cpu.raw.items()},
    }


def _vmcoreinfo(dump: Dump) -> dict[str, Any] | None:
    if dump.vmcoreinfo is None:
        return None
    return {printable(key): printable(value) for key, value in dump.vmcoreinfo.lines.items()}


def _methods(dump: Dump) -> list[dict[str, Any]]:
    """Say by which methods a Xen guest's map can be found in its dump; nothing is searched for that."""
    if not (dump.machine.paravirtual or dump.saved_p2m or dump.format.startswith("xen")):
        return []
    from dumpxlate.p2m.methods import ways

    return [{"method": way.method, "applies": way.applies, "why": printable(way.why)} for way in ways(dump)]


def describe_fit(fit: MapFit | None) -> dict[str, Any] | None:
    """Describe how a map and a dump fit, where one was applied."""
    return asdict(fit) | {"fits": fit.fits} if fit else None


def describe_file(dump: Dump) -> dict[str, Any]:
    """Say which dump something was found in."""
    return {
        "name": printable(dump.name),
        "format": dump.format,
        "variant": printable(dump.variant),
        "space": str(dump.space),
    }


def _next_steps(dump: Dump, options: Sequence[str]) -> list[str]:
    """Say what is missing and what to do about it."""
    name = " ".join([printable(dump.name), *map(_quoted, options)])
    steps = []
    if _xen_host(dump):
        steps.append(f"dumpxlate info --domains {name}   (a whole Xen host: lists its domains)")
        steps.append(f"dumpxlate convert {name} --domain 0 -o dom0.vmcore")
    if dump.space is Space.MACHINE:
        steps.append(
            "the pages are keyed by machine frames (mfn): the guest's p2m map is needed to translate them. It is found "
            "in the dump, or given with --p2m MAP; on the host, xen-mfndump dump-p2m DOMID prints it while the guest "
            "exists"
        )
        steps.append(f"dumpxlate convert {name} -o vmcore")
    elif dump.format != "elf":
        steps.append(f"dumpxlate convert {name} -o vmcore")
    if dump.machine.paravirtual and dump.space is Space.PHYSICAL:
        steps.append(f"dumpxlate convert --canonical {name} -o canonical.vmcore   (page tables that others can walk)")
    if _damage(dump):
        steps.append(f"dumpxlate convert --salvage {name} -o salvaged.vmcore   (writes what is there)")
    return steps


def _quoted(word: str) -> str:
    import shlex

    return printable(shlex.quote(word))


def describe_p2m(p2m: P2M) -> dict[str, Any]:
    """Describe a map (``dumpxlate.p2m/1``)."""
    pages = p2m.pages()
    frames = p2m.frames()
    return {
        "schema": "dumpxlate.p2m/1",
        "entries": p2m.size,
        "pages": p2m.runs.total,
        "runs": len(p2m.runs.pfn),
        "highest_pfn": hex(pages.stop - 1),
        "highest_mfn": hex(frames.stop - 1),
        "holes": max(len(pages.runs()[0]) - 1, 0),
        "invalid": p2m.invalid,
        "foreign": p2m.foreign.total,
        "identity": p2m.identity.total,
        "duplicates": p2m.aliases,
    }


def describe_report(report: Report) -> dict[str, Any]:
    """Describe a conversion (``dumpxlate.convert/1``)."""
    return {
        "schema": "dumpxlate.convert/1",
        "source": printable(report.source),
        "target": printable(report.target),
        "format": report.format,
        "container": report.container,
        "complete": report.complete,
        "page_size": report.page_size,
        "pages_in": report.pages_in,
        "pages_out": _states(report.pages_out),
        "runs": report.runs,
        "holes": max(report.runs - 1, 0),
        "bytes_written": report.bytes_written,
        "seconds": round(report.seconds, 3),
        "resumed": report.resumed,
        "verified": report.verified,
        "streamed": report.streamed,
        "counted": report.counted,
        "losses": [{"what": printable(loss.what), "why": printable(loss.why)} for loss in report.losses],
        "damage": [printable(damage) for damage in report.damage],
        "remarks": [printable(remark) for remark in report.remarks],
        "missing": describe_missing(report.missing, report.page_size),
        "fit": describe_fit(report.fit),
        "rewritten": _rewritten(report.rewritten) if report.rewritten else None,
    }


def _rewritten(done: Rewritten) -> dict[str, Any]:
    """Say what became of page tables."""
    return {
        "address_spaces": done.roots,
        "tables": done.tables,
        **asdict(done.counts),
        "missing": done.missing,
    }


def describe_missing(missing: Missing, page_size: int) -> dict[str, Any]:
    """Describe the pages that a damaged dump lacks."""
    return {
        "pages": missing.pages,
        "share": round(missing.share, 6),
        "runs": missing.runs,
        "first": [
            {
                "start": hex(run.start * page_size),
                "end": hex((run.start + run.count) * page_size),
                "pages": run.count,
                "reason": run.reason,
            }
            for run in missing.first
        ],
    }


def _states(counts: Mapping[str, int]) -> dict[str, int]:
    return {state: counts.get(state, 0) for state in ("stored", "zero", "excluded", "bad")}


_OPTION_NAMES = {"part": "split"}  # what the command line calls a field of WriteOptions, where it is not the same


def describe_formats() -> dict[str, Any]:
    """Describe the formats and containers (``dumpxlate.formats/1``)."""
    return {
        "schema": "dumpxlate.formats/1",
        "formats": [
            {
                "name": each.name,
                "title": each.title,
                "reads": reads(each),
                "writes": each.writes,
                "codecs": list(each.codecs),
                "options": [_OPTION_NAMES.get(option, option) for option in each.options],
                "suffixes": list(each.suffixes),
            }
            for each in all_formats()
        ],
        "containers": [{"name": each.name, "title": each.title, "writes": each.writes} for each in all_wrappers()],
    }
