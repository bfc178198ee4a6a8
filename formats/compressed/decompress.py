"""Decompressors of all kinds of compressed files, in one shape."""

from __future__ import annotations

import bz2
import lzma
import zlib
from typing import TYPE_CHECKING, Any, Protocol

from dumpxlate.errors import MissingCodecError
from dumpxlate.formats.compressed.lz4 import Lz4
from dumpxlate.formats.compressed.lzop import Lzop

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Decompressor", "decompressor"]

_XZ_MEMORY = 1 << 30
"""Bytes that xz may take: its dictionary, which the file asks for. ``xz -9`` takes 65 MiB."""


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
