"""The states of devices, read by the description that QEMU puts behind them.

The JSON behind a stream's end names every field of every device with its size, so that no table of offsets is needed:
processors, CMOS and PCI devices are read so, whatever release of QEMU wrote them.

Source: qemu migration/vmstate.c (vmsd_desc_field_start), savevm.c (vmstate_save).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dumpxlate.qemu.stream import Stream

__all__ = ["DeviceState", "Field", "devices"]

_DEEPEST = 6
_MOST_ELEMENTS = 32
"""Structures of one array that are read one by one: segments of a processor are six."""

_LONGEST_STATE = 1 << 20
"""Bytes of one device that are read: a processor has 10 KB."""


@dataclass(frozen=True, slots=True)
class Field:
    """Where a field is in its device's state: offset, bytes of one element, number of elements."""

    offset: int
    size: int
    count: int


@dataclass(frozen=True, slots=True)
class DeviceState:
    """The state of one device.

    Attributes:
        name: of its section, for PCI devices with their place ("0000:00:02.0/vga").
        instance: which of those of that name.
        body: the bytes.
        fields: by path ("env.regs", "env.segs[0]/base", "parent_obj/config[0]").
    """

    name: str
    instance: int
    body: bytes
    fields: Mapping[str, Field]

    def numbers(self, path: str) -> list[int]:
        """Give the elements of a field, unsigned; none where there is no such field."""
        found = self.fields.get(path)
        if found is None or not found.size:
            return []
        body = self.body[found.offset : found.offset + found.size * found.count]
        return [int.from_bytes(body[at : at + found.size], "big") for at in range(0, len(body), found.size)]

    def number(self, path: str) -> int | None:
        """Give the first element of a field; None where there is none."""
        return next(iter(self.numbers(path)), None)

    def bytes_of(self, path: str) -> bytes:
        """Give a field as it is; b"" where there is none."""
        found = self.fields.get(path)
        return self.body[found.offset : found.offset + found.size * found.count] if found else b""

    @property
    def place(self) -> str:
        """The PCI device's place ("0000:00:02.0"); "" for others."""
        found = _PLACE.match(self.name)
        return found[0] if found else ""

    def config(self) -> bytes:
        """Give the first 256 bytes of a PCI device's configuration space; b"" where it has none.

        They stand first in the states of all, behind a version: also in those of virtio devices, which nothing
        describes.
        """
        return self.body[4:260] if self.place and self.body[:4] == b"\0\0\0\2" else b""


_PLACE = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}(?::[0-9a-f]{2}\.[0-7])+(?=/)")
"""A device behind bridges has their slots before its own (hw/pci/pci.c, pcibus_get_dev_path)."""


def devices(stream: Stream) -> list[DeviceState]:
    """Read the states; those that no description fits have no fields."""
    waiting = _described(stream)
    found = []
    for section in stream.sections:
        if section.length <= _LONGEST_STATE:
            body = bytes(stream.source.view(section.offset, section.length))
            same = waiting.get((section.name, section.instance))
            fields = dict(_flat(same.pop(0), len(body))) if same else {}
            found.append(DeviceState(section.name, section.instance, body, fields))
    return found


def _described(stream: Stream) -> dict[tuple[str, int], list[Any]]:
    """Parse the description: fields of all devices of a name and an instance, in the order of the stream."""
    waiting: dict[tuple[str, int], list[Any]] = {}
    if stream.description:
        try:
            for each in json.loads(stream.description)["devices"]:
                waiting.setdefault((str(each["name"]), int(each["instance_id"])), []).append(each["fields"])
        except (ValueError, KeyError, TypeError, RecursionError):
            stream.remarks.append("the description of the devices is not as QEMU writes it")
    return waiting


def _flat(fields: Any, length: int, at: int = 0, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Field]]:
    """Give all fields by path, as far as the state has bytes for them and the description makes sense."""
    for each in fields if isinstance(fields, list) and depth < _DEEPEST else ():
        if not isinstance(each, dict):
            return
        size, count = each.get("size", 0), each.get("array_len", 1)
        if not (isinstance(size, int) and isinstance(count, int) and 0 <= size <= length and 0 <= count <= length):
            return
        if at + size * count > length:
            return
        path = f"{prefix}{each.get('name')}"
        yield path, Field(at, size, count)
        inner = each.get("struct")
        if isinstance(inner, dict) and count <= _MOST_ELEMENTS:
            for index in range(count):
                name = f"{path}[{index}]/" if "array_len" in each else f"{path}/"
                yield from _flat(inner.get("fields"), length, at + index * size, name, depth + 1)
        at += size * count
