"""Backends and block sizes against what vLLM 0.26.0's own selection gave for the same layers."""

import pytest

from planner.engine.args import EngineArgs
from planner.engine.resolve import resolve
from planner.model.engine_facts import EngineFacts
from planner.model.modules import Attention
from planner.values import Rejected


@pytest.mark.parametrize(
    ("name", "cache", "backend"),
    [
        ("t4", "auto", "TRITON_ATTN"),
        ("a100", "auto", "FLASH_ATTN"),
        ("a100", "fp8", "FLASHINFER"),
        ("l20", "auto", "FLASH_ATTN"),
        ("l20", "fp8", "FLASHINFER"),
        ("l20", "fp8_e5m2", "FLASHINFER"),
        ("h200", "auto", "FLASH_ATTN"),
        ("h200", "fp8", "FLASH_ATTN"),
        ("h200", "int8_per_token_head", "TRITON_ATTN"),
        ("h200", "fp8_e5m2", "FLASHINFER"),
        ("b200", "auto", "FLASHINFER"),
        ("b200", "nvfp4", "FLASHINFER"),
        ("5090", "auto", "FLASH_ATTN"),
        ("5090", "fp8", "FLASHINFER"),
    ],
)
def test_backend_of_a_dense_model(dense, card, name, cache, backend):
    config = resolve(dense(), card(name), EngineArgs(kv_cache_dtype=cache), "0.26.0")
    assert config.attention_backend == backend
    assert config.block_size == 16


@pytest.mark.parametrize(
    ("name", "cache", "backend", "block_size"),
    [
        ("a100", "auto", "TRITON_MLA", 16),
        ("h200", "auto", "FLASH_ATTN_MLA", 16),
        ("h200", "fp8", "FLASHMLA", 64),
        ("b200", "auto", "FLASHINFER_MLA", 32),
        ("5090", "auto", "TRITON_MLA", 16),
    ],
)
def test_latent_attention(latent, card, name, cache, backend, block_size):
    config = resolve(latent(), card(name), EngineArgs(kv_cache_dtype=cache), "0.26.0")
    assert (config.attention_backend, config.block_size) == (backend, block_size)


def test_sparse_latent_attention_packs_its_fp8_cache(latent, card):
    model = latent(facts=EngineFacts(index_topk=2048))
    plain = resolve(model, card("h200"), EngineArgs(), "0.26.0")
    assert (plain.attention_backend, plain.kv_cache_dtype, plain.block_size) == ("FLASH_ATTN_MLA_SPARSE", "auto", 64)
    packed = resolve(model, card("h200"), EngineArgs(kv_cache_dtype="fp8"), "0.26.0")
    assert (packed.attention_backend, packed.kv_cache_dtype) == ("FLASHMLA_SPARSE", "fp8_ds_mla")
    assert packed.kv_torch_dtype == "uint8"


def test_no_backend_speaks_as_vllm_does(latent, card):
    model = latent(facts=EngineFacts(index_topk=2048))
    with pytest.raises(Rejected) as refused:
        resolve(model, card("l20"), EngineArgs(), "0.26.0")
    rejection = refused.value.rejection
    assert rejection.bottleneck == "attention_backend"
    assert rejection.message.startswith(
        "No valid attention backend found for cuda with AttentionSelectorConfig(head_size=576, dtype=torch.bfloat16, "
        "kv_cache_dtype=auto, block_size=None, use_mla=True, has_sink=False, use_sparse=True, use_mm_prefix=False, "
        "use_per_head_quant_scales=False, attn_type=AttentionType.DECODER, has_sliding_window=False, "
    )
    assert "FLASHMLA: [sparse not supported, compute capability not supported, " in rejection.message


def test_fp8_cache_on_turing_is_refused_with_the_dtype_to_use(dense, card):
    with pytest.raises(Rejected) as refused:
        resolve(dense(), card("t4"), EngineArgs(kv_cache_dtype="fp8"), "0.26.0")
    assert refused.value.rejection.bottleneck == "kv_cache_dtype"
    assert refused.value.rejection.message == (
        "FP8 KV cache is not supported by the Triton attention backend on Tesla T4 (compute capability 7.5); native "
        "FP8 (fp8e4nv) requires SM89+. Re-run with --kv-cache-dtype float16."
    )


def test_image_tokens_that_look_both_ways_need_triton_on_hopper(dense, card):
    model = dense(head_size=256, heads=8, facts=EngineFacts(prefix_lm=True))
    assert resolve(model, card("h200"), EngineArgs(), "0.26.0").attention_backend == "TRITON_ATTN"


def test_gemma4_with_two_head_sizes_runs_one_kernel_where_it_can(dense, card):
    layers = tuple(
        Attention(name=f"l{index}", placement=index, kind="full_attention", num_heads=8, num_kv_heads=1, head_size=size)
        for index, size in enumerate((256, 512))
    )
    model = dense(architecture="Gemma4ForConditionalGeneration", modules=layers, heads=8)
    assert resolve(model, card("h200"), EngineArgs(), "0.26.0").attention_backends == ("FLASH_ATTN",)
    assert resolve(model, card("l20"), EngineArgs(), "0.26.0").attention_backends == ("TRITON_ATTN",)
    fp8 = resolve(model, card("h200"), EngineArgs(kv_cache_dtype="fp8"), "0.26.0")
    assert fp8.attention_backends == ("FLASHINFER",)


def test_sinks_below_hopper_need_triton(dense, card):
    model = dense(heads=64, kv_heads=8, head_size=64, attention={"has_sinks": True})
    assert resolve(model, card("a100"), EngineArgs(), "0.26.0").attention_backend == "TRITON_ATTN"
    assert resolve(model, card("h200"), EngineArgs(), "0.26.0").attention_backend == "FLASH_ATTN"


def test_users_block_size_is_kept_or_refused(dense, card):
    kept = resolve(dense(), card("h200"), EngineArgs(block_size=32), "0.26.0")
    assert kept.block_size == 32
    assert kept.user_block_size
    with pytest.raises(Rejected, match="block_size not supported"):
        resolve(dense(), card("h200"), EngineArgs(block_size=24), "0.26.0")


def test_block_size_that_precludes_a_better_backend_warns(latent, card):
    config = resolve(latent(), card("h200"), EngineArgs(kv_cache_dtype="fp8", block_size=16), "0.26.0")
    assert config.attention_backend == "TRITON_MLA"
    assert config.warnings[0].startswith(
        "--block-size 16 precluded higher-priority backend(s) FLASHMLA. Using TRITON_MLA"
    )


def test_turboquant_spares_the_outer_layers(dense, card):
    layers = tuple(
        Attention(name=f"l{index}", placement=index, kind="full_attention", num_heads=28, num_kv_heads=4, head_size=128)
        for index in range(28)
    )
    config = resolve(dense(modules=layers), card("h200"), EngineArgs(kv_cache_dtype="turboquant_k8v4"), "0.26.0")
    assert config.attention_backends == ("FLASH_ATTN", "TURBOQUANT")
    assert config.kv_cache_dtype_skip_layers == (0, 1, 26, 27)


def test_compressed_latent_cache_takes_fp8_only(latent, card):
    model = latent(architecture="DeepseekV4ForCausalLM", facts=EngineFacts(compress_ratios=True))
    with pytest.raises(Rejected, match="only supports fp8 kv-cache, got auto"):
        resolve(model, card("h200"), EngineArgs(), "0.26.0")
    config = resolve(model, card("h200"), EngineArgs(kv_cache_dtype="fp8"), "0.26.0")
    assert (config.block_size, config.kv_cache_dtype) == (256, "fp8_ds_mla")
