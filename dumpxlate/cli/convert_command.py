"""The convert command."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from dumpxlate.cli.groups import Group, grouped
from dumpxlate.cli.guard import EXIT_INCOMPLETE, EXIT_NO, guarded, say
from dumpxlate.cli.options import BadPagesName, Force, Input, ShowProgress, Threads, number, output, piece
from dumpxlate.cli.progress import ProgressStyle, show_progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dumpxlate.dump import Dump
    from dumpxlate.format import WriteOptions
    from dumpxlate.io.sink import PipeSink
    from dumpxlate.progress import Progress
    from dumpxlate.writing.report import Report

__all__ = ["convert"]


class PagingName(StrEnum):
    """Which memory gets a segment where mappings are written."""

    ALL = "all"
    MAPPED = "mapped"


@dataclass(frozen=True)
class Content(Group):
    """What is to be written, and how the format is to hold it: fields as in WriteOptions."""

    compress: Annotated[
        str | None, typer.Option("--compress", metavar="CODEC[:LEVEL]", help="zlib, lzo, snappy, zstd, or none.")
    ] = None
    begin: Annotated[
        int, typer.Option("--begin", parser=number, metavar="ADDRESS", help="First physical address to write.")
    ] = 0
    length: Annotated[
        int | None, typer.Option("--length", parser=number, metavar="BYTES", help="Bytes of memory to write.")
    ] = None

    paging: Annotated[
        PagingName | None,
        typer.Option(
            "--paging",
            metavar="[=mapped]",
            help="Give memory its virtual addresses, by the guest's page tables; =mapped: only what they map.",
        ),
    ] = None

    def options(self) -> WriteOptions:
        """Give them to a writer."""
        from dumpxlate.format import WriteOptions

        return WriteOptions(**vars(self) | {"paging": self.paging.value if self.paging else None})


@dataclass(frozen=True)
class Conduct(Group):
    """How to go about it: fields as in ``dumpxlate.pipeline.convert_set``."""

    force: Force = False
    allow_loss: Annotated[
        bool, typer.Option("--allow-loss", help="Write although something is lost, or the map does not fit.")
    ] = False
    salvage: Annotated[bool, typer.Option("--salvage", help="Write what is there of a damaged input.")] = False
    split: Annotated[int | None, typer.Option("--split", min=1, help="Write a set: OUT.1 to OUT.N.")] = None
    part: Annotated[int | None, typer.Option("--part", min=1, help="Write only this file of the set.")] = None
    flattened: Annotated[
        bool, typer.Option("--flattened", help="Wrap the output into makedumpfile's records for pipes.")
    ] = False
    bad_pages: Annotated[
        BadPagesName, typer.Option("--bad-pages", help="What to do with pages that do not decode.")
    ] = BadPagesName.STOP
    canonical: Annotated[
        bool,
        typer.Option("--canonical", help="Write a paravirtual guest's page tables with its own frames (pfn)."),
    ] = False
    threads: Threads = None
    verify: Annotated[
        bool, typer.Option("--verify", help="Read the output again, and compare it, before it gets its name.")
    ] = False
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep what is written when interrupted, and go on with what was kept.")
    ] = False

    def arguments(self) -> dict[str, Any]:
        """Give them to the pipeline."""
        given = dict(vars(self))
        return given | {"overwrite": given.pop("force"), "bad_pages": self.bad_pages.value}


class _Work(NamedTuple):
    """What a command line asks to be written."""

    target: Path | PipeSink
    format: str
    options: WriteOptions
    conduct: Conduct
    vmcoreinfo: str | None


@guarded
@grouped
def convert(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="IN...", help="The dump; all files of a split set; raw pieces as FILE@ADDRESS."),
    ],
    out: Annotated[str, typer.Option("--output", "-o", metavar="OUT", help="Where to write; - is stdout.")],
    inputs: Input,
    content: Content,
    conduct: Conduct,
    to: Annotated[str | None, typer.Option("--to", "-t", help="Format; else by OUT's suffix, else elf.")] = None,
    vmcoreinfo: Annotated[
        str | None,
        typer.Option(
            "--vmcoreinfo",
            metavar="FILE|search",
            help="VMCOREINFO to write: a file's text, or what is found in memory.",
        ),
    ] = None,
    progress: ShowProgress = ProgressStyle.AUTO,
    spool: Annotated[
        bool, typer.Option("--spool", help="Take all of stdin into a temporary file before anything is written.")
    ] = False,
    dask: Annotated[
        str | None, typer.Option("--dask", metavar="ADDRESS", help="Have a Dask cluster write the files of a set.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write a report as JSON to this file; - is stdout.")
    ] = None,
) -> None:
    """Write a dump in another format."""
    from dumpxlate.describe.dump import describe_report
    from dumpxlate.registry import format_for

    read = [*(piece(name)[0] for name in sources), *inputs.files(), *([vmcoreinfo] if vmcoreinfo else [])]
    with _report_to(report, out, read, conduct) as write_report:
        if dask:
            described = _on_cluster(dask, out, conduct)
        else:
            work = _Work(output(out), to or format_for(out), content.options(), conduct, vmcoreinfo)
            with show_progress(progress) as callback:
                piped = None if spool or sources != ["-"] else _in_one_pass(work, inputs, callback)
                done = [piped] if piped else _with_all(work, inputs, sources, callback)
            described = [describe_report(each) for each in done]
        write_report(described)
    _tell(described, canonical=conduct.canonical)


def _with_all(
    work: _Work, inputs: Input, sources: list[str], progress: Callable[[Progress], None] | None
) -> list[Report]:
    """Convert files that can be read anywhere, as often as it takes."""
    from dumpxlate.pipeline import convert_set

    conduct = work.conduct
    with inputs.open(sources) as dump:
        return convert_set(
            _supplied(_mapped(dump, inputs, conduct, progress), work.vmcoreinfo, conduct.threads, progress),
            work.target,
            work.format,
            work.options,
            progress=progress,
            **conduct.arguments(),
        )


def _in_one_pass(work: _Work, inputs: Input, progress: Callable[[Progress], None] | None) -> Report | None:
    """Convert stdin while it comes; where that will not do, say why, and leave it as it is."""
    from dumpxlate.errors import NeedsAllError
    from dumpxlate.io.pipe import standard_input
    from dumpxlate.streaming.convert import convert_pipe

    told = (name for name in inputs.given() if name != "format")
    more: dict[str, Any] = dict.fromkeys(told, True) | work.conduct.arguments() | {"vmcoreinfo": work.vmcoreinfo}
    pipe = standard_input()
    try:
        return convert_pipe(
            pipe,
            work.target,
            work.format,
            work.options,
            source_format=inputs.format,
            progress=progress,
            **more,
        )
    except NeedsAllError as error:
        if not pipe.file_size:
            say(f"<stdin>: goes into a temporary file first: {error.reason}")
        return None


@contextlib.contextmanager
def _report_to(
    path: Path | None, out: str, inputs: list[str], conduct: Conduct
) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    """Open a report's file before the conversion begins: hours later is too late to hear that it exists.

    Raises:
        OutputError: it exists, or is an input or an output of the command.
    """
    from dumpxlate.errors import OutputError

    if path is None:
        yield lambda _: None
        return
    if str(path) == "-":
        from dumpxlate.cli.render import show_json

        if out == "-":
            raise OutputError("cannot take both the dump and the report", path="<stdout>")
        yield lambda described: show_json(_one_or_all(described))
        return
    import json

    from dumpxlate.io.sink import FileSink

    with FileSink(path, overwrite=conduct.force, inputs=inputs) as sink:

        def write(described: list[dict[str, Any]]) -> None:
            try:
                sink.append([json.dumps(_one_or_all(described), indent=2).encode() + b"\n"])
                sink.commit()
            except (OSError, OutputError) as error:
                error.add_note(f"{out} is complete, and only the report of it is not there")
                raise

        yield write


def _one_or_all(described: list[dict[str, Any]]) -> Any:
    """Give what a report holds: an object, or a list of them for a set."""
    return described[0] if len(described) == 1 else described


def _on_cluster(address: str, out: str, conduct: Conduct) -> list[dict[str, Any]]:
    """Have the machines of a cluster run this very command, each for parts of the set.

    Raises:
        ValueError: there are no parts to share out, or they are to go on where an earlier run was.
        OutputError: one of them exists.
    """
    from dumpxlate.cli.cluster import convert_on, without
    from dumpxlate.errors import OutputError

    if conduct.split is None or conduct.part is not None or out == "-":
        raise ValueError("--dask shares out the files of a set: give --split N, and neither --part nor a pipe")
    if conduct.resume:
        # A worker that only seems lost may still write what another one would go on in.
        raise ValueError("--dask has a part that was lost written anew by another worker: leave --resume out")
    for path in (Path(f"{out}.{part}") for part in range(1, conduct.split + 1)):
        if path.exists() and not conduct.force:
            raise OutputError("exists (use --force to replace it)", path=str(path))
    words = without(sys.argv[1:], "--dask", "--report", "--progress")
    return convert_on(address, words, conduct.split, lambda done, parts: say(f"{done} of {parts} parts written"))


def _mapped(dump: Dump, inputs: Input, conduct: Conduct, progress: Callable[[Progress], None] | None) -> Dump:
    """Give a dump that is keyed by machine frames the map that is found in it, unless the user gave one.

    Raises:
        MapError: there is none to be found.
    """
    from dumpxlate.dump import Space

    refused = bool(dump.damage) and not conduct.salvage
    if dump.space is not Space.MACHINE or dump.frames is None or refused:
        return dump
    from dumpxlate.cli.find_p2m import with_found_map

    return with_found_map(
        dump, "dump", inputs.symbols, allow_misfit=conduct.allow_loss, progress=progress, threads=conduct.threads
    )


def _supplied(
    dump: Dump, vmcoreinfo: str | None, threads: int | None, progress: Callable[[Progress], None] | None
) -> Dump:
    """Give the dump with the VMCOREINFO that the user named, or with the one in its memory if it has none.

    Raises:
        ValueError: the file has no such text.
    """
    if vmcoreinfo is None:
        return dump
    from dumpxlate.describe.dump import printable
    from dumpxlate.vmcoreinfo import MAX_BYTES, VmCoreInfo
    from dumpxlate.vmcoreinfo_search import find, with_vmcoreinfo

    if vmcoreinfo != "search":
        with Path(vmcoreinfo).open("rb") as file:
            info = VmCoreInfo.from_bytes(file.read(MAX_BYTES))
        if info.release is None:
            raise ValueError(f"{vmcoreinfo}: is no VMCOREINFO: no line OSRELEASE=, expected the kernel's text")
        return replace(with_vmcoreinfo(dump, info), consulted=(*dump.consulted, vmcoreinfo))
    if dump.vmcoreinfo:
        say(printable(f"{dump.name}: has VMCOREINFO already, memory was not searched"))
        return dump
    found = find(dump, progress=progress, threads=threads)
    if found is None:
        say(printable(f"{dump.name}: no VMCOREINFO in memory; nothing was written"))
        raise typer.Exit(EXIT_NO)
    say(printable(f"{dump.name}: VMCOREINFO of {found.info.release} found in memory at {found.address:#x}"))
    return with_vmcoreinfo(dump, found.info)


def _tell(described: list[dict[str, Any]], *, canonical: bool) -> None:
    """Sum up what was written, and leave with the code for it."""
    from dumpxlate.cli.lines import missing_lines, summary

    for damage in described[0]["damage"]:
        say(damage)
    for remark in described[0]["remarks"]:
        say(remark)
    for line in missing_lines(described[0]["missing"]):
        say(line)
    for loss in described[0]["losses"]:
        say(f"lost: {loss['what']} ({loss['why']})")
    if canonical and not described[0]["rewritten"]:
        say("nothing says that page tables hold machine frames: none were rewritten")
    for each in described:
        say(summary(each))
    if not all(each["complete"] for each in described):
        raise typer.Exit(EXIT_INCOMPLETE)
