"""Flags in the low 12 bits of the words that begin a stream's page records.

Source: qemu migration/ram.c (RAM_SAVE_FLAG_FULL and following).
"""

from __future__ import annotations

__all__ = [
    "COMPRESS_PAGE",
    "CONTINUE",
    "EOS",
    "FLAGS",
    "FULL",
    "HOOK",
    "MEM_SIZE",
    "MULTIFD_FLUSH",
    "PAGE",
    "XBZRLE",
    "ZERO",
]

FULL, ZERO, MEM_SIZE, PAGE, EOS, CONTINUE, XBZRLE, HOOK, COMPRESS_PAGE, MULTIFD_FLUSH = (1 << bit for bit in range(10))
FLAGS = 0xFFF
"""All bits that flags have."""
