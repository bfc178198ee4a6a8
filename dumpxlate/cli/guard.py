"""From errors to one line and an exit code.

==== ===========================================================================================================
code meaning
==== ===========================================================================================================
0    done and complete
1    the answer is "no": different, a check failed, an address is unmapped or its page has no content; or the target
     cannot carry everything, or does not hold what was written to it
2    usage, a map that does not fit, or a file that cannot be opened, recognised or written
3    recognised, not supported
4    output written but incomplete (bad pages, salvage)
5    input corrupt, nothing written
130  interrupted (143: terminated, 129: hung up)
==== ===========================================================================================================
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn, ParamSpec

import typer

from dumpxlate import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

__all__ = [
    "EXIT_INCOMPLETE",
    "EXIT_NO",
    "EXIT_USAGE",
    "catch_termination",
    "debugging",
    "guarded",
    "open_streams",
    "say",
    "written",
]

EXIT_NO = 1
EXIT_USAGE = 2
EXIT_INCOMPLETE = 4
_SIGNALS = 128

# The first class that fits counts.
_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (errors.LossyConversionError, EXIT_NO),
    (errors.VerificationError, EXIT_NO),
    (errors.TranslationError, EXIT_NO),
    (errors.PageUnavailableError, EXIT_NO),
    (errors.UnsupportedFeatureError, 3),
    (errors.MissingCodecError, 3),
    (errors.CorruptDumpError, 5),
    (KeyboardInterrupt, 130),
)

P = ParamSpec("P")


class _Debug:
    on = False


def debugging(*, on: bool) -> None:
    """Show tracebacks instead of one line."""
    _Debug.on = on


def say(message: str) -> None:
    """Write a line for people: to stderr, since stdout carries results only."""
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Turn what a command raises into one line on stderr and an exit code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (errors.DumpxlateError, OSError, ValueError, KeyboardInterrupt) as error:
            if _Debug.on:
                raise
            raise typer.Exit(_reported(error)) from None
        except SystemExit as error:
            _say_notes(error)
            raise

    return run


@contextlib.contextmanager
def written() -> Iterator[None]:
    """Do something and have all of it written to stdout; what cannot be is an error like any other.

    Raises:
        SystemExit: it cannot.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        if _Debug.on:
            raise
        raise SystemExit(_reported(error)) from None


def _reported(error: BaseException) -> int:
    """Say what is wrong; gives the exit code."""
    from dumpxlate.describe.dump import printable

    try:
        sys.stdout.flush()
    except OSError:
        # Nobody takes what is left, and at the end the interpreter would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, OSError) and not error.filename:
            error.filename = "stdout"
    say(f"dumpxlate: {printable(_words(error))}")
    _say_notes(error)
    return next((code for kind, code in _CODES if isinstance(error, kind)), EXIT_USAGE)


def _say_notes(error: BaseException) -> None:
    """Say what became of files: whoever handled the error on its way noted it."""
    from dumpxlate.describe.dump import printable

    for note in getattr(error, "__notes__", ()):
        say(f"dumpxlate: {printable(note)}")


def _words(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, OSError) and not isinstance(error, errors.DumpxlateError):
        where = f"{error.filename or repr('')}: " if error.filename is not None else ""
        return f"{where}{(error.strerror or str(error)).lower()}"
    return str(error)


def open_streams() -> None:
    """Put something where stdout or stderr is closed: the next file that is opened would take its place.

    Writing to such a stdout fails, as elsewhere; what such a stderr is told is lost.
    """
    if sys.stdout is None:
        _place(os.O_RDONLY, 1)
        sys.stdout = open(1, "w", encoding="utf-8")  # noqa: SIM115 (a descriptor; open as long as we are)
    if sys.stderr is None:
        _place(os.O_WRONLY, 2)
        sys.stderr = open(2, "w", encoding="utf-8")  # noqa: SIM115


def _place(flags: int, number: int) -> None:
    """Open the null device as a certain descriptor."""
    opened = os.open(os.devnull, flags)
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)


def catch_termination() -> None:
    """Let SIGTERM and SIGHUP unwind like an exit, so that temporary files go; nohup's children go on."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(_SIGNALS + number)

    for each in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(each) is signal.SIG_DFL:
            signal.signal(each, leave)
