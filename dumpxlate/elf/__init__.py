"""The ELF container of a core, and its notes."""
