"""Entries of a page index that cannot be right: Xen writes pfns in ascending order, each once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dumpxlate.arrays import Bools, Int64s

__all__ = ["out_of_order"]

_MOST_ROUNDS = 48
_MOST_SHARE = 8
"""An index of which one in so many entries is out of order is in another order: some tool's own."""


def out_of_order(pfn: Int64s) -> Bools:
    """Tell which entries must go so that the rest ascends: those that stand farthest from where they would belong.

    Of two entries in the wrong order next to each other nothing tells which one is wrong: both go.

    Args:
        pfn: the entries, shape (n,).

    Returns:
        None of them if they ascend, or are in another order altogether.
    """
    wrong = np.zeros(len(pfn), bool)
    falls = int((pfn[1:] < pfn[:-1]).sum())
    if not falls or falls * _MOST_SHARE > len(pfn):
        return wrong
    rows = np.arange(len(pfn))
    for _ in range(_MOST_ROUNDS):
        kept = pfn[rows]
        fall = kept[1:] < kept[:-1]
        if not fall.any():
            return wrong
        moved = np.abs(np.argsort(np.argsort(kept, kind="stable"), kind="stable") - np.arange(len(kept)))
        far = 2 * moved >= moved.max()
        # A neighbour that only made room for it goes too where both moved alike.
        beside = np.append(fall, False) | np.append(False, fall)
        gone = far & beside if (far & beside).any() else far
        wrong[rows[gone]] = True
        rows = rows[~gone]
        if int(wrong.sum()) * _MOST_SHARE > len(pfn):
            break
    return np.zeros(len(pfn), bool)
