"""What commands share: types of options, and how inputs and outputs are named on the command line."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from dumpxlate.cli.groups import Group
from dumpxlate.cli.progress import ProgressStyle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dumpxlate.dump import Dump
    from dumpxlate.io.sink import PipeSink
    from dumpxlate.qemu.hints import QemuHints, RamHint

__all__ = [
    "AsJson",
    "BadPagesName",
    "Command",
    "Cpu",
    "Cr3",
    "Files",
    "Force",
    "Input",
    "MapKind",
    "MapKindName",
    "MissingName",
    "ShowProgress",
    "Threads",
    "number",
    "output",
    "piece",
]


_ALONE = {"--paging": "--paging=all"}
"""Options that take a value only behind ``=``, and what they mean without one."""


class Command(TyperCommand):
    """A command some of whose options may stand alone: typer has either flags or options with a value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give such options the value that they stand for."""
        last = args.index("--") if "--" in args else len(args)
        return super().parse_args(ctx, [*(_ALONE.get(word, word) for word in args[:last]), *args[last:]])


class MapKindName(StrEnum):
    """Kinds of p2m map files."""

    U64 = "u64"
    U32 = "u32"
    NPY = "npy"
    TEXT = "text"
    MFNDUMP = "mfndump"


class BadPagesName(StrEnum):
    """What to do with pages that do not decode."""

    STOP = "stop"
    SKIP = "skip"
    ZERO = "zero"


class MissingName(StrEnum):
    """What RAM is that a file has no bytes for."""

    EXCLUDED = "excluded"
    ZERO = "zero"


def number(text: str | int) -> int:
    """Read a number: decimal, or hex with 0x; K, M, G and T count in powers of 1024. Typer passes defaults as well."""
    if isinstance(text, int):
        return text
    unit = {"K": 10, "M": 20, "G": 30, "T": 40}.get(text[-1:].upper(), 0)
    try:
        value = int(text[:-1] if unit else text, 0) << unit
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no number (4096, 0x1000, 4K)") from None
    if value < 0:
        raise typer.BadParameter(f"{text!r} is negative")
    return value


Files = Annotated[list[str], typer.Argument(metavar="FILE...", help="The dump, or all files of a split set.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
MapKind = Annotated[MapKindName | None, typer.Option("--p2m-format", help="Kind of the map; found out if not given.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
Threads = Annotated[int | None, typer.Option("--threads", min=0, help="Workers, processes or threads; 0 for none.")]
Cpu = Annotated[int | None, typer.Option("--cpu", min=0, metavar="N", help="Use the page tables of this vcpu.")]
Cr3 = Annotated[
    int | None, typer.Option("--cr3", parser=number, metavar="X", help="Use these page tables: a value of cr3.")
]
ShowProgress = Annotated[ProgressStyle, typer.Option("--progress", help="How to show it.")]


@dataclass(frozen=True)
class Input(Group):
    """What a user may say of an input: the options of every command that opens a dump."""

    format: Annotated[str | None, typer.Option("--from", "-f", help="Format of the input; found out if not given.")] = (
        None
    )
    p2m: Annotated[
        str | None,
        typer.Option(
            "--p2m", metavar="MAP|dump[:METHOD]", help="The guest's p2m map: a file, or what is found in the dump."
        ),
    ] = None
    p2m_format: MapKind = None
    symbols: Annotated[
        Path | None,
        typer.Option(
            "--symbols", readable=False, metavar="FILE", help="The guest's vmlinux or System.map, to find its p2m by."
        ),
    ] = None
    domain: Annotated[
        int | None,
        typer.Option("--domain", min=0, metavar="N", help="One domain of a dump of a whole Xen host."),
    ] = None
    xen_syms: Annotated[
        Path | None,
        typer.Option(
            "--xen-syms", readable=False, metavar="FILE", help="The hypervisor's symbols, to find a host's domains by."
        ),
    ] = None
    missing: Annotated[
        MissingName, typer.Option("--missing", help="What memory is that the file has no bytes for.")
    ] = MissingName.EXCLUDED
    machine_type: Annotated[
        str | None,
        typer.Option("--machine-type", help="QEMU: type of the machine (pc, q35, virt), where the file lacks it."),
    ] = None
    ram_below_4g: Annotated[
        int | None,
        typer.Option(
            "--ram-below-4g", parser=number, metavar="SIZE", help="QEMU: RAM below 4 GiB, as max-ram-below-4g."
        ),
    ] = None
    snapshot: Annotated[
        str | None, typer.Option("--snapshot", help="qcow2: name or id of the snapshot, where there are several.")
    ] = None
    qemu_binary: Annotated[
        Path | None,
        typer.Option(
            "--qemu-binary", readable=False, help="Core of a QEMU process: the program, for its debug information."
        ),
    ] = None
    debug_file: Annotated[
        Path | None,
        typer.Option(
            "--debug-file", readable=False, help="Core of a QEMU process: file with QEMU's debug information."
        ),
    ] = None
    profile: Annotated[
        Path | None,
        typer.Option("--profile", readable=False, help="Core of a QEMU process: what qemu-profile made of that."),
    ] = None
    ram_block: Annotated[
        list[str] | None,
        typer.Option(
            "--ram-block",
            metavar="START:LENGTH:HVA",
            help="Core of a QEMU process: guest memory by hand, with its host address; repeatable.",
        ),
    ] = None

    def open(self, names: Sequence[str | Path]) -> Dump:
        """Open the dump that a user named: files of one set, or raw pieces as FILE@ADDRESS; - is stdin.

        Raises:
            ValueError: some pieces have an address, and others do not; or there is no such domain, or no such method to
                find a map by.
            MapError: the dump has no map to be found so.
        """
        import dumpxlate
        from dumpxlate.cli.find_p2m import method_of, names_dump, with_found_map
        from dumpxlate.format import OpenOptions

        pieces = [piece(str(name)) for name in names]
        addresses = tuple(address for _, address in pieces if address is not None)
        if addresses and len(addresses) != len(pieces):
            raise ValueError("give an address for every piece of memory, or for none: FILE@ADDRESS")
        if self.domain is not None and self.p2m:
            raise ValueError("a domain's map is found in the dump of its host: give --domain without --p2m")
        within = self.p2m if names_dump(self.p2m) else None
        if within:
            method_of(within.partition(":")[2])
        dump = dumpxlate.open(
            *(path for path, _ in pieces),
            format=self.format or ("raw" if addresses else None),
            p2m=None if within else self.p2m,
            p2m_format=self.p2m_format.value if self.p2m_format else None,
            options=OpenOptions(
                addresses=addresses,
                missing=self.missing.value,
                machine=self.machine_type,
                ram_below_4g=self.ram_below_4g,
                snapshot=self.snapshot,
                qemu=self._qemu(),
            ),
        )
        try:
            if self.domain is not None:
                dump = dump.domain(self.domain, self.xen_syms)
            elif within:
                dump = with_found_map(dump, within, self.symbols)
            return replace(dump, consulted=(*dump.consulted, str(self.symbols))) if self.symbols else dump
        except BaseException:
            dump.close()
            raise

    def files(self) -> tuple[str, ...]:
        """Name the files beside the dump that tell something of it."""
        from dumpxlate.cli.find_p2m import names_dump

        p2m = None if names_dump(self.p2m) else self.p2m
        named = (p2m, self.symbols, self.xen_syms, self.qemu_binary, self.debug_file, self.profile)
        return tuple(str(each) for each in named if each)

    def _qemu(self) -> QemuHints | None:
        """Give what the user said of the build of QEMU, or nothing."""
        if not (self.qemu_binary or self.debug_file or self.profile or self.ram_block):
            return None
        from dumpxlate.qemu.hints import QemuHints

        return QemuHints(
            binary=str(self.qemu_binary) if self.qemu_binary else None,
            debug_file=str(self.debug_file) if self.debug_file else None,
            profile=str(self.profile) if self.profile else None,
            ram=tuple(_ram(text) for text in self.ram_block or ()),
        )


def _ram(text: str) -> RamHint:
    """Read START:LENGTH:HVA."""
    from dumpxlate.qemu.hints import RamHint

    parts = text.split(":")
    if len(parts) != 3:
        raise typer.BadParameter(f"{text!r}: expected START:LENGTH:HVA, as in 0:2G:0x7f0000000000")
    start, length, host = map(number, parts)
    return RamHint(start, length, host)


def piece(name: str) -> tuple[str, int | None]:
    """Cut FILE@ADDRESS; a file that really has such a name wins."""
    path, at, address = name.rpartition("@")
    if not at or Path(name).exists():
        return name, None
    try:
        return path, int(address, 0)
    except ValueError:
        return name, None


def output(name: str) -> Path | PipeSink:
    """Give the path to write to, or stdout as a pipe.

    Raises:
        OutputError: stdout is a terminal, or the name that of a folder.
    """
    from dumpxlate.errors import OutputError
    from dumpxlate.io.sink import PipeSink

    if name != "-":
        if not name or name.endswith(os.sep):
            raise OutputError("is not the name of a file", path=name or repr(name))
        return Path(name)
    if sys.stdout.isatty():
        raise OutputError("is a terminal, and a dump is binary: redirect it, or give -o FILE", path="<stdout>")
    return PipeSink(sys.stdout.fileno())
