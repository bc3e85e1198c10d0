"""The front of a search against every candidate of small random grids, each put through the estimate itself."""

from __future__ import annotations

import itertools
import random

import pytest

from planner.engine.args import EngineArgs
from planner.hardware.spec import GpuPool
from planner.memory.assess import assess
from planner.memory.kv_capacity import whole_requests
from planner.model.build import build_model
from planner.model.spec import ModelFiles, ModelSpec
from planner.search import grid
from planner.search.pareto import Merits, Point, front, front_lengths, point_of, speed_of, unbeaten
from planner.search.plan import Plan
from planner.search.recommend import recommendations
from planner.search.space import SearchOptions, Workload
from planner.sources.gpu_pool import parse_gpus

VERSION = "0.26.0"


def small_model(chance: random.Random) -> ModelSpec:
    heads, kv_heads = chance.choice([(8, 4), (8, 2), (4, 1), (6, 2)])
    config = {
        "architectures": [chance.choice(["LlamaForCausalLM", "Qwen2ForCausalLM"])], "model_type": "llama",
        "hidden_size": heads * 64, "intermediate_size": heads * 128, "num_attention_heads": heads,
        "num_hidden_layers": chance.choice([2, 3, 4]), "num_key_value_heads": kv_heads, "vocab_size": 32000,
        "max_position_embeddings": chance.choice([16384, 65536]), "torch_dtype": "bfloat16", "hidden_act": "silu",
    }  # fmt: skip
    return build_model(ModelFiles(name="small", config=config))


def small_grid(monkeypatch: pytest.MonkeyPatch, chance: random.Random) -> None:
    monkeypatch.setattr(grid, "SEQUENCES", tuple(sorted(chance.sample([1, 4, 8, 32, 64, 256], 2))))
    monkeypatch.setattr(grid, "BATCHED_TOKENS", (chance.choice([2048, 4096]),))
    monkeypatch.setattr(grid, "UTILIZATIONS", tuple(sorted(chance.sample([0.5, 0.6, 0.7, 0.8, 0.85, 0.9], 2))))
    monkeypatch.setattr(grid, "LENGTH_STEPS", 3)


def layouts(gpus: GpuPool, layers: int) -> list[tuple[int, int, int]]:
    if gpus.count == 1:
        return [(1, 1, 1)]
    return [(1, 1, 1), (1, 1, 2), (1, 2, 1), (2, 1, 1)]


def every_point(model: ModelSpec, gpus: GpuPool, options: SearchOptions) -> list[Point]:
    """Each candidate through `assess`, kept where it starts, holds the requests and leaves the margin free."""
    ladder = grid.ladder(512, model.derived_max_model_len, grid.LENGTH_STEPS, 256)
    import numpy as np

    lengths = front_lengths(np.array(ladder)).tolist()
    found = []
    for (tp, pp, dp), seqs, tokens, utilization, length in itertools.product(
        layouts(gpus, model.text.num_hidden_layers), grid.SEQUENCES, grid.BATCHED_TOKENS, grid.UTILIZATIONS, lengths
    ):
        args = options.args.model_copy(
            update={
                "tensor_parallel_size": tp, "pipeline_parallel_size": pp, "data_parallel_size": dp,
                "max_num_seqs": seqs, "max_num_batched_tokens": tokens, "gpu_memory_utilization": utilization,
                "max_model_len": length,
            }
        )  # fmt: skip
        one = assess(model, gpus, args, VERSION, confidence="expected")
        per_gpu, cache = one.estimate.per_gpu, one.estimate.kv_cache
        if not one.estimate.starts or per_gpu is None or cache is None or one.deployment is None:
            continue
        need = per_gpu.used_after_startup_bytes + per_gpu.vision_encoder_runtime_peak_bytes
        held = int(whole_requests(one.deployment.pool, cache.num_gpu_blocks, length, tokens))
        wanted = -(-(options.workload.concurrency or 1) // dp)
        if need * (1 + options.safety_margin) > per_gpu.total_memory_bytes or held < wanted:
            continue
        if seqs < min(wanted, max(grid.SEQUENCES)):
            continue
        plan = Plan(args, one, held * dp, per_gpu.total_memory_bytes - need)
        found.append(point_of(plan, speed_of(one.deployment, options), 0))
    return found


def beats(one: Merits, other: Merits) -> bool:
    ours, theirs = one.steps(), other.steps()
    if all(mine >= yours for mine, yours in zip(ours, theirs, strict=True)):
        return ours != theirs or one.exact() > other.exact()
    return False


@pytest.mark.parametrize("seed", range(50))
def test_the_front_is_that_of_every_candidate(monkeypatch, seed):
    chance = random.Random(seed)
    small_grid(monkeypatch, chance)
    model, gpus = small_model(chance), parse_gpus(f"l4:{chance.choice([1, 1, 2])}@{chance.randint(2600, 6000)}MiB")
    options = SearchOptions(
        args=EngineArgs(enforce_eager=chance.random() < 0.7), given=("enforce_eager", "kv_cache_dtype"),
        confidence="expected",
        workload=Workload(concurrency=chance.choice([None, 1, 5])), safety_margin=chance.choice([0.0, 0.05, 0.1]),
    )  # fmt: skip
    every = [point.merits for point in every_point(model, gpus, options)]
    expected = {one.exact() for one in every if not any(beats(other, one) for other in every)}
    assert {point.merits.exact() for point in front(model, gpus, options, VERSION)} == expected


def test_small_grids_are_not_all_empty(monkeypatch):
    sizes = []
    for seed in range(12):
        chance = random.Random(seed)
        small_grid(monkeypatch, chance)
        model, gpus = small_model(chance), parse_gpus(f"l4:{chance.choice([1, 1, 2])}@{chance.randint(2600, 6000)}MiB")
        options = SearchOptions(args=EngineArgs(enforce_eager=True), given=("enforce_eager", "kv_cache_dtype"))
        sizes.append(len(front(model, gpus, options, VERSION)))
    assert sum(size > 1 for size in sizes) >= 6


def test_recommendations_are_the_best_of_the_front():
    chance = random.Random(1)
    points = front(small_model(chance), parse_gpus("l4:2@4GiB"), SearchOptions(), VERSION)
    assert unbeaten(points) == points
    plain = [point for point in points if point.accuracy == 0]
    best = {item.objective: item for item in recommendations(points)}
    assert best["context"].best.context == max(point.context for point in plain)
    assert best["concurrency"].best.requests == max(point.requests for point in plain)
    assert best["headroom"].best.plan.headroom_bytes == max(point.plan.headroom_bytes for point in plain)
    assert best["fewest cards"].best.plan.gpus == 1
    for item in best.values():
        assert item.loses is None or item.loses >= 0
    assert any(point.accuracy for point in points)
