"""The engine's sizes, names and refusals against what vLLM 0.26.0's own code gave for the same flags."""

import pytest

from planner.engine.architecture import refuse_architecture
from planner.engine.args import EngineArgs
from planner.engine.resolve import resolve
from planner.errors import InputError, UnsupportedError
from planner.model.engine_facts import EngineFacts
from planner.model.spec import VisionSpec
from planner.values import Rejected

NGRAM = '{"method": "ngram", "num_speculative_tokens": 3}'


def rejection(model, gpu, **flags):
    with pytest.raises(Rejected) as refused:
        resolve(model, gpu, EngineArgs(**flags), "0.26.0")
    return refused.value.rejection


class TestBatchSizes:
    @pytest.mark.parametrize(
        ("name", "tokens", "seqs"),
        [("t4", 2048, 256), ("a100", 2048, 256), ("l20", 2048, 256), ("h200", 8192, 1024), ("b200", 8192, 1024)],
    )
    def test_defaults_follow_memory_and_name(self, dense, card, name, tokens, seqs):
        config = resolve(dense(), card(name), EngineArgs(), "0.26.0")
        assert (config.max_num_batched_tokens, config.max_num_seqs) == (tokens, seqs)

    def test_later_release_gives_the_largest_cards_more(self, dense, card):
        config = resolve(dense(), card("b200"), EngineArgs(), "0.33.0")
        assert config.max_num_batched_tokens == 16384

    def test_short_lengths_cap_the_tokens_and_so_the_requests(self, dense, card):
        config = resolve(dense(), card("h200"), EngineArgs(max_model_len=16, max_num_seqs=4), "0.26.0")
        assert config.max_num_batched_tokens == 64
        config = resolve(dense(), card("h200"), EngineArgs(max_num_batched_tokens=512), "0.26.0")
        assert config.max_num_seqs == 512

    def test_fewer_tokens_than_requests_is_refused(self, dense, card):
        refused = rejection(dense(), card("h200"), max_num_batched_tokens=512, max_num_seqs=1024)
        assert refused.bottleneck == "batched_tokens"
        assert refused.message == ("max_num_batched_tokens (512) must be greater than or equal to max_num_seqs (1024).")

    def test_whole_prefill_needs_the_whole_length(self, dense, card):
        config = resolve(dense(), card("h200"), EngineArgs(enable_chunked_prefill=False), "0.26.0")
        assert config.max_num_batched_tokens == 32768
        refused = rejection(dense(), card("h200"), enable_chunked_prefill=False, max_num_batched_tokens=4096)
        assert refused.message.startswith("max_num_batched_tokens (4096) is smaller than max_model_len (32768).")

    def test_an_item_of_a_prefix_model_fits_one_batch(self, dense, card):
        facts = EngineFacts(prefix_lm=True, prefix_lm_item_tokens=2496)
        model = dense(facts=facts, vision=VisionSpec(family="gemma4", modalities=("image", "video")))
        assert resolve(model, card("l20"), EngineArgs(), "0.26.0").max_num_batched_tokens == 2496
        assert resolve(model, card("h200"), EngineArgs(), "0.26.0").max_num_batched_tokens == 8192


class TestLength:
    def test_longer_than_the_model_is_refused_in_vllms_words(self, dense, card):
        model = dense(facts=EngineFacts(printed_max_model_len="32768.0"))
        refused = rejection(model, card("h200"), max_model_len=200000)
        assert refused.bottleneck == "max_model_len"
        assert refused.message.startswith(
            "User-specified max_model_len (200000) is greater than the derived max_model_len "
            "(max_position_embeddings=32768.0 or model_max_length=None in model's config.json). To allow overriding "
            "this maximum, set the env var VLLM_ALLOW_LONG_MAX_MODEL_LEN=1. "
        )
        assert refused.fix == ("--max-model-len 32768",)

    def test_environment_allows_it_with_a_warning(self, dense, card):
        args = EngineArgs(max_model_len=200000, env=(("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1"),))
        config = resolve(dense(), card("h200"), args, "0.26.0")
        assert config.max_model_len == 200000
        assert "extreme caution" in config.warnings[0]

    def test_auto_is_kept_for_memory_to_decide(self, dense, card):
        assert resolve(dense(), card("h200"), EngineArgs(max_model_len=-1), "0.26.0").max_model_len == -1

    def test_nonsense_is_bad_input(self, dense, card):
        for flags in ({"max_model_len": 0}, {"max_num_seqs": 0}, {"gpu_memory_utilization": 1.5}, {"block_size": 0}):
            with pytest.raises(InputError):
                resolve(dense(), card("h200"), EngineArgs(**flags), "0.26.0")


class TestDtype:
    @pytest.mark.parametrize(
        ("name", "model_type", "checkpoint", "dtype"),
        [
            ("t4", "qwen2", "bfloat16", "float16"),
            ("t4", "gemma3", "bfloat16", "float32"),
            ("h200", "qwen2", "bfloat16", "bfloat16"),
            ("h200", "qwen2", "float32", "bfloat16"),
            ("h200", "gemma3", "float16", "bfloat16"),
            ("t4", "qwen2", "float32", "float16"),
            ("h200", "qwen2", None, "bfloat16"),
        ],
    )
    def test_auto(self, dense, card, name, model_type, checkpoint, dtype):
        model = dense(model_type=model_type, checkpoint_dtype=checkpoint)
        assert resolve(model, card(name), EngineArgs(), "0.26.0").dtype == dtype

    def test_bfloat16_fails_in_the_turing_worker(self, dense, card):
        refused = rejection(dense(), card("t4"), dtype="bfloat16")
        assert refused.bottleneck == "dtype_capability"
        assert refused.message == (
            "Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla T4 GPU has compute "
            "capability 7.5. You can use float16 instead by explicitly setting the `dtype` flag in CLI, for example: "
            "--dtype=half."
        )

    def test_gemma_refuses_half(self, dense, card):
        refused = rejection(dense(model_type="gemma3"), card("h200"), dtype="half")
        assert refused.message.startswith("The model type 'gemma3' does not support float16.")

    def test_unknown_spelling_is_a_flag_error(self, dense, card):
        assert rejection(dense(), card("h200"), dtype="fp8").bottleneck == "flag"


class TestQuantization:
    def test_checkpoint_names_take_todays_form(self, dense, card, quantized):
        model = dense(quantization=quantized("auto_awq", "awq", bits=4))
        for flag in (None, "awq", "auto_awq", "awq_marlin"):
            assert resolve(model, card("h200"), EngineArgs(quantization=flag), "0.26.0").quantization == "auto_awq"
        assert resolve(model, card("h200"), EngineArgs(quantization="moe_wna16"), "0.26.0").quantization == "moe_wna16"

    def test_contradiction_is_refused(self, dense, card, quantized):
        refused = rejection(dense(quantization=quantized("auto_awq", "awq", bits=4)), card("h200"), quantization="fp8")
        assert refused.message == (
            "Quantization method specified in the model config (awq) does not match the quantization method specified "
            "in the `quantization` argument (fp8)."
        )

    def test_awq_needs_an_awq_checkpoint(self, dense, card):
        refused = rejection(dense(), card("h200"), quantization="awq")
        assert refused.bottleneck == "quantization_capability"
        assert refused.message == "Cannot find the config file for awq"

    def test_unknown_method_lists_the_known(self, dense, card):
        refused = rejection(dense(), card("h200"), quantization="gguf")
        assert refused.message.startswith("Unknown quantization method: gguf. Must be one of ['awq', 'auto_awq', ")

    @pytest.mark.parametrize("method", ["fp8", "fp8_per_block", "mxfp8", "experts_int8", "bitsandbytes"])
    def test_online_methods_take_a_plain_checkpoint(self, dense, card, method):
        assert resolve(dense(), card("h200"), EngineArgs(quantization=method), "0.26.0").quantization == method

    def test_minimum_capability_in_vllms_words(self, dense, card, quantized):
        refused = rejection(dense(quantization=quantized("auto_awq", "awq", bits=4)), card("v100"))
        assert refused.message == (
            "The quantization method auto_awq is not supported for the current GPU. Minimum capability: 75. Current "
            "capability: 70."
        )

    def test_gptq_declares_less_than_its_kernels_need(self, dense, card, quantized):
        refused = rejection(dense(quantization=quantized("auto_gptq", "gptq", bits=4, group_size=128)), card("v100"))
        assert refused.message.startswith("Marlin does not support weight_bits = uint4b8. Only types = [] ")

    def test_dtype_of_a_method(self, dense, card, quantized):
        model = dense(quantization=quantized("gpt_oss_mxfp4", "mxfp4"), is_moe=True)
        refused = rejection(model, card("h200"), dtype="half")
        assert refused.message == (
            "torch.float16 is not supported for quantization method gpt_oss_mxfp4. Supported dtypes: [torch.bfloat16]"
        )

    def test_what_is_not_modelled_is_unsupported(self, dense, card):
        with pytest.raises(UnsupportedError):
            resolve(dense(), card("h200"), EngineArgs(quantization="humming"), "0.26.0")


class TestCacheDtype:
    def test_checkpoints_ask_for_their_cache(self, dense, card, quantized):
        scheme = {"num_bits": 8, "type": "float", "dynamic": False, "strategy": "tensor"}
        compressed = dense(quantization=quantized("compressed-tensors", "compressed-tensors", kv_cache_scheme=scheme))
        config = resolve(compressed, card("h200"), EngineArgs(), "0.26.0")
        assert (config.kv_cache_dtype, config.kv_torch_dtype) == ("fp8", "uint8")
        modelopt = dense(quantization=quantized("modelopt", "modelopt", quantization={"kv_cache_quant_algo": "FP8"}))
        assert resolve(modelopt, card("h200"), EngineArgs(), "0.26.0").kv_cache_dtype == "fp8_e4m3"

    def test_the_user_wins_over_the_checkpoint(self, dense, card, quantized):
        modelopt = dense(quantization=quantized("modelopt", "modelopt", quantization={"kv_cache_quant_algo": "FP8"}))
        config = resolve(modelopt, card("h200"), EngineArgs(kv_cache_dtype="bfloat16"), "0.26.0")
        assert (config.kv_cache_dtype, config.kv_torch_dtype) == ("bfloat16", "bfloat16")

    def test_unknown_value_is_what_the_parser_says(self, dense, card):
        refused = rejection(dense(), card("h200"), kv_cache_dtype="int8")
        assert refused.bottleneck == "kv_cache_dtype"
        assert refused.message.startswith("argument --kv-cache-dtype: invalid choice: 'int8' (choose from 'auto', ")

    def test_nvfp4_is_not_for_latent_attention(self, latent, card):
        assert "not supported with MLA" in rejection(latent(), card("b200"), kv_cache_dtype="nvfp4").message

    def test_e5m2_contradicts_fp8_scales(self, dense, card, quantized):
        model = dense(quantization=quantized("fp8", "fp8"))
        refused = rejection(model, card("l20"), kv_cache_dtype="fp8_e5m2")
        assert refused.message == "fp8_e5m2 kv-cache is not supported with fp8 checkpoints."


class TestParallel:
    def test_heads_must_divide(self, dense, card):
        refused = rejection(dense(), card("h200"), tensor_parallel_size=8)
        assert refused.bottleneck == "heads_divisibility"
        assert refused.message == (
            "Total number of attention heads (28) must be divisible by tensor parallel size (8)."
        )
        assert refused.fix[0] == "--tensor-parallel-size 7"

    def test_experts_are_needed_for_expert_parallelism(self, dense, card):
        refused = rejection(dense(), card("h200"), enable_expert_parallel=True)
        assert refused.message.startswith("Number of experts in the model must be greater than 0")

    def test_pipeline_support(self, dense, card):
        refused = rejection(dense(supports_pp=False), card("h200"), pipeline_parallel_size=2)
        assert refused.message.startswith("Pipeline parallelism is not supported for this model.")
        model = dense(architecture="Qwen3VLForConditionalGeneration")
        refused = rejection(model, card("h200"), pipeline_parallel_size=2)
        assert refused.message == "No model architectures are specified"

    def test_decode_context_parallelism(self, dense, card):
        flags = {"tensor_parallel_size": 4, "decode_context_parallel_size": 2}
        assert "must be greater than total num kv heads 4" in rejection(dense(), card("h200"), **flags).message
        assert (
            "must be divisible by dcp_size=3"
            in rejection(dense(), card("h200"), tensor_parallel_size=4, decode_context_parallel_size=3).message
        )


class TestGraphsAndRunner:
    def test_default_capture(self, dense, card):
        config = resolve(dense(), card("h200"), EngineArgs(), "0.26.0")
        assert config.cudagraph_mode == "FULL_AND_PIECEWISE"
        assert len(config.cudagraph_capture_sizes) == 51
        assert config.cudagraph_capture_sizes[-1] == 512

    def test_small_batches_capture_little(self, dense, card):
        config = resolve(dense(), card("h200"), EngineArgs(max_num_seqs=3), "0.26.0")
        assert config.cudagraph_capture_sizes == (1, 2, 4)

    def test_batched_tokens_are_captured_off_the_grid(self, dense, card):
        config = resolve(dense(), card("h200"), EngineArgs(max_num_batched_tokens=300, max_num_seqs=250), "0.26.0")
        assert config.cudagraph_capture_sizes[-2:] == (288, 300)

    def test_gpt_oss_captures_twice_as_far(self, dense, card):
        config = resolve(dense(architecture="GptOssForCausalLM", is_moe=True), card("h200"), EngineArgs(), "0.26.0")
        assert len(config.cudagraph_capture_sizes) == 83

    def test_eager_captures_nothing(self, dense, card):
        config = resolve(dense(), card("h200"), EngineArgs(enforce_eager=True), "0.26.0")
        assert (config.cudagraph_mode, config.cudagraph_capture_sizes) == ("NONE", ())

    def test_runner_by_kind_of_model(self, dense, card):
        def runner(model, version="0.26.0", **flags):
            return resolve(model, card("h200"), EngineArgs(**flags), version).model_runner

        assert runner(dense()) == "v2"
        assert runner(dense(is_moe=True)) == "v1"
        assert runner(dense(is_moe=True, architecture="Qwen2MoeForCausalLM")) == "v2"
        assert runner(dense(is_hybrid=True)) == "v1"
        assert runner(dense(is_hybrid=True), "0.33.0") == "v2"
        assert runner(dense(), env=(("VLLM_USE_V2_MODEL_RUNNER", "0"),)) == "v1"
        assert runner(dense(), speculative_config=NGRAM) == "v1"

    def test_batches_in_flight(self, dense, card):
        assert resolve(dense(), card("h200"), EngineArgs(), "0.26.0").max_concurrent_batches == 2
        staged = EngineArgs(pipeline_parallel_size=2)
        assert resolve(dense(), card("h200"), staged, "0.26.0").max_concurrent_batches == 3
        assert resolve(dense(is_moe=True), card("h200"), staged, "0.26.0").max_concurrent_batches == 2
        assert (
            resolve(dense(), card("h200"), EngineArgs(speculative_config=NGRAM), "0.26.0").max_concurrent_batches == 1
        )

    def test_v2_forced_upon_what_it_cannot_do(self, dense, card):
        refused = rejection(dense(), card("h200"), speculative_config=NGRAM, env=(("VLLM_USE_V2_MODEL_RUNNER", "1"),))
        assert refused.message.startswith("Model Runner V2 does not yet support: ngram")

    def test_drafts_without_a_layout_are_unsupported(self, dense, card):
        with pytest.raises(UnsupportedError):
            resolve(dense(), card("h200"), EngineArgs(speculative_config='{"method": "eagle", "model": "x"}'), "0.26.0")


class TestHybrid:
    def test_prefix_caching_is_opt_in(self, dense, card):
        config = resolve(dense(is_hybrid=True), card("h200"), EngineArgs(), "0.26.0")
        assert (config.enable_prefix_caching, config.mamba_cache_mode) == (False, "none")
        caching = EngineArgs(enable_prefix_caching=True)
        on = resolve(dense(is_hybrid=True), card("h200"), caching, "0.26.0")
        assert on.mamba_cache_mode == "align"
        nemotron = dense(is_hybrid=True, architecture="NemotronHForCausalLM")
        assert (
            resolve(nemotron, card("h200"), EngineArgs(enable_prefix_caching=True), "0.26.0").mamba_cache_mode == "all"
        )

    def test_state_dtype_is_the_configs(self, dense, card):
        model = dense(is_hybrid=True, facts=EngineFacts(ssm_state_dtype="float32"))
        config = resolve(model, card("h200"), EngineArgs(), "0.26.0")
        assert (config.conv_state_dtype, config.ssm_state_dtype) == ("bfloat16", "float32")


class TestMedia:
    def vision(self, dense):
        return dense(
            architecture="Qwen2_5_VLForConditionalGeneration",
            vision=VisionSpec(family="qwen2_vl", modalities=("image", "video")),
            supports_encoder_tp_data=True,
        )

    def test_limits(self, dense, card):
        model = self.vision(dense)
        assert resolve(model, card("h200"), EngineArgs(), "0.26.0").mm_limits == (("image", 999), ("video", 999))
        args = EngineArgs(limit_mm_per_prompt='{"image": 2, "video": {"count": 1, "num_frames": 8}}')
        config = resolve(model, card("h200"), args, "0.26.0")
        assert config.mm_limits == (("image", 2), ("video", 1))
        assert config.mm_limit_options == (("video", "num_frames", 8),)
        off = resolve(model, card("h200"), EngineArgs(language_model_only=True), "0.26.0")
        assert off.mm_limits == (("image", 0), ("video", 0))

    def test_old_syntax_is_refused_with_todays_as_the_fix(self, dense, card):
        refused = rejection(self.vision(dense), card("h200"), limit_mm_per_prompt="image=5,video=5")
        assert refused.bottleneck == "flag"
        assert refused.fix == ("""--limit-mm-per-prompt '{"image": 5, "video": 5}'""",)

    @pytest.mark.parametrize(
        "text", ['{"image": -1}', '{"image": {"count": 1, "pixels": 2}}', "[1]", '{"image": true}']
    )
    def test_bad_limits_are_refused(self, dense, card, text):
        assert rejection(self.vision(dense), card("h200"), limit_mm_per_prompt=text).bottleneck == "flag"

    def test_encoder_copies_fall_back_where_the_class_has_none(self, dense, card):
        args = EngineArgs(mm_encoder_tp_mode="data")
        assert resolve(self.vision(dense), card("h200"), args, "0.26.0").mm_encoder_tp_mode == "data"
        gemma = dense(
            architecture="Gemma3ForConditionalGeneration",
            vision=VisionSpec(family="gemma3", modalities=("image",)),
        )
        config = resolve(gemma, card("h200"), args, "0.26.0")
        assert config.mm_encoder_tp_mode == "weights"
        assert "Falling back" in config.warnings[0]


def test_borrowed_release_warns(dense, card):
    config = resolve(dense(), card("h200"), EngineArgs(), "0.20.0")
    assert "borrowed from 0.19.0" in config.warnings[0]
    assert config.gpu_memory_utilization == 0.9
    assert config.model_runner == "v1"


def test_variables_that_are_not_modelled_are_unsupported(dense, card):
    with pytest.raises(UnsupportedError):
        resolve(dense(), card("h200"), EngineArgs(env=(("VLLM_MLA_DISABLE", "1"),)), "0.26.0")


def test_removed_architecture_is_refused_only_by_later_releases():
    with pytest.raises(Rejected, match=r"BaichuanForCausalLM was supported in vLLM until v0\.23\.0"):
        refuse_architecture("BaichuanForCausalLM", "0.26.0")
    refuse_architecture("BaichuanForCausalLM", "0.23.0")
    refuse_architecture("Qwen2ForCausalLM", "0.26.0")


def test_adapters(dense, card):
    refused = rejection(dense(), card("h200"), enable_lora=True, max_lora_rank=24)
    assert refused.message.endswith("invalid choice: 24 (choose from 1, 8, 16, 32, 64, 128, 256, 320, 512)")
    flags = {"speculative_config": NGRAM, "max_num_batched_tokens": 600, "max_num_seqs": 256}
    assert resolve(dense(), card("h200"), EngineArgs(**flags), "0.26.0").max_num_batched_tokens == 600
    assert rejection(dense(), card("h200"), enable_lora=True, **flags).bottleneck == "batched_tokens"


def test_lookup_windows_and_the_depth_of_suffix_trees(dense, card):
    window = '{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 5, "prompt_lookup_max": 4}'
    refused = rejection(dense(), card("h200"), speculative_config=window)
    assert refused.message == "prompt_lookup_min=5 must be <= prompt_lookup_max=4"
    config = resolve(dense(), card("h200"), EngineArgs(speculative_config='{"method": "suffix"}'), "0.26.0")
    assert config.num_speculative_tokens == 24


def test_adapter_flags(dense, card):
    refused = rejection(dense(), card("h200"), enable_lora=True, max_loras=4, max_cpu_loras=2)
    assert refused.message == "max_cpu_loras (2) must be >= max_loras (4)."
    assert rejection(dense(), card("h200"), enable_lora=True, lora_dtype="float32").message.startswith("lora_dtype")
    config = resolve(dense(), card("h200"), EngineArgs(enable_lora=True, lora_dtype="float16"), "0.26.0")
    assert (config.lora_dtype, config.lora_capture_cases) == ("float16", 2)
    assert resolve(dense(), card("h200"), EngineArgs(), "0.26.0").lora_capture_cases == 1
    args = EngineArgs(enable_lora=True, max_loras=6, specialize_active_lora=True)
    assert resolve(dense(), card("h200"), args, "0.26.0").lora_capture_cases == len([0, 1, 2, 4, 7])
