"""LoRA slots against sizes worked out by hand from each layer's input and output."""

from typing import Any

import pytest
from layers import EXPERTS as EXPERTS_LAYER
from layers import experts, linear

from planner.engine.args import EngineArgs
from planner.engine.resolve import resolve
from planner.errors import UnsupportedError
from planner.hardware.spec import GpuSpec
from planner.model.adapters import AdapterTraits
from planner.model.build import build_model
from planner.model.modules import Linear, Module, QKVLinear
from planner.model.spec import ModelFiles, ModelSpec
from planner.sharding.adapters import Slots
from planner.sharding.quantization.base import Shard
from planner.sharding.rank import RankShare
from planner.sharding.shard import shard
from planner.units import GIB
from planner.values import Rejected

H200 = GpuSpec(
    name="h200", device_name="NVIDIA H200", compute_capability=(9, 0), total_memory_bytes=int(139.8 * GIB),
    memory_evidence="user",
)  # fmt: skip
SLOTS, RANK, HIDDEN, INNER, VOCAB, LAYERS = 3, 16, 512, 1024, 1000, 2
DENSE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "vocab_size": VOCAB,
    "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 64, "hidden_act": "silu", "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip


def model(**changes: Any) -> ModelSpec:
    return build_model(ModelFiles(name="made", config={**DENSE, **changes}))


def share(spec: ModelSpec, **flags: Any) -> RankShare:
    args = EngineArgs(enable_lora=True, max_loras=SLOTS, max_lora_rank=RANK, max_model_len=2048, **flags)
    return shard(spec, resolve(spec, H200, args, "0.26.0"))


def slot_bytes(spec: ModelSpec, **flags: Any) -> int:
    return sum(tensor.size_bytes for tensor in share(spec, **flags).adapters)


def pairs(*layers: tuple[int, int], rank: int = RANK, columns: int = RANK) -> int:
    """Elements of A [rank, input] and B [output, rank] for each (input, output), times the slots, in 16 bits."""
    return 2 * SLOTS * sum(rank * inputs + columns * outputs for inputs, outputs in layers)


ATTENTION = [(HIDDEN, 512), (HIDDEN, 128), (HIDDEN, 128), (512, HIDDEN)]
MLP = [(HIDDEN, INNER), (HIDDEN, INNER), (INNER, HIDDEN)]
WORDS = [(VOCAB, HIDDEN), (HIDDEN, VOCAB)]


def test_every_checkpoint_layer_gets_its_pair() -> None:
    assert slot_bytes(model(architectures=["Qwen2ForCausalLM"], model_type="qwen2")) == LAYERS * pairs(*ATTENTION, *MLP)


def test_embedding_and_head_get_theirs_where_the_class_says_so() -> None:
    assert slot_bytes(model()) == LAYERS * pairs(*ATTENTION, *MLP) + pairs(*WORDS)


def test_a_tied_head_that_is_the_embedding_is_wrapped_twice() -> None:
    plain = LAYERS * pairs(*ATTENTION, *MLP) + pairs(*WORDS)
    qwen = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    assert slot_bytes(model(tie_word_embeddings=True)) == plain
    assert slot_bytes(model(**qwen)) == plain
    assert slot_bytes(model(**qwen, tie_word_embeddings=True)) == plain + pairs((VOCAB, HIDDEN))


def test_tensor_parallelism_divides_outputs_of_columns_and_inputs_of_rows() -> None:
    column = [(HIDDEN, 256), (HIDDEN, 64), (HIDDEN, 64), (HIDDEN, 512), (HIDDEN, 512)]
    row = [(256, HIDDEN), (512, HIDDEN)]
    mapping = 8 * 1024
    assert slot_bytes(model(), tensor_parallel_size=2) == LAYERS * pairs(*column, *row) + pairs(*WORDS) + mapping


def test_fully_sharded_divides_the_other_factor_too() -> None:
    spec = model(architectures=["Qwen2ForCausalLM"], model_type="qwen2")
    column = pairs((HIDDEN, 256), (HIDDEN, 64), (HIDDEN, 64), (HIDDEN, 512), (HIDDEN, 512), rank=RANK // 2)
    row = pairs((256, HIDDEN // 2), (512, HIDDEN // 2))
    assert slot_bytes(spec, tensor_parallel_size=2, fully_sharded_loras=True) == LAYERS * (column + row)
    assert slot_bytes(spec, fully_sharded_loras=True) == slot_bytes(spec)


def test_target_modules_leave_the_rest_alone() -> None:
    spec = model(architectures=["Qwen2ForCausalLM"], model_type="qwen2")
    assert slot_bytes(spec, lora_target_modules=("o_proj",)) == LAYERS * pairs((512, HIDDEN))
    assert slot_bytes(spec, lora_target_modules=("q_proj",)) == LAYERS * pairs(*ATTENTION[:3])


def test_float16_slots_are_as_large_and_float32_models_keep_their_width() -> None:
    spec = model(architectures=["Qwen2ForCausalLM"], model_type="qwen2")
    assert slot_bytes(spec, dtype="float32") == 2 * slot_bytes(spec)
    assert slot_bytes(spec, dtype="float32", lora_dtype="bfloat16") == slot_bytes(spec)


EXPERTS: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 256, "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True,
}  # fmt: skip


def test_experts_have_a_slot_each_and_the_router_one() -> None:
    experts = 4 * pairs((HIDDEN, 256), (HIDDEN, 256), (256, HIDDEN))
    enabled = 4 * (SLOTS + 1)
    layer = pairs(*ATTENTION) + pairs((HIDDEN, 4)) + experts + enabled
    assert slot_bytes(model(**EXPERTS)) == LAYERS * layer + pairs(*WORDS)


def test_whole_experts_are_divided_by_their_number() -> None:
    split = share(model(**EXPERTS), tensor_parallel_size=2, enable_expert_parallel=True)
    shapes = {tensor.name: tensor.shape for tensor in split.adapters if tensor.module.endswith("experts")}
    assert shapes["w13_lora_b"] == (SLOTS, 2, 256, RANK)
    with pytest.raises(Rejected, match="does not support enable_expert_parallel=True together"):
        share(model(**EXPERTS), tensor_parallel_size=2, enable_expert_parallel=True, fully_sharded_loras=True)


def slots(traits: AdapterTraits, module: Module, shard: Shard, **flags: Any) -> list[tuple[int, ...]]:
    """Shapes of one layer's slots without their leading number."""
    spec = model()
    args = EngineArgs(enable_lora=True, max_loras=SLOTS, max_lora_rank=RANK, max_model_len=2048, **flags)
    made = Slots(traits, resolve(spec, H200, args, "0.26.0")).of([(module, shard)])
    assert all(tensor.shape[:2] == (SLOTS, 1) for tensor in made)
    return [tensor.shape[2:] for tensor in made]


def test_fused_layers_have_as_many_adapters_as_the_checkpoint_has_layers() -> None:
    """lora/layers/column_parallel_linear.py; utils.py from_layer: a fused layer that no class takes has none."""
    qkv = QKVLinear(name="a.qkv", hidden_size=64, num_heads=4, num_kv_heads=2, head_size=16)
    rank = linear(64, 64, 32, 32, name=qkv.name)
    a, b = (RANK, 64), lambda size: (size, RANK)
    assert slots(AdapterTraits(packed={"qkv": 3}), qkv, rank) == [a, a, a, b(64), b(32), b(32)]
    assert slots(AdapterTraits(packed={"qkv": 1}), qkv, rank) == [a, b(128)]
    assert slots(AdapterTraits(packed={}), qkv, rank) == []
    indexed = QKVLinear(name="a.qkv", hidden_size=64, num_heads=4, num_kv_heads=2, head_size=16, index_head_size=4)
    assert slots(AdapterTraits(packed={"qkv": 3}), indexed, rank) == []

    two = Linear(name="a.two", input_size=64, output_sizes=(48, 80), parallelism="column")
    both = linear(64, 48, 80, name=two.name)
    assert slots(AdapterTraits(packed={"two": 2}), two, both) == [a, a, b(48), b(80)]
    assert slots(AdapterTraits(packed={"two": 1}), two, both) == [a, b(128)]
    assert slots(AdapterTraits(packed={}), two, both) == []

    three = Linear(name="a.three", input_size=64, output_sizes=(8, 16, 24), parallelism="column")
    split = linear(64, 8, 16, 24, name=three.name, tensor_parallel_size=2)
    assert slots(AdapterTraits(packed={}), three, split) == [a, a, a, b(8), b(16), b(24)]
    sharded = {"tensor_parallel_size": 2, "fully_sharded_loras": True}
    assert slots(AdapterTraits(packed={}), three, split, **sharded) == []


def test_layers_outside_the_language_model_and_passed_over_ones_have_none() -> None:
    layer = Linear(name="language_model.a.proj", input_size=64, output_sizes=(32,))
    one = linear(64, 32, name=layer.name)
    assert len(slots(AdapterTraits(language_model="language_model"), layer, one)) == 2
    assert slots(AdapterTraits(language_model="model"), layer, one) == []
    assert slots(AdapterTraits(passed_over=("proj",)), layer, one) == []
    tower = Linear(name=layer.name, input_size=64, output_sizes=(32,), component="vision_tower")
    assert slots(AdapterTraits(), tower, one) == []
    assert len(slots(AdapterTraits(), layer, one, lora_target_modules=("language_model.a.proj",))) == 2
    assert slots(AdapterTraits(), layer, one, lora_target_modules=("a.proj",)) == []


def test_fully_sharded_experts_divide_rank_and_hidden_size_and_routers_stay() -> None:
    """lora/layers/fused_moe.py:169: w13's A by its rank, w2's B by its output; a replicated router by nothing."""
    split = share(model(**EXPERTS), tensor_parallel_size=2, fully_sharded_loras=True)
    experts = {tensor.name: tensor.shape for tensor in split.adapters if tensor.module.endswith("experts")}
    assert experts == {
        "adapter_enabled": (SLOTS + 1,),
        "w13_lora_a": (SLOTS, 4, RANK // 2, HIDDEN),
        "w2_lora_a": (SLOTS, 4, RANK, 128),
        "w13_lora_b": (SLOTS, 4, 128, RANK),
        "w2_lora_b": (SLOTS, 4, HIDDEN // 2, RANK),
    }
    router = [tensor.shape for tensor in split.adapters if tensor.module.endswith("mlp.gate")]
    assert router == LAYERS * [(SLOTS, 1, RANK, HIDDEN), (SLOTS, 1, 4, RANK)]
    alone = share(model(**EXPERTS), tensor_parallel_size=2, enable_expert_parallel=True)
    whole = {tensor.name: tensor.shape for tensor in alone.adapters if tensor.module.endswith("experts")}
    assert whole["w13_lora_a"] == (SLOTS, 2, RANK, HIDDEN)
    assert whole["w2_lora_b"] == (SLOTS, 2, HIDDEN, RANK)


def test_experts_that_fuse_gate_and_up_have_one_adapter_for_both() -> None:
    """lora/layers/fused_moe.py FusedMoE3DWithLoRA: one B of twice the width; no gate, one B of the width."""
    spec = model()
    args = EngineArgs(enable_lora=True, max_loras=SLOTS, max_lora_rank=RANK, max_model_len=2048)
    config = resolve(spec, H200, args, "0.26.0")

    def shapes(traits: AdapterTraits, **changes: Any) -> list[tuple[str, tuple[int, ...]]]:
        made = Slots(traits, config).of([(EXPERTS_LAYER, experts(**changes))])
        return [(tensor.name, tensor.shape[2:]) for tensor in made[1:]]

    fused = shapes(AdapterTraits(fused_experts=True))
    assert fused == [
        ("w13_lora_a", (RANK, 256)),
        ("w2_lora_a", (RANK, 128)),
        ("w13_lora_b", (256, RANK)),
        ("w2_lora_b", (256, RANK)),
    ]
    apart = shapes(AdapterTraits())
    assert [name for name, _ in apart] == ["w13_lora_a"] * 2 + ["w2_lora_a"] + ["w13_lora_b"] * 2 + ["w2_lora_b"]
    assert dict(apart)["w13_lora_b"] == (128, RANK)
    assert [name for name, _ in shapes(AdapterTraits(), gated=False)].count("w13_lora_a") == 1


def test_ranks_and_outputs_that_do_not_divide_are_refused() -> None:
    spec = model(architectures=["Qwen2ForCausalLM"], model_type="qwen2")
    args = EngineArgs(
        enable_lora=True, max_lora_rank=1, max_model_len=2048, tensor_parallel_size=2, fully_sharded_loras=True
    )
    with pytest.raises(Rejected, match="1 is not divisible by 2"):
        shard(spec, resolve(spec, H200, args, "0.26.0"))


def test_tied_heads_on_another_stage_and_experts_on_blackwell_are_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="head tied to another stage's embedding"):
        share(model(tie_word_embeddings=True), pipeline_parallel_size=2)
    apart = share(model(), pipeline_parallel_size=2)
    assert {tensor.module.partition(".layers.")[0] for tensor in apart.adapters} == {"model", "model.embed_tokens"}
    plain = model(architectures=["Qwen2ForCausalLM"], model_type="qwen2", tie_word_embeddings=True)
    assert share(plain, pipeline_parallel_size=2).adapters


def test_classes_without_adapters_are_refused_by_their_name() -> None:
    falcon = {
        "architectures": ["FalconForCausalLM"], "model_type": "falcon", "new_decoder_architecture": False,
        "multi_query": True, "parallel_attn": True, "bias": False, "alibi": False, "num_kv_heads": 1,
    }  # fmt: skip
    with pytest.raises(Rejected, match=r"^FalconForCausalLM does not support LoRA yet\.$"):
        share(model(**falcon))


def test_what_is_not_known_is_unsupported() -> None:
    block = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    with pytest.raises(UnsupportedError, match="quantized experts"):
        share(model(**EXPERTS, quantization_config=block))
    with pytest.raises(UnsupportedError, match="MiniCPM3ForCausalLM"):
        share(model().__class__(**{name: getattr(model(), name) for name in ModelSpec.__struct_fields__}
                                | {"architecture": "MiniCPM3ForCausalLM"}))  # fmt: skip


def test_a_vocabulary_too_large_for_the_kernel_is_refused() -> None:
    with pytest.raises(Rejected, match="vocab size must be <= 258048"):
        share(model(vocab_size=262144))
