"""Where an output goes: the file or pipe, the container around it, and the small file beside it."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dumpxlate.format import Accompanied
from dumpxlate.io.sink import FileSink, PipeSink
from dumpxlate.io.temporary import fresh_name
from dumpxlate.registry import find_wrapper

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dumpxlate.format import Writer
    from dumpxlate.io.sink import Output

__all__ = ["FLATTENED", "Destination", "Named", "open_destination"]

FLATTENED = "flattened"


class Named(NamedTuple):
    """What an output is called before it is complete.

    Attributes:
        name: in the target's folder.
        keep: whether one that is there is taken over, and stays when the writing fails.
        again: whether an earlier run may have got so far that what goes beside the output has its name.
    """

    name: str
    keep: bool = False
    again: bool = False

    @classmethod
    def fresh(cls, target: str | os.PathLike[str]) -> Named:
        """Make up a name that nobody has."""
        return cls(fresh_name(Path(target)))


@dataclass(frozen=True, slots=True)
class Destination:
    """An output that is being written.

    Attributes:
        outer: the file or pipe itself.
        sink: what the writer writes to: that, or the container around it.
        companion: the file beside it, if there is one.
    """

    outer: FileSink | PipeSink
    sink: Output
    companion: FileSink | None = None

    def complete(self, writer: Writer) -> None:
        """Write what ends the output and what goes beside it, and make both durable."""
        self.sink.complete()
        if self.companion and isinstance(writer, Accompanied):
            self.companion.append([writer.companion()])
            self.companion.complete()

    def commit(self) -> None:
        """Give the names: what goes beside an output is of no use without it, and does no harm either."""
        if self.companion:
            self.companion.commit()
        try:
            self.sink.commit()
        except BaseException:
            if self.companion:
                self.companion.withdraw()
            raise


@contextlib.contextmanager
def open_destination(
    target: str | os.PathLike[str] | PipeSink,
    writer: Writer | Accompanied | None,
    *,
    flattened: bool,
    overwrite: bool,
    inputs: Sequence[str],
    named: Named | None = None,
) -> Iterator[Destination]:
    """Open an output, and the file that goes beside it where the format has one.

    Args:
        target: path, or a pipe.
        writer: what will write; None where it is no writer of a format.
        flattened: put makedumpfile's container for pipes around it.
        overwrite: replace existing files.
        inputs: files that must not be the target.
        named: name to have before it is complete, where somebody must be able to open it then.

    Raises:
        OutputError: the target exists, is the input, or is no regular file.
    """
    if isinstance(target, PipeSink):
        with target:
            yield Destination(target, _wrapped(target) if flattened else target)
        return
    partial, keep, again = (named.name, named.keep, named.again) if named else (None, False, False)
    with contextlib.ExitStack() as open_files:
        outer = FileSink(target, overwrite=overwrite, inputs=inputs, partial=partial, keep=keep)
        open_files.enter_context(outer)
        companion = None
        if isinstance(writer, Accompanied):
            suffix = writer.companion_suffix
            name = partial and partial + suffix
            beside = f"{os.fspath(target)}{suffix}"
            companion = FileSink(beside, overwrite=overwrite or again, inputs=inputs, partial=name, reuse=keep)
            open_files.enter_context(companion)
            companion.go_on(0)  # an earlier run may have left one
        yield Destination(outer, _wrapped(outer) if flattened else outer, companion)


def _wrapped(sink: FileSink | PipeSink) -> Output:
    """Put the container for pipes around an output."""
    wrapped = find_wrapper(FLATTENED).wrap(sink)
    assert wrapped is not None
    return wrapped
