"""Options that hold several values, and folders that answers are written to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from planner.errors import InputError, OutsideError
from planner.units import parse_human_int

MOST_VALUES = 64


def values_of(text: str | None, option: str) -> tuple[str, ...]:
    """`a,b,c` as its parts, in order, each once."""
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise InputError(f"{option}: write values with commas between them, not {text!r}")
    if len(parts) > MOST_VALUES:
        raise InputError(f"{option}: at most {MOST_VALUES} values, found {len(parts)}")
    return tuple(dict.fromkeys(parts))


def counts_of(text: str | None, option: str) -> tuple[int, ...]:
    """`1,4,16` or `1k,32K` as whole numbers of at least 1, in ascending order."""
    found = set()
    for part in values_of(text, option):
        try:
            value = parse_human_int(part)
        except InputError as error:
            raise InputError(f"{option}: {error}") from None
        if not 1 <= value <= 10**9:
            raise InputError(f"{option}: {part} is not from 1 to 1000000000")
        found.add(value)
    return tuple(sorted(found))


def write_folder(folder: str, files: Mapping[str, bytes]) -> None:
    """Every file into the folder, which is made where it is missing; files of the same names are replaced."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
    except OSError as error:
        raise OutsideError(f"--output-dir {folder}: {error.strerror or error}") from None


def need_report_packages() -> None:
    """OutsideError where pandas or matplotlib are not installed."""
    from importlib.util import find_spec

    missing = [name for name in ("matplotlib", "pandas") if find_spec(name) is None]
    if missing:
        raise OutsideError(f"{' and '.join(missing)} not installed: pip install 'vplan[report]'")
