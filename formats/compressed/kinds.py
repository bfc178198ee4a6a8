"""Tells the kinds of compressed files: every file is asked, so this module does without what unpacks them."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dumpxlate.io.source import Source

__all__ = ["is_start", "kind_of"]

_MAGICS = {
    "gzip": (b"\x1f\x8b\x08",),
    "xz": (b"\xfd7zXZ\0",),
    "zstd": (b"\x28\xb5\x2f\xfd",),
    "bzip2": tuple(b"BZh%d%b" % (level, block) for level in range(1, 10) for block in (b"1AY&SY", b"\x17rE8P\x90")),
    "lzop": (b"\x89LZO\0\r\n\x1a\n",),
    "lz4": (b"\x04\x22\x4d\x18", b"\x02\x21\x4c\x18"),
}
_SKIPPED = tuple(bytes([kind]) + b"\x2a\x4d\x18" for kind in range(0x50, 0x60))
"""Frames of anything else, among those of zstd and of lz4; four bytes of length follow."""
_SKIPPING = ("zstd", "lz4")
_SKIPPED_LIMIT = 1024

_LONGEST_MAGIC = 10
_HEAD = 4096
"""Bytes that are looked at: the code tables of a zlib stream come before its first byte."""

_ZLIB = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
_LIME = b"EMiL"


def kind_of(source: Source) -> str | None:
    """Tell how a file is compressed; None if it is not."""
    head = bytes(source.view(0, min(source.size, _HEAD)))
    if head.startswith(_SKIPPED):
        return _kind_behind(source)
    kind = next((kind for kind, magic in _MAGICS.items() if head.startswith(magic)), None)
    return kind or ("zlib" if head.startswith(_ZLIB) and _is_lime(head) else None)


def _kind_behind(source: Source) -> str | None:
    """Tell what the first frame that is not to be skipped is of; pzstd begins a file with one that is."""
    at = 0
    for _ in range(_SKIPPED_LIMIT):
        head = bytes(source.view(at, min(source.size - at, _LONGEST_MAGIC)))
        if not head.startswith(_SKIPPED) or len(head) < 8:
            return next((kind for kind in _SKIPPING if head.startswith(_MAGICS[kind])), None)
        at = min(at + 8 + int.from_bytes(head[4:8], "little"), source.size)
    return None


def is_start(kind: str, head: bytes) -> bool:
    """Tell whether another member of a kind begins."""
    return head.startswith(_MAGICS.get(kind, ())) or (kind in _SKIPPING and head.startswith(_SKIPPED))


def _is_lime(head: bytes) -> bool:
    """Two bytes are a weak magic: unpack a little and look for what alone writes bare zlib streams."""
    try:
        return zlib.decompressobj().decompress(head, len(_LIME)) == _LIME
    except zlib.error:
        return False
