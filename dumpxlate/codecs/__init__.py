"""How pages are compressed: one codec a module, found by its CodecId.

A codec turns one page into bytes and back; :mod:`dumpxlate.codecs.batch` does so for whole batches, and
:mod:`dumpxlate.codecs.workers` spreads batches over threads. Codecs may be shared by threads.

A codec, and its library, is imported when it is first asked for. The libraries were chosen by measuring pages of 4 KiB:
bytes out, pages a second in one thread and in two, and a licence that lets anyone install them.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from dumpxlate.errors import MissingCodecError
from dumpxlate.pages import CodecId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dumpxlate.arrays import UInt8s

__all__ = ["LEVELS", "BatchDecoder", "BatchEncoder", "Codec", "available", "codec_for", "from_name", "parse_codec"]

LEVELS = {CodecId.ZLIB: range(1, 10), CodecId.ZSTD: range(-7, 23)}
"""Levels of the codecs that have any; none given means 1, which is what makedumpfile uses."""


class Codec(Protocol):
    """Turns one page into bytes and back."""

    @property
    def id(self) -> CodecId:
        """Its number in a page table."""
        ...

    @property
    def name(self) -> str:
        """Its name on the command line and in messages."""
        ...

    def decode(self, data: memoryview | bytes, size: int) -> bytes:
        """Decode one page.

        Raises:
            CorruptPageError: the data do not decode to exactly ``size`` bytes.
        """
        ...

    def decode_into(self, data: memoryview, out: memoryview) -> None:
        """Decode one page into its place.

        Whatever ``data`` claims, no more than ``out`` is written; where decoding fails its content is undefined.

        Raises:
            CorruptPageError: the data do not decode to exactly ``len(out)`` bytes.
        """
        ...

    def encode(self, page: memoryview) -> bytes:
        """Encode one page; the result may be longer than the page."""
        ...


@runtime_checkable
class BatchDecoder(Protocol):
    """A codec that decodes many pages in one call: with little of Python between them, or not even its lock."""

    def decode_many(self, data: Sequence[memoryview], out: Sequence[memoryview]) -> bool:
        """Decode pages each into its own place; False if one of them does not decode, and nothing is said which."""
        ...


@runtime_checkable
class BatchEncoder(Protocol):
    """A codec that encodes many pages in one call: with nothing of Python between them, or not even its lock.

    Threads that encode wait for each other's Python: a microsecond of it for each page of ten costs two, since a
    thread that finds the interpreter's lock taken goes to sleep.
    """

    def encode_many(self, pages: Sequence[UInt8s]) -> Sequence[Any]:
        """Encode pages, each a contiguous array: objects with a length and a buffer, whatever the library makes."""
        ...


@cache
def codec_for(id: CodecId, level: int | None = None) -> Codec:
    """Give the codec of a page table's number.

    Args:
        id: which.
        level: how hard to try when encoding; None for the default.

    Raises:
        MissingCodecError: its library is not installed.
        ValueError: it has no such level.
    """
    _check_level(id, level)
    level = 1 if level is None else level
    match id:
        case CodecId.RAW:
            from dumpxlate.codecs.raw import RawCodec

            return RawCodec()
        case CodecId.ZLIB:
            from dumpxlate.codecs.zlib import ZlibCodec

            return ZlibCodec(level)
        case CodecId.LZO:
            from dumpxlate.codecs.lzo import LzoCodec

            return LzoCodec()
        case CodecId.SNAPPY:
            from dumpxlate.codecs.snappy import SnappyCodec

            return SnappyCodec()
        case CodecId.ZSTD:
            from dumpxlate.codecs.zstd import ZstdCodec

            return ZstdCodec(level)
        case CodecId.RLE:
            from dumpxlate.codecs.rle import RleCodec

            return RleCodec()


def parse_codec(text: str) -> tuple[CodecId, int | None]:
    """Read a codec as the command line names it: ``zlib``, ``zstd:3``.

    Raises:
        ValueError: there is no such codec or level; the message names those that there are.
    """
    name, colon, digits = text.partition(":")
    id = CodecId.__members__.get(name.upper())
    if id is None:
        known = ", ".join(one.name.lower() for one in CodecId)
        raise ValueError(f"codec {text!r}: unknown name, known are {known}")
    if not colon:
        return id, None
    try:
        level = int(digits)
    except ValueError:
        raise ValueError(f"codec {text!r}: level {digits!r} is not a number") from None
    _check_level(id, level)
    return id, level


def from_name(text: str) -> Codec:
    """Give the codec that the command line names.

    Raises:
        MissingCodecError: its library is not installed.
        ValueError: there is no such codec or level.
    """
    return codec_for(*parse_codec(text))


def available() -> dict[str, bool]:
    """Tell of each codec by name whether it can be used here."""
    return {id.name.lower(): _is_usable(id) for id in CodecId}


def _is_usable(id: CodecId) -> bool:
    try:
        codec_for(id)
    except MissingCodecError:
        return False
    return True


def _check_level(id: CodecId, level: int | None) -> None:
    levels = LEVELS.get(id)
    if level is None or (levels and level in levels):
        return
    name = id.name.lower()
    if levels:
        raise ValueError(f"{name}: level {level}: expected {levels[0]} to {levels[-1]}")
    raise ValueError(f"{name}: level {level}: {name} has no levels")
