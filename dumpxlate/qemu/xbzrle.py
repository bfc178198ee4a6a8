"""XBZRLE: what changed in a page since it was sent before (qemu migration/xbzrle.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpxlate.errors import CorruptPageError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["apply_delta"]


def apply_delta(page: bytearray, delta: memoryview | bytes) -> None:
    """Change a page: lengths of what stays and of what is new by turns, the new bytes behind each second one.

    Raises:
        CorruptPageError: the changes leave the page, or end too early.
    """
    at = into = 0
    while at < len(delta):
        skip, at = _number(delta, at)
        into += skip
        length, at = _number(delta, at)
        if into + length > len(page) or at + length > len(delta):
            raise CorruptPageError(f"xbzrle: {length} bytes at {into} of {len(page)}", codec="xbzrle")
        page[into : into + length] = delta[at : at + length]
        at, into = at + length, into + length


def _number(delta: Sequence[int] | memoryview | bytes, at: int) -> tuple[int, int]:
    """Read a number of 7 bits, or of 14 in two bytes, the lower ones first; gives what follows it."""
    if at >= len(delta) or (delta[at] & 0x80 and at + 1 >= len(delta)):
        raise CorruptPageError("xbzrle: ends inside a length", codec="xbzrle")
    if not delta[at] & 0x80:
        return delta[at], at + 1
    return delta[at] & 0x7F | (delta[at + 1] & 0x7F) << 7, at + 2
