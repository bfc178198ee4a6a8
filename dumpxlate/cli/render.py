"""Descriptions as tables for people; the same descriptions as JSON are printed by the commands themselves."""

from __future__ import annotations

import sys
from typing import Any

from dumpxlate.cli.lines import byte_size
from dumpxlate.cli.screen import Table, console, facts, listing

__all__ = [
    "show_dump",
    "show_formats",
    "show_json",
    "show_map_check",
    "show_p2m",
]

_RUNS_SHOWN = 16


def show_json(value: object) -> None:
    """Print JSON on stdout."""
    import json

    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")


def show_dump(info: dict[str, Any]) -> None:
    """Print what ``describe_dump`` says."""
    out = console()
    out.print(facts(f"{info['format']['name']}: {info['format']['variant']}", _headline(info)))
    pages = info["pages"]
    if pages["indexed"]:
        shown = [(run["start"], run["end"], f"{run['pages']:,}") for run in pages["ram_runs"][:_RUNS_SHOWN]]
        out.print(listing("\nRAM", ("from", "up to", "pages"), shown))
        if pages["runs"] > len(shown):
            out.print(f"  and {pages['runs'] - len(shown):,} more runs (--json lists them)", style="dim")
    for cpu in info["cpus"]:
        out.print(_registers(cpu, out.width))
    if info["notes"]:
        notes = [(note["name"], note["type"], f"{note['bytes']:,}") for note in info["notes"]]
        out.print(listing("\nNotes", ("name", "type", "bytes"), notes))
    if info["p2m"]:
        out.print(_p2m("\np2m map", info["p2m"]))
    if info["p2m_methods"]:
        ways = [(each["method"], "yes" if each["applies"] else "no", each["why"]) for each in info["p2m_methods"]]
        out.print(listing("\nWays to the p2m map", ("method", "can try", "what it starts from, or lacks"), ways))
    if info["attributes"]:
        out.print(facts("\nHeader", [(name, str(value)) for name, value in info["attributes"].items()]))
    for title, key in (("Remarks", "remarks"), ("Damage", "damage"), ("Next", "next")):
        if info[key]:
            out.print(f"\n{title}", style="italic")
            for line in info[key]:
                out.print(f"  {line}")


def _headline(info: dict[str, Any]) -> list[tuple[str, str]]:
    machine, pages = info["machine"], info["pages"]
    rows = [("file", f"{file['name']}, {byte_size(file['bytes'])}") for file in info["files"]]
    kind = ", paravirtual Xen guest" if machine["paravirtual"] else ""
    rows += [
        ("machine", f"{machine['arch']}, {machine['word_bits']}-bit, {machine['byte_order']}-endian{kind}"),
        ("page size", f"{machine['page_size']:,}"),
        ("addresses", info["space"]),
    ]
    if machine["paravirtual"]:
        rows.append(("page tables", "of machine frames (mfn); convert --canonical writes the guest's own (pfn)"))
    elif machine["canonical"]:
        rows.append(("page tables", "of a paravirtual Xen guest, with its own frames (pfn)"))
    if info["xen_host"]:
        host = info["xen_host"]
        rows.append(("Xen host", f"{host['version'] + ': ' if host['version'] else ''}{host['evidence']}"))
    if machine["release"]:
        rows.append(("kernel", machine["release"]))
    if not pages["indexed"]:
        rows.append(("pages", f"{pages['entries']:,} ({byte_size(pages['bytes'])}); so long an index is not read here"))
        return rows
    counts = [f"{pages['stored']:,} with content"]
    counts += [f"{pages[kind]:,} {kind}" for kind in ("excluded", "repeated") if pages[kind]]
    rows.append(("pages", f"{', '.join(counts)} ({byte_size(pages['bytes'])} of RAM)"))
    if info["fit"]:
        fit = info["fit"]
        rows.append(
            (
                "map and dump",
                (
                    f"{'fit' if fit['fits'] else 'DO NOT FIT'}: {fit['missing']:,} of {fit['mapped']:,} mapped pages "
                    f"are not in the dump, {fit['unmapped']:,} of {fit['held']:,} pages are not in the map"
                ),
            )
        )
    return rows


def _registers(cpu: dict[str, Any], width: int) -> str:
    """Lay registers out in as many columns as fit, without leading zeros."""
    longest = max(map(len, cpu["registers"]), default=0)
    cells = [f"  {name:>{longest}} {int(value, 16):<16x}" for name, value in cpu["registers"].items()]
    across = max(width // (longest + 19), 1)
    rows = ["".join(cells[at : at + across]).rstrip() for at in range(0, len(cells), across)]
    return "\n".join((f"\nvcpu {cpu['index']}", *rows))


def _p2m(title: str, info: dict[str, Any]) -> Table:
    words = {
        "entries": "entries",
        "pages": "pages",
        "runs": "runs",
        "highest_pfn": "highest pfn",
        "highest_mfn": "highest mfn",
        "holes": "holes",
        "invalid": "entries without a page",
        "foreign": "foreign frames",
        "identity": "identity frames",
        "duplicates": "duplicates (further pfns on one mfn)",
    }
    rows = [(word, f"{info[key]:,}" if isinstance(info[key], int) else str(info[key])) for key, word in words.items()]
    return facts(title, rows)


def show_p2m(name: str, info: dict[str, Any]) -> None:
    """Print what ``describe_p2m`` says."""
    console().print(_p2m(name, info))


def show_map_check(checked: dict[str, Any]) -> None:
    """Print what ``describe_map_check`` says."""
    verdict = "makes sense" if checked["makes_sense"] else "does NOT make sense"
    rows = [
        (each["name"], f"{each['share']:.1%}", f"{each['agree']:,} of {each['total']:,}", each["says"])
        for each in checked["evidence"]
    ]
    out = console()
    title = f"{checked['map']} {verdict} on {checked['file']}: {checked['confidence']:.1%}"
    out.print(listing(title, ("what", "agrees", "", ""), rows))
    for remark in checked["remarks"]:
        out.print(f"  not asked: {remark}")


def show_formats(described: dict[str, Any]) -> None:
    """Print what ``describe_formats`` says."""
    words = {True: "yes", False: "no"}
    known, around = described["formats"], described["containers"]
    all_rows = [(each["name"], words[each["reads"]], words[each["writes"]], each["title"]) for each in known]
    all_rows += [(each["name"], "yes", words[each["writes"]], each["title"]) for each in around]
    console().print(listing("Formats and containers", ("name", "read", "write", "what it is"), all_rows))
    writing = [
        (each["name"], ", ".join(each["codecs"]), " ".join(f"--{option}" for option in each["options"]))
        for each in known
        if each["writes"]
    ]
    console().print(listing("\nWriting", ("name", "pages", "options"), writing))
