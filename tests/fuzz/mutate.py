"""Mutations: small steps that are plain data, and how to choose them where a reader looks."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lz4.frame
import zstandard

from tests.builders import codecs, flattened, qemu_stream
from tests.fuzz.bases import NEVER_WRAPPED, Base, base, bases

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["MOST", "Recipe", "apply", "choose"]

Step = list[Any]
"""The name of a mutation, then its arguments: numbers, hex strings, names of bases."""

MOST = 60 << 20
"""Bytes of an input: the ceilings of memory and time hold for those below 64 MiB."""


@dataclass(frozen=True)
class Recipe:
    """How to make an input again."""

    base: str
    steps: tuple[Step, ...]

    def as_json(self) -> dict[str, Any]:
        return {"base": self.base, "steps": list(self.steps)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Recipe:
        return cls(value["base"], tuple(value["steps"]))


def apply(recipe: Recipe) -> bytes:
    """Make the input."""
    data = base(recipe.base)
    for name, *arguments in recipe.steps:
        data = _STEPS[name](data, *arguments)[:MOST]
    return data


def _set(data: bytes, at: int, new: str) -> bytes:
    """Overwrite bytes: fields, flipped bits, swapped byte orders."""
    raw = bytes.fromhex(new)
    return data[:at] + raw[: max(len(data) - at, 0)] + data[at + len(raw) :]


def _cut(data: bytes, size: int) -> bytes:
    return data[:size]


def _grow(data: bytes, count: int) -> bytes:
    return data + bytes(count)


def _remove(data: bytes, at: int, count: int) -> bytes:
    return data[:at] + data[at + count :]


def _repeat(data: bytes, at: int, count: int, times: int) -> bytes:
    return data[:at] + data[at : at + count] * times + data[at:]


def _insert(data: bytes, at: int, new: str) -> bytes:
    return data[:at] + bytes.fromhex(new) + data[at:]


def _copy(data: bytes, at: int, count: int, to: int) -> bytes:
    piece = data[at : at + count]
    return data[:to] + piece + data[to + len(piece) :]


def _splice(data: bytes, other: str, at: int, count: int, to: int) -> bytes:
    """Overwrite with a piece of another file."""
    piece = base(other)[at : at + count]
    return data[:to] + piece + data[to + len(piece) :]


def _join(data: bytes, other: str, at: int, to: int) -> bytes:
    """The head of one file and the tail of another."""
    return data[:to] + base(other)[at:]


def _wrap(data: bytes, kind: str) -> bytes:
    return _WRAPPERS[kind](data)


def _lzop(data: bytes) -> bytes:
    """Pack whole lines of 64 bytes: the builder's plain LZO cannot begin with fewer than 3."""
    return codecs.lzop(data.ljust(-(-len(data) // 64) * 64, b"\0"))


_WRAPPERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 1, mtime=0),
    "xz": lambda data: lzma.compress(data, preset=0),
    "zstd": lambda data: zstandard.compress(data, 1),
    "lz4": lambda data: bytes(lz4.frame.compress(data)),
    "bzip2": lambda data: bz2.compress(data, 1),
    "lzop": _lzop,
    "libvirt": qemu_stream.libvirt,
    "flattened": lambda data: flattened.wrap(data, sizes=(4096, 100, 20000)),
}
_STEPS: dict[str, Callable[..., bytes]] = {
    "set": _set,
    "cut": _cut,
    "grow": _grow,
    "remove": _remove,
    "repeat": _repeat,
    "insert": _insert,
    "copy": _copy,
    "splice": _splice,
    "join": _join,
    "wrap": _wrap,
}

Places = tuple[tuple[int, int], ...]
"""Ranges (offset, length) of a file that its reader looks at."""


class _Chooser:
    """Chooses mutations of one base.

    Args:
        rng: where choices come from.
        data: the base.
        places: where its reader looks.
        others: names of bases for splices.
    """

    def __init__(self, rng: random.Random, data: bytes, places: Places, others: Sequence[str]) -> None:
        self.rng = rng
        self.data = data
        self.places = places
        self.others = others

    def step(self) -> Step:
        rng = self.rng
        kinds: tuple[tuple[Callable[[], Step], int], ...] = (
            (self._number, 50),
            (self._flip, 10),
            (self._swap, 6),
            (self._noise, 4),
            (self._truncate, 8),
            (self._block, 12),
            (self._other, 8),
            (self._tail, 2),
        )
        return rng.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])[0]()

    def place(self, width: int = 1) -> int:
        """Choose an offset: mostly where the reader looks, and there mostly near the start and aligned."""
        rng = self.rng
        if rng.random() < 0.15 or not self.places:
            at = rng.randrange(max(len(self.data) - width, 0) + 1)
        else:
            start, length = rng.choice(self.places)
            span = length if rng.random() < 0.5 else min(length, rng.choice((16, 64, 256)))
            at = start + rng.randrange(max(span - width, 0) + 1)
            if rng.random() < 0.85:
                at -= (at - start) % width
        return min(at, max(len(self.data) - width, 0))

    def _number(self) -> Step:
        rng = self.rng
        width = rng.choice((1, 2, 4, 4, 8, 8))
        order = rng.choice(("little", "little", "big"))
        at = self.place(width)
        value = int.from_bytes(self.data[at : at + width], order)  # type: ignore[arg-type]
        size = len(self.data)
        bits = rng.randrange(8 * width + 1)
        new = rng.choice(
            (
                0, 1, -1, 1 << bits, (1 << bits) - 1, -(1 << bits), value + 1, value - 1, value * 2, value // 2, -value,
                value ^ 1 << bits, value + 4096, value << 12, value >> 12, size, size - 1, size + 1, size - at,
                size // 4096, 4096, 0x1000000, rng.getrandbits(8 * width), rng.randrange(256),
            )
        )  # fmt: skip
        return ["set", at, (new & (1 << 8 * width) - 1).to_bytes(width, order).hex()]  # type: ignore[arg-type]

    def _flip(self) -> Step:
        at = self.place()
        byte = self.data[at] if at < len(self.data) else 0
        return ["set", at, bytes([byte ^ 1 << self.rng.randrange(8)]).hex()]

    def _swap(self) -> Step:
        width = self.rng.choice((2, 4, 8))
        at = self.place(width)
        return ["set", at, self.data[at : at + width][::-1].hex()]

    def _noise(self) -> Step:
        count = self.rng.choice((1, 3, 16, 64))
        return ["set", self.place(), self.rng.randbytes(count).hex()]

    def _truncate(self) -> Step:
        rng = self.rng
        size = self.place() + rng.choice((0, 0, 1, 8, 100)) if rng.random() < 0.6 else rng.randrange(len(self.data) + 1)
        return ["cut", size]

    def _block(self) -> Step:
        rng = self.rng
        count = rng.choice((1, 4, 8, 16, 24, 32, 56, 64, 512, 4096, 4096, 65536))
        at = self.place(rng.choice((1, 8)))
        kind = rng.randrange(4)
        if kind == 0:
            return ["remove", at, count]
        if kind == 1:
            return ["repeat", at, count, rng.choice((1, 1, 2, 10, 100)) if count < 4096 else 1]
        if kind == 2:
            return [
                "insert",
                at,
                (bytes(min(count, 64)) if rng.random() < 0.5 else rng.randbytes(min(count, 64))).hex(),
            ]
        return ["copy", at, count, self.place(8)]

    def _other(self) -> Step:
        rng = self.rng
        other = rng.choice(self.others)
        size = len(base(other))
        at = rng.choice((0, 0, rng.randrange(size), rng.randrange(size) & ~4095))
        if rng.random() < 0.5:
            return ["join", other, at, self.place(8)]
        return ["splice", other, at, rng.choice((8, 64, 512, 4096, 20000)), self.place(8)]

    def _tail(self) -> Step:
        return ["grow", self.rng.choice((1, 7, 4096, 100_000, 1 << 20))]


_MANY = (1, 1, 1, 2, 2, 3, 4, 6, 12)
_CONTAINERS = ("gzip", "xz", "zstd", "lz4", "bzip2", "lzop", "libvirt", "flattened", "flattened")


def choose(seed: str, names: Sequence[str], look: Callable[[Base], Places]) -> Recipe:
    """Choose an input.

    Args:
        seed: decides everything.
        names: bases to choose from.
        look: tells where the reader of a base looks.
    """
    rng = random.Random(seed)
    known = bases()
    chosen = known[rng.choices(names, [known[name].weight for name in names])[0]]
    alike = [name for name in names if known[name].weight >= 0.5] or list(names)
    chooser = _Chooser(rng, base(chosen.name), look(chosen), alike)
    steps = [chooser.step() for _ in range(rng.choice(_MANY))]
    if chosen.format not in NEVER_WRAPPED and rng.random() < 0.15 and chosen.weight >= 0.5:
        steps.append(["wrap", rng.choice(_CONTAINERS)])
        if rng.random() < 0.7:
            outer = apply(Recipe(chosen.name, tuple(steps)))
            if outer:
                inside = _Chooser(rng, outer, ((0, min(4200, len(outer))),), alike)
                steps += [inside.step() for _ in range(rng.choice((1, 1, 2, 4)))]
    return Recipe(chosen.name, tuple(steps))
