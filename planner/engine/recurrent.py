"""Prefix caching, and what it means for recurrent (Mamba-like) state. Source: vLLM 0.26.0 models/config.py:520."""

from __future__ import annotations

from typing import Literal

from planner.engine.args import EngineArgs
from planner.model.spec import ModelSpec
from planner.releases.release import Release
from planner.values import DType, reject

MambaCacheMode = Literal["none", "all", "align"]
_CACHES_EVERY_BLOCK = (
    "FalconH1ForCausalLM", "GraniteMoeHybridForCausalLM", "JambaForCausalLM", "Mamba2ForCausalLM", "MambaForCausalLM",
    "NemotronHForCausalLM", "NemotronHPuzzleForCausalLM", "Zamba2ForCausalLM",
)  # fmt: skip


def resolve_prefix_caching(args: EngineArgs, model: ModelSpec, release: Release) -> bool:
    """On by default, but for hybrid models where the release keeps it opt-in, and encoder-decoder models.

    Source: vLLM 0.26.0 engine/arg_utils.py:2512, config/model.py is_prefix_caching_supported.
    """
    if args.enable_prefix_caching is not None:
        return args.enable_prefix_caching
    if model.facts.is_encoder_decoder:
        return False
    return release.hybrid_prefix_caching_default or not model.is_hybrid


def resolve_mamba_cache_mode(
    model: ModelSpec, release: Release, *, prefix_caching: bool, chunked_prefill: bool
) -> MambaCacheMode:
    """Raises Rejected where prefix caching would need chunked prefill. "none" for models without recurrent layers."""
    if not model.is_hybrid or not prefix_caching:
        return "none"
    if model.architecture in _CACHES_EVERY_BLOCK and "all" in release.mamba_cache_modes:
        return "all"
    if not chunked_prefill:
        raise reject("flag", "Chunked prefill is required for mamba cache mode 'align'.")
    return "align"


def state_dtypes(model: ModelSpec, dtype: DType) -> tuple[DType, DType]:
    """(convolution, recurrent) state dtypes with both mamba cache flags at "auto".

    Source: vLLM 0.26.0 model_executor/layers/mamba/mamba_utils.py:84.
    """
    named = model.facts.ssm_state_dtype
    return dtype, dtype if named == "auto" else named
