"""Recorded logs and hand-made corners: what is read, how exactly, and what is refused."""

from __future__ import annotations

import pytest

from planner.errors import OutsideError, UnsupportedError
from planner.verify.patterns import patterns_for
from planner.verify.readings import find_failure, last_words, partial_reading, read_log, version_in

GIB = 1 << 30


def test_eager_cache_memory_is_exact(log_lines):
    """vLLM prints two decimals; its own advice gives the rest away. Measured: 129,588,510,720 and 129,557,053,440."""
    for name, exact in (("v2_eager.log", 129588510720), ("v1_eager.log", None)):
        figure = read_log(log_lines(name), "0.26.0").figures["available_kv_cache_bytes"]
        assert figure.rounding == 0.0
        assert exact is None or figure.value == exact


def test_compiled_log_keeps_its_rounding(log_lines):
    figures = read_log(log_lines("v1_compiled.log"), "0.26.0").figures
    assert figures["available_kv_cache_bytes"].rounding == pytest.approx(0.005 * GIB)
    assert figures["cuda_graph_actual_bytes"].value == pytest.approx(0.27 * GIB)
    assert figures["cuda_graph_estimate_bytes"].value == pytest.approx(0.26 * GIB)
    assert figures["num_gpu_blocks"].value == 492688


def test_two_ranks_give_the_scarcer(log_lines):
    figures = read_log(log_lines("tp2_eager.log"), "0.26.0").figures
    assert figures["available_kv_cache_bytes"].value == pytest.approx(123.117 * GIB, abs=0.006 * GIB)
    assert figures["tensor_parallel_size"].value == 2


@pytest.mark.parametrize(
    "needed", ["Model loading took", "Available KV cache memory", "GPU KV cache size", "Maximum concurrency"]
)
def test_missing_line_is_named(log_lines, needed):
    lines = [line for line in log_lines("v2_eager.log") if needed not in line]
    with pytest.raises(OutsideError, match="has no line for"):
        read_log(lines, "0.26.0")


def test_release_0_33_has_its_own_lines():
    """Source: vLLM 0.33.0 v1/core/kv_cache_utils.py:1147, v1/worker/gpu_worker.py:1045."""
    lines = [
        "(EngineCore pid=1) INFO [model_runner.py:429] Model loading took 3.79 GiB memory and 1.945683 seconds",
        "(EngineCore pid=1) INFO [gpu_worker.py:773] Available KV cache memory: 120.53 GiB",
        "(EngineCore pid=1) INFO [kv_cache_utils.py:1147] GPU KV cache size: 15,798,000 tokens, "
        "Maximum concurrency for 8,192 tokens per request: 1928.47x",
        "(EngineCore pid=1) INFO [gpu_worker.py:1066] Free memory on device (139.29/139.8 GiB) on startup. Desired GPU "
        "memory utilization is (0.9, 125.82 GiB). Actual usage is 4.21 GiB for consumed memory (weights + non-torch), "
        "1.08 GiB for peak activation, and 0.0 GiB for CUDAGraph memory. Replace gpu_memory_utilization config with",
    ]
    figures = read_log(lines, "0.33.0").figures
    assert figures["capacity_tokens"].value == 15798000
    assert figures["max_concurrency"].value == 1928.47
    assert figures["consumed_bytes"].value == pytest.approx(4.21 * GIB)
    assert "non_torch_bytes" not in figures
    with pytest.raises(OutsideError, match="capacity_tokens"):
        read_log([line.replace("tokens, Max", "tokens; max") for line in lines], "0.33.0")


def test_old_release_is_not_guessed():
    with pytest.raises(UnsupportedError):
        patterns_for("0.6.1")


def test_version_is_read_from_the_log(log_lines):
    assert version_in(log_lines("v2_eager.log")) == "0.26.0"
    assert version_in(["INFO [api_server.py] vLLM API server version 0.19.1"]) == "0.19.1"
    assert version_in(["hello"]) is None


def test_first_cause_beats_what_follows_from_it(log_lines):
    """A failed core ends in RuntimeError; the sentence before it is the reason."""
    for name, bottleneck in (
        ("kv_too_small.log", "kv_cache"),
        ("oom_while_loading.log", "weights"),
        ("startup_memory.log", "startup_memory"),
        ("oom_warming_up.log", "device_memory"),
        ("port_taken.log", "port"),
    ):
        after = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
        failure = find_failure([*log_lines(name), after])
        assert failure is not None
        assert failure.bottleneck == bottleneck


@pytest.mark.parametrize(
    ("line", "bottleneck"),
    [
        ("Free memory on device (3/4 GiB) on startup is less than desired GPU memory utilization", "startup_memory"),
        ("ValueError: No available memory for the cache blocks. Try increasing", "kv_cache"),
        ("ValueError: To serve at least one request with the models's max seq len (131072), (4.54 GiB KV", "kv_cache"),
        ("Failed to load model - not enough GPU memory. Try lowering --gpu-memory-utilization", "weights"),
        ("CUDA out of memory occurred when warming up sampler with 1024 dummy requests.", "device_memory"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 MiB.", "device_memory"),
        ("vllm: error: unrecognized arguments: --swap-space 4", "flag"),
        ("Total number of attention heads (28) must be divisible by tensor parallel size (8).", "heads_divisibility"),
        ("AssertionError: 151936 is not divisible by 7", "vocab_divisibility"),
        ("The input size is not aligned with the quantized weight shape. This can be", "quantization_alignment"),
    ],
)  # fmt: skip
def test_sentences_of_refusal(line, bottleneck):
    failure = find_failure(["INFO something", f"(EngineCore pid=7) ERROR 11-22 05:56:21 [core.py:1330] {line}"])
    assert failure is not None
    assert failure.bottleneck == bottleneck


def test_nothing_is_made_of_noise():
    noise = ["\x00\x01\x02", "\x1b[31mred\x1b[0m", "Available KV cache memory: soon"]
    assert find_failure(noise) is None
    assert partial_reading(noise, "0.26.0").figures == {}
    assert last_words([]) == "no output"
    assert last_words(["a", "ValueError: b", "c"]) == "b"
