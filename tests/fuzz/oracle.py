"""What must hold for any input: a correct result, or a typed error that says where.

Everything that dumpxlate does with a dump is done to the input, and then

* no exception but a ``DumpxlateError`` comes out, and one about corruption names an offset or a page;
* ``check`` counts the pages that ``convert --salvage --bad-pages skip`` writes, and what it writes can be opened again;
* no string that a terminal would act on is in a description or a message;
* nothing is written, renamed or removed outside of its folder, no program is started and no connection made;
* nothing is left behind but the input, as it was, and the output under its own name.

Time and memory are watched by the worker.
"""

from __future__ import annotations

import hashlib
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

import dumpxlate
from dumpxlate import errors
from dumpxlate.describe.dump import describe_p2m
from dumpxlate.io.source import BytesSource, Closing
from dumpxlate.p2m.files import read_map
from dumpxlate.p2m.map import P2M
from dumpxlate.pages import PageState
from dumpxlate.registry import open_from
from tests.fuzz.bases import Base, base
from tests.fuzz.companions import EXAMINERS, opened_soundly, pieces
from tests.fuzz.uses import TARGETS, BrokenError, look_into_host, plain, use
from tests.fuzz.watch import confined

if TYPE_CHECKING:
    from pathlib import Path

    from dumpxlate.arrays import Int32s, Int64s
    from tests.fuzz.mutate import Places

__all__ = ["Finding", "examine", "places"]

_CONTAINERS = ("compressed", "libvirt", "flattened")
_HOST = "xen_host"
"""Bases that are the memory of a Xen host, in ELF."""


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
    outside: list[str] = []
    try:
        with confined(folder) as outside:
            outcome = _examined(given, data, path)
        left = _left(folder, data)
    finally:
        for each in folder.iterdir():
            each.unlink()
    if isinstance(outcome, str) and (outside or left):
        wrong = "; ".join([*outside, *left])
        return Finding(f"written outside: {wrong.partition(' ')[0]}", wrong)
    return outcome


def _examined(given: Base, data: bytes, path: Path) -> str | Finding:
    try:
        return _EXAMINERS.get(given.format, _examine_dump)(given, data, path)
    except errors.DumpxlateError as error:
        return _judged(error)
    except Exception as error:
        return finding(error)


def _left(folder: Path, data: bytes) -> list[str]:
    """Say what is in the folder that must not be: anything but the input as it was, and the output of one name."""
    found = [f"{each.name} left" for each in folder.iterdir() if not each.name.startswith(("input", "output"))]
    inputs = [each.read_bytes() for each in sorted(folder.glob("input*"))]
    if data not in inputs and data != b"".join(inputs):  # companions have several files
        found.append("input changed")
    return found


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
    plain(describe_p2m(found))
    found.entries(0, min(found.size, 1 << 16))
    found.mfn(np.arange(16, dtype=np.int64))
    found.pfn(np.arange(16, dtype=np.int64))
    return "opened"


def _examine_beside(given: Base, data: bytes, path: Path) -> str:
    path.write_bytes(bytes(0x10000))
    path.with_name("input.dxmap").write_bytes(data)
    with dumpxlate.open(path, format="raw") as dump:
        use(dump, path, "lime")
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
        use(dump, path, TARGETS[choice[1] % len(TARGETS)])
        if given.format == _HOST:
            look_into_host(dump)
    return "opened"


_EXAMINERS = {"p2m": _examine_map, "rawmap": _examine_beside} | EXAMINERS


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
        whole = base(given.name)
        sources, found, at = [_Traced(piece) for piece in pieces(given)], [], 0
        _look(given, sources)
        for source in sources:
            found += [(at + low, size) for low, size in source.seen if size > 0 and low >= 0]
            at += source.size
        if given.format == "libvirt":  # header, XML and cookie, before the stream
            found = [(0, 92), (92, whole.find(b"\0", 92) + 60)]
        _PLACES[given.name] = tuple(found) or ((0, len(whole)),)
    return _PLACES[given.name]


def _look(given: Base, sources: list[_Traced]) -> None:
    """Open a base, and look for its first page."""
    if given.format in EXAMINERS:
        dump = opened_soundly(given, list(sources))
    elif given.format in (*_EXAMINERS, *_CONTAINERS):
        dump = None
    else:
        dump = open_from(list(sources), "raw" if given.format == "raw" else None)
    if dump:
        with dump:
            state = dump.pages.locate(dump.pages.ram.select(0, 1)).state
            assert len(state) == 0 or state[0] <= max(PageState)
