"""Every error: its place in the tree, what it carries, and how it reads."""

from __future__ import annotations

import inspect
import pickle

import pytest

from dumpxlate import errors
from dumpxlate.errors import (
    AmbiguousFormatError,
    CorruptDumpError,
    CorruptPageError,
    DumpxlateError,
    FormatError,
    LossyConversionError,
    MapError,
    MissingCodecError,
    NeedsAllError,
    OutputError,
    PageUnavailableError,
    TranslationError,
    TruncatedDumpError,
    UnknownFormatError,
    UnsupportedFeatureError,
    VerificationError,
)

PARENTS = {
    FormatError: DumpxlateError,
    UnknownFormatError: FormatError,
    AmbiguousFormatError: FormatError,
    UnsupportedFeatureError: FormatError,
    NeedsAllError: UnsupportedFeatureError,
    CorruptDumpError: FormatError,
    TruncatedDumpError: CorruptDumpError,
    CorruptPageError: CorruptDumpError,
    MapError: DumpxlateError,
    PageUnavailableError: LookupError,
    TranslationError: LookupError,
    MissingCodecError: ImportError,
    LossyConversionError: DumpxlateError,
    OutputError: DumpxlateError,
    VerificationError: DumpxlateError,
}


def test_the_tree_is_the_one_drawn() -> None:
    found = {name for name, each in vars(errors).items() if inspect.isclass(each) and issubclass(each, Exception)}
    assert found == set(errors.__all__) == {each.__name__ for each in PARENTS} | {"DumpxlateError"}
    for child, parent in PARENTS.items():
        assert issubclass(child, parent)
        assert issubclass(child, DumpxlateError)
        assert child.__name__ in (errors.__doc__ or "")
    assert not issubclass(DumpxlateError, (OSError, ValueError))


def test_the_path_comes_first_once_somebody_knows_it() -> None:
    error = FormatError("is odd", format="raw")
    assert (str(error), error.path, error.format) == ("is odd", None, "raw")
    error.path = "a.core"
    assert str(error) == "a.core: is odd"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (CorruptDumpError("5, expected 4"), "5, expected 4"),
        (CorruptDumpError("5, expected 4", what="header"), "header: 5, expected 4"),
        (CorruptDumpError("5, expected 4", what="header", offset=16), "header at 0x10: 5, expected 4"),
        (CorruptDumpError("5, expected 4", what="header", offset=0, path="f"), "f: header at 0x0: 5, expected 4"),
        (CorruptDumpError("5, expected 4", offset=16), "5, expected 4"),
        (
            TruncatedDumpError("index", path="f", offset=256, wanted=80, available=12),
            "f: index at 0x100: truncated: needs 80 bytes, the file has 12 there",
        ),
        (
            TruncatedDumpError("index", offset=256, wanted=80, available=-12),
            "index at 0x100: truncated: needs 80 bytes, the file has 0 there",
        ),
        (CorruptPageError("too long"), "page: too long"),
        (CorruptPageError("too long", pfn=0, path="f"), "f: page 0x0: too long"),
        (PageUnavailableError(0x1F, "excluded"), "page 0x1f is excluded"),
        (TranslationError(0xFFFF, "not mapped", level=2), "address 0xffff: not mapped"),
        (MissingCodecError("lzo", "dumpxlate[lzo]"), "pages are lzo-compressed: install dumpxlate[lzo]"),
        (OutputError("exists", path="out"), "out: exists"),
        (UnknownFormatError("is empty", path="f"), "f: is empty"),
        (AmbiguousFormatError("may be a or b"), "may be a or b"),
        (UnsupportedFeatureError("no sets", path="f"), "f: no sets"),
        (MapError("no map"), "no map"),
        (LossyConversionError("2 losses", ["a", "b"]), "2 losses"),
    ],
)
def test_wording(error: DumpxlateError, text: str) -> None:
    assert str(error) == text


def test_what_they_carry() -> None:
    truncated = TruncatedDumpError("index", offset=256, wanted=80, available=-12, format="kdump")
    assert (truncated.what, truncated.offset, truncated.wanted, truncated.available) == ("index", 256, 80, -12)
    assert truncated.format == "kdump"
    page = CorruptPageError("too long", pfn=7, codec="lzo")
    assert (page.pfn, page.codec, page.offset) == (7, "lzo", -1)
    assert (CorruptDumpError("x").offset, CorruptDumpError("x").what) == (-1, "")
    assert UnknownFormatError("x", tried=["a", "b"]).tried == ("a", "b")
    assert AmbiguousFormatError("x", matches=["a", "b"]).matches == ("a", "b")
    assert UnsupportedFeatureError("x", feature="big-endian").feature == "big-endian"
    assert LossyConversionError("x", [1, 2]).losses == (1, 2)
    unavailable = PageUnavailableError(7, "absent")
    assert (unavailable.pfn, unavailable.state) == (7, "absent")
    translation = TranslationError(7, "x", level=3)
    assert (translation.address, translation.level) == (7, 3)
    codec = MissingCodecError("zstd", "dumpxlate[zstd]")
    assert (codec.codec, codec.extra) == ("zstd", "dumpxlate[zstd]")
    assert OutputError("x", path="out").path == "out"


@pytest.mark.parametrize(
    "error",
    [
        FormatError("is odd", path="a", format="raw"),
        CorruptDumpError("is odd", path="a", offset=5, what="header"),
        TruncatedDumpError("page", path="a", offset=5, wanted=7, available=2),
        CorruptPageError("does not decode", pfn=3, codec="lzo"),
        OutputError("is full", path="b"),
        VerificationError("differs", path="b"),
        MapError("no map"),
        MissingCodecError("lzo", "lzo"),
    ],
)
def test_errors_pass_between_processes(error: DumpxlateError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
