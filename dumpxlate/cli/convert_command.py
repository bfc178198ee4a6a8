"""The convert command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dumpxlate.cli.guard import EXIT_INCOMPLETE, guarded, say
from dumpxlate.cli.options import (
    AllowLoss,
    BadPagesName,
    Force,
    From,
    Map,
    MapKind,
    Missing,
    MissingName,
    Salvage,
    ShowProgress,
    Threads,
    number,
    open_dump,
    output,
)
from dumpxlate.cli.progress import ProgressStyle, show_progress

if TYPE_CHECKING:
    from dumpxlate.pipeline import Report

__all__ = ["convert"]


@guarded
def convert(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="IN...", help="The dump; all files of a split set; raw pieces as FILE@ADDRESS."),
    ],
    out: Annotated[str, typer.Option("--output", "-o", metavar="OUT", help="Where to write; - is stdout.")],
    to: Annotated[str | None, typer.Option("--to", "-t", help="Format; else by OUT's suffix, else elf.")] = None,
    format: From = None,
    p2m: Map = None,
    p2m_format: MapKind = None,
    missing: Missing = MissingName.EXCLUDED,
    force: Force = False,
    allow_loss: AllowLoss = False,
    salvage: Salvage = False,
    compress: Annotated[
        str | None, typer.Option("--compress", metavar="CODEC[:LEVEL]", help="zlib, lzo, snappy, zstd, or none.")
    ] = None,
    begin: Annotated[
        int, typer.Option("--begin", parser=number, metavar="ADDRESS", help="First physical address to write.")
    ] = 0,
    length: Annotated[
        int | None, typer.Option("--length", parser=number, metavar="BYTES", help="Bytes of memory to write.")
    ] = None,
    split: Annotated[int | None, typer.Option("--split", min=1, help="Write a set: OUT.1 to OUT.N.")] = None,
    part: Annotated[int | None, typer.Option("--part", min=1, help="Write only this file of the set.")] = None,
    flattened: Annotated[
        bool, typer.Option("--flattened", help="Wrap the output into makedumpfile's records for pipes.")
    ] = False,
    bad_pages: Annotated[
        BadPagesName, typer.Option("--bad-pages", help="What to do with pages that do not decode.")
    ] = BadPagesName.STOP,
    threads: Threads = None,
    progress: ShowProgress = ProgressStyle.AUTO,
    report: Annotated[Path | None, typer.Option("--report", help="Write a report as JSON to this file.")] = None,
) -> None:
    """Write a dump in another format."""
    from dumpxlate.format import WriteOptions
    from dumpxlate.pipeline import convert_set
    from dumpxlate.registry import format_for

    with (
        open_dump(sources, format=format, p2m=p2m, kind=p2m_format, missing=missing) as dump,
        show_progress(progress) as callback,
    ):
        done = convert_set(
            dump,
            output(out),
            to or format_for(out),
            WriteOptions(compress=compress, begin=begin, length=length),
            split=split,
            part=part,
            allow_loss=allow_loss,
            salvage=salvage,
            overwrite=force,
            flattened=flattened,
            bad_pages=bad_pages.value,
            threads=threads,
            progress=callback,
        )
    _tell(done, report)


def _tell(done: list[Report], file: Path | None) -> None:
    """Sum up what was written, and leave with the code for it."""
    from dumpxlate.cli.render import summary
    from dumpxlate.describe import describe_report

    described: list[dict[str, Any]] = [describe_report(each) for each in done]
    if file:
        file.write_text(json.dumps(described[0] if len(described) == 1 else described, indent=2) + "\n")
    for damage in described[0]["damage"]:
        say(damage)
    for loss in described[0]["losses"]:
        say(f"lost: {loss['what']} ({loss['why']})")
    for each in described:
        say(summary(each))
    if not all(each.complete for each in done):
        raise typer.Exit(EXIT_INCOMPLETE)
