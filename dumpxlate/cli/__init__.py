"""The command line: ``dumpxlate`` and ``python -m dumpxlate``."""

from __future__ import annotations

import gc
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    # Imports make a hundred thousand objects that stay: looking for garbage there takes a tenth of a short command.
    gc.set_threshold(100_000)
    from dumpxlate.cli.app import application
    from dumpxlate.cli.guard import catch_termination

    catch_termination()
    application(sys.argv[1:])(prog_name="dumpxlate")
