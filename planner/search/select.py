"""Which cards to buy or rent for a workload: every card of a catalog, every count, fits or why not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from planner.hardware.spec import GpuSpec
from planner.model.spec import ModelSpec
from planner.search.select_judge import TENSOR_PARALLEL, WHY, EngineFit, Judge, judge_of
from planner.search.space import SearchOptions
from planner.values import Rejection


@dataclass(frozen=True, slots=True)
class Choice:
    """`count` cards in each of `nodes` machines: `engine` times `replicas`, or why there is none."""

    gpu: GpuSpec
    count: int
    nodes: int
    engine: EngineFit | None
    replicas: int
    rejection: Rejection | None

    @property
    def requests(self) -> int:
        return self.engine.requests * self.replicas if self.engine else 0


def select(
    model: ModelSpec,
    gpus: Iterable[GpuSpec],
    options: SearchOptions,
    vllm_version: str,
    *,
    max_count: int = 16,
    nodes: tuple[int, ...] = (1,),
) -> tuple[Choice, ...]:
    """Every card with 1 to `max_count` in each of `nodes` machines, in catalog order.

    A machine's cards serve as many engines as fit side by side (tensor parallelism within the machine). Pipeline
    stages across machines are tried only where no engine fits in one. `options.args.max_model_len` and
    `options.workload.concurrency` are the workload; --max-num-seqs follows from it where it is not given.
    """
    cards = tuple(gpus)
    concurrency, judge = options.workload.concurrency or 1, judge_of(model, cards, options, vllm_version)
    return tuple(choice for gpu in cards for choice in _choices(judge, gpu, concurrency, max_count, nodes))


def _choices(judge: Judge, gpu: GpuSpec, concurrency: int, max_count: int, nodes: tuple[int, ...]) -> Iterator[Choice]:
    if gpu.vendor != "nvidia":
        reason = Rejection(bottleneck="attention_backend", message="AMD card: plans are made for NVIDIA cards only")
        yield from (Choice(gpu, count, many, None, 0, reason) for many in nodes for count in range(1, max_count + 1))
        return
    sizes = [tp for tp in TENSOR_PARALLEL if tp <= max_count]
    single = {tp: judge.engine(gpu, tp, 1) for tp in sizes}
    for many in nodes:
        staged: dict[int, EngineFit | Rejection] = {}
        for count in range(1, max_count + 1):
            found = {tp: engine for tp, engine in single.items() if tp <= count}
            if many > 1 and not any(isinstance(engine, EngineFit) for engine in found.values()):
                staged |= {tp: judge.engine(gpu, tp, many) for tp in found if tp not in staged}
                found = {tp: staged[tp] for tp in found}
            yield _choice(gpu, count, many, found, concurrency)


def _choice(
    gpu: GpuSpec, count: int, nodes: int, engines: dict[int, EngineFit | Rejection], concurrency: int
) -> Choice:
    """The layout of these cards that holds most requests; the smaller tensor parallelism where two hold as many.

    Without one, what speaks against the largest layout that only lacks memory, else against the largest of all.
    """
    best: Choice | None = None
    for tp, engine in engines.items():
        if isinstance(engine, EngineFit):
            replicas = count // tp * (nodes if engine.pipeline_parallel_size == 1 else 1)
            choice = Choice(gpu, count, nodes, engine, replicas, None)
            if best is None or choice.requests > best.requests:
                best = choice
    if best is None:
        reasons = [reason for _, reason in sorted(engines.items()) if isinstance(reason, Rejection)]
        for_memory = [reason for reason in reasons if reason.bottleneck in WHY]
        return Choice(gpu, count, nodes, None, 0, (for_memory or reasons)[-1])
    if best.requests < concurrency:
        message = f"holds {best.requests} of {concurrency} requests"
        return replace(best, rejection=Rejection(bottleneck="kv_cache", message=message))
    return best
