"""Commands that look at pages and write none: compare, check, checksum, map."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dumpxlate.cli.groups import grouped
from dumpxlate.cli.guard import EXIT_INCOMPLETE, EXIT_NO, guarded, say
from dumpxlate.cli.options import AsJson, Cpu, Cr3, Files, Input, ShowProgress, Threads
from dumpxlate.cli.progress import ProgressStyle, show_progress

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["check", "checksum", "compare", "map_"]


@guarded
@grouped
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A dump.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The dump to compare it with, of any format.")],
    inputs: Input,
    strict: Annotated[
        bool, typer.Option("--strict", help="Tell absent pages from zero ones, and no registers from some.")
    ] = False,
    canonical: Annotated[
        bool,
        typer.Option("--canonical", help="Compare paravirtual guests' page tables by their own frames, as Xen saves."),
    ] = False,
    first: Annotated[int, typer.Option("--first", min=0, metavar="N", help="List the first N differences.")] = 10,
    as_json: AsJson = False,
    format_b: Annotated[str | None, typer.Option("--from-b", help="Format of B.")] = None,
    p2m_b: Annotated[
        str | None, typer.Option("--p2m-b", metavar="MAP|dump[:METHOD]", help="The guest's p2m map, for B.")
    ] = None,
    domain_b: Annotated[
        int | None, typer.Option("--domain-b", min=0, metavar="N", help="One domain of B, a dump of a whole Xen host.")
    ] = None,
    threads: Threads = None,
    progress: ShowProgress = ProgressStyle.AUTO,
) -> None:
    """Compare two dumps page by page, whatever their formats: exit code 0 if they hold the same, else 1.

    --from, --p2m and --domain speak of A.
    """
    from dumpxlate.cli.render_verify import show_comparison
    from dumpxlate.describe.dump import printable
    from dumpxlate.describe.verify import describe_comparison
    from dumpxlate.verify.compare import compare as run

    with (
        inputs.open([a]) as left,
        replace(inputs, format=format_b, p2m=p2m_b, domain=domain_b).open([b]) as right,
    ):
        for dump in (left, right):
            for line in dump.defects:
                say(printable(f"{dump.name}: {line}"))
        with show_progress(progress) as callback:
            found = run(
                left, right, strict=strict, canonical=canonical, first=first, threads=threads, progress=callback
            )
        described = describe_comparison(left, right, found)
        unlike = left.machine.paravirtual != right.machine.paravirtual
    if unlike and not (found.same or canonical):
        say("the page tables of one dump hold machine frames, those of the other the guest's own: try --canonical")
    _show(described, show_comparison, as_json=as_json)
    if not found.same:
        raise typer.Exit(EXIT_NO)


@guarded
@grouped
def check(
    files: Files,
    inputs: Input,
    first: Annotated[int, typer.Option("--first", min=0, metavar="N", help="List the first N runs of bad pages.")] = 20,
    as_json: AsJson = False,
    threads: Threads = None,
    progress: ShowProgress = ProgressStyle.AUTO,
) -> None:
    """Check that every page is there and decodes: exit code 0 if nothing is wrong, else 1 (5: it cannot be opened)."""
    from dumpxlate.cli.render_verify import show_check
    from dumpxlate.describe.verify import describe_check
    from dumpxlate.verify.check import check as run

    with inputs.open(files) as dump:
        with show_progress(progress) as callback:
            found = run(dump, first=first, threads=threads, progress=callback)
        described = describe_check(dump, found)
    _show(described, show_check, as_json=as_json)
    if not found.ok:
        raise typer.Exit(EXIT_NO)


@guarded
@grouped
def checksum(
    files: Files,
    inputs: Input,
    runs: Annotated[
        int, typer.Option("--runs", min=0, metavar="N", help="Also list the first N runs of memory, each with its own.")
    ] = 0,
    expect: Annotated[
        str | None, typer.Option("--expect", metavar="DIGEST", help="Exit with 1 unless one of the digests is this.")
    ] = None,
    as_json: AsJson = False,
    threads: Threads = None,
    progress: ShowProgress = ProgressStyle.AUTO,
) -> None:
    """Print digests of memory that are the same for the same guest in any format.

    Exit code 0; 1 if it is not the one expected; 4 if the dump is damaged, so that its digests lack something.
    """
    from dumpxlate.cli.render_verify import show_checksum
    from dumpxlate.describe.dump import printable
    from dumpxlate.describe.verify import describe_checksum
    from dumpxlate.verify.digest import checksum as run

    with inputs.open(files) as dump:
        with show_progress(progress) as callback:
            found = run(dump, runs=runs, threads=threads, progress=callback)
        described = describe_checksum(dump, found)
    for line in described["damage"]:
        say(f"{printable(dump.name)}: {line}")
    _show(described, show_checksum, as_json=as_json)
    if expect is not None and expect.lower() not in (described["content"], described["data"]):
        say(f"{printable(dump.name)}: not the digest expected")
        raise typer.Exit(EXIT_NO)
    if not found.complete:
        raise typer.Exit(EXIT_INCOMPLETE)


@guarded
@grouped
def map_(
    files: Files,
    inputs: Input,
    limit: Annotated[int, typer.Option("--limit", min=0, metavar="N", help="List the first N ranges; 0: all.")] = 1000,
    virtual: Annotated[bool, typer.Option("--virtual", help="Show what the page tables map instead.")] = False,
    cpu: Cpu = None,
    cr3: Cr3 = None,
    as_json: AsJson = False,
) -> None:
    """Show which pages are stored, zero, left out and absent, and where; reads the index, never pages.

    With --virtual: which virtual addresses lead where, by page tables.
    """
    from dumpxlate.cli.render_verify import bar_cells, show_bar, show_map
    from dumpxlate.describe.page_map import map_pages
    from dumpxlate.describe.verify import describe_map

    if virtual:
        _map_virtual(files, inputs, cpu=cpu, cr3=cr3, limit=limit or None, as_json=as_json)
        return
    if cpu is not None or cr3 is not None:
        raise ValueError("--cpu and --cr3 go with --virtual")
    cells = 0 if as_json else bar_cells()
    with inputs.open(files) as dump:
        found = map_pages(dump, limit=limit or None, cells=cells)
        described = describe_map(dump, found)
    if cells:
        show_bar(found.cells, found.cell * described["file"]["page_size"])
    _show(described, show_map, as_json=as_json)


def _map_virtual(
    files: list[str], inputs: Input, *, cpu: int | None, cr3: int | None, limit: int | None, as_json: bool
) -> None:
    from dumpxlate.cli.render_memory import show_mappings
    from dumpxlate.describe.memory import describe_mappings

    with inputs.open(files) as dump:
        described = describe_mappings(dump, cpu=cpu, cr3=cr3, limit=limit)
    _show(described, show_mappings, as_json=as_json)


def _show(described: dict[str, Any], show: Callable[[dict[str, Any]], None], *, as_json: bool) -> None:
    """Print a description as the user wants it."""
    from dumpxlate.cli.render import show_json

    if as_json:
        show_json(described)
    else:
        show(described)
