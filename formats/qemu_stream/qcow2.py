"""Snapshots with memory (savevm) in qcow2 images.

A snapshot has an L1 table of its own; the stream lies in the clusters behind those of the disk. All is big-endian.

Sources: qemu docs/interop/qcow2.txt, block/qcow2-snapshot.c, qcow2.c (qcow2_load_vmstate).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.errors import CorruptDumpError, TruncatedDumpError, UnsupportedFeatureError
from dumpxlate.extents import Extents, merge
from dumpxlate.io.spliced import SplicedSource
from dumpxlate.pageset import PageRuns
from dumpxlate.structs import U16, U32, U64, parse, size_of, struct

if TYPE_CHECKING:
    from dumpxlate.arrays import Int64s
    from dumpxlate.io.source import Source

__all__ = ["MAGIC", "Snapshot", "snapshot_stream"]

MAGIC = b"QFI\xfb"
_VERSIONS = (2, 3)
_CORRUPT, _EXTERNAL_DATA, _EXTENDED_L2 = 1 << 1, 1 << 2, 1 << 4
_MOST_SNAPSHOTS = 65536
_MOST_EXTRA = 1024
_LARGEST_L1 = 32 << 20
_OFFSET = 0x00FFFFFFFFFFFE00
_COMPRESSED, _ZERO = 1 << 62, 1
_LONGEST_STATE = 1 << 44


@struct
class Header:
    """QCowHeader without its first field, the magic number."""

    version: U32
    backing_file_offset: U64
    backing_file_size: U32
    cluster_bits: U32
    size: U64
    crypt_method: U32
    l1_size: U32
    l1_table_offset: U64
    refcount_table_offset: U64
    refcount_table_clusters: U32
    nb_snapshots: U32
    snapshots_offset: U64


@struct
class SnapshotHeader:
    """QCowSnapshotHeader."""

    l1_table_offset: U64
    l1_size: U32
    id_str_size: U16
    name_size: U16
    date_sec: U32
    date_nsec: U32
    vm_clock_nsec: U64
    vm_state_size: U32
    extra_data_size: U32


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One snapshot of an image.

    Attributes:
        number: its id, a text.
        name: what the user called it.
        taken: when, as an ISO date.
        state: bytes of its stream; 0 where it has no memory.
        disk: bytes of the disk at that time.
        l1_offset: place of its L1 table.
        l1_size: entries of it.
        others: how many snapshots the image has.
    """

    number: str
    name: str
    taken: str
    state: int
    disk: int
    l1_offset: int
    l1_size: int
    others: int


def snapshot_stream(source: Source, wanted: str | None) -> tuple[SplicedSource, Snapshot]:
    """Find the stream of a snapshot. Clusters that lie behind the end of the file are missing in it.

    Args:
        source: the image.
        wanted: name or id of the snapshot; None for the only one that has memory.

    Raises:
        UnsupportedFeatureError: there is no such snapshot, or the image is of a variant that is not handled.
        CorruptDumpError: the image contradicts itself, or has no cluster of it.
        TruncatedDumpError: the table of snapshots or the L1 table leaves the file.
    """
    header = _header(source)
    chosen = _choose(_snapshots(source, header), wanted)
    pieces, lacks = _pieces(source, header, chosen)
    return SplicedSource(source, pieces, chosen.state, None, lacks), chosen


def _header(source: Source) -> Header:
    header = parse(Header, source.view(0, min(source.size, 112)), 4, ">", what="qcow2 header")
    if header.version not in _VERSIONS:
        raise _unsupported(f"a qcow2 image of version {header.version}: 2 and 3 are known", "version")
    if not 9 <= header.cluster_bits <= 21:
        raise CorruptDumpError(f"clusters of 2^{header.cluster_bits} bytes", offset=20, what="qcow2 header")
    if header.crypt_method:
        raise _unsupported("an encrypted qcow2 image: decrypt it with qemu-img convert -U, or dump the guest", "crypt")
    features = 0
    if header.version == 3:
        features = int.from_bytes(source.view(72, min(8, max(source.size - 72, 0))), "big")
    if features & _EXTERNAL_DATA:
        raise _unsupported("a qcow2 image whose clusters are in a file of their own", "external data file")
    if features & _EXTENDED_L2:
        raise _unsupported("a qcow2 image with subclusters (extended_l2)", "extended L2 entries")
    return header


def _unsupported(message: str, feature: str) -> UnsupportedFeatureError:
    return UnsupportedFeatureError(message, format="qemu_stream", feature=feature)


def _snapshots(source: Source, header: Header) -> list[Snapshot]:
    """Read the table of snapshots."""
    count, at = header.nb_snapshots, header.snapshots_offset
    if count > _MOST_SNAPSHOTS:
        raise CorruptDumpError(f"{count} snapshots", offset=60, what="qcow2 header")
    found = []
    for _ in range(count):
        entry = parse(SnapshotHeader, _view(source, at, size_of(SnapshotHeader)), 0, ">")
        if entry.extra_data_size > _MOST_EXTRA:
            raise CorruptDumpError(f"{entry.extra_data_size} bytes of extra data", offset=at, what="snapshot")
        at += size_of(SnapshotHeader)
        extra = bytes(_view(source, at, entry.extra_data_size))
        at += entry.extra_data_size
        number = bytes(_view(source, at, entry.id_str_size)).decode("utf-8", "replace")
        name = bytes(_view(source, at + entry.id_str_size, entry.name_size)).decode("utf-8", "replace")
        at = (at + entry.id_str_size + entry.name_size + 7) // 8 * 8
        large, disk = (int.from_bytes(extra[low : low + 8], "big") for low in (0, 8))
        found.append(
            Snapshot(
                number,
                name,
                datetime.fromtimestamp(entry.date_sec, UTC).isoformat(),
                (large if len(extra) >= 8 else 0) or entry.vm_state_size,
                disk if len(extra) >= 16 else header.size,
                entry.l1_table_offset,
                entry.l1_size,
                count,
            )
        )
    return found


def _view(source: Source, at: int, length: int) -> memoryview:
    if at + length > source.size:
        raise TruncatedDumpError("qcow2 table", offset=at, wanted=length, available=source.size - at)
    return source.view(at, length)


def _choose(snapshots: list[Snapshot], wanted: str | None) -> Snapshot:
    """Choose the snapshot that the user wants: by name, or by id where no name fits."""
    held = [each for each in snapshots if each.state]
    if not held:
        raise _unsupported(
            "a qcow2 image without memory: none of its snapshots has any (savevm makes such)", "snapshot"
        )
    if wanted is None and len(held) == 1:
        return held[0]
    fitting = [each for each in held if each.name == wanted] or [each for each in held if each.number == wanted]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(f"{each.name} (id {each.number})" for each in held[:20])
    reason = "several snapshots have memory" if wanted is None else f"{len(fitting)} snapshots are called {wanted!r}"
    raise _unsupported(f"{reason}: choose one with --snapshot NAME, by name or id: {names}", "snapshot")


def _pieces(source: Source, header: Header, snapshot: Snapshot) -> tuple[Extents, PageRuns]:
    """Find the clusters of a snapshot's stream, as extents of bytes; those that the image does not have are zero.

    Returns:
        The extents, and the bytes of the stream whose clusters should be in the file and are not.

    Raises:
        CorruptDumpError: the tables are too short, or there is no cluster in the file.
        UnsupportedFeatureError: a compressed cluster, which no version of QEMU writes there.
    """
    cluster = 1 << header.cluster_bits
    per_table = cluster // 8
    covered = cluster * per_table
    first = -(-snapshot.disk // covered)
    count = -(-snapshot.state // cluster)
    tables = -(-count // per_table)
    if snapshot.state > _LONGEST_STATE or snapshot.l1_size * 8 > _LARGEST_L1 or first + tables > snapshot.l1_size:
        raise CorruptDumpError(
            f"{snapshot.state:#x} bytes behind a disk of {snapshot.disk:#x}, an L1 table of {snapshot.l1_size} entries",
            offset=snapshot.l1_offset,
            what="snapshot",
        )
    l1 = _entries(source, snapshot.l1_offset + first * 8, tables)
    index, at = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for number, entry in enumerate(l1.tolist()):
        table = entry & _OFFSET
        if table:
            held, place = _table(source, table, number * per_table, min(per_table, count - number * per_table))
            index.append(held)
            at.append(place)
    start, place = np.concatenate(index) * cluster, np.concatenate(at)
    length = np.minimum(cluster, snapshot.state - start)
    there = (place >= 0) & (place % cluster == 0) & (place + length <= source.size)
    if not there.any() and len(there):
        raise CorruptDumpError(
            f"cluster at {int(place[0]):#x} in a file of {source.size:#x} bytes",
            offset=int(l1[0] & _OFFSET),
            what="L2 table",
        )
    lacks = PageRuns.from_runs(start[~there], length[~there])
    return Extents(*merge(start[there], length[there], place[there])), lacks


def _table(source: Source, at: int, first: int, rows: int) -> tuple[Int64s, Int64s]:
    """Give number and place of the clusters that one L2 table has; -1 for each where the file ends before it."""
    if at + rows * 8 > source.size:
        return np.arange(first, first + rows), np.full(rows, -1, np.int64)
    return _clusters(_entries(source, at, rows), first)


def _entries(source: Source, at: int, count: int) -> Int64s:
    """Read table entries; the top bit, which says that a cluster has one owner, is cut off."""
    entries = np.frombuffer(_view(source, at, count * 8), ">u8").astype(np.uint64)
    return (entries & np.uint64((1 << 63) - 1)).astype(np.int64)


def _clusters(entries: Int64s, first: int) -> tuple[Int64s, Int64s]:
    """Give number and place of the clusters that one L2 table has."""
    if (entries & _COMPRESSED).any():
        raise _unsupported("a snapshot with compressed clusters", "compressed clusters")
    held = np.flatnonzero((entries & _OFFSET != 0) & (entries & _ZERO == 0))
    return held + first, entries[held] & _OFFSET
