"""Heads of devices' states, by their looks.

Behind a defect among states the next one is where a footer and a head with a name follow each other. In a stream
without footers, as those of machine types before 2.4 are, nothing tells where a state ends. But in some what matters
stands first, behind the head: the CMOS in the clock's, the configuration space in those of PCI devices.

Source: qemu migration/savevm.c (save_section_header), hw/rtc/mc146818rtc.c, hw/pci/pci.c (vmstate_pci_device).
"""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dumpxlate.io.source import Source

__all__ = ["Head", "find_heads", "next_device"]

_CLOCK, _CMOS, _CONFIG = b"mc146818rtc", 128, 4 + 256
_PLACE = rb"[0-9a-f]{4}:[0-9a-f]{2}(?::[0-9a-f]{2}\.[0-7]){1,8}/"
_FULL = rb"\x04"
_HEAD = re.compile(rb"(?=%b.{4}(.)(%b|%b))" % (_FULL, _CLOCK, _PLACE), re.DOTALL)
_NAMED = re.compile(rb"[\x20-\x7e]+")
_BEHIND_FOOTER = re.compile(rb"(?=\x7e.{4}\x04.{4})", re.DOTALL)
_FOOTER = 5
_BEFORE_NAME = 1 + 4 + 1
_LONGEST = _FOOTER + _BEFORE_NAME + 255 + 8
_STEP, _FARTHEST = 1 << 20, 1 << 28
"""Bytes that are looked at together, and in all: states of devices hardly ever have more."""


class Head(NamedTuple):
    """A device whose state begins with what is understood: name, instance, version, and the place of that."""

    name: str
    instance: int
    version: int
    offset: int
    length: int


def next_device(source: Source, at: int) -> int | None:
    """Find the next section of a device behind a defect: a footer, and a head with a name and a small version.

    Args:
        source: the file.
        at: where to begin.
    """
    while at < source.size:
        length = min(_STEP, source.size - at)
        view = source.view(at, length)
        for match in _BEHIND_FOOTER.finditer(view):
            if _named(view, match.start() + _FOOTER) is not None:
                return at + match.start() + _FOOTER
        if at + length == source.size:
            return None
        at += length - _LONGEST
    return None


def find_heads(source: Source, at: int, most: int) -> list[Head]:
    """Find the states of the clock and of PCI devices behind a place; of several with one name the first.

    Args:
        source: the file.
        at: where states of devices begin.
        most: how many are looked for.
    """
    found: dict[tuple[str, int], Head] = {}
    for head in islice(_every_head(source, at), most):
        found.setdefault((head.name, head.instance), head)
    return list(found.values())


def _every_head(source: Source, at: int) -> Iterator[Head]:
    stop = min(source.size, at + _FARTHEST)
    while at < stop:
        view = source.view(at, min(_STEP + _LONGEST, stop - at))
        for match in _HEAD.finditer(view):
            head = _head(view, at, match.start()) if match.start() < _STEP else None
            if head is not None and head.offset + head.length <= source.size:
                yield head
        at += _STEP


def _head(view: memoryview, base: int, at: int) -> Head | None:
    """Read the head of a clock or a PCI device at a place of a view; None where it is none."""
    named = _named(view, at)
    if named is None or not (named[0] == _CLOCK or b"/" in named[0]):
        return None
    name, rest = named
    offset = base + at + _BEFORE_NAME + len(name) + len(rest)
    instance, version = int.from_bytes(rest[:4], "big"), rest[7]
    return Head(name.decode(), instance, version, offset, _CMOS if name == _CLOCK else _CONFIG)


def _named(view: memoryview, at: int) -> tuple[bytes, bytes] | None:
    """Give the name in a head, and the instance and the version, which is small, behind it; None where it is none."""
    begin = at + _BEFORE_NAME
    length = view[begin - 1] if begin <= len(view) else 0
    name, rest = bytes(view[begin : begin + length]), bytes(view[begin + length : begin + length + 8])
    return (name, rest) if len(rest) == 8 and _NAMED.fullmatch(name) and not any(rest[4:7]) else None
