"""From the last hidden states to sampled tokens: logits, the two runners' dummy samplers, and V2's warm-up requests.

Source: vLLM 0.26.0 v1/worker/gpu_model_runner.py:6170 and v1/sample/sampler.py (V1), v1/worker/gpu/model_runner.py:654,
v1/worker/gpu/sample/*.py and v1/worker/gpu/warmup.py (V2), v1/sample/ops/topk_topp_*.py, FlashInfer 0.6.14 sampling.py.
"""

from __future__ import annotations

from msgspec import Struct

from planner.engine.config import EngineConfig
from planner.memory.adapters import head_adapter_rank
from planner.memory.linear import LinearRun, linear_runs
from planner.memory.program import Program
from planner.model.modules import LMHead
from planner.model.spec import ModelSpec
from planner.once import once
from planner.releases.release import SamplerRule
from planner.sharding.rank import RankShare
from planner.units import MIB
from planner.values import DTYPE_BYTES

_GUMBEL_BLOCK = 1024
_PROMPT_CHUNK = 1024


class Head(Struct, frozen=True):
    """The output head of the rank. `vocab` is what the sampler sees, `padded` the rows that the weight has."""

    vocab: int
    padded: int
    hidden: int
    item: int
    tp: int
    run: LinearRun
    caps: bool = False
    adapter_rank: int = 0

    def logits(self, p: Program, *, rows: dict[str, int] | None = None) -> int:
        """Logits of the sampled rows, whole on each rank. `rows`: a fixed number of rows instead."""
        scale = rows or {}
        size = self.padded * self.item
        scratch = self.run.before(p)
        local = p.alloc("logits of this rank" if self.tp > 1 else "logits", **_rows(size // self.tp, scale))
        self.run.during(p)
        p.free(*scratch)
        if self.tp == 1:
            self._adapt(p, scale)
            return self._capped(p, local, size, scale)
        gathered = p.alloc("gathered logits", **_rows(size, scale))
        whole = p.alloc("logits", **_rows(size, scale))
        p.free(gathered, local)
        if self.adapter_rank:
            ordered = p.alloc("logits in the order of words", **_rows(size, scale))
            p.free(whole)
            whole = ordered
        self._adapt(p, scale)
        return self._capped(p, whole, size, scale)

    def _capped(self, p: Program, logits: int, size: int, scale: dict[str, int]) -> int:
        """Division, tanh and product of a soft cap, each a new tensor (layers/logits_processor.py:74)."""
        for step in ("divided", "in tanh", "capped") if self.caps else ():
            new = p.alloc(f"logits, {step}", **_rows(size, scale))
            p.free(logits)
            logits = new
        return logits

    def _adapt(self, p: Program, scale: dict[str, int]) -> None:
        """The adapters' share of the logits (vLLM 0.26.0 lora/layers/logits_processor.py:141)."""
        if self.adapter_rank:
            p.free(p.alloc("hidden states in adapter ranks", **_rows(4 * self.adapter_rank, scale)))


@once
def head_of(model: ModelSpec, share: RankShare, config: EngineConfig) -> Head:
    vocab = model.text.vocab_size
    head = next((module for module in model.modules if isinstance(module, LMHead)), None)
    padding = head.padding if head is not None else 64
    runs = linear_runs(model, share, config)
    run = runs[head.name] if head is not None else LinearRun("dense")
    return Head(
        vocab=vocab,
        padded=-(-vocab // padding) * padding,
        hidden=model.text.hidden_size,
        item=DTYPE_BYTES[config.dtype],
        tp=config.tensor_parallel_size,
        run=run,
        caps=model.facts.caps_logits,
        adapter_rank=head_adapter_rank(share),
    )


def batch_index(p: Program) -> list[int]:
    """The index tensors of one dummy batch of the V2 runner (v1/worker/gpu/input_batch.py make_dummy)."""
    return [
        p.alloc("request indices", seq=4),
        p.alloc("positions within a request", seq=4),
        p.alloc("logits indices", seq=4),
        p.alloc("cumulated logits", seq=4, constant=4),
    ]


def dummy_sample_v2(p: Program, head: Head) -> None:
    """V2's dummy sampler: greedy Gumbel sampling straight from the logits."""
    p.stage("sampler")
    logits = head.logits(p)
    index = batch_index(p)
    blocks = -(-head.vocab // _GUMBEL_BLOCK)
    scratch = [
        p.alloc("positions", seq=8),
        p.alloc("input tokens", seq=4),
        p.alloc("block winners", seq=8 * blocks),
        p.alloc("block maxima", seq=4 * blocks),
        p.alloc("winning block", seq=8),
        p.alloc("sampled tokens", seq=8),
    ]
    p.free(*scratch, *index, logits)


def dummy_sample_v1(
    p: Program, head: Head, sm_count: int, max_rows: int, rule: SamplerRule = "masked", *, drafts: bool = False
) -> None:
    """V1's dummy sampler: top-k and top-p in float32 over the whole vocabulary. `rule` "sorted": older releases.
    `drafts`: speculative decoding, with one draft token a request to accept or reject."""
    p.stage("sampler")
    random = p.alloc("random hidden states", seq=head.hidden * head.item)
    logits = head.logits(p)
    metadata = [p.alloc(name, seq=size) for name, size in _V1_METADATA]
    wide = 4 * head.vocab
    if rule == "sorted":
        _sort_sample(p, wide)
        p.free(*metadata, logits, random)
        return
    scores = p.alloc("logits in float32", seq=wide)
    greedy = p.alloc("greedy tokens", seq=8)
    p.keep("FlashInfer top-k state", constant=MIB)
    masked, probabilities = p.alloc("logits masked to top-k", seq=wide), p.alloc("probabilities", seq=wide)
    p.free(p.alloc("sampled tokens", seq=5), probabilities, masked, greedy, scores)
    p.stage("sampler, PyTorch path")
    scores = p.alloc("logits in float32", seq=wide)
    greedy = p.alloc("greedy tokens", seq=8)
    programs = min(sm_count, max_rows)
    p.keep("Triton top-k and top-p buffer", constant=min(_power_of_two(programs), sm_count) * wide)
    probabilities, noise = p.alloc("probabilities", seq=wide), p.alloc("exponential noise", seq=wide)
    p.free(noise, probabilities, greedy, scores)
    if drafts:
        logits = _reject_drafts(p, head, logits)
    p.free(*metadata, logits, random)


def _reject_drafts(p: Program, head: Head, logits: int) -> int:
    """Logits of a draft and a bonus token a request take the place of `logits`; the bonus tokens are sampled, then the
    drafts checked against the target's probabilities. Gives the new logits' handle.

    Source: vLLM 0.26.0 v1/worker/gpu_model_runner.py:6243, v1/sample/rejection_sampler.py:100, 474, 684; to the byte as
    a boot on an H200 (Qwen2.5-7B, ngram).
    """
    p.stage("sampler: drafts")
    wide, row = 4 * head.vocab, head.vocab * head.item
    pairs = p.alloc("logits of draft and bonus tokens", seq=2 * row)
    p.free(logits)
    bonus = p.alloc("bonus logits", seq=row)
    held = [bonus, p.alloc("raw bonus logits in float32", seq=wide)]
    scores = p.alloc("bonus logits in float32", seq=wide)
    masked, probabilities = p.alloc("logits masked to top-k", seq=wide), p.alloc("probabilities", seq=wide)
    p.free(probabilities, masked, scores)
    narrow = p.alloc("draft logits", seq=row)
    held.append(p.alloc("raw draft logits in float32", seq=wide))
    p.free(narrow)
    held.append(p.alloc("draft logits in float32", seq=wide))
    held.append(p.alloc("target probabilities", seq=wide))
    held += [p.alloc("exponential noise", seq=wide), p.alloc("inverse of the noise", seq=wide)]
    p.free(*reversed(held))
    return pairs


def _sort_sample(p: Program, wide: int) -> None:
    """Top-k and top-p by sorting each row: values and 64-bit positions in and out, and the radix sort's second copy.

    Source: vLLM 0.8.3 v1/sample/ops/topk_topp_sampler.py apply_top_k_top_p; PyTorch aten/src/ATen/native/cuda/Sort.cpp
    and CUB's DeviceSegmentedRadixSort. Published peaks of 0.15 and 0.16 agree: 38 bytes a row and word.
    """
    p.stage("sampler: sort of the vocabulary")
    scores = p.alloc("logits in float32", seq=wide)
    greedy = p.alloc("greedy tokens", seq=8)
    ordered, places = p.alloc("sorted logits", seq=wide), p.alloc("sorted positions", seq=2 * wide)
    p.free(p.alloc("positions to sort", seq=2 * wide), p.alloc("radix sort's second copy", seq=3 * wide))
    p.stage("sampler: top-p")
    p.free(p.alloc("sorted probabilities", seq=wide), p.alloc("top-p mask", seq=wide // 4))
    limited = p.alloc("logits limited to top-p", seq=wide)
    p.free(ordered, places)
    probabilities, noise = p.alloc("probabilities", seq=wide), p.alloc("exponential noise", seq=wide)
    p.free(noise, probabilities, limited, greedy, scores)


def warm_up_sample_v2(p: Program, head: Head, *, prefill: bool, rows: int) -> None:
    """Sampling of V2's warm-up requests, which use every sampling feature: the largest lasting reservation.

    Raw and processed logits in the model's dtype; a float32 copy, its top-k masked copy and the probabilities.
    Prompt log-probabilities of a prefill step need the logits of all prompt tokens, 1024 at a time.
    """
    p.stage("warm-up sampler")
    wide = 4 * head.vocab
    logits = head.logits(p)
    index = [p.alloc("positions", seq=8), p.alloc("input tokens", seq=4)]
    processed = p.alloc("processed logits", seq=head.vocab * head.item)
    limits = [p.alloc("top-k", seq=4), p.alloc("top-p", seq=4)]
    scores = p.alloc("logits in float32", seq=wide)
    p.keep("FlashInfer top-k state", constant=MIB)
    masked, probabilities = p.alloc("logits masked to top-k", seq=wide), p.alloc("probabilities", seq=wide)
    sampled = [p.alloc("sampled tokens", seq=4), p.alloc("validity", seq=1)]
    p.free(probabilities, masked, scores, *sampled, *limits, processed, logits)
    if prefill:
        p.stage("warm-up prompt log-probabilities")
        previous = None
        for start in range(0, rows, _PROMPT_CHUNK):
            chunk = head.logits(p, rows={"constant": min(_PROMPT_CHUNK, rows - start)})
            p.free(previous)
            previous = chunk
        p.free(previous)
    p.free(*index)


_V1_METADATA = (
    ("temperatures", 4),
    ("top-p", 4),
    ("top-k", 8),
    ("frequency penalties", 4),
    ("presence penalties", 4),
    ("repetition penalties", 4),
)


def _rows(size: int, rows: dict[str, int]) -> dict[str, int]:
    return {"constant": size * rows["constant"]} if rows else {"seq": size}


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
