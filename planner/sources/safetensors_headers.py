"""Headers of safetensors files: 8 bytes of length and that many bytes of JSON. The tensor data is never read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from msgspec import Struct

from planner.errors import InputError
from planner.sources.json_file import decode, parse_json_object

MAX_HEADER_BYTES = 100_000_000
MAX_FILE_BYTES = 1 << 45
"""No file of a checkpoint is larger: the offsets of a larger one are not believed."""
_LENGTH_BYTES = 8
_UNQUANTIZED = frozenset({"F16", "BF16", "F32"})


class CheckpointTensors(Struct, frozen=True):
    """What headers tell: modules with and without quantized tensors, and the bytes of all tensors."""

    quantized_modules: tuple[str, ...]
    unquantized_modules: tuple[str, ...]
    tensor_bytes: int


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header of one safetensors file. InputError when the file is none."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if not 2 <= length <= MAX_HEADER_BYTES:
                raise InputError(f"{path}: not a safetensors file (header of {length} bytes)")
            data = file.read(length)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    if len(data) < length:
        raise InputError(f"{path}: the safetensors header is cut short")
    return parse_json_object(decode(data, str(path), limit_bytes=MAX_HEADER_BYTES), str(path))


def summarize_folder(folder: Path) -> CheckpointTensors | None:
    """All *.safetensors files of a folder together, as vLLM reads them; None when there is none."""
    paths = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    if not paths:
        return None
    return summarize((name, str(path), entry) for path in paths for name, entry in read_header(path).items())


def summarize(tensors: Iterable[tuple[str, str, Any]]) -> CheckpointTensors:
    """Sort modules by the dtypes of their tensors. `tensors`: (name, file for messages, header entry).

    A module is quantized when any of its tensors is not F16, BF16 or F32: vLLM 0.26.0
    model_executor/layers/quantization/auto_awq.py:393 and auto_gptq.py:278 (maybe_update_config).
    """
    every: set[str] = set()
    quantized: set[str] = set()
    total = 0
    for name, where, entry in tensors:
        if name == "__metadata__":
            continue
        module = name.rpartition(".")[0] or name
        every.add(module)
        dtype, size_bytes = _entry(name, where, entry)
        if dtype not in _UNQUANTIZED:
            quantized.add(module)
        total += size_bytes
    return CheckpointTensors(tuple(sorted(quantized)), tuple(sorted(every - quantized)), total)


def _entry(name: str, where: str, entry: Any) -> tuple[str, int]:
    match entry:
        case {"dtype": str(dtype), "data_offsets": [int(begin), int(end)]} if 0 <= begin <= end <= MAX_FILE_BYTES:
            return dtype, end - begin
    raise InputError(f"{where}: the header's entry of {name!r} is not a safetensors tensor")
