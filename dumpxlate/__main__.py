"""``python -m dumpxlate``."""

from dumpxlate.cli import main

main()
