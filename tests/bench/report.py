"""Results as lines of text and as plots."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True)
class Row:
    """What one case gave: medians in seconds, memory in bytes, the guest in MiB (None where any will do)."""

    case: str
    size: int | None
    ours: float
    peer: float
    ratio: float
    target: float
    anonymous: int
    resident: int
    peer_name: str
    facts: str = ""

    @property
    def title(self) -> str:
        """The case and the guest."""
        return f"{self.case} {self.size / 1024:g} GiB" if self.size else self.case


def table(rows: Sequence[Row], *, head: bool = True) -> str:
    """One line a case."""
    lines = [
        f"{'case':<25}{'ours s':>9}{'peer s':>9}{'ratio':>8}{'target':>8}{'anon MiB':>10}{'rss MiB':>9}  peer"
    ] * head
    for row in rows:
        lines.append(
            f"{row.title:<25}{row.ours:>9.2f}{row.peer:>9.2f}{row.ratio:>8.2f}{row.target:>8.2f}"
            f"{row.anonymous / MIB:>10.0f}{row.resident / MIB:>9.0f}  {row.peer_name}"
            + (f"; {row.facts}" if row.facts else "")
        )
    return "\n".join(lines)


def write_plot(path: Path, rows: Sequence[Row]) -> None:
    """Draw a bar a case: how many times as fast as the peer, as a share of what was aimed at."""
    width, left, high = 760, 190, 22
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
            f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(row.title)}</text>',
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


@dataclass(frozen=True)
class Curve:
    """What one command took over sizes: pairs of GiB and seconds, or MiB."""

    name: str
    points: Sequence[tuple[float, float]]


def write_curves(path: Path, panels: Sequence[tuple[str, Sequence[Curve]]]) -> None:
    """Draw curves over the size of the guest, both axes logarithmic, one panel beside the other."""
    width, height = 380, 340
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width * len(panels) + 130}" height="{height}">',
        "<style>text { font: 12px sans-serif } polyline { fill: none; stroke-width: 2 }</style>",
        f'<rect width="{width * len(panels) + 130}" height="{height}" fill="white"/>',
    ]
    for number, (title, curves) in enumerate(panels):
        parts += _panel(title, curves, Box(50 + number * width, 30, width - 70, height - 80))
    for number, curve in enumerate(panels[0][1]):
        y = 40 + number * 18
        parts.append(f'<text x="{width * len(panels)}" y="{y}" fill="{_colour(number)}">{escape(curve.name)}</text>')
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")


@dataclass(frozen=True)
class Box:
    """Where a panel is."""

    left: float
    top: float
    width: float
    height: float


def _panel(title: str, curves: Sequence[Curve], box: Box) -> list[str]:
    """One pair of axes, with a line at each power of ten, and of two from one size to the next but three."""
    sizes = [size for curve in curves for size, _ in curve.points]
    values = [value for curve in curves for _, value in curve.points]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    first, last = math.log2(min(sizes)), math.log2(max(sizes))

    def x(size: float) -> float:
        return box.left + (math.log2(size) - first) / (last - first) * box.width

    def y(value: float) -> float:
        return box.top + box.height - (math.log10(value) - low) / (high - low) * box.height

    parts = [f'<text x="{box.left}" y="{box.top - 12}">{escape(title)}</text>']
    for power in range(low, high + 1):
        at = y(10.0**power)
        parts.append(f'<path d="M{box.left} {at:.1f}h{box.width}" stroke="#ccc"/>')
        parts.append(f'<text x="{box.left - 5}" y="{at + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    for size, name in ((1, "1 GiB"), (16, "16"), (256, "256"), (1024, "1 TiB"), (16384, "16")):
        if min(sizes) <= size <= max(sizes) * 1.1:
            at = x(min(size, max(sizes)))
            parts.append(f'<path d="M{at:.1f} {box.top}v{box.height}" stroke="#ccc"/>')
            parts.append(f'<text x="{at:.1f}" y="{box.top + box.height + 18}" text-anchor="middle">{name}</text>')
    for number, curve in enumerate(curves):
        line = " ".join(f"{x(size):.1f},{y(value):.1f}" for size, value in curve.points)
        parts.append(f'<polyline points="{line}" stroke="{_colour(number)}"/>')
    return parts


def _colour(number: int) -> str:
    return ("#2a7f3f", "#b5651d", "#2255aa", "#aa2255", "#777700", "#008888")[number % 6]
