"""`--gpus`: `l20:8`, `h20:8x2`, `l20:8@44.5GiB` or `local`, as a GpuPool."""

from __future__ import annotations

import re

from planner.errors import InputError, UnsupportedError
from planner.hardware.spec import GpuPool
from planner.sources.hardware_catalog import HardwareCatalog, load_hardware_catalog
from planner.sources.local_gpus import local_pool
from planner.units import GIB, parse_size

MAX_COUNT = 1024
MAX_MEMORY_BYTES = 1024 * GIB
_COUNT = re.compile(r"([+-]?\d+)(?:x([+-]?\d+))?")


def parse_gpus(text: str, catalog: HardwareCatalog | None = None) -> GpuPool:
    """The cards that `--gpus` names: NAME[:COUNT[xNODES]][@MEMORY], or `local` for this machine's.

    COUNT is cards per machine, NODES machines, both 1 when left out. MEMORY replaces the total that CUDA would report
    (memory_evidence "user"). InputError for what cannot be read, UnsupportedError for a card that vplan cannot plan.
    """
    spelling = text.strip()
    catalog = catalog or load_hardware_catalog()
    if spelling.casefold() == "local":
        return local_pool(catalog)
    body, at, memory = spelling.partition("@")
    name, colon, counts = body.partition(":")
    if not name.strip():
        raise InputError(f"--gpus {spelling!r} names no GPU (write for example l20:8)")
    count, nodes = _counts(counts, spelling) if colon else (1, 1)
    gpu = catalog.find(name)
    if gpu.vendor != "nvidia":
        raise UnsupportedError("gpu", f"{gpu.name} is an AMD card: plans are made for NVIDIA cards only")
    if at:
        gpu = gpu.model_copy(update={"total_memory_bytes": _memory(memory, spelling), "memory_evidence": "user"})
    return GpuPool(spelling=spelling, gpu=gpu, count=count, nodes=nodes)


def _counts(text: str, spelling: str) -> tuple[int, int]:
    match = _COUNT.fullmatch(text.strip())
    if not match:
        raise InputError(
            f"--gpus {spelling!r}: {text!r} is no count (write COUNT or COUNTxNODES, for example 8 or 8x2)"
        )
    return _count(match.group(1), "GPU", spelling), _count(match.group(2) or "1", "machine", spelling)


def _count(digits: str, what: str, spelling: str) -> int:
    value = int(digits) if len(digits) <= 12 else MAX_COUNT + 1
    if not 1 <= value <= MAX_COUNT:
        raise InputError(f"--gpus {spelling!r}: the {what} count must be from 1 to {MAX_COUNT}")
    return value


def _memory(text: str, spelling: str) -> int:
    size_bytes = parse_size(text)
    if not GIB <= size_bytes <= MAX_MEMORY_BYTES:
        raise InputError(f"--gpus {spelling!r}: the memory of one GPU must be from 1 GiB to 1024 GiB (give a unit)")
    return size_bytes
