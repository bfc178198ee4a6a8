"""States of devices in streams without footers, as those of machine types before 2.4 are.

Nothing tells where a state ends. But each begins with a head that has the device's name, and in some of them what
matters stands first: the CMOS in the clock's, the configuration space in those of PCI devices.

Source: qemu migration/savevm.c (save_section_header), hw/rtc/mc146818rtc.c, hw/pci/pci.c (vmstate_pci_device).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dumpxlate.io.source import Source

__all__ = ["Head", "find_heads"]

_CLOCK, _CMOS, _CONFIG = b"mc146818rtc", 128, 4 + 256
_PLACE = rb"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]/"
_FULL = rb"\x04"
_HEAD = re.compile(rb"(?=%b.{4}(.)(%b|%b))" % (_FULL, _CLOCK, _PLACE), re.DOTALL)
_NAMED = re.compile(rb"[\x21-\x7e]+")
_BEFORE_NAME = 1 + 4 + 1
_LONGEST = _BEFORE_NAME + 255 + 8
_STEP, _FARTHEST = 1 << 20, 1 << 28
"""Bytes that are looked at together, and in all: states of devices hardly ever have more."""


class Head(NamedTuple):
    """A device whose state begins with what is understood: name, instance, version, and the place of that."""

    name: str
    instance: int
    version: int
    offset: int
    length: int


def find_heads(source: Source, at: int) -> Iterator[Head]:
    """Find the states of the clock and of PCI devices behind a place.

    Args:
        source: the file.
        at: where states of devices begin.
    """
    stop = min(source.size, at + _FARTHEST)
    while at < stop:
        view = source.view(at, min(_STEP + _LONGEST, stop - at))
        for match in _HEAD.finditer(view):
            head = _head(view, at, match.start()) if match.start() < _STEP else None
            if head is not None and head.offset + head.length <= source.size:
                yield head
        at += _STEP


def _head(view: memoryview, base: int, at: int) -> Head | None:
    """Read the head at a place of a view; None where it is none."""
    begin = at + _BEFORE_NAME
    end = begin + view[begin - 1]
    name, rest = bytes(view[begin:end]), bytes(view[end : end + 8])
    clock = name == _CLOCK
    if len(rest) < 8 or not _NAMED.fullmatch(name) or any(rest[4:7]) or not (clock or b"/" in name):
        return None
    instance, version = int.from_bytes(rest[:4], "big"), rest[7]
    return Head(name.decode(), instance, version, base + end + 8, _CMOS if clock else _CONFIG)
