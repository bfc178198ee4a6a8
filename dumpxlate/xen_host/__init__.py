"""Dumps of a whole Xen host: machine memory, with a hypervisor and many guests in it.

``host_signs`` tells such a dump by its headers, ``open_host`` finds the hypervisor and its domains, ``domain_dump``
shows one of them as a dump of its own. Users reach all of it by ``Dump.domains`` and ``Dump.domain``.
"""
