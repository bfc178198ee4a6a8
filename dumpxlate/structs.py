"""On-disk structures: one declaration gives a typed header object and a numpy dtype.

::

    @struct
    class PageDesc:
        \"\"\"page_desc in makedumpfile's diskdump_mod.h.\"\"\"
        offset: U64
        size: U32
        flags: U32
        page_flags: U64

    header = parse(PageDesc, body, 0, "<")       # a frozen PageDesc of Python numbers
    rows = table(PageDesc, body, 0, 1000, "<")   # read-only record array over the body, nothing copied
    data = pack(header, "<")

Fields lie packed in the order given; padding is a field of its own (``pad1: Annotated[bytes, 4]``). Every access is
checked against the length of the body first, so a hostile count never allocates.
"""

from __future__ import annotations

import dataclasses
import struct as _struct
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NamedTuple,
    NoReturn,
    TypeAlias,
    TypeVar,
    dataclass_transform,
    get_type_hints,
)

import numpy as np

from dumpxlate.errors import TruncatedDumpError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "I8",
    "I16",
    "I32",
    "I64",
    "U8",
    "U16",
    "U32",
    "U64",
    "Endian",
    "dtype_of",
    "pack",
    "parse",
    "size_of",
    "struct",
    "table",
]

Endian: TypeAlias = Literal["<", ">"]

U8: TypeAlias = Annotated[int, "B"]
U16: TypeAlias = Annotated[int, "H"]
U32: TypeAlias = Annotated[int, "I"]
U64: TypeAlias = Annotated[int, "Q"]
I8: TypeAlias = Annotated[int, "b"]
I16: TypeAlias = Annotated[int, "h"]
I32: TypeAlias = Annotated[int, "i"]
I64: TypeAlias = Annotated[int, "q"]

_NUMPY = {"B": "u1", "H": "u2", "I": "u4", "Q": "u8", "b": "i1", "h": "i2", "i": "i4", "q": "i8"}

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def struct(cls: type[T]) -> type[T]:
    """Make a class of annotated fields a frozen, slotted dataclass that ``parse`` and ``table`` understand.

    A field is one of the integer types of this module, or ``Annotated[bytes, n]`` for n raw bytes. None has a default.
    """
    # The methods that dataclass would write and compile, half a millisecond for each structure at every start of the
    # program, are the same for all of them.
    for name in _METHODS:
        setattr(cls, name, _Methods.__dict__[name])
    return dataclasses.dataclass(init=False, repr=False, eq=False, slots=True)(cls)


class _Methods:
    """What all structures have in common."""

    __slots__: tuple[str, ...] = ()

    def __init__(self, *values: Any, **named: Any) -> None:
        names = self.__slots__
        if len(values) + len(named) != len(names) or not named.keys() <= set(names[len(values) :]):
            raise TypeError(f"{type(self).__name__} takes {', '.join(names)}, each once")
        for name, value in zip(names, values, strict=False):
            object.__setattr__(self, name, value)
        for name, value in named.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and _values(self) == _values(other)

    def __hash__(self) -> int:
        return hash(_values(self))

    def __reduce__(self) -> tuple[type[Any], tuple[int | bytes, ...]]:
        return type(self), _values(self)

    def __repr__(self) -> str:
        fields = zip(self.__slots__, _values(self), strict=True)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in fields)})"


_METHODS = ("__init__", "__setattr__", "__delattr__", "__eq__", "__hash__", "__reduce__", "__repr__")


def _values(structure: Any) -> tuple[int | bytes, ...]:
    return tuple(getattr(structure, name) for name in structure.__slots__)


class _Layout(NamedTuple):
    """What is derived from a structure's declaration, once for each byte order."""

    packer: _struct.Struct
    dtype: np.dtype[np.void]


_LAYOUTS: dict[tuple[type[Any], Endian], _Layout] = {}


def _layout(cls: type[Any], endian: Endian) -> _Layout:
    found = _LAYOUTS.get((cls, endian))
    if found is None:
        hints = get_type_hints(cls, include_extras=True)
        fields = [(field.name, hints[field.name].__metadata__[0]) for field in dataclasses.fields(cls)]
        codes = (f"{code}s" if isinstance(code, int) else code for _, code in fields)
        columns = [(name, f"V{code}" if isinstance(code, int) else endian + _NUMPY[code]) for name, code in fields]
        found = _LAYOUTS[cls, endian] = _Layout(_struct.Struct(endian + "".join(codes)), np.dtype(columns))
    return found


def dtype_of(cls: type[Any], endian: Endian) -> np.dtype[np.void]:
    """Give the numpy record dtype of a structure."""
    return _layout(cls, endian).dtype


def size_of(cls: type[Any]) -> int:
    """Give the size of a structure in bytes."""
    return _layout(cls, "<").packer.size


def parse(cls: type[T], body: memoryview | bytes, offset: int, endian: Endian, *, what: str = "") -> T:
    """Read one structure.

    Raises:
        TruncatedDumpError: the body ends inside it; names the structure (``what``, else the class).
    """
    layout = _layout(cls, endian).packer
    if offset < 0 or offset + layout.size > len(body):
        raise TruncatedDumpError(what or cls.__name__, offset=offset, wanted=layout.size, available=len(body) - offset)
    return cls(*layout.unpack_from(body, offset))


def table(
    cls: type[Any], body: memoryview | bytes, offset: int, count: int, endian: Endian, *, what: str = ""
) -> NDArray[np.void]:
    """View ``count`` consecutive structures as a read-only record array, shape (count,).

    Raises:
        TruncatedDumpError: the body ends inside the table.
    """
    dtype = dtype_of(cls, endian)
    if offset < 0 or count < 0 or offset + count * dtype.itemsize > len(body):
        raise TruncatedDumpError(
            what or f"table of {cls.__name__}",
            offset=offset,
            wanted=count * dtype.itemsize,
            available=len(body) - offset,
        )
    rows = np.frombuffer(body, dtype, count, offset) if count else np.empty(0, dtype)
    rows.flags.writeable = False
    return rows


def pack(value: object, endian: Endian) -> bytes:
    """Write one structure as bytes."""
    layout = _layout(type(value), endian)
    return layout.packer.pack(*_values(value))
