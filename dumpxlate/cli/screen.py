"""Where tables and lines for people go: rich lays them out on a terminal, and a file or a pipe gets plain columns.

rich takes a sixth of a short command to import. Where no terminal is, there is nothing for it to do: no width to keep
to, no colours.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.table import Table as RichTable

__all__ = ["Pieces", "Screen", "Table", "console", "facts", "listing"]

Pieces: TypeAlias = "Sequence[tuple[str, str]]"
"""A line in pieces of different styles: text and style of each."""

_FILE_WIDTH = 80
"""What a file is laid out for where something must be: registers side by side."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under a title; ``columns`` are their names, none for a table of names and values."""

    title: str
    rows: tuple[tuple[str, ...], ...]
    columns: tuple[str, ...] = ()


class Screen(Protocol):
    """What is printed on."""

    @property
    def width(self) -> int:
        """Characters a line."""
        ...

    @property
    def is_terminal(self) -> bool:
        """Whether somebody looks at it."""
        ...

    def print(self, shown: str | Table | Pieces = "", *, style: str = "") -> None:
        """Print a line, or a table."""
        ...


def console(*, width: int = 0) -> Screen:
    """Give stdout, as a terminal of at least that width or as a file."""
    return _Terminal(width) if sys.stdout.isatty() or "FORCE_COLOR" in os.environ else _File()


def facts(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    """Make a table of names and values."""
    return Table(title, tuple(rows))


def listing(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Make a table with a column for each name."""
    return Table(title, tuple(map(tuple, rows)), tuple(columns))


class _File:
    """Stdout as a file or a pipe: other programs read it, so that no cell is folded."""

    width = _FILE_WIDTH
    is_terminal = False

    def print(self, shown: str | Table | Pieces = "", *, style: str = "") -> None:
        del style
        if isinstance(shown, Table):
            shown = "\n".join((shown.title, *_lines(shown)))
        elif not isinstance(shown, str):
            shown = "".join(text for text, _ in shown)
        sys.stdout.write(f"{shown}\n")


class _Terminal:
    """Stdout as a terminal."""

    def __init__(self, width: int) -> None:
        from rich.console import Console

        self._console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._console.width = max(self._console.width, width)
        self.width = self._console.width
        self.is_terminal = self._console.is_terminal

    def print(self, shown: str | Table | Pieces = "", *, style: str = "") -> None:
        if isinstance(shown, Table):
            self._console.print(_rich(shown))
        elif isinstance(shown, str):
            self._console.print(shown, style=style or None)
        else:
            from rich.text import Text

            self._console.print(Text.assemble(*shown))


def _lines(table: Table) -> list[str]:
    """Lay a table out in plain columns; a cell may have several lines."""
    rows = [table.columns, *table.rows] if table.columns else table.rows
    lines = [line for row in rows for line in zip_longest(*(cell.split("\n") for cell in row), fillvalue="")]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    return [
        "".join(f"  {cell}{' ' * (width - _width(cell))}  " for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def _width(text: str) -> int:
    """Give the columns that a text takes: names in a guest may have letters that take two, or none."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text)


def _rich(table: Table) -> RichTable:
    """Make the table that rich prints."""
    from rich.table import Table as RichTable

    made = RichTable(
        title=table.title,
        title_justify="left",
        show_header=bool(table.columns),
        header_style="dim",
        box=None,
        padding=(0, 2, 0, 2),
    )
    if table.columns:
        for column in table.columns:
            made.add_column(column, overflow="fold")
    else:
        made.add_column(style="dim", no_wrap=True)
        made.add_column(overflow="fold")
    for row in table.rows:
        made.add_row(*row)
    return made
