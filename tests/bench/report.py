"""Results as lines of text and as a plot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True)
class Row:
    """What one case gave: medians in seconds, memory in bytes."""

    case: str
    ours: float
    peer: float
    ratio: float
    target: float
    anonymous: int
    resident: int
    peer_name: str
    facts: str = ""


def table(rows: Sequence[Row], *, head: bool = True) -> str:
    """One line a case."""
    lines = [
        f"{'case':<20}{'ours s':>9}{'peer s':>9}{'ratio':>8}{'target':>8}{'anon MiB':>10}{'rss MiB':>9}  peer"
    ] * head
    for row in rows:
        lines.append(
            f"{row.case:<20}{row.ours:>9.2f}{row.peer:>9.2f}{row.ratio:>8.2f}{row.target:>8.2f}"
            f"{row.anonymous / MIB:>10.0f}{row.resident / MIB:>9.0f}  {row.peer_name}"
            + (f"; {row.facts}" if row.facts else "")
        )
    return "\n".join(lines)


def write_plot(path: Path, rows: Sequence[Row]) -> None:
    """Draw a bar a case: how many times as fast as the peer, as a share of what was aimed at."""
    width, left, high = 760, 170, 22
    scale = (width - left - 110) / max([2.0, *(row.ratio / row.target for row in rows)])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{len(rows) * high + 50}">',
        "<style>text { font: 12px sans-serif }</style>",
        f'<rect width="{width}" height="{len(rows) * high + 50}" fill="white"/>',
    ]
    for number, row in enumerate(rows):
        share, y = row.ratio / row.target, 10 + number * high
        colour = "#2a7f3f" if share >= 1 else "#b5651d"
        parts += [
            f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(row.case)}</text>',
            f'<rect x="{left}" y="{y}" width="{share * scale:.1f}" height="{high - 6}" fill="{colour}"/>',
            f'<text x="{left + share * scale + 5:.1f}" y="{y + 13}">{row.ratio:.2f} of {row.target:g}</text>',
        ]
    foot = 10 + len(rows) * high
    parts += [
        f'<line x1="{left + scale:.1f}" y1="4" x2="{left + scale:.1f}" y2="{foot}" stroke="black"/>',
        f'<text x="{left + scale:.1f}" y="{foot + 14}" text-anchor="middle">target</text>',
        f'<text x="{left}" y="{foot + 32}">wall-time ratio peer / dumpxlate, as a share of its target</text>',
        "</svg>",
    ]
    path.write_text("\n".join(parts) + "\n")
