"""What can be said of a Xen host: by a dump's headers, and with its domains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dumpxlate.describe.dump import printable
from dumpxlate.xen_host.crash_note import host_signs

if TYPE_CHECKING:
    from dumpxlate.xen_host.domains import Domain
    from dumpxlate.xen_host.host import Host

__all__ = ["describe_host"]


def describe_host(host: Host) -> dict[str, Any]:
    """Describe a host and its domains (``dumpxlate.domains/1``)."""
    signs = host_signs(host.dump)
    return {
        "schema": "dumpxlate.domains/1",
        "file": printable(host.dump.name),
        "found_by": host.how,
        "version": printable(signs.version) if signs and signs.version else None,
        "frames": host.frames.count,
        "domains": [_domain(domain) for domain in host.domains],
    }


def _domain(domain: Domain) -> dict[str, Any]:
    return {
        "id": domain.number,
        "uuid": domain.uuid,
        "type": domain.type,
        "word_bits": domain.word_bits,
        "pages": domain.pages,
        "vcpus": None if domain.max_vcpus is None else len(domain.vcpus),
        "max_vcpus": domain.max_vcpus,
        "shared_info": hex(domain.shared_info) if domain.shared_info >= 0 else None,
        "tables": hex(domain.tables) if domain.tables >= 0 else None,
    }
