"""Commands that only look: info and formats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dumpxlate.cli.groups import grouped
from dumpxlate.cli.guard import guarded
from dumpxlate.cli.options import AsJson, Input

if TYPE_CHECKING:
    from dumpxlate.dump import Dump

__all__ = ["formats", "info"]


@guarded
@grouped
def info(
    files: Annotated[list[Path], typer.Argument(readable=False, help="Dumps to describe.")],
    inputs: Input,
    as_json: AsJson = False,
    together: Annotated[bool, typer.Option("--set", help="The files are parts of one split dump.")] = False,
    domains: Annotated[
        bool, typer.Option("--domains", help="List the domains of a Xen host: reads its tables, not only headers.")
    ] = False,
) -> None:
    """Say what a dump is: format, machine, memory, registers, notes, what is missing, what to do next."""
    from dumpxlate.cli.render import show_dump, show_json
    from dumpxlate.cli.render_host import show_domains
    from dumpxlate.describe.dump import describe_dump

    for names in [files] if together else [[path] for path in files]:
        with inputs.open(names) as dump:
            described = _domains(dump, inputs.xen_syms) if domains else describe_dump(dump, inputs.words())
        if as_json:
            show_json(described)
        elif domains:
            show_domains(described)
        else:
            show_dump(described)


def _domains(dump: Dump, xen_syms: Path | None) -> dict[str, Any]:
    """Find and describe the domains of a host."""
    from dumpxlate.describe.xen_host import describe_host
    from dumpxlate.xen_host.host import open_host

    return describe_host(open_host(dump, xen_syms))


@guarded
def formats(as_json: AsJson = False) -> None:
    """List the formats that can be read and written, with their codecs and options."""
    from dumpxlate.cli.render import show_formats, show_json
    from dumpxlate.describe.dump import describe_formats

    described = describe_formats()
    if as_json:
        show_json(described)
    else:
        show_formats(described)
