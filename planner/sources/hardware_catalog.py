"""The GPU catalog: hardware_catalog.yaml, extended and overridden by the user's own files."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from planner.errors import InputError
from planner.hardware.spec import GpuSpec
from planner.sources.catalog_files import CatalogText, catalog_texts
from planner.sources.yaml_stream import Document, documents_by_name, split_documents
from planner.units import MIB

_RESERVED_MIB = ((32 << 10, 512), (48 << 10, 672))
_RESERVED_MIB_ABOVE = 800
_VENDOR_WORDS = ("nvidia-", "geforce-", "tesla-", "amd-", "instinct-")


def total_memory_from_nvidia_smi(nvidia_smi_mib: int) -> int:
    """Bytes that CUDA will report as total, at the least, for a card whose nvidia-smi memory column is given in MiB.

    The driver keeps a part for itself that nvidia-smi counts and CUDA does not. The largest part seen is 500 MiB on
    cards up to 32 GiB, 652 MiB up to 48 GiB and 768 MiB above (the cards are listed in docs/catalogs.md); each is
    rounded up to the next 32 MiB, so the rule errs to less memory.
    """
    reserved_mib = next((mib for limit_mib, mib in _RESERVED_MIB if nvidia_smi_mib <= limit_mib), _RESERVED_MIB_ABOVE)
    return (nvidia_smi_mib - reserved_mib) * MIB


class HardwareCatalog:
    """GPU entries by name. Later files win over earlier ones, so a user's entry replaces a built-in."""

    def __init__(self, texts: Iterable[CatalogText]) -> None:
        self._documents = [document for text in texts for document in split_documents(text.text, text.where)][::-1]

    @cached_property
    def _by_name(self) -> dict[str, Document]:
        return documents_by_name(self._documents, _names, normalized)

    def find(self, name: str) -> GpuSpec:
        """The GPU that goes by `name` (name, alias or the driver's name; case and "NVIDIA" do not matter).

        InputError with near misses when there is none, or with the candidates when the name fits several.
        """
        return gpu_from_entry(self._document(name))

    def text(self, name: str) -> str:
        """The YAML of one entry as the file has it, found as `find` does."""
        return self._document(name).text.strip("\n")

    def _document(self, name: str) -> Document:
        wanted = normalized(name)
        if document := self._by_name.get(wanted):
            return document
        for document in self._documents:
            named = f"device_name: {name.strip()}".casefold() in document.text.casefold()
            if wanted and named and normalized(gpu_from_entry(document).device_name) == wanted:
                return document
        families = [
            document for document in self._documents if any(_begins(known, wanted) for known in _names(document))
        ]
        if wanted and families:
            shortest = sorted(min(map(normalized, _names(document)), key=len) for document in families)
            raise InputError(f"GPU {name!r} could be several cards: say one of {', '.join(shortest)}")
        raise InputError(f"unknown GPU {name!r}{self._hint(wanted)}")

    def _hint(self, wanted: str) -> str:
        near = difflib.get_close_matches(wanted, self._by_name, n=3, cutoff=0.6)
        return f": did you mean {' or '.join(near)}?" if near else " (`vplan catalog gpus list` names those known)"

    def all(self) -> tuple[GpuSpec, ...]:
        """Every entry in file order, built-ins first; an entry replaced by a later file appears once, as replaced."""
        specs: dict[str, GpuSpec] = {}
        for document in self._documents[::-1]:
            gpu = gpu_from_entry(document)
            specs[normalized(gpu.name)] = gpu
        return tuple(specs.values())


def _begins(known: str, wanted: str) -> bool:
    return normalized(known).startswith(f"{wanted}-")


def _names(document: Document) -> tuple[str, ...]:
    if document.names is not None:
        return document.names
    gpu = gpu_from_entry(document)
    return (gpu.name, *gpu.aliases)


def normalized(name: str) -> str:
    """A GPU name as it is compared: lower case, words joined by "-", the vendor's words left out."""
    words = re.sub(r"[\s_]+", "-", name.strip().casefold())
    for vendor in _VENDOR_WORDS:
        words = words.removeprefix(vendor)
    return words


_POSITIVE = (
    "total_memory_bytes",
    "nvidia_smi_mib",
    "sm_count",
    "memory_bandwidth_bytes_per_s",
    "nvlink_bytes_per_s",
    "max_power_watts",
)
_MAX_SIZE = 1 << 50


def gpu_from_entry(document: Document) -> GpuSpec:
    """One catalog document as a GpuSpec. `total_memory_bytes` may be left out where `nvidia_smi_mib` is given."""
    entry = document.parse()
    mib = entry.get("nvidia_smi_mib")
    if isinstance(mib, int) and "total_memory_bytes" not in entry:
        entry["total_memory_bytes"] = total_memory_from_nvidia_smi(mib)
        entry.setdefault("memory_evidence", "derived")
    entry.setdefault("memory_evidence", "user")
    entry.setdefault("device_name", str(entry.get("name", "")))
    try:
        spec = GpuSpec.checked(**entry)
    except (ValueError, TypeError) as error:
        raise InputError(f"{document.where}, line {document.line}: {_problem(error)}") from None
    for key in _POSITIVE:
        size = getattr(spec, key)
        if size is not None and not 0 < size < _MAX_SIZE:
            raise InputError(f"{document.where}, line {document.line}: {key}: expected a size above 0, found {size}")
    return spec


def _problem(error: Exception) -> str:
    """`sm_count: Expected ...` for msgspec's `Expected ... - at `$.sm_count``."""
    message, _, place = str(error).partition(" - at `$")
    return f"{place.strip('.`')}: {message}" if place else message


def load_hardware_catalog(extra_paths: Sequence[str | Path] = ()) -> HardwareCatalog:
    """The built-in catalog, then the user's hardware*.yaml of the configuration folder, then `extra_paths`."""
    return HardwareCatalog(catalog_texts("hardware", extra_paths))
