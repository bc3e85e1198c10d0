"""`--model`: a folder or config.json, else an id of the model catalog, else a repository on a hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from planner.errors import InputError
from planner.model.spec import ModelFiles
from planner.sources.model_folder import load_folder

Hub = Literal["hf", "modelscope"]


def load_model(
    reference: str,
    *,
    source: Hub = "hf",
    offline: bool = False,
    model_catalog_paths: Sequence[str | Path] = (),
) -> ModelFiles:
    """The files of the model that `reference` names; see docs/catalogs.md for the order of search.

    InputError: no such path or id, or a file that is no config. OutsideError: the hub could not be asked.
    """
    path = Path(reference).expanduser() if reference.startswith("~") else Path(reference)
    if reference and os.path.exists(path):
        return load_folder(path, name=reference)
    if not reference.strip() or looks_like_path(reference):
        raise InputError(f"--model {reference!r}: no such file or folder")
    from planner.sources.model_catalog import load_model_catalog

    catalog = load_model_catalog(model_catalog_paths)
    found = catalog.find(reference)
    if found is not None:
        return found
    hint = catalog.hint(reference)
    if offline:
        raise InputError(f"--model {reference!r}: not in the model catalog, and --offline forbids to fetch it{hint}")
    from planner.sources.hub import fetch_model

    return fetch_model(reference, source, hint=hint)


def looks_like_path(reference: str) -> bool:
    """Whether a name that does not exist was meant as a path: ./x, /x, ~/x, a/b/c, x.json, or a backslash in it."""
    return (
        reference.startswith((".", "/", "~"))
        or reference.count("/") > 1
        or "\\" in reference
        or reference.endswith(".json")
    )
