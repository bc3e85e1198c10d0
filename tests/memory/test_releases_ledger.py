"""The same model under the ledgers of several releases, against figures that others published."""

import pytest

from planner.api import Request, estimate
from planner.engine.args import EngineArgs
from planner.memory.relief import part_peaks, reliefs
from planner.units import GIB

# Boots on H100 80GB at utilization 0.95, max_model_len 8192, logged to 0.01 GiB (verification/published_figures.csv):
# version, model, tensor parallel size, weights, peak activation, non-torch, available KV cache.
PUBLISHED = [
    ("0.16.0", "Qwen/Qwen3-14B", 1, 27.52, 5.64, 0.13, 41.94),
    ("0.18.0", "Qwen/Qwen3-14B", 1, 27.52, 2.23, 0.25, 45.23),
    ("0.19.0", "meta-llama/Llama-3.1-8B-Instruct", 1, 14.99, 1.89, 0.25, 58.11),
    ("0.19.0", "meta-llama/Llama-3.1-8B-Instruct", 2, 7.51, 1.89, 2.07, 63.76),
    ("0.19.0", "mistralai/Mixtral-8x7B-Instruct-v0.1", 2, 43.51, 1.21, 2.07, 28.44),
    ("0.19.0", "google/gemma-2-27b-it", 1, 50.72, 3.66, 0.26, 20.59),
]


def ask(model, gpus, version, confidence="expected", **flags):
    return estimate(
        Request(
            model=model, gpus=gpus, vllm_version=version, offline=True, confidence=confidence, args=EngineArgs(**flags)
        )
    )


@pytest.mark.parametrize(("version", "model", "tp", "weights", "peak", "non_torch", "cache"), PUBLISHED)
def test_ledger_of_older_releases(version, model, tp, weights, peak, non_torch, cache):
    found = ask(
        model, f"h100:{tp}", version, tensor_parallel_size=tp, gpu_memory_utilization=0.95, max_model_len=8192
    ).estimate
    per_gpu = found.per_gpu
    assert per_gpu.weights_memory_bytes / GIB == pytest.approx(weights, abs=0.05)
    assert per_gpu.peak_activation_bytes / GIB == pytest.approx(peak, abs=0.02)
    assert per_gpu.non_torch_bytes / GIB == pytest.approx(non_torch, abs=0.04)
    assert per_gpu.available_kv_cache_bytes / GIB == pytest.approx(cache, abs=0.06)
    assert "not verified on hardware" in found.warnings[0]


def test_a_release_that_counts_what_was_consumed():
    """Llama-3.1-8B on an A100 with 0.31.0: 15.26 GiB consumed, 1.44 GiB of peak and graphs, 56.21 GiB for the cache."""
    per_gpu = ask("meta-llama/Llama-3.1-8B-Instruct", "a100-80g:1", "0.31.0").estimate.per_gpu
    consumed = per_gpu.weights_memory_bytes + per_gpu.non_torch_bytes + per_gpu.also_counted_bytes
    assert consumed / GIB == pytest.approx(15.26, abs=0.03)
    assert (per_gpu.peak_activation_bytes + per_gpu.cuda_graph_estimate_bytes) / GIB == pytest.approx(1.44, abs=0.05)
    assert per_gpu.available_kv_cache_bytes / GIB == pytest.approx(56.21, abs=0.06)


@pytest.mark.parametrize("version", ["0.8.3", "0.10.2", "0.19.0", "0.22.1", "0.26.0", "0.29.0", "0.33.0"])
def test_the_engines_lines_add_up(version):
    per_gpu = ask("Qwen/Qwen3-8B", "h100:1", version, max_model_len=8192).estimate.per_gpu
    taken = (
        per_gpu.weights_memory_bytes + per_gpu.peak_activation_bytes + per_gpu.non_torch_bytes
        + per_gpu.cuda_graph_estimate_bytes + per_gpu.also_counted_bytes
    )  # fmt: skip
    assert per_gpu.requested_memory_bytes - taken == per_gpu.available_kv_cache_bytes


def test_environment_switches_the_graph_estimate():
    def graphs(version, *env):
        flags = {"env": env, "max_model_len": 8192}
        return ask("mistralai/Mixtral-8x7B-Instruct-v0.1", "h200:1", version, **flags).estimate.per_gpu

    variable = "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS"
    assert graphs("0.19.0").cuda_graph_estimate_bytes == 0
    asked = graphs("0.19.0", (variable, "1")).cuda_graph_estimate_bytes
    assert asked == graphs("0.26.0").cuda_graph_estimate_bytes > 0
    assert graphs("0.26.0", (variable, "0")).cuda_graph_estimate_bytes == 0


def test_out_of_memory_after_the_upgrade_to_0_8_3():
    """Qwen2.5-VL on a 24 GB card: no length or utilization alone helps, fewer pixels and sequences do."""
    model, card = "Qwen/Qwen2.5-VL-7B-Instruct", "4090:1"
    plain = ask(model, card, "0.8.3")
    assert not plain.estimate.starts
    assert not ask(model, card, "0.8.3", max_model_len=8192).estimate.starts
    assert not ask(model, card, "0.8.3", gpu_memory_utilization=0.95).estimate.starts
    pixels = '{"max_pixels": 1003520}'
    cured = ask(
        model, card, "0.8.3", confidence="safe", max_model_len=8192, max_num_seqs=256, mm_processor_kwargs=pixels
    )
    assert cured.estimate.starts

    share, spec, config = plain.deployment.shares[0], plain.deployment.model, plain.deployment.config
    parts = part_peaks(spec, share, config)
    assert parts["vision encoder"] > 12 * GIB
    assert parts["sampler"] > 1024 * 152_064 * 38
    assert parts["language model"] < 3 * GIB
    freed = {item.flags: item.freed_bytes for item in reliefs(spec, share, config)}
    assert max(freed.values()) == freed[f"--max-num-seqs 256 --mm-processor-kwargs '{pixels}'"] > 11 * GIB


def test_verdict_by_the_safe_end():
    """Where the cache holds the length by expected values only, the safe verdict is a refusal that says so."""
    flags = {"max_num_seqs": 64, "gpu_memory_utilization": 0.9, "enforce_eager": True}
    found = ask("Qwen/Qwen3-8B", "4090:1", "0.26.0", **flags, max_model_len=8192).estimate
    low, high = found.per_gpu.available_kv_cache_bytes_interval
    assert low < found.per_gpu.available_kv_cache_bytes < high
    between = (low + found.per_gpu.available_kv_cache_bytes) // 2 // found.kv_cache.bytes_per_token
    flags["max_model_len"] = between // 16 * 16
    assert ask("Qwen/Qwen3-8B", "4090:1", "0.26.0", **flags).estimate.starts
    safe = ask("Qwen/Qwen3-8B", "4090:1", "0.26.0", confidence="safe", **flags).estimate
    assert safe.rejection.bottleneck == "kv_cache"
    assert safe.rejection.have_bytes == low


def test_intervals_are_wider_where_nothing_was_measured():
    def width(card, version):
        per_gpu = ask("Qwen/Qwen3-8B", card, version, max_model_len=8192).estimate.per_gpu
        low, high = per_gpu.available_kv_cache_bytes_interval
        assert low <= per_gpu.available_kv_cache_bytes <= high
        used = per_gpu.used_after_startup_bytes_interval
        assert used[0] < per_gpu.used_after_startup_bytes < used[1]
        return high - low

    assert width("h200:1", "0.26.0") < width("l20:1", "0.26.0")
    assert width("h200:1", "0.26.0") < width("h200:1", "0.33.0")
