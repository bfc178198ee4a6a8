"""What a conversion did, in lines: all that it prints, so that nothing lays out tables for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["byte_size", "missing_lines", "summary"]

_MISSING_SHOWN = 8


def byte_size(count: int) -> str:
    """Give a number of bytes in the unit that suits it."""
    size, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.4g} {unit}"


def missing_lines(missing: Mapping[str, Any]) -> list[str]:
    """Say what of a damaged dump is not to be had, and where; nothing if all is."""
    if not missing["pages"]:
        return []
    lines = [f"missing: {missing['pages']:,} pages, {missing['share']:.2%} of RAM, in {missing['runs']:,} runs"]
    lines += [
        f"  {run['start']} to {run['end']}, {run['pages']:,} pages: {run['reason']}"
        for run in missing["first"][:_MISSING_SHOWN]
    ]
    more = missing["runs"] - len(lines) + 1
    return [*lines, f"  and {more:,} more runs (JSON lists more)"] if more > 0 else lines


def _pages(report: dict[str, Any]) -> list[str]:
    """Count a conversion's pages."""
    out = report["pages_out"]
    parts = [f"{report['pages_in']:,} pages in", f"{out['stored']:,} stored", f"{out['zero']:,} zero"]
    parts += [f"{out[state]:,} {state}" for state in ("excluded", "bad") if out[state]]
    return [*parts, f"{report['holes']:,} holes"]


def _map(fit: Mapping[str, int]) -> str:
    """Count what is special in a map, and what does not fit."""
    special = [f"{fit[kind]:,} {kind}" for kind in ("foreign", "identity") if fit[kind]]
    parts = [f"{fit['aliases']:,} aliases", *special, f"{fit['invalid']:,} without a page"]
    return f"map: {', '.join(parts)}, {fit['missing']:,} mapped but missing, {fit['unmapped']:,} not mapped"


def _ending(report: Mapping[str, Any]) -> str:
    return "nothing lost" if report["complete"] else "incomplete"


def summary(report: dict[str, Any]) -> str:
    """Put a conversion into one line."""
    parts = _pages(report) if report["counted"] else ["records as they came, pages not counted"]
    if report["fit"]:
        parts.append(_map(report["fit"]))
    done = report["rewritten"]
    if done:
        parts.append(f"{done['tables']:,} page tables of {done['address_spaces']:,} address spaces rewritten")
    parts.append(f"{len(report['losses'])} losses" if report["losses"] else _ending(report))
    parts += [f"{report['resumed']:,} pages from an earlier run"] if report["resumed"] else []
    parts += ["read back: the same"] if report["verified"] else []
    parts += ["in one pass"] if report["streamed"] else []
    size, seconds = byte_size(report["bytes_written"]), report["seconds"]
    what = f"{report['format']} in {report['container']}" if report["container"] else report["format"]
    return f"{report['target']}: {what}, {size}, {', '.join(parts)}, {seconds:.2f} s"
