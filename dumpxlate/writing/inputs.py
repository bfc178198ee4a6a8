"""What the files of an input are like from outside: whether they change while they are read, and are still the same."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dumpxlate.errors import OutputError
from dumpxlate.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dumpxlate.dump import Dump
    from dumpxlate.format import WriteOptions, Writer

__all__ = ["FileState", "changed", "identity", "states"]

_HEAD = 1 << 20


@dataclass(frozen=True, slots=True)
class FileState:
    """A file at some moment, as far as stat(2) tells."""

    name: str
    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, name: str) -> FileState | None:
        """Look at a file; None where there is none of that name (a pipe's content, a source that is no file)."""
        try:
            found = Path(name).stat()
        except OSError:
            return None
        return cls(name, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def states(dump: Dump) -> tuple[FileState, ...]:
    """Look at the files of a dump."""
    return tuple(state for source in dump.sources if (state := FileState.of(source.name)))


def changed(before: Iterable[FileState]) -> str | None:
    """Say which file is not what it was; one that was replaced is still open, and does not count."""
    for old in before:
        new = FileState.of(old.name)
        if new and (new.device, new.inode) == (old.device, old.inode) and new != old:
            how = f"from {old.size:,} to {new.size:,} bytes" if new.size != old.size else "its time of change moved"
            return f"{old.name} changed while it was read ({how}): what was read may be a mixture"
    return None


def identity(dump: Dump, writer: Writer, options: WriteOptions, **other: Any) -> dict[str, Any]:
    """Describe a conversion so that another one that gives the same description writes the same bytes.

    Args:
        dump: what is converted.
        writer: what writes it.
        options: what was asked of it.
        other: what else decides about the output.

    Returns:
        Plain values for JSON, without anything of the guest's memory.

    Raises:
        OutputError: an input is no file that could be looked at again.
    """
    return {
        "version": __version__,
        "inputs": [_input(source.name) for source in dump.sources],
        "pages": [dump.pages.page_size, dump.pages.ram.count, writer.pages.count, writer.pages.stop],
        "map": _map_digest(dump),
        "facts": _facts_digest(dump),
        "options": {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(options).items()
        },
        **other,
    }


def _input(name: str) -> dict[str, Any]:
    state = FileState.of(name)
    if state is None:
        raise OutputError("--resume needs inputs that are files: this one cannot be looked at again", path=name)
    with Path(name).open("rb") as file:
        head = hashlib.sha256(file.read(_HEAD)).hexdigest()
    return {"size": state.size, "mtime_ns": state.mtime_ns, "head": head}


def _map_digest(dump: Dump) -> str | None:
    if dump.p2m is None:
        return None
    found = hashlib.sha256()
    for field in fields(dump.p2m.runs):
        found.update(getattr(dump.p2m.runs, field.name).tobytes())
    return found.hexdigest()


def _facts_digest(dump: Dump) -> str:
    """Hash what a writer may tell of a dump besides its pages."""
    found = hashlib.sha256()
    parts = [str((dump.format, dump.space, dump.machine.arch.name, dump.machine.endian, dump.machine.release))]
    parts += [str((cpu.index, sorted(cpu.registers.items()), sorted(cpu.raw.items()))) for cpu in dump.cpus]
    parts += [str((note.name, note.type, bytes(note.desc))) for note in dump.notes]
    parts += [str(sorted(dump.blocks.items())), str(sorted(dump.attributes.items())), str(dump.damage)]
    parts.append(dump.vmcoreinfo.text if dump.vmcoreinfo else "")
    for part in parts:
        found.update(hashlib.sha256(part.encode("utf-8", "surrogateescape")).digest())
    return found.hexdigest()
