"""Maps that are found in the dump itself: what ``--p2m dump:METHOD`` means, and what is told of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dumpxlate.cli.guard import say

if TYPE_CHECKING:
    from dumpxlate.dump import Dump
    from dumpxlate.p2m.methods import FoundMap, Method

__all__ = ["find_in", "method_of", "names_dump", "with_found_map"]

_DUMP = "dump"


def names_dump(p2m: str | None) -> bool:
    """Tell ``dump`` and ``dump:METHOD`` from the name of a file; a file that really has such a name wins."""
    return p2m is not None and p2m.partition(":")[0] == _DUMP and not Path(p2m).exists()


def method_of(name: str) -> Method | None:
    """Give the method that a user named; None for all of them, in turn.

    Raises:
        ValueError: there is none of that name.
    """
    from dumpxlate.p2m.methods import METHODS

    if not name:
        return None
    for method in METHODS:
        if method == name:
            return method
    raise ValueError(f"no method is called {name!r}: there are {', '.join(METHODS)}")


def find_in(dump: Dump, method: str, symbols: Path | None, **how: Any) -> FoundMap:
    """Find the map of a dump, and tell where it was.

    Args:
        dump: the dump.
        method: its name; empty for all of them.
        symbols: file with the kernel's symbols.
        how: as for ``dumpxlate.p2m.methods.find_map``.
    """
    from dumpxlate.describe.dump import printable
    from dumpxlate.elf.symbols import read_symbols
    from dumpxlate.p2m.methods import find_map

    found = find_map(dump, method_of(method), symbols=read_symbols(symbols) if symbols else None, **how)
    say(printable(f"{dump.name}: p2m map by {found}"))
    return found


def with_found_map(dump: Dump, p2m: str, symbols: Path | None, **how: Any) -> Dump:
    """See a dump through the map that is found in it; one that its own file translates stays as it is.

    Args:
        dump: the dump.
        p2m: ``dump`` or ``dump:METHOD``.
        symbols: file with the kernel's symbols.
        how: as for ``dumpxlate.p2m.methods.find_map``.
    """
    found = find_in(dump, p2m.partition(":")[2], symbols, **how)
    translated = dump.frames is None or not dump.machine.paravirtual
    return dump if found.method == "sections" and translated else dump.with_p2m(found.p2m)
