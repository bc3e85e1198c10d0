"""What each flag is worth from here: the plan assessed again with one flag changed, and the difference."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from planner.engine.args import EngineArgs
from planner.errors import UnsupportedError
from planner.hardware.spec import GpuPool
from planner.memory.assess import Assessment, Deployment
from planner.memory.kv_capacity import whole_requests
from planner.model.spec import ModelSpec
from planner.search.demand import Demands, with_request_room
from planner.search.media import media_of, pixel_bounds
from planner.search.pareto import cheapest, speed_of
from planner.search.plan import Plan
from planner.search.space import BATCHED_TOKENS, SEQUENCES, SearchOptions
from planner.search.variants import Variants
from planner.values import Value


class Change(Value):
    """One flag changed. `flag`: as it would be written; the differences are new minus old, None where vLLM refuses
    the changed flags (`refused` says why). `kv_cache_bytes` and `headroom_bytes` are of one card; `tokens` and
    `requests` (at once, of the workload's lengths, else of max_model_len) of all replicas; `tokens_per_s` is an
    estimate."""

    flag: str
    refused: str | None = None
    kv_cache_bytes: int | None = None
    headroom_bytes: int | None = None
    tokens: int | None = None
    requests: int | None = None
    tokens_per_s: float | None = None
    usd_per_hour: float | None = None
    within_margin: bool = True


@dataclass(frozen=True, slots=True)
class _Figures:
    kv_cache_bytes: int
    headroom_bytes: int
    tokens: int
    requests: int
    tokens_per_s: float | None
    usd_per_hour: float | None


@dataclass(slots=True)
class _Loads:
    """What a cache holds at once: requests of the workload's lengths, with the media as the flags shrink them."""

    model: ModelSpec
    options: SearchOptions
    known: dict[str | None, Demands] = field(default_factory=dict)

    def held(self, deployment: Deployment, blocks: int, args: EngineArgs) -> int:
        """Of one engine."""
        config = deployment.config
        if self.options.workload.mix is None:
            return int(whole_requests(deployment.pool, blocks, config.max_model_len, config.max_num_batched_tokens))
        if args.mm_processor_kwargs not in self.known:
            options = with_request_room(self.model, self.options.model_copy(update={"args": args}))
            assert options.workload.mix is not None
            self.known[args.mm_processor_kwargs] = Demands(options.workload.mix, options)
        return self.known[args.mm_processor_kwargs].held(deployment, blocks)


def sensitivity(
    model: ModelSpec, gpus: GpuPool, plan: Plan, options: SearchOptions, vllm_version: str
) -> tuple[Change, ...]:
    """Each flag one step up and down from the plan, assessed whole; those that free most of a card first."""
    variants = Variants(model, gpus, vllm_version, media_of(options))
    loads = _Loads(model, options)
    before = _figures(plan.assessment, plan.args, gpus, loads)
    assert before is not None
    found = []
    for flag, update in _steps(model, gpus, plan, options):
        args = plan.args.model_copy(update=update)
        try:
            assessment = variants.assess(args)
        except UnsupportedError as unsupported:
            found.append(Change(flag=flag, refused=str(unsupported)))
            continue
        found.append(_change(flag, assessment, args, before, gpus, loads))
    return tuple(sorted(found, key=lambda change: (change.refused is not None, -_freed(change))))


def _freed(change: Change) -> int:
    return (change.kv_cache_bytes or 0) + (change.headroom_bytes or 0)


def _change(
    flag: str, assessment: Assessment, args: EngineArgs, before: _Figures, gpus: GpuPool, loads: _Loads
) -> Change:
    after = _figures(assessment, args, gpus, loads)
    if after is None:
        rejection = assessment.estimate.rejection
        return Change(flag=flag, refused="" if rejection is None else rejection.message)
    per_gpu = assessment.estimate.per_gpu
    assert per_gpu is not None
    need = per_gpu.total_memory_bytes - after.headroom_bytes
    return Change(
        flag=flag,
        kv_cache_bytes=after.kv_cache_bytes - before.kv_cache_bytes,
        headroom_bytes=after.headroom_bytes - before.headroom_bytes,
        tokens=after.tokens - before.tokens,
        requests=after.requests - before.requests,
        tokens_per_s=_difference(before.tokens_per_s, after.tokens_per_s),
        usd_per_hour=_difference(before.usd_per_hour, after.usd_per_hour),
        within_margin=need * (1 + loads.options.safety_margin) <= per_gpu.total_memory_bytes,
    )


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def _figures(assessment: Assessment, args: EngineArgs, gpus: GpuPool, loads: _Loads) -> _Figures | None:
    estimate, deployment = assessment.estimate, assessment.deployment
    per_gpu, cache, config = estimate.per_gpu, estimate.kv_cache, assessment.config
    if not estimate.starts or per_gpu is None or cache is None or deployment is None or config is None:
        return None
    replicas = config.data_parallel_size
    held = replicas * loads.held(deployment, cache.num_gpu_blocks, args)
    price = cheapest(gpus.gpu)
    return _Figures(
        kv_cache_bytes=per_gpu.available_kv_cache_bytes,
        headroom_bytes=per_gpu.total_memory_bytes
        - per_gpu.used_after_startup_bytes
        - per_gpu.vision_encoder_runtime_peak_bytes,
        tokens=cache.capacity_tokens * replicas,
        requests=held,
        tokens_per_s=speed_of(deployment, loads.options).tokens_per_s(
            max(1, min(held, config.max_num_seqs * replicas))
        ),
        usd_per_hour=None if price is None else price * config.world_size,
    )


def _steps(
    model: ModelSpec, gpus: GpuPool, plan: Plan, options: SearchOptions
) -> Iterator[tuple[str, dict[str, object]]]:
    """(how the changed flag is written, the change)."""
    args, engine = plan.args, plan.estimate.engine
    assert engine is not None
    if args.kv_cache_memory_bytes is None:
        for step in (0.01, -0.01):
            value = round(engine.gpu_memory_utilization + step, 4)
            if 0 < value <= 1:
                yield f"--gpu-memory-utilization {value:g}", {"gpu_memory_utilization": value}
    for name, now, ladder in (
        ("max_num_seqs", engine.max_num_seqs, SEQUENCES),
        ("max_num_batched_tokens", engine.max_num_batched_tokens, BATCHED_TOKENS),
    ):
        for value in (*[one for one in ladder if one < now][-1:], *[one for one in ladder if one > now][:1]):
            yield f"--{name.replace('_', '-')} {value}", {name: value}
    yield f"--max-model-len {engine.max_model_len // 2}", {"max_model_len": engine.max_model_len // 2}
    yield (
        ("(CUDA graphs)", {"enforce_eager": False})
        if args.enforce_eager
        else ("--enforce-eager", {"enforce_eager": True})
    )
    dtype = "fp8" if args.kv_cache_dtype == "auto" else "auto"
    yield f"--kv-cache-dtype {dtype}", {"kv_cache_dtype": dtype}
    yield from _media_steps(model, args, options)
    for flag, update in _layout_steps(args):
        changed = args.model_copy(update=update)
        ranks = changed.tensor_parallel_size * changed.data_parallel_size * changed.pipeline_parallel_size
        if ranks <= gpus.world_size:
            yield flag, update


def _media_steps(model: ModelSpec, args: EngineArgs, options: SearchOptions) -> Iterator[tuple[str, dict[str, object]]]:
    for bound in pixel_bounds(model, options.model_copy(update={"args": args}))[:1]:
        yield f"--mm-processor-kwargs '{bound}'", {"mm_processor_kwargs": bound}
    limits = json.loads(args.limit_mm_per_prompt or "{}")
    for modality, count in limits.items():
        if isinstance(count, int):
            text = json.dumps({**limits, modality: count + 1})
            yield f"--limit-mm-per-prompt '{text}'", {"limit_mm_per_prompt": text}


def _layout_steps(args: EngineArgs) -> Iterator[tuple[str, dict[str, object]]]:
    tp, dp = args.tensor_parallel_size, args.data_parallel_size
    if tp % 2 == 0:
        yield (
            f"--tensor-parallel-size {tp // 2} --data-parallel-size {dp * 2}",
            {"tensor_parallel_size": tp // 2, "data_parallel_size": dp * 2},
        )
        yield f"--tensor-parallel-size {tp // 2}", {"tensor_parallel_size": tp // 2}
    if dp % 2 == 0:
        yield f"--data-parallel-size {dp // 2}", {"data_parallel_size": dp // 2}
        yield (
            f"--tensor-parallel-size {tp * 2} --data-parallel-size {dp // 2}",
            {"tensor_parallel_size": tp * 2, "data_parallel_size": dp // 2},
        )
    yield f"--tensor-parallel-size {tp * 2}", {"tensor_parallel_size": tp * 2}
