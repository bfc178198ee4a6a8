"""The formats: one package each, imported as ``dumpxlate.formats.<name>``.

The folder stands at the top of the repository and is reached through the link
``dumpxlate/formats``. Imported under any other name, every class in it would exist twice.
"""

if __name__ != "dumpxlate.formats":
    raise ImportError(f"import this package as dumpxlate.formats, not as {__name__}")
