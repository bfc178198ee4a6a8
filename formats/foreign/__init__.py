"""foreign: dumps that are recognised and not read, so that one knows what one has.

Each kind is named with what it is, why it is not read where there is a reason, and what can be done. They are told by
their first bytes, listed in ``kinds.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from dumpxlate.errors import UnsupportedFeatureError
from dumpxlate.format import Confidence, Match
from dumpxlate.formats.foreign.kinds import kind_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dumpxlate.dump import Dump
    from dumpxlate.format import OpenOptions, WriteOptions
    from dumpxlate.io.source import Source

__all__ = ["FORMAT"]


class ForeignFormat:
    """Names dumps that cannot be read."""

    name = "foreign"
    title = "recognised only: LKCD, sadump, s390, Windows, VMware, Hyper-V"
    suffixes = ()
    reads = False
    writes = False
    options: tuple[str, ...] = ()
    codecs: tuple[str, ...] = ()

    def detect(self, source: Source) -> Match | None:
        """Recognise the magic numbers."""
        kind = kind_of(source)
        return Match(Confidence.SIGNATURE, kind.what) if kind else None

    def open(self, sources: Sequence[Source], options: OpenOptions) -> Dump:
        """Refuse, and say what it is.

        Raises:
            UnsupportedFeatureError: always.
        """
        for source in sources:
            kind = kind_of(source)
            if kind:
                raise UnsupportedFeatureError(
                    f"{kind.what}: recognised, but not read: {kind.advice}", path=source.name, feature=kind.name
                )
        raise UnsupportedFeatureError("none of the kinds that are only recognised", path=sources[0].name)

    def writer(self, dump: Dump, options: WriteOptions) -> NoReturn:
        """Refuse.

        Raises:
            UnsupportedFeatureError: always.
        """
        raise UnsupportedFeatureError("is no format to write", format=self.name, feature="writing")


FORMAT = ForeignFormat()
