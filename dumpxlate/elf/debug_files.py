"""Finds the file with a program's debug information, as debuggers do: by build id under /usr/lib/debug.

Sources: gdb's manual, "Debugging Information in Separate Files"; dwz(1).
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from dumpxlate.elf.container import read_elf
from dumpxlate.elf.dwarf import alternate_of, read_debug_info
from dumpxlate.elf.sections import build_id_of, find_section, section_bytes
from dumpxlate.errors import UnknownFormatError
from dumpxlate.io.source import open_source

if TYPE_CHECKING:
    import os

    from dumpxlate.elf.dwarf import AlternateFile, DebugInfo

__all__ = ["debug_file_of", "find_debug_file", "open_debug_info"]

DEBUG_ROOT = Path("/usr/lib/debug")


def find_debug_file(build_id: str, root: Path = DEBUG_ROOT) -> Path | None:
    """Find the file that distributions install for a build; None where it is not installed."""
    if len(build_id) < 4 or not all(digit in "0123456789abcdef" for digit in build_id):
        return None
    path = root / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug"
    return path if path.is_file() else None


def debug_file_of(program: str | os.PathLike[str], root: Path = DEBUG_ROOT) -> Path:
    """Find the debug information of a program: in itself, by its build id, or beside it by its link.

    Raises:
        UnknownFormatError: there is none; says where it was looked for.
        CorruptDumpError: the program is no ELF file that can be read.
        OSError: it cannot be opened.
    """
    path = Path(program)
    with open_source(path) as source:
        file = read_elf(source)
        section = find_section(file, ".debug_info")
        if section is not None and section.size:
            return path
        build_id = build_id_of(source, file)
        link = section_bytes(source, file, ".gnu_debuglink").partition(b"\0")[0].decode("utf-8", "replace")
    found = find_debug_file(build_id, root) if build_id else None
    if found:
        return found
    name = Path(link).name
    beside = [path.parent / name, path.parent / ".debug" / name] if name else []
    for place in beside:
        if place.is_file() and place != path:
            return place
    raise UnknownFormatError(
        f"has no debug information, and none is installed for build {build_id or 'without an id'} under {root}: "
        "install its debug package, or name the file with --debug-file",
        path=str(path),
    )


def open_debug_info(path: str | os.PathLike[str], root: Path = DEBUG_ROOT) -> DebugInfo:
    """Open a file with debug information, and the one it shares entries with where that is installed.

    Use it in a ``with`` block: entries are read from the files when they are looked at.

    Raises:
        UnknownFormatError: it has no debug information.
        CorruptDumpError: it contradicts itself.
        OSError: it cannot be opened.
    """
    with ExitStack() as opened:
        source = opened.enter_context(open_source(path))
        file = read_elf(source)
        link = alternate_of(source, file)
        alternate = _alternate(link, Path(path).parent, root) if link else None
        if alternate:
            opened.enter_context(alternate)
        return read_debug_info(source, file=file, alternate=alternate).own(opened)


def _alternate(link: AlternateFile, folder: Path, root: Path) -> DebugInfo | None:
    """Open what dwz moved out of a file; None where it is not installed, or is of another build."""
    for place in (find_debug_file(link.build_id, root), folder / link.name):
        if place is not None and place.is_file():
            with ExitStack() as opened:
                found = read_debug_info(opened.enter_context(open_source(place)))
                if found.build_id == link.build_id:
                    return found.own(opened)
    return None
