"""Buffers that the model runner keeps on the GPU beside the weights: they are in no term of vLLM's KV cache formula.

Sizes are linear in `tokens` = max_num_batched_tokens and `seqs` = max_num_seqs.
"""

from __future__ import annotations

from typing import Any

from planner.engine.config import EngineConfig
from planner.memory.drafting import draft_buffers
from planner.memory.layers import latent_workspace_rows, takes_media, uses_mrope
from planner.memory.program import LiveTensor
from planner.memory.styles import style_of
from planner.model.modules import Attention
from planner.model.spec import ModelSpec
from planner.values import DTYPE_BYTES

_ALLOWED_TOKEN_IDS = 1024
_LOGIT_BIAS_TOKENS = 1024
_STOP_TOKEN_IDS = 128
_BAD_WORD_TOKENS = 1024
_BAD_WORDS = 128
_LOGPROB_TOKEN_IDS = 128
_PLACEHOLDER_BLOCK_SIZE = 16
_KERNEL_BLOCK_TOKENS = 128


def runner_buffers(model: ModelSpec, config: EngineConfig) -> tuple[LiveTensor, ...]:
    """Made when the runner is constructed, before the weights."""
    inputs = _v2_inputs(config) if config.model_runner == "v2" else _v1_inputs(model, config)
    return (*draft_buffers(model, config), *inputs)


def sampler_buffers(
    model: ModelSpec, config: EngineConfig, *, last_stage: bool = True, first_stage: bool = True
) -> tuple[LiveTensor, ...]:
    """Made after the weights by the V2 runner: input embeddings of multimodal models, the sampler's state, and what a
    later stage receives.

    The largest is the count of output tokens, max_num_seqs x vocabulary x 4 bytes, for penalties.
    Source: vLLM 0.26.0 v1/worker/gpu/sample/{penalties,logit_bias,bad_words,logprob}.py, structured_outputs.py,
    mm/encoder_runner.py, mm/rope.py.
    """
    if config.model_runner != "v2":
        return ()
    tensors: list[LiveTensor] = []
    if takes_media(model, config):
        embedding = model.text.hidden_size * DTYPE_BYTES[config.dtype]
        tensors.append(LiveTensor("input embeddings", bytes_per_token=embedding))
    if uses_mrope(model):
        tensors.append(LiveTensor("three-dimensional positions", bytes_per_token=24, constant_bytes=24))
    received = () if first_stage else received_states(model, config)
    if not last_stage:
        return (*tensors, *received)
    vocab = model.text.vocab_size
    mask = 4 * -(-vocab // 32)
    rows = (
        ("prompt token mask", mask),
        ("output token counts", 4 * vocab),
        ("allowed token ids", 4 * _ALLOWED_TOKEN_IDS),
        ("logit bias token ids", 4 * _LOGIT_BIAS_TOKENS),
        ("logit bias", 4 * _LOGIT_BIAS_TOKENS),
        ("stop token ids", 4 * _STOP_TOKEN_IDS),
        ("bad word token ids", 4 * _BAD_WORD_TOKENS),
        ("bad word offsets", 4 * (_BAD_WORDS + 1)),
        ("logprob token ids", 4 * _LOGPROB_TOKEN_IDS),
        ("grammar rows", 4 * (config.num_speculative_tokens + 1)),
        ("grammar bitmask", mask * (config.num_speculative_tokens + 1)),
    )
    return (*tensors, *(LiveTensor(name, bytes_per_seq=size) for name, size in rows), *received)


def received_states(model: ModelSpec, config: EngineConfig) -> tuple[LiveTensor, ...]:
    """What a stage copies the hidden states and the residual of the stage before into (a class whose layers give no
    residual has none): V2 makes it once the weights are there, V1 in its first run.

    Source: vLLM 0.26.0 v1/worker/gpu/model_runner.py:366, v1/worker/gpu_model_runner.py:6050.
    """
    style = style_of(model.language_class or model.architecture)
    names = ("hidden states", "residual") if style.sums is None or style.returns_residual else ("hidden states",)
    size = model.text.hidden_size * DTYPE_BYTES[config.dtype]
    return tuple(LiveTensor(f"{name} of the stage before", bytes_per_token=size) for name in names)


def kv_tables(model: ModelSpec, config: EngineConfig, block_sizes: tuple[int, ...]) -> tuple[LiveTensor, ...]:
    """Made with the KV cache: block tables and slot mappings of each cache group.

    Latent attention adds its chunked-prefill workspace (mla_attention.py:1812).
    Source: vLLM 0.26.0 v1/worker/gpu/model_runner.py:420 and v1/worker/gpu/block_table.py (V2).
    """
    tensors = []
    latent = next((m for m in model.modules if isinstance(m, Attention) and m.kind == "mla_attention"), None)
    if latent is not None:
        size = latent_workspace_rows(model, config) * latent.head_size * DTYPE_BYTES[config.dtype]
        tensors.append(LiveTensor("latent context workspace", constant_bytes=size))
    if config.model_runner != "v2":
        return tuple(tensors)
    for group, size in enumerate(block_sizes):
        blocks = -(-config.max_model_len // size)
        if size <= _KERNEL_BLOCK_TOKENS:
            step = _KERNEL_BLOCK_TOKENS // size
            blocks = -(-blocks // step) * step
        tensors += [
            LiveTensor(f"block table {group}", bytes_per_seq=4 * blocks),
            LiveTensor(f"block table {group} of the batch", bytes_per_seq=4 * blocks),
        ]
    tensors.append(LiveTensor("slot mappings", bytes_per_token=8 * len(block_sizes)))
    return tuple(tensors)


def total_bytes(tensors: tuple[LiveTensor, ...], tokens: Any, seqs: Any) -> Any:
    """Sum of the tensors at a batch size. Takes ints or numpy arrays."""
    each_token = sum([tensor.bytes_per_token for tensor in tensors])
    each_seq = sum([tensor.bytes_per_seq for tensor in tensors])
    return each_token * tokens + each_seq * seqs + sum([tensor.constant_bytes for tensor in tensors])


def _v2_inputs(config: EngineConfig) -> tuple[LiveTensor, ...]:
    """vLLM 0.26.0 v1/worker/gpu/states.py RequestState, input_batch.py InputBuffers."""
    drafts = 8 * config.num_speculative_tokens
    return (
        LiveTensor("total lengths", bytes_per_seq=4),
        LiveTensor("computed tokens", bytes_per_seq=4),
        LiveTensor("last sampled tokens", bytes_per_seq=8),
        LiveTensor("draft tokens", bytes_per_seq=drafts),
        LiveTensor("next prefill tokens", bytes_per_seq=4),
        LiveTensor("input tokens", bytes_per_token=4),
        LiveTensor("positions", bytes_per_token=8),
        LiveTensor("padding flags", bytes_per_token=1),
        LiveTensor("query starts", bytes_per_seq=4, constant_bytes=4),
        LiveTensor("sequence lengths", bytes_per_seq=4),
        LiveTensor("local sequence lengths", bytes_per_seq=4),
    )


def _v1_inputs(model: ModelSpec, config: EngineConfig) -> tuple[LiveTensor, ...]:
    """vLLM 0.26.0 v1/worker/gpu_model_runner.py:560-960, gpu_input_batch.py, block_table.py."""
    block = config.block_size if config.user_block_size else _PLACEHOLDER_BLOCK_SIZE
    embedding = model.text.hidden_size * DTYPE_BYTES[config.dtype]
    tensors = [
        LiveTensor("block table", bytes_per_seq=4 * -(-config.max_model_len // block)),
        LiveTensor("slot mapping", bytes_per_token=8),
        *(LiveTensor(name, bytes_per_seq=4) for name in _V1_SAMPLING),
        _MINIMUM_PROBABILITIES if config.speculative_method is None else _NO_SHORT_ANSWERS,
        LiveTensor("input tokens", bytes_per_token=4),
        LiveTensor("positions", bytes_per_token=8),
        LiveTensor("query starts", bytes_per_seq=4, constant_bytes=4),
        *(LiveTensor(name, bytes_per_seq=4) for name in _V1_LENGTHS),
        LiveTensor("request indices", bytes_per_token=8),
        LiveTensor("previous positions", bytes_per_seq=8),
        LiveTensor("input embeddings", bytes_per_token=embedding),
        LiveTensor("token flags", bytes_per_token=1),
        LiveTensor("discarded requests", bytes_per_seq=1),
        LiveTensor("query positions", bytes_per_token=8),
    ]
    if uses_mrope(model):
        tensors.append(LiveTensor("three-dimensional positions", bytes_per_token=24, constant_bytes=24))
    return tuple(tensors)


_MINIMUM_PROBABILITIES = LiveTensor("minimum probabilities", bytes_per_seq=4)
_NO_SHORT_ANSWERS = LiveTensor("logit of words that end an answer too soon", constant_bytes=4)
"""Left where drafts switch minimum probabilities off (vLLM 0.26.0 v1/sample/logits_processor/__init__.py:201)."""

_V1_SAMPLING = (
    "temperatures", "top-p", "top-k", "frequency penalties", "presence penalties", "repetition penalties",
)  # fmt: skip
_V1_LENGTHS = (
    "sequence lengths", "computed tokens", "previous draft tokens", "scheduled tokens", "encoder sequence lengths",
    "decode draft tokens", "accepted tokens",
)  # fmt: skip
