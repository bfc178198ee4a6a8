"""Every error that dumpxlate raises.

::

    DumpxlateError
      FormatError                   the file and a format do not fit          .path .format
        UnknownFormatError          nothing recognised it                     .tried
        AmbiguousFormatError        two formats claim it equally              .matches
        UnsupportedFeatureError     recognised; this variant is not handled   .feature
          NeedsAllError             one pass over a pipe will not do          .reason
        CorruptDumpError            the file contradicts itself               .offset .what
          TruncatedDumpError        it ends before something it promises      .wanted .available
          CorruptPageError          one page does not decode                  .pfn .codec
      MapError                      a p2m map is missing, unreadable, or does not fit the dump
      PageUnavailableError          (also LookupError) no content for a pfn   .pfn .state
      TranslationError              (also LookupError) an address is unmapped .address .level
      MissingCodecError             (also ImportError) the library is absent  .codec .extra
      LossyConversionError          the target cannot carry something         .losses
      OutputError                   the output cannot be written as asked     .path
      VerificationError             what was written reads back differently   .path

``OSError`` passes through untouched; a wrong argument is a ``ValueError``.

Messages are lower case, without a full stop, facts before advice: *where: what: found, expected*. Low levels say
what is wrong; callers add where.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "AmbiguousFormatError",
    "CorruptDumpError",
    "CorruptPageError",
    "DumpxlateError",
    "FormatError",
    "LossyConversionError",
    "MapError",
    "MissingCodecError",
    "NeedsAllError",
    "OutputError",
    "PageUnavailableError",
    "TranslationError",
    "TruncatedDumpError",
    "UnknownFormatError",
    "UnsupportedFeatureError",
    "VerificationError",
]


class DumpxlateError(Exception):
    """Base of everything that dumpxlate raises by itself. All of them pass between processes as they are."""

    def __reduce__(self) -> tuple[Callable[..., DumpxlateError], tuple[Any, ...], dict[str, Any]]:
        return _again, (type(self), *self.args), self.__dict__


def _again(kind: type[DumpxlateError], *args: object) -> DumpxlateError:
    """Make an error of what it said, since the arguments that it was made with are not kept."""
    return kind.__new__(kind, *args)


class FormatError(DumpxlateError):
    """The file and a format do not fit.

    Attributes:
        path: name of the file; whoever opened it fills it in on the way up.
        format: name of the format that was tried, if one was.
    """

    def __init__(self, message: str, *, path: str | None = None, format: str | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.format = format

    def __str__(self) -> str:
        message = super().__str__()
        return f"{self.path}: {message}" if self.path else message


class UnknownFormatError(FormatError):
    """No format recognised the file. ``tried`` names those that were asked."""

    def __init__(self, message: str, *, path: str | None = None, tried: Sequence[str] = ()) -> None:
        super().__init__(message, path=path)
        self.tried = tuple(tried)


class AmbiguousFormatError(FormatError):
    """Several formats claim the file with the same confidence; ``matches`` names them."""

    def __init__(self, message: str, *, path: str | None = None, matches: Sequence[str] = ()) -> None:
        super().__init__(message, path=path)
        self.matches = tuple(matches)


class UnsupportedFeatureError(FormatError):
    """The file was recognised, but this variant of it is not handled. ``feature`` names the variant."""

    def __init__(self, message: str, *, path: str | None = None, format: str | None = None, feature: str = "") -> None:
        super().__init__(message, path=path, format=format)
        self.feature = feature


class NeedsAllError(UnsupportedFeatureError):
    """One pass over a pipe will not do for a conversion, for a ``reason``; nothing was taken from the pipe yet."""

    def __init__(self, reason: str, *, path: str) -> None:
        super().__init__(f"all of it is needed before anything can be written: {reason}", path=path, feature="one pass")
        self.reason = reason


class CorruptDumpError(FormatError):
    """The file contradicts itself. ``offset`` is where (bytes, -1 if it has no place), ``what`` names the structure."""

    def __init__(
        self,
        message: str,
        *,
        path: str | None = None,
        format: str | None = None,
        offset: int = -1,
        what: str = "",
    ) -> None:
        where = f"{what} at {offset:#x}: " if what and offset >= 0 else f"{what}: " if what else ""
        super().__init__(where + message, path=path, format=format)
        self.offset = offset
        self.what = what


class TruncatedDumpError(CorruptDumpError):
    """The file ends before something that it promises; ``wanted`` and ``available`` are bytes."""

    def __init__(
        self,
        what: str,
        *,
        path: str | None = None,
        format: str | None = None,
        offset: int,
        wanted: int,
        available: int,
    ) -> None:
        super().__init__(
            f"truncated: needs {wanted} bytes, the file has {max(available, 0)} there",
            path=path,
            format=format,
            offset=offset,
            what=what,
        )
        self.wanted = wanted
        self.available = available


class CorruptPageError(CorruptDumpError):
    """One page does not decode; ``pfn`` is -1 where the codec cannot know it."""

    def __init__(self, message: str, *, path: str | None = None, pfn: int = -1, codec: str = "") -> None:
        super().__init__(message, path=path, what=f"page {pfn:#x}" if pfn >= 0 else "page")
        self.pfn = pfn
        self.codec = codec


class MapError(DumpxlateError):
    """A pfn-to-mfn map is missing, cannot be read, or does not fit the dump."""


class PageUnavailableError(DumpxlateError, LookupError):
    """There is no content for a page; ``state`` says why (absent, excluded, bad)."""

    def __init__(self, pfn: int, state: str) -> None:
        super().__init__(f"page {pfn:#x} is {state}")
        self.pfn = pfn
        self.state = state


class TranslationError(DumpxlateError, LookupError):
    """An address has no translation; ``level`` is the paging level that said so."""

    def __init__(self, address: int, message: str, *, level: int = 0) -> None:
        super().__init__(f"address {address:#x}: {message}")
        self.address = address
        self.level = level


class MissingCodecError(DumpxlateError, ImportError):
    """The library of a codec is not installed; ``extra`` is what brings it."""

    def __init__(self, codec: str, extra: str) -> None:
        super().__init__(f"pages are {codec}-compressed: install {extra}")
        self.codec = codec
        self.extra = extra


class LossyConversionError(DumpxlateError):
    """The target format cannot carry something of the source; ``losses`` says what."""

    def __init__(self, message: str, losses: Sequence[object]) -> None:
        super().__init__(message)
        self.losses = tuple(losses)


class OutputError(DumpxlateError):
    """The output cannot be written where, or as, it was asked for."""

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path


class VerificationError(DumpxlateError):
    """An output was written, read again, and does not hold what went into it."""

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
