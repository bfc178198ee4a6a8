"""Comparisons, checks, digests and maps as plain values, ready for JSON, that tables are made from.

As in :mod:`dumpxlate.describe.dump`: shapes are versioned, addresses are hex strings, strings of a guest are escaped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dumpxlate.describe.dump import describe_file, describe_fit, describe_missing, printable
from dumpxlate.pages import CodecId, PageState
from dumpxlate.verify.pages import Outcome

if TYPE_CHECKING:
    from dumpxlate.describe.page_map import PageMap
    from dumpxlate.dump import Dump
    from dumpxlate.verify.check import CheckReport
    from dumpxlate.verify.compare import Comparison
    from dumpxlate.verify.digest import Checksum
    from dumpxlate.verify.facts import FactDifference, FactsComparison
    from dumpxlate.verify.pages import PageDifference

__all__ = ["describe_check", "describe_checksum", "describe_comparison", "describe_map"]


def describe_comparison(a: Dump, b: Dump, found: Comparison) -> dict[str, Any]:
    """Describe a comparison (``dumpxlate.compare/1``)."""
    return {
        "schema": "dumpxlate.compare/1",
        "a": _file(a),
        "b": _file(b),
        "same": found.same,
        "strict": found.strict,
        "canonical": found.canonical,
        "page_size": found.page_size,
        "pages": {outcome.name.lower(): found.pages.get(outcome.name.lower(), 0) for outcome in _ORDER},
        "first": [_page(each) for each in found.first],
        "machine": [_fact(each) for each in found.facts.machine],
        "cpus": _cpus(found.facts),
        "vmcoreinfo": {
            "in": found.facts.vmcoreinfo,
            "same": found.facts.same_text,
            "different": [_fact(each) for each in found.facts.lines],
        },
        "seconds": round(found.seconds, 3),
    }


_ORDER = (
    Outcome.EQUAL,
    Outcome.DIFFERENT,
    Outcome.ONLY_A,
    Outcome.ONLY_B,
    Outcome.ABSENT_ZERO,
    Outcome.BAD,
    Outcome.NEITHER,
)


def _file(dump: Dump) -> dict[str, Any]:
    return describe_file(dump) | {"page_size": dump.pages.page_size}


def _place(offset: int) -> str | None:
    return hex(offset) if offset >= 0 else None


def _page(page: PageDifference) -> dict[str, Any]:
    sides = [
        {"state": state.name.lower(), "offset": _place(offset)}
        for state, offset in zip(page.states, page.offsets, strict=True)
    ]
    return {
        "kind": page.outcome.name.lower(),
        "pfn": hex(page.pfn),
        "address": hex(page.address),
        "byte": page.byte if page.byte >= 0 else None,
        "a": sides[0],
        "b": sides[1],
    }


def _fact(fact: FactDifference) -> dict[str, str | None]:
    a, b = (None if value is None else printable(value) for value in (fact.a, fact.b))
    return {"name": printable(fact.name), "a": a, "b": b}


def _cpus(facts: FactsComparison) -> dict[str, Any]:
    return {
        "in": facts.cpus,
        "compared": facts.compared,
        "registers": facts.registers,
        "only_a": list(facts.only_a),
        "only_b": list(facts.only_b),
        "different": [
            {"cpu": each.cpu, "register": each.name, "a": hex(each.a), "b": hex(each.b)} for each in facts.differing
        ],
    }


def describe_check(dump: Dump, found: CheckReport) -> dict[str, Any]:
    """Describe a check (``dumpxlate.check/1``)."""
    return {
        "schema": "dumpxlate.check/1",
        "file": _file(dump),
        "ok": found.ok,
        "ram": found.ram,
        "pages": dict(found.pages),
        "codecs": dict(found.codecs),
        "missing": describe_missing(found.missing, found.page_size),
        "bad_runs": found.bad_runs,
        "bad": [
            {
                "start": hex(run.start * found.page_size),
                "pfn": hex(run.start),
                "pages": run.count,
                "offset": _place(run.offset),
                "reason": run.reason,
            }
            for run in found.bad
        ],
        "overlapping": found.overlapping,
        "repeated": found.repeated,
        "fit": describe_fit(found.fit),
        "damage": [printable(line) for line in found.damage],
        "remarks": [printable(line) for line in found.remarks],
        "seconds": round(found.seconds, 3),
    }


def describe_checksum(dump: Dump, found: Checksum) -> dict[str, Any]:
    """Describe digests (``dumpxlate.checksum/1``)."""
    return {
        "schema": "dumpxlate.checksum/1",
        "file": _file(dump),
        "content": found.content.hex(),
        "data": found.data.hex(),
        "bytes": found.bytes,
        "data_bytes": found.data_bytes,
        "runs": [
            {"start": hex(run.address), "end": hex(run.address + run.length), "content": run.content.hex()}
            for run in found.runs
        ],
        "more_runs": found.total_runs - len(found.runs),
        "complete": found.complete,
        "bad": found.bad,
        "damage": [printable(line) for line in found.damage],
        "seconds": round(found.seconds, 3),
    }


def describe_map(dump: Dump, found: PageMap) -> dict[str, Any]:
    """Describe a map (``dumpxlate.map/1``); the cells of its bar are for terminals and left out."""
    size = dump.pages.page_size
    ranges = found.ranges
    columns = (ranges.start, ranges.count, ranges.state, ranges.codec, ranges.offset, ranges.mfn)
    return {
        "schema": "dumpxlate.map/1",
        "file": _file(dump),
        "pages": dict(found.pages),
        "codecs": dict(found.codecs),
        "total": found.total,
        "ranges": [
            {
                "start": hex(start * size),
                "end": hex((start + count) * size),
                "pages": count,
                "state": PageState(state).name.lower(),
                "codec": CodecId(codec).name.lower() if state == PageState.STORED else None,
                "offset": _place(offset),
                "mfn": _place(mfn),
            }
            for start, count, state, codec, offset, mfn in zip(*(column.tolist() for column in columns), strict=True)
        ],
    }
