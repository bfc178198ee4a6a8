"""What a case is."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["US", "AbsentError", "Case", "Command", "Prepared", "python"]

US = (sys.executable, "-c", "from dumpxlate.cli import main; main()")
"""What the script does that pip installs."""

Command: TypeAlias = tuple[str, ...]


class AbsentError(Exception):
    """The peer of a case is not on this machine; the message says which."""


@dataclass(frozen=True)
class Prepared:
    """A case ready to run.

    Attributes:
        ours: our command; its output must be right before its time counts.
        peers: commands of the peer by what they are; the fastest counts.
        check: compares our output with the guest, and the peer's with ours; gets what ours printed.
        outputs: files to remove before each run.
        stdin: what the peers read from their standard input.
        facts: what else is to be reported, with the outputs of all commands in place: sizes, say.
    """

    ours: Command
    peers: dict[str, Command]
    check: Callable[[str], None]
    outputs: tuple[Path, ...] = ()
    stdin: Path | None = None
    facts: Callable[[], str] | None = None


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: how to ask for it.
        peer: what it is measured against, in words.
        target: wall-time ratio peer/ours that is wanted.
        prepare: makes the inputs in a folder, for a guest of so many bytes.
        grows: whether the size of the guest matters.
    """

    name: str
    peer: str
    target: float
    prepare: Callable[[Path, int], Prepared]
    grows: bool = True


def python(code: str, *arguments: object, interpreter: str = sys.executable) -> Command:
    """A command that runs a few lines of Python."""
    return (interpreter, "-c", code, *map(str, arguments))
