"""The model catalog: model_catalog.yaml, extended and overridden by the user's own files."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from planner.errors import InputError
from planner.model.spec import ModelFiles
from planner.sources.catalog_files import CatalogText, catalog_texts
from planner.sources.json_file import check_values
from planner.sources.model_folder import assemble
from planner.sources.yaml_stream import Document, documents_by_name, split_documents

_SIDE = {
    "processor": "preprocessor",
    "video_processor": "video_preprocessor",
    "processor_config": "processor",
    "hf_quant_config": "hf_quant",
    "generation_config": "generation",
}
_OTHER_KEYS = frozenset(
    {
        "id",
        "config",
        "aliases",
        "modelscope",
        "source",
        "checkpoint_bytes",
        "variants",
        "unquantized_modules",
        "quantized_modules",
    }
)


class ModelCatalog:
    """Model entries by id, alias or ModelScope id. Later files win over earlier ones."""

    def __init__(self, texts: Iterable[CatalogText]) -> None:
        self._documents = [document for text in texts for document in split_documents(text.text, text.where)][::-1]

    @cached_property
    def _by_name(self) -> dict[str, Document]:
        return documents_by_name(self._documents, _names, str.casefold)

    def find(self, reference: str) -> ModelFiles | None:
        """The model with this id or alias (case does not matter), None when the catalog has none."""
        document = self._by_name.get(reference.strip().casefold())
        return model_from_entry(document) if document else None

    def entry(self, reference: str) -> dict[str, Any] | None:
        """The catalog entry as written: id, aliases, modelscope, source, variants and the files."""
        document = self._by_name.get(reference.strip().casefold())
        return document.parse() if document else None

    def checkpoints(self, reference: str) -> dict[str, str]:
        """Other checkpoints of the same model, id by quantization scheme ("" for the unquantized one): those that the
        entry names, or that the entry names which names this one."""
        own = self._by_name.get(reference.strip().casefold())
        if own is None:
            return {}
        entry = own.parse()
        identity, family = str(entry["id"]), entry
        if not entry.get("variants"):
            naming = (document for document in self._documents if f": {identity}\n" in document.text)
            for document in naming:
                candidate = document.parse()
                variants = candidate.get("variants")
                if isinstance(variants, dict) and identity in variants.values():
                    family = candidate
        named = family.get("variants")
        found = {str(scheme): str(name) for scheme, name in named.items()} if isinstance(named, dict) else {}
        if family is not entry:
            found = {"": str(family["id"]), **found}
        return {scheme: name for scheme, name in found.items() if name != identity}

    def text(self, reference: str) -> str:
        """The YAML of one entry as the file has it. InputError with near misses when there is none."""
        document = self._by_name.get(reference.strip().casefold())
        if document is None:
            raise InputError(f"{reference!r} is not in the model catalog{self.hint(reference)}")
        return document.text.strip("\n")

    def all(self) -> tuple[ModelFiles, ...]:
        """Every model in alphabetical order; an entry replaced by a later file appears once, as replaced."""
        return tuple(model_from_entry(self._by_name[identity.casefold()]) for identity in self.ids())

    def ids(self) -> tuple[str, ...]:
        """Every id, in alphabetical order."""
        listed = {str(names[0]) for names in map(_names, self._documents)}
        return tuple(sorted(listed, key=str.casefold))

    def hint(self, reference: str) -> str:
        """ ": did you mean A or B?" for a name near to known ones, else an empty text. Ends an error line."""
        wanted = reference.strip().casefold()
        near = difflib.get_close_matches(wanted, self._by_name, n=3, cutoff=0.7)
        ids = dict.fromkeys(str(_names(self._by_name[name])[0]) for name in near)
        return f": did you mean {' or '.join(ids)}?" if ids else ""


def _names(document: Document) -> tuple[str, ...]:
    if document.names is not None:
        return document.names
    entry = document.parse()
    if not isinstance(entry.get("id"), str):
        raise InputError(f"{document.where}, line {document.line}: a model entry needs an id")
    aliases = entry.get("aliases") or []
    listed = aliases if isinstance(aliases, list) else [aliases]
    elsewhere = [entry["modelscope"]] if "modelscope" in entry else []
    return (entry["id"], *(str(name) for name in (*listed, *elsewhere)))


def model_from_entry(document: Document) -> ModelFiles:
    """One catalog document as ModelFiles. InputError names the file and line of a malformed entry."""
    entry = document.parse()
    where = f"{document.where}, line {document.line}"
    unknown = sorted(str(key) for key in entry if key not in _SIDE and key not in _OTHER_KEYS)
    if unknown:
        raise InputError(f"{where}: unknown key {unknown[0]!r} in a model entry")
    if not isinstance(entry.get("config"), dict):
        raise InputError(f"{where}: a model entry needs a config, with the keys of config.json")
    check_values(entry, where)
    side = {field: _mapping(entry[key], key, where) for key, field in _SIDE.items() if key in entry}
    source = str(entry["source"]) if "source" in entry else document.where
    size = _bytes(entry.get("checkpoint_bytes"), where)
    files = assemble(str(entry["id"]), entry["config"], side, headers=None, index_total=size, source=source)
    modules = {key: _modules(entry, key, where) for key in ("unquantized_modules", "quantized_modules")}
    return files.model_copy(update=modules)


def _mapping(value: object, key: str, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: {key} must be a mapping")
    return value


def _modules(entry: dict[str, Any], key: str, where: str) -> tuple[str, ...] | None:
    value = entry.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InputError(f"{where}: {key} must be a list of module names")
    return tuple(value)


def _bytes(value: object, where: str) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise InputError(f"{where}: checkpoint_bytes must be a whole number of bytes")


def load_model_catalog(extra_paths: Sequence[str | Path] = ()) -> ModelCatalog:
    """The built-in catalog, then the user's models*.yaml of the configuration folder, then `extra_paths`."""
    return ModelCatalog(catalog_texts("model", extra_paths))
