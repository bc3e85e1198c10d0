"""Models small enough that their searches can be read, and what is asked of them."""

from __future__ import annotations

from typing import Any

from planner.engine.args import EngineArgs
from planner.model.build import build_model
from planner.model.spec import ModelFiles, ModelSpec
from planner.search.space import SearchOptions, Workload

FIXED = {"max_num_seqs": 16, "max_num_batched_tokens": 2048, "kv_cache_dtype": "auto"}


def dense(layers: int = 4, heads: int = 8, kv_heads: int = 4, longest: int = 32768, **more: object) -> ModelSpec:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": heads * 128,
        "intermediate_size": heads * 512, "num_attention_heads": heads, "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads, "vocab_size": 32000, "max_position_embeddings": longest,
        "torch_dtype": "bfloat16", "hidden_act": "silu", **more,
    }  # fmt: skip
    return build_model(ModelFiles(name="dense", config=config))


def experts() -> ModelSpec:
    config = {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 1024,
        "intermediate_size": 2048, "num_attention_heads": 16, "num_hidden_layers": 4, "num_key_value_heads": 8,
        "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 32000, "max_position_embeddings": 32768,
        "torch_dtype": "bfloat16", "hidden_act": "silu",
    }  # fmt: skip
    return build_model(ModelFiles(name="experts", config=config))


def asked(given: dict[str, Any] | None = None, load: dict[str, Any] | None = None, **more: Any) -> SearchOptions:
    given = given or {}
    return SearchOptions(args=EngineArgs(**given), given=tuple(given), workload=Workload(**(load or {})), **more)
