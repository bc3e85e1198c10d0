"""Which module plays which part, and what decides how a pass is written."""

from __future__ import annotations

from typing import Any

import pytest
from kv_cases import engine
from msgspec.structs import replace

from planner.memory.allocator import LoadTraits
from planner.memory.layers import (
    batchless,
    decoder_layers,
    load_traits,
    replayed_layers,
    split_bytes_per_token,
    takes_media,
    uses_mrope,
)
from planner.memory.runner_state import kv_tables
from planner.sharding.rank import RankShare
from tests.memory.pass_cases import check_text, model_of, set_up

BOOT, HYBRID, SERVED = "memory/boots.json ", "hybrid_configs.json ", "served_configs.json "
EAGER: dict[str, Any] = {"enforce_eager": True}
EIGHT: dict[str, Any] = {"gpus": "h200:8", "tensor_parallel_size": 8}
TEXT: dict[str, Any] = {"limit_mm_per_prompt": '{"image": 0, "video": 0}'}


@pytest.mark.parametrize(
    ("length", "seqs", "block", "rows"),
    [
        (4096, 64, 64, 8 * 4096),  # eight of the longest
        (100, 64, 64, 4 * 64 * 64),  # four blocks a request
        (100_000, 64, 64, 65_536),  # at most 64 Ki
        (100, 2000, 64, 2000 * 64),  # a block a request in any case
    ],
)
def test_rows_of_latent_context(length: int, seqs: int, block: int, rows: int) -> None:
    """vLLM 0.26.0 mla_attention.py:1688; 576 numbers of 16 bits each, kept with the cache."""
    config = engine(max_model_len=length, max_num_seqs=seqs, block_size=block)
    kept = {tensor.name: tensor.constant_bytes for tensor in kv_tables(model_of(BOOT + "dsv2-lite-l4"), config, ())}
    assert kept == {"latent context workspace": rows * 576 * 2}


@pytest.mark.parametrize(
    ("source", "changes", "width"),
    [
        (BOOT + "q25-7b-l4", {}, 28 * 128),
        (BOOT + "q25-7b-l4", {"tensor_parallel_size": 2}, 14 * 128),
        (BOOT + "q25-7b-l4", {"compute_capability": (8, 9)}, 0),
        (BOOT + "q25-7b-l4", {"attention_backend": "FLASHINFER"}, 0),
        (BOOT + "q25-7b-l4", {"attention_backend": "FLASH_ATTN_MLA"}, 0),
        (BOOT + "dsv2-lite-l4", {"attention_backend": "FLASH_ATTN_MLA"}, 16 * 512),
        (BOOT + "dsv2-lite-l4", {"attention_backend": "FLASH_ATTN_MLA", "tensor_parallel_size": 4}, 4 * 512),
        ("XiaomiMiMo__MiMo-V2-Flash", {}, 64 * 128),
        ("Qwen__Qwen3-VL-8B-Instruct", {}, 32 * 128),
        ("made__gemma4-31b", {}, 32 * 512),  # layers of 256 and of 512
    ],
)
def test_split_outputs_are_32_in_float32(source: str, changes: dict[str, Any], width: int) -> None:
    assert split_bytes_per_token(model_of(source), engine(**changes)) == 32 * 4 * width


@pytest.mark.parametrize(
    ("source", "flags", "traits"),
    [
        (BOOT + "q25-7b-l4", {}, LoadTraits()),
        (BOOT + "q25-7b-l4", {"kv_cache_dtype": "fp8"}, LoadTraits(deep_gemm="attention")),
        (BOOT + "q3-32b-fp8-l4", {}, LoadTraits(deep_gemm="linear")),
        (BOOT + "q3-32b-fp8-l4", {"env": (("VLLM_USE_DEEP_GEMM", "0"),)}, LoadTraits()),
        (BOOT + "q3-32b-fp8-l4", {"gpus": "l4:2", "tensor_parallel_size": 2}, LoadTraits()),
        (BOOT + "q3-32b-fp8-l4", {"gpus": "b200:1"}, LoadTraits(deep_gemm="linear")),
        (BOOT + "dsv2-lite-l4", {}, LoadTraits(scaled_rotary=True, deep_gemm="attention")),
        (
            BOOT + "dsv2-lite-l4", EAGER,
            LoadTraits(scaled_rotary=True, float32_rotary=True, deep_gemm="attention"),
        ),
        (
            "deepseek-ai__DeepSeek-V3", EAGER | EIGHT,
            LoadTraits(scaled_rotary=True, float32_rotary=True, deep_gemm="linear"),
        ),
        (BOOT + "gptoss-20b-l4", EAGER, LoadTraits(scaled_rotary=True)),
        (HYBRID + "mamba", EAGER, LoadTraits()),
    ],
)  # fmt: skip
def test_what_a_load_makes_beside_the_tensors(source: str, flags: dict[str, Any], traits: LoadTraits) -> None:
    """Tables by YaRN are scaled, DeepSeek's stay in float32 in eager mode; DeepGEMM starts with the first FP8."""
    assert load_traits(*set_up(source, **flags)) == traits


@pytest.mark.parametrize(
    ("source", "flags", "media", "mrope"),
    [
        (BOOT + "q25-7b-l4", {}, False, False),
        (BOOT + "q25vl-7b-l4", {}, True, True),
        (BOOT + "q25vl-7b-l4", TEXT, False, True),
        (BOOT + "q25vl-7b-l4", {"limit_mm_per_prompt": '{"image": 0, "video": 1}'}, True, True),
        ("llava-hf__llava-1.5-7b-hf", {}, True, False),
        (HYBRID + "mamba", {}, False, False),
    ],
)
def test_embeddings_as_input_and_positions_of_three_dimensions(
    source: str, flags: dict[str, Any], media: bool, mrope: bool
) -> None:
    model, _, config = set_up(source, **flags)
    assert (takes_media(model, config), uses_mrope(model)) == (media, mrope)
    without = config.model_copy(update={"mm_limits": ()})
    assert takes_media(model, without) is model.is_multimodal


@pytest.mark.parametrize(("source", "reads"), [(BOOT + "q25-7b-l4", False), (BOOT + "dsv2-lite-l4", True)])
def test_one_program_for_all_batch_sizes(source: str, reads: bool) -> None:
    """Budgets never matter for how a pass is written; lengths and batches only to latent attention."""
    model, _, config = set_up(source)
    budget = {"gpu_memory_utilization": 0.5, "kv_cache_memory_bytes": 7, "num_gpu_blocks_override": 8}
    common = batchless(model, config)
    assert batchless(model, config.model_copy(update=budget)) is common
    for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens"):
        other = config.model_copy(update={name: getattr(config, name) + 16})
        assert (batchless(model, other) is common) == (not reads)
        assert (getattr(common, name) == getattr(config, name)) == reads
    for change in ({"dtype": "float16"}, {"kv_cache_dtype": "fp8"}, {"tensor_parallel_size": 2}):
        assert batchless(model, config.model_copy(update=change)) is not common


SOURCES = (
    BOOT + "q25-7b-l4", BOOT + "q3-30b-a3b-l4", BOOT + "dsv2-lite-l4", BOOT + "q3next-l4", BOOT + "nemotron3-nano-l8",
    "meta-llama__Llama-4-Scout-17B-16E-Instruct", "zai-org__GLM-5", HYBRID + "falcon-h1", HYBRID + "kimi-linear",
    HYBRID + "granite-4-tiny", SERVED + "cohere2moe", SERVED + "plamo2", SERVED + "ring25", "openai__gpt-oss-20b",
    "made__gemma4-26b-text", "openbmb__MiniCPM3-4B", "deepseek-ai__DeepSeek-V4-Flash", "poolside__Laguna-S-2.1-FP8",
    "small_configs.json afmoe", SERVED + "iqloop", "small_configs.json qwen2moe", HYBRID + "zamba2-7b",
)  # fmt: skip


SHARE = RankShare(
    tp_rank=0, pp_rank=0, tensor_parallel_size=1, pipeline_parallel_size=1, layers=(), created=(), loaded=(),
    kv_layers=(),
)  # fmt: skip


def _named(found: Any, index: int) -> str:
    if isinstance(found, tuple):
        return ", ".join(_named(part, index) for part in found)
    return str(found.name.split(f".{index}.", 1)[-1])


@pytest.mark.parametrize("source", SOURCES)
def test_parts_of_each_kind_of_layer(source: str, request: pytest.FixtureRequest) -> None:
    flags = EIGHT | ({"kv_cache_dtype": "fp8"} if "V4" in source else {})
    large = any(word in source for word in ("Llama-4", "GLM-5", "V4"))
    model, share, _ = set_up(source, **EAGER, **(flags if large else {}))
    layers = decoder_layers(model, share)
    assert [layer.index for layer in layers] == list(share.layers)
    replayed = replayed_layers(model, share)
    assert {layer.index for layer in replayed} <= {layer.index for layer in layers}
    lines = [f"replayed: {[layer.index for layer in replayed]}"]
    seen: dict[str, int] = {}
    for layer in layers:
        parts = {
            "attention": layer.qkv, "latent": layer.mla, "state": layer.state_space, "out": layer.out_projection,
            "router": layer.router, "experts": layer.experts, "shared": layer.shared, "gate": layer.shared_gate,
            "mlp": layer.mlp,
        }  # fmt: skip
        habits = ("mixes", "is_plain_attention", "has_one_part", "has_qk_norm")
        named = [f"{name}: {_named(part, layer.index)}" for name, part in parts.items() if part]
        text = "; ".join([*named, ", ".join(name for name in habits if getattr(layer, name))])
        if seen.setdefault(text, layer.index) == layer.index:
            lines.append(f"layer {layer.index}: {text}")
    check_text(f"layers of {source}", lines, request)


@pytest.mark.parametrize(
    ("source", "index", "up"),
    [
        ("zai-org__GLM-5", 0, "mlp.gate_up_proj"),
        ("deepseek-ai__DeepSeek-V3.2", 2, "mlp.gate_up_proj"),
        (SERVED + "ring25", 0, "mlp.gate_up_proj"),
        (SERVED + "plamo2", 0, "mlp.gate_up_proj"),
        (SERVED + "iqloop", 0, "mlp.gate_up_proj"),
        ("small_configs.json afmoe", 0, "mlp.gate_up_proj"),
        ("meta-models__Muse-Glimmer-30B", 0, "mlp.gate_up_proj"),
        ("poolside__Laguna-S-2.1-FP8", 0, "mlp.gate_proj"),
        (BOOT + "q3next-l4", 0, "mlp.shared_expert.gate_up_proj"),
        ("small_configs.json qwen2moe", 1, "mlp.shared_expert.gate_up_proj"),
    ],
)
def test_gates_and_indexers_are_no_part_of_a_feed_forward_layer(source: str, index: int, up: str) -> None:
    model = model_of(source)
    layer = next(one for one in decoder_layers(model, replace(SHARE, layers=range(index, index + 1))))
    pair = layer.mlp if layer.experts is None else layer.shared
    assert pair is not None
    assert _named(pair[0], index) == up
    assert _named(pair[1], index) == up.rpartition(".")[0] + ".down_proj"
