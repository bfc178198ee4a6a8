"""Compressors of pages written out by hand, so that no test trusts the library it tests.

They know one trick: a 64-byte line that is one word eight times (what ``guest.page`` makes) becomes that word and
a copy. Everything else is literal, so a page of noise grows and is stored raw.
"""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "CODECS",
    "crc32c_masked",
    "lz4_block",
    "lz4_frame",
    "lz4_legacy",
    "lzo",
    "lzop",
    "snappy",
    "snappy_frames",
    "xxh32",
    "zstd",
]

Codec = tuple[int, "Callable[[bytes], bytes]"]


def _pieces(data: bytes) -> Iterator[tuple[bytes, int]]:
    """(literal, number of bytes then copied from eight bytes back), literals as long as they can be."""
    literal = b""
    for at in range(0, len(data), 64):
        line = data[at : at + 64]
        if line == line[:8] * 8:
            yield literal + line[:8], 56
            literal = b""
        else:
            literal += line
    if literal:
        yield literal, 0


def snappy(data: bytes) -> bytes:
    """A raw snappy block."""
    out = bytearray()
    rest = len(data)
    while rest > 127:
        out.append(rest & 127 | 128)
        rest >>= 7
    out.append(rest)
    for literal, copy in _pieces(data):
        for at in range(0, len(literal), 65536):
            piece = literal[at : at + 65536]
            short = len(piece) <= 60
            out += bytes([len(piece) - 1 << 2]) if short else struct.pack("<BH", 61 << 2, len(piece) - 1)
            out += piece
        out += struct.pack("<BH", copy - 1 << 2 | 2, 8) if copy else b""
    return bytes(out)


def lzo(data: bytes) -> bytes:
    """A raw lzo1x stream."""
    out = bytearray()
    for literal, copy in _pieces(data):
        out += _lzo_length(len(literal) - 3, 15) + literal
        out += bytes([0x20]) + _lzo_length(copy - 2, 31)[1:] + struct.pack("<H", 8 - 1 << 2) if copy else b""
    return bytes(out) + b"\x11\0\0"


def _lzo_length(number: int, most: int) -> bytes:
    """A length that fits the instruction's own bits, or a zero there and the rest in bytes, 255 for each zero."""
    if number <= most:
        return bytes([number])
    zeros, rest = divmod(number - most - 1, 255)
    return bytes(1 + zeros) + bytes([rest + 1])


def lzop(data: bytes, *, flags: int = 0x1, version: int = 0x1040, block: int = 1 << 18, method: int = 1) -> bytes:
    """A file as lzop writes it: blocks that would not shrink are stored as they are.

    Args:
        data: content.
        flags: 1 and 0x100 for checksums of what is unpacked (adler32, crc32), 2 and 0x200 of what is packed, 0x40 for
            an extra field, 0x800 for a filter.
        version: of lzop; before 0x940 the header is shorter.
        block: bytes of one block.
        method: of compression.
    """
    new = version >= 0x940
    head = struct.pack(">HH", version, 0x20A0) + (struct.pack(">HBBI", 0x940, method, 5, flags) if new else b"")
    head += b"" if new else struct.pack(">BI", method, flags)
    head += (bytes(4) if flags & 0x800 else b"") + bytes(12 if new else 8) + b"\x03abc"
    out = b"\x89LZO\0\r\n\x1a\n" + head + struct.pack(">I", zlib.adler32(head))
    out += struct.pack(">I", 5) + b"extra" + bytes(4) if flags & 0x40 else b""
    for at in range(0, len(data), block):
        plain = data[at : at + block]
        packed = min(lzo(plain), plain, key=len)
        out += struct.pack(">II", len(plain), len(packed))
        for flag, checksum, of in ((1, zlib.adler32, plain), (0x100, zlib.crc32, plain)):
            out += struct.pack(">I", checksum(of)) if flags & flag else b""
        for flag, checksum in ((2, zlib.adler32), (0x200, zlib.crc32)):
            out += struct.pack(">I", checksum(packed)) if flags & flag and len(packed) < len(plain) else b""
        out += packed
    return out + bytes(4)


def lz4_block(data: bytes) -> bytes:
    """A raw lz4 block; the last five bytes and the last match are where the format allows them."""
    out, literal = bytearray(), b""
    body = data[: max(len(data) - 64, 0)]
    for piece, copy in _pieces(body):
        literal += piece
        if copy:
            out += _lz4_sequence(literal, copy)
            literal = b""
    return bytes(out + _lz4_sequence(literal + data[len(body) :], 0))


def _lz4_sequence(literal: bytes, copy: int) -> bytes:
    """Literals, then a copy from eight bytes back; none behind the last."""
    short, match = min(len(literal), 15), min(copy - 4, 15) if copy else 0
    out = bytes([short << 4 | match]) + _lz4_length(len(literal)) + literal
    return out + (struct.pack("<H", 8) + _lz4_length(copy - 4) if copy else b"")


def _lz4_length(number: int) -> bytes:
    return bytes([255]) * ((number - 15) // 255) + bytes([(number - 15) % 255]) if number >= 15 else b""


def lz4_frame(data: bytes, *, flags: int = 0x60, block: int = 1 << 16, stored: bool = False, size: int = -1) -> bytes:
    """An lz4 frame; blocks that would not shrink are stored as they are.

    Args:
        data: content.
        flags: 0x40 is the version; 0x20 for blocks that do not refer to one another (which they never do here), 0x10
            for checksums of blocks, 0x08 for the size of the content, 0x04 for the checksum of the content.
        block: bytes of one block: 64 KiB, 256 KiB, 1 MiB or 4 MiB.
        stored: no block is compressed.
        size: of the content, as the header tells it.
    """
    head = bytes([flags, {1 << 16: 4, 1 << 18: 5, 1 << 20: 6, 1 << 22: 7}[block] << 4])
    head += struct.pack("<Q", len(data) if size < 0 else size) if flags & 0x08 else b""
    out = b"\x04\x22\x4d\x18" + head + bytes([xxh32(head) >> 8 & 0xFF])
    for at in range(0, len(data), block):
        plain = data[at : at + block]
        packed = plain if stored else min(lz4_block(plain), plain, key=len)
        out += struct.pack("<I", len(packed) | (len(packed) == len(plain)) << 31) + packed
        out += struct.pack("<I", xxh32(packed)) if flags & 0x10 else b""
    return out + bytes(4) + (struct.pack("<I", xxh32(data)) if flags & 0x04 else b"")


def lz4_legacy(data: bytes) -> bytes:
    """A frame of the older layout: blocks of 8 MiB, and nothing that ends it."""
    blocks = (lz4_block(data[at : at + (8 << 20)]) for at in range(0, len(data), 8 << 20))
    return b"\x02\x21\x4c\x18" + b"".join(struct.pack("<I", len(block)) + block for block in blocks)


_PRIMES = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1)


def _rotated(value: int, by: int) -> int:
    value &= 0xFFFFFFFF
    return (value << by | value >> 32 - by) & 0xFFFFFFFF


def xxh32(data: bytes) -> int:
    """xxHash of 32 bits, seed 0: the checksum of lz4 frames."""
    one, two, three, four, five = _PRIMES
    lanes, at = [one + two, two, 0, -one], 0
    while len(data) - at >= 16:
        words = struct.unpack_from("<4I", data, at)
        lanes = [_rotated(lane + word * two, 13) * one for lane, word in zip(lanes, words, strict=True)]
        at += 16
    value = sum(_rotated(lane, by) for lane, by in zip(lanes, (1, 7, 12, 18), strict=True)) if at else five
    value += len(data)
    while len(data) - at >= 4:
        value = _rotated(value + struct.unpack_from("<I", data, at)[0] * three, 17) * four
        at += 4
    for byte in data[at:]:
        value = _rotated(value + byte * five, 11) * one
    value &= 0xFFFFFFFF
    value = (value ^ value >> 15) * two & 0xFFFFFFFF
    value = (value ^ value >> 13) * three & 0xFFFFFFFF
    return value ^ value >> 16


def zstd(data: bytes) -> bytes:
    """One zstd frame of one block: RLE, or sequences that are all alike (a page of named lines), or raw."""
    frame = b"\x28\xb5\x2f\xfd" + struct.pack("<BI", 0xA0, len(data))  # single segment, 4-byte content size
    lines = [data[at : at + 64] for at in range(0, len(data), 64)]
    if data == data[:1] * len(data):
        return frame + _zstd_block(1, len(data), data[:1])
    if any(line != line[:8] * 8 for line in lines):
        return frame + _zstd_block(0, len(data), data)
    words = b"".join(line[:8] for line in lines)
    long = len(words) > 4095
    literals = struct.pack("<I", (3 if long else 1) << 2 | len(words) << 4)[: 3 if long else 2] + words
    count = bytes([len(lines)]) if len(lines) < 128 else bytes([(len(lines) >> 8) + 128, len(lines) & 255])
    # Codes: 8 literals; offset value 8 + 3 = 2**3 + 3; match of 56 = 51 + 5. Each is the only symbol of its table
    # (mode RLE), so the bit stream holds just the extra bits: 3 for the offset, 3 for the match.
    bits = 1
    for _ in lines:
        bits = bits << 6 | 3 << 3 | 5
    stream = bits.to_bytes(bits.bit_length() // 8 + 1, "little").rstrip(b"\0")
    body = literals + count + bytes([0b01010100, 8, 3, 38]) + stream
    return frame + _zstd_block(2, len(body), body)


def _zstd_block(kind: int, size: int, body: bytes) -> bytes:
    return struct.pack("<I", size << 3 | kind << 1 | 1)[:3] + body


def snappy_frames(data: bytes, *, chunk: int = 65536, raw: bool = False, corrupt: int | None = None) -> bytes:
    """The snappy framing format: stream identifier, then chunks with their checksum.

    Args:
        data: what it decompresses to.
        chunk: bytes of data in each chunk.
        raw: chunks of type 1 (not compressed) only; otherwise a chunk is compressed where that helps.
        corrupt: number of the chunk whose checksum is wrong.
    """
    out = [b"\xff\x06\0\0sNaPpY"]
    for number, at in enumerate(range(0, len(data), chunk)):
        piece = data[at : at + chunk]
        packed = snappy(piece)
        compressed = not raw and len(packed) < len(piece)
        body = struct.pack("<I", crc32c_masked(piece) ^ (number == corrupt)) + (packed if compressed else piece)
        out.append(struct.pack("<I", len(body) << 8 | (0 if compressed else 1)) + body)
    return b"".join(out)


def _crc32c_table() -> list[int]:
    table = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
        table.append(number)
    return table


_TABLE = _crc32c_table()


@lru_cache(maxsize=256)  # chunks of zeros and of the usual guests come again and again
def crc32c_masked(data: bytes) -> int:
    """CRC-32C as snappy frames hold it: rotated and displaced."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 255]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _remembered(compress: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Guests are small and alike: the same pages are asked for in hundreds of tests."""
    return lru_cache(maxsize=2048)(compress)


# name -> (flag in a kdump page descriptor, compressor)
CODECS: dict[str, Codec] = {
    "raw": (0, bytes),
    "zlib": (0x1, _remembered(zlib.compress)),
    "lzo": (0x2, _remembered(lzo)),
    "snappy": (0x4, _remembered(snappy)),
    "zstd": (0x20, _remembered(zstd)),
}
