"""The domains of a Xen host as a table."""

from __future__ import annotations

from typing import Any

from dumpxlate.cli.screen import console, facts, listing

__all__ = ["show_domains"]


def show_domains(host: dict[str, Any]) -> None:
    """Print what ``describe_host`` says."""
    out = console()
    rows = [("file", host["file"]), ("domains found by", host["found_by"])]
    rows += [("Xen", host["version"])] if host["version"] else []
    out.print(facts("Xen host", [*rows, ("machine memory", f"up to frame {host['frames']:#x}")]))
    columns = ("id", "uuid", "type", "pages", "vcpus")
    out.print(listing("\nDomains", columns, [_row(domain) for domain in host["domains"]]))


def _row(domain: dict[str, Any]) -> tuple[str, ...]:
    vcpus = "unknown" if domain["vcpus"] is None else str(domain["vcpus"])
    uuid = domain["uuid"] or "unknown"
    kind = domain["type"] + ", 32-bit" * (domain["word_bits"] == 32)
    return str(domain["id"]), uuid, kind, f"{domain['pages']:,}", vcpus
