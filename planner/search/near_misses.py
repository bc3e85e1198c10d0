"""When nothing fits: the smallest change of each kind that would make it fit, the least harmful first.

A change is found by searching again with it, so what is offered has been assessed whole. Harm, from little to much:
flags that change no answer, an FP8 cache, smaller images, fewer requests at once, a shorter context, a quantized
checkpoint, more cards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from msgspec import Struct

from planner.hardware.spec import GpuPool
from planner.model.spec import ModelSpec
from planner.search.explorer import wanted_concurrency
from planner.search.media import pixel_bounds
from planner.search.plan import Plan
from planner.search.search import search
from planner.search.space import SearchOptions

HARMS = (
    "flags", "a quantized cache", "smaller images", "fewer requests at once", "a shorter context",
    "another checkpoint", "more cards",
)  # fmt: skip
"""Kinds of change, the least harmful first."""

_SOFT = ("gpu_memory_utilization", "max_num_seqs", "max_num_batched_tokens", "block_size", "max_cudagraph_capture_size")
MOST_CARDS = 64


class NearMiss(Struct, frozen=True):
    """One change that makes the workload fit. `change` in words, `plan` the plan that results;
    `model` and `gpus` where they differ from those asked for."""

    harm: str
    change: str
    plan: Plan
    model: str | None = None
    gpus: str | None = None


def near_misses(
    model: ModelSpec,
    gpus: GpuPool,
    options: SearchOptions,
    vllm_version: str,
    variants: Callable[[], Iterable[tuple[str, str, ModelSpec]]] = tuple,
) -> tuple[NearMiss, ...]:
    """The smallest change of each kind, the least harmful first; kinds that do not help are left out.

    `variants`: other checkpoints as (scheme, name, model), read only when asked. Nothing is combined: each entry is
    one kind of change to the user's own question.
    """
    options = options.model_copy(update={"max_plans": 1})
    found: list[NearMiss] = []

    def best(asked: SearchOptions, pool: GpuPool = gpus, spec: ModelSpec = model) -> Plan | None:
        plans = search(spec, pool, asked, vllm_version).plans
        return plans[0] if plans else None

    found += _looser_flags(options, best)
    found += _smaller_images(model, options, best)
    found += _fewer_requests(options, best)
    found += _shorter(options, best)
    for scheme, name, spec in variants():
        plan = best(options, gpus, spec)
        if plan is not None:
            found.append(NearMiss("another checkpoint", f"the {scheme} checkpoint {name}", plan, model=name))
    found += _more_cards(gpus, options, best)
    return tuple(sorted(found, key=lambda miss: HARMS.index(miss.harm)))


_Best = Callable[..., Plan | None]


def _looser_flags(options: SearchOptions, best: _Best) -> Iterator[NearMiss]:
    """Flags that the user fixed and that change no answer, given free; then CUDA graphs, then an FP8 cache."""
    fixed = tuple(name for name in _SOFT if name in options.given)
    layout = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
    trials: list[tuple[str, ...]] = [(name,) for name in fixed]
    if set(layout) & set(options.given):
        trials.append(layout)
    if len(fixed) > 1:
        trials.append(fixed)
    for names in trials:
        plan = best(_freed(options, names))
        if plan is not None:
            shown = ", ".join(_written(plan, name) for name in names if name in options.given)
            yield NearMiss("flags", shown, plan)
            break
    if not options.args.enforce_eager:
        plan = best(_with(options, enforce_eager=True))
        if plan is not None:
            yield NearMiss("flags", "--enforce-eager (no CUDA graphs: slower steps)", plan)
    if "kv_cache_dtype" in options.given and not options.args.kv_cache_dtype.startswith("fp8"):
        plan = best(_with(options, kv_cache_dtype="fp8"))
        if plan is not None:
            yield NearMiss("a quantized cache", "--kv-cache-dtype fp8", plan)


def _smaller_images(model: ModelSpec, options: SearchOptions, best: _Best) -> Iterator[NearMiss]:
    for bound in pixel_bounds(model, options):
        plan = best(_with(options, mm_processor_kwargs=bound))
        if plan is not None:
            yield NearMiss("smaller images", f"--mm-processor-kwargs '{bound}'", plan)
            return


def _fewer_requests(options: SearchOptions, best: _Best) -> Iterator[NearMiss]:
    """The most requests at once that fit: doubled from one until they do not, then by halving the interval."""
    wanted = wanted_concurrency(options)
    if options.workload.request_rate is not None or wanted < 2:
        return
    low, high, step = 0, wanted, 1
    plan: Plan | None = None
    while high - low > 1:
        tried = best(_loaded(options, concurrency=step))
        low, high, plan = (low, step, plan) if tried is None else (step, high, tried)
        step = min(2 * low, (low + high) // 2) if high == wanted else (low + high) // 2
        if not low:
            break
    if plan is not None:
        yield NearMiss("fewer requests at once", "1 request at once" if low == 1 else f"{low} requests at once", plan)


def _shorter(options: SearchOptions, best: _Best) -> Iterator[NearMiss]:
    """The longest context that fits, where the user fixed or demanded a longer one."""
    if options.workload.mix is not None:
        return
    fixed = "max_model_len" in options.given and options.args.max_model_len not in (None, -1)
    least = options.args.max_model_len if fixed else options.workload.min_model_len
    if least is None or least <= 1:
        return
    asked = _loaded(_freed(options, ("max_model_len",)), min_model_len=1, concurrency=wanted_concurrency(options))
    plan = best(asked.model_copy(update={"objective": "context"}))
    if plan is not None and (plan.args.max_model_len or 0) < least:
        yield NearMiss("a shorter context", f"--max-model-len {plan.args.max_model_len}", plan)


def _more_cards(gpus: GpuPool, options: SearchOptions, best: _Best) -> Iterator[NearMiss]:
    """Twice the cards in the machine up to eight, then more machines: the first that fits."""
    asked = _freed(options, ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"))
    count, nodes = gpus.count, gpus.nodes
    while count * nodes < MOST_CARDS:
        count, nodes = (count * 2, nodes) if count < 8 else (count, nodes * 2)
        name, _, memory = gpus.spelling.partition("@")
        spelling = f"{name.partition(':')[0]}:{count}" + (f"x{nodes}" if nodes > 1 else "")
        spelling += f"@{memory}" if memory else ""
        pool = gpus.model_copy(update={"count": count, "nodes": nodes, "spelling": spelling})
        plan = best(asked, pool)
        if plan is not None:
            yield NearMiss("more cards", f"{count * nodes} cards (--gpus {spelling})", plan, gpus=spelling)
            return


def _with(options: SearchOptions, **flags: object) -> SearchOptions:
    given = tuple({*options.given, *flags})
    return options.model_copy(update={"args": options.args.model_copy(update=flags), "given": given})


def _loaded(options: SearchOptions, **load: object) -> SearchOptions:
    return options.model_copy(update={"workload": options.workload.model_copy(update=load)})


def _freed(options: SearchOptions, names: tuple[str, ...]) -> SearchOptions:
    """The options with some flags left to the search."""
    defaults = type(options.args)()
    args = options.args.model_copy(update={name: getattr(defaults, name) for name in names})
    return options.model_copy(update={"args": args, "given": tuple(set(options.given) - set(names))})


def _written(plan: Plan, name: str) -> str:
    return f"--{name.replace('_', '-')} {getattr(plan.args, name)}"
