"""What a conversion is refused for before a byte is written, unless the user takes what there is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpxlate.errors import CorruptDumpError, LossyConversionError, MapError
from dumpxlate.format import Accompanied, Loss
from dumpxlate.io.sink import PipeSink
from dumpxlate.stores import MISS_LIMIT

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from dumpxlate.dump import Dump
    from dumpxlate.format import Writer
    from dumpxlate.stores import MapFit

__all__ = ["declared", "lost_beside", "refuse_damage"]


def lost_beside(writer: Writer, target: str | os.PathLike[str] | PipeSink) -> tuple[Loss, ...]:
    """Say what stands in the file beside the output, where there is no place beside it."""
    if isinstance(target, PipeSink) and isinstance(writer, Accompanied):
        return (Loss(writer.companion_holds, f"there is no place for {writer.companion_suffix} beside a pipe"),)
    return ()


def refuse_damage(dump: Dump, *, salvage: bool) -> None:
    """Stop where parts of the input are missing or broken, unless what is there will do."""
    if dump.defects and not salvage:
        raise CorruptDumpError(
            f"{'; '.join(dump.defects)} (--salvage converts what is there)", path=dump.name, format=dump.format
        )


def declared(dump: Dump, losses: tuple[Loss, ...], fit: MapFit | None, *, allowed: bool) -> tuple[Loss, ...]:
    """Give all that is lost, unless that stops the conversion.

    A few pages that the map does not lead to are no reason to stop, and a loss all the same.

    Raises:
        LossyConversionError: the target cannot carry something.
        MapError: the map does not fit.
    """
    if not allowed:
        _refuse_loss(dump, losses, fit)
    if fit and fit.unmapped:
        losses += (Loss(f"{fit.unmapped:,} pages of the dump", "no pfn of the map leads to them"),)
    return losses


def _refuse_loss(dump: Dump, losses: Sequence[Loss], fit: MapFit | None) -> None:
    """Stop before a byte is written where the result would not hold what the dump holds."""
    if fit and not fit.fits:
        raise MapError(
            f"{dump.name}: the p2m map does not fit this dump: {fit}; up to {MISS_LIMIT:.0%} of either is accepted "
            "(--allow-loss goes on all the same)"
        )
    if losses:
        raise LossyConversionError(
            f"{dump.name}: the target cannot carry {', '.join(map(str, losses))} (--allow-loss leaves it out)", losses
        )
