"""The application: its commands stand in modules of their own."""

from __future__ import annotations

from typing import Annotated

import typer

from dumpxlate.cli.convert_command import convert
from dumpxlate.cli.guard import debugging
from dumpxlate.cli.guest_commands import regs, vmcoreinfo
from dumpxlate.cli.info_commands import formats, info
from dumpxlate.cli.memory_commands import read, translate
from dumpxlate.cli.p2m_commands import p2m_app
from dumpxlate.cli.verify_commands import check, compare, map_

__all__ = ["app"]

app = typer.Typer(
    help="Read any guest memory dump and re-emit it as any other.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(info)
app.command()(convert)
app.command()(compare)
app.command()(check)
app.command("map")(map_)
app.command()(regs)
app.command()(vmcoreinfo)
app.command()(read)
app.command()(translate)
app.command()(formats)
app.add_typer(p2m_app, name="p2m")


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
