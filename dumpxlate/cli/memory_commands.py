"""Commands about addresses: read and translate."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from dumpxlate.cli.groups import grouped
from dumpxlate.cli.guard import EXIT_NO, guarded
from dumpxlate.cli.options import AsJson, Cpu, Cr3, Input, number

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from dumpxlate.dump import Dump

    Reader: TypeAlias = Callable[[int, int], bytes]

__all__ = ["read", "translate"]

_CHUNK = 1 << 20

File = Annotated[str, typer.Argument(metavar="FILE", help="The dump.")]
Address = Annotated[int, typer.Argument(parser=number, metavar="ADDRESS", help="As 0x1000, 4096, 4K.")]


@guarded
@grouped
def read(
    file: File,
    address: Address,
    length: Annotated[int, typer.Argument(parser=number, metavar="LENGTH", help="Bytes to read.")],
    inputs: Input,
    virtual: Annotated[bool, typer.Option("--virtual", help="The address is virtual.")] = False,
    physical: Annotated[bool, typer.Option("--physical", help="The address is guest physical (the default).")] = False,
    machine: Annotated[bool, typer.Option("--machine", help="The address is the machine's: of a Xen host.")] = False,
    cpu: Cpu = None,
    cr3: Cr3 = None,
    as_hex: Annotated[bool, typer.Option("--hex", help="Print a hexdump on a pipe too.")] = False,
) -> None:
    """Read memory: a hexdump on a terminal, bytes on a pipe. Exit code 1 if an address has no page or no content."""
    if virtual + physical + machine > 1:
        raise ValueError("--virtual, --physical and --machine exclude each other")
    if address + length > 1 << 64:
        raise ValueError(f"address {address + length - 1:#x} has more than 64 bits")
    if not virtual and (cpu is not None or cr3 is not None):
        raise ValueError("--cpu and --cr3 go with --virtual")
    with inputs.open([file]) as dump:
        if virtual:
            take: Reader = dump.virtual(cpu, cr3=cr3).read
        else:
            take = _machine_reader(dump) if machine else _physical_reader(dump)
        write = _hex_writer() if as_hex or sys.stdout.isatty() else _write_bytes
        for at in range(address, address + length, _CHUNK):
            write(at, take(at, min(_CHUNK, address + length - at)))
        sys.stdout.flush()


def _hex_writer() -> Callable[[int, bytes], None]:
    from dumpxlate.cli.render_memory import hexdump

    def write(address: int, data: bytes) -> None:
        sys.stdout.write(hexdump(address, data))

    return write


def _write_bytes(_: int, data: bytes) -> None:
    sys.stdout.buffer.write(data)


def _physical_reader(dump: Dump) -> Reader:
    from dumpxlate.dump import Space

    if dump.space is not Space.PHYSICAL:
        raise ValueError(
            f"{dump.name}: keyed by machine frame: give the guest's map with --p2m MAP, find it in the dump with "
            "--p2m dump, or read by --machine address"
        )
    return dump.read


def _machine_reader(dump: Dump) -> Reader:
    from dumpxlate.dump import Space
    from dumpxlate.memory import PhysicalMemory
    from dumpxlate.paging.addrxlat import frame_map
    from dumpxlate.paging.virtual import TranslatedMemory

    if dump.frames is not None:
        return PhysicalMemory(dump.frames).read
    if dump.space is Space.MACHINE:
        return dump.read
    if dump.p2m is None:
        raise ValueError(f"{dump.name}: knows no machine frames")
    return TranslatedMemory(PhysicalMemory(dump.pages), frame_map(dump.p2m, dump.pages.page_size)).read


@guarded
@grouped
def translate(
    file: File,
    address: Address,
    inputs: Input,
    cpu: Cpu = None,
    cr3: Cr3 = None,
    as_json: AsJson = False,
) -> None:
    """Show how a virtual address becomes a physical one, and where its page is. Exit code 1 if it is unmapped."""
    from dumpxlate.cli.render import show_json
    from dumpxlate.cli.render_memory import show_translation
    from dumpxlate.describe.memory import describe_translation

    with inputs.open([file]) as dump:
        described = describe_translation(dump, address, cpu=cpu, cr3=cr3)
    if as_json:
        show_json(described)
    else:
        show_translation(described)
    if described["fault"]:
        raise typer.Exit(EXIT_NO)
