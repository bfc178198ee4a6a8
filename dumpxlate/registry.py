"""Finds the formats, and finds which one a file is of: by evidence, not by order."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard, cast

from dumpxlate.errors import (
    AmbiguousFormatError,
    DumpxlateError,
    FormatError,
    OutputError,
    UnknownFormatError,
    UnsupportedFeatureError,
)
from dumpxlate.format import OpenOptions
from dumpxlate.io.pipe import standard_input
from dumpxlate.io.source import open_source
from dumpxlate.io.spool import spooled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dumpxlate.dump import Dump
    from dumpxlate.format import Format, Match, Wrapper
    from dumpxlate.io.source import Source

__all__ = [
    "all_formats",
    "all_wrappers",
    "detect",
    "find_format",
    "find_wrapper",
    "format_for",
    "is_wrapper",
    "open_dump",
    "open_from",
    "reads",
]

GROUP = "dumpxlate.formats"
"""Entry point group through which other distributions add formats."""

_PACKED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".lzo")

_NESTING = 4
"""Containers within containers that are opened: a real dump has two at most (flattened, then compressed)."""


@cache
def _packages() -> tuple[Format | Wrapper, ...]:
    """Load every package in ``dumpxlate.formats``, and those of other distributions."""
    try:
        package = importlib.import_module("dumpxlate.formats")
    except ImportError as error:
        raise DumpxlateError(
            "dumpxlate.formats is missing: the link dumpxlate/formats was lost when this was checked out or built "
            "(a zip archive, or core.symlinks=false); use git clone or a tar archive"
        ) from error
    found: list[Format | Wrapper] = [
        importlib.import_module(f"{package.__name__}.{module.name}").FORMAT
        for module in pkgutil.iter_modules(package.__path__)
        if module.ispkg
    ]
    found += _added()
    return tuple(sorted(found, key=lambda each: each.name))


def _added() -> list[Format | Wrapper]:
    """Load the formats of other distributions.

    ``importlib.metadata``, which knows them, takes as long to import as all of our formats: it is not where no
    distribution adds any, which a look at the files that it would read tells.
    """
    if not any(map(_may_add_formats, sys.path)):
        return []
    from importlib.metadata import entry_points

    return [entry.load() for entry in entry_points(group=GROUP)]


def _may_add_formats(folder: str) -> bool:
    """Tell whether an entry of ``sys.path`` has a distribution with formats; what is no folder (a zip file) may."""
    try:
        with os.scandir(folder or os.curdir) as entries:
            infos = [entry.path for entry in entries if entry.name.endswith((".dist-info", ".egg-info"))]
    except OSError as error:
        return isinstance(error, NotADirectoryError)
    return any(GROUP.encode() in _entry_points(info) for info in infos)


def _entry_points(info: str) -> bytes:
    try:
        return Path(info, "entry_points.txt").read_bytes()
    except OSError:
        return b""


def all_formats() -> tuple[Format, ...]:
    """Give every dump format, by name.

    Raises:
        DumpxlateError: the package of formats is missing from this installation.
    """
    return tuple(cast("Format", each) for each in _packages() if not is_wrapper(each))


def all_wrappers() -> tuple[Wrapper, ...]:
    """Give every container that dumps are wrapped in, by name."""
    return tuple(each for each in _packages() if is_wrapper(each))


def is_wrapper(each: Format | Wrapper) -> TypeGuard[Wrapper]:
    """Tell a container from a dump format."""
    return hasattr(each, "unwrap")


def reads(format: Format) -> bool:
    """Tell whether a format is read; one that only names what it recognises says that it is not."""
    return bool(getattr(format, "reads", True))


def find_format(name: str) -> Format:
    """Find a dump format by name.

    Raises:
        UnknownFormatError: there is none of that name; the message lists those there are.
    """
    for format in all_formats():
        if format.name == name:
            return format
    names = [format.name for format in all_formats()]
    raise UnknownFormatError(f"no format is called {name!r}: there are {', '.join(names)}", tried=names)


def find_wrapper(name: str) -> Wrapper:
    """Find a container by name.

    Raises:
        UnknownFormatError: there is none of that name.
    """
    for wrapper in all_wrappers():
        if wrapper.name == name:
            return wrapper
    names = [wrapper.name for wrapper in all_wrappers()]
    raise UnknownFormatError(f"no container is called {name!r}: there are {', '.join(names)}", tried=names)


def format_for(path: str | os.PathLike[str]) -> str:
    """Choose what to write by a file's suffix; ELF, which most tools read, where the suffix says nothing.

    Raises:
        OutputError: the suffix promises a compressed file, which no writer makes.
    """
    name = os.fspath(path).lower()
    if name.endswith(_PACKED):
        why = "is the name of a packed file, which no output is: pack what comes out of -o -, or give --to"
        raise OutputError(why, path=os.fspath(path))
    return next((format.name for format in all_formats() if format.writes and name.endswith(format.suffixes)), "elf")


def detect(source: Source) -> tuple[Format | Wrapper, Match]:
    """Ask every format about a file; the most certain one wins.

    Raises:
        UnknownFormatError: none recognises it.
        AmbiguousFormatError: two are equally certain.
    """
    claims = [(each, match) for each in _packages() if (match := each.detect(source))]
    if not claims:
        names = [each.name for each in _packages()]
        head = bytes(source.view(0, min(source.size, 8))).hex(" ")
        raise UnknownFormatError(
            f"not a dump in a known format: begins with {head} (known: {', '.join(names)})",
            path=source.name,
            tried=names,
        )
    best = max(match.confidence for _, match in claims)
    winners = [(each, match) for each, match in claims if match.confidence == best]
    if len(winners) > 1:
        names = [each.name for each, _ in winners]
        raise AmbiguousFormatError(f"may be {' or '.join(names)}: choose with --from", path=source.name, matches=names)
    return winners[0]


def open_from(sources: Sequence[Source], format: str | None = None, options: OpenOptions | None = None) -> Dump:
    """Open a dump in a source, or in the sources of a split set, of a format given by name or detected.

    Containers are opened on the way.

    Raises:
        FormatError: the source is no dump, or not of that format; the error names the source.
    """
    inner: list[Source] = []
    around: list[str] = []
    complaints: list[str] = []
    told: dict[str, int | str] = {}
    try:
        for source in sources:
            inside, names = _unwrap(source, complaints, told)
            inner.append(inside)
            around += names
        chosen = find_format(format) if format else _agreed(inner)
        dump = chosen.open(inner, options or OpenOptions())
    except BaseException as error:
        # Whoever gave the sources closes them; the files inside are ours.
        for source, inside in zip(sources, inner, strict=False):
            if inside is not source:
                inside.close()
        if isinstance(error, FormatError):
            error.path = error.path or sources[0].name
            # What the file inside lacks is explained by what its container lacks.
            error.args = ("; ".join([*map(str, error.args), *complaints]),)
        raise
    variant = f"{dump.variant}, in {', '.join(sorted(set(around)))}" if around else dump.variant
    return replace(dump, variant=variant, damage=(*complaints, *dump.damage), attributes={**dump.attributes, **told})


def _unwrap(source: Source, complaints: list[str], told: dict[str, int | str]) -> tuple[Source, list[str]]:
    """Open the containers around a file; gives the file inside, and what it was wrapped in.

    Args:
        source: the file.
        complaints: takes what the containers lack.
        told: takes what the containers tell of the dump.

    Raises:
        UnsupportedFeatureError: there is always one more container.
    """
    names: list[str] = []
    given = source
    try:
        while True:
            claims = [(match.confidence, each) for each in all_wrappers() if (match := each.detect(source))]
            if not claims:
                return source, names
            wrapper = max(claims, key=lambda claim: claim[0])[1]
            names.append(wrapper.name)
            if len(names) > _NESTING:
                raise UnsupportedFeatureError(
                    f"more than {_NESTING} containers in one another: {', '.join(names)}", feature="nesting"
                )
            source = wrapper.unwrap(source)
            complaints += filter(None, [getattr(source, "complaint", None)])
            told |= getattr(source, "attributes", {})
    except BaseException:
        if source is not given:
            source.close()
        raise


def _agreed(sources: Sequence[Source]) -> Format:
    """Detect the one format that all files of a set have."""
    found = [detect(source)[0] for source in sources]
    first = found[0]
    names = sorted({each.name for each in found})
    if len(names) > 1 or is_wrapper(first):
        raise AmbiguousFormatError(f"the files are of different formats: {', '.join(names)}", matches=names)
    return cast("Format", first)


def open_dump(
    paths: Sequence[str | os.PathLike[str]], format: str | None = None, options: OpenOptions | None = None
) -> Dump:
    """Open a dump file, or the files of a split set; closing the dump closes them.

    Raises:
        FormatError: it is no dump, or not of that format.
        OSError: it cannot be read.
    """
    sources: list[Source] = []
    try:
        for path in paths:
            sources.append(spooled(standard_input()) if path == "-" else open_source(path))  # noqa: PERF401 - those opened so far must be closed when one fails
        return open_from(sources, format, options)
    except BaseException:
        for source in sources:
            source.close()
        raise
