"""Which options of `vllm serve` leave GPU memory as it is: they are kept in the command and otherwise passed over.

Everything that is neither here nor a field of EngineArgs is refused unless it says what vLLM would do anyway: most of
it (offloading, other kernels, compilation, sleep mode, expert balancing, ...) changes memory in ways not modelled.
"""

from __future__ import annotations

from typing import Any

from planner.releases.flags import Flag

_SERVER = """
host port uds uvicorn_log_level disable_uvicorn_access_log disable_access_log_for_endpoints allow_credentials
allowed_origins allowed_methods allowed_headers api_key ssl_keyfile ssl_certfile ssl_ca_certs
enable_ssl_refresh ssl_cert_reqs ssl_ciphers root_path middleware enable_request_id_headers
disable_fastapi_docs h11_max_incomplete_event_size h11_max_header_count enable_offline_docs api_server_count
headless shutdown_timeout grpc grpc_port data_parallel_supervisor_port dp_supervisor_probe_interval_s
dp_supervisor_probe_timeout_s dp_supervisor_probe_failure_threshold sse_keep_alive_interval enable_scale_out
"""
_REQUESTS = """
served_model_name chat_template chat_template_content_format trust_request_chat_template
default_chat_template_kwargs response_role return_tokens_as_token_ids enable_auto_tool_choice
exclude_tools_when_tool_choice_none tool_call_parser tool_parser_plugin tool_server tool_strict_level
tokens_only enable_prompt_tokens_details enable_force_include_usage enable_tokenizer_info_endpoint
fingerprint_mode fingerprint_value reasoning_parser reasoning_parser_plugin structured_outputs_config
generation_config override_generation_config io_processor_plugin allowed_local_media_path
allowed_media_domains interleave_mm_strings seed scheduling_policy stream_interval reasoning_effort_map
trust_request_mm_kwargs anthropic_disabled_thinking_effort cohere_format cohere_is_reasoning_model
max_num_queued_reqs max_num_queued_tokens
"""
_FILES = """
tokenizer tokenizer_mode tokenizer_revision skip_tokenizer_init download_dir hf_token ignore_patterns
use_tqdm_on_load safetensors_load_strategy safetensors_prefetch_num_threads safetensors_prefetch_block_size
max_parallel_loading_workers renderer_num_workers lora_modules max_cpu_loras
"""
_HOST_MEMORY = """
mm_processor_cache_gb mm_processor_cache_type mm_shm_cache_max_object_size_mb mm_hasher_algorithm
media_io_kwargs
"""
_LOGS = """
enable_log_requests disable_log_stats aggregate_engine_logging enable_log_outputs enable_log_deltas
max_log_len log_config_file log_error_stack log_level logging_config otlp_traces_endpoint
collect_detailed_traces show_hidden_metrics_for_version kv_cache_metrics kv_cache_metrics_sample
cudagraph_metrics enable_mfu_metrics enable_logging_iteration_details enable_per_request_metrics
enable_server_load_tracking per_request_spec_decode_metrics custom_histogram_buckets jit_monitor_mode
jit_monitor_verbose fail_on_environ_validation
"""
_PLACEMENT = """
nnodes node_rank master_addr master_port device_ids distributed_timeout_seconds
cpu_distributed_timeout_seconds numa_bind numa_bind_nodes numa_bind_cpus data_parallel_rank
data_parallel_start_rank data_parallel_size_local data_parallel_address data_parallel_rpc_port
data_parallel_backend data_parallel_hybrid_lb data_parallel_external_lb data_parallel_multi_port_external_lb
prefix_caching_hash_algo
"""
NEUTRAL = frozenset(" ".join((_SERVER, _REQUESTS, _FILES, _HOST_MEMORY, _LOGS, _PLACEMENT)).split())

_NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "load_format": ("auto", "hf", "safetensors", "dummy"),
    "config_format": ("auto", "hf"),
    "distributed_executor_backend": ("mp", "uni"),
    "runner": ("auto", "generate"),
    "convert": ("auto", "none"),
    "model_impl": ("auto",),
    "performance_mode": ("balanced",),
    "optimization_level": ("2", "O2"),
    "all2all_backend": ("allgather_reducescatter",),
    "revision": ("main",),
    "code_revision": ("main",),
    "video_pruning_rate": (None, 0.0),
}


def is_neutral(flag: Flag, value: Any) -> bool:
    """Whether this value of the option leaves GPU memory as the planner models it."""
    if flag.dest in NEUTRAL or value in _NEUTRAL_VALUES.get(flag.dest, ()):
        return True
    default = list(flag.default) if isinstance(flag.default, tuple) else flag.default
    return bool(value == default and type(value) in (type(default), int, float))
