"""A plan's JSON (`vplan.fit/1` or `vplan.estimate/1`), read back as the request that makes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from planner.api import Request
from planner.engine.args import EngineArgs
from planner.errors import InputError
from planner.serve.parse import RefusedCommand, parse_command

_ENGINE_FIELDS = (
    "dtype",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
    "enable_expert_parallel",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "kv_cache_dtype",
    "block_size",
    "gpu_memory_utilization",
    "enforce_eager",
)
_PARTIAL = (
    "an estimate's JSON carries the resolved flags only: limits of media, LoRA, speculation and graph sizes are vLLM's "
    "defaults here; a fit's JSON carries the whole command"
)


def request_of_plan(path: str, rank: int, beside: Request) -> tuple[Request, tuple[str, ...]]:
    """The request of the file's plan number `rank`, with catalogs and source of `beside`, and notes for the reader.

    InputError, naming the file, for what is no plan of vplan's.
    """
    document = _read(path)
    kind = document.get("schema")
    try:
        if kind == "vplan.fit/1":
            plans = document["plans"]
            if not 1 <= rank <= len(plans):
                raise InputError(f"{path}: has {len(plans)} plans, none with rank {rank}")
            return _of_command(plans[rank - 1]["command"], plans[rank - 1]["estimate"], beside), ()
        if kind == "vplan.estimate/1":
            return _of_estimate(document, beside), (_PARTIAL,)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: not a whole plan: {type(error).__name__} {' '.join(str(error).split())[:200]}"
        ) from None
    raise InputError(f"{path}: schema is {kind!r}, expected vplan.fit/1 or vplan.estimate/1")


def _read(path: str) -> dict[str, Any]:
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(document, dict):
        raise InputError(f"{path}: expected a JSON object")
    return document


def _of_command(command: str, estimate: dict[str, Any], beside: Request) -> Request:
    version = str(estimate["vllm_version"])
    try:
        parsed = parse_command(command, version)
    except RefusedCommand as refused:
        raise InputError(f"the plan's command is refused: {refused.rejection.message}") from None
    return beside.model_copy(
        update={
            "model": parsed.model,
            "gpus": str(estimate["gpus"]),
            "vllm_version": version,
            "args": parsed.args,
            "given": parsed.given,
            "extra_argv": parsed.extra,
        }
    )


def _of_estimate(estimate: dict[str, Any], beside: Request) -> Request:
    engine = estimate["engine"]
    if engine is None:
        raise InputError("the plan was refused before its flags were resolved: give the flags instead")
    fields = {name: engine[name] for name in _ENGINE_FIELDS}
    return beside.model_copy(
        update={
            "model": str(estimate["model"]),
            "gpus": str(estimate["gpus"]),
            "vllm_version": str(estimate["vllm_version"]),
            "args": EngineArgs.checked(**fields),
            "given": _ENGINE_FIELDS,
        }
    )
