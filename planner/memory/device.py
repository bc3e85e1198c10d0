"""What the GPU really holds: a startup of the engine replayed on the caching allocator, from the first buffer to the
last warm-up request.

The engine's ledger counts what is allocated; the device sees what is reserved. Between them lie the blocks that the
allocator keeps after the autotuning pass and after warming up the sampler (vLLM 0.26.0 v1/worker/gpu_worker.py:746
compile_or_warm_up_model), which the KV cache budget does not know.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from planner.engine.config import EngineConfig
from planner.memory import measured_constants as measured
from planner.memory.activation import forward_of, is_written_alike, profile_program
from planner.memory.adapters import adapter_indices
from planner.memory.allocator import LARGE_SEGMENT_BYTES, LOAD_MAX_SPLIT_BYTES, CachingAllocator, loaded
from planner.memory.constants import Measured
from planner.memory.drafting import write_drafting
from planner.memory.layers import batchless, load_traits, takes_media
from planner.memory.program import LiveTensor, Part, Program
from planner.memory.runner_state import kv_tables, runner_buffers, sampler_buffers
from planner.memory.sampling import batch_index, dummy_sample_v1, head_of, warm_up_sample_v2
from planner.memory.step import Step
from planner.model.spec import ModelSpec
from planner.once import once_each
from planner.releases.choose import release_for
from planner.sharding.rank import RankShare
from planner.units import MIB

_DEFAULT_SM_COUNT = 132
_CUSTOM_REDUCE_BYTES = {2: 8 * MIB, 4: 8 * MIB, 6: MIB // 2, 8: MIB // 4}
_SYMMETRIC_BYTES = {2: 64 * MIB, 4: 32 * MIB, 6: 64 * MIB, 8: 64 * MIB}
_NCCL_ALLOWANCE_BYTES = 1024 * MIB
"""For NCCL's multicast buffers and further channels among more than two GPUs, which no boot here had."""
_OVERLAP_TOKENS = 256
"""VLLM_SHARED_EXPERTS_STREAM_TOKEN_THRESHOLD's default: batches up to it run shared experts on a second stream."""
_DECODE_TOKENS = {"FLASH_ATTN_MLA": 512, "FLASHMLA": 128}


class Boot:
    """One rank's startup up to the end of vLLM's profile run; `finish` goes on from the KV cache.

    `weights_memory_bytes` is "Model loading took"; `runner_state_bytes` what else is allocated before the profile run;
    `peak_activation_bytes` the profile run's highest moment beyond that, in allocator blocks.
    """

    def __init__(self, model: ModelSpec, share: RankShare, config: EngineConfig) -> None:
        self.model, self.share, self.config = model, share, config
        self._release = release_for(config.vllm_version).release
        self.allocator = CachingAllocator()
        self._tokens = config.max_num_batched_tokens
        self._last = share.pp_rank == share.pipeline_parallel_size - 1
        self._make(runner_buffers(model, config))
        inputs = self.allocator.allocated_bytes
        indices = [tensor.bytes(self._tokens, config.max_num_seqs) for tensor in adapter_indices(config)]
        self.allocator, self._kept = loaded(self.allocator, share, load_traits(model, share, config), tuple(indices))
        self.weights_memory_bytes = self.allocator.allocated_bytes - inputs
        self.allocator.empty_cache()
        self._make(sampler_buffers(model, config, last_stage=self._last, first_stage=share.pp_rank == 0))
        self.allocator.max_split_bytes = None if self._release.profile_splits_blocks else LOAD_MAX_SPLIT_BYTES
        before = self.allocator.allocated_bytes
        self.runner_state_bytes = before - self.weights_memory_bytes
        self.allocator.empty_cache()
        self.allocator.reset_peaks()
        self._replay(profile_program(model, share, config), self._tokens, min(config.max_num_seqs, self._tokens))
        self.peak_activation_bytes = self.allocator.peak_allocated_bytes - before
        self.allocator.empty_cache()
        self.allocator.max_split_bytes = None
        self.allocated_after_profile_bytes = self.allocator.allocated_bytes
        self.reserved_after_profile_bytes = self.allocator.reserved_bytes

    def finish(
        self, kv_tensor_bytes: Sequence[int], block_sizes: tuple[int, ...], num_blocks: int, graph_bytes: int = 0
    ) -> int:
        """Reserved bytes once the engine serves: KV cache, tables, CUDA graphs, and what warming up leaves cached.

        `kv_tensor_bytes`: one entry for each tensor of the pool. `graph_bytes`: the graphs' own pool.
        """
        self.allocator.run(kv_tensor_bytes)
        self._make(kv_tables(self.model, self.config, block_sizes))
        self._autotune()
        if not self.config.enforce_eager:
            self.allocator.empty_cache()
        if self.config.model_runner == "v2":
            self._warm_up_v2(num_blocks)
        else:
            self._warm_up_v1()
        return self.allocator.reserved_bytes + graph_bytes + self._pipeline_bytes()

    def _pipeline_bytes(self) -> int:
        """What NCCL takes outside PyTorch when stages first send to each other, which is while the engine warms up.
        A stage in the middle has both neighbours."""
        stages, first = self.share.pipeline_parallel_size, self.share.pp_rank == 0
        before = 0 if first else measured.PIPELINE_NCCL_LAST.value
        after = 0 if self._last else measured.PIPELINE_NCCL_FIRST.value
        return before + after if stages > 1 else 0

    def _autotune(self) -> None:
        """FlashInfer's autotuner runs the model once more over a full batch, attention included (from Hopper on)."""
        if self.config.compute_capability < (9, 0):
            return
        program = Program()
        index = batch_index(program) if self.config.model_runner == "v2" else []
        forward = forward_of(self.model, self.share, self.config)
        v2 = self.config.model_runner == "v2"
        rows = min(self.config.max_num_seqs, self._tokens)
        hidden = forward.write(program, Step(attends=v2, decodes=self._decodes(-(-self._tokens // rows))))
        write_drafting(program, self.model, self.share, self.config, tuple(forward.kept.handles))
        if self._last:
            program.free(program.alloc("hidden states of the sampled rows", seq=forward.hidden))
        program.free(*index, hidden)
        self._replay(program, self._tokens, min(self.config.max_num_seqs, self._tokens))

    def _warm_up_v2(self, num_blocks: int) -> None:
        """A prefill step of two tokens a request and a decode step, with every sampling feature in use.

        Source: vLLM 0.26.0 v1/worker/gpu/warmup.py warmup_kernels.
        """
        decode = self.config.num_speculative_tokens + 1
        prompt = decode + 1
        rows = min(self.config.max_num_seqs, self._tokens // prompt, max(1, num_blocks - 1))
        if rows < 1:
            return
        if not self.config.enforce_eager and rows * prompt > max(self.config.cudagraph_capture_sizes, default=0):
            self._set_aside_pinned()
        leaves = self._starts_on_default_stream
        for query in (prompt, decode):
            step = Step(
                attends=True,
                decodes=self._decodes(query),
                splits=query == prompt and rows * query <= max(self.config.cudagraph_capture_sizes, default=0),
                overlaps=rows * query <= _OVERLAP_TOKENS,
                leaves=leaves and rows * query <= _OVERLAP_TOKENS,
            )
            self._replay(self._request_step(rows * query, step, prefill=query == prompt), rows * query, rows)
            leaves = False

    def _set_aside_pinned(self) -> None:
        """Leave cached blocks to nobody: what a compiled run leaves pinned is not used for steps too large for a graph.

        Seen on an H200 (Qwen2.5-7B, 1024 sequences, compiled): the sampler got new segments for all its tensors.
        """
        for size in self.allocator.free_blocks(LARGE_SEGMENT_BYTES):
            self.allocator.allocate(size)

    @property
    def _starts_on_default_stream(self) -> bool:
        """Nothing has set a stream yet: capturing graphs would have, and NCCL's first reduction. Replicas of a dense
        model are engines of their own (vLLM 0.26.0 v1/engine/core.py:1293)."""
        config = self.config
        ranks = config.world_size if self.model.is_moe else config.tensor_parallel_size * config.pipeline_parallel_size
        return config.enforce_eager and ranks == 1

    def _decodes(self, query_tokens: int) -> bool:
        """Whether latent attention's backend takes requests of so many tokens for decodes (v1/attention/backends)."""
        return query_tokens <= _DECODE_TOKENS.get(self.config.attention_backend, 1)

    def _request_step(self, tokens: int, step: Step, *, prefill: bool) -> Program:
        prompts = tokens if prefill else 0
        if not is_written_alike(self.model, self.config):
            return _request_program(self.model, self.share, self.config, step, prompts)
        program = Program()
        program.use(_request_part(self.model, self.share, batchless(self.model, self.config), step, prompts))
        return program

    def _warm_up_v1(self) -> None:
        """A dummy batch of one token a request and the dummy sampler (v1/worker/gpu_worker.py:880)."""
        rows = min(self.config.max_num_seqs, self._tokens)
        program = Program()
        forward = forward_of(self.model, self.share, self.config)
        few = rows <= _OVERLAP_TOKENS
        hidden = forward.write(program, Step(overlaps=few, leaves=few and self._starts_on_default_stream))
        write_drafting(program, self.model, self.share, self.config, tuple(forward.kept.handles))
        if self._last:
            chosen = program.alloc("logits indices", seq=8)
            sampled = program.alloc("hidden states of the sampled rows", seq=forward.hidden)
            head = head_of(self.model, self.share, self.config)
            sms, drafts = self.config.sm_count or _DEFAULT_SM_COUNT, self.config.speculative_method is not None
            dummy_sample_v1(program, head, sms, rows, self._release.sampler_rule, drafts=drafts)
            program.free(sampled, chosen)
        program.free(hidden)
        self._replay(program, rows, rows)

    def _make(self, tensors: tuple[LiveTensor, ...]) -> None:
        seqs = self.config.max_num_seqs
        self.allocator.run([tensor.bytes(self._tokens, seqs) for tensor in tensors])

    def _replay(self, program: Program, tokens: int, seqs: int) -> None:
        program.replay(self.allocator, tokens, seqs, self._kept)


@once_each(kept=32)
def _request_part(model: ModelSpec, share: RankShare, config: EngineConfig, step: Step, prompt_tokens: int) -> Part:
    return _request_program(model, share, config, step, prompt_tokens).part()


def _request_program(
    model: ModelSpec, share: RankShare, config: EngineConfig, step: Step, prompt_tokens: int
) -> Program:
    """A warm-up step of the V2 runner: a prefill of so many tokens, or with 0 a decode step."""
    program = Program()
    index = batch_index(program)
    forward = forward_of(model, share, config)
    if takes_media(model, config) and share.pp_rank == 0:
        program.free(program.alloc("token embeddings", token=forward.hidden))
    hidden = forward.write(program, step)
    if share.pp_rank == share.pipeline_parallel_size - 1:
        sampled = program.alloc("hidden states of the sampled rows", seq=forward.hidden)
        head = head_of(model, share, config)
        warm_up_sample_v2(program, head, prefill=prompt_tokens > 0, rows=prompt_tokens)
        program.free(sampled)
    write_drafting(program, model, share, config, tuple(forward.kept.handles))
    program.free(*index, hidden)
    return program


def cuda_context_bytes(model: ModelSpec, config: EngineConfig) -> Measured:
    """In use on the GPU before the first buffer: CUDA's context, and with several GPUs their communicators.

    Measured with one, two and four GPUs. With others, the buffers whose sizes vLLM's source gives are exchanged against
    two GPUs' (for four that rule is 2 MiB too low, 0 with experts). Beyond two the high end allows for what no source
    gives and no boot had: multicast was off in all of them.
    """
    tensor, pipeline = config.tensor_parallel_size, config.pipeline_parallel_size
    if tensor * pipeline == 1:
        return measured.CUDA_CONTEXT
    pair = measured.CUDA_CONTEXT_TP2_MOE if model.is_moe else measured.CUDA_CONTEXT_TP2_V2
    if tensor == 1:
        pair = measured.CUDA_CONTEXT_PP2
    if tensor * pipeline == 2:
        return pair
    if (tensor, pipeline) == (4, 1):
        four = measured.CUDA_CONTEXT_TP4_MOE if model.is_moe else measured.CUDA_CONTEXT_TP4_V2
        return replace(four, high=four.value + _NCCL_ALLOWANCE_BYTES)
    if (tensor, pipeline) == (2, 2) and not model.is_moe:
        return replace(measured.CUDA_CONTEXT_TP2_PP2, high=measured.CUDA_CONTEXT_TP2_PP2.value + _NCCL_ALLOWANCE_BYTES)
    value = pair.value
    if tensor > 1:
        value += _reduction_buffer_bytes(tensor) - _reduction_buffer_bytes(2)
        if pipeline > 1:
            value += (measured.CUDA_CONTEXT_PP2.value - measured.CUDA_CONTEXT.value) // 2
    what = f"derived for {tensor * pipeline} GPUs from two: {pair.what}"
    return replace(pair, value=value, low=value, high=value + _NCCL_ALLOWANCE_BYTES, count=0, what=what)


def _reduction_buffer_bytes(tp: int) -> int:
    """Buffers that vLLM sizes by the number of GPUs: two of custom all-reduce, and one in symmetric memory.

    Source: vLLM 0.26.0 distributed/device_communicators/all_reduce_utils.py:30, custom_all_reduce.py:59, Hopper's rows.
    """
    return 2 * _CUSTOM_REDUCE_BYTES.get(tp, 0) + _SYMMETRIC_BYTES.get(tp, 0)


def non_torch_bytes(config: EngineConfig) -> int:
    """vLLM's non-torch memory: what the device has given outside PyTorch from then to the end of the profile run."""
    return sum(term.value for term in non_torch_terms(config)) + config.calibrated_bytes("non_torch_bytes")


def non_torch_terms(config: EngineConfig) -> tuple[Measured, ...]:
    """The parts of `non_torch_bytes`: loaded modules, and where V1 profiles CUDA graphs before vLLM measures, their
    growth and NCCL's buffers for captured all-reduces."""
    release = release_for(config.vllm_version).release
    several = config.tensor_parallel_size * config.pipeline_parallel_size > 1
    base = measured.NON_TORCH_TP2 if several else measured.NON_TORCH
    if not several and release.loads_few_modules:
        base = measured.NON_TORCH_FEW_MODULES
    elif not several and config.compute_capability < (9, 0):
        base = measured.NON_TORCH_BEFORE_HOPPER
    if config.model_runner == "v2" or config.cudagraph_mode == "NONE" or release.graph_budget == "none":
        return (base,)
    if release.ledger_rule != "sum_of_terms":
        return (base,)
    if config.tensor_parallel_size > 1:
        return (base, measured.NCCL_GRAPH_BUFFERS)
    return (base, measured.NON_TORCH_GRAPH_PROFILE)
