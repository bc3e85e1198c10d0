"""Modules of one small layer, shards of it, and what a scheme stores of them."""

from typing import Any

from quantized_cases import card, model_of

from planner.model.modules import FusedMoE, Linear, LMHead, PackedNames, QKVLinear, VocabEmbedding
from planner.model.spec import ModelSpec, QuantizationSpec
from planner.sharding.quantization.base import LinearShard, MoEShard, Storage

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
NAMES = PackedNames(fused=FUSED, prefixes=(("model.visual.", "visual."), ("model.", "language_model.model.")))
AT = "model.layers.0"
QKV = QKVLinear(name=f"{AT}.self_attn.qkv_proj", hidden_size=256, num_heads=4, num_kv_heads=2, head_size=64)
OUT = Linear(name=f"{AT}.self_attn.o_proj", input_size=256, output_sizes=(256,), parallelism="row")
MLP = Linear(name=f"{AT}.mlp.gate_up_proj", input_size=256, output_sizes=(512, 512), parallelism="column")
DOWN = Linear(name=f"{AT}.mlp.down_proj", input_size=512, output_sizes=(256,), parallelism="row")
TOWER = Linear(name="visual.blocks.0.attn.qkv", input_size=256, output_sizes=(768,), component="vision_tower")
EXPERTS = FusedMoE(name=f"{AT}.mlp.experts", num_experts=4, top_k=2, hidden_size=256, intermediate_size=128)
HEAD = LMHead(name="lm_head", num_embeddings=1000, hidden_size=256)
WORDS = VocabEmbedding(name="model.embed_tokens", num_embeddings=1000, hidden_size=256)


MODEL: ModelSpec = model_of("dense", None)
"""A model of which no safetensors headers are known."""

Shapes = dict[str, tuple[tuple[int, ...], str]]


def of(method: Any, section: dict[str, Any], capability: int = 90, names: PackedNames | None = None) -> Any:
    """The selector that a method makes of a checkpoint's section."""
    spec = QuantizationSpec(method=str(section.get("quant_method")), raw=section)
    return method.select(MODEL, spec, card(capability, names=names or PackedNames(fused=FUSED)))


def experts(**changes: Any) -> MoEShard:
    usual = {
        "name": EXPERTS.name, "num_experts": 4, "num_local_experts": 4, "top_k": 2, "hidden_size": 256,
        "intermediate_size": 128, "full_intermediate_size": 128, "gated": True, "bias": False, "dtype": "bfloat16",
        "expert_parallel": False, "activation": "silu",
    }  # fmt: skip
    return MoEShard(**{**usual, **changes})


def linear(inputs: int, *outputs: int, **changes: Any) -> LinearShard:
    usual: dict[str, Any] = {
        "name": DOWN.name, "input_size": inputs, "output_sizes": outputs, "full_input_size": inputs,
        "full_output_sizes": outputs, "row_parallel": False, "dtype": "bfloat16", "tensor_parallel_size": 1,
    }  # fmt: skip
    return LinearShard(**{**usual, **changes})


def created(storage: Storage) -> Shapes:
    return {stored.name: (stored.shape, stored.dtype) for stored in storage.created}


def loaded(storage: Storage) -> Shapes:
    return {stored.name: (stored.shape, stored.dtype) for stored in storage.after_load}
