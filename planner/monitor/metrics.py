"""The text of vLLM's /metrics, of any release from 0.6 on, as a ServerLook.

Names: vLLM 0.26.0 v1/metrics/loggers.py:494-715; gpu_cache_usage_perc before 0.10.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from planner.errors import OutsideError
from planner.foreign import visible
from planner.monitor.sample import ServerLook

_SUMS: dict[str, tuple[str, ...]] = {
    "running": ("vllm:num_requests_running",),
    "waiting": ("vllm:num_requests_waiting",),
    "preemptions": ("vllm:num_preemptions_total", "vllm:num_preemptions"),
    "prompt_tokens": ("vllm:prompt_tokens_total",),
    "generation_tokens": ("vllm:generation_tokens_total",),
    "prefix_cache_queries": ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"),
    "prefix_cache_hits": ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
    "mm_cache_queries": ("vllm:mm_cache_queries_total",),
    "mm_cache_hits": ("vllm:mm_cache_hits_total",),
    "requests_finished": ("vllm:request_success_total",),
}
_CACHE_USAGE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
_LONGEST_NAME = 300
_Series = dict[str, list[tuple[dict[str, str], float]]]


def read_metrics(text: str) -> ServerLook:
    """A scrape as a look. A metric that is missing stays None. OutsideError for text that is no exposition format, or
    one without any metric of vLLM's."""
    series: _Series = {}
    for name, labels, value in _samples(text):
        series.setdefault(name, []).append((labels, value))
    if not any(name.startswith("vllm:") for name in series):
        raise OutsideError("the answer has no vLLM metric (is this the right server, with statistics on?)")
    usage = next((series[name] for name in _CACHE_USAGE if name in series), [])
    start = series.get("process_start_time_seconds", [])
    look = ServerLook(
        model=_model(series),
        started_at=start[0][1] if start else None,
        kv_cache_usage=max((value for _, value in usage), default=None),
        kv_cache_blocks=_blocks(series),
    )
    return look.model_copy(update={field: _sum(series, names) for field, names in _SUMS.items()})


def _samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    from prometheus_client.parser import text_string_to_metric_families

    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if math.isfinite(sample.value):
                    yield sample.name, sample.labels, float(sample.value)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise OutsideError(f"the answer is not in Prometheus' text format ({_short(str(error))})") from None


def _short(text: str) -> str:
    return visible(re.sub(r"\s+", " ", text))[:80]


def _sum(series: _Series, names: tuple[str, ...]) -> float | None:
    found = next((series[name] for name in names if name in series), None)
    return None if found is None else sum(value for _, value in found)


def _model(series: _Series) -> str | None:
    for name, entries in series.items():
        if name.startswith("vllm:") and entries[0][0].get("model_name"):
            return visible(entries[0][0]["model_name"][:_LONGEST_NAME])
    return None


def _blocks(series: _Series) -> int | None:
    """Cache blocks of one engine, from the labels of the configuration."""
    for labels, _ in series.get("vllm:cache_config_info", []):
        if labels.get("num_gpu_blocks", "").isdigit():
            return int(labels["num_gpu_blocks"])
    return None
