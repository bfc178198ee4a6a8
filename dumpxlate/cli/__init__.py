"""The command line: ``dumpxlate`` and ``python -m dumpxlate``."""

from __future__ import annotations

import atexit
import gc
import os
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    # Imports make a hundred thousand objects that stay: looking for garbage there takes a tenth of a short command, and
    # so does the last look at its end.
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
    # numpy starts a thread a processor for linear algebra, which nothing here is; they spin when they are made.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from dumpxlate.cli.app import application
    from dumpxlate.cli.guard import catch_termination, open_streams, written

    open_streams()
    catch_termination()
    with written():
        application(sys.argv[1:])(prog_name="dumpxlate")
