"""Ways to a guest's p2m, and what speaks for a map, as plain values ready for JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dumpxlate.describe.dump import printable

if TYPE_CHECKING:
    from dumpxlate.dump import Dump
    from dumpxlate.p2m.evidence import Evidence
    from dumpxlate.verify.p2m_check import MapCheck

__all__ = ["describe_evidence", "describe_map_check"]


def describe_map_check(dump: Dump, name: str, found: MapCheck) -> dict[str, Any]:
    """Describe the check of a map (``dumpxlate.p2m-check/1``).

    Args:
        dump: on which it was checked.
        name: of the map.
        found: the check.
    """
    return {
        "schema": "dumpxlate.p2m-check/1",
        "file": printable(dump.name),
        "map": printable(name),
        "confidence": round(found.confidence, 6),
        "makes_sense": found.makes_sense,
        "evidence": [describe_evidence(each) for each in found.evidence],
        "remarks": [printable(remark) for remark in found.remarks],
    }


def describe_evidence(evidence: Evidence) -> dict[str, Any]:
    """Describe what was counted of one thing."""
    return {
        "name": evidence.name,
        "says": printable(evidence.says),
        "agree": evidence.agree,
        "total": evidence.total,
        "share": round(evidence.share, 6),
    }
