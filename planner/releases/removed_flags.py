"""Options and environment variables that vLLM once took and no longer does, and a few of other engines that are often
written by mistake, each with what to write instead.

Whether a release still takes one is told by its own flag table, never by this list. Source: the option parsers of
vLLM 0.6 to 0.25 against engine/arg_utils.py and envs.py of 0.26.0 and 0.33.0.
"""

from __future__ import annotations

from typing import NamedTuple


class RemovedFlag(NamedTuple):
    """`fix`: what to do instead, one step each; the first begins with the new option where there is one."""

    options: tuple[str, ...]
    fix: tuple[str, ...]


REMOVED_FLAGS: tuple[RemovedFlag, ...] = (
    RemovedFlag(
        ("--swap-space",),
        (
            "remove it: preempted requests are recomputed",
            "--kv-offloading-size GIB to keep cache blocks in host memory",
        ),
    ),
    RemovedFlag(
        ("--disable-log-requests",), ("remove it: requests are not logged unless --enable-log-requests is given",)
    ),
    RemovedFlag(
        (
            "--num-scheduler-steps",
            "--multi-step-stream-outputs",
            "--no-multi-step-stream-outputs",
            "--num-lookahead-slots",
            "--scheduler-delay-factor",
            "--delay-factor",
        ),
        ("remove it: scheduling is asynchronous by default (--async-scheduling)",),
    ),
    RemovedFlag(("--use-v2-block-manager", "--preemption-mode", "--disable-async-output-proc"), ("remove it",)),
    RemovedFlag(("--task",), ("--runner generate|pooling, with --convert where the model is to be adapted",)),
    RemovedFlag(("--device",), ("remove it: the platform decides; --device-ids picks GPUs",)),
    RemovedFlag(
        ("--max-seq-len-to-capture", "--max-context-len-to-capture"),
        ("--max-cudagraph-capture-size N counts sequences and tokens of a batch, not the length of one",),
    ),
    RemovedFlag(("--cuda-graph-sizes",), ("--cudagraph-capture-sizes N [N ...]", "--max-cudagraph-capture-size N")),
    RemovedFlag(
        (
            "--guided-decoding-backend",
            "--guided-decoding-disable-fallback",
            "--guided-decoding-disable-any-whitespace",
            "--guided-decoding-disable-additional-properties",
        ),
        ("""--structured-outputs-config '{"backend": "auto"}'""",),
    ),
    RemovedFlag(("--rope-scaling",), ("""--hf-overrides '{"rope_parameters": {...}}'""",)),
    RemovedFlag(("--rope-theta",), ("""--hf-overrides '{"rope_parameters": {"rope_theta": N}}'""",)),
    RemovedFlag(
        (
            "--speculative-model",
            "--num-speculative-tokens",
            "--speculative-draft-tensor-parallel-size",
            "--speculative-max-model-len",
            "--speculative-disable-by-batch-size",
            "--ngram-prompt-lookup-max",
            "--ngram-prompt-lookup-min",
            "--spec-decoding-acceptance-method",
            "--speculative-model-quantization",
            "--speculative-disable-mqa-scorer",
            "--typical-acceptance-sampler-posterior-threshold",
            "--typical-acceptance-sampler-posterior-alpha",
            "--disable-logprobs-during-spec-decoding",
        ),
        ("""--speculative-config '{"method": ..., "model": ..., "num_speculative_tokens": N}'""",),
    ),
    RemovedFlag(("--disable-mm-preprocessor-cache",), ("--mm-processor-cache-gb 0",)),
    RemovedFlag(("--worker-use-ray", "--engine-use-ray"), ("--distributed-executor-backend ray",)),
    RemovedFlag(("--disable-frontend-multiprocessing",), ("remove it",)),
    RemovedFlag(
        ("--enable-prompt-adapter", "--max-prompt-adapters", "--max-prompt-adapter-token", "--prompt-adapters"),
        ("remove it: prompt adapters are no longer served",),
    ),
    RemovedFlag(
        ("--lora-extra-vocab-size", "--long-lora-scaling-factors", "--lora-vocab-padding-size", "--enable-lora-bias"),
        ("remove it",),
    ),
    RemovedFlag(("--quantization-param-path",), ("remove it: scales are read from the checkpoint",)),
    RemovedFlag(("--qlora-adapter-name-or-path",), ("--enable-lora with --lora-modules NAME=PATH",)),
    RemovedFlag(("--enable-reasoning",), ("--reasoning-parser NAME alone",)),
    RemovedFlag(
        ("--override-neuron-config", "--override-pooler-config"),
        ("--pooler-config JSON for pooling models, else remove it",),
    ),
    RemovedFlag(("--tokenizer-pool-size", "--tokenizer-pool-type", "--tokenizer-pool-extra-config"), ("remove it",)),
    RemovedFlag(
        ("--max-num-partial-prefills", "--max-long-partial-prefills"),
        ("remove it: prefills are chunked by --max-num-batched-tokens and --long-prefill-token-threshold",),
    ),
    RemovedFlag(("--calculate-kv-scales",), ("remove it: use a checkpoint that carries key and value scales",)),
    RemovedFlag(("--override-attention-dtype", "--enable-bf16x3-router-gemm"), ("remove it",)),
    RemovedFlag(("--model-max-length", "--max-length", "--context-length"), ("--max-model-len N",)),
    RemovedFlag(("--tp", "--tp-size"), ("--tensor-parallel-size N (or -tp N)",)),
    RemovedFlag(("--pp", "--pp-size"), ("--pipeline-parallel-size N (or -pp N)",)),
    RemovedFlag(("--dp", "--dp-size"), ("--data-parallel-size N (or -dp N)",)),
    RemovedFlag(("--mem-fraction-static",), ("--gpu-memory-utilization F",)),
)

REMOVED_VARIABLES: tuple[tuple[str, str], ...] = (
    ("VLLM_ATTENTION_BACKEND", "--attention-backend NAME"),
    ("VLLM_USE_V1", "remove it: there is one engine"),
    ("VLLM_ALL2ALL_BACKEND", "--all2all-backend NAME"),
    ("VLLM_TORCH_PROFILER_DIR", "--profiler-config JSON"),
    ("VLLM_FLASH_ATTN_VERSION", "--attention-config.flash_attn_version N"),
)
