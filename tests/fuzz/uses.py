"""What commands do with a dump, and what must hold of what they say."""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, Any

import dumpxlate
from dumpxlate import errors
from dumpxlate.cli.render_guest import describe_registers, describe_vmcoreinfo
from dumpxlate.describe.dump import describe_dump, describe_report, printable
from dumpxlate.describe.memory import describe_translation
from dumpxlate.describe.page_map import map_pages
from dumpxlate.describe.verify import describe_check, describe_map
from dumpxlate.verify.check import check
from dumpxlate.vmcoreinfo_search import find

if TYPE_CHECKING:
    from pathlib import Path

    from dumpxlate.dump import Dump
    from dumpxlate.verify.check import CheckReport

__all__ = ["TARGETS", "BrokenError", "look_into_host", "plain", "use"]

TARGETS = ("raw", "elf", "kdump", "lime", "avml", "xendump", "xen_core")
_SMALL = 8 << 20
_LARGEST = 8 << 30
"""Bytes of guest memory that are converted: the time that takes is in proportion to them, also where they are holes."""

_FULL = (errno.EFBIG, errno.ENOSPC)


class BrokenError(Exception):
    """The oracle's own complaint: no exception, but a wrong answer."""


def use(dump: Dump, path: Path, target: str) -> None:
    """Do what commands do."""
    plain(describe_dump(dump))
    found = check(dump, threads=0)
    plain(describe_check(dump, found))
    mapped = map_pages(dump, limit=100, cells=16)
    plain(describe_map(dump, mapped))
    _require(sum(mapped.pages.values()) - mapped.pages["absent"] == found.ram, f"map {mapped.pages}, RAM {found.ram}")
    if dump.cpus:
        plain(describe_registers(dump, dump.cpus))
    if dump.vmcoreinfo:
        plain(describe_vmcoreinfo(dump, dump.vmcoreinfo, None))
    elif dump.pages.stored.count * dump.pages.page_size <= _SMALL:
        find(dump, threads=0)
    _read_some(dump)
    _translate_some(dump)
    _look_further(dump)
    if dump.pages.stored.count * dump.pages.page_size <= _LARGEST:
        _convert(dump, path.with_name("output"), target, found)


def _read_some(dump: Dump) -> None:
    """Read pages with and without content, and a few bytes over a seam."""
    pages, size = dump.pages, dump.pages.page_size
    some = [*pages.ram.select(0, 3).tolist(), pages.ram.stop, 0, 1 << 40]
    dump.read_pages(some)
    dump.states(some)
    with contextlib.suppress(errors.PageUnavailableError):
        dump.read(some[0] * size + size - 3, 6)


def _translate_some(dump: Dump) -> None:
    """Walk page tables, where there are any; a guest's word decides where they lead."""
    for address in (0, 0xFFFF_FFFF_8100_0000, 0xC010_0000, 0xFFFF_8880_0000_1000):
        try:
            plain(describe_translation(dump, address))
        except (errors.TranslationError, errors.PageUnavailableError, errors.UnsupportedFeatureError, errors.MapError):
            continue


def _look_further(dump: Dump) -> None:
    """Search for maps, rewrite page tables, list domains, where the dump is of a kind that has them."""
    refused = (errors.MapError, errors.UnsupportedFeatureError)
    if dump.frames is not None and dump.machine.paravirtual:
        with contextlib.suppress(*refused):
            dump.find_p2m()
    if dump.machine.paravirtual and dump.p2m is not None:
        with contextlib.suppress(*refused):
            check(dump.canonical(threads=0), threads=0)


def look_into_host(dump: Dump) -> None:
    """Take domains out of a host's memory; Xen's tables of frames are as long as the memory that the file claims."""
    with contextlib.suppress(errors.MapError, errors.UnsupportedFeatureError, errors.CorruptDumpError):
        for domain in dump.domains()[:3]:
            with contextlib.suppress(errors.MapError, errors.UnsupportedFeatureError, errors.CorruptDumpError):
                check(dump.domain(domain.number), threads=0)


def _convert(dump: Dump, out: Path, target: str, found: CheckReport) -> None:
    """Convert, compare the counts with those of the check, and open the result."""
    try:
        report = dumpxlate.convert(dump, out, target, threads=0, salvage=True, allow_loss=True, bad_pages="skip")
    except (errors.UnsupportedFeatureError, errors.MapError):
        _require(not out.exists(), f"{target}: refused, but a file was left")
        return
    except OSError as error:
        if error.errno in _FULL:
            return
        raise
    plain(describe_report(report))
    counted = {state: report.pages_out.get(state, 0) for state in ("stored", "zero", "bad", "excluded")}
    told = {state: found.pages.get(state, 0) for state in counted}
    if target in ("raw", "lime", "elf"):
        _require(counted == told, f"check said {told}, {target} got {counted}")
    with dumpxlate.open(out, format="raw" if target == "raw" else None) as again:
        whole = report.complete or not again.damage
        _require(whole or target == "kdump", f"{target}: what was written is damaged: {again.damage}")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise BrokenError(otherwise)


def plain(value: Any) -> None:
    """Refuse strings that a terminal would act on."""
    if isinstance(value, str):
        _require(printable(value) == value, f"not printable: {value!r:.200}")
    elif isinstance(value, dict):
        for key, each in value.items():
            plain(key)
            plain(each.replace("\n", "") if key == "domain_xml" else each)  # the one text with lines of its own
    elif isinstance(value, list | tuple):
        for each in value:
            plain(each)
