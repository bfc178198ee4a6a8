"""Commands about p2m maps: look at them, take them out of dumps, hold them against dumps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dumpxlate.cli.guard import EXIT_NO, guarded, say
from dumpxlate.cli.options import AsJson, Force, MapKind, MapKindName, ShowProgress, Threads, output
from dumpxlate.cli.progress import ProgressStyle, show_progress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dumpxlate.dump import Dump
    from dumpxlate.p2m.map import P2M
    from dumpxlate.progress import Progress

__all__ = ["p2m_app"]

p2m_app = typer.Typer(help="Find p2m maps in dumps, look at them, check them, convert them.", no_args_is_help=True)

DumpFile = Annotated[str, typer.Argument(metavar="DUMP", help="The dump of a paravirtual guest.")]
FromFormat = Annotated[str | None, typer.Option("--from", "-f", help="Format of the dump; found out if not given.")]
SymbolsFile = Annotated[
    Path | None,
    typer.Option("--symbols", readable=False, metavar="FILE", help="The guest's vmlinux or System.map, for tree."),
]
ToKind = Annotated[MapKindName | None, typer.Option("--to", "-t", help="Kind to write; else by the suffix, else u64.")]


@p2m_app.command("show")
@guarded
def p2m_show(
    path: Annotated[Path, typer.Argument(metavar="MAP", readable=False, help="The map.")],
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
    source: Annotated[Path, typer.Argument(metavar="A", readable=False, help="The map to read.")],
    target: Annotated[str, typer.Argument(metavar="B", help="The map to write; - is stdout.")],
    kind: MapKind = None,
    to: ToKind = None,
    force: Force = False,
) -> None:
    """Write a map as another kind."""
    from dumpxlate.p2m.files import read_map

    _write(read_map(source, kind.value if kind else None), target, to, force=force, inputs=[str(source)])


@p2m_app.command("extract")
@guarded
def p2m_extract(
    dump_file: DumpFile,
    out: Annotated[str, typer.Option("--output", "-o", metavar="MAP", help="The map to write; - is stdout.")],
    method: Annotated[
        str,
        typer.Option("--method", "-m", help="sections, shared-info, tree or search; else the first that leads there."),
    ] = "",
    symbols: SymbolsFile = None,
    format: FromFormat = None,
    to: ToKind = None,
    force: Force = False,
    allow_loss: Annotated[
        bool, typer.Option("--allow-loss", help="Write a map although it does not fit the dump.")
    ] = False,
    threads: Threads = None,
    progress: ShowProgress = ProgressStyle.AUTO,
) -> None:
    """Find a guest's map in its dump, and write it."""
    import dumpxlate
    from dumpxlate.cli.find_p2m import find_in, method_of

    method_of(method)
    with dumpxlate.open(dump_file, format=format) as dump:
        with show_progress(progress) as callback:
            found = find_in(dump, method, symbols, allow_misfit=allow_loss, progress=callback, threads=threads)
        told = [str(symbols)] if symbols else []
        _write(found.p2m, out, to, force=force, inputs=[*dump.files, *told])


@p2m_app.command("check")
@guarded
def p2m_check(
    dump_file: DumpFile,
    path: Annotated[str, typer.Argument(metavar="MAP", help="The map: a file, or dump:METHOD.")],
    symbols: SymbolsFile = None,
    format: FromFormat = None,
    kind: MapKind = None,
    as_json: AsJson = False,
    threads: Threads = None,
    progress: ShowProgress = ProgressStyle.AUTO,
) -> None:
    """Say how much of a guest's memory makes sense under a map: exit code 0 if enough of it does, else 1."""
    import dumpxlate
    from dumpxlate.cli.render import show_json, show_map_check
    from dumpxlate.describe.p2m import describe_map_check
    from dumpxlate.verify.p2m_check import check_map

    with dumpxlate.open(dump_file, format=format) as dump:
        with show_progress(progress) as callback:
            p2m = _named_map(dump, path, kind, symbols, callback)
            found = check_map(dump, p2m, progress=callback, threads=threads)
        described = describe_map_check(dump, path, found)
    (show_json if as_json else show_map_check)(described)
    if not found.makes_sense:
        raise typer.Exit(EXIT_NO)


def _named_map(
    dump: Dump, name: str, kind: MapKindName | None, symbols: Path | None, progress: Callable[[Progress], None] | None
) -> P2M:
    """Read a map from a file, or find it in the dump, whether it fits or not."""
    from dumpxlate.cli.find_p2m import find_in, names_dump
    from dumpxlate.p2m.files import read_map

    if names_dump(name):
        return find_in(dump, name.partition(":")[2], symbols, allow_misfit=True, progress=progress).p2m
    return read_map(name, kind.value if kind else None)


def _write(p2m: P2M, name: str, to: MapKindName | None, *, force: bool, inputs: Sequence[str]) -> None:
    """Write a map to a file, or to stdout."""
    from dumpxlate.io.sink import FileSink, PipeSink
    from dumpxlate.p2m.files import kind_for, write_map

    target = output(name)
    with target if isinstance(target, PipeSink) else FileSink(target, overwrite=force, inputs=inputs) as sink:
        write_map(p2m, sink, to.value if to else kind_for(name))
        sink.commit()
    say(f"{target.name if isinstance(target, PipeSink) else name}: {p2m.runs.total:,} pages of {p2m.size:,} entries")
