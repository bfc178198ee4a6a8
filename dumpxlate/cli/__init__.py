"""The command line: ``dumpxlate`` and ``python -m dumpxlate``."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    from dumpxlate.cli.app import application
    from dumpxlate.cli.guard import catch_termination

    catch_termination()
    application(sys.argv[1:])(prog_name="dumpxlate")
