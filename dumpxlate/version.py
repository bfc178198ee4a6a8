"""The version: here, where every layer may read it."""

__all__ = ["PRODUCER", "__version__"]

__version__ = "0.1.0"

PRODUCER = f"dumpxlate {__version__}"
"""How outputs are signed."""
