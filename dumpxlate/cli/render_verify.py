"""Comparisons, checks and maps for people: tables of what ``verify_describe`` says, and a bar of memory."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from dumpxlate.cli.lines import missing_lines
from dumpxlate.cli.screen import console, facts, listing
from dumpxlate.pages import ABSENT, BAD, PageState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dumpxlate.arrays import Int64s
    from dumpxlate.cli.screen import Screen

__all__ = ["bar_cells", "show_bar", "show_check", "show_checksum", "show_comparison", "show_map"]

_LISTED = 16
_DIGEST_LINE = 120

_OUTCOMES = {
    "equal": "equal",
    "different": "different",
    "only_a": "only in A",
    "only_b": "only in B",
    "absent_zero": "absent against zero",
    "bad": "do not decode",
    "neither": "without content in both",
}
_SIDES = {"neither": "in neither", "only_a": "only in A", "only_b": "only in B"}

_BAR = {
    PageState.STORED: ("#", "green"),
    PageState.ZERO: ("0", "blue"),
    PageState.EXCLUDED: ("-", "yellow"),
    PageState.ABSENT: (".", "dim"),
    PageState.BAD: ("!", "bold red"),
}


def show_comparison(found: dict[str, Any]) -> None:
    """Print what ``describe_comparison`` says."""
    out = console()
    files = [(side.upper(), _file(found[side])) for side in ("a", "b")]
    counts = [(words, f"{found['pages'][key]:,}") for key, words in _OUTCOMES.items() if found["pages"][key]]
    sizes = {found[side]["page_size"] for side in ("a", "b")}
    if len(sizes) > 1:
        files.append(("page sizes", f"compared in pages of {found['page_size']:,} bytes, the smaller of both"))
    if found["canonical"]:
        files.append(("page tables", "compared with the guests' own frames (pfn)"))
    out.print(facts("The same" if found["same"] else "Not the same", files))
    out.print(facts("\nPages", counts or [("none", "neither dump has any")]))
    if found["first"]:
        columns = ("what", "pfn", "address", "A", "B")
        out.print(listing("\nFirst differences", columns, map(_difference, found["first"])))
    out.print(facts("\nBesides pages", [("registers", _cpus(found["cpus"])), ("VMCOREINFO", _text(found))]))
    _more(out, "\nMachine", [(each["name"], each["a"], each["b"]) for each in found["machine"]])
    registers, lines = found["cpus"]["different"], found["vmcoreinfo"]["different"]
    _more(out, "\nRegisters", [(f"vcpu {each['cpu']} {each['register']}", each["a"], each["b"]) for each in registers])
    _more(out, "\nVMCOREINFO", [(each["name"], each["a"] or "-", each["b"] or "-") for each in lines])


def _file(file: Mapping[str, Any]) -> str:
    return f"{file['name']}: {file['format']}, {file['variant']}"


def _difference(page: Mapping[str, Any]) -> tuple[str, ...]:
    """Tell where a page differs: the address is that of the first byte that does."""
    a, b = (" ".join(filter(None, (page[side]["state"], page[side]["offset"]))) for side in ("a", "b"))
    return _OUTCOMES[page["kind"]], page["pfn"], hex(int(page["address"], 16) + (page["byte"] or 0)), a, b


def _cpus(cpus: Mapping[str, Any]) -> str:
    if cpus["in"] != "both":
        return _SIDES[cpus["in"]]
    compared = f"{cpus['registers']:,} compared, of {cpus['compared']} vcpus"
    only = {side: ", ".join(map(str, cpus[f"only_{side}"])) for side in ("a", "b")}
    missing = [f"vcpus only in {side.upper()}: {numbers}" for side, numbers in only.items() if numbers]
    return "; ".join([compared, f"{len(cpus['different']):,} differ", *missing])


def _text(found: Mapping[str, Any]) -> str:
    held = found["vmcoreinfo"]
    if held["in"] != "both":
        return _SIDES[held["in"]]
    return "the same" if held["same"] else f"differs in {len(held['different'])} lines"


def _more(out: Screen, title: str, rows: list[tuple[str, str, str]]) -> None:
    """Print a listing of differences, if there are any, and how many more there are."""
    if not rows:
        return
    out.print(listing(title, ("", "A", "B"), rows[:_LISTED]))
    if len(rows) > _LISTED:
        out.print(f"  and {len(rows) - _LISTED:,} more (--json lists them)", style="dim")


def show_check(found: dict[str, Any]) -> None:
    """Print what ``describe_check`` says."""
    out = console()
    pages = [("RAM", f"{found['ram']:,}")]
    pages += [(state, f"{count:,}") for state, count in found["pages"].items() if count or state == "bad"]
    pages += [(f"encoded as {codec}", f"{count:,}") for codec, count in found["codecs"].items() if codec != "raw"]
    for key, words in (("overlapping", "overlap another page's bytes"), ("repeated", "further copies, not used")):
        pages += [(words, f"{found[key]:,}")] if found[key] else []
    out.print(facts("Nothing is wrong" if found["ok"] else "Not all is well", [("file", _file(found["file"]))]))
    out.print(facts("\nPages", pages))
    for line in missing_lines(found["missing"]):
        out.print(f"\n{line}" if line.startswith("missing") else line)
    if found["bad"]:
        rows = [(run["start"], f"{run['pages']:,}", run["offset"] or "-", run["reason"]) for run in found["bad"]]
        out.print(listing("\nBad pages", ("from", "pages", "at", "why"), rows))
        if found["bad_runs"] > len(rows):
            out.print(f"  and {found['bad_runs'] - len(rows):,} more runs (--first lists more)", style="dim")
    fit = found["fit"]
    if fit and not fit["fits"]:
        words = f"{fit['missing']:,} of {fit['mapped']:,} mapped pages are not in the dump"
        words += f", {fit['unmapped']:,} of {fit['held']:,} pages are not in the map"
        out.print(f"\nThe p2m map does not fit: {words}")
    for title, key in (("Damage", "damage"), ("Remarks", "remarks")):
        if found[key]:
            out.print(f"\n{title}", style="italic")
            for line in found[key]:
                out.print(f"  {line}")


def show_checksum(found: dict[str, Any]) -> None:
    """Print what ``describe_checksum`` says; digests are never cut."""
    out = console(width=_DIGEST_LINE)
    lines = [("content", found["content"]), ("data", found["data"])]
    lines.append(("memory", f"{found['bytes']:,} bytes, {found['data_bytes']:,} of them in pages that are not zero"))
    lines.append(("addresses", found["file"]["space"]))
    if found["bad"]:
        lines.append(("not in it", f"{found['bad']:,} pages that do not decode"))
    out.print(facts(_file(found["file"]), lines))
    if found["runs"]:
        rows = [(run["start"], run["end"], run["content"]) for run in found["runs"]]
        out.print(listing("\nRuns", ("from", "up to", "content"), rows))
        if found["more_runs"]:
            out.print(f"  and {found['more_runs']:,} more runs (--runs lists more)", style="dim")


def show_map(found: dict[str, Any]) -> None:
    """Print what ``describe_map`` says."""
    out = console()
    mfns = any(each["mfn"] for each in found["ranges"])
    columns = ("from", "up to", "pages", "state", "codec", "offset", *(["mfn"] if mfns else []))
    rows = [
        (
            each["start"],
            each["end"],
            f"{each['pages']:,}",
            each["state"],
            each["codec"] or "",
            each["offset"] or "",
            *([each["mfn"] or ""] if mfns else []),
        )
        for each in found["ranges"]
    ]
    out.print(listing(_file(found["file"]), columns, rows))
    if found["total"] > len(rows):
        out.print(f"  and {found['total'] - len(rows):,} more ranges (--limit 0 lists all)", style="dim")
    counts = [f"{count:,} {state}" for state, count in found["pages"].items() if count]
    out.print(f"\n{', '.join(counts)}: {found['total']:,} ranges of {found['file']['space']} addresses")


def bar_cells() -> int:
    """Give the width of the bar of memory; 0 where there is no terminal."""
    out = console()
    return max(min(out.width - 2, 128), 8) if out.is_terminal else 0


def show_bar(cells: Int64s, cell_bytes: int) -> None:
    """Print a line that shows the address space from 0 on, and what its characters mean.

    Args:
        cells: pages of each state (columns) in equal parts of it.
        cell_bytes: size of each part.
    """
    out = console()
    # What a cell has most of; but any RAM shows among holes, and a bad page always.
    ram = cells.copy()
    ram[:, ABSENT] = 0
    shown = np.where(ram.any(axis=1), ram.argmax(axis=1), ABSENT)
    shown[cells[:, BAD] > 0] = BAD
    runs = [(_BAR[PageState(state)], len(list(run))) for state, run in groupby(shown.tolist())]
    out.print([("[", ""), *((char * length, style) for (char, style), length in runs), ("]", "")])
    legend = [(f"0 to {len(cells) * cell_bytes:#x}, {cell_bytes:#x} bytes a character:", "")]
    for state, (char, style) in _BAR.items():
        if cells[:, state].any():
            legend += [(f" {char}", style), (f" {state.name.lower()}", "")]
    out.print(legend)
    out.print()
