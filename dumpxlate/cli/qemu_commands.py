"""The command about builds of QEMU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dumpxlate.cli.guard import guarded, say
from dumpxlate.cli.options import Force

__all__ = ["qemu_profile"]


@guarded
def qemu_profile(
    program: Annotated[
        Path, typer.Argument(metavar="FILE", readable=False, help="QEMU, or the file with its debug information.")
    ],
    out: Annotated[str, typer.Option("--output", "-o", help="The profile; - for stdout.")] = "-",
    force: Force = False,
) -> None:
    """Keep the few numbers of QEMU's debug information that opening the core of a process takes."""
    from dumpxlate.elf.debug_files import debug_file_of, open_debug_info
    from dumpxlate.io.sink import FileSink
    from dumpxlate.qemu.profile import Profile

    debug_file = debug_file_of(program)
    with open_debug_info(debug_file) as info:
        profile = Profile.from_debug_info(info, str(debug_file))
    text = profile.to_json()
    if out == "-":
        typer.echo(text, nl=False)
        return
    with FileSink(Path(out), overwrite=force, inputs=[program]) as sink:
        sink.append([text.encode()])
        sink.commit()
    say(f"{out}: build {profile.build_id or 'without an id'}, {len(text):,} bytes")
