"""Conversions that go on where they were interrupted.

With the output grows a journal (:mod:`dumpxlate.io.journal`). Now and then what was written is made durable, and then a
line of the journal says how many pages that were, and what the writer must know to go on behind them. The next run that
would write the same bytes, by its input and options, cuts the output to the last such point and goes on.
"""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from dumpxlate.errors import OutputError, UnsupportedFeatureError
from dumpxlate.format import Resumable
from dumpxlate.io.journal import Journal
from dumpxlate.io.sink import PipeSink, sync_folder
from dumpxlate.io.temporary import beside
from dumpxlate.pages import PageState
from dumpxlate.writing.destination import Named
from dumpxlate.writing.ring import Withholding

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from dumpxlate.arrays import UInt8s
    from dumpxlate.format import Writer
    from dumpxlate.io.sink import FileSink

__all__ = ["EVERY_BYTES", "EVERY_SECONDS", "Resumption", "resumption"]

EVERY_BYTES = 256 << 20
"""Output between two points from which a conversion can go on."""

EVERY_SECONDS = 10.0
"""Time between them, where output is slow."""

_SCHEMA = "dumpxlate.journal/1"


def resumption(
    target: str | os.PathLike[str] | PipeSink, writer: Writer, work: Mapping[str, Any], *, flattened: bool
) -> Resumption:
    """Prepare a conversion that can go on later.

    Args:
        target: the output.
        writer: what writes it.
        work: what the conversion is, as plain values; one of another description does not go on from it.
        flattened: whether the output is wrapped for a pipe.

    Raises:
        UnsupportedFeatureError: there is no going on in such an output; says why.
    """
    why = ""
    if isinstance(target, PipeSink):
        why = "what went into a pipe is gone"
    elif flattened:
        why = "records of a flattened file wait for each other: convert first, and flatten then"
    if why or isinstance(target, PipeSink):
        raise UnsupportedFeatureError(f"--resume: {why}", feature="resume")
    if not isinstance(writer, Resumable):
        raise UnsupportedFeatureError("--resume: this format's writer cannot go on in a file", feature="resume")
    return Resumption(Path(target), writer, {"schema": _SCHEMA, **work})


class Resumption:
    """The points that a conversion can go on from: made while it runs, used by the next one.

    Args:
        target: path of the output.
        writer: what writes it.
        work: what the conversion is.
    """

    def __init__(self, target: Path, writer: Resumable, work: Mapping[str, Any]) -> None:
        self.counts: Counter[str] = Counter()
        self.pages = 0
        self._path = target.absolute().with_name(beside(target, "journal"))
        self.named = Named(beside(target, "partial"), keep=True, again=self._path.exists())
        self._writer = writer
        self._work = work
        self._waiting: UInt8s = np.empty(0, np.uint8)
        self._sink: FileSink | None = None
        self._journal: Journal | None = None

    def start(self, sink: FileSink) -> int:
        """Begin, or go on; gives the pages that are in the output already.

        Raises:
            OutputError: an earlier conversion of other things was interrupted under this name.
        """
        self._sink = sink
        journal = self._journal = Journal(self._path)
        self._check(journal, sink)
        point = journal.last if journal.work else None
        if point is None or sink.size() < point["position"]:
            sink.go_on(0)
            journal.begin(self._work)
            sync_folder(self._path.parent)
            self._writer.begin(sink)
        else:
            self.pages, self.counts = int(point["pages"]), Counter(point["counts"])
            sink.go_on(int(point["position"]))
            self._writer.restore(sink, self.pages, point["state"])
        self._marked()
        return self.pages

    def _check(self, journal: Journal, sink: FileSink) -> None:
        """Refuse to go on with a conversion that would write something else."""
        if journal.work is None:
            return
        names = self._work.keys() | journal.work.keys()
        differ = sorted(name for name in names if self._work.get(name) != journal.work.get(name))
        if differ:
            self._sink = None  # nothing of it is ours
            journal.close()
            raise OutputError(
                f"was left by another conversion ({', '.join(differ)} differ): to begin anew, remove it and "
                f"{self._path.name}",
                path=str(sink.partial),
            )

    def wrote(self, pages: int, states: UInt8s, counts: Counter[str]) -> None:
        """Take notice of a batch, and make a point behind it when it is time.

        Args:
            pages: pages that the writer was given so far.
            states: states of those of the batch.
            counts: pages so far, by state.
        """
        assert self._sink
        waiting = self._writer.waiting if isinstance(self._writer, Withholding) else 0
        self._waiting = np.concatenate((self._waiting, states))[-waiting:] if waiting else self._waiting[:0]
        due = self._sink.position - self._position >= EVERY_BYTES or time.monotonic() - self._time >= EVERY_SECONDS
        if due and pages - waiting > self.pages:
            self._mark(pages - waiting, counts)

    def _mark(self, pages: int, counts: Counter[str]) -> None:
        """Make durable what was written, and then say so."""
        assert self._sink
        assert self._journal
        self._sink.sync()
        waiting = Counter(PageState(state).name.lower() for state in self._waiting.tolist())
        self._journal.add(
            {
                "pages": pages,
                "position": self._sink.position,
                "counts": dict(counts - waiting),
                "state": dict(self._writer.state()),
            }
        )
        self.pages = pages
        self._marked()

    def _marked(self) -> None:
        assert self._sink
        self._position, self._time = self._sink.position, time.monotonic()

    def remove(self) -> None:
        """Remove the journal: the output has its name."""
        if self._journal:
            self._journal.remove()
            self._journal = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the journal; where something went wrong, say what stays and what it is good for."""
        if self._sink is None:
            return
        journal, output = self._journal, self._sink.partial
        if self.pages and output and value and journal:
            journal.close()
            value.add_note(f"{output} and {self._path.name} stay: the same command goes on behind {self.pages:,} pages")
            return
        # There is nothing worth keeping.
        for path, remove in ((output, _remover(output)), (self._path, journal and journal.remove)):
            try:
                if remove:
                    remove()
            except OSError:
                if value is None:
                    raise
                value.add_note(f"{path} could not be removed: remove it")


def _remover(path: Path | None) -> Callable[[], None] | None:
    return partial(path.unlink, missing_ok=True) if path else None
