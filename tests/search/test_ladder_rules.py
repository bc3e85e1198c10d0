"""A ladder's arithmetic on a small model, where each figure can be said: room, utilization, bytes of a rung."""

from __future__ import annotations

from typing import Any

import pytest

from planner.engine.args import EngineArgs
from planner.memory.assess import Assessment
from planner.memory.intervals import CERTAIN
from planner.memory.kv_capacity import blocks_for_request
from planner.model.build import build_model
from planner.model.spec import ModelFiles, ModelSpec
from planner.search.ladder import Ladder, climb
from planner.search.variants import Variants
from planner.sources.gpu_pool import parse_gpus
from planner.units import GIB

VERSION = "0.26.0"


def dense(layers: int = 24, longest: int = 1 << 17) -> ModelSpec:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 1024, "intermediate_size": 4096,
        "num_attention_heads": 8, "num_hidden_layers": layers, "num_key_value_heads": 4, "vocab_size": 32000,
        "max_position_embeddings": longest, "torch_dtype": "bfloat16", "hidden_act": "silu",
    }  # fmt: skip
    return build_model(ModelFiles(name="dense", config=config))


def ladder(gpus: str, concurrency: int = 1, **flags: Any) -> Ladder:
    flags = {"enforce_eager": True, "max_num_seqs": 4, "max_num_batched_tokens": 2048, **flags}
    return climb(
        dense(), parse_gpus(gpus), EngineArgs(**flags), VERSION, given=flags, concurrency=concurrency,
        confidence="expected",
    )  # fmt: skip


def assessed(gpus: str, args: EngineArgs) -> Assessment:
    return Variants(dense(), parse_gpus(gpus), VERSION, confidence="expected").assess(args)


def starts(gpus: str, args: EngineArgs, concurrency: int) -> bool:
    found = assessed(gpus, args)
    if not found.estimate.starts or found.deployment is None or found.config is None:
        return False
    assert found.estimate.kv_cache is not None
    need = blocks_for_request(found.deployment.pool, found.config.max_model_len, found.config.max_num_batched_tokens)
    blocks = found.estimate.kv_cache.num_gpu_blocks
    return concurrency == 1 or blocks > need * concurrency


@pytest.mark.parametrize(("stages", "concurrency"), [(1, 1), (1, 2), (1, 5), (2, 1), (2, 5)])
@pytest.mark.parametrize("above", [False, True])
def test_only_the_utilization_moves_where_that_is_enough(above, stages, concurrency):
    """To the nearest one that is: a hundredth less far would not do. The cache holds the requests and one block, on
    each of two stages, of which the last has the output head."""
    gib, utilization = (6, 0.2) if stages == 1 else (12, 0.05)
    gpus, utilization = f"l4:{stages}@{gib}GiB", 0.99 if above else utilization
    flags = {"gpu_memory_utilization": utilization, "max_model_len": 4096, "pipeline_parallel_size": stages}
    found = ladder(gpus, concurrency, **flags)
    (step,) = found.steps
    assert [name for name, _ in step.change.fields] == ["gpu_memory_utilization"]
    assert (found.lacking_bytes, step.lacking_bytes) == (0, 0)
    chosen = found.args.gpu_memory_utilization
    assert chosen is not None
    assert starts(gpus, found.args, concurrency)
    nearer = chosen - 0.01 if utilization < chosen else chosen + 0.01
    assert not starts(gpus, found.args.model_copy(update={"gpu_memory_utilization": nearer}), concurrency)
    assert chosen == pytest.approx(round(chosen, 2))
    assert step.freed_bytes == pytest.approx(abs(chosen - utilization) * gib * GIB, abs=2)
    assert step.change.costs.startswith("the engine takes more" if chosen > utilization else "a smaller cache")


def test_a_launch_lacks_what_no_utilization_gives():
    """So many bytes more on the card and a utilization alone would do; with less it would not."""
    short = ladder("l4:1@3GiB", max_model_len=32768)
    lacking = short.lacking_bytes
    assert lacking is not None
    assert lacking > 0
    assert short.steps
    mib = -(-lacking // (1 << 20))
    for more, enough in ((mib + 8, True), (mib - 40, False)):
        found = ladder(f"l4:1@{3072 + more}MiB", max_model_len=32768)
        changed = {name for step in found.steps for name, _ in step.change.fields}
        assert (changed <= {"gpu_memory_utilization"}) is enough, more


def test_requests_need_a_cache_each():
    """What is lacking grows by a request's cache with each of them, and by a block beside the first."""
    one, two, three = (ladder("l4:1@4GiB", count, max_model_len=16384).lacking_bytes for count in (8, 9, 10))
    assert None not in (one, two, three)
    each = 24 * 2 * 4 * 128 * 2 * 16384
    assert two - one == three - two == each
    single = ladder("l4:1@4GiB", 1, max_model_len=16384 * 8).lacking_bytes
    assert single is not None
    assert one - single == 24 * 2 * 4 * 128 * 2 * 16


def test_the_longest_length_that_fits_is_kept():
    """In whole 256s: longer ones would not start at any utilization, but for what the allocator retains elsewhere."""
    found = ladder("l4:1@4GiB", 2)
    length = found.args.max_model_len
    assert length is not None
    assert length % 256 == 0
    assert starts("l4:1@4GiB", found.args, 2)
    for utilization in range(60, 100):
        update = {"max_model_len": length + 4 * 256, "gpu_memory_utilization": utilization / 100}
        assert not starts("l4:1@4GiB", found.args.model_copy(update=update), 2)


def test_a_cache_size_fixed_by_hand_is_taken_back_first():
    """No utilization makes up for it; the bytes are those that the cache gains."""
    found = ladder("l4:1@6GiB", max_model_len=8192, num_gpu_blocks_override=10)
    first = found.steps[0]
    assert first.change.fields == (("num_gpu_blocks_override", None),)
    free = assessed("l4:1@6GiB", found.args.model_copy(update={"gpu_memory_utilization": None})).estimate.per_gpu
    before = found.before.estimate.per_gpu
    assert before is not None
    assert free is not None
    assert first.freed_bytes == free.kv_cache_allocated_bytes - before.kv_cache_allocated_bytes


def test_more_cards_are_the_last_resort():
    """Those at hand before others; the pool is spelt with the new count."""
    at_hand = climb(
        dense(layers=200), parse_gpus("l4:4@6GiB"), EngineArgs(max_model_len=2048), VERSION, given=("max_model_len",)
    )
    assert at_hand.after is not None
    assert at_hand.args.tensor_parallel_size == 2
    assert at_hand.gpus.spelling == "l4:4@6GiB"
    bought = climb(
        dense(layers=200), parse_gpus("l4:1@6GiB"), EngineArgs(max_model_len=2048), VERSION, given=("max_model_len",)
    )
    assert bought.after is not None
    assert bought.gpus.count == bought.args.tensor_parallel_size == 2
    assert bought.gpus.spelling == "l4:2"
    last = bought.steps[-1] if bought.steps[-1].change.cards else bought.steps[-2]
    assert last.change.cards == 2


@pytest.mark.parametrize("confidence", ["safe", "expected"])
def test_what_a_launch_lacks_is_that_of_the_tighter_ledger(confidence):
    """The engine's: context and all it counts, at the bad ends where that is asked. The device's: all it holds, what
    PyTorch retains given back before anything else lacks."""
    flags: dict[str, Any] = {"enforce_eager": True, "max_num_seqs": 4, "max_num_batched_tokens": 2048}
    for gpus, length in (("l4:1@3GiB", 65536), ("t4:1@3GiB", 65536), ("h200:1@3GiB", 32768), ("l4:1@1200MiB", 16)):
        args = EngineArgs(**flags, max_model_len=length)
        found = climb(dense(), parse_gpus(gpus), args, VERSION, given=flags, confidence=confidence)
        (term,) = found.before.terms
        assert found.before.estimate.per_gpu is not None
        retained = found.before.estimate.per_gpu.allocator_retained_bytes
        spread = term.spreads if confidence == "safe" else CERTAIN
        cache = 24 * 2 * 4 * 128 * 2 * length
        engine = term.cuda_context_bytes + spread.context.up + term.non_kv_bytes + spread.engine.up + cache
        device = term.device_bytes_beside_cache + max(spread.device.up, retained) + spread.engine.up + cache
        profile = term.profile_peak_bytes + spread.profile.up
        assert found.lacking_bytes == max(engine, device, profile) - parse_gpus(gpus).gpu.total_memory_bytes
