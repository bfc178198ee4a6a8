"""The commands: each one parses, calls the library, and shows what it gave."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dumpxlate.cli.guard import EXIT_INCOMPLETE, debugging, guarded, say
from dumpxlate.cli.progress import ProgressStyle, show_progress

if TYPE_CHECKING:
    from dumpxlate.dump import Dump
    from dumpxlate.sink import PipeSink

__all__ = ["app"]

app = typer.Typer(
    help="Read any guest memory dump and re-emit it as any other.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
p2m_app = typer.Typer(help="Look at p2m maps, and turn one kind into another.", no_args_is_help=True)
app.add_typer(p2m_app, name="p2m")


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


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
From = Annotated[str | None, typer.Option("--from", "-f", help="Format of the input; found out if not given.")]
Map = Annotated[Path | None, typer.Option("--p2m", help="The guest's p2m map, for dumps keyed by mfn.")]
MapKind = Annotated[MapKindName | None, typer.Option("--p2m-format", help="Kind of the map; found out if not given.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]


def _version(wanted: bool) -> None:
    if wanted:
        from dumpxlate import __version__

        typer.echo(f"dumpxlate {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    debugging(on=debug)


def _open(path: Path, format: str | None, p2m: Path | None, kind: MapKindName | None) -> Dump:
    import dumpxlate

    return dumpxlate.open(path, format=format, p2m=p2m, p2m_format=kind.value if kind else None)


@app.command()
@guarded
def info(
    files: Annotated[list[Path], typer.Argument(help="Dumps to describe.")],
    as_json: AsJson = False,
    format: From = None,
    p2m: Map = None,
    p2m_format: MapKind = None,
) -> None:
    """Say what a dump is: format, machine, memory, registers, notes, what is missing, what to do next."""
    from dumpxlate.describe import describe_dump

    for path in files:
        with _open(path, format, p2m, p2m_format) as dump:
            described = describe_dump(dump)
        if as_json:
            from dumpxlate.cli.render import show_json

            show_json(described)
        else:
            from dumpxlate.cli.render import show_dump

            show_dump(described)


@app.command()
@guarded
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="The dump to convert.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="OUT", help="Where to write; - is stdout.")],
    to: Annotated[str | None, typer.Option("--to", "-t", help="Format; else by OUT's suffix, else elf.")] = None,
    format: From = None,
    p2m: Map = None,
    p2m_format: MapKind = None,
    force: Force = False,
    allow_loss: Annotated[
        bool, typer.Option("--allow-loss", help="Write although something is lost, or the map does not fit.")
    ] = False,
    salvage: Annotated[bool, typer.Option("--salvage", help="Write what is there of a damaged input.")] = False,
    bad_pages: Annotated[
        BadPagesName, typer.Option("--bad-pages", help="What to do with pages that do not decode.")
    ] = BadPagesName.STOP,
    threads: Annotated[int | None, typer.Option("--threads", min=0, help="Workers; 0 for none.")] = None,
    progress: Annotated[ProgressStyle, typer.Option("--progress", help="How to show it.")] = ProgressStyle.AUTO,
    report: Annotated[Path | None, typer.Option("--report", help="Write a report as JSON to this file.")] = None,
) -> None:
    """Write a dump in another format."""
    from dumpxlate.cli.render import summary
    from dumpxlate.describe import describe_report
    from dumpxlate.pipeline import convert as run
    from dumpxlate.registry import format_for

    target = _target(output)
    chosen = to or format_for(output)
    with _open(source, format, p2m, p2m_format) as dump, show_progress(progress) as callback:
        done = run(
            dump,
            target,
            chosen,
            allow_loss=allow_loss,
            salvage=salvage,
            overwrite=force,
            bad_pages=bad_pages.value,
            threads=threads,
            progress=callback,
        )
    described = describe_report(done)
    if report:
        report.write_text(json.dumps(described, indent=2) + "\n")
    for line in (*described["damage"], *(f"lost: {loss['what']} ({loss['why']})" for loss in described["losses"])):
        say(line)
    say(summary(described))
    if not done.complete:
        raise typer.Exit(EXIT_INCOMPLETE)


def _target(output: str) -> Path | PipeSink:
    """Give the path, or stdout as a pipe."""
    from dumpxlate.errors import OutputError
    from dumpxlate.sink import PipeSink

    if output != "-":
        return Path(output)
    if sys.stdout.isatty():
        raise OutputError("is a terminal, and a dump is binary: redirect it, or give -o FILE", path="<stdout>")
    return PipeSink(sys.stdout.fileno())


@app.command()
@guarded
def formats(as_json: AsJson = False) -> None:
    """List the formats that can be read and written."""
    from dumpxlate.cli.render import show_formats, show_json
    from dumpxlate.registry import all_formats

    if not as_json:
        show_formats(all_formats())
        return
    listed = [
        {"name": each.name, "title": each.title, "reads": True, "writes": each.writes, "suffixes": list(each.suffixes)}
        for each in all_formats()
    ]
    show_json({"schema": "dumpxlate.formats/1", "formats": listed})


@p2m_app.command("show")
@guarded
def p2m_show(
    path: Annotated[Path, typer.Argument(metavar="MAP", help="The map.")],
    kind: MapKind = None,
    as_json: AsJson = False,
) -> None:
    """Describe a map: entries, runs, holes, duplicates, highest pfn."""
    from dumpxlate.cli.render import show_json, show_p2m
    from dumpxlate.describe import describe_p2m, printable
    from dumpxlate.p2m_file import read_map

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
    from dumpxlate.p2m_file import kind_for, read_map, write_map
    from dumpxlate.sink import FileSink

    p2m = read_map(source, kind.value if kind else None)
    with FileSink(target, overwrite=force, inputs=[source]) as sink:
        write_map(p2m, sink, to.value if to else kind_for(target))
        sink.commit()
    say(f"{target}: {p2m.runs.total:,} pages of {p2m.size:,} entries")
