"""Options that belong together, as one parameter of a command.

A group is a frozen dataclass whose fields are annotated as typer wants its options. A command under :func:`grouped`
takes a group as one parameter, and on the command line each field is an option of its own::

    @dataclass(frozen=True)
    class Input(Group):
        format: Annotated[str | None, typer.Option("--from")] = None

    @guarded
    @grouped
    def info(files: Files, inputs: Input) -> None: ...
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import MISSING, fields
from itertools import chain
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Group", "grouped"]


class Group:
    """What a dataclass of options is derived from."""

    def given(self) -> dict[str, Any]:
        """Give the options that differ from their defaults, by field."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, (value, default) in values.items() if value != default}

    def words(self) -> list[str]:
        """Give the same as a user types it."""
        words: list[str] = []
        annotations = {option.name: option.annotation for option in _options(type(self))}
        for field, value in self.given().items():
            # typer keeps the first name of an annotated option where a default would stand
            name = next(each.default for each in get_args(annotations[field]) if hasattr(each, "param_decls"))
            for each in value if isinstance(value, list) else [value]:
                words += [name, str(each)]
        return words


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Take groups apart: the command gets them whole, and the command line sees their fields, behind its own options.

    Raises:
        TypeError: an option stands in two of its groups.
    """
    hints = get_type_hints(command, include_extras=True)
    shape = inspect.signature(command)
    groups = {name: kind for name, kind in hints.items() if isinstance(kind, type) and issubclass(kind, Group)}
    options = {name: list(_options(kind)) for name, kind in groups.items()}
    seen: dict[str, inspect.Parameter] = {}
    own = [each for each in shape.parameters.values() if each.name not in groups]
    for option in chain(
        (each.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[each.name]) for each in own),
        *options.values(),
    ):
        if option.name in seen:
            raise TypeError(f"{command.__name__}: {option.name} is an option twice")
        seen[option.name] = option

    @functools.wraps(command)
    def run(**given: Any) -> None:
        whole = {
            name: kind(**{option.name: given.pop(option.name) for option in options[name]})
            for name, kind in groups.items()
        }
        command(**given, **whole)

    run.__signature__ = shape.replace(parameters=list(seen.values()), return_annotation=None)  # type: ignore[attr-defined]
    run.__annotations__ = {name: option.annotation for name, option in seen.items()}
    return run


def _options(group: type[Any]) -> Iterator[inspect.Parameter]:
    """Give the fields of a group as parameters."""
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        yield inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name]
        )
