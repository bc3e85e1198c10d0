"""Peak activation: what vLLM's profile run has allocated at its highest moment, beyond what was there before it."""

from __future__ import annotations

from functools import reduce
from typing import Any

from planner.engine.config import EngineConfig
from planner.memory.adapters import keep_addresses
from planner.memory.compiled import CompiledForward
from planner.memory.drafting import write_drafting
from planner.memory.forward import Forward
from planner.memory.layers import batchless
from planner.memory.multimodal.encoder import profiled_encoder, profiles_encoder
from planner.memory.program import LiveTensor, Part, Program, Stage
from planner.memory.runner_state import received_states
from planner.memory.sampling import batch_index, dummy_sample_v1, dummy_sample_v2, head_of
from planner.memory.step import Step
from planner.model.spec import ModelSpec
from planner.once import once_each
from planner.releases.choose import release_for
from planner.sharding.rank import RankShare

__all__ = ["LiveTensor", "Stage", "activation_stages", "peak_activation_bytes", "profile_program"]

_DEFAULT_SM_COUNT = 132
_JOINED_EXAMPLES = {"eagle": 1, "eagle3": 2}
"""Tensors of embeddings and hidden states that inductor's example of a draft head's first kernel has."""


def activation_stages(model: ModelSpec, share: RankShare, config: EngineConfig) -> tuple[Stage, ...]:
    """The moments of the profile run that can be the highest one, each with its live tensors.

    Raises UnsupportedError for layers whose forward pass is not known here.
    """
    return profile_program(model, share, config).stages()


def peak_activation_bytes(stages: tuple[Stage, ...], tokens: Any, seqs: Any) -> Any:
    """The highest stage at `tokens` (max_num_batched_tokens) and `seqs` (sampled rows: min(max_num_seqs, tokens)).

    Takes ints or numpy arrays. Sizes are those of the tensors: the allocator adds at most 1 MiB to each large one.
    """
    return reduce(_larger, (stage.bytes(tokens, seqs) for stage in stages))


def profile_program(model: ModelSpec, share: RankShare, config: EngineConfig) -> Program:
    """The profile run: the encoder where the runner profiles it, a dummy batch, and the last stage's dummy sampler.

    Source: vLLM 0.26.0 v1/worker/gpu/model_runner.py:673 (V2), v1/worker/gpu_model_runner.py:6364 (V1).
    """
    if not is_written_alike(model, config) or profiles_encoder(model, share, config):
        return _profile_program(model, share, config)
    program = Program()
    program.use(_profile_part(model, share, batchless(model, config)))
    return program


def is_written_alike(model: ModelSpec, config: EngineConfig) -> bool:
    """Whether the V2 runner's programs are the same for all batch sizes: without drafts and adapters."""
    plain = model.draft is None and config.speculative_method is None and not config.enable_lora
    return plain and config.model_runner == "v2"


@once_each(kept=16)
def _profile_part(model: ModelSpec, share: RankShare, config: EngineConfig) -> Part:
    return _profile_program(model, share, config).part()


def _profile_program(model: ModelSpec, share: RankShare, config: EngineConfig) -> Program:
    program = Program()
    v2 = config.model_runner == "v2"
    encoded = profiled_encoder(program, model, share, config)
    program.stage("inputs")
    index = batch_index(program) if v2 else []
    keep_addresses(program, share, config)
    if not v2 and share.pp_rank > 0:
        for tensor in received_states(model, config):
            program.keep(tensor.name, token=tensor.bytes_per_token)
    forward = forward_of(model, share, config)
    if isinstance(forward, CompiledForward):
        forward.write_compilation(program)
    hidden = forward.write(program, Step())
    if isinstance(forward, CompiledForward) and model.draft is not None and model.draft.method != "mtp":
        program.stage("compilation: the draft's embedding kernel")
        projected = program.alloc("projected states", token=forward.hidden) if model.draft.target_layers else None
        forward.write_embedding_kernel(program, _JOINED_EXAMPLES.get(model.draft.method, 0))
        program.free(projected)
    write_drafting(program, model, share, config, tuple(forward.kept.handles))
    if share.pp_rank == share.pipeline_parallel_size - 1:
        program.stage("sampler")
        chosen = [] if v2 else [program.alloc("logits indices", seq=8)]
        sampled = program.alloc("hidden states of the sampled rows", seq=forward.hidden)
        program.free(*index)
        head = head_of(model, share, config)
        if v2:
            dummy_sample_v2(program, head)
        else:
            rows = min(config.max_num_seqs, config.max_num_batched_tokens)
            rule = release_for(config.vllm_version).release.sampler_rule
            sms, drafts = config.sm_count or _DEFAULT_SM_COUNT, config.speculative_method is not None
            dummy_sample_v1(program, head, sms, rows, rule, drafts=drafts)
        program.free(sampled, *chosen)
    else:
        program.free(*index)
    program.free(hidden)
    if encoded is not None:
        program.free(*encoded.handles)
    return program


def forward_of(model: ModelSpec, share: RankShare, config: EngineConfig) -> Forward:
    """The forward pass as it runs, eager or compiled piece by piece: one for all batch sizes."""
    return _forward(model, share, batchless(model, config))


@once_each(kept=16)
def _forward(model: ModelSpec, share: RankShare, config: EngineConfig) -> Forward:
    return Forward(model, share, config) if config.enforce_eager else CompiledForward(model, share, config)


def _larger(one: Any, other: Any) -> Any:
    if isinstance(one, int) and isinstance(other, int):
        return max(one, other)
    return one + (other - one) * (other > one)
