"""Snappy's framing format: chunks of at most 64 KiB, each with its masked CRC-32C, behind a stream identifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpxlate.errors import MissingCodecError

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["CHUNK", "COMPRESSED", "FIRST_SKIPPABLE", "IDENTIFIER", "RAW", "STREAM", "pack_frames", "unpack_frames"]

IDENTIFIER = b"\xff\x06\x00\x00sNaPpY"
COMPRESSED, RAW, STREAM = 0x00, 0x01, 0xFF
FIRST_SKIPPABLE = 0x80
CHUNK = 65536
"""Bytes that a chunk unpacks to at most."""


def pack_frames(data: memoryview) -> memoryview:
    """Compress data into a stream of chunks.

    Raises:
        MissingCodecError: the library is not installed.
    """
    return memoryview(_library().snappy.compress(data))


def unpack_frames(chunks: memoryview | bytes, out: memoryview) -> bool:
    """Unpack whole chunks, without a stream identifier, to exactly ``out``; False if they do not, checksums included.

    Raises:
        MissingCodecError: the library is not installed.
    """
    library = _library()
    try:
        done: int = library.snappy.decompress_into(IDENTIFIER + bytes(chunks), out)
    except library.DecompressionError:
        return False
    return done == len(out)


def _library() -> ModuleType:
    try:
        import cramjam
    except ImportError as error:
        raise MissingCodecError("snappy", "cramjam") from error
    return cramjam
