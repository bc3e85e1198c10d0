"""`vplan sweep`: two flags over ranges."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner import api
from planner.cli.lists import MOST_VALUES, need_report_packages, values_of, write_folder
from planner.cli.options import ENGINE_FLAGS, planning_options
from planner.errors import InputError
from planner.units import parse_human_int

if TYPE_CHECKING:
    from planner.report.sweep import Axis

MOST_PAIRS = 1024


@planning_options()
def sweep(
    request: Any,
    x: Annotated[
        str,
        typer.Option("--x", help="FLAG=VALUES: a,b,c or FIRST:LAST:STEP or FIRST:LAST:*FACTOR.", show_default=False),
    ],
    y: Annotated[str, typer.Option("--y", help="As --x, another flag.", show_default=False)],
    output_dir: Annotated[
        str, typer.Option("--output-dir", help="Folder for the files; made where missing.", show_default=False)
    ],
) -> None:
    """Try every pair of two flags' values: a tidy CSV, a heatmap with the frontier of what starts, and its commands.

    Example: vplan sweep --model Qwen/Qwen2.5-7B-Instruct --gpus l20:1 --x max-model-len=4k:32k:*2
    --y max-num-seqs=8,64 --output-dir out
    """
    need_report_packages()
    across, up = axis_of(x, "--x"), axis_of(y, "--y")
    if across.field == up.field:
        raise InputError(f"--x and --y are both {across.flag}")
    if len(across.values) * len(up.values) > MOST_PAIRS:
        raise InputError(f"--x and --y make {len(across.values) * len(up.values)} pairs, more than {MOST_PAIRS}")
    for axis in (across, up):
        if axis.field in request.given:
            raise InputError(f"{axis.flag} is swept: do not give it as well")
    any_starts, files = api.sweep(request, across, up, _progress if sys.stderr.isatty() else None)
    write_folder(output_dir, files)
    print(f"{len(files)} files in {output_dir}: sweep.html, sweep.md, sweep.csv and PNGs")
    if not any_starts:
        raise typer.Exit(1)


def axis_of(text: str, option: str) -> Axis:
    """`max-model-len=4096:32768:*2` as an axis. InputError for a flag that vplan has not or values it does not read."""
    from planner.report.sweep import Axis

    name, equals, values = text.partition("=")
    field = name.strip().removeprefix("--").replace("-", "_")
    flag = next((flag for flag in ENGINE_FLAGS if flag.field == field), None)
    if flag is None or not equals or not values.strip():
        raise InputError(f"{option}: write FLAG=VALUES with a flag of vplan estimate, not {text!r}")
    parts = _range(values, option) if ":" in values else values_of(values, option)
    try:
        found = {_value(part, flag) for part in parts}
    except (InputError, ValueError) as error:
        raise InputError(f"{option}: {error}") from None
    if all(isinstance(value, (int, float)) for value in found):
        return Axis(flag.spelling, field, tuple(sorted(found, key=float)))
    return Axis(flag.spelling, field, tuple(dict.fromkeys(_value(part, flag) for part in parts)))


def _value(text: str, flag: Any) -> Any:
    if flag.kind is bool:
        if text.lower() not in ("true", "false"):
            raise InputError(f"{flag.spelling} is true or false, not {text!r}")
        return text.lower() == "true"
    if flag.parse is not None:
        return flag.parse(text)
    return flag.kind(text)


def _range(text: str, option: str) -> tuple[str, ...]:
    """FIRST:LAST:STEP or FIRST:LAST:*FACTOR as texts, LAST included where a step meets it."""
    pieces = text.split(":")
    if len(pieces) != 3:
        raise InputError(f"{option}: write FIRST:LAST:STEP or FIRST:LAST:*FACTOR, not {text!r}")
    first, last, step = pieces
    by_factor = step.startswith("*")
    whole = "." not in text
    try:
        low, high = (parse_human_int(first), parse_human_int(last)) if whole else (float(first), float(last))
        by = float(step.removeprefix("*")) if by_factor or not whole else parse_human_int(step)
    except (InputError, ValueError):
        raise InputError(f"{option}: {text!r} is no range of numbers") from None
    if low <= 0 or high < low or by <= (1 if by_factor else 0):
        raise InputError(f"{option}: {text!r} does not go up")
    found: list[str] = []
    value: float = low
    while value <= high * (1 + 1e-9):
        found.append(str(round(value)) if whole else f"{value:.6g}")
        if len(found) > MOST_VALUES:
            raise InputError(f"{option}: {text!r} has more than {MOST_VALUES} values")
        value = value * by if by_factor else value + by
    return tuple(found)


def _progress(done: int, total: int) -> None:
    width = 30 * done // total
    end = "\n" if done == total else ""
    print(f"\r[{'#' * width}{'.' * (30 - width)}] {done}/{total}", end=end, file=sys.stderr, flush=True)
