"""One plan -> the argv of `vllm serve` and its shell-quoted text."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence

from planner.engine.args import EngineArgs
from planner.engine.config import EngineConfig
from planner.foreign import check_variable_names, check_words

_PASSED_ON: tuple[tuple[str, str], ...] = (
    ("quantization", "--quantization"),
    ("limit_mm_per_prompt", "--limit-mm-per-prompt"),
    ("mm_processor_kwargs", "--mm-processor-kwargs"),
    ("max_cudagraph_capture_size", "--max-cudagraph-capture-size"),
    ("kv_cache_memory_bytes", "--kv-cache-memory-bytes"),
    ("num_gpu_blocks_override", "--num-gpu-blocks-override"),
    ("block_size", "--block-size"),
    ("speculative_config", "--speculative-config"),
    ("hf_overrides", "--hf-overrides"),
)
_ON_OR_OFF: tuple[tuple[str, str], ...] = (
    ("enable_prefix_caching", "--enable-prefix-caching"),
    ("enable_chunked_prefill", "--enable-chunked-prefill"),
)
_SWITCHES: tuple[tuple[str, str], ...] = (
    ("enable_expert_parallel", "--enable-expert-parallel"),
    ("enforce_eager", "--enforce-eager"),
    ("skip_mm_profiling", "--skip-mm-profiling"),
    ("language_model_only", "--language-model-only"),
    ("trust_remote_code", "--trust-remote-code"),
)


def serve_argv(model: str, args: EngineArgs, config: EngineConfig, extra: Sequence[str] = ()) -> list[str]:
    """`vllm serve` with every size that the plan depends on spelt out, so that no default of another card creeps in.

    `extra`: options that leave memory alone, put at the end as they are.
    """
    argv = ["vllm", "serve", model_argument(model)]
    argv += ["--tensor-parallel-size", str(config.tensor_parallel_size)]
    for name in ("pipeline_parallel_size", "data_parallel_size", "decode_context_parallel_size"):
        value = getattr(config, name)
        if value > 1:
            argv += ["--" + name.replace("_", "-"), str(value)]
    argv += [
        "--max-model-len", str(config.max_model_len),
        "--max-num-seqs", str(config.max_num_seqs),
        "--max-num-batched-tokens", str(config.max_num_batched_tokens),
    ]  # fmt: skip
    if args.kv_cache_memory_bytes is None:
        argv += ["--gpu-memory-utilization", format_ratio(config.gpu_memory_utilization)]
    if args.dtype != "auto":
        argv += ["--dtype", args.dtype]
    if args.kv_cache_dtype != "auto":
        argv += ["--kv-cache-dtype", args.kv_cache_dtype]
    if args.mm_encoder_tp_mode != "weights":
        argv += ["--mm-encoder-tp-mode", args.mm_encoder_tp_mode]
    for field, flag in _PASSED_ON:
        value = getattr(args, field)
        if value is not None:
            argv += [flag, str(value)]
    argv += [flag for field, flag in _SWITCHES if getattr(args, field)]
    for field, flag in _ON_OR_OFF:
        chosen = getattr(args, field)
        if chosen is not None:
            argv.append(flag if chosen else "--no-" + flag.removeprefix("--"))
    return [*argv, *_adapter_options(args), *extra]


def _adapter_options(args: EngineArgs) -> list[str]:
    if not args.enable_lora:
        return []
    argv = ["--enable-lora", "--max-loras", str(args.max_loras), "--max-lora-rank", str(args.max_lora_rank)]
    if args.max_cpu_loras is not None:
        argv += ["--max-cpu-loras", str(args.max_cpu_loras)]
    if args.lora_dtype != "auto":
        argv += ["--lora-dtype", args.lora_dtype]
    for name in ("fully_sharded_loras", "specialize_active_lora", "enable_tower_connector_lora"):
        if getattr(args, name):
            argv.append("--" + name.replace("_", "-"))
    if args.lora_target_modules is not None:
        argv += ["--lora-target-modules", *args.lora_target_modules]
    return argv


def model_argument(model: str) -> str:
    """A model reference that cannot be taken for an option: a path that begins with a dash gets `./` before it."""
    if model.startswith("-"):
        model = os.path.join(".", model)
    return (
        os.path.dirname(model) or "." if os.path.basename(model) == "config.json" and os.path.isfile(model) else model
    )


def format_ratio(value: float) -> str:
    """A utilization with no more digits than it needs: 0.9, 0.925."""
    return f"{value:.4f}".rstrip("0").rstrip(".")


def shell_command(argv: Sequence[str], env: Mapping[str, str]) -> str:
    """One shell line: `shlex.split` of it is the NAME=VALUE assignments followed by argv.

    InputError for a name that is none of a variable, and for words that no command can carry.
    """
    check_variable_names(env)
    check_words((*env.values(), *argv))
    assignments = [f"{name}={shlex.quote(value)}" for name, value in env.items()]
    return " ".join([*assignments, shlex.join(argv)])
