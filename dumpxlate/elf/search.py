"""Where bytes stand among others."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["places"]


def places(data: bytes, pattern: bytes, start: int = 0, stop: int = sys.maxsize) -> Iterator[int]:
    """Give every offset at which a pattern stands, ascending; those that overlap too.

    Args:
        data: where.
        pattern: what, one byte at least.
        start: where to begin.
        stop: where to end: it stands before that as a whole.
    """
    at = data.find(pattern, start, stop)
    while at >= 0:
        yield at
        at = data.find(pattern, at + 1, stop)
