"""What is asked of a conversion in one pass."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from dumpxlate.codecs.workers import ahead
from dumpxlate.io.sink import PipeSink
from dumpxlate.progress import Meter
from dumpxlate.writing.destination import FLATTENED, open_destination
from dumpxlate.writing.report import Report

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Generator, Iterator

    from dumpxlate.format import Writer
    from dumpxlate.io.pipe import Pipe
    from dumpxlate.progress import Progress
    from dumpxlate.writing.destination import Destination

__all__ = ["Job"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Job:
    """A conversion in one pass: fields as ``dumpxlate.streaming.convert.convert_pipe`` takes them."""

    pipe: Pipe
    target: str | os.PathLike[str] | PipeSink
    format: str
    flattened: bool
    allow_loss: bool
    salvage: bool
    overwrite: bool
    threads: int | None
    progress: Callable[[Progress], None] | None

    @contextlib.contextmanager
    def drawn(self, items: Iterator[_T]) -> Generator[Iterator[_T]]:
        """Have what comes from the pipe drawn ahead, by a thread of its own unless there shall be none."""
        if self.threads == 0:
            yield items
            return
        with contextlib.closing(ahead(items, self.pipe.stop)) as drawn:
            yield drawn

    def destination(self, writer: Writer | None = None) -> contextlib.AbstractContextManager[Destination]:
        """Open the output, and what goes beside it where a writer says so."""
        return open_destination(
            self.target, writer, flattened=self.flattened, overwrite=self.overwrite, inputs=[self.pipe.name]
        )

    def meter(self) -> Meter:
        """Start to count; how much will come, nobody knows."""
        return Meter("convert", 0, self.progress)

    def report(self) -> Report:
        """Begin a report."""
        name = self.target.name if isinstance(self.target, PipeSink) else str(self.target)
        container = FLATTENED if self.flattened else None
        return Report(self.pipe.name, name, self.format, container=container, streamed=True)
