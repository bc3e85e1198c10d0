"""The dtype of weights and activations: what `--dtype` and the checkpoint make of it on a card."""

from __future__ import annotations

from planner.hardware.spec import GpuSpec
from planner.model.spec import ModelSpec
from planner.values import DType, reject

_SPELLINGS: dict[str, DType] = {
    "half": "float16",
    "float16": "float16",
    "float": "float32",
    "float32": "float32",
    "bfloat16": "bfloat16",
}
_CHOICES = ("auto", "bfloat16", "float", "float16", "float32", "half")
_NO_FLOAT16 = ("gemma2", "gemma3", "gemma3_text", "plamo2", "glm4")


def resolve_dtype(requested: str, model: ModelSpec, gpu: GpuSpec) -> tuple[DType, tuple[str, ...]]:
    """The dtype vLLM ends with, and warnings. A float32 checkpoint is served in the card's preferred half.

    Raises Rejected for an unknown spelling and for float16 where the model type forbids it. Whether the card can run
    it at all is `refuse_dtype_of_card`, which vLLM asks later, in the worker.
    Source: vLLM 0.26.0 config/model.py:2007-2131, platforms/cuda.py:233.
    """
    spelling = requested.lower()
    checkpoint: DType = model.checkpoint_dtype or "float32"
    if spelling == "auto":
        dtype, warnings = _auto(checkpoint, model, gpu)
    elif spelling in _SPELLINGS:
        dtype, warnings = _SPELLINGS[spelling], ()
    else:
        choices = ", ".join(map(repr, _CHOICES))
        raise reject("flag", f"argument --dtype: invalid choice: '{requested}' (choose from {choices})")
    if dtype == "float16" and model.model_type in _NO_FLOAT16:
        raise reject(
            "dtype_capability",
            f"The model type '{model.model_type}' does not support float16. Reason: Numerical instability. Please use "
            "bfloat16 or float32 instead.",
            fix=("--dtype bfloat16",) if gpu.compute_capability >= (8, 0) else ("--dtype float32",),
        )
    if spelling != "auto" and dtype != checkpoint and checkpoint != "float32" and dtype != "float32":
        warnings = (*warnings, f"Casting torch.{checkpoint} to torch.{dtype}.")
    return dtype, warnings


def _auto(checkpoint: DType, model: ModelSpec, gpu: GpuSpec) -> tuple[DType, tuple[str, ...]]:
    supported: list[DType] = ["bfloat16", "float16", "float32"]
    if gpu.compute_capability < (8, 0):
        supported.remove("bfloat16")
    if model.model_type in _NO_FLOAT16:
        supported.remove("float16")
    preferred = supported[0]
    wanted = preferred if checkpoint == "float32" else checkpoint
    if wanted in supported:
        return wanted, ()
    version = "{}.{}".format(*gpu.compute_capability)
    warning = (
        f"Your device '{gpu.device_name}' (with compute capability {version}) doesn't support torch.{wanted}. "
        f"Falling back to torch.{preferred} for compatibility."
    )
    return preferred, (warning,)


def refuse_dtype_of_card(dtype: DType, gpu: GpuSpec) -> None:
    """The worker's own check. Source: vLLM 0.26.0 platforms/cuda.py:612 check_if_supports_dtype."""
    if dtype != "bfloat16" or gpu.compute_capability >= (8, 0):
        return
    version = "{}.{}".format(*gpu.compute_capability)
    raise reject(
        "dtype_capability",
        "Bfloat16 is only supported on GPUs with compute capability of at least 8.0. "
        f"Your {gpu.device_name} GPU has compute capability {version}. You can use float16 instead by explicitly "
        "setting the `dtype` flag in CLI, for example: --dtype=half.",
        fix=("--dtype half",),
    )
