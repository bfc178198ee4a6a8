"""The command line: ``dumpxlate`` and ``python -m dumpxlate``."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    # Imports make a hundred thousand objects that stay: looking for garbage there takes a tenth of a short command.
    gc.set_threshold(100_000)
    code: list[int] = []
    if not atexit._ncallbacks():  # noqa: SLF001 - the first that is registered comes last: another one would have no turn
        atexit.register(_end, code)
    # numpy starts a thread a processor for linear algebra, which nothing here is; they spin when they are made.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with _quiet_imports():
        from dumpxlate.cli.app import application
        from dumpxlate.cli.guard import catch_termination, open_streams, written

    open_streams()
    catch_termination()
    try:
        with written():
            application(sys.argv[1:])(prog_name="dumpxlate")
    except SystemExit as end:
        if isinstance(end.code, int):
            code.append(end.code)
        raise


@contextlib.contextmanager
def _quiet_imports() -> Iterator[None]:
    """Let Ctrl-C just end the process: there is nothing to tidy up yet, and nobody to report an exception."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, before)


def _end(code: Sequence[int]) -> None:
    """End the process where its exit code is known: taking the interpreter apart would take another 8 to 20 ms."""
    if code:
        sys.stderr.flush()
        os._exit(code[-1])
