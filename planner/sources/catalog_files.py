"""Where catalog files are: the two that ship with the program, the user's configuration folder, and given paths."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import platformdirs
from msgspec import Struct

from planner.errors import InputError
from planner.sources.json_file import read_text

MAX_CATALOG_BYTES = 32 << 20

Kind = Literal["hardware", "model"]
_BUILT_IN = {"hardware": "hardware_catalog.yaml", "model": "model_catalog.yaml"}
_USER_GLOB = {"hardware": "hardware*.yaml", "model": "models*.yaml"}


class CatalogText(Struct, frozen=True):
    """The text of one catalog file and the name by which messages speak of it."""

    where: str
    text: str


def catalog_texts(kind: Kind, extra_paths: Sequence[str | Path] = ()) -> list[CatalogText]:
    """Catalog files from the weakest to the strongest: built-in, the user's folder in name order, `extra_paths`."""
    users = sorted(Path(platformdirs.user_config_dir("vplan")).glob(_USER_GLOB[kind]))
    return [_built_in(_BUILT_IN[kind]), *(_user_text(Path(path)) for path in (*users, *extra_paths))]


@cache
def _built_in(name: str) -> CatalogText:
    return CatalogText(name, Path(__file__).with_name(name).read_text(encoding="utf-8"))


def _user_text(path: Path) -> CatalogText:
    if not path.is_file():
        raise InputError(f"catalog {path}: no such file")
    return CatalogText(str(path), read_text(path, limit_bytes=MAX_CATALOG_BYTES))
