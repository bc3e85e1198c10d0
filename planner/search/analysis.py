"""What a search can tell beside its plans, each part only where it was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec import Struct
from msgspec.structs import replace

from planner.hardware.spec import GpuPool
from planner.model.spec import ModelSpec
from planner.search.near_misses import NearMiss, near_misses
from planner.search.pareto import Point, front, labelled, unbeaten
from planner.search.plan import SearchResult
from planner.search.recommend import Recommendation, recommendations
from planner.search.search import search
from planner.search.sensitivity import Change, sensitivity
from planner.search.space import SearchOptions


class Variant(Struct, frozen=True):
    """Another checkpoint of the model: its quantization scheme, its id, and what the same search finds for it."""

    scheme: str
    name: str
    result: SearchResult


class Analysis(Struct, frozen=True):
    """`front`: plans that no other beats, with `recommended` ones among them. `sensitivity`: what each flag is worth
    from plan 1. `near_misses`: where nothing fits. `variants`: other checkpoints. None: not asked for."""

    front: tuple[Point, ...] | None = None
    recommended: tuple[Recommendation, ...] | None = None
    sensitivity: tuple[Change, ...] | None = None
    near_misses: tuple[NearMiss, ...] | None = None
    variants: tuple[Variant, ...] | None = None


Checkpoints = Callable[[], Iterable[tuple[str, str, ModelSpec]]]


def analyse(
    model: ModelSpec,
    gpus: GpuPool,
    options: SearchOptions,
    vllm_version: str,
    result: SearchResult,
    checkpoints: Checkpoints,
    *,
    pareto: bool,
    sensitive: bool,
    variants: bool,
) -> Analysis:
    """The parts that were asked for, and the nearest misses where the search found no plan.

    `checkpoints`: (scheme, id, model) of other checkpoints; with `variants` they are searched too, and join the front.
    """
    others = list(checkpoints()) if variants else []
    found = Analysis()
    if variants:
        searched = (Variant(scheme, name, search(spec, gpus, options, vllm_version)) for scheme, name, spec in others)
        found = replace(found, variants=tuple(searched))
    if pareto:
        points = list(front(model, gpus, options, vllm_version))
        for scheme, name, spec in others:
            points += labelled(front(spec, gpus, options, vllm_version), name, _rank(scheme))
        whole = unbeaten(points)
        found = replace(found, front=whole, recommended=recommendations(whole))
    if sensitive and result.plans:
        found = replace(found, sensitivity=sensitivity(model, gpus, result.plans[0], options, vllm_version))
    if not result.plans:
        misses = near_misses(model, gpus, options, vllm_version, checkpoints)
        found = replace(found, near_misses=misses)
    return found


def _rank(scheme: str) -> int:
    """How much accuracy a checkpoint gives up against the one asked for, in steps: 8 bits, then 4; none for more."""
    if scheme == "unquantized":
        return 0
    return _EIGHT_BITS if scheme in _EIGHT_BIT_SCHEMES else _FOUR_BITS


_EIGHT_BITS, _FOUR_BITS = 8, 16
_EIGHT_BIT_SCHEMES = ("fp8", "w8a8", "w8a16", "gptq-int8", "int8")
