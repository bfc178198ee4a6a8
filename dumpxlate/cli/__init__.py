"""The command line: ``dumpxlate`` and ``python -m dumpxlate``."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    from dumpxlate.cli.app import app
    from dumpxlate.cli.guard import catch_termination

    catch_termination()
    app(prog_name="dumpxlate")
