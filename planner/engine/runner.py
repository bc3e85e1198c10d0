"""Which of vLLM's two GPU model runners serves the model, and why, and how many batches are in flight."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from planner.engine.args import EngineArgs
from planner.engine.speculative import Speculation
from planner.errors import InputError, UnsupportedError
from planner.model.spec import ModelSpec
from planner.releases.release import Release
from planner.values import reject

VARIABLE = "VLLM_USE_V2_MODEL_RUNNER"


class Runner(Struct, frozen=True, kw_only=True):
    """`reason` is for the reader."""

    name: Literal["v1", "v2"]
    reason: str


def resolve_runner(args: EngineArgs, model: ModelSpec, release: Release, speculation: Speculation) -> Runner:
    """Raises Rejected where the environment forces V2 upon what it cannot do.

    Source: vLLM 0.26.0 config/vllm.py:550,622,2127; vLLM 0.33.0 config/vllm.py:731.
    """
    unsupported = _unsupported(args, release, speculation)
    forced = _forced(args)
    if forced is not None:
        if forced and unsupported:
            raise reject("flag", f"Model Runner V2 does not yet support: {', '.join(unsupported)}")
        return Runner(name="v2" if forced else "v1", reason=f"{VARIABLE}={int(forced)}")
    refused = _not_default(model, release)
    if refused:
        return Runner(name="v1", reason=refused)
    if unsupported:
        return Runner(name="v1", reason=f"Model Runner V2 does not yet support {', '.join(unsupported)}")
    listed = model.architecture in release.v2_architectures
    reason = (
        f"vLLM {release.version} lists {model.architecture} for it" if listed else "the default for this kind of model"
    )
    return Runner(name="v2", reason=reason)


def refuse_drafting(speculation: Speculation, release: Release) -> None:
    """Raises UnsupportedError for a draft with weights in a release whose drafting was not read."""
    if speculation.has_weights and release.evidence != "verified on hardware":
        message = f"drafting by {speculation.method} is modelled for vLLM 0.26.0, not for {release.version}"
        raise UnsupportedError("speculative_config", message)


def max_concurrent_batches(runner: Runner, *, async_scheduling: bool, pipeline_parallel_size: int) -> int:
    """Source: vLLM 0.26.0 config/vllm.py:512."""
    if async_scheduling and runner.name == "v2":
        return pipeline_parallel_size + 1
    if async_scheduling and pipeline_parallel_size == 1:
        return 2
    return pipeline_parallel_size


def _forced(args: EngineArgs) -> bool | None:
    value = dict(args.env).get(VARIABLE)
    if value is None:
        return None
    if value not in ("0", "1"):
        raise InputError(f"--env {VARIABLE}={value}: write 0 or 1")
    return value == "1"


def _not_default(model: ModelSpec, release: Release) -> str | None:
    if release.runner_rule == "always_unless_unsupported":
        return None
    if release.runner_rule == "v1":
        return f"vLLM {release.version} takes the V2 runner only when {VARIABLE} asks for it"
    if release.runner_rule == "listed_dense":
        if model.architecture in release.v2_architectures and not model.is_moe and model.quantization is None:
            return None
        return f"vLLM {release.version} takes V2 only for unquantized {', '.join(release.v2_architectures)}"
    if model.is_hybrid:
        return "hybrid models (attention with recurrent layers) stay on V1"
    if model.is_moe and model.architecture not in release.v2_architectures:
        return "mixture-of-experts models stay on V1 unless listed"
    return None


def _unsupported(args: EngineArgs, release: Release, speculation: Speculation) -> tuple[str, ...]:
    method = speculation.method
    if method is None:
        return ()
    if release.v2_speculative_methods is None:
        refused = method in release.v2_refused_speculative_methods
        return (f"speculative method '{method}'",) if refused else ()
    if method in ("ngram", "ngram_gpu"):
        return ("ngram/ngram_gpu speculative decoding",)
    if method not in release.v2_speculative_methods:
        return (f"speculative method '{method}'",)
    if method == "eagle3" and args.pipeline_parallel_size > 1:
        return ("EAGLE3 with pipeline parallelism",)
    return ()
