"""What must hold for any input: a correct result, or a typed error that says where.

Everything that dumpxlate does with a dump is done to the input, and then

* no exception but a ``DumpxlateError`` comes out, and one about corruption names an offset or a page;
* ``check`` counts the pages that ``convert --salvage --bad-pages skip`` writes, and what it writes can be opened again;
* no string that a terminal would act on is in a description or a message;
* nothing is left behind but the input and the output under its own name.

Time and memory are watched by the worker.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import dumpxlate
from dumpxlate import errors
from dumpxlate.cli.render_guest import describe_registers, describe_vmcoreinfo
from dumpxlate.describe.dump import describe_dump, describe_p2m, describe_report, printable
from dumpxlate.describe.memory import describe_translation
from dumpxlate.describe.page_map import map_pages
from dumpxlate.describe.verify import describe_check, describe_map
from dumpxlate.io.source import BytesSource, Closing
from dumpxlate.p2m.files import read_map
from dumpxlate.p2m.map import P2M
from dumpxlate.pages import PageState
from dumpxlate.registry import open_from
from dumpxlate.verify.check import check
from dumpxlate.vmcoreinfo_search import find
from tests.fuzz.bases import Base, base

if TYPE_CHECKING:
    from pathlib import Path

    from dumpxlate.arrays import Int32s, Int64s
    from dumpxlate.dump import Dump
    from dumpxlate.verify.check import CheckReport
    from tests.fuzz.mutate import Places

__all__ = ["Finding", "examine", "places"]

_CONTAINERS = ("compressed", "libvirt", "flattened")
_HOST = "xen_host"
"""Bases that are the memory of a Xen host, in ELF."""
TARGETS = ("raw", "elf", "kdump", "lime", "avml", "xendump", "xen_core")
_SMALL = 8 << 20
_LARGEST = 8 << 30
"""Bytes of guest memory that are converted: the time that takes is in proportion to them, also where they are holes."""

_FULL = (errno.EFBIG, errno.ENOSPC)


class BrokenError(Exception):
    """The oracle's own complaint: no exception, but a wrong answer."""


@dataclass(frozen=True)
class Finding:
    """What went wrong: ``kind`` groups findings of one cause."""

    kind: str
    detail: str


def examine(given: Base, data: bytes, folder: Path) -> str | Finding:
    """Do everything with an input.

    Args:
        given: what it was made of.
        data: its bytes.
        folder: an empty folder, left empty.

    Returns:
        How it ended ("opened", or the name of an error), or what is wrong.
    """
    path = folder / "input"
    try:
        return _EXAMINERS.get(given.format, _examine_dump)(given, data, path)
    except errors.DumpxlateError as error:
        return _judged(error)
    except Exception as error:
        return finding(error)
    finally:
        for each in folder.iterdir():
            each.unlink()


def finding(error: BaseException) -> Finding:
    """Name a finding after the innermost line of the program that is on the stack."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "dumpxlate" in frame.filename and "/tests/" not in frame.filename]
    where = f"{ours[-1].filename.rpartition('dumpxlate/')[2]}:{ours[-1].name}" if ours else "?"
    what = f"Broken: {error!s:.25}" if isinstance(error, BrokenError) else type(error).__name__
    return Finding(f"{what} in {where}", "".join(traceback.format_exception(error))[-3000:])


def _judged(error: errors.DumpxlateError) -> str | Finding:
    """Check what an error says."""
    located = not isinstance(error, errors.CorruptDumpError) or error.offset >= 0 or "0x" in str(error)
    if located or "--salvage" in str(error):
        return type(error).__name__
    return Finding(f"no offset: {error.what or error.args[0][:40]}", "".join(traceback.format_exception(error))[-3000:])


def _examine_map(given: Base, data: bytes, path: Path) -> str:
    path.write_bytes(data)
    found = read_map(path)
    _plain(describe_p2m(found))
    found.entries(0, min(found.size, 1 << 16))
    found.mfn(np.arange(16, dtype=np.int64))
    found.pfn(np.arange(16, dtype=np.int64))
    return "opened"


def _examine_beside(given: Base, data: bytes, path: Path) -> str:
    path.write_bytes(bytes(0x10000))
    path.with_name("input.dxmap").write_bytes(data)
    with dumpxlate.open(path, format="raw") as dump:
        _use(dump, path, "lime")
    return "opened"


def _examine_dump(given: Base, data: bytes, path: Path) -> str:
    path.write_bytes(data)
    if not data:
        dumpxlate.open(path).close()
        return "opened"
    choice = hashlib.blake2b(data[:65536], digest_size=4).digest()
    try:
        dump = dumpxlate.open(path)
    except errors.UnknownFormatError:
        # Its own reader is asked too, as with --from.
        if given.format in _CONTAINERS:
            raise
        dump = dumpxlate.open(path, format="elf" if given.format == _HOST else given.format)
    with dump:
        if dump.frames is not None and given.mfns and choice[0] & 3:
            pfn, mfn = (np.array(list(side), np.int64) for side in (given.mfns, given.mfns.values()))
            dump = dump.with_p2m(P2M.from_pairs(pfn, mfn))
        _use(dump, path, TARGETS[choice[1] % len(TARGETS)])
        if given.format == _HOST:
            _look_into_host(dump)
    return "opened"


_EXAMINERS = {"p2m": _examine_map, "rawmap": _examine_beside}


def _use(dump: Dump, path: Path, target: str) -> None:
    """Do what commands do."""
    _plain(describe_dump(dump))
    found = check(dump, threads=0)
    _plain(describe_check(dump, found))
    mapped = map_pages(dump, limit=100, cells=16)
    _plain(describe_map(dump, mapped))
    _require(sum(mapped.pages.values()) - mapped.pages["absent"] == found.ram, f"map {mapped.pages}, RAM {found.ram}")
    if dump.cpus:
        _plain(describe_registers(dump, dump.cpus))
    if dump.vmcoreinfo:
        _plain(describe_vmcoreinfo(dump, dump.vmcoreinfo, None))
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
            _plain(describe_translation(dump, address))
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


def _look_into_host(dump: Dump) -> None:
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
    _plain(describe_report(report))
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


def _plain(value: Any) -> None:
    """Refuse strings that a terminal would act on."""
    if isinstance(value, str):
        _require(printable(value) == value, f"not printable: {value!r:.200}")
    elif isinstance(value, dict):
        for key, each in value.items():
            _plain(key)
            _plain(each.replace("\n", "") if key == "domain_xml" else each)  # the one text with lines of its own
    elif isinstance(value, list | tuple):
        for each in value:
            _plain(each)


class _Traced(Closing):
    """A source that notes where its reader looks."""

    def __init__(self, data: bytes) -> None:
        self._inner = BytesSource(data)
        self.name, self.size = self._inner.name, self._inner.size
        self.seen: dict[tuple[int, int], None] = {}

    def view(self, offset: int = 0, length: int | None = None) -> memoryview:
        found = self._inner.view(offset, length)
        self.seen[offset, len(found)] = None
        return found

    def gather(self, offset: Int64s, size: Int32s) -> tuple[memoryview, Int64s]:
        self.seen |= dict.fromkeys(zip(offset[:64].tolist(), size[:64].tolist(), strict=True))
        return self._inner.gather(offset, size)


_PLACES: dict[str, Places] = {}


def places(given: Base) -> Places:
    """Find out where the reader of a base looks: headers, tables and indexes, but no pages."""
    if given.name not in _PLACES:
        data = base(given.name)
        source = _Traced(data)
        if given.format not in _EXAMINERS and given.format not in _CONTAINERS:
            with open_from([source], "raw" if given.format == "raw" else None) as dump:
                first = dump.pages.ram.select(0, 1)
                state = dump.pages.locate(first).state
                assert len(state) == 0 or state[0] <= max(PageState)
        whole = ((0, len(data)),)
        _PLACES[given.name] = tuple((at, size) for at, size in source.seen if size > 0 and at >= 0) or whole
    return _PLACES[given.name]
