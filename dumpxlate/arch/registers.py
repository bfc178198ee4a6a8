"""Register layouts: which bytes of a note or of a context hold which register.

Every producer stores the same registers in an order of its own. A ``RegisterLayout`` is that order as a table,
under names which all layouts of an architecture share, so that translating a CPU from one producer's form to
another's is: unpack with one layout, pack with the other. A register that the other layout lacks falls away; one
that it alone has stays zero. Values are unsigned Python integers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from dumpxlate.errors import CorruptDumpError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dumpxlate.structs import Endian

__all__ = ["RegisterLayout", "numbered", "row"]


@dataclass(frozen=True, slots=True)
class RegisterLayout:
    """Where each register lies in a block of bytes.

    Attributes:
        name: what the block is, for messages.
        size: bytes of the whole block, with whatever it holds besides registers.
        fields: canonical register name -> (offset, width in bytes).
    """

    name: str
    size: int
    fields: Mapping[str, tuple[int, int]] = field(hash=False)

    def unpack(self, desc: bytes | memoryview, endian: Endian) -> dict[str, int]:
        """Read every register; bytes behind the block are ignored.

        Raises:
            CorruptDumpError: there are fewer bytes than the block has.
        """
        self._check(desc)
        order = _ORDER[endian]
        return {name: int.from_bytes(desc[at : at + width], order) for name, (at, width) in self.fields.items()}

    def pack(self, registers: Mapping[str, int], endian: Endian, *, into: bytes | memoryview | None = None) -> bytes:
        """Write the registers that this layout knows, each cut to its width.

        Args:
            registers: values by canonical name; names it does not know are ignored, negative values wrap.
            endian: byte order.
            into: a block whose bytes are kept wherever no register is given; zeros if absent.

        Raises:
            CorruptDumpError: ``into`` is shorter than the block.
        """
        if into is not None:
            self._check(into)
        block = bytearray(self.size if into is None else into)
        for name, (at, width) in self.fields.items():
            if name in registers:
                value = registers[name] & ((1 << 8 * width) - 1)
                block[at : at + width] = value.to_bytes(width, _ORDER[endian])
        return bytes(block)

    def _check(self, desc: bytes | memoryview) -> None:
        if len(desc) < self.size:
            raise CorruptDumpError(f"{len(desc)} bytes, expected {self.size}", what=self.name)


_ORDER: Mapping[Endian, Literal["little", "big"]] = {"<": "little", ">": "big"}


def row(names: str, *, at: int, width: int, step: int | None = None) -> dict[str, tuple[int, int]]:
    """Give fields that follow each other.

    Args:
        names: register names, separated by blanks.
        at: offset of the first.
        width: bytes of each.
        step: bytes from one to the next, if they are padded.
    """
    step = width if step is None else step
    return {name: (at + step * i, width) for i, name in enumerate(names.split())}


def numbered(prefix: str, count: int, *, at: int, width: int) -> dict[str, tuple[int, int]]:
    """Give fields ``prefix0``, ``prefix1``, ... that follow each other."""
    return row(" ".join(f"{prefix}{i}" for i in range(count)), at=at, width=width)
