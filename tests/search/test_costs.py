"""What a pair of batch sizes costs in a grid is what the estimate itself says of an engine of those sizes."""

from __future__ import annotations

import pytest

from planner import api
from planner.engine.args import EngineArgs
from planner.engine.resolve import resolve
from planner.memory.activation import activation_stages, peak_activation_bytes
from planner.memory.assess import Deployment, deploy
from planner.memory.device import Boot
from planner.memory.intervals import spreads
from planner.memory.runner_state import runner_buffers, sampler_buffers, total_bytes
from planner.memory.runtime import retained_bytes, runtime_terms, thin
from planner.search.costs import MANY_BLOCKS, size_costs
from planner.units import MIB

MODELS = {
    "small": ("Qwen/Qwen2.5-0.5B-Instruct", "l4:1", {"enforce_eager": True}),
    "dense": ("Qwen/Qwen2.5-7B-Instruct", "l20:2", {"tensor_parallel_size": 2}),
    "stages": ("google/gemma-2-9b-it", "a10:2", {"pipeline_parallel_size": 2}),
    "experts": ("Qwen/Qwen3-30B-A3B-FP8", "h200:1", {}),
    "sees": ("Qwen/Qwen2.5-VL-7B-Instruct", "l20:1", {"limit_mm_per_prompt": '{"image": 1, "video": 0}'}),
    "eager": ("Qwen/Qwen2.5-1.5B-Instruct", "t4:1", {"enforce_eager": True, "dtype": "float16"}),
}
PAIRS = [(8, 2048), (8, 8192), (256, 2048), (256, 8192)]


def deployed(name: str, seqs: int, tokens: int, version: str = api.DEFAULT_VERSION) -> Deployment:
    model, gpus, flags = MODELS[name]
    request = api.Request(model=model, gpus=gpus, offline=True)
    spec, pool = api.load_spec(request), api.load_gpus(request)
    args = EngineArgs(max_model_len=8192, max_num_seqs=seqs, max_num_batched_tokens=tokens, **flags)
    return deploy(spec, pool, resolve(spec, pool.gpu, args, version))


@pytest.mark.parametrize("name", [name for name in MODELS if name != "small"])
def test_a_pair_costs_what_the_engine_takes(name):
    """Each term of the whole model's ledger, in bytes asked for. The estimate has them in blocks of the allocator, a
    little larger; what that retains is of the model with two layers of each kind. Intervals are those of the layout,
    and so are the V1 runner's sampled rows."""
    other = deployed(name, 64, 4096)
    args = EngineArgs(max_model_len=8192, **MODELS[name][2])
    safe, expected = (size_costs(other, args, PAIRS, None, confidence) for confidence in ("safe", "expected"))
    assert list(zip(safe.seqs.tolist(), safe.tokens.tolist(), strict=True)) == PAIRS
    for place, (seqs, tokens) in enumerate(PAIRS):
        one = deployed(name, seqs, tokens)
        model, config = one.model, one.config
        for index, share in enumerate(one.shares):
            boot = Boot(model, share, config)
            term = runtime_terms(boot)
            stage, wide = expected.stages[index], safe.stages[index]
            peak = peak_activation_bytes(activation_stages(model, share, other.config), tokens, seqs)
            state = total_bytes(runner_buffers(model, config), tokens, seqs)
            place_of = {"first_stage": index == 0, "last_stage": index == len(one.shares) - 1}
            state += total_bytes(sampler_buffers(model, config, **place_of), tokens, seqs)
            assert 0 <= term.peak_activation_bytes - peak < 96 * MIB
            assert 0 <= term.runner_state_bytes - state < 4 * MIB
            assert int(stage.weights[place]) == term.weights_memory_bytes
            assert int(stage.context[place]) == term.cuda_context_bytes
            assert int(stage.non_kv[place]) == term.non_kv_bytes - term.peak_activation_bytes + peak
            resident = term.cuda_context_bytes + term.non_torch_bytes + term.weights_memory_bytes + state
            assert int(stage.profile_peak[place]) == resident + peak
            assert stage.is_complete is (place > 0)
            assert int(stage.encoder[place]) == term.encoder_runtime_peak_bytes
            thinned = Boot(*thin(model, share), config)
            retained = retained_bytes(thinned, one.pool, one.pool.stages[index], MANY_BLOCKS)
            assert int(stage.beside_cache[place]) == resident + term.cuda_graph_actual_bytes + retained
            assert stage.is_complete
            spread = spreads(
                model, share, other.config, term.weights_memory_bytes, peak, term.cuda_graph_actual_bytes,
                term.cuda_context_bytes,
            )  # fmt: skip
            assert int(wide.non_kv[place] - stage.non_kv[place]) == spread.engine.up
            assert int(wide.profile_peak[place] - stage.profile_peak[place]) == spread.profile.up
            assert int(wide.beside_cache[place] - stage.beside_cache[place]) == spread.held


def test_an_old_engine_counts_context_and_state_too():
    """To the blocks of its allocator."""
    one = deployed("small", 8, 2048, "0.8.5")
    term = runtime_terms(Boot(one.model, one.shares[0], one.config))
    (stage,) = size_costs(one, EngineArgs(max_model_len=8192), [(8, 2048)], None, "expected").stages
    assert int(stage.non_kv[0]) == pytest.approx(term.non_kv_bytes, abs=4 * MIB)
    assert term.also_counted_bytes > term.cuda_context_bytes > 64 * MIB


def test_one_pair_of_a_small_engine():
    one = deployed("small", 8, 2048)
    (share,) = one.shares
    boot = Boot(one.model, share, one.config)
    term = runtime_terms(boot)
    (stage,) = size_costs(one, EngineArgs(max_model_len=8192), [(8, 2048)], None, "expected").stages
    peak = peak_activation_bytes(activation_stages(one.model, share, one.config), 2048, 8)
    assert int(stage.weights[0]) == term.weights_memory_bytes
    assert int(stage.context[0]) == term.cuda_context_bytes
    assert int(stage.encoder[0]) == 0
    state = term.profile_peak_bytes - term.peak_activation_bytes + peak - int(stage.profile_peak[0])
    assert 0 <= state < 2 * MIB, "the runner's buffers in blocks of the allocator"
    assert int(stage.non_kv[0]) == term.non_kv_bytes - term.peak_activation_bytes + peak
    retained = retained_bytes(Boot(*thin(one.model, share), one.config), one.pool, one.pool.stages[0], MANY_BLOCKS)
    assert int(stage.beside_cache[0]) == term.device_bytes_beside_cache - state + retained


def test_sizes_between_are_interpolated():
    """What is retained at sizes between replayed ones lies between what those retain."""
    other = deployed("dense", 64, 4096)
    args = EngineArgs(max_model_len=8192, tensor_parallel_size=2)
    pairs = [(seqs, 4096) for seqs in (1, 2, 8, 32, 64, 128, 256, 512)]
    whole = size_costs(other, args, pairs, None, "expected").stages[0]
    alone = [size_costs(other, args, [pair], None, "expected").stages[0] for pair in pairs]
    found = [int(whole.beside_cache[place]) for place in range(len(pairs))]
    exact = [int(one.beside_cache[0]) for one in alone]
    for replayed in (0, 2, 5, 7):
        assert found[replayed] == exact[replayed]
    assert found == sorted(found)
    assert [int(size) for size in whole.non_kv] == [int(one.non_kv[0]) for one in alone]
