"""What a conversion is, in plain values: another one of the same description writes the same bytes."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dumpxlate.errors import OutputError
from dumpxlate.version import __version__
from dumpxlate.writing.inputs import FileState

if TYPE_CHECKING:
    from dumpxlate.dump import Dump
    from dumpxlate.format import WriteOptions, Writer

__all__ = ["identity"]

_HEAD = 1 << 20


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
