"""Integer arithmetic that is the same for one candidate (plain ints) and for a million (numpy int64 arrays).

Every function of planner.memory.kv_capacity takes either; numpy is imported only when an array is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

N = TypeVar("N", int, "npt.NDArray[np.int64]")
"""One count, or an array of counts."""

Counts = Any
"""Inside the arithmetic: an int or an int64 array (the public functions narrow it to `N`)."""


def ceil_div(amount: Counts, unit: int) -> Counts:
    """`amount / unit` rounded up (vLLM cdiv)."""
    return -(-amount // unit)


def round_up(amount: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below `amount`."""
    return -(-amount // multiple) * multiple


def smaller(first: Counts, second: Counts) -> Counts:
    """The smaller of two counts, element by element when one is an array."""
    if isinstance(first, int) and isinstance(second, int):
        return first if first < second else second
    import numpy as np

    return np.minimum(first, second)


def larger(first: Counts, second: Counts) -> Counts:
    """The larger of two counts, element by element when one is an array."""
    if isinstance(first, int) and isinstance(second, int):
        return first if first > second else second
    import numpy as np

    return np.maximum(first, second)


def largest_where(holds: Any, upper: Counts) -> Counts:
    """The largest count in [1, upper] for which the monotone `holds(count)` is true, 0 where even 1 fails.

    `holds` maps a count (or array) to a truth value (or array). vLLM's two-ended binary search finds the same
    number; this one descends through powers of two, so that all elements of an array move together.
    """
    found = upper * 0
    top = upper if isinstance(upper, int) else int(upper.max(initial=0))
    for bit in reversed(range(top.bit_length())):
        candidate = found + (1 << bit)
        accepted = (candidate <= upper) & holds(candidate)
        found = found + (1 << bit) * accepted
    return found
