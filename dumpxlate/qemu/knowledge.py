"""Finds what is known of the build of QEMU that a core is of: a profile, or debug information."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpxlate.errors import CorruptDumpError, UnsupportedFeatureError
from dumpxlate.io.source import open_source
from dumpxlate.qemu.profile import PROFILE_LIMIT, Profile

if TYPE_CHECKING:
    import os

    from dumpxlate.qemu.hints import QemuHints

__all__ = ["find_profile", "read_profile"]


def find_profile(hints: QemuHints | None, build_id: str | None) -> Profile | None:
    """Find the profile of a build.

    Args:
        hints: where the user says it is; else the debug information is looked for that distributions install.
        build_id: of the program whose core it is; None where the core does not tell.

    Returns:
        The profile, or None where nothing is known of the build.

    Raises:
        UnsupportedFeatureError: what the user named is of another build, or not of QEMU.
        FormatError: it cannot be read.
        OSError: it cannot be opened.
    """
    found = read_profile(hints.profile) if hints and hints.profile else _from_debug_file(hints, build_id)
    if found is None:
        return None
    if build_id and found.build_id and found.build_id != build_id:
        raise UnsupportedFeatureError(
            f"is of another build of QEMU: build id {found.build_id}, the core's is {build_id}",
            path=found.source,
            feature="build id",
        )
    return found


def _from_debug_file(hints: QemuHints | None, build_id: str | None) -> Profile | None:
    """Make the profile of debug information: of the file that the user names, or of the one that is installed."""
    from dumpxlate.elf.debug_files import debug_file_of, find_debug_file, open_debug_info

    if hints and hints.debug_file:
        path: str | os.PathLike[str] | None = hints.debug_file
    elif hints and hints.binary:
        path = debug_file_of(hints.binary)
    else:
        path = find_debug_file(build_id) if build_id else None
    if path is None:
        return None
    with open_debug_info(path) as info:
        return Profile.from_debug_info(info, str(path))


def read_profile(path: str | os.PathLike[str]) -> Profile:
    """Read a profile.

    Raises:
        CorruptDumpError: it is none.
        OSError: it cannot be opened.
    """
    with open_source(path) as source:
        if source.size > PROFILE_LIMIT:
            why = f"not a profile: {source.size:,} bytes, expected {PROFILE_LIMIT:,} at most"
            raise CorruptDumpError(why, path=source.name, offset=PROFILE_LIMIT, what="QEMU profile")
        return Profile.from_json(bytes(source.view(0, source.size)), source.name)
