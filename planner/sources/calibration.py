"""The user's calibration file: what this machine's own engines took beyond their predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from planner.errors import InputError
from planner.hardware.spec import CALIBRATED_TERMS, Calibration, GpuPool

SCHEMA = "vplan.calibration/1"
NONE = "none"


def default_path() -> Path:
    """Where `vplan calibrate` keeps it: in the user's configuration folder."""
    import platformdirs

    return Path(platformdirs.user_config_dir("vplan")) / "calibration.json"


def calibrated(gpus: GpuPool, path: str | None) -> GpuPool:
    """The pool with what is known of its card: from `path`, from the user's file where None, or from nothing ("none").

    Raises InputError for a file that is no calibration, and for a given path without a file.
    """
    if path == NONE:
        return gpus
    file = default_path() if path is None else Path(path)
    if not file.is_file():
        if path is not None:
            raise InputError(f"--calibration {path}: no such file")
        return gpus
    found = tuple(entry for entry in read_calibration(file) if entry.gpu == gpus.gpu.name)
    return gpus.model_copy(update={"gpu": replace(gpus.gpu, calibrations=found)}) if found else gpus


def read_calibration(path: Path) -> tuple[Calibration, ...]:
    """The entries of a file; none where there is no file. Raises InputError for a file that is no calibration."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    try:
        if document["schema"] != SCHEMA:
            raise InputError(f"{path}: expected {SCHEMA}, found {document['schema']!r}")
        return tuple(_entry(item) for item in document["entries"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not a calibration ({type(error).__name__}: {error})") from None


def _entry(item: Mapping[str, Any]) -> Calibration:
    entry = Calibration.checked(**item)
    sizes = [entry.cache_short_bytes, entry.logs, *entry.add_bytes.values()]
    if not set(entry.add_bytes) <= set(CALIBRATED_TERMS) or min(sizes) < 0:
        raise ValueError("a figure that is no size")
    return entry
