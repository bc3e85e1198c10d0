"""Answers remembered: the parts of a ledger ask for the same layers again and again."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")
_Q = ParamSpec("_Q")
_M = TypeVar("_M")
_S = TypeVar("_S")

_KEPT = 16


def once(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Remember the last few answers by the identity of the arguments, which must be positional: they are frozen, and
    hashing them would cost more than the answer."""
    recent: dict[tuple[int, ...], tuple[tuple[object, ...], _R]] = {}

    @wraps(function)
    def remembered(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        key = tuple(map(id, args))
        known = recent.get(key)
        if known is None:
            answer = function(*args, **kwargs)
            if len(recent) >= _KEPT:
                del recent[next(iter(recent))]
            known = recent[key] = args, answer
        return known[1]

    return remembered


def once_each(
    kept: int,
) -> Callable[[Callable[Concatenate[_M, _S, _Q], _R]], Callable[Concatenate[_M, _S, _Q], _R]]:
    """Remember the last `kept` answers of a function of a model, a share, and small values: the first two by identity,
    the values, which must be positional and hashable, by equality."""

    def decorate(function: Callable[Concatenate[_M, _S, _Q], _R]) -> Callable[Concatenate[_M, _S, _Q], _R]:
        known: dict[tuple[object, ...], tuple[_M, _S, _R]] = {}

        @wraps(function)
        def remembered(model: _M, share: _S, /, *args: _Q.args, **kwargs: _Q.kwargs) -> _R:
            key = (id(model), id(share), *args)
            found = known.get(key)
            if found is None:
                found = (model, share, function(model, share, *args, **kwargs))
                if len(known) >= kept:
                    del known[next(iter(known))]
                known[key] = found
            return found[2]

        return remembered

    return decorate
