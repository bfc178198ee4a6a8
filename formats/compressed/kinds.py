"""Tells the kinds of compressed files, and gives their decompressors one shape."""

from __future__ import annotations

import bz2
import lzma
import re
import zlib
from typing import TYPE_CHECKING, Any, Protocol

from dumpxlate.errors import MissingCodecError
from dumpxlate.formats.compressed.lz4 import Lz4
from dumpxlate.formats.compressed.lzop import Lzop

if TYPE_CHECKING:
    from collections.abc import Callable

    from dumpxlate.io.source import Source

__all__ = ["Decompressor", "decompressor", "is_start", "kind_of"]

_XZ_MEMORY = 1 << 30
"""Bytes that xz may take: its dictionary, which the file asks for. ``xz -9`` takes 65 MiB."""

_MAGICS = {
    "gzip": re.compile(rb"\x1f\x8b\x08"),
    "xz": re.compile(rb"\xfd7zXZ\0"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd"),
    "bzip2": re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"),
    "lzop": re.compile(rb"\x89LZO\0\r\n\x1a\n"),
    "lz4": re.compile(rb"\x04\x22\x4d\x18|\x02\x21\x4c\x18"),
}
_SKIPPED = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
"""Frames of anything else, among those of zstd and of lz4; four bytes of length follow."""
_SKIPPING = ("zstd", "lz4")
_SKIPPED_LIMIT = 1024

_LONGEST_MAGIC = 10
_HEAD = 4096
"""Bytes that are looked at: the code tables of a zlib stream come before its first byte."""

_ZLIB = re.compile(rb"\x78[\x01\x5e\x9c\xda]")
_LIME = b"EMiL"


def kind_of(source: Source) -> str | None:
    """Tell how a file is compressed; None if it is not."""
    head = bytes(source.view(0, min(source.size, _HEAD)))
    if _SKIPPED.match(head):
        return _kind_behind(source)
    kind = next((kind for kind, magic in _MAGICS.items() if magic.match(head)), None)
    return kind or ("zlib" if _ZLIB.match(head) and _is_lime(head) else None)


def _kind_behind(source: Source) -> str | None:
    """Tell what the first frame that is not to be skipped is of; pzstd begins a file with one that is."""
    at = 0
    for _ in range(_SKIPPED_LIMIT):
        head = bytes(source.view(at, min(source.size - at, _LONGEST_MAGIC)))
        if not _SKIPPED.match(head) or len(head) < 8:
            return next((kind for kind in _SKIPPING if _MAGICS[kind].match(head)), None)
        at = min(at + 8 + int.from_bytes(head[4:8], "little"), source.size)
    return None


def is_start(kind: str, head: bytes) -> bool:
    """Tell whether another member of a kind begins."""
    magic = _MAGICS.get(kind)
    return bool(magic and (magic.match(head[:_LONGEST_MAGIC]) or (kind in _SKIPPING and _SKIPPED.match(head))))


def _is_lime(head: bytes) -> bool:
    """Two bytes are a weak magic: unpack a little and look for what alone writes bare zlib streams."""
    try:
        return zlib.decompressobj().decompress(head, len(_LIME)) == _LIME
    except zlib.error:
        return False


class Decompressor(Protocol):
    """One member of a compressed file; the shape of ``bz2.BZ2Decompressor``."""

    @property
    def eof(self) -> bool:
        """Whether the member is complete."""
        ...

    @property
    def needs_input(self) -> bool:
        """Whether nothing more comes without more input."""
        ...

    @property
    def unused_data(self) -> bytes:
        """Input behind the end of the member."""
        ...

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Unpack more, about ``max_length`` bytes at most."""
        ...


class _Inflate:
    """gzip and zlib streams in that shape."""

    def __init__(self, window_bits: int) -> None:
        self._inner = zlib.decompressobj(window_bits)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        out = self._inner.decompress(self._inner.unconsumed_tail + data, max_length)
        self.needs_input = not self._inner.unconsumed_tail and len(out) < max_length
        return out


class _Zstd:
    """zstd frames in that shape.

    The library unpacks all that it is given at once, and 4 bytes may stand for 128 KiB: it gets little at a time, so
    that no more than 128 MiB come out of one call.
    """

    _STEP = 4096

    def __init__(self) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise MissingCodecError("zstd", "zstandard") from error
        self._inner = zstandard.ZstdDecompressor().decompressobj()
        self._error = zstandard.ZstdError
        self._waiting = b""
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data + self._waiting

    def decompress(self, data: bytes, max_length: int) -> bytes:
        waiting = memoryview(self._waiting + data)
        parts, size = [], 0
        while waiting and size < max_length and not self._inner.eof:
            try:
                parts.append(self._inner.decompress(bytes(waiting[: self._STEP])))
            except self._error as error:
                raise ValueError(str(error)) from error
            waiting = waiting[self._STEP :]
            size += len(parts[-1])
        self._waiting = bytes(waiting)
        self.needs_input = not self._waiting
        return b"".join(parts)


_MAKERS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: _Inflate(zlib.MAX_WBITS | 16),
    "zlib": lambda: _Inflate(zlib.MAX_WBITS),
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY),
    "bzip2": bz2.BZ2Decompressor,
    "zstd": _Zstd,
    "lzop": Lzop,
    "lz4": Lz4,
}


def decompressor(kind: str) -> Decompressor:
    """Make a decompressor for one member.

    Raises:
        MissingCodecError: its library is not installed.
    """
    made: Decompressor = _MAKERS[kind]()
    return made
