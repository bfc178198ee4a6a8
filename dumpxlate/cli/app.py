"""The application: its commands stand in modules of their own, which are imported when they are wanted."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Annotated

import typer

from dumpxlate.cli.guard import debugging
from dumpxlate.cli.options import Command

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["application"]

_COMMANDS = {
    "info": "info_commands.info",
    "convert": "convert_command.convert",
    "compare": "verify_commands.compare",
    "check": "verify_commands.check",
    "checksum": "verify_commands.checksum",
    "map": "verify_commands.map_",
    "regs": "guest_commands.regs",
    "vmcoreinfo": "guest_commands.vmcoreinfo",
    "read": "memory_commands.read",
    "translate": "memory_commands.translate",
    "p2m": "p2m_commands.p2m_app",
    "qemu-profile": "qemu_commands.qemu_profile",
    "formats": "info_commands.formats",
}
"""Where each command is, in the order in which help lists them: a function, or an application of its own."""


def application(words: Sequence[str] = ()) -> typer.Typer:
    """Make the application.

    Args:
        words: the command line. Making a command costs milliseconds, most of them for its options, so if a command is
            named there, only that one is made.
    """
    app = typer.Typer(
        help="Read any guest memory dump and re-emit it as any other.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    named = next((word for word in words if not word.startswith("-")), None)
    for name in [named] if named in _COMMANDS else _COMMANDS:
        module, _, attribute = _COMMANDS[name].partition(".")
        command = getattr(import_module(f"dumpxlate.cli.{module}"), attribute)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name, cls=Command)(command)
    return app


def _version(wanted: bool) -> None:
    if wanted:
        from dumpxlate import __version__

        typer.echo(f"dumpxlate {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    debugging(on=debug)
