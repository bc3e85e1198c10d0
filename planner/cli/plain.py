"""Typer commands whose plain values need no pydantic: typer's adapters for them cost a tenth of a second at start."""

from __future__ import annotations

from functools import partial
from typing import Any

from typer.core import TyperCommand, TyperGroup

_NOT_PLAIN = object()


class PlainCommand(TyperCommand):
    """Takes a value that already is what its parameter asks for as it is; typer checks and converts every other."""

    def get_params(self, ctx: Any) -> Any:
        return _plain(super().get_params(ctx))


class PlainGroup(TyperGroup):
    """The same for the program itself."""

    def get_params(self, ctx: Any) -> Any:
        return _plain(super().get_params(ctx))


def _plain(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        parameter.process_value = partial(_processed, parameter)
    return parameters


def _processed(parameter: Any, ctx: Any, value: Any) -> Any:
    """`parameter.process_value`, by way of typer only where there is something to check, convert or refuse."""
    taken = _taken(parameter, value)
    if taken is _NOT_PLAIN:
        return type(parameter).process_value(parameter, ctx, value)
    return taken if parameter.callback is None else parameter.callback(ctx, parameter, taken)


def _taken(parameter: Any, value: Any) -> Any:
    """What the parameter is to get, or _NOT_PLAIN (always where another release of typer describes types otherwise)."""
    described = getattr(parameter, "type_descriptor", None)
    wanted, asked = getattr(described, "annotation", None), getattr(described, "parameter_info", None)
    if asked is None:
        return _NOT_PLAIN
    if (asked.parser, asked.min, asked.max) != (None, None, None):
        return _NOT_PLAIN
    if value is None and not parameter.required:
        return () if parameter.multiple or parameter.nargs == -1 else None
    if wanted in (str, int, float) and type(value) is wanted:
        return value
    if wanted == list[str] and value and {type(item) for item in value} == {str}:
        return list(value)
    if wanted in (int, float) and isinstance(value, str) and _is_plain(value, wanted):
        return wanted(value)
    return _NOT_PLAIN


def _is_plain(number: str, kind: type) -> bool:
    """Digits, with one point between them for a float: every reader of numbers agrees on what that means."""
    whole, point, rest = number.partition(".")
    if not number.isascii() or len(number) > 15 or not whole.isdecimal():
        return False
    return kind is float and rest.isdecimal() if point else True
