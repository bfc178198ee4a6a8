"""Progress for people and for programs: a bar on a terminal, a line now and then elsewhere, JSON on request."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING

from dumpxlate.cli.guard import say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dumpxlate.progress import Progress

__all__ = ["ProgressStyle", "show_progress"]

_BAR_EVERY = 0.1
_LINE_EVERY = 10.0
_JSON_EVERY = 0.5


class ProgressStyle(StrEnum):
    """How to show progress."""

    AUTO = "auto"
    BAR = "bar"
    LINES = "lines"
    JSON = "json"
    NONE = "none"


@contextmanager
def show_progress(style: ProgressStyle) -> Iterator[Callable[[Progress], None] | None]:
    """Give a callback that shows progress on stderr."""
    if style is ProgressStyle.AUTO:
        style = ProgressStyle.BAR if sys.stderr.isatty() else ProgressStyle.LINES
    if style is ProgressStyle.BAR:
        with _bar() as callback:
            yield callback
    elif style is ProgressStyle.LINES:
        yield _every(_LINE_EVERY, _line, at_once=False)
    elif style is ProgressStyle.JSON:
        yield _every(_JSON_EVERY, _json, at_once=True)
    else:
        yield None


@contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar

    with Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        auto_refresh=False,  # needs a thread, and a process with threads is not shared out to others
    ) as bar:
        task = bar.add_task("", total=None)

        def update(progress: Progress) -> None:
            bar.update(task, description=progress.phase, completed=progress.done, total=progress.total or None)
            bar.refresh()

        yield _every(_BAR_EVERY, update, at_once=True)


def _every(seconds: float, show: Callable[[Progress], None], *, at_once: bool) -> Callable[[Progress], None]:
    """Show a moment now and then, and the last one if any was shown before."""
    due = 0.0 if at_once else time.monotonic() + seconds
    shown = at_once

    def update(progress: Progress) -> None:
        nonlocal due, shown
        now = time.monotonic()
        if now >= due or (shown and progress.done == progress.total):
            due, shown = now + seconds, True
            show(progress)

    return update


def _line(progress: Progress) -> None:
    known = progress.total or not progress.done
    far = f"{progress.done / (progress.total or 1):.0%}" if known else f"{progress.done >> 20:,} MiB"
    left = "" if progress.remaining is None else f", {progress.remaining:.0f} s left"
    say(f"{progress.phase}: {far}, {progress.rate / (1 << 20):.0f} MiB/s{left}")


def _json(progress: Progress) -> None:
    import json

    say(
        json.dumps(
            {
                "schema": "dumpxlate.progress/1",
                "phase": progress.phase,
                "done": progress.done,
                "total": progress.total,
                "rate": round(progress.rate),
                "eta_s": None if progress.remaining is None else round(progress.remaining, 1),
            }
        )
    )
