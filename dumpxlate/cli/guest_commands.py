"""Commands about what a guest says of itself: regs, vmcoreinfo."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dumpxlate.cli.groups import grouped
from dumpxlate.cli.guard import EXIT_NO, guarded, say
from dumpxlate.cli.options import AsJson, Files, Force, Input, ShowProgress, Threads, output
from dumpxlate.cli.progress import ProgressStyle, show_progress

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dumpxlate.dump import Cpu, Dump
    from dumpxlate.io.sink import PipeSink

__all__ = ["regs", "vmcoreinfo"]


@guarded
@grouped
def regs(
    files: Files,
    inputs: Input,
    cpu: Annotated[int | None, typer.Option("--cpu", min=0, metavar="N", help="Only this vcpu.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the registers of each vcpu; exit code 1 if the dump has none."""
    from dumpxlate.cli.render import show_json
    from dumpxlate.cli.render_guest import describe_registers, show_registers
    from dumpxlate.describe.dump import printable

    with inputs.open(files) as dump:
        told = [remark for remark in dump.remarks if "registers" in remark]  # some are stale, or not read
        if not dump.cpus:
            say(printable(f"{dump.name}: {'; '.join(['has no registers', *told])}"))
            raise typer.Exit(EXIT_NO)
        described = describe_registers(dump, dump.cpus if cpu is None else _one(dump, cpu))
        for remark in told:
            say(printable(f"{dump.name}: {remark}"))
    if as_json:
        show_json(described)
    else:
        show_registers(described)


def _one(dump: Dump, index: int) -> tuple[Cpu, ...]:
    """Pick a processor by its number.

    Raises:
        ValueError: the dump has no such one.
    """
    chosen = tuple(each for each in dump.cpus if each.index == index)
    if not chosen:
        there = f"{len(dump.cpus)} vcpus, {dump.cpus[0].index} to {dump.cpus[-1].index}"
        raise ValueError(f"{dump.name}: has no vcpu {index}: found {there}")
    return chosen


@guarded
@grouped
def vmcoreinfo(
    files: Files,
    inputs: Input,
    search: Annotated[
        bool, typer.Option("--search", help="Search the guest's memory although the file has one.")
    ] = False,
    as_json: AsJson = False,
    out: Annotated[
        str | None, typer.Option("--output", "-o", metavar="OUT", help="Write the text as it is; - is stdout.")
    ] = None,
    force: Force = False,
    threads: Threads = None,
    progress: ShowProgress = ProgressStyle.AUTO,
) -> None:
    """Show the kernel's VMCOREINFO, found in the guest's memory if the file has none; exit code 1 if neither has."""
    from dumpxlate.cli.render import show_json
    from dumpxlate.cli.render_guest import describe_vmcoreinfo, show_vmcoreinfo
    from dumpxlate.describe.dump import printable
    from dumpxlate.vmcoreinfo_search import find

    found = None
    with inputs.open(files) as dump:
        if search or dump.vmcoreinfo is None:
            with show_progress(progress) as callback:
                found = find(dump, progress=callback, threads=threads)
        info = found.info if found else None if search else dump.vmcoreinfo
        if info is None:
            say(printable(f"{dump.name}: no VMCOREINFO in {'memory' if search else 'the file or in memory'}"))
            raise typer.Exit(EXIT_NO)
        described = describe_vmcoreinfo(dump, info, found)
    if out:
        _write(info.text, output(out), force=force, inputs=dump.files)
        where = f"in memory at {described['address']}" if found else "in the file"
        say(printable(f"{out}: {described['bytes']:,} bytes, found {where}"))
    if as_json:
        show_json(described)
    elif not out:
        show_vmcoreinfo(described)


def _write(text: str, target: Path | PipeSink, *, force: bool, inputs: Sequence[str]) -> None:
    """Write the text as the kernel wrote it."""
    from dumpxlate.io.sink import FileSink, PipeSink

    sink = target if isinstance(target, PipeSink) else FileSink(target, overwrite=force, inputs=inputs)
    with sink:
        sink.append([text.encode("latin-1")])
        sink.commit()
