"""Commands about p2m maps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dumpxlate.cli.guard import guarded, say
from dumpxlate.cli.options import AsJson, Force, MapKind, MapKindName

__all__ = ["p2m_app"]

p2m_app = typer.Typer(help="Look at p2m maps, and turn one kind into another.", no_args_is_help=True)


@p2m_app.command("show")
@guarded
def p2m_show(
    path: Annotated[Path, typer.Argument(metavar="MAP", help="The map.")],
    kind: MapKind = None,
    as_json: AsJson = False,
) -> None:
    """Describe a map: entries, runs, holes, duplicates, highest pfn."""
    from dumpxlate.cli.render import show_json, show_p2m
    from dumpxlate.describe.dump import describe_p2m, printable
    from dumpxlate.p2m.files import read_map

    described = describe_p2m(read_map(path, kind.value if kind else None))
    if as_json:
        show_json(described)
    else:
        show_p2m(printable(str(path)), described)


@p2m_app.command("convert")
@guarded
def p2m_convert(
    source: Annotated[Path, typer.Argument(metavar="A", help="The map to read.")],
    target: Annotated[Path, typer.Argument(metavar="B", help="The map to write.")],
    kind: MapKind = None,
    to: Annotated[
        MapKindName | None, typer.Option("--to", "-t", help="Kind to write; else by B's suffix, else u64.")
    ] = None,
    force: Force = False,
) -> None:
    """Write a map as another kind."""
    from dumpxlate.io.sink import FileSink
    from dumpxlate.p2m.files import kind_for, read_map, write_map

    p2m = read_map(source, kind.value if kind else None)
    with FileSink(target, overwrite=force, inputs=[source]) as sink:
        write_map(p2m, sink, to.value if to else kind_for(target))
        sink.commit()
    say(f"{target}: {p2m.runs.total:,} pages of {p2m.size:,} entries")
