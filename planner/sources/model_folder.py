"""A model folder on disk, read as data: its JSON files and safetensors headers. Nothing in it is executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from planner.errors import InputError
from planner.model.spec import ModelFiles
from planner.sources.json_file import read_json_object
from planner.sources.mistral_format import PARAMS, chosen_by, config_of
from planner.sources.safetensors_headers import CheckpointTensors, summarize_folder

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SIDE_FILES = {
    "preprocessor": "preprocessor_config.json",
    "video_preprocessor": "video_preprocessor_config.json",
    "processor": "processor_config.json",
    "generation": "generation_config.json",
    "hf_quant": "hf_quant_config.json",
}
_METHODS_THAT_READ_HEADERS = frozenset({"awq", "gptq", "auto_awq", "auto_gptq", "awq_marlin", "gptq_marlin"})


def load_folder(path: Path, name: str | None = None) -> ModelFiles:
    """A folder, or the config.json in it, as ModelFiles. A config under another name is read without its neighbours.

    `name` is what messages and commands call the model, by default the path as given. InputError in one line for
    anything missing or malformed.
    """
    folder = path if path.is_dir() else path.parent
    config_path = path / CONFIG if path.is_dir() else path
    params = folder / PARAMS if path.is_dir() and _in_mistral_format(folder) else None
    if params is None and not config_path.is_file():
        raise InputError(f"{path}: no {CONFIG} in this folder" if path.is_dir() else f"{path}: not a file")
    config = read_json_object(config_path) if config_path.is_file() else {}
    if params is not None:
        config = config_of(read_json_object(params), config)
    side: dict[str, dict[str, Any]] = {}
    checkpoint_bytes: int | None = None
    headers: CheckpointTensors | None = None
    if config_path.name == CONFIG:
        side = {key: read_json_object(folder / file) for key, file in SIDE_FILES.items() if (folder / file).is_file()}
        checkpoint_bytes = index_bytes(read_json_object(folder / INDEX)) if (folder / INDEX).is_file() else None
        if checkpoint_bytes is None or reads_headers(config):
            headers = summarize_folder(folder)
    files = assemble(
        name or str(path),
        config,
        side,
        headers=headers,
        index_total=checkpoint_bytes,
        source=str(params or config_path),
    )
    return files.model_copy(update={"path": str(folder)})


def _in_mistral_format(folder: Path) -> bool:
    """Where vLLM would choose it, and where the folder has no other config."""
    names = [entry.name for entry in folder.iterdir()]
    return PARAMS in names and (CONFIG not in names or chosen_by(names))


def assemble(
    name: str,
    config: dict[str, Any],
    side: dict[str, dict[str, Any]],
    *,
    headers: CheckpointTensors | None,
    index_total: int | None,
    source: str,
) -> ModelFiles:
    """ModelFiles of what was read: `side` by the keys of SIDE_FILES, `index_total` in bytes (else the headers' sum)."""
    return ModelFiles(
        name=name,
        config=config,
        preprocessor=side.get("preprocessor", {}),
        video_preprocessor=side.get("video_preprocessor", {}),
        processor=side.get("processor", {}),
        generation=side.get("generation", {}),
        hf_quant=side.get("hf_quant", {}),
        unquantized_modules=headers.unquantized_modules if headers else None,
        quantized_modules=headers.quantized_modules if headers else None,
        checkpoint_bytes=index_total or (headers.tensor_bytes if headers else None),
        source=source,
    )


def index_bytes(index: dict[str, Any]) -> int | None:
    """Tensor bytes that a model.safetensors.index.json declares (metadata.total_size), None when it does not."""
    metadata = index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    if isinstance(total, float) and total.is_integer():
        total = int(total)
    return total if isinstance(total, int) and not isinstance(total, bool) and total > 0 else None


def reads_headers(config: dict[str, Any]) -> bool:
    """Whether vLLM looks into the safetensors headers of such a checkpoint to learn which modules are quantized."""
    quantization = config.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    return isinstance(method, str) and method.casefold() in _METHODS_THAT_READ_HEADERS
