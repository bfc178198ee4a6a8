"""Which parts of a sparse file hold data, by what the file system says."""

from __future__ import annotations

import errno
import os
from array import array
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dumpxlate.arrays import Int64s

__all__ = ["runs_of_data"]

_MOST_EDGES = 1 << 20


def runs_of_data(fd: int, size: int, at: int = 0) -> tuple[Int64s, Int64s]:
    """Ask the file system for the parts of a sparse file that are no holes; all of it where it cannot tell.

    Behind so many holes as would take seconds to list, the rest counts as data.

    Args:
        fd: the file.
        size: where to end.
        at: where to begin.
    """
    found = os.fstat(fd)
    if found.st_blocks * 512 >= found.st_size:
        return np.zeros(1, np.int64), np.array([size], np.int64)
    edges = array("q")
    seek, note = os.lseek, edges.append  # thousands of calls in a sparse core
    try:
        while at < size and len(edges) < _MOST_EDGES:
            note(seek(fd, at, os.SEEK_DATA))
            at = seek(fd, edges[-1], os.SEEK_HOLE)
            note(at)
        if at < size:
            edges.extend((at, size))
    except OSError as error:
        if error.errno != errno.ENXIO:  # that is no data from here on
            return np.zeros(1, np.int64), np.array([size], np.int64)
    columns = np.minimum(np.frombuffer(edges[: len(edges) // 2 * 2], np.int64), size)
    return columns[::2], columns[1::2] - columns[::2]
