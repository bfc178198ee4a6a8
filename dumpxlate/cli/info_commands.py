"""Commands that only look: info and formats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dumpxlate.cli.groups import grouped
from dumpxlate.cli.guard import guarded
from dumpxlate.cli.options import AsJson, Input

__all__ = ["formats", "info"]


@guarded
@grouped
def info(
    files: Annotated[list[Path], typer.Argument(help="Dumps to describe.")],
    inputs: Input,
    as_json: AsJson = False,
    together: Annotated[bool, typer.Option("--set", help="The files are parts of one split dump.")] = False,
) -> None:
    """Say what a dump is: format, machine, memory, registers, notes, what is missing, what to do next."""
    from dumpxlate.cli.render import show_dump, show_json
    from dumpxlate.describe.dump import describe_dump

    for names in [files] if together else [[path] for path in files]:
        with inputs.open(names) as dump:
            described = describe_dump(dump)
        if as_json:
            show_json(described)
        else:
            show_dump(described)


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
