"""EngineFacts: the few things of a config that only the engine's rules ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

from msgspec import Struct

from planner.errors import InputError
from planner.model.config_view import ConfigView
from planner.model.max_len import default_max_model_len, printed_max_model_len

StateDType = Literal["auto", "float32", "float16", "bfloat16"]

_PREFIX_LM_TYPES = ("bagel", "gemma3", "molmo2", "moondream3", "paligemma", "umm")
_GEMMA4_TYPES = ("diffusion_gemma_text", "gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text")
_NEMOTRON_H = ("NemotronHForCausalLM", "NemotronHPuzzleForCausalLM", "NemotronH_Nano_VL_V2")
"""The omni-modal classes of Nemotron are not among them: their state keeps the model's dtype (models/config.py:836)."""
_CAPPING_TYPES = ("gemma", "muse_glimmer")
_GEMMA4_VIDEO_TOKENS = 32 * (70 + 2 + 6)


class EngineFacts(Struct, frozen=True, kw_only=True):
    """Defaults are those of a plain decoder.

    `default_max_model_len`: served when the user names
    no length (None: the derived one); `printed_max_model_len`: the derived one as vLLM prints it; `model_max_length`:
    the config's own limit that a user may go up to.
    `prefix_lm`: image tokens attend in both directions, so an item must fit one batch; `prefix_lm_item_tokens`: the
    most tokens of one item where vLLM knows them without running the processor. `index_topk`: sparse MLA keeps so
    many tokens. `attention_chunk_size`: chunked local attention. `compress_ratios`: DeepSeek-V4's compressed cache.
    `caps_logits`: logits are bounded by a soft cap (Gemma 2 and later).
    `ssm_state_dtype`: what the config asks for the recurrent state ("auto": the model's dtype).
    """

    default_max_model_len: int | None = None
    model_max_length: int | None = None
    prefix_lm: bool = False
    prefix_lm_item_tokens: int | None = None
    index_topk: int | None = None
    attention_chunk_size: int | None = None
    compress_ratios: bool = False
    is_encoder_decoder: bool = False
    caps_logits: bool = False
    printed_max_model_len: str = ""
    ssm_state_dtype: StateDType = "auto"


def engine_facts(config: Mapping[str, Any], text: Mapping[str, Any], architecture: str) -> EngineFacts:
    """Read from the whole config and its language model's section.

    Source: vLLM 0.26.0 transformers_utils/model_arch_config_convertor.py is_mm_prefix_lm, config/model.py:547,
    model_executor/models/config.py (NemotronH, Qwen3_5), models/gemma4_mm.py get_mm_max_tokens_per_item.
    """
    view = ConfigView(text, model_type=str(text.get("model_type") or config.get("model_type", "")))
    top_type, text_type = str(config.get("model_type", "")), str(text.get("model_type") or config.get("model_type", ""))
    prefix_lm = _is_prefix_lm(config, view, top_type)
    chunk = None if text_type.startswith("mimo_v2") else view.optional_size("attention_chunk_size")
    return EngineFacts(
        default_max_model_len=default_max_model_len(text, text_type),
        model_max_length=view.optional_size("model_max_length"),
        prefix_lm=prefix_lm,
        prefix_lm_item_tokens=_GEMMA4_VIDEO_TOKENS if prefix_lm and top_type in _GEMMA4_TYPES else None,
        index_topk=view.optional_size("index_topk"),
        attention_chunk_size=chunk,
        compress_ratios="compress_ratios" in text,
        is_encoder_decoder=config.get("is_encoder_decoder") is True,
        caps_logits=text_type.startswith(_CAPPING_TYPES) and view.raw("final_logit_softcapping") is not None,
        printed_max_model_len=printed_max_model_len(text, text_type),
        ssm_state_dtype=_ssm_state_dtype(config, text, architecture),
    )


def _is_prefix_lm(config: Mapping[str, Any], text: ConfigView, model_type: str) -> bool:
    if model_type in _GEMMA4_TYPES:
        return bool(text.raw("use_bidirectional_attention") == "vision")
    if "is_mm_prefix_lm" in config:
        return bool(config["is_mm_prefix_lm"])
    return model_type in _PREFIX_LM_TYPES


def _ssm_state_dtype(config: Mapping[str, Any], text: Mapping[str, Any], architecture: str) -> StateDType:
    named: Any = None
    if architecture in _NEMOTRON_H:
        named = text.get("mamba_ssm_cache_dtype", "float32")
    elif architecture in ("Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration", "ColQwen3_5"):
        named = text.get("mamba_ssm_dtype")
    if named is None or named == "auto":
        return "auto"
    if named in ("float32", "float16", "bfloat16"):
        return cast(StateDType, named)
    raise InputError(f"config.json: mamba state dtype {named!r} is not one of float32, float16, bfloat16")
