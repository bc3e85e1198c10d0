"""What the monitor sees: metrics, servers that misbehave, cards that fall off, and the warnings it makes of it."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from planner.errors import InputError, OutsideError
from planner.monitor.cards import Cards, parse_cards
from planner.monitor.metrics import read_metrics
from planner.monitor.planned import Planned
from planner.monitor.sample import CardUse, ServerLook
from planner.monitor.scrape import Server, metrics_url
from planner.monitor.watch import Watch

GIB = 1 << 30


def test_recorded_metrics_of_three_releases(recorded: Callable[[str], str]) -> None:
    look = read_metrics(recorded("v1_qwen3_0.6b.txt"))
    assert (look.model, look.prompt_tokens, look.generation_tokens) == ("Qwen/Qwen3-0.6B", 80.0, 500.0)
    assert (look.running, look.waiting, look.kv_cache_usage, look.requests_finished) == (0.0, 0.0, 0.0, 10.0)
    assert (look.preemptions, look.mm_cache_hits, look.started_at) == (None, None, None)
    look = read_metrics(recorded("v1_glm45.txt"))
    assert (look.kv_cache_usage, look.prefix_cache_queries) == (9.75010481363281e-06, 32.0)
    look = read_metrics(recorded("v0_qwen25_coder.txt"))
    assert (look.kv_cache_usage, look.started_at) == (0.0, 1.74262400557e09)


def test_the_whole_answer_of_a_release_under_load(recorded: Callable[[str], str]) -> None:
    look = read_metrics(recorded("v0_26_0_qwen25_vl_7b.txt"))
    assert (look.model, look.running, look.waiting, look.preemptions) == ("qwen2.5-vl-7b-dummy", 64.0, 32.0, 0.0)
    assert (look.prompt_tokens, look.generation_tokens, look.kv_cache_usage) == (450182.0, 44646.0, 0.5327759832794984)
    assert (look.mm_cache_queries, look.mm_cache_hits, look.kv_cache_blocks) == (148.0, 0.0, 21053)
    assert None not in look.model_dump(exclude={"problem"}).values()


def test_engines_are_summed_and_the_fullest_cache_counts() -> None:
    look = read_metrics(
        'vllm:num_requests_running{engine="0"} 3\nvllm:num_requests_running{engine="1"} 5\n'
        'vllm:kv_cache_usage_perc{engine="0"} 0.2\nvllm:kv_cache_usage_perc{engine="1"} 0.4\n'
        'vllm:num_requests_waiting{engine="0"} NaN\nvllm:cache_config_info{num_gpu_blocks="123"} 1\n'
    )
    assert (look.running, look.kv_cache_usage, look.waiting, look.kv_cache_blocks) == (8, 0.4, None, 123)


@pytest.mark.parametrize(
    "text", ["", "<html>hello</html>", "{}", "vllm:x{", "\x00\x01", "python_info 1.0\n", "a" * 100_000]
)
def test_garbage_is_told(text: str) -> None:
    with pytest.raises(OutsideError):
        read_metrics(text)


def test_a_server_that_hangs_drips_fails_and_comes_back(
    stand_in: Any, server: Server, recorded: Callable[[str], str]
) -> None:
    assert server.look().problem is None
    stand_in.pause = 30
    began = time.monotonic()
    assert "no answer" in (server.look().problem or "")
    assert time.monotonic() - began < 2
    stand_in.pause, stand_in.drip = 0.0, 0.05
    assert "did not finish" in (server.look().problem or "")
    stand_in.drip, stand_in.status = 0.0, 503
    assert "answers 503" in (server.look().problem or "")
    stand_in.status, stand_in.body = 200, b"\xff\xfe<html>"
    assert server.look().problem is not None
    stand_in.body = recorded("v1_glm45.txt").encode()
    assert server.look().problem is None


def test_no_server() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{free.getsockname()[1]}"
    asked = Server(url, timeout_s=0.4)
    assert "no answer" in (asked.look().problem or "")
    asked.close()


@pytest.mark.parametrize("url", ["ftp://h", "http://", "http://h:99999", "http://h:x"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(InputError, match="--url"):
        metrics_url(url)


def test_addresses() -> None:
    assert metrics_url("localhost:8000") == "http://localhost:8000/metrics"
    assert metrics_url("http://h:1/v1/") == "http://h:1/metrics"
    assert metrics_url("https://h/metrics") == "https://h/metrics"


def look(**values: float | str) -> ServerLook:
    return ServerLook(**{"prompt_tokens": 0.0, "generation_tokens": 0.0, **values})  # type: ignore[arg-type]


def test_rates_and_a_restart() -> None:
    watch = Watch()
    assert watch.sample(0.0, look(), ()).generation_tokens_per_s is None
    sample = watch.sample(2.0, look(generation_tokens=100.0, prompt_tokens=10.0), ())
    assert (sample.generation_tokens_per_s, sample.prompt_tokens_per_s) == (50.0, 5.0)
    watch.sample(4.0, ServerLook(problem="down"), ())
    sample = watch.sample(6.0, look(generation_tokens=300.0), ())
    assert sample.restarted
    sample = watch.sample(8.0, look(generation_tokens=310.0), ())
    assert (sample.restarted, sample.generation_tokens_per_s) == (False, 5.0)
    assert not Watch().sample(0.0, look(started_at=1.0), ()).restarted
    watch.sample(10.0, look(generation_tokens=320.0, started_at=1.0), ())
    assert watch.sample(12.0, look(generation_tokens=330.0, started_at=2.0), ()).restarted


def test_warnings_come_before_trouble(planned: Planned) -> None:
    watch = Watch(planned)
    rising = [watch.sample(float(n), look(waiting=float(n)), ()).warnings for n in range(5)]
    assert rising[2] == ()
    assert "queue grows" in rising[4][0]
    full = watch.sample(9.0, look(waiting=2.0, kv_cache_usage=0.95), ())
    assert "95% full" in full.warnings[0]
    watch.sample(10.0, look(preemptions=1.0), ())
    assert "4 requests were preempted" in watch.sample(11.0, look(preemptions=5.0), ()).warnings[0]
    above = watch.sample(12.0, look(), (CardUse(index=1, used_bytes=23 * GIB, total_bytes=24 * GIB),))
    assert above.warnings == ("GPU 1: 23.00 GiB in use, the plan has 22.00 GiB at most",)
    near = Watch().sample(0.0, look(), (CardUse(index=0, used_bytes=24 * GIB - 1, total_bytes=24 * GIB),))
    assert "free" in near.warnings[0]
    assert (
        Watch(planned).sample(0.0, look(), (CardUse(index=0, used_bytes=21 * GIB, total_bytes=24 * GIB),)).warnings
        == ()
    )


def test_a_card_that_falls_off_is_told_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class NvmlError(Exception):
        pass

    lost = {1}

    def memory(index: int) -> SimpleNamespace:
        if index in lost:
            raise NvmlError("GPU is lost")
        return SimpleNamespace(used=5, total=10)

    def unsupported(index: int) -> None:
        raise NvmlError("Not Supported")

    module = ModuleType("pynvml")
    for name, value in {
        "NVMLError": NvmlError, "nvmlInit": lambda: None, "nvmlShutdown": lambda: None, "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index, "nvmlDeviceGetMemoryInfo": memory,
        "nvmlDeviceGetUtilizationRates": unsupported,
        "nvmlDeviceGetComputeRunningProcesses": lambda index: [SimpleNamespace(pid=7, usedGpuMemory=None)],
    }.items():  # fmt: skip
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    cards = Cards()
    first, second = cards.look()
    assert (first.used_bytes, first.processes, first.utilization_percent) == (5, ((7, None),), None)
    assert second.problem == "GPU is lost"
    lost.clear()
    assert cards.look()[1].used_bytes == 5
    cards.close()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert Cards().look() == ()


def test_only_the_cards_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert parse_cards(None) is None
    assert parse_cards("2, 0") == (0, 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert parse_cards(None) == (1, 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8f2c")
    assert parse_cards(None) is None
    with pytest.raises(InputError, match="--cards"):
        parse_cards("all")
    module = ModuleType("pynvml")
    for name, value in {
        "NVMLError": RuntimeError, "nvmlInit": lambda: None, "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 4, "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetMemoryInfo": lambda index: SimpleNamespace(used=index, total=10),
        "nvmlDeviceGetUtilizationRates": lambda index: SimpleNamespace(gpu=1),
        "nvmlDeviceGetComputeRunningProcesses": lambda index: [],
    }.items():  # fmt: skip
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    assert [(card.index, card.used_bytes) for card in Cards((1, 3)).look()] == [(1, 1), (3, 3)]


def test_what_the_driver_keeps_is_not_held_against_a_plan(planned: Planned) -> None:
    """An idle H200 as NVML shows it: 615 MiB in use, which is its total less CUDA's."""
    changed = planned.model_copy(update={"total_bytes": 150_109_880_320, "peak_bytes": GIB})
    idle = CardUse(index=0, used_bytes=644_939_776, total_bytes=150_754_820_096)
    assert changed.held_bytes(idle) == 0
    full = idle.model_copy(update={"used_bytes": 644_939_776 + GIB})
    assert Watch(changed).sample(0.0, look(), (full,)).warnings == ()
    over = full.model_copy(update={"used_bytes": 644_939_776 + GIB + 1})
    assert "at most" in Watch(changed).sample(0.0, look(), (over,)).warnings[0]
    assert planned.model_copy(update={"total_bytes": 44 * GIB}).reserved_bytes(150_754_820_096) == 0
    assert planned.held_bytes(CardUse(index=0)) is None
