"""Memory and translations of addresses for people."""

from __future__ import annotations

from typing import Any

from dumpxlate.cli.screen import console, facts, listing

__all__ = ["hexdump", "show_mappings", "show_translation"]

_SHOWN = bytes(byte if 0x20 <= byte < 0x7F else ord(".") for byte in range(256))


def hexdump(address: int, data: bytes) -> str:
    """Write bytes as lines: address, 16 bytes in hex, and what of them is ASCII."""
    lines = []
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        words = f"{row[:8].hex(' ')}  {row[8:].hex(' ')}"
        lines.append(f"{address + at:016x}  {words:<48}  |{row.translate(_SHOWN).decode('ascii')}|\n")
    return "".join(lines)


def show_translation(found: dict[str, Any]) -> None:
    """Print what ``describe_translation`` says."""
    out = console()
    file, page = found["file"], found["page"]
    head = [("file", f"{file['name']} ({file['format']})"), ("virtual", found["address"]), ("by", found["by"])]
    if found["root"]:
        head.append(("first table", found["root"]))
    out.print(facts("Address", head))
    if found["steps"]:
        rows = [
            (step["name"], step["entry"] or "-", step["value"], step["kind"], step["frame"] or "-")
            for step in found["steps"]
        ]
        out.print(listing("\nPage tables", ("level", "entry at", "entry", "is", "leads to"), rows))
    if not page:
        out.print(facts("\nUnmapped", [("why", found["fault"])]))
        return
    frames = [(name, page[name]) for name in ("pfn", "mfn") if page[name]]
    state = page["state"] + (f", {page['codec']}" if page["codec"] not in (None, "raw") else "")
    where = [("byte in file", page["byte_offset"])] if page["byte_offset"] else []
    where = where or [("page in file", page["file_offset"] or "nowhere as it is")]
    out.print(facts("\nMemory", [(file["space"], found["target"]), *frames, ("page", state), *where]))


def show_mappings(found: dict[str, Any]) -> None:
    """Print what ``describe_mappings`` says."""
    out, file = console(), found["file"]
    rows = [(each["start"], each["end"], each["target"], f"{each['bytes']:,}") for each in found["mappings"]]
    columns = ("virtual, from", "up to", file["space"], "bytes")
    out.print(listing(f"{file['name']} ({file['format']})", columns, rows))
    if found["total"] > len(rows):
        out.print(f"  and {found['total'] - len(rows):,} more (--limit 0 lists all)", style="dim")
    faults = [(each["what"], f"{each['count']:,}") for each in found["faults"]]
    if faults:
        out.print(facts("\nNot believed", faults))
    out.print(f"\n{found['total']:,} mappings of {found['bytes']:,} bytes, by {found['tables']:,} page tables")
