"""p2m maps in files: flat arrays of 64- or 32-bit words, .npy, two-column text, and what ``xen-mfndump`` prints."""

from __future__ import annotations

import io
import os
import re
import tokenize
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from dumpxlate.arrays import slices
from dumpxlate.errors import FormatError, MapError
from dumpxlate.io.source import open_source
from dumpxlate.p2m.map import P2M, FrameRuns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from dumpxlate.io.sink import Sink
    from dumpxlate.io.source import Source

__all__ = ["MAP_KINDS", "MapKind", "detect_kind", "kind_for", "read_map", "write_map"]

MapKind: TypeAlias = Literal["u64", "u32", "npy", "text", "mfndump"]
MAP_KINDS: tuple[MapKind, ...] = get_args(MapKind)

_PLAUSIBLE_MFN = 1 << 40  # 4 EiB of machine memory: more than any x86 addresses
_NO_FRAME = (1 << 62) - 1  # in a 64-bit entry, below its two flags
_PEEK = 1 << 16
_LINES = 4 << 20  # text is read in pieces of this size
_CHUNK = 1 << 20

# libxl's xen-mfndump: " pfn=0x12 ==> mfn=0x3e012 (type 0x1) L1"; see tools/misc/xen-mfndump.c
# Blanks only, no \s: that would cross lines and take quadratic time on a file of empty ones.
_MFNDUMP = re.compile(
    rb"^[ \t]*pfn=0x([0-9a-f]+)[ \t]*==>[ \t]*mfn=0x([0-9a-f]+)[ \t]*\(type 0x([0-9a-f]+)\)", re.MULTILINE
)
_NO_RAM_TYPES = (0xD, 0xE, 0xF)  # broken, allocate-only, invalid
_TEXT_LINE = re.compile(rb"^(0x[0-9a-fA-F]{1,64}|\d{1,64})[\s,]+(0x[0-9a-fA-F]{1,64}|\d{1,64}|-|none)$")
_PLAIN_LINES = re.compile(rb"^(0x[0-9a-f]{1,16}|\d{1,20})[ \t]+(0x[0-9a-f]{1,16}|\d{1,20})\n", re.MULTILINE)
"""What most lines are: looking for these all at once takes half the time."""
# No control characters, and not 0xf8 to 0xff, which UTF-8 has no use for: comments may be in any language.
_TEXT_BYTES = bytes(range(32, 127)) + bytes(range(128, 0xF8)) + b"\t\r\n"


def read_map(path: str | os.PathLike[str], kind: MapKind | None = None) -> P2M:
    """Read a map from a file.

    Args:
        path: the file.
        kind: how it is written; None to find out by its content.

    Raises:
        MapError: it is no map, or not of that kind.
        OSError: it cannot be read.
    """
    try:
        with open_source(path) as source:
            return _read(_Body(source), kind)
    except MapError as error:
        raise MapError(f"{os.fspath(path)}: {error}") from None
    except FormatError as error:
        raise MapError(str(error)) from None


@dataclass(frozen=True, slots=True)
class _Body:
    """A file, sliced like bytes; only what is sliced is read."""

    source: Source

    def __len__(self) -> int:
        return self.source.size

    def __getitem__(self, piece: slice) -> memoryview:
        start, stop, _ = piece.indices(self.source.size)
        return self.source.view(start, max(stop - start, 0))


@dataclass(frozen=True, slots=True)
class _Entries:
    """An array in a file; only what is sliced is read."""

    body: _Body
    at: int
    count: int
    dtype: np.dtype[np.unsignedinteger]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, piece: slice) -> NDArray[np.unsignedinteger]:
        start, stop, _ = piece.indices(self.count)
        size = self.dtype.itemsize
        return np.frombuffer(self.body[self.at + start * size : self.at + stop * size], self.dtype)

    def pieces(self, count: int) -> Iterator[NDArray[np.unsignedinteger]]:
        """Give the first so many entries, piece by piece."""
        return map(self.__getitem__, slices(min(count, self.count)))


def _read(body: _Body, kind: MapKind | None) -> P2M:
    kind = kind or detect_kind(body)
    found = _READERS[kind](body)
    if not found.runs.total:
        raise MapError(f"{kind} map without a single page")
    return found


def detect_kind(body: _Body) -> MapKind:
    """Find out by its content how a map is written.

    Raises:
        MapError: it is none of the kinds.
    """
    head = bytes(body[:_PEEK])
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if b"==> mfn=0x" in head or b"Dumping P2M" in head:
        return "mfndump"
    if _is_text(head):
        return "text"
    if len(body) % 8 == 0 and all(map(_plausible, _words(body, 8).pieces(_CHUNK))):
        return "u64"
    if len(body) % 4 == 0 and _plausible_narrow(np.frombuffer(body[: 4 * _CHUNK], "<u4")):
        return "u32"
    raise MapError(f"not a p2m map: {len(body)} bytes, neither text nor a little-endian array of frame numbers")


def _is_text(head: bytes) -> bool:
    return not head.translate(None, _TEXT_BYTES)


def _plausible(entries: NDArray[np.uint64]) -> bool:
    """Tell 64-bit entries from pairs of 32-bit ones: no machine has frames that high.

    Below a flag, all ones are no frame either: Linux marks what is no memory as identity as well.
    """
    frame = entries & np.uint64(_NO_FRAME)
    nothing = (frame == np.uint64(_NO_FRAME)) & (entries != np.uint64(_NO_FRAME))
    return bool(((frame < np.uint64(_PLAUSIBLE_MFN)) | nothing).all())


def _plausible_narrow(entries: NDArray[np.uint32]) -> bool:
    """Tell 32-bit entries from other files: where they are flagged as identity, most of them name their own pfn."""
    at = np.flatnonzero((entries >> np.uint32(30) == 1) & (entries != np.uint32((1 << 31) - 1)))
    named = (entries[at] & np.uint32((1 << 30) - 1)).astype(np.int64) == at
    return 2 * int(np.count_nonzero(named)) >= len(at)


def _read_u64(body: _Body) -> P2M:
    return P2M.from_entries(_words(body, 8), 8)


def _read_u32(body: _Body) -> P2M:
    return P2M.from_entries(_words(body, 4), 4)


def _words(body: _Body, width: int) -> _Entries:
    if len(body) % width:
        raise MapError(f"not an array of {width}-byte words: {len(body)} bytes")
    return _Entries(body, 0, len(body) // width, np.dtype(f"<u{width}"))


def _read_npy(body: _Body) -> P2M:
    file = io.BytesIO(bytes(body[:_PEEK]))
    shape, dtype = _npy_header(file)
    if dtype.kind not in "ui" or dtype.itemsize not in (4, 8) or len(shape) != 1:
        raise MapError(f".npy map must be one row of 32- or 64-bit integers: found {dtype} of shape {shape}")
    at, (count,) = file.tell(), shape
    if count < 0 or at + count * dtype.itemsize > len(body):
        raise MapError(f".npy promises {count} entries, the file has {(len(body) - at) // dtype.itemsize}")
    unsigned = np.dtype(f"{dtype.byteorder}u{dtype.itemsize}")
    return P2M.from_entries(_Entries(body, at, count, unsigned), 8 if dtype.itemsize == 8 else 4)


def _npy_header(file: io.BytesIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read the header, a Python literal: numpy parses it safely and refuses pickles, but lets odd errors through."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        with warnings.catch_warnings(action="ignore"):  # numpy's advice to save files of Python 2 again
            shape, _, dtype = read(file)
    except _NPY_ERRORS as error:
        raise MapError(f"broken .npy header: {str(error)[:200] or type(error).__name__}") from None
    return shape, dtype


_NPY_ERRORS = (ValueError, SyntaxError, TypeError, LookupError, MemoryError, RecursionError, tokenize.TokenError)


def _pieces(body: _Body) -> Iterator[bytes]:
    """Cut text into pieces of whole lines."""
    at = 0
    while at < len(body):
        piece = bytes(body[at : at + _LINES])
        if at + len(piece) < len(body):
            cut = piece.rfind(b"\n") + 1
            if not cut:
                raise MapError(f"a line of more than {_LINES} bytes at {at:#x}")
            piece = piece[:cut]
        yield piece
        at += len(piece)


def _read_text(body: _Body) -> P2M:
    columns = [_parse_text(piece) for piece in _pieces(body)]
    return _from_columns(columns)


def _parse_text(piece: bytes) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    plain = _PLAIN_LINES.findall(piece)
    if len(plain) == piece.count(b"\n"):
        return _columns([(_number(pfn), _number(mfn)) for pfn, mfn in plain])
    rows = []
    for line in piece.split(b"\n"):
        line = line.split(b"#", 1)[0].strip()
        if not line:
            continue
        match = _TEXT_LINE.match(line)
        if not match:
            raise MapError(f"not a line of pfn and mfn: {line[:60]!r}")
        pfn, mfn = match.groups()
        rows.append((_number(pfn), _ALL_ONES if mfn in (b"-", b"none") else _number(mfn)))
    return _columns(rows)


def _number(word: bytes) -> int:
    return int(word, 16 if word.startswith(b"0x") else 10)


_ALL_ONES = (1 << 64) - 1


def _columns(rows: list[tuple[int, int]]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    try:
        both = np.array(rows, np.uint64).reshape(-1, 2)
    except OverflowError:
        raise MapError("a number does not fit into 64 bits") from None
    # The first of equal pfns counts; a piece with many is not kept.
    pfn, first = np.unique(both[:, 0], return_index=True)
    return pfn, both[first, 1]


def _read_mfndump(body: _Body) -> P2M:
    columns = []
    for piece in _pieces(body):
        rows = []
        for pfn, mfn, kind in _MFNDUMP.findall(piece):
            entry = int(mfn, 16)
            # An ordinary mfn of type 0xf names a frame that the domain does not own.
            if int(kind, 16) in _NO_RAM_TYPES and not entry >> 62:
                entry = _ALL_ONES
            rows.append((int(pfn, 16), entry))
        columns.append(_columns(rows))
    return _from_columns(columns)


def _from_columns(columns: list[tuple[NDArray[np.uint64], NDArray[np.uint64]]]) -> P2M:
    """Make a map of sparse (pfn, entry) pairs in any order; the first entry for a pfn counts."""
    if not any(len(pfn) for pfn, _ in columns):
        raise MapError("no line of it names a pfn and an mfn")
    pfn, first = np.unique(np.concatenate([pfn for pfn, _ in columns]), return_index=True)
    entry = np.concatenate([entry for _, entry in columns])
    columns.clear()
    if int(pfn[-1]) >= _PLAUSIBLE_MFN:
        raise MapError(f"pfn {int(pfn[-1]):#x} is beyond any machine's memory")
    pfn = pfn.astype(np.int64)
    dense = P2M.from_entries(entry[first], 8)

    def named(part: FrameRuns) -> FrameRuns:
        """Runs of rows, turned into runs of the pfns that the rows name."""
        rows = P2M(part, len(pfn)).pages().select(0, part.total)
        return FrameRuns.from_pairs(pfn[rows], part.find(rows))

    return P2M(named(dense.runs), int(pfn[-1]) + 1, foreign=named(dense.foreign), identity=named(dense.identity))


_READERS: dict[MapKind, Callable[[_Body], P2M]] = {
    "u64": _read_u64,
    "u32": _read_u32,
    "npy": _read_npy,
    "text": _read_text,
    "mfndump": _read_mfndump,
}


def kind_for(path: str | os.PathLike[str]) -> MapKind:
    """Choose how to write a map by the suffix of its name: .npy, .txt, .u32; anything else is a flat u64 array."""
    suffix = Path(path).suffix.lower()
    kinds: dict[str, MapKind] = {
        ".npy": "npy",
        ".txt": "text",
        ".text": "text",
        ".u32": "u32",
        ".map4": "u32",
    }
    return kinds.get(suffix, "u64")


def write_map(p2m: P2M, sink: Sink, kind: MapKind) -> None:
    """Write a map, a million entries at a time.

    Raises:
        MapError: the kind cannot be written, or cannot hold an mfn of this map.
    """
    if kind == "mfndump":
        raise MapError("an xen-mfndump listing can be read, not written: page types are not in the map")
    if kind == "text":
        sink.append([b"# pfn mfn\n"])
    elif kind == "npy":
        header = io.BytesIO()
        shape = {"descr": "<u8", "fortran_order": False, "shape": (p2m.size,)}
        np.lib.format.write_array_header_1_0(header, shape)
        sink.append([header.getvalue()])
    for start in range(0, p2m.size, _CHUNK):
        stop = min(start + _CHUNK, p2m.size)
        entries = p2m.entries(start, stop)
        sink.append([_encode(entries, start, kind)])


def _encode(entries: NDArray[np.uint64], start: int, kind: MapKind) -> bytes:
    if kind == "text":
        at = np.flatnonzero(entries != np.uint64(_ALL_ONES))
        return "".join(
            f"{pfn:#x} {entry:#x}\n" for pfn, entry in zip((at + start).tolist(), entries[at].tolist(), strict=True)
        ).encode()
    if kind == "u32":
        return _narrow(entries).tobytes()
    return entries.astype("<u8").tobytes()


def _narrow(entries: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Write 64-bit entries as 32-bit ones; the flag bits move down, and all ones below them stay all ones."""
    frame, flags = entries & np.uint64(_NO_FRAME), (entries >> np.uint64(62)) << np.uint64(30)
    nothing = (frame == np.uint64(_NO_FRAME)) & (flags != 0)
    if (frame[~nothing] >= 1 << 30).any():
        raise MapError("a 32-bit map cannot hold mfns from 0x40000000 on")
    narrow: NDArray[np.uint64] = np.where(nothing, np.uint64((1 << 30) - 1), frame) | flags
    return narrow.astype("<u4")
