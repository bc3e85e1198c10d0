"""Answers remembered for the very same arguments: the parts of a ledger ask for the same layers again and again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")

_KEPT = 8


def once(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Remember the last few answers by the identity of the arguments, which must be positional: they are frozen, and
    hashing them would cost more than the answer."""
    recent: deque[tuple[tuple[object, ...], _R]] = deque(maxlen=_KEPT)

    @wraps(function)
    def remembered(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        for known, answer in tuple(recent):
            if all(one is other for one, other in zip(known, args, strict=True)):
                return answer
        answer = function(*args, **kwargs)
        recent.append((args, answer))
        return answer

    return remembered
